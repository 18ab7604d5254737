"""What a fast path can get wrong, each with real packets.

Replies of translated connections, fragments, ICMP errors, tracking that ends, pods that come again, agents that die,
forged senders, policies that change.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from pycni.model.kube import POD, TCP, UDP
from pycni.model.policy import Peer, PortRange, Selector
from pycni.policy.ebpf import flows
from tests.netns.fabric_nodes import run
from tests.netns.policy_ebpf_rig import NO_GRACE, Socket, fast_rig, local_pods
from tests.netns.policy_rig import Try, policy, rule, web
from tests.proxy import topology
from tests.proxy.cases import VIP, eps, svc
from tests.proxy.dataplanes import plain
from tests.proxy.topology import PODS

ALL = Selector()
A, B, C = (PODS[name] for name in "abc")
V4V6 = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
ONE_WAY = (
    policy("shop/closed", web(app="web"), ingress=()),
    policy("shop/open", web(app="db"), ingress=(rule(Peer(pods=web(app="web"))),)),
)
"""a may open to b, nobody may open to a."""


@pytest.fixture(scope="module")
def proxy():
    """The topology with servers, and services by nftables."""
    with plain("nftables") as made:
        made.apply({}, {})
        yield made


@pytest.fixture(scope="module")
def spaces(proxy):
    return proxy.spaces


@pytest.fixture(scope="module")
def shared(proxy):
    with fast_rig(proxy) as made:
        yield made


@pytest.fixture
def rig(shared):
    shared.reset()
    return shared


def answers(rig, tries, timeout=2.0):
    return [one.verdict for one in rig._traffic.dial([rig.dial(one, timeout) for one in tries])]


# --- services ---------------------------------------------------------------------------------------------------------


@V4V6
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("isolated", [True, False], ids=["client isolated", "nobody isolated"])
def test_replies_of_services_are_translated_back(proxy, rig, protocol, family, isolated):
    rig.only(*(ONE_WAY if isolated else ()))
    pieces = eps("b")
    service = svc()
    proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in pieces})
    try:
        dial = rig.dial(Try("a", "b", family, protocol, 80), 3)._replace(address=VIP[family])
        for _ in range(3):
            [(outcome, number)] = rig._traffic.hold([dial])
            assert (outcome.verdict, outcome.name) == ("answer", "b")
            assert rig._traffic.ask([number])[0].verdict == "answer"
            rig._traffic.drop([number])
        assert not rig.carried(Try("a", "b", family, protocol, 80))
        assert answers(rig, [Try("a", "b", family, protocol, 80)]) == ["answer"]
        assert rig.carried(Try("a", "b", family, protocol, 80))
    finally:
        proxy.apply({}, {})


@V4V6
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_a_connection_from_a_services_port_does_not_take_its_replies(proxy, rig, family, protocol):
    """From one port to a service and to its endpoint itself: the second one is the stack's, which tells them apart."""
    rig.only(*ONE_WAY)
    service = svc()
    proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("b")})
    port = 29000 + protocol
    try:
        with (
            Socket(rig.spaces, "a", protocol, A[family], port) as one,
            Socket(rig.spaces, "a", protocol, A[family], port) as other,
        ):
            one.connect(VIP[family], 80)
            assert one.ask() == "b"
            other.connect(B[family], 8080)
            assert other.ask() == "b"
            assert one.ask() == "b"
            assert not rig.carried(Try("a", "b", family, protocol, 80))
    finally:
        proxy.apply({}, {})


@V4V6
def test_a_translated_datagram_to_the_ends_of_a_known_flow_makes_both_the_stacks(proxy, rig, family):
    rig.only(*ONE_WAY)
    service = svc()
    proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("b")})
    try:
        with (
            Socket(rig.spaces, "a", UDP, A[family], 29100) as one,
            Socket(rig.spaces, "a", UDP, A[family], 29100) as other,
        ):
            one.connect(B[family], 8080)
            assert one.ask() == "b"
            assert rig.carried(Try("a", "b", family, UDP, 80))
            other.connect(VIP[family], 80)
            assert "b" in (other.ask(), other.ask())
            assert one.ask() == "b"
            assert other.ask() == "b"
            assert not rig.carried(Try("a", "b", family, UDP, 80))
    finally:
        proxy.apply({}, {})


