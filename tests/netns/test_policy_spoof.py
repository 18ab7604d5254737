"""Pods held to their own addresses, by packets: what is forged gets nowhere, what pods need passes."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple, Self

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.model.family import show
from pycni.policy import spoof
from pycni.policy.base import Drop, LocalPod
from pycni.policy.drops_nft import NftDrops
from pycni.policy.spoof import Guard
from pycni.policy.spoof_rules import REFUSALS, SOURCE, TABLE, link_local
from tests.netns import frames as f
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Env, Pod, connect, exchange, links, node, pings, run, serving
from tests.netns.spoof_rig import CheckedPods, guards_in

_NUMBERS = itertools.count()
OUTSIDER = {4: "10.1.9.9", 6: "fd00:1:9::9"}
MDNS = {4: "224.0.0.251", 6: "ff02::fb"}


@pytest.fixture(scope="module")
def spaces() -> Iterator[Callable[[], str]]:
    with fresh_spaces() as make:
        yield make


class World(CheckedPods):
    """A node with the pods a, b and c, all checked, and catchers at b, c and the node's bridge."""

    def __init__(self, env: Env) -> None:
        super().__init__(env, [env.attach((4, 6), is_default_gateway=True) for _ in range(3)], local)
        self.gateway = f.mac(links()["cni0"]["address"])
        self.catch("c", self.c.inside)
        self.catch("node", lambda fn: fn(), "cni0")


@pytest.fixture(scope="module")
def world(spaces) -> Iterator[World]:
    with node(spaces) as env:
        made = World(env)
        try:
            yield made
        finally:
            made.close()


def local(pod: Pod) -> LocalPod:
    assert pod.plan is not None
    addresses = tuple(item.address for item in pod.plan.addresses)
    return LocalPod(pod.name, pod.plan.host, pod.plan.mac, addresses)


def link(pod: Pod) -> str:
    return show(link_local(pod.plan.mac))


class Case(NamedTuple):
    """A frame of pod a, ``where`` it arrives and the reason why it does not arrive elsewhere."""

    make: Callable[[World, bytes], bytes]
    where: str
    reason: str = ""


def to_b(payload: Callable[[World, bytes], bytes], source: Callable[[World], bytes] | None = None, **more):
    """From a's MAC to b's."""
    return lambda w, token: f.ether(
        w.b.plan.mac, source(w) if source else w.a.plan.mac, payload(w, token), **more
    )


def to_node(payload: Callable[[World, bytes], bytes], **more):
    return lambda w, token: f.ether(w.gateway, w.a.plan.mac, payload(w, token), **more)


def to_all(payload: Callable[[World, bytes], bytes], destination: bytes = f.BROADCAST, **more):
    return lambda w, token: f.ether(destination, w.a.plan.mac, payload(w, token), **more)


def plain(source: Callable[[World], str], destination: Callable[[World], str]):
    return lambda w, token: f.ip(source(w), destination(w), f.UDP, f.udp(53, token))


def error(
    kind: int, embedded: Callable[[World], tuple[str, str]], source: Callable[[World], str] | None = None
):
    """An ICMP error to b about a packet between these ends."""

    def make(w: World, token: bytes) -> bytes:
        about = f.ip(*embedded(w), f.UDP, f.udp(53, token))
        protocol = f.ICMPV6 if about[0] >> 4 == 6 else f.ICMP
        own, other = (Pod.v6, Pod.v6) if protocol == f.ICMPV6 else (Pod.v4, Pod.v4)
        return f.ip(
            source(w) if source else own(w.a), other(w.b), protocol, f.icmp(kind, 0, bytes(4) + about)
        )

    return make


def neighbour(
    body: Callable[[World], bytes], source: Callable[[World], str], destination: str = "", *, hops: int = 255
):
    """ICMPv6 without room for a token: its bytes are the token."""
    return lambda w, _: f.ip(source(w), destination or w.b.v6(), f.ICMPV6, body(w), hops=hops)


