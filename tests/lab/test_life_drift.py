"""What other tools change is repaired within a second, both ways, and then the agent is idle again: real agents."""

from __future__ import annotations

import time

import pytest

from .small_fabric import Node, SmallFabric, fabrics, took, until

shared = fabrics(count=2)
KINDS = ("46 vxlan", "46 host-gw")
both = pytest.mark.parametrize("shared", KINDS, indirect=True)
one_is_enough = pytest.mark.parametrize("shared", KINDS[:1], indirect=True)
GAP_S = 0.55
"""Repairs of one agent keep a gap of half a second."""

COMMON = {
    "route deleted": "ip route del {net4}",
    "IPv6 route deleted": "ip -6 route del {net6}",
    "all our routes flushed": "ip route flush proto 112; ip -6 route flush proto 112",
    "route replaced": "ip route replace {net4} via 192.0.2.250 dev eth0 proto 112",
    "route of ours added": "ip route add 10.5.190.0/24 via 192.0.2.250 proto 112",
    "IPv6 route of ours added": "ip -6 route add fd00:5:0:be::/64 via 2001:db8::fa proto 112",
    "nft table deleted": "nft delete table inet pycni_fabric",
    "nft ruleset flushed": "nft flush ruleset",
    "nft rule added": "nft insert rule inet pycni_fabric postrouting counter drop",
}
VXLAN = {
    "forwarding entry deleted": "bridge fdb del {mac} dev flannel.1 dst {peer4} self",
    "forwarding entry redirected": "bridge fdb replace {mac} dev flannel.1 dst 192.0.2.66 self permanent",
    "forwarding entry added": "bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 192.0.2.77 self permanent",
    "neighbour deleted": "ip neigh del {base4} dev flannel.1",
    "neighbour changed": "ip neigh replace {base4} lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent",
    "neighbour added": "ip neigh add 10.5.190.0 lladdr 02:00:00:00:00:97 dev flannel.1 nud permanent",
    "IPv6 neighbour deleted": "ip neigh del {base6} dev flannel-v6.1",
    "route on our device added": "ip route add 10.5.191.0/24 dev flannel.1",
    "device deleted": "ip link del flannel.1",
    "both devices deleted": "ip link del flannel.1; ip link del flannel-v6.1",
    "device down": "ip link set flannel.1 down",
    "IPv6 device down and up": "ip link set flannel-v6.1 down; ip link set flannel-v6.1 up",
    "MAC changed": "ip link set flannel.1 address 02:00:00:00:00:96",
    "MTU changed": "ip link set flannel.1 mtu 1300",
    "address deleted": "ip addr flush dev flannel.1",
    "IPv6 address deleted": "ip -6 addr flush dev flannel-v6.1 scope global",
    "address added": "ip addr add 10.9.9.9/32 dev flannel.1",
    "device replaced by another": (
        "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0; ip link set flannel.1 up"
    ),
    "device renamed": "ip link set flannel.1 down; ip link set flannel.1 name stolen0; ip link set stolen0 up",
    "nft peer deleted": "nft delete element inet pycni_fabric vtep4 {{ {peer4} }}",
    "nft peer added": "nft add element inet pycni_fabric vtep4 {{ 192.0.2.66 }}",
}


def state(node: Node) -> list[str]:
    """Tables and firewall, without counters."""
    rules = node("nft -s list table inet pycni_fabric", ok=False)
    return [*node.tables(), *sorted(" ".join(line.split()) for line in rules.splitlines())]


def rested(fabric: SmallFabric, drifted: dict[str, float] = {}) -> tuple[Node, Node]:  # noqa: B006  # a memory
    """The node that was left alone longer, once it may repair at once, and the other one."""
    node, peer = sorted(fabric.nodes, key=lambda node: drifted.get(node.name, 0.0))
    time.sleep(max(0.0, drifted.get(node.name, 0.0) + GAP_S - time.monotonic()))
    drifted[node.name] = time.monotonic()
    return node, peer


