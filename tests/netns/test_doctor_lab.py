"""The doctor over a lab: nothing wrong while it is sound, and what is wrong on one node is told of that node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.kernel import hostfacts, sysctl
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

ROOT = Path(__file__).parents[2]
OWN = ("net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.core.somaxconn")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three dual-stack nodes whose agents are dead, so that nobody repairs what the tests damage."""
    spec = LabSpec(name=f"pyt{os.getpid()}-doctor", nodes=3, pods=1, family="dual", proxy="nftables")
    found = Lab.up(spec)
    try:
        for node in found.record.nodes:
            found.signal_agent(node, signal.SIGKILL)
        yield found
    finally:
        found.down()


def doctor(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pycni.cli", "doctor", "--json", "--name", lab.spec.name, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def run(lab: Lab, target: str, command: str) -> None:
    lab.exec(target, ["sh", "-ec", command])


def told(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Level, check and nodes of what is worse than a thing to know, but for what this machine is short of."""
    return {
        (item["level"], item["check"], " ".join(item["nodes"]))
        for item in found["findings"]
        if item["level"] != "info" and item["check"] not in {"conntrack-small", "neighbours-few"}
    }


def test_a_sound_lab_has_nothing_wrong(lab: Lab) -> None:
    code, found = doctor(lab)
    assert told(found) == set()
    assert code == (3 if found["counts"]["warning"] else 0)
    assert found["nodes"] == ["node1", "node2", "node3"]


def test_what_is_wrong_on_a_node_is_told_of_that_node(lab: Lab) -> None:
    pod = next(item for item in lab.pods() if item.node == "node1")
    other = lab.node("node1").conflist.parent / "05-other.conflist"
    run(lab, "node3", "ip link set eth0 mtu 1400")
    run(lab, pod.name, "ip link set eth0 mtu 1500")
    run(
        lab,
        "node2",
        "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
    )
    other.write_text('{"name": "other", "plugins": [{"type": "bridge"}]}')
    try:
        code, found = doctor(lab)
        assert code == 1
        assert told(found) >= {
            ("error", "mtu-differs", "node3"),
            ("error", "mtu-path", "node1 node2"),
            ("error", "mtu-pod", "node1"),
            ("warning", "forward-drop", "node2"),
            ("error", "conflist-first", "node1"),
        }
        assert not [
            item
            for item in found["findings"]
            if item["check"] == "mtu-pod" and pod.name not in item["subject"]
        ]
    finally:
        other.unlink()
        run(lab, "node2", "nft delete table ip filter")
        run(lab, pod.name, "ip link set eth0 mtu 1430")
        run(lab, "node3", "ip link set eth0 mtu 1500")


def test_fix_and_undo_work_on_the_nodes_and_nowhere_else(lab: Lab) -> None:
    machine = {**hostfacts.machine(), **{name: sysctl.get(name) for name in OWN}}
    run(lab, "node2", "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=1")
    run(lab, "node3", "sysctl -qw net.core.somaxconn=99 net.ipv6.conf.all.forwarding=0")
    before = doctor(lab)[1]
    assert {("error", "forwarding-off", "node2"), ("error", "forwarding-off", "node3")} < told(before)
    code, fixed = doctor(lab, "--fix")
    assert told(fixed) == set()
    assert code in {0, 3}
    assert {(item["node"], item["name"]) for item in fixed["fixed"]} >= {
        ("node2", "net.ipv4.ip_forward"),
        ("node2", "net/ipv4/conf/flannel.1/rp_filter"),
        ("node3", "net.core.somaxconn"),
        ("node3", "net.ipv6.conf.all.forwarding"),
    }
    assert not {item["name"] for item in fixed["fixed"]} & machine.keys() - set(OWN)
    assert doctor(lab, "--undo")[0] == 0
    assert told(doctor(lab)[1]) == told(before)
    assert {name: sysctl.get(name) for name in machine} == machine