@V4V6
def test_a_port_that_led_to_the_endpoint_itself_may_lead_to_its_service_next(proxy, rig, family):
    rig.only(*ONE_WAY)
    service = svc()
    proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("b")})
    try:
        with Socket(rig.spaces, "a", TCP, A[family], 29150) as one:
            one.connect(B[family], 8080)
            assert one.ask() == "b"
            assert rig.carried(Try("a", "b", family, TCP, 80))
        with Socket(rig.spaces, "a", TCP, A[family], 29150) as other:
            other.connect(VIP[family], 80)
            assert other.ask() == "b"
            assert not rig.carried(Try("a", "b", family, TCP, 80))
    finally:
        proxy.apply({}, {})


@V4V6
def test_datagrams_begun_while_programs_stood_aside_stay_the_stacks(rig, family):
    rig.only(*ONE_WAY)
    with (
        Socket(rig.spaces, "a", UDP, A[family], 29200) as one,
        Socket(rig.spaces, "b", UDP, B[family], 29200) as other,
    ):
        rig.fast.aside()
        one.send(b"x", B[family], 29200)
        assert other.receive() == b"x"
        rig.fast.apply()
        other.send(b"y", A[family], 29200)
        assert one.receive() == b"y"


# --- fragments --------------------------------------------------------------------------------------------------------


@V4V6
@pytest.mark.parametrize("first", [b"small", b"l" * 7000], ids=["begun whole", "begun in fragments"])
def test_large_datagrams_go_both_ways_and_begin_one_way(rig, family, first):
    rig.only(*ONE_WAY)
    large = bytes(range(256)) * 30
    with (
        Socket(rig.spaces, "a", UDP, A[family], 29300) as a,
        Socket(rig.spaces, "b", UDP, B[family], 29300) as b,
        Socket(rig.spaces, "b", UDP, B[family], 29301) as begins,
    ):
        begins.send(large, A[family], 29300)
        a.send(first, B[family], 29300)
        assert b.receive() == first
        for _ in range(2):
            b.send(large, A[family], 29300)
            assert a.receive() == large
            a.send(large, B[family], 29300)
            assert b.receive() == large
        begins.send(large, A[family], 29300)
        assert a.receive(0.3) is None
        assert rig.carried(Try("a", "b", family, UDP, 29300)) == (first == b"small")


# --- ICMP errors ------------------------------------------------------------------------------------------------------


@V4V6
def test_errors_about_a_carried_connection_reach_the_pod(rig, family):
    rig.only(*ONE_WAY)
    assert answers(rig, [Try("a", "b", family, UDP, 81)]) == ["refused"]
    assert rig.carried(Try("a", "b", family, UDP, 81))


def quoting(source, destination, ports, kind=3, code=4):
    """An ICMP error about a UDP packet (RFC 792)."""
    quoted = struct.pack(
        ">BBHHHBBH4s4sHHHH", 0x45, 0, 36, 7, 0x4000, 64, UDP, 0, _ip(source), _ip(destination), *ports, 16, 0
    )
    body = struct.pack(">BBHHH", kind, code, 0, 0, 1400) + quoted
    return struct.pack(">BBH", kind, code, checksum(body)) + body[4:]


def _ip(text):
    return socket.inet_aton(text)


def checksum(raw):
    total = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def errors_seen(sock, wait=0.4):
    """Ports of the packets quoted in errors that a raw socket gets."""
    found, sock_end = set(), time.monotonic() + wait
    sock.settimeout(0.1)
    while time.monotonic() < sock_end:
        with contextlib.suppress(TimeoutError):
            raw = sock.recv(2048)
            if raw[20] == 3:
                found.add(struct.unpack_from(">HH", raw, 48))
    return found


def test_errors_of_routers_reach_the_pod_and_forged_ones_do_not(rig):
    shop = rule(Peer(pods=ALL))
    rig.only(policy("shop/p", web(app="web"), ingress=(), egress=(shop,)))
    x = topology.REMOTE["x"][0]
    with (
        Socket(rig.spaces, "a", UDP, A[0], 29400) as a,
        Socket(rig.spaces, "a", "icmp", A[0]) as hears,
        Socket(rig.spaces, "out", "icmp", topology.OUTSIDE["out"][0]) as router,
        Socket(rig.spaces, "c", "icmp", C[0]) as forger,
        Socket(rig.spaces, "b", "icmp", B[0]) as peer,
    ):
        a.connect(x, 80)
        assert a.ask() == "x"
        assert rig.carried(Try("a", "x", 0, UDP, 80))
        a.sock.connect((B[0], 80))
        assert a.ask() == "b"
        for sock, about in (
            (router, (x, 29400, 80)),
            (router, (x, 29401, 80)),
            (forger, (B[0], 29400, 80)),
            (peer, (B[0], 29400, 80)),
            (peer, (B[0], 29402, 80)),
        ):
            sock.sock.sendto(quoting(A[0], about[0], about[1:], code=4 if sock is router else 13), (A[0], 0))
            found = errors_seen(hears.sock)
            real = (sock, about[1]) in {(router, 29400), (peer, 29400)}
            assert found == ({about[1:]} if real else set()), about


