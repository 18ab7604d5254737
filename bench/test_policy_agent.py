"""How much memory does a whole agent need for 1,000 policies and 5,000 pods of the API, and how soon are they enforced?

A real ``pycnid`` with policies alone, in a namespace, following the scripted API server of the tests, which runs in the
same namespace. kube-router 2.9 had 64 MiB at 100 policies and 98 MiB at 1,000 on the same kind of machine.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from bench.fed import API_PORT, HEALTH_PORT, api, program, resident_mib, wait_ready
from bench.policyload import APPS, SPACES
from bench.rows import row
from bench.size import sized
from bench.test_kube import meta
from tests.cni.runtimes import inside

POLICIES, PODS = 1_000, 5_000
NODES = {"100 of them here": 50, "1,000 of them here": 5}
RUNS = sized(("first", "again"), ("first",))
SETTLE_S = sized(5, 1)
KUBE_ROUTER_MIB = 98


def namespace(number: int) -> dict[str, Any]:
    labels = {"kubernetes.io/metadata.name": f"ns{number}", "team": f"t{number % 10}"}
    return {"metadata": {**meta(f"ns{number}", number, labels=labels), "namespace": ""}}


def pod(number: int, nodes: int) -> dict[str, Any]:
    """As large as pods are."""
    node, place = number % nodes, number // nodes + 2
    v4 = IPv4Address("10.0.0.0") + number  # the agent never looks whose subnet an address is of
    ips = [{"ip": str(v4)}, {"ip": f"fd00:{node:x}::{place:x}"}]
    container = {
        "name": "c",
        "image": "registry.example/x:1",
        "ports": [{"containerPort": 8080, "name": "http"}],
        "env": [{"name": "A", "value": "b" * 40}] * 5,
    }
    labels = {"app": f"a{number // SPACES % APPS}", "pod-template-hash": f"{number // SPACES % APPS:010x}"}
    conditions = [{"type": kind, "status": "True"} for kind in ("Initialized", "Ready", "PodScheduled")]
    return {
        "metadata": {**meta(f"p{number}", number, labels=labels), "namespace": f"ns{number % SPACES}"},
        "spec": {"nodeName": f"n{node}", "containers": [container]},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips, "conditions": conditions},
    }


def policy(number: int) -> dict[str, Any]:
    """What ``policyload.policy`` is."""
    index = number // SPACES

    def app(which: int) -> dict[str, Any]:
        return {"matchLabels": {"app": f"a{which % APPS}"}}

    team = {"matchLabels": {"team": f"t{index % 10}"}}
    peers = [{"podSelector": app(index + 1)}, {"namespaceSelector": team, "podSelector": app(index)}]
    ports = [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]
    block = [{"ipBlock": {"cidr": f"192.0.{index}.0/24", "except": [f"192.0.{index}.0/30"]}}]
    spec: dict[str, Any] = {
        "podSelector": app(index),
        "policyTypes": ["Ingress"],
        "ingress": [{"from": peers, "ports": ports}, {"from": block}],
    }
    if number % 2:
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [{"to": peers, "ports": ports}, {"to": block}]
    made = {**meta(f"np{index}", number), "namespace": f"ns{number % SPACES}"}
    return {"metadata": made, "spec": spec}


def agent(folder: Path) -> list[str]:
    """Its command line."""
    return [
        "-m", "pycni.agent.main", "run", "--components=policy", "--node-name=n0", f"--state-dir={folder}",
        f"--cni-socket={folder}/cni.sock", f"--kube-api-url=http://127.0.0.1:{API_PORT}",
        f"--healthz-port={HEALTH_PORT}", "--healthz-ip=127.0.0.1",
    ]  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", list(NODES)[: sized(None, 1)])
def test_an_agent_with_all_policies(benchmark: Any, where: str) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n0"}}],
        "namespaces": [namespace(number) for number in range(SPACES)],
        "pods": [pod(number, NODES[where]) for number in range(PODS)],
        "networkpolicies": [policy(number) for number in range(POLICIES)],
    }
    found: dict[str, float] = {}
    with api(objects) as (space, folder):

        def start() -> None:
            for which in RUNS:
                log = folder / f"{which}.log"
                with contextlib.ExitStack() as life:
                    started = time.monotonic()
                    made = life.enter_context(program(space, agent(folder), log))
                    found[f"{which}_s"] = wait_ready(space, log) - started
                    time.sleep(SETTLE_S)
                    found["mib"] = max(resident_mib(made.pid), found.get("mib", 0.0))

        benchmark.pedantic(start, rounds=1)
        shown = subprocess.run(
            [*inside(space), "nft", "list", "map", "inet", "pycni_policy", "judged_ingress4"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.count(":") >= PODS // NODES[where]
    about = f"agent with {POLICIES:,} policies over {PODS:,} pods, {where}"
    row(
        f"{about}: memory",
        f"{found['mib']:.0f} MiB",
        f"kube-router {KUBE_ROUTER_MIB} MiB",
        found["mib"],
        "<= 98 MiB",
    )
    row(f"{about}: process start until all are in the kernel", f"{found['first_s']:.2f} s")
    if "again" in RUNS:
        row(f"{about}: the same, restarted beside what is there", f"{found['again_s']:.2f} s")
