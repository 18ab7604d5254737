"""Pods on links of their own held to their own addresses, by packets; and the table that is there only for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pycni.model.attachment import AttachmentKind
from pycni.model.family import show
from pycni.policy.base import LocalPod
from pycni.policy.spoof import Guard
from pycni.policy.spoof_legs import TABLE, on_legs
from pycni.policy.spoof_rules import REFUSALS, SOURCE, instructions, link_local
from tests.netns import frames as f
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Env, Pod, connect, exchange, node, pings, run, serving
from tests.netns.spoof_rig import CheckedPods, guards_in

_NUMBERS = itertools.count()
OUTSIDER = {4: "10.1.9.9", 6: "fd00:1:9::9"}


def local(pod: Pod) -> LocalPod:
    assert pod.plan is not None
    addresses = tuple(item.address for item in pod.plan.addresses)
    return LocalPod(pod.name, pod.plan.host, pod.plan.mac, addresses, routed=True)


def attach(env: Env) -> Pod:
    return env.attach((4, 6), attachment=AttachmentKind.PTP)


class World(CheckedPods):
    """A node with routed pods a, b and c, all checked, a neighbour outside, and catchers at b and outside."""

    def __init__(self, env: Env) -> None:
        self.out = env.outside((4, 6))
        pods = [attach(env) for _ in range(3)]
        # The kernel's own filter of sources is not what is tested, and there is none for IPv6.
        for device in ("all", pods[0].plan.host):
            run(f"sysctl -qw net.ipv4.conf.{device}.rp_filter=0")
        super().__init__(env, pods, local)
        self.gateway = self.a.plan.names.host_mac
        self.catch("out", self.out.inside)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fresh_spaces() as make, node(make) as env:
        there = World(env)
        try:
            yield there
        finally:
            there.close()


class Case(NamedTuple):
    """A frame of pod a, ``where`` it arrives, and why it does not."""

    make: Callable[[World, bytes], bytes]
    where: str
    reason: str = ""
    unchecked: str = ""
    """Where it arrives without the guard, when it is refused."""


def packet(source: Callable[[World], str], destination: Callable[[World], str], mac: bytes = b""):
    return lambda w, token: f.ether(
        w.gateway, mac or w.a.plan.mac, f.ip(source(w), destination(w), f.UDP, f.udp(53, token))
    )


def error(kind: int, embedded: Callable[[World], tuple[str, str]], destination: Callable[[World], str]):
    """An ICMP error about a packet between these ends."""

    def make(w: World, token: bytes) -> bytes:
        about = f.ip(*embedded(w), f.UDP, f.udp(53, token))
        v6 = about[0] >> 4 == 6
        body = f.icmp(kind, 0, bytes(4) + about)
        source = w.a.v6() if v6 else w.a.v4()
        return f.ether(
            w.gateway, w.a.plan.mac, f.ip(source, destination(w), f.ICMPV6 if v6 else f.ICMP, body)
        )

    return make


def to_node(body: Callable[[World], bytes], source: Callable[[World], str], destination: str = "fe80::1"):
    """Neighbour discovery to the gateway."""
    return lambda w, _token: f.ether(
        w.gateway, w.a.plan.mac, f.ip(source(w), destination, f.ICMPV6, body(w), hops=255)
    )


def link(pod: Pod) -> str:
    return show(link_local(pod.plan.mac))


def b4(w: World) -> str:
    return w.b.v4()


def b6(w: World) -> str:
    return w.b.v6()


FOREIGN_MAC = b"\x02\x99\x99\x99\x99\x99"
PACKETS = {
    "its own": Case(packet(lambda w: w.a.v4(), b4), "b"),
    "its own v6": Case(packet(lambda w: w.a.v6(), b6), "b"),
    "its own to the outside": Case(packet(lambda w: w.a.v4(), lambda _: "192.0.2.2"), "out"),
    "its own v6 to the outside": Case(packet(lambda w: w.a.v6(), lambda _: "2001:db8::2"), "out"),
    "an error about what it got": Case(error(3, lambda w: (w.b.v4(), w.a.v4()), b4), "b"),
    "a v6 error about what it got": Case(error(1, lambda w: (w.b.v6(), w.a.v6()), b6), "b"),
    "another pod's address": Case(packet(lambda w: w.c.v4(), b4), "", SOURCE, "b"),
    "another pod's v6 address": Case(packet(lambda w: w.c.v6(), b6), "", SOURCE, "b"),
    "nobody's address": Case(packet(lambda _: OUTSIDER[4], b4), "", SOURCE, "b"),
    "nobody's v6 address": Case(packet(lambda _: OUTSIDER[6], b6), "", SOURCE, "b"),
    "the outside's address": Case(packet(lambda _: "192.0.2.2", b4), "", SOURCE, "b"),
    "another's address to the outside": Case(
        packet(lambda w: w.c.v4(), lambda _: "192.0.2.2"), "", SOURCE, "out"
    ),
    "the gateway's address": Case(packet(lambda _: "169.254.1.1", b4), "", SOURCE),
    "the node's address": Case(packet(lambda _: "192.0.2.1", b4), "", SOURCE),
    "loopback": Case(packet(lambda _: "127.0.0.1", b4), "", SOURCE),
    "its own by another MAC": Case(packet(lambda w: w.a.v4(), b4, FOREIGN_MAC), "", REFUSALS["mac"], "b"),
    "its own v6 by another MAC": Case(packet(lambda w: w.a.v6(), b6, FOREIGN_MAC), "", REFUSALS["mac"], "b"),
    "a forged error": Case(error(3, lambda w: (w.b.v4(), w.c.v4()), b4), "", REFUSALS["error"], "b"),
    "a forged v6 error": Case(error(1, lambda w: (w.b.v6(), w.c.v6()), b6), "", REFUSALS["error"], "b"),
    "a neighbour that is not": Case(
        to_node(lambda w: f.advertisement(w.b.v6(), w.a.plan.mac), lambda w: link(w.a)),
        "",
        REFUSALS["neighbour"],
    ),
    "a router": Case(
        to_node(lambda _: f.icmp(134, 0, bytes(12)), lambda w: link(w.a), "ff02::1"), "", REFUSALS["router"]
    ),
    "a redirect": Case(
        to_node(lambda _: f.icmp(137, 0, bytes(36)), lambda w: link(w.a)), "", REFUSALS["router"]
    ),
}


@pytest.mark.parametrize("name", PACKETS)
def test_what_pods_send_arrives_when_it_is_theirs(world: World, name: str):
    case = PACKETS[name]
    token = f"token {next(_NUMBERS):08d}".encode()
    frame = case.make(world, token)
    before = world.counts()
    world.send(frame)
    told = {name for name, count in world.counts().items() if count != before[name]}
    assert told == ({case.reason} if case.reason else set())
    if case.where:
        assert world.catchers[case.where].wait(token, seconds=5)
    elif token in frame:
        assert not any(catcher.wait(token, seconds=0.02) for catcher in world.catchers.values())


def test_without_the_guard_the_forged_packets_arrive(world: World):
    """What the other test sees refused has been refused by the guard."""
    world.guard.remove()
    try:
        for name, case in PACKETS.items():
            if case.unchecked:
                token = f"token {next(_NUMBERS):08d}".encode()
                world.send(case.make(world, token))
                assert world.catchers[case.unchecked].wait(token, seconds=5), name
    finally:
        world.guard.apply([local(pod) for pod in (world.a, world.b, world.c)])


def test_checked_pods_work(world: World):
    """Connections, echo, large packets, towards pods, node and outside, both families, also with empty caches."""
    for pod in (world.a, world.b):
        pod.run("ip neigh flush all")
        pod.run("ip -6 neigh flush all")
        run(f"ip neigh flush dev {pod.plan.host}")
        run(f"ip -6 neigh flush dev {pod.plan.host}")
    before = world.counts()
    for family in (4, 6):
        own = {4: Pod.v4, 6: Pod.v6}[family]
        with serving(world.b, 80, family=family) as server:
            assert connect(world.a, own(world.b), 80, server, wait=5) == own(world.a)
        for gateway in {4: ["192.0.2.1", "169.254.1.1"], 6: ["2001:db8::1"]}[family]:
            with serving(None, 80, family=family) as server:
                assert connect(world.a, gateway, 80, server, wait=5) == own(world.a)
        with serving(world.b, 53, family=family, udp=True) as server:
            assert exchange(world.a, own(world.b), 53, server, wait=5) == own(world.a)
        with serving(world.a, 80, family=family) as server:
            assert connect(None, own(world.a), 80, server, wait=5)
            assert connect(world.out, own(world.a), 80, server, wait=5)
        assert pings(world.a, own(world.b), size=1300, wait=5)
    assert world.counts() == before


def test_a_pod_with_duplicate_address_detection_comes_up(world: World):
    env = world.env
    pod = env.pod()
    pod.plan = env.plan(pod, (4, 6), enable_dad=True, attachment=AttachmentKind.PTP)
    before = world.counts()
    world.guard.admit(local(pod))
    env.driver.attach(pod.plan, pod.fd)
    assert pings(pod, "2001:db8::1", wait=5)
    assert world.counts() == before
    env.detach(pod)
    world.guard.gone(pod.plan.host)


# The table.


def pods(count: int, *, routed: bool = True) -> list[LocalPod]:
    return [
        LocalPod(
            f"a/p{number}",
            f"veth{'r' if routed else 'b'}{number:06x}",
            b"\x02\0\0\0" + number.to_bytes(2, "big"),
            (b"\x0a\x01" + number.to_bytes(2, "big"),),
            routed,
        )
        for number in range(1, count + 1)
    ]


@pytest.fixture
def guards(netns: str) -> Iterator[Callable[[], Guard]]:
    """Makes guards in one fresh namespace."""
    with guards_in(netns) as make:
        yield make


def test_the_table_is_there_while_routed_pods_are(guards, netns):
    guard, (leg, *_), bridged = guards(), pods(1), pods(2, routed=False)
    guard.apply(bridged)
    guard.gone("veth-nobody")
    assert (tables(netns), guard.routed) == (["bridge pycni_guard"], False)
    guard.admit(leg)
    assert (tables(netns), guard.routed) == (["bridge pycni_guard", f"inet {TABLE}"], True)
    assert guard.devices() == {leg.ifname, *(pod.ifname for pod in bridged)}
    guard.gone(leg.ifname)
    assert guard.devices() == {pod.ifname for pod in bridged}
    guard.apply(bridged)
    assert (tables(netns), guard.routed) == (["bridge pycni_guard"], False)


def test_a_new_guard_adopts_what_is_there(guards):
    some = [*pods(20), *pods(5, routed=False)]
    guards().apply(some)
    other = guards()
    assert other.apply(some) == 0
    assert other.routed
    third = guards()
    assert third.admit(some[0]) == 0
    third.gone(some[1].ifname)
    assert third.devices() == {pod.ifname for pod in some} - {some[1].ifname}


@pytest.mark.parametrize(
    "damage",
    [f"delete table inet {TABLE}", f"flush set inet {TABLE} macs", f"flush chain inet {TABLE} other"],
)
def test_damage_is_repaired(guards, netns, damage):
    guard, some = guards(), pods(3)
    guard.apply(some)
    before = run(f"nft list table inet {TABLE}", netns)
    run(f"nft {damage}", netns)
    assert guard.apply(some) > 0
    assert run(f"nft list table inet {TABLE}", netns) == before


def test_removing_leaves_nothing(guards, netns):
    guard = guards()
    guard.apply([*pods(1), *pods(1, routed=False)])
    assert guard.remove() == ["table bridge pycni_guard", f"table inet {TABLE}"]
    assert run("nft list ruleset", netns) == ""


def test_every_chain_that_is_led_to_is_there():
    layout = on_legs()
    for chain, rules in layout.chains.items():
        for rule in rules:
            assert instructions(rule), (chain, rule)
            target = rule.rpartition("goto ")[2]
            assert "goto " not in rule or target in layout.chains, (chain, rule)
    assert not {name for name in layout.chains if name.startswith(("arp", "between", "forward"))}


def tables(netns: str) -> list[str]:
    return sorted(line.removeprefix("table ") for line in run("nft list tables", netns).splitlines())