V4, V6 = (lambda w: w.a.v4()), (lambda w: w.a.v6())
LINK = lambda w: link(w.a)  # noqa: E731
B4, B6, C4, C6 = (lambda w: w.b.v4()), (lambda w: w.b.v6()), (lambda w: w.c.v4()), (lambda w: w.c.v6())
NODE4, NODE6 = (lambda _: "10.1.2.1"), (lambda _: "fd00:1:2::1")
REPORT = f.icmp(0x16, 0, f.packed("224.0.0.251"))
"""An IGMPv2 report. Where it goes is for the bridge's snooping to say."""
HBH_ALERT = (0, b"\0\x05\x02\0\0\x01\0")
ARP_SENDER, NEIGHBOUR, ERROR, ROUTER = (REFUSALS[key] for key in ("arp", "neighbour", "error", "router"))
FRAME, BETWEEN, MAC = (REFUSALS[key] for key in ("frame", "between", "mac"))

PACKETS = {
    # What pods send.
    "own v4": Case(to_b(plain(V4, B4)), "b"),
    "own v6": Case(to_b(plain(V6, B6)), "b"),
    "own v4 to the node": Case(to_node(plain(V4, NODE4)), "node"),
    "own v6 to the node": Case(to_node(plain(V6, NODE6)), "node"),
    "own v4 to the world": Case(to_node(plain(V4, lambda _: "8.8.8.8")), "node"),
    "own link-local to the node": Case(to_node(plain(LINK, NODE6)), "node"),
    "an error about a packet to it, v4": Case(to_b(error(3, lambda w: (w.b.v4(), w.a.v4()))), "b"),
    "an error about a packet to it, v6": Case(to_b(error(1, lambda w: (w.b.v6(), w.a.v6()))), "b"),
    "a fragment": Case(to_b(lambda w, t: f.ip(w.a.v4(), w.b.v4(), f.UDP, t.ljust(16), offset=64)), "b"),
    "a v6 fragment": Case(to_b(lambda w, t: f.ip(w.a.v6(), w.b.v6(), f.UDP, t.ljust(16), offset=64)), "b"),
    # Another's address.
    "another pod's v4": Case(to_b(plain(C4, B4)), "", SOURCE),
    "another pod's v6": Case(to_b(plain(C6, B6)), "", SOURCE),
    "the receiver's v4": Case(to_b(plain(B4, B4)), "", SOURCE),
    "the node's v4": Case(to_b(plain(NODE4, B4)), "", SOURCE),
    "the node's v6": Case(to_b(plain(NODE6, B6)), "", SOURCE),
    "loopback v4": Case(to_b(plain(lambda _: "127.0.0.1", B4)), "", SOURCE),
    "loopback v6": Case(to_b(plain(lambda _: "::1", B6)), "", SOURCE),
    "somebody's v4, to the node": Case(to_node(plain(lambda _: OUTSIDER[4], NODE4)), "", SOURCE),
    "somebody's v6, to the node": Case(to_node(plain(lambda _: OUTSIDER[6], NODE6)), "", SOURCE),
    "another pod's v4 in a fragment": Case(
        to_b(lambda w, t: f.ip(w.c.v4(), w.b.v4(), f.UDP, t.ljust(16), offset=64)), "", SOURCE
    ),
    "a mapped v4": Case(to_b(plain(lambda w: f"::ffff:{w.c.v4()}", B6)), "", SOURCE),
    "another's link-local": Case(to_b(plain(lambda w: link(w.c), B6)), "", SOURCE),
    "another's MAC with the own v4": Case(to_b(plain(V4, B4), lambda w: w.c.plan.mac), "", MAC),
    "another's MAC and v4": Case(to_b(plain(C4, B4), lambda w: w.c.plan.mac), "", MAC),
    "another's MAC and v6": Case(to_b(plain(C6, B6), lambda w: w.c.plan.mac), "", MAC),
    "the own v4 written into v6": Case(to_b(plain(lambda w: f"::{w.a.v4()}", B6)), "", SOURCE),
    "no address v4": Case(to_b(plain(lambda _: "0.0.0.0", B4)), "", SOURCE),
    "no address v6": Case(to_b(plain(lambda _: "::", B6)), "", SOURCE),
    # Errors about what was never sent to it: connection tracking would take them for part of a connection.
    "a forged error v4": Case(to_b(error(3, lambda w: (w.b.v4(), w.c.v4()))), "", ERROR),
    "a forged time exceeded v4": Case(to_b(error(11, lambda w: (w.b.v4(), w.c.v4()))), "", ERROR),
    "a redirect v4": Case(to_b(error(5, lambda w: (w.b.v4(), w.c.v4()))), "", ERROR),
    "a forged error v6": Case(to_b(error(1, lambda w: (w.b.v6(), w.c.v6()))), "", ERROR),
    "a forged packet too big v6": Case(to_b(error(2, lambda w: (w.b.v6(), OUTSIDER[6]))), "", ERROR),
    # ARP.
    "own ARP": Case(to_all(lambda w, _: f.arp(1, (w.a.plan.mac, w.a.v4()), (bytes(6), w.b.v4())), kind=f.ARP), "b"),
    "an ARP probe": Case(to_all(lambda w, _: f.arp(1, (w.a.plan.mac, "0.0.0.0"), (bytes(6), w.a.v4())), kind=f.ARP), "b"),
    "an own ARP answer": Case(to_b(lambda w, _: f.arp(2, (w.a.plan.mac, w.a.v4()), (w.b.plan.mac, w.b.v4())), kind=f.ARP), "b"),
    "ARP for another pod": Case(
        to_all(lambda w, _: f.arp(2, (w.a.plan.mac, w.c.v4()), (f.BROADCAST, w.c.v4())), kind=f.ARP), "", ARP_SENDER
    ),
    "ARP for the gateway": Case(
        to_b(lambda w, _: f.arp(2, (w.a.plan.mac, "10.1.2.1"), (w.b.plan.mac, w.b.v4())), kind=f.ARP), "", ARP_SENDER
    ),
    "ARP that gives the own address another's MAC": Case(
        to_all(lambda w, _: f.arp(1, (w.c.plan.mac, w.a.v4()), (bytes(6), w.b.v4())), kind=f.ARP), "", ARP_SENDER
    ),
    "an ARP answer from nobody": Case(
        to_b(lambda w, _: f.arp(2, (w.a.plan.mac, "0.0.0.0"), (w.b.plan.mac, w.b.v4())), kind=f.ARP), "", ARP_SENDER
    ),
    "ARP of other sizes": Case(
        to_b(lambda w, _: f.arp(1, (w.a.plan.mac, w.a.v4()), (bytes(6), w.b.v4())).replace(b"\x06\x04", b"\x06\x05"), kind=f.ARP),
        "", ARP_SENDER,
    ),
    # Neighbour discovery.
    "own advertisement": Case(to_b(neighbour(lambda w: f.advertisement(w.a.v6(), w.a.plan.mac), V6)), "b"),
    "own link-local's advertisement": Case(
        to_b(neighbour(lambda w: f.advertisement(link(w.a), w.a.plan.mac), LINK)), "b"
    ),
    "a solicitation": Case(to_b(neighbour(lambda w: f.solicitation(w.b.v6(), w.a.plan.mac), V6)), "b"),
    "a solicitation from the link-local": Case(
        to_b(neighbour(lambda w: f.solicitation(w.b.v6(), w.a.plan.mac), LINK)), "b"
    ),
    "detection of the own address": Case(
        to_all(neighbour(lambda w: f.solicitation(w.a.v6()), lambda _: "::", "ff02::1:ff00:2"), f.group_mac("ff02::1:ff00:2")), "b"
    ),
    "detection of the own link-local": Case(
        to_all(neighbour(lambda w: f.solicitation(link(w.a)), lambda _: "::", "ff02::1"), f.group_mac("ff02::1")), "b"
    ),
    "detection with a nonce": Case(
        to_all(neighbour(lambda w: f.solicitation(w.a.v6()) + b"\x0e\x01nonce!", lambda _: "::", "ff02::1"), f.group_mac("ff02::1")), "b"
    ),
    "detection of another's address": Case(
        to_all(neighbour(lambda w: f.solicitation(w.c.v6()), lambda _: "::", "ff02::1"), f.group_mac("ff02::1")), "", NEIGHBOUR
    ),
    "an advertisement of another's address": Case(
        to_b(neighbour(lambda w: f.advertisement(w.c.v6(), w.a.plan.mac), V6)), "", NEIGHBOUR
    ),
    "an advertisement of the gateway": Case(
        to_b(neighbour(lambda w: f.advertisement("fd00:1:2::1", w.a.plan.mac), V6)), "", NEIGHBOUR
    ),
    "an advertisement of another's MAC": Case(
        to_b(neighbour(lambda w: f.advertisement(w.a.v6(), w.c.plan.mac), V6)), "", NEIGHBOUR
    ),
    "a solicitation with another's MAC": Case(
        to_b(neighbour(lambda w: f.solicitation(w.b.v6(), w.c.plan.mac), V6)), "", NEIGHBOUR
    ),
    "an advertisement with two MACs": Case(
        to_b(neighbour(lambda w: f.advertisement(w.a.v6(), w.a.plan.mac) + b"\x02\x01" + w.c.plan.mac, V6)), "", NEIGHBOUR
    ),
    "an advertisement behind a header": Case(
        to_b(lambda w, _: f.extended(w.a.v6(), w.b.v6(), [(60, bytes(7))], f.ICMPV6, f.advertisement(w.c.v6(), w.a.plan.mac))),
        "", NEIGHBOUR,
    ),
    "detection behind a header": Case(
        to_b(lambda w, _: f.extended("::", w.b.v6(), [(60, bytes(7))], f.ICMPV6, f.solicitation(w.c.v6()))), "", NEIGHBOUR
    ),
    "a router advertisement": Case(
        to_b(neighbour(lambda _: f.icmp(134, 0, b"\x40\0\x07\x08" + bytes(8)), LINK, "ff02::1")), "", ROUTER
    ),
    "a router advertisement from the own address": Case(
        to_b(neighbour(lambda _: f.icmp(134, 0, b"\x40\0\x07\x08" + bytes(8)), V6, "ff02::1")), "", ROUTER
    ),
    "a redirect v6": Case(
        to_b(neighbour(lambda w: f.icmp(137, 0, bytes(4) + f.packed(link(w.a)) + f.packed(w.c.v6())), LINK)), "", ROUTER
    ),
    "a router solicitation": Case(to_all(neighbour(lambda _: f.icmp(133, 0, bytes(4)), LINK, "ff02::2"), f.group_mac("ff02::2")), "node"),
    # What has no address yet.
    "a DHCP request": Case(
        to_all(lambda _, t: f.ip("0.0.0.0", "255.255.255.255", f.UDP, f.udp(67, t, 68))), "node", BETWEEN
    ),
    "something like a DHCP request": Case(
        to_all(lambda _, t: f.ip("0.0.0.0", "255.255.255.255", f.UDP, f.udp(68, t, 67))), "", SOURCE
    ),
    "a DHCP request to somebody": Case(
        to_b(lambda w, t: f.ip("0.0.0.0", w.b.v4(), f.UDP, f.udp(67, t, 68))), "", SOURCE
    ),
    "IGMP": Case(to_all(lambda w, _: f.ip(w.a.v4(), "224.0.0.251", f.IGMP, REPORT), f.group_mac("224.0.0.251")), ""),
    "IGMP without an address": Case(
        to_all(lambda *_: f.ip("0.0.0.0", "224.0.0.251", f.IGMP, REPORT), f.group_mac("224.0.0.251")), ""
    ),
    "MLD without an address": Case(
        to_all(lambda w, t: f.extended("::", "ff02::16", [HBH_ALERT], f.ICMPV6, f.icmp(143, 0, bytes(4) + t)), f.group_mac("ff02::16")), "node"
    ),
    "MLD": Case(
        to_all(lambda w, t: f.extended(link(w.a), "ff02::16", [HBH_ALERT], f.ICMPV6, f.icmp(143, 0, bytes(4) + t)), f.group_mac("ff02::16")), "node"
    ),
    # What policies cannot see.
    "a tagged packet": Case(to_b(plain(V4, B4), tags=[5]), "", FRAME),
    "a packet tagged with VLAN 0": Case(to_b(plain(V4, B4), tags=[0]), "", FRAME),
    "a v6 packet tagged with VLAN 0": Case(to_b(plain(V6, B6), tags=[0]), "", FRAME),
    "a packet tagged twice": Case(to_b(plain(V4, B4), tags=[0, 0]), "", FRAME),
    "a tagged packet to the node": Case(to_node(plain(V4, NODE4), tags=[0]), "", FRAME),
    "a forged packet with a tag": Case(to_b(plain(C4, B4), tags=[0]), "", FRAME),
    "some other protocol": Case(to_b(lambda w, t: t.ljust(46, b"\0"), kind=0x88B5), "", FRAME),
    "a v4 packet announced as v6": Case(to_b(plain(V4, B4), kind=f.IP6), "", SOURCE),
    "a v6 packet announced as v4": Case(to_b(plain(V6, B6), kind=f.IP), "", SOURCE),
    "a broadcast": Case(to_all(plain(V4, lambda _: "255.255.255.255")), "node", BETWEEN),
    "a broadcast of the subnet": Case(to_all(plain(V4, lambda _: "10.1.2.255")), "node", BETWEEN),
    "a broadcast sent to one MAC": Case(to_b(plain(V4, lambda _: "10.1.2.255")), "", BETWEEN),
    "a multicast": Case(to_all(plain(V4, lambda _: MDNS[4]), f.group_mac(MDNS[4])), "node", BETWEEN),
    "a multicast sent to one MAC": Case(to_b(plain(V4, lambda _: MDNS[4])), "", BETWEEN),
    "a v6 multicast": Case(to_all(plain(V6, lambda _: "ff02::1"), f.group_mac("ff02::1")), "node", BETWEEN),
    "a v6 multicast sent to one MAC": Case(to_b(plain(V6, lambda _: "ff02::1")), "", BETWEEN),
    "a packet to the link-local of a pod": Case(to_b(plain(V6, lambda w: link(w.b))), "", BETWEEN),
    "a packet from link-local to link-local": Case(to_b(plain(LINK, lambda w: link(w.b))), "", BETWEEN),
    "a packet from link-local to a pod": Case(to_b(plain(LINK, B6)), "", BETWEEN),
    "a packet to no pod's address, to a pod's MAC": Case(to_b(plain(V4, lambda _: "10.1.2.77")), "", BETWEEN),
    "a packet to another pod's address, to a pod's MAC": Case(to_b(plain(V4, C4)), "", BETWEEN),
    "a packet to a pod's loopback": Case(to_b(plain(V6, lambda _: "::1")), "", BETWEEN),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKETS)
