"""Policies by the lab's commands: applied, shown, labels changed, the matrix; each in force when its command returns."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pycni.lab import settle
from pycni.lab.apply import Cluster
from pycni.lab.apply_settle import bare
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .conftest import unique_name
from .lab_tools import ctl

PINS = "/sys/fs/bpf/pycni"
WEB = {"matchLabels": {"app": "web"}}
MANIFESTS = [
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "replicas": 2,
            "selector": WEB,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [
                        {
                            "name": "c",
                            "ports": [
                                {"name": "http", "containerPort": 80},
                                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                            ],
                        }
                    ]
                },
            },
        },
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "podSelector": WEB,
            "ingress": [
                {
                    "from": [
                        {
                            "namespaceSelector": {"matchLabels": {"team": "shop"}},
                            "podSelector": {"matchLabels": {"role": "front"}},
                        }
                    ],
                    "ports": [{"port": "http"}],
                }
            ],
        },
    },
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(LabSpec(name=unique_name(), nodes=2, pods=0, proxy="nftables", policy="ebpf"))
    yield made
    made.down()


def ran(lab: Lab, *words: str, code: int = 0) -> str:
    done = ctl("lab", *words, "--name", lab.spec.name)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    return done.stdout


def reach(lab: Lab) -> set[str]:
    """``from>to port/protocol`` of what is allowed, which has to be what the policies say."""
    # Twice the usual patience: what is allowed has to be answered on a busy machine too.
    found: dict[str, Any] = json.loads(ran(lab, "matrix", "--policy", "--json", "--timeout", "4"))
    assert found["ok"], found
    return {
        f"{item['from']}>{item['to']} {item['port']}/{item['protocol']}"
        for item in found["connections"]
        if item["allowed"]
    }


def test_policies_and_labels_are_in_force_when_their_command_returns(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(yaml.safe_dump_all(MANIFESTS))
    assert "NetworkPolicy shop/web created" in ran(lab, "apply", "-f", str(file))
    ran(lab, "pod", "add", "front", "--labels", "role=front,tier=1", "--ports", "http:80,53/UDP")
    to_web = {f"front>web-{number}.shop 80/TCP" for number in (1, 2)}

    assert not {item for item in reach(lab) if item.startswith("front>web")}
    told = ran(lab, "label", "ns", "default", "team=shop")
    assert told == "Namespace default labeled: kubernetes.io/metadata.name=default,team=shop\n"
    assert {item for item in reach(lab) if ">web" in item} == to_web, "by label of its namespace"
    ran(lab, "label", "pod", "front", "role-")
    assert not {item for item in reach(lab) if ">web" in item}
    ran(lab, "label", "pod", "front", "role=front")
    assert {item for item in reach(lab) if ">web" in item} == to_web, "by label of the pod"

    shown = ran(lab, "matrix", "--policy")
    assert "denied by NetworkPolicy shop/web" in shown
    assert "front -> web-1.shop only by 80/TCP" in shown
    rows = [line.split() for line in ran(lab, "get", "netpol", "-n", "shop").splitlines()]
    assert rows[0] == ["NAMESPACE", "NAME", "POD-SELECTOR", "INGRESS", "EGRESS", "AGE"]
    assert rows[1][:6] == ["shop", "web", "app=web", "1", "rule", "-"]
    assert "role=front,tier=1" in ran(lab, "get", "pods").replace("tier=1,role=front", "role=front,tier=1")

    ran(lab, "delete", "netpol", "web", "-n", "shop")
    assert {f"front>web-{number}.shop 53/UDP" for number in (1, 2)} <= reach(lab)


def test_a_change_that_an_agent_cannot_take_in_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "PATIENCE_S", 0.5)
    cluster, key = Cluster(lab), Key("Namespace", "", "default")
    lab.signal_agent("node2", signal.SIGSTOP)
    try:
        cluster.label([key], {"late": "yes"})
    finally:
        lab.signal_agent("node2", signal.SIGCONT)
    assert [line.partition(":")[0] for line in cluster.problems] == ["policies on node2 are not up to date"]
    cluster = Cluster(lab)
    cluster.label([key], {"late": None})
    assert cluster.problems == [], "it has made up for it"


def test_a_pod_that_was_only_announced_is_forgotten(lab: Lab) -> None:
    """As after a command that was killed between telling the agents of a pod and making it."""
    cluster, key = Cluster(lab), Key("Pod", "default", "ghost")
    cluster.announce(bare("ghost"), "node1")
    assert cluster.objects()[key]["status"] == {"phase": "Pending"}
    cluster.label([Key("Namespace", "", "default")], {"again": "yes"})
    assert key not in cluster.objects()
    assert lab.add_pod("node1", "ghost", manifest=bare("ghost")).ips, "its name is free"
    lab.remove_pod("ghost")


def test_a_node_takes_its_programs_along(lab: Lab) -> None:
    def pins() -> set[str]:
        return {name for name in os.listdir(PINS) if name.startswith("node3@")}

    before = pins()
    lab.add_node()
    ran(lab, "pod", "add", "late", "--node", "node3", "--labels", "role=front")
    assert len(pins() - before) == 1, "the fast path of the new node"
    assert any(item.startswith("late>") for item in reach(lab))
    lab.remove_node("node3")
    assert pins() <= before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("label", "pod", "nobody", "a=b"), "there is no Pod default/nobody"),
        (("label", "pod", "nobody", "a"), "expected KEY=VALUE"),
        (("pod", "add", "--ports", "x"), "expected [NAME:]NUMBER"),
        (("matrix", "--policy", "--port", "x"), "expected NUMBER"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(lab: Lab, words: tuple[str, ...], said: str) -> None:
    done = ctl("lab", *words, "--name", lab.spec.name)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
