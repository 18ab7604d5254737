"""Agents die, stop, start without etcd and start under another net-conf: no packet is lost, nothing is left behind."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import Any

import pytest

from .small_fabric import Node, SmallFabric, fabrics, took, until

shared = fabrics("46 vxlan", "46 host-gw", "6 vxlan", count=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_an_agent_that_ends_and_starts_costs_no_packet(fabric: SmallFabric, number: int) -> None:
    node, other = fabric.nodes
    before = [node.tables(), other.tables()]
    with fabric.traffic() as streams:
        for _ in range(2):
            node.end(number)
            node.start()
            seconds = took(node.ready, node.said)
        time.sleep(0.3)
    assert [node.tables(), other.tables()] == before
    print(f"ready {seconds:.2f} s after its start; {streams}")


def test_both_agents_killed_while_they_start_costs_no_packet(fabric: SmallFabric) -> None:
    before = [node.tables() for node in fabric.nodes]
    with fabric.traffic():
        for delay in (0.02, 0.1, 0.2, 0.25, 0.3, 0.35):
            for node in fabric.nodes:
                node.end()
                node.start()
            time.sleep(delay)
        for node in fabric.nodes:
            node.wait_ready()
        time.sleep(0.3)
    assert [node.tables() for node in fabric.nodes] == before


def test_a_start_without_etcd_serves_pods_from_the_remembered_lease(fabric: SmallFabric) -> None:
    node, other = fabric.nodes
    before, pods = node.tables(), dict(node.pod)
    (member,) = fabric.members
    with fabric.traffic():
        member.signal(signal.SIGSTOP)
        try:
            node.end()
            said = len(node.said())
            node.start()
            until(lambda: "CNI calls are served" in node.said(said), node.said)
            until(lambda: "pods of this node" in node.said(said), node.said, 3.0)
            assert node.cni("STATUS", node.pod_space) == {}
            space = node.new_space()
            ips = node.cni("ADD", space)["ips"]
            assert {item["address"].partition("/")[0] for item in ips}.isdisjoint(pods.values())
            assert node.tables() == before, "nothing is touched before the leases were listed"
            assert "fabric: the leases were not listed yet" in node.health()
            node.cni("DEL", space)
            node.drop_space(space)
        finally:
            member.signal(signal.SIGCONT)
        until(node.ready, node.health, 10.0)
    assert (node.tables(), node.pod) == (before, pods)
    assert node.reaches(other)


@pytest.mark.parametrize("shared", ["46 vxlan", "6 vxlan"], indirect=True)
def test_a_change_of_the_vni_moves_everybody_and_leaves_nothing(fabric: SmallFabric) -> None:
    before = dict(fabric.netconf)
    _change(fabric, Backend={"Type": "vxlan", "VNI": 7})
    try:
        for node in fabric.nodes:
            until(lambda node=node: "vxlan id 1 " not in node("ip -d link"), node.said, 5.0)
            assert "vxlan id 7 " in node("ip -d link")
        _talks(fabric)
        for node in fabric.nodes:
            assert "dev flannel.1 " not in "\n".join(node.tables())
    finally:
        _change(fabric, **before)
    _talks(fabric)
    for node in fabric.nodes:
        until(lambda node=node: "vxlan id 7 " not in node("ip -d link"), node.said, 5.0)
        until(node.ready, node.health)


@pytest.mark.parametrize("agent", ["runs", "is away"])
def test_the_backend_changes_and_nothing_is_left(fabric: SmallFabric, agent: str) -> None:
    before, tables = dict(fabric.netconf), [node.tables() for node in fabric.nodes]
    other = "host-gw" if fabric.kind == "vxlan" else "vxlan"
    for kind in (other, fabric.kind):
        if agent == "is away":
            for node in fabric.nodes:
                node.end()
        _change(fabric, **(before | {"Backend": {"Type": kind}}))
        if agent == "is away":
            for node in fabric.nodes:
                node.start()
        seconds = took(lambda: not fabric.missing(), fabric.missing, 10.0)
        for node in fabric.nodes:
            for command, word in (("ip -d link", " vxlan id 1 "), ("nft list ruleset", "vtep")):
                until(partial(_agrees, node, command, word, kind == "vxlan"), node.said, 15.0)
        _talks(fabric)
        print(f"{kind}: {seconds:.2f} s")
    assert [node.tables() for node in fabric.nodes] == tables


def test_a_wrong_net_conf_is_named_and_changes_nothing(fabric: SmallFabric) -> None:
    node = fabric.nodes[0]
    before, tables = dict(fabric.netconf), node.tables()
    with fabric.traffic():
        for conf, says in (
            ({"Backend": {"Type": "ipsec"}}, "Backend.Type='ipsec': expected one of vxlan, host-gw"),
            ({"Backend": {"Type": fabric.kind}, "Network": "10.9.0.0/16"}, "drain this node"),
        ):
            if "Network" in conf and "4" not in fabric.families:
                continue
            fabric.configure(**{k: v for k, v in before.items() if "Subnet" not in k} | conf)
            until(lambda says=says: says in node.health(), node.health, 2.0)
            assert node.tables() == tables
        fabric.put("config", "{")
        until(lambda: "/config: " in node.said()[-800:], node.said, 2.0)
        fabric.delete("config")
        until(lambda: "the last net-conf stays in force" in node.said()[-800:], node.said, 2.0)
        fabric.configure(**before)
        until(node.ready, node.health, 3.0)
    assert node.tables() == tables


def _agrees(node: Node, command: str, word: str, there: bool) -> bool:
    """Whether a word is in a command's output, or is not."""
    return (word in node(command)) == there


def _change(fabric: SmallFabric, **conf: Any) -> None:
    fabric.configure(**(fabric.netconf | conf))


def _talks(fabric: SmallFabric) -> None:
    one, two = fabric.nodes
    for family in fabric.families:
        until(lambda family=family: one.reaches(two, family) and two.reaches(one, family), one.said, 5.0)