def test_what_pods_send_arrives_when_it_is_theirs(world: World, name: str):
    case = PACKETS[name]
    token = f"token {next(_NUMBERS):08d}".encode()
    frame = case.make(world, token)
    # Neighbour discovery and ARP have no room for one: the whole payload is looked for.
    token = token if token in frame else frame[14:]
    before = world.counts()
    world.send(frame)
    told = {name for name, count in world.counts().items() if count != before[name]}
    assert told == ({case.reason} if case.reason else set())
    if case.where:
        assert world.catchers[case.where].wait(token, seconds=5)
    for place in {"b", "c", "node"} - {case.where} if case.reason else ():
        assert not world.catchers[place].wait(token, seconds=0.02), place


def test_without_the_guard_the_forged_packets_arrive(world: World):
    """What the other test sees refused has been refused by the guard."""
    world.guard.remove()
    try:
        for name, case in PACKETS.items():
            # What a bridge itself does not hand on, and what is no news at b.
            if not case.reason or case.where or "node" in name or "announced" in name:
                continue
            token = f"token {next(_NUMBERS):08d}".encode()
            frame = case.make(world, token)
            world.send(frame)
            token = token if token in frame else frame[14:]
            if "tag" in name:
                # The catcher gets the tag beside the frame.
                token = frame[frame.index(b"\x45\0") if b"\x45\0" in frame[14:30] else 18 :][:20]
            assert world.catchers["b"].wait(token, seconds=5), name
    finally:
        world.guard.apply([local(pod) for pod in (world.a, world.b, world.c)])