# --- tracking ---------------------------------------------------------------------------------------------------------


@V4V6
def test_a_connection_that_was_quiet_too_long_is_judged_anew(rig, family):
    rig.reset(NO_GRACE._replace(datagram=flows.SECOND, datagrams=flows.SECOND))
    with (
        Socket(rig.spaces, "a", UDP, A[family], 29500) as a,
        Socket(rig.spaces, "b", UDP, B[family], 29500) as b,
    ):
        rig.only(*ONE_WAY)
        a.send(b"1", B[family], 29500)
        assert b.receive() == b"1"
        b.send(b"2", A[family], 29500)
        assert a.receive() == b"2"
        time.sleep(1.3)
        b.send(b"3", A[family], 29500)
        assert a.receive(0.3) is None
        assert rig.carried(Try("a", "b", family, UDP, 29500))
        rig.fast.sweep()
        assert not rig.carried(Try("a", "b", family, UDP, 29500))
        a.send(b"4", B[family], 29500)
        assert b.receive() == b"4"


def test_what_is_open_is_not_swept(rig):
    rig.only(*ONE_WAY)
    [(_, number)] = rig._traffic.hold([rig.dial(Try("a", "b", 0, TCP, 80), 3)])
    try:
        rig.fast.sweep()
        assert rig.carried(Try("a", "b", 0, TCP, 80))
        assert rig._traffic.ask([number])[0].verdict == "answer"
    finally:
        rig._traffic.drop([number])


# --- pods -------------------------------------------------------------------------------------------------------------


def remake(rig, pod):
    """Another pod with the same addresses."""
    node, own = rig.spaces.names["node"], rig.spaces.names[pod]
    run(node, f"ip link del p{pod}")
    run(node, f"ip link add p{pod} type veth peer name eth0 netns {own}")
    run(node, f"ip link set p{pod} master cni0")
    run(node, f"ip link set p{pod} type bridge_slave hairpin on")
    run(node, f"ip link set p{pod} up")
    for line in topology._pod(PODS[pod]):
        option = "-6" if line.startswith("-6 ") or ":" in line else "-4"
        run(own, f"ip {option} {line.removeprefix('-6 ')}")


@pytest.mark.parametrize("forgotten", [True, False], ids=["flows forgotten", "by interface alone"])
def test_a_pod_with_an_earlier_ones_address_inherits_nothing(rig, monkeypatch, forgotten):
    if not forgotten:
        monkeypatch.setattr(rig.fast.driver, "drop_flows", lambda _: None)
    rig.only(policy("shop/p", web(app="web"), ingress=(rule(Peer(namespaces=ALL)),)))
    with (
        Socket(rig.spaces, "a", UDP, A[0], 29600) as a,
        Socket(rig.spaces, "c", UDP, C[0], 29600) as c,
    ):
        c.send(b"1", A[0], 29600)
        assert a.receive() == b"1"
        a.send(b"2", C[0], 29600)
        assert c.receive() == b"2"
        rig.only(policy("shop/p", ingress=()), policy("lone/p", ingress=()))
        c.send(b"3", A[0], 29600)
        assert a.receive() == b"3"
    remake(rig, "c")
    rig.fast.pods(local_pods(rig.spaces))
    with (
        Socket(rig.spaces, "a", UDP, A[0], 29600) as a,
        Socket(rig.spaces, "c", UDP, C[0], 29600) as c,
    ):
        c.send(b"4", A[0], 29600)
        assert a.receive(0.3) is None
        a.send(b"5", C[0], 29600)
        assert c.receive(0.3) is None
    assert not rig.carried(Try("a", "c", 0, UDP, 29600))


@V4V6
def test_a_pod_not_known_yet_is_closed(rig, family):
    rig.only(policy("lone/p", web(app="web"), egress=(rule(Peer(namespaces=ALL)),)))
    one = Try("c", "b", family, TCP, 80)
    assert answers(rig, [one]) == ["answer"]
    rig.store.delete(POD, "lone/c")
    rig.sync()
    rig.engine.admit("lone", [socket.inet_pton((socket.AF_INET, socket.AF_INET6)[family], C[family])])
    assert rig.engine.aside == ""
    assert answers(rig, [one], 0.5) == ["silence"]
    rig.put_pod("c")
    rig.sync()
    assert answers(rig, [one]) == ["answer"]


# --- the agent --------------------------------------------------------------------------------------------------------

