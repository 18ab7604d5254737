"""Nodes join, leave and change: what their peers' kernels hold follows within a second, and only what is ours."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from .small_fabric import SmallFabric, fabrics, ghost, took, until

shared = fabrics("46 vxlan", "46 host-gw", "6 vxlan", count=3)

FOREIGN = """
ip link add other.1 type vxlan id 1 dstport 4789 dev eth0 nolearning
ip link set other.1 address 02:00:00:00:77:01 up
bridge fdb add 02:00:00:00:77:02 dev other.1 dst 192.0.2.77 self permanent
ip addr add 172.31.0.1/24 dev other.1
ip neigh add 172.31.0.2 lladdr 02:00:00:00:77:02 dev other.1 nud permanent
ip route add 10.5.250.0/24 via 172.31.0.2 dev other.1 proto static
ip route add 10.66.0.0/16 via 172.31.0.9 dev other.1
nft add table inet flannel-ish
nft add chain inet flannel-ish c
nft add rule inet flannel-ish c counter
"""
SHOW_FOREIGN = """
ip -o -d link show dev other.1; bridge fdb show dev other.1; ip neigh show dev other.1 nud permanent
ip route show dev other.1; ip addr show dev other.1; nft list table inet flannel-ish
"""


@pytest.fixture(scope="module")
def foreign(shared: SmallFabric) -> str:
    """Things of other tools on the first node, some of them close to ours; as they are shown."""
    if "4" not in shared.families:
        return ""
    shared.nodes[0](FOREIGN)
    return shared.nodes[0](SHOW_FOREIGN)


@pytest.fixture(autouse=True)
def _only_ours_is_touched(shared: SmallFabric, foreign: str) -> object:
    yield
    if foreign:
        assert shared.nodes[0](SHOW_FOREIGN) == foreign


def test_a_node_joins_and_leaves(fabric: SmallFabric) -> None:
    witness = fabric.nodes[0]
    before = witness.tables()
    node = fabric.join(9)
    node.wait_ready()
    joined = took(lambda: witness.has(*(f"{net} " for net in node.subnets)), witness.tables, 1.0)
    node.add_pod()
    for family in fabric.families:
        until(lambda family=family: node.reaches(witness, family), family, 1.0)
    key = node.key
    fabric.leave(node)
    assert fabric.get(key) is not None, "its record lives on"
    fabric.delete(key)
    left = took(lambda: witness.tables() == before, witness.tables, 1.0)
    print(f"joined after {joined * 1000:.0f} ms, gone after {left * 1000:.0f} ms")


def test_many_records_come_and_go(fabric: SmallFabric) -> None:
    before = [node.tables() for node in fabric.nodes]
    records = [ghost(fabric, number) for number in range(101, 131)]
    for name, value in records:
        fabric.put(name, json.dumps(value))
    for node in fabric.nodes:
        until(
            lambda node=node: node.has("10.5.130.0" if "4" in fabric.families else ":82::"), node.tables, 1.0
        )
    for name, _ in records:
        fabric.delete(name)
    for node, tables in zip(fabric.nodes, before, strict=True):
        until(lambda node=node, tables=tables: node.tables() == tables, node.tables, 1.0)


def test_an_address_changes_while_the_agent_runs(fabric: SmallFabric) -> None:
    witness, _, node = fabric.nodes
    key = node.key
    node.readdress(3, 33)
    try:
        seconds = took(
            lambda: witness.has("192.0.2.33" if "4" in fabric.families else "2001:db8::21"), seconds=3
        )
        until(lambda: node.reaches(witness) and witness.reaches(node), node.said, 3)
        print(f"peers know the new address after {seconds * 1000:.0f} ms")
        until(lambda: not witness.has("192.0.2.3 ") and not witness.has("2001:db8::3 "), witness.tables, 3)
    finally:
        node.readdress(33, 3)
    until(lambda: not witness.has("192.0.2.33 ") and not witness.has("2001:db8::21 "), witness.tables, 3)
    until(lambda: node.reaches(witness) and witness.reaches(node), node.said, 3)
    assert (node.key, fabric.names().count(key.removeprefix("subnets/"))) == (key, 1)


def test_an_agent_starts_with_another_address(fabric: SmallFabric) -> None:
    witness, _, node = fabric.nodes
    key, names = node.key, fabric.names()
    for old, new in ((3, 34), (34, 3)):
        node.end()
        node.readdress(old, new)
        node.start()
        node.wait_ready()
        assert (node.key, fabric.names()) == (key, names), "the subnet stays, and its pods' addresses with it"
        shown = f"192.0.2.{new} " if "4" in fabric.families else f"2001:db8::{new:x} "
        until(lambda shown=shown: witness.has(shown), witness.tables, 1.0)
        until(lambda: node.reaches(witness) and witness.reaches(node), node.said, 3)
        assert not witness.has(f"192.0.2.{old} ")


@pytest.mark.parametrize("shared", ["46 vxlan", "6 vxlan"], indirect=True)
def test_a_vtep_has_another_mac(fabric: SmallFabric) -> None:
    witness, _, node = fabric.nodes
    device = "flannel.1" if "4" in fabric.families else "flannel-v6.1"
    old = node(f"ip -o link show dev {device}").split("link/ether ")[1].split()[0]
    node.end()
    node(f"ip link set {device} address 02:00:00:00:99:03")
    node.start()
    node.wait_ready()
    until(lambda: witness.has("02:00:00:00:99:03"), witness.tables, 1.0)
    until(lambda: not witness.has(old), witness.tables, 1.0)
    until(lambda: node.reaches(witness) and witness.reaches(node), node.said, 3)


def test_a_node_returns_with_another_subnet(fabric: SmallFabric) -> None:
    witness, _, node = fabric.nodes
    old, key = node.subnets, node.key
    node.drop_pod()
    node.end(signal.SIGTERM)
    fabric.delete(key)
    fabric.put(key, json.dumps(ghost(fabric, 222)[1]))  # somebody else's now
    shutil.rmtree(node.folder / "state")
    try:
        node.start()
        node.wait_ready()
        assert not set(node.subnets) & set(old)
        until(lambda: witness.has(*(f"{net} " for net in node.subnets)), witness.tables, 1.0)
        node.add_pod()
        for family in fabric.families:
            until(lambda family=family: node.reaches(witness, family), node.said, 2)
        assert [net for net in old if not node.has(f"{net} ")] == [], "now reached via the other node"
        addresses = node("ip -o addr show; ip route show table all; ip -6 route show table all")
        own = [net.partition("/")[0] + "/" + ("128" if ":" in net else "32") for net in old]
        assert not [address for address in own if f" {address} " in addresses], "leftovers"
    finally:
        fabric.delete(key)
    until(lambda: not any(f"{net} " in "\n".join(witness.tables()) for net in old), witness.tables, 1.0)