def test_checked_pods_work(world: World):
    """Connections, echo, large packets, towards pods and node, both families, also with empty caches."""
    for pod in (world.a, world.b):
        pod.run("ip neigh flush all")
        pod.run("ip -6 neigh flush all")
    before = world.counts()
    for family in (4, 6):
        own = {4: Pod.v4, 6: Pod.v6}[family]
        with serving(world.b, 80, family=family) as server:
            assert connect(world.a, own(world.b), 80, server, wait=5) == own(world.a)
        with serving(None, 80, family=family) as server:
            assert connect(world.a, {4: "10.1.2.1", 6: "fd00:1:2::1"}[family], 80, server, wait=5)
        with serving(world.b, 53, family=family, udp=True) as server:
            assert exchange(world.a, own(world.b), 53, server, wait=5) == own(world.a)
        with serving(world.a, 80, family=family) as server:
            assert connect(None, own(world.a), 80, server, wait=5)
        assert pings(world.a, own(world.b), size=1300, wait=5)
        # Nobody listens: the answer is an ICMP error of b's.
        assert refused(world.a, own(world.b), family)
    assert world.counts() == before


def refused(pod: Pod, address: str, family: int) -> bool:
    def probe() -> bool:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((address, 9))
            sock.send(b"x")
            try:
                sock.recv(1)
            except ConnectionRefusedError:
                return True
            return False

    return pod.inside(probe)


