"""The ipip backend on a kernel that has the device: run as the only program of a User-Mode Linux guest."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from pycni.kernel import netns as namespaces
from pycni.kernel.fabric import FabricDriver
from pycni.model.fabric import FabricState, IpipLink, VxlanLink
from pycni.model.family import Family
from pycni.model.tables import Route, RouteKey
from tests.netns.fabric_nodes import FabricNode, FabricWorld, run, until
from tests.netns.test_network_component import settled, talk
from tests.proxy.uml_boot import answer


@contextmanager
def world(**options: Any) -> Iterator[FabricWorld]:
    made = FabricWorld("4", "ipip", **options)
    try:
        yield made
    finally:
        made.close()


FIRST = (bytes((192, 0, 2, 1)), bytes((10, 5, 1)))
"""What packets of the first node and its pods come from."""


def protocols(seen: socket.socket) -> set[int]:
    """IP protocols of the first node's packets that have passed; others' agents ask their peers meanwhile."""
    found = set()
    seen.settimeout(0.2)
    while True:
        try:
            frame = seen.recv(100)
        except TimeoutError:
            return found
        if frame[26:30].startswith(FIRST):
            found.add(frame[23])


def watch(node: FabricNode) -> socket.socket:
    def made() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        tap.bind(("eth0", 0x0800))
        return tap

    fd = namespaces.open_netns(namespaces.path(node.name))
    return namespaces.run_in(fd, made)


def agents() -> dict[str, Any]:
    """Two agents, a route lost, an agent that ends and one that comes back."""
    with world() as made:
        one, two = nodes = [made.node(number) for number in (1, 2)]
        running = [node.start() for node in nodes]
        until(lambda: all(agent.well() for agent in running), "agents well", 30)
        until(lambda: all("10.5." in node("ip route show proto 112") for node in nodes), "routes", 30)
        settled(*nodes)
        agent = running[0]
        mtu = agent.component.podnet().mtu
        with watch(two) as tap:
            talks = [talk(one, two, "4", mtu, deadline_s=5), talk(two, one, "4", mtu, deadline_s=5)]
            seen = sorted(protocols(tap))
        found = {"mtu": mtu, "talks": talks, "protocols": seen, "too large": talk(one, two, "4", mtu + 1)}
        found["route"] = one("ip route show proto 112").split()
        found["device"] = "ipip remote any local 192.0.2.1 dev eth0" in one("ip -d link show flannel.ipip")
        found["addresses"] = one("ip -o -4 addr show dev flannel.ipip").split()[3]
        one("ip link del flannel.ipip")
        until(lambda: "10.5.2.0/24" in one("ip route show proto 112", ok=False), "the device is back", 20)
        found["after the device was deleted"] = talk(one, two, "4", mtu, deadline_s=5)
        one("ip link set flannel.ipip mtu 1400")
        until(lambda: "mtu 1480" in one("ip link show flannel.ipip"), "the MTU is back", 20)
        return found


def direct() -> dict[str, Any]:
    """DirectRouting: a neighbour without the tunnel, a node behind a router through it."""
    with world(direct_routing=True) as made:
        run(made.switch, "sysctl -qw net.ipv4.ip_forward=1")
        for address in ("192.0.2.254/24", "198.51.100.254/24"):
            run(made.switch, f"ip addr add {address} dev br0")
        nodes = [made.node(number) for number in (1, 2, 3)]
        nodes[2]("ip addr flush dev eth0")
        nodes[2]("ip addr add 198.51.100.3/24 dev eth0")
        for node, gateway in zip(nodes, ("192.0.2.254", "192.0.2.254", "198.51.100.254"), strict=True):
            node(f"ip route add default via {gateway}")
        running = [node.start() for node in nodes]
        until(lambda: all(agent.well() for agent in running), "agents well", 30)
        until(lambda: len(nodes[0]("ip route show proto 112").splitlines()) == 2, "two routes", 30)
        until(lambda: "10.5.1.0/24" in nodes[2]("ip route show proto 112"), "the way back", 30)
        found: dict[str, Any] = {"routes": nodes[0]("ip route show proto 112").splitlines()}
        for name, there in (("near", nodes[1]), ("far", nodes[2])):
            with watch(there) as tap:
                until(lambda there=there: talk(nodes[0], there, "4", 1400, deadline_s=2), name, 20)
                found[name] = sorted(protocols(tap))
        return found


def link(local: int, **changes: Any) -> IpipLink:
    return msgspec.structs.replace(
        IpipLink(
            name="flannel.ipip",
            parent="eth0",
            local=bytes([192, 0, 2, local]),
            mtu=1480,
            addresses=((bytes([10, 5, 1, 0]), 32),),
        ),
        **changes,
    )


def state(device: IpipLink) -> FabricState:
    key = RouteKey(Family.V4, 254, bytes([10, 5, 2, 0]), 24, 0)
    return FabricState(
        links={device.name: device}, routes={key: Route(bytes([192, 0, 2, 2]), device.name, onlink=True)}
    )


def driver() -> dict[str, Any]:
    """The driver alone: what it applies is what it reads, whatever was there."""
    with world() as made:
        node = made.node(1)
        node("ip addr add 192.0.2.77/24 dev eth0")
        node("ip link add eth1 type veth peer name eth2")
        fd = namespaces.open_netns(namespaces.path(node.name))
        made_driver = namespaces.run_in(fd, FabricDriver)
        found: dict[str, Any] = {}

        def index() -> str:
            return node("ip -o link show flannel.ipip").split(":")[0]

        def go(name: str, desired: FabricState) -> None:
            failures = made_driver.apply(desired, made_driver.read(desired.links.keys()))
            found[name] = [str(failure.error) for failure in failures], made_driver.read() == desired

        go("made", state(link(1)))
        first = index()
        route = "ip route show proto 112"
        for name, desired in (
            ("another source", link(77)),
            ("another device", link(77, parent="eth1")),
            ("another MTU", link(77, parent="eth1", mtu=1300)),
            ("another address", link(1, addresses=((bytes([10, 5, 9, 0]), 32),))),
        ):
            go(name, state(desired))
        found["in place"] = index() == first
        found["route"] = node(route).split()
        node("ip link del flannel.ipip")
        node("ip link add flannel.ipip type ipip remote 192.0.2.9 local 192.0.2.1 dev eth0")
        go("flannel's with a far end", state(link(1)))
        node("ip link del flannel.ipip")
        node("ip link add flannel.ipip type ipip local 192.0.2.1 dev eth0")
        node("ip addr add 10.5.1.0/32 dev flannel.ipip")
        node("ip link set flannel.ipip up")
        taken = index()
        node("ip route add 10.5.2.0/24 via 192.0.2.2 dev flannel.ipip onlink proto 99")
        go("taken over", state(link(1)))
        found["taken over in place"] = index() == taken
        vtep = VxlanLink(
            name="flannel.ipip",
            vni=1,
            port=8472,
            parent="eth0",
            local=bytes([192, 0, 2, 1]),
            mac=b"\2" * 6,
            mtu=1450,
        )
        go("of another kind", FabricState(links={vtep.name: vtep}))
        go("of the first kind", state(link(1)))
        go("gone", FabricState())
        found["left"] = [name for name in ("flannel.ipip",) if name in node("ip -br link")]
        found["fallback device stays"] = "tunl0" in node("ip -br link")
        made_driver.close()
        return found


if __name__ == "__main__":
    answer({"driver": driver, "agents": agents, "direct": direct})
