"""The part of ``lab demo`` about policies: web servers are closed but to one client; who is denied, and by what."""

from __future__ import annotations

from pycni.lab import policy_matrix
from pycni.lab.apply import Cluster
from pycni.lab.ask_client import ask_from
from pycni.lab.demo_service import NAME
from pycni.lab.objects import Key, Mappings
from pycni.lab.report import Progress
from pycni.lab.run import Lab
from pycni.model.policy import NETWORK_POLICY

CLOSED, LET_IN = f"{NAME}-closed", f"{NAME}-from-one"
PATIENCE_S = 0.3
"""For a question that nobody may answer."""


def show_policy(lab: Lab, progress: Progress) -> bool:
    """Close the web servers and let one client in. Whether just that one gets through, and all is as policies say."""
    plain = [pod.name for pod in lab.pods() if pod.name.startswith("pod")]
    if len(plain) < 2:
        return True
    friend, other = plain[:2]
    cluster = Cluster(lab)
    policies = _manifests(friend)
    progress.line()
    with progress.step(f"apply: NetworkPolicy {CLOSED} and {LET_IN} ({friend}), in the kernels of all nodes"):
        cluster.apply([("the demo", value) for value in policies])
    for problem in cluster.problems:
        progress.line(f"  but {problem}")
    let_in = ask_from(lab, friend, f"{NAME}:80", count=5)
    turned_away = ask_from(lab, other, f"{NAME}:80", timeout=PATIENCE_S)
    denied = not turned_away.pods
    progress.line(f"  {friend} asks {NAME}:80: {5 - sum(let_in.failures.values())} of 5 answered")
    progress.line(f"  {other} asks {NAME}:80: {'no answer' if denied else 'ANSWERED'}")
    matrix = lab.policy_matrix((6, 8080))
    progress.line(
        "\nWhat policies do between pods, by real connections to port 8080:\n" + policy_matrix.grid(matrix)
    )
    progress.line(policy_matrix.summary(matrix))
    cluster.delete([Key(NETWORK_POLICY, "default", name) for name in (CLOSED, LET_IN)])
    return not let_in.failures and denied and matrix.ok and not cluster.problems


def _manifests(friend: str) -> list[Mappings]:
    target = {"matchLabels": {"app": NAME}}
    peer = {"podSelector": {"matchLabels": {"pod": friend}}}
    specs = {
        CLOSED: {"podSelector": target, "policyTypes": ["Ingress"]},
        LET_IN: {"podSelector": target, "ingress": [{"from": [peer], "ports": [{"port": "http"}]}]},
    }
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": NETWORK_POLICY,
            "metadata": {"name": name},
            "spec": spec,
        }
        for name, spec in specs.items()
    ]
