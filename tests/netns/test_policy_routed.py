"""Policies and pods on links of their own: judged as on a bridge, by the table alone and with the programs above it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pycni.attach.plan import RoutedLeg
from pycni.policy.spoof_rules import SOURCE
from tests.netns import frames as f
from tests.netns.evade_world import NAMES, OUT, UPLINK, Judged, address, judged
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Pod, connect, exchange, links, pings, serving

WORLDS = {
    "table": (False, NAMES),
    "programs, pods of both kinds": (True, ("a", "b", "e")),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[Judged]:
    programs, routed = WORLDS[request.param]
    with fresh_spaces() as make, judged(make, programs=programs, routed=routed) as there:
        yield there


ALLOWED = [("c", "b", 80), ("b", "a", 80), ("e", "c", 80), ("a", "p", 80), ("out", "p", 80), ("b", "out", 80)]
DENIED = [("a", "b", 80), ("e", "a", 80), ("a", "p", 81), ("out", "b", 80), ("e", "out", 80), ("p", "b", 80)]


def end(world: Judged, name: str, family: int) -> tuple[Pod, str]:
    pod: Pod = getattr(world, name)
    return pod, OUT[family] if name == "out" else address(pod, family)


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
@pytest.mark.parametrize(("source", "target", "port"), ALLOWED, ids=map(str, ALLOWED))
def test_what_is_allowed_passes(world: Judged, source: str, target: str, port: int, family: int):
    client, own = end(world, source, family)
    pod, there = end(world, target, family)
    with serving(pod, port, family=family) as server:
        for _ in range(2):  # the second one finds what the first one left
            assert connect(client, there, port, server, wait=5) == own
    if port == 80 and target != "p":
        with serving(pod, 53, family=family, udp=True) as server:
            assert exchange(client, there, 53, server, wait=5) == own


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
@pytest.mark.parametrize(("source", "target", "port"), DENIED, ids=map(str, DENIED))
def test_what_is_denied_does_not(world: Judged, source: str, target: str, port: int, family: int):
    client, _ = end(world, source, family)
    pod, there = end(world, target, family)
    with serving(pod, port, family=family) as server:
        assert connect(client, there, port, server, wait=0.1) == ""


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
def test_node_and_pod_always_reach_each_other(world: Judged, family: int):
    for name in ("b", "e", "p"):
        assert pings(None, address(getattr(world, name), family), wait=5), name
        assert pings(getattr(world, name), UPLINK[family], wait=5), name


def test_denials_are_counted_for_the_policy(world: Judged):
    def denied() -> int:
        planes = [world.engine.plane.driver, *([world.fast] if world.fast is not None else [])]
        return sum(item.packets for plane in planes for item in plane.denied() if "ns/b" in item.policy)

    before = denied()
    assert not pings(world.a, world.b.v4(), wait=0.2)
    assert denied() > before


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
def test_nobody_passes_as_one_that_is_allowed(world: Judged, family: int):
    """c may send to b, so a tries under c's address."""

    def refused() -> int:
        planes = [world.guard, *([world.fast] if world.fast is not None else [])]
        return sum(item.packets for plane in planes for item in plane.denied() if item.policy == SOURCE)

    sent, before = b"passing as c", refused()
    for name in ("c", "a"):
        sender, receiver = address(world.c, family), address(world.b, family)
        mac = getattr(world, name).plan.mac
        packet = f.ip(sender, receiver, f.UDP, f.udp(53, sent + name.encode()))
        world.send(name, f.ether(to(world, name), mac, packet))
    assert world.received("b", sent + b"c", 5)
    assert not world.received("b", sent + b"a", 0.05)
    assert refused() == before + 1


def to(world: Judged, name: str) -> bytes:
    """The MAC a pod sends by."""
    pod: Pod = getattr(world, name)
    if isinstance(pod.plan.link, RoutedLeg):
        return pod.plan.names.host_mac
    return f.mac(links()["cni0"]["address"])