def test_a_pod_with_duplicate_address_detection_comes_up(spaces):
    with node(spaces) as env:
        guard = Guard()
        try:
            pod = env.pod()
            pod.plan = env.plan(pod, (4, 6), enable_dad=True, is_default_gateway=True)
            guard.admit(local(pod))
            env.driver.attach(pod.plan, pod.fd)
            assert pings(pod, "fd00:1:2::1", wait=5)
            assert not [item for item in guard.denied() if item.packets]
        finally:
            guard.close()


def test_a_pod_is_checked_from_its_first_packet_on(spaces):
    """A program that is in the namespace before ADD and sends as soon as there is a device."""
    with node(spaces) as env:
        guard = Guard()
        target = env.attach((4, 6), is_default_gateway=True)
        guard.admit(local(target))
        forged = f.ip("10.1.2.99", target.v4(), f.UDP, f.udp(53, b"forged"))
        try:
            with f.catching(target.inside, "eth0") as catcher:
                for _ in range(5):
                    pod = env.pod()
                    pod.plan = env.plan(pod, (4, 6), is_default_gateway=True)
                    frame = f.ether(target.plan.mac, pod.plan.mac, forged)
                    with Flood(pod, frame) as flood:
                        guard.admit(local(pod))
                        env.driver.attach(pod.plan, pod.fd)
                        flood.wait_sent(20)
                assert not catcher.wait(b"forged", seconds=0.1)
                sent = {item.policy: item.packets for item in guard.denied()}[SOURCE]
                assert sent >= 100
                # The check itself can fail: a pod that was not admitted gets through.
                pod = env.pod()
                pod.plan = env.plan(pod, (4, 6), is_default_gateway=True)
                with Flood(pod, f.ether(target.plan.mac, pod.plan.mac, forged)):
                    env.driver.attach(pod.plan, pod.fd)
                    assert catcher.wait(b"forged", seconds=5)
        finally:
            guard.close()


