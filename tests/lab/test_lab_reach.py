"""Pods reach each other on every backend and family, and the matrix says so when they do not."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from pycni.lab.run import Lab

from .conftest import LabMaker
from .lab_tools import ctl, within

COMBINATIONS = [(backend, family) for backend in ("vxlan", "host-gw") for family in ("ipv4", "ipv6", "dual")]


@pytest.mark.parametrize(("backend", "family"), COMBINATIONS, ids=lambda value: value)
def test_three_nodes_reach_each_other_in_every_way(make_lab: LabMaker, backend: str, family: str) -> None:
    lab = make_lab(nodes=3, backend=backend, family=family, pods=2)
    matrix = lab.matrix()
    assert matrix.failed() == []
    # 6 pods: 30 pairs; 3 nodes with 6 pods both ways: 36 pairs; 4 kinds.
    assert len(matrix.reasons) == (30 + 36) * 4 * (2 if family == "dual" else 1)
    overhead = {"host-gw": 0, "vxlan": 50 if family == "ipv4" else 70}[backend]
    assert {node["mtu"] for node in lab.status()["nodes"]} == {1500 - overhead}


def test_jumbo_frames_are_used_in_full(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1, mtu=9000)
    assert lab.matrix().ok
    assert {node["mtu"] for node in lab.status()["nodes"]} == {8950}


def test_matrix_and_status_speak_json(lab3: Lab) -> None:
    done = ctl("lab", "matrix", "--name", lab3.spec.name, "--json")
    assert done.returncode == 0
    value: dict[str, Any] = json.loads(done.stdout)
    assert (value["ok"], value["checks"], value["failed"]) == (True, 66 * 4 * 2, [])
    status = json.loads(ctl("lab", "status", "--name", lab3.spec.name, "--json").stdout)
    assert [node["name"] for node in status["nodes"]] == ["node1", "node2", "node3"]
    assert status["ready"]
    assert all({"name", "node", "ips"} <= pod.keys() and len(pod["ips"]) == 2 for pod in status["pods"])
    assert all(node["alive"] and node["ready"] and len(node["subnets"]) == 2 for node in status["nodes"])


def test_udp_dropped_in_one_node_fails_the_matrix_naming_its_pairs(lab3: Lab) -> None:
    rules = (
        "add table inet broken; add chain inet broken f { type filter hook forward priority 0; };"
        "add rule inet broken f meta l4proto udp drop"
    )
    lab3.exec("node2", ["nft", rules])
    try:
        done = ctl("lab", "matrix", "--name", lab3.spec.name, "--json", "--timeout", "0.5")
    finally:
        lab3.exec("node2", ["nft", "delete table inet broken"])
    assert done.returncode == 1
    value = json.loads(done.stdout)
    there = {pod.name for pod in lab3.pods() if pod.node == "node2"}
    failed = {(item["from"], item["to"]) for item in value["failed"]}
    assert not value["ok"]
    assert {item["kind"] for item in value["failed"]} == {"udp"}
    assert failed, "something crosses node2"
    assert all(there & set(pair) for pair in failed), "only pairs with a pod behind node2"
    assert ("node1", min(there)) in failed
    assert lab3.matrix().ok


def test_a_route_lost_while_the_agent_stands_still_fails_the_matrix(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1)
    one, two = lab.pods()
    lab.signal_agent("node1", 19)  # SIGSTOP: nobody repairs
    network = lab.node("node2").pod_network()
    assert network is not None
    lab.exec("node1", ["ip", "route", "del", str(network.subnets[0])])
    matrix = lab.matrix(timeout=0.3)
    failed = {(check.source, check.target) for check, _reason in matrix.failed()}
    # node1 finds neither the way to pod2 nor the way back to node2, whose pods' network it comes from; pod2 reaches
    # node1 masqueraded as node2.
    assert failed == {(one.name, two.name), (two.name, one.name), ("node1", two.name), ("node2", one.name)}
    lab.signal_agent("node1", 18)
    assert within(5, lambda: lab.matrix(timeout=0.3).ok), "the agent repairs the route once it goes on"


def test_a_table_for_people_shows_every_pair(lab3: Lab) -> None:
    done = ctl("lab", "matrix", "--name", lab3.spec.name)
    assert done.returncode == 0
    assert "from / to" in done.stdout
    assert "✗" not in done.stdout.splitlines()[1]
    assert f"all {66 * 4 * 2} checks pass" in done.stdout


def test_exec_runs_where_it_is_told_with_the_commands_exit_code(lab3: Lab) -> None:
    pod = lab3.pods()[0]
    name = lab3.spec.name
    done = ctl("lab", "exec", "--name", name, pod.name, "--", "ip", "-4", "-o", "addr", "show", "dev", "eth0")
    assert f" {pod.ips[0]}/" in done.stdout
    assert ctl("lab", "exec", "--name", name, "node2", "--", "sh", "-c", "exit 7").returncode == 7
    assert "br0" in ctl("lab", "exec", "--name", name, "fabric", "--", "ip", "link").stdout
    assert json.loads(ctl("lab", "exec", "--name", name, "--json", "node1", "--", "echo", "x").stdout) == {
        "exit": 0,
        "stdout": "x\n",
        "stderr": "",
    }


def test_nothing_appears_in_the_machines_own_namespace(lab3: Lab) -> None:
    assert lab3.nodes()
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    assert not [
        link["ifname"] for link in links if link["ifname"].startswith(("node", "veth", "flannel", "cni"))
    ]
    assert not lab3.exec("node1", ["ip", "route", "show", "default"]).stdout, "no way to the uplink"