def words(node: Node, peer: Node) -> dict[str, str]:
    net4, net6 = peer.subnets
    fdb = [line for line in node.tables() if "flannel.1 fdb" in line]
    return {
        "net4": net4,
        "net6": net6,
        "base4": net4.partition("/")[0],
        "base6": net6.partition("/")[0],
        "mac": fdb[0].split()[2] if fdb else "",
        "peer4": f"192.0.2.{peer.number}",
    }


@pytest.mark.parametrize(
    ("shared", "what"),
    [(KINDS[0], what) for what in COMMON | VXLAN]
    + [(KINDS[1], what) for what in COMMON if "nft" not in what],
    indirect=["shared"],
)
def test_drift_is_repaired(fabric: SmallFabric, what: str) -> None:
    node, peer = rested(fabric)
    wanted = until(lambda: state(node))
    node((COMMON | VXLAN)[what].format(**words(node, peer)))
    seconds = took(
        lambda: state(node) == wanted, lambda: f"{state(node)}\n{wanted}\n{node.said()[-2000:]}", 1.0
    )
    for family in fabric.families:
        assert node.reaches(peer, family), family
    print(f"{what}: {seconds * 1000:.0f} ms")


@both
def test_a_foreign_route_in_the_way_is_named_and_kept_and_ours_is_back_when_it_goes(
    fabric: SmallFabric,
) -> None:
    node, peer = rested(fabric)
    net = words(node, peer)["net4"]
    wanted = node.tables()
    node(f"ip route replace {net} via 192.0.2.250 dev eth0 proto static")
    until(lambda: "in the way and not ours" in node.health(), node.health, 2.0)
    assert f"{net} via 192.0.2.250 dev eth0" in node.health()
    assert "proto static" in node(f"ip route show {net}")
    node(f"ip route del {net} proto static")
    seconds = took(lambda: node.tables() == wanted, node.tables, 1.0)
    until(node.ready, node.health, 1.0)
    print(f"back after {seconds * 1000:.0f} ms")


@both
def test_the_underlay_device_is_made_anew(fabric: SmallFabric) -> None:
    node, peer = fabric.nodes
    wanted = state(node)
    node("ip link del eth0")
    until(lambda: "eth0" in node.health(), node.health, 1.0)
    node.plug()
    seconds = took(lambda: state(node) == wanted, lambda: f"{state(node)}\n{node.said()[-2000:]}", 3.0)
    until(node.ready, node.health, 3.0)
    for family in fabric.families:
        until(lambda family=family: node.reaches(peer, family), node.said, 3.0)
    print(f"all back {seconds * 1000:.0f} ms after the interface is there again")


@both
def test_the_underlay_goes_down_and_up(fabric: SmallFabric) -> None:
    node, peer = fabric.nodes
    wanted = state(node)
    node("ip link set eth0 down; ip link set eth0 up; ip addr replace 2001:db8::1/64 dev eth0 nodad")
    seconds = took(lambda: state(node) == wanted, lambda: f"{state(node)}\n{node.said()[-2000:]}", 2.0)
    for family in fabric.families:
        until(lambda family=family: node.reaches(peer, family), node.said, 3.0)
    print(f"{seconds * 1000:.0f} ms")


@one_is_enough
def test_a_fighter_is_answered_at_a_measured_pace(fabric: SmallFabric) -> None:
    node, peer = fabric.nodes
    net = words(node, peer)["net4"]
    before = node.metric("pycni_fabric_pass_seconds_count")
    for _ in range(20):
        node(f"ip route del {net}", ok=False)
        time.sleep(0.05)
    assert node.metric("pycni_fabric_pass_seconds_count") - before < 8
    until(lambda: node.has(f"{net} "), node.tables, 1.0)


@one_is_enough
def test_after_repairs_the_agent_is_idle(fabric: SmallFabric) -> None:
    node = fabric.nodes[0]
    until(node.ready, node.health)
    time.sleep(1.2)
    passes, cpu, said = node.metric("pycni_fabric_pass_seconds_count"), node.cpu(), len(node.said())
    time.sleep(2.0)
    used = node.cpu() - cpu
    passes = node.metric("pycni_fabric_pass_seconds_count") - passes
    print(f"{passes:.0f} passes and {used * 1000:.0f} ms of CPU in 2 s")
    assert passes <= 1, node.said(said)
    assert used <= 0.06