_AGENT = """
import json, sys, time
from tests.netns.policy_ebpf_rig import FastRig
from tests.netns.test_policy_ebpf_hazards import ONE_WAY
from tests.proxy.topology import Topology
rig = FastRig(Topology(json.loads(sys.argv[1])), None, sys.argv[2])
rig.only(*ONE_WAY)
if sys.argv[3] == "aside":
    rig.fast.aside()
print("ready", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def killed_agent(rig, how=""):
    """Another agent takes over from the rig's and is killed."""
    words = [sys.executable, "-c", _AGENT, json.dumps(rig.spaces.names), rig.bpffs, how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout.readline() == "ready\n"
            yield
        finally:
            os.kill(agent.pid, signal.SIGKILL)
            agent.wait()


def test_the_last_state_is_enforced_when_the_agent_was_killed(rig):
    rig.only(*ONE_WAY)
    held = []
    try:
        with killed_agent(rig):
            held = rig._traffic.hold([rig.dial(Try("a", "b", family, TCP, 80), 5) for family in (0, 1)])
            assert [outcome.verdict for outcome, _ in held] == ["answer"] * 2
        for _ in range(2):
            assert [one.verdict for one in rig._traffic.ask([number for _, number in held])] == ["answer"] * 2
            allowed = [Try("a", "b", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
            before = rig.crossed()
            assert answers(rig, allowed) == ["answer"] * 4
            assert rig.crossed() == before
            denied = [Try("b", "a", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
            assert answers(rig, denied, 0.3) == ["silence"] * 4
    finally:
        rig._traffic.drop([number for _, number in held if number])


def test_a_crash_while_standing_aside_leaves_it_aside_until_the_next_pass(rig):
    with killed_agent(rig, "aside"):
        pass
    assert not rig.fast.driver.judging
    tries = [Try("a", "b", 0, TCP, 80), Try("b", "a", 0, TCP, 80)]
    assert answers(rig, tries, 0.5) == ["answer", "silence"]
    assert not rig.carried(tries[0])
    rig.only(*ONE_WAY)
    rig.engine.sync(rig.store.snapshot())
    assert answers(rig, tries, 0.5) == ["answer", "silence"]
    assert rig.carried(tries[0])


# --- policies that change ---------------------------------------------------------------------------------------------


def test_no_verdict_is_wrong_while_policies_change(rig):
    """What is always allowed is always answered, what is always denied never, whatever else changes around it."""
    always = policy("shop/always", web(app="db"), ingress=(rule(Peer(pods=web(app="web")), ports=[PortRange(first=80, last=80), PortRange(protocol=UDP, first=80, last=80)]),))  # fmt: skip
    others = [
        policy("shop/o1", web(app="db"), ingress=(rule(Peer(pods=web(app="db"))),)),
        policy("shop/o2", web(app="db"), ingress=(rule(Peer(namespaces=web(team="s")), ports=[PortRange(first=9000, last=9100)]),)),
        policy("shop/o3", ingress=(rule(Peer(pods=web(app="web")), ports=[PortRange(first=80, last=80)]),)),
        policy("lone/o4", egress=(rule(Peer(namespaces=ALL)),)),
    ]  # fmt: skip
    rig.only(always)
    allowed = [Try("a", "b", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
    denied = [Try("c", "b", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
    wrong, rounds, done = [], 0, threading.Event()

    def hammer():
        nonlocal rounds
        while not done.is_set():
            rounds += 1
            found = rig._traffic.dial(
                [rig.dial(one, 3) for one in allowed] + [rig.dial(one, 0.05) for one in denied]
            )
            for one, outcome in zip(allowed + denied, found, strict=True):
                if (outcome.verdict == "answer") != (one in allowed):
                    wrong.append((one, outcome))

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        number = 0
        while number < 150 or rounds < 20:
            number += 1
            rig.only(always, *(item for at, item in enumerate(others) if number >> at & 1))
            assert rig.engine.aside == ""
    finally:
        done.set()
        thread.join()
    assert wrong == []


# --- forged senders ---------------------------------------------------------------------------------------------------


def frame(destination, source, protocol, body):
    return destination + source + struct.pack(">H", protocol) + body


def packet4(source, destination, protocol=UDP, ports=(29700, 29700)):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, protocol, 0, _ip(source), _ip(destination))
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return head + struct.pack(">HHHH", *ports, 8, 0)


def packet6(source, destination, kind, target=bytes(16), option=b"", extension=b""):
    body = struct.pack(">BBHI", kind, 0, 0, 0x20000000) + target + option
    pseudo = source + destination + struct.pack(">II", len(body), 58)
    body = body[:2] + struct.pack(">H", checksum(pseudo + body)) + body[4:]
    inner = 0 if extension else 58
    size = len(body) + len(extension)
    return struct.pack(">IHBB", 0x60000000, size, inner, 255) + source + destination + extension + body


def arp(mac, ip, asked, operation=1):
    return struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, mac, _ip(ip), bytes(6), _ip(asked))


def test_a_pod_speaks_for_itself_only(rig):
    a, b, c = local_pods(rig.spaces)
    own6, other6 = c.addresses[1], b.addresses[1]
    local = socket.inet_pton(socket.AF_INET6, "fe80::1234")
    every6 = socket.inet_pton(socket.AF_INET6, "ff02::1")
    everybody = b"\xff" * 6
    forged = {
        "address": frame(b.mac, c.mac, 0x0800, packet4(A[0], B[0])),
        "node's address": frame(b.mac, c.mac, 0x0800, packet4(topology.BRIDGE[0], B[0])),
        "MAC": frame(b.mac, a.mac, 0x0800, packet4(C[0], B[0])),
        "both": frame(b.mac, a.mac, 0x0800, packet4(A[0], B[0])),
        "ARP sender": frame(everybody, c.mac, 0x0806, arp(c.mac, A[0], B[0], 2)),
        "ARP MAC": frame(everybody, c.mac, 0x0806, arp(a.mac, C[0], B[0], 2)),
        "IPv6 address": frame(b.mac, c.mac, 0x86DD, packet6(other6, a.addresses[1], 128)),
        "advertisement": frame(everybody, c.mac, 0x86DD, packet6(own6, every6, 136, other6, b"\2\1" + c.mac)),
        "its MAC": frame(everybody, c.mac, 0x86DD, packet6(own6, every6, 136, own6, b"\2\1" + a.mac)),
        "router": frame(everybody, c.mac, 0x86DD, packet6(local, every6, 134)),
        "hidden": frame(everybody, c.mac, 0x86DD, packet6(own6, every6, 136, other6, b"", b"\0\0\1\4\0\0\0\0" * 3 + b"\x3a\0\1\4\0\0\0\0")),
        "tagged": frame(b.mac, c.mac, 0x8100, struct.pack(">HH", 7, 0x0800) + packet4(C[0], B[0])),
        "other protocol": frame(b.mac, a.mac, 0x88CC, bytes(46)),
    }  # fmt: skip
    real = {
        "address": frame(b.mac, c.mac, 0x0800, packet4(C[0], B[0])),
        "DHCP": frame(everybody, c.mac, 0x0800, packet4("0.0.0.0", "255.255.255.255", ports=(68, 67))),
        "ARP": frame(everybody, c.mac, 0x0806, arp(c.mac, C[0], B[0])),
        "ARP probe": frame(everybody, c.mac, 0x0806, arp(c.mac, "0.0.0.0", C[0])),
        "detection": frame(everybody, c.mac, 0x86DD, packet6(bytes(16), every6, 135, own6)),
        "solicitation": frame(everybody, c.mac, 0x86DD, packet6(own6, every6, 135, other6, b"\1\1" + c.mac)),
        "advertisement": frame(everybody, c.mac, 0x86DD, packet6(own6, every6, 136, own6, b"\2\1" + c.mac)),
        "link-local": frame(everybody, c.mac, 0x86DD, packet6(local, every6, 136, local, b"\2\1" + c.mac)),
        "hop by hop": frame(everybody, c.mac, 0x86DD, packet6(local, every6, 143, bytes(16), b"", b"\x3a\0\1\4\0\0\0\0")),
        "other protocol": frame(b.mac, c.mac, 0x88CC, bytes(46)),
    }  # fmt: skip
    with Socket(rig.spaces, "c", "frames", "eth0") as sock:

        def refused(raw):
            before = sum(item.packets for item in rig.fast.driver.refused().values())
            sock.sock.send(raw.ljust(60, b"\0"))
            time.sleep(0.01)
            return sum(item.packets for item in rig.fast.driver.refused().values()) - before

        with contextlib.closing(rig.fast.drops()) as drops:
            assert {name: refused(raw) for name, raw in forged.items()} == dict.fromkeys(forged, 1)
            told = {drop.policy for drop in drops.read()}
        assert told == {"spoofed source", "spoofed MAC", "spoofed neighbour", "VLAN tag"}
        assert {name: refused(raw) for name, raw in real.items()} == dict.fromkeys(real, 0)
    found = {item.policy: item.packets for item in rig.fast.denied()}
    assert sum(found.values()) == len(forged)
