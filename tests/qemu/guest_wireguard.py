"""The wireguard backend on a kernel that has WireGuard: run as the only program of a guest."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pycni.agent import wireguard_rotate
from pycni.kernel import netns as namespaces
from pycni.kernel import wireguard_go
from tests.netns import fabric_nodes, test_wireguard_rotate
from tests.netns.fabric_nodes import FabricNode, FabricWorld, routes, until
from tests.netns.test_network_component import talk
from tests.netns.test_wireguard import PSK, frames, inhabitants, key_of, sniff
from tests.netns.test_wireguard_rotate import flows, rotate
from tests.proxy.uml_boot import answer
from tests.qemu.boot import uptime

SLOW_S = 90.0
DEVICE = "flannel-wg"


@contextmanager
def world(families: str = "4", **options: Any) -> Iterator[FabricWorld]:
    made = FabricWorld(families, "wireguard", **options)
    try:
        yield made
    finally:
        for agent in (agent for node in made.nodes.values() for agent in node.agents):
            agent.stop()
        for node in made.nodes.values():
            node(f"ip link del {DEVICE}", ok=False)
        made.close()


def wg(node: FabricNode, what: str, device: str = DEVICE) -> list[list[str]]:
    """What the kernel says of a device."""
    return [line.split("\t") for line in node(f"wg show {device} {what}").splitlines()]


def start(made: FabricWorld, *numbers: int, prepare: Any = None, **options: Any) -> Any:
    nodes = [made.node(number) for number in numbers]
    if prepare is not None:
        prepare(nodes)
    agents = [node.start(**options) for node in nodes]
    until(lambda: all(agent.well() for agent in agents), "agents well", SLOW_S)
    for node in nodes:
        until(lambda node=node: len(routes(node)) == (len(nodes) - 1) * len(made.families), "routes", SLOW_S)
    return nodes, agents


def reach(one: FabricNode, two: FabricNode, size: int = 1420) -> bool:
    """Both ways in every family, at full size."""
    for family in one.world.families:
        for here, there in ((one, two), (two, one)):
            until(
                lambda h=here, t=there, f=family: talk(h, t, f, size, deadline_s=5),
                f"{here.number} to {there.number} by IPv{family}",
                SLOW_S,
            )
    return True


def own_processes(node: FabricNode) -> set[int]:
    return set(inhabitants(node.name)) - {os.getpid()}


def carries() -> dict[str, Any]:
    """Two agents, both families, a pre-shared key; what is on the wire, what the kernel has."""
    with world("46", psk=PSK) as made:
        (one, two), (agent, _) = start(made, 1, 2)
        found: dict[str, Any] = {"reach": reach(one, two), "mtu": agent.component.podnet().mtu}
        with sniff(two) as tap:
            found["talk"] = [talk(one, two, family, 999, deadline_s=5) for family in "46"]
            seen = frames(tap)
        found["readable"] = sum(bytes(900) in frame for frame in seen)
        found["large"] = sum(len(frame) > 900 for frame in seen)
        found["kinds"] = ["wireguard" in one(f"ip -d link show {name}") for name in (DEVICE, f"{DEVICE}-v6")]
        found["programs"] = len(own_processes(one)) + len(own_processes(two))
        [[peer, allowed]] = wg(one, "allowed-ips")
        found["peer"] = [peer == key_of(two), allowed]
        [[_, psk]] = wg(one, "preshared-keys")
        found["psk"] = psk == base64.b64encode(PSK.value).decode()
        return found


def lasts() -> dict[str, Any]:
    """A restart of the agent, a device deleted, a peer removed by hand."""
    with world() as made:
        (one, two), (agent, _) = start(made, 1, 2, resync_s=5.0)
        reach(one, two)
        index, before = one(f"ip -o link show {DEVICE}").split(":")[0], wg(one, "latest-handshakes")
        agent.stop()
        found: dict[str, Any] = {"while away": talk(one, two, "4", deadline_s=5)}
        again = one.start(resync_s=5.0)
        until(again.well, "agent well", SLOW_S)
        found["same device"] = one(f"ip -o link show {DEVICE}").split(":")[0] == index
        found["same session"] = wg(one, "latest-handshakes") == before
        one(f"wg set {DEVICE} peer {key_of(two)} remove")
        until(lambda: wg(one, "peers") == [[key_of(two)]], "the peer is back", SLOW_S)
        found["peer back"] = reach(one, two)
        one(f"ip link del {DEVICE}")
        found["device back"] = reach(one, two)
        return found


def rotates() -> dict[str, Any]:
    """A key changed with packets under way; everything takes longer here."""
    wireguard_rotate.DELAY_S, test_wireguard_rotate.GAP_S = 3.0, 0.1
    with world() as made:
        (one, two), agents = start(made, 1, 2)
        reach(one, two)
        old = key_of(one)
        with flows((one, two), (two, one)) as both:
            new = rotate(agents[0], one)
            until(lambda: wg(two, "peers") == [[new]], "the peer follows", SLOW_S)
        return {
            "lost": [flow.lost for flow in both],
            "sent": [flow.sent > 20 for flow in both],
            "changed": new != old,
            "device": wg(one, "public-key") == [[new]],
            "longest wait, ms": [round(max(flow.came.values()) * 1000) for flow in both],
        }


def beside_wireguard_go() -> dict[str, Any]:
    """One node with the kernel's WireGuard, one with wireguard-go: one network."""

    def prepare(nodes: list[FabricNode]) -> None:
        fd = namespaces.open_netns(namespaces.path(nodes[1].name))
        try:
            folder = str(nodes[1].folder / "state/wireguard")
            namespaces.run_in(fd, lambda: wireguard_go.start(folder, DEVICE))
        finally:
            os.close(fd)

    with world() as made:
        (one, two), _ = start(made, 1, 2, prepare=prepare)
        kinds = [next(kind for kind in ("wireguard", "tun") if f" {kind} " in node(f"ip -d link show {DEVICE}"))
                 for node in (one, two)]  # fmt: skip
        return {"kinds": kinds, "reach": reach(one, two), "program": bool(own_processes(two))}


def main() -> None:
    fabric_nodes.PATIENCE_S = SLOW_S
    subprocess.run(["sysctl", "-qw", "kernel.printk=1"], check=False)
    print(f"part boot: {uptime()}", flush=True)
    parts = {
        "carries": carries,
        "lasts": lasts,
        "rotates": rotates,
        "beside wireguard-go": beside_wireguard_go,
    }
    answer(parts)


if __name__ == "__main__":
    main()