class Flood:
    """Sends one frame over and over by a pod's eth0, from before there is one."""

    def __init__(self, pod: Pod, frame: bytes) -> None:
        self._pod, self._frame = pod, frame
        self._stop = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=lambda: pod.inside(self._run))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_sent(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self._sent < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            while not self._stop.is_set():
                try:
                    sock.sendto(self._frame, ("eth0", 0))
                    self._sent += 1
                except OSError:  # there is no device yet, or it is down
                    time.sleep(0)


# The table.


def pods(count: int) -> list[LocalPod]:
    return [
        LocalPod(
            f"a/p{number}",
            f"veth{number:08x}",
            b"\x02\0\0\0" + number.to_bytes(2, "big"),
            (b"\x0a\x01" + number.to_bytes(2, "big"), b"\xfd" + number.to_bytes(15, "big")),
        )
        for number in range(1, count + 1)
    ]


@pytest.fixture
def guards(netns: str) -> Iterator[Callable[[], Guard]]:
    """Makes guards in one fresh namespace."""
    with guards_in(netns) as make:
        yield make


def rows_of(guard: Guard) -> dict[str, dict[bytes, None]]:
    return guard._bridged.table.read()


def test_a_new_guard_adopts_what_is_there(guards):
    some = pods(50)
    guards().apply(some)
    other = guards()
    assert other.apply(some) == 0
    third = guards()
    assert third.admit(some[0]) == 0
    assert third.gone(some[1].ifname) == 7
    assert third.devices() == {pod.ifname for pod in some} - {some[1].ifname}
    assert other.apply(some[:10]) == 41 * 7
    assert third.devices() == {pod.ifname for pod in some[:10]}


def test_changes_one_by_one_are_a_whole_pass(guards):
    some = pods(20)
    guard, whole = guards(), guards()
    for pod in some:
        guard.admit(pod)
    for pod in some[::3]:
        guard.gone(pod.ifname)
    moved = some[1]._replace(addresses=some[0].addresses, mac=b"\x02\0\0\0\1\1")
    guard.admit(moved)
    guard.gone("veth-nobody")
    wanted = [pod for number, pod in enumerate(some) if number % 3 and number != 1] + [moved]
    assert whole.apply(wanted) == 0
    assert guard.admit(moved) == 0


def test_an_admitted_pod_stays_until_it_is_gone(guards):
    """The agent may have listed the pods before the ADD that admitted this one."""
    guard, some = guards(), pods(3)
    guard.apply(some[:1])
    guard.admit(some[1])
    assert guard.apply(some[:1]) == 0
    assert guard.apply([*some[:1], some[2]]) == 7
    guard.gone(some[1].ifname)
    assert guard.apply(some[:1]) == 7
    assert guard.devices() == {some[0].ifname}


@pytest.mark.parametrize(
    "damage",
    [
        f"flush set bridge {TABLE} source4",
        f"flush chain bridge {TABLE} other",
        f"insert rule bridge {TABLE} prerouting accept",
        f"add chain bridge {TABLE} theirs",
        f"add element bridge {TABLE} macs {{ veth00000001 . 02:00:00:00:99:99 }}",
        f"delete table bridge {TABLE}",
    ],
)
def test_damage_is_repaired(guards, netns, damage):
    guard, some = guards(), pods(3)
    guard.apply(some)
    before = rows_of(guard)
    run(f"nft {damage}", netns)
    assert rows_of(guard) != before
    assert guard.apply(some) > 0
    assert rows_of(guard) == before


@pytest.mark.parametrize("change", ["admit", "gone"])
@pytest.mark.parametrize("damage", [f"delete table bridge {TABLE}", f"flush set bridge {TABLE} macs"])
def test_a_change_puts_back_what_somebody_took_away(guards, netns, damage, change):
    guard, some = guards(), pods(3)
    guard.apply(some)
    run(f"nft {damage}", netns)
    if change == "gone":
        guard.gone(some[2].ifname)
        assert guard.devices() == {pod.ifname for pod in some[:2]}
        assert len(rows_of(guard)["macs"]) == 2
    else:
        guard.admit(some[2]._replace(mac=b"\x02\0\0\0\7\7"))
        assert guard.devices() == {pod.ifname for pod in some}
        assert len(rows_of(guard)["macs"]) >= 1


def test_what_failed_is_made_up_for_by_the_next_call(guards, monkeypatch):
    guard, some = guards(), pods(3)
    guard.apply(some[:1])

    def refuse(_: object) -> None:
        raise KernelError(errno.EBUSY, "change table")

    with monkeypatch.context() as patch:
        patch.setattr(guard._bridged.table, "apply", refuse)
        with pytest.raises(KernelError):
            guard.admit(some[1])
    assert guard.admit(some[2]) == 14
    assert guard.devices() == {pod.ifname for pod in some}


def test_nft_shows_whose_the_rows_are(guards, netns):
    guards().apply(pods(2))
    text = run(f"nft list table bridge {TABLE}", netns)
    for shown in ('"veth00000001",', '"veth00000002" . 02:00:00:00:00:02 . 10.1.0.2'):
        assert shown in text


def test_removing_leaves_nothing(guards, netns):
    guard = guards()
    guard.apply(pods(3))
    assert guard.remove() == [f"table bridge {TABLE}"]
    assert run("nft list ruleset", netns) == ""
    assert guard.remove() == []
    assert guard.denied() == []


def test_asking_what_is_missing_changes_nothing(netns):
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        assert namespaces.run_in(fd, spoof.missing) == ""
    finally:
        os.close(fd)
    assert run("nft list ruleset", netns) == ""


def test_refusals_are_told_with_the_reason(world: World):
    with closing(NftDrops()) as drops:
        world.send(PACKETS["another pod's v4"].make(world, b"told"))
        deadline = time.monotonic() + 5
        found: list[Drop] = []
        while not found and time.monotonic() < deadline:
            found += [drop for drop in drops.read() if drop.policy == SOURCE]
        assert (found[0].source, found[0].destination) == (f.packed(world.c.v4()), f.packed(world.b.v4()))
        assert (found[0].direction, found[0].port) == ("egress", 53)
