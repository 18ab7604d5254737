"""The XDP program's verdicts on frames: never a drop of what the API allows, and none missing where it is certain."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycni.model.kube import NAMESPACE, NODE, POD, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import NETWORK_POLICY, Direction
from pycni.policy.ebpf import flows
from pycni.policy.ebpf.flows import PodRow
from pycni.policy.ebpf.layout import NONE, SubjectRow, pack_address, subject_key
from pycni.policy.xdp.layout import Setup, Tunnel, own_bit
from pycni.store import Store
from pycni.view.policy_oracle import verdict
from pycni.view.policy_stages import SUBJECTS
from tests.laws.policy_worlds import make_connection, make_world
from tests.laws.test_policy_nft import random_steps
from tests.netns import frames as f
from tests.netns.policy_rig import block, policy, rule, web
from tests.netns.xdp_rig import LOCAL, MAC, REMOTE, Judge, first_packet, payload, plain, vxlan, wire

SEEDS = st.integers(0, 1 << 32)
SCTP = 132


@pytest.fixture(scope="module")
def judge():
    with wire() as made:
        found = Judge(made.path())
        yield found
        found.close()


def silent(judge, address):
    """Whether a pod's egress policies allow nothing, by the compiled rows."""
    raw = judge.path.below.compiled.tables[SUBJECTS].get(subject_key(address, Direction.EGRESS))
    row = SubjectRow.unpack(raw or bytes(72))
    return row.isolated != NONE and all(tier == (NONE, NONE) for tier in row.tiers[:2])


def check(judge, objects, ask, seen):
    packet = first_packet(ask.source, ask.destination, ask.protocol, ask.port)
    allowed = verdict(objects, ask.source, ask.destination, ask.protocol, ask.port).ingress.allowed
    here = (ask.destination, Direction.INGRESS) in judge.view.tables[SUBJECTS]
    known = ask.protocol == f.UDP and not silent(judge, ask.destination)
    wanted = here and not allowed and not known
    for frame in (plain(packet), vxlan(packet), vxlan(packet, 6)):
        for _ in range(2):  # judged, and remembered
            assert judge.drops(frame) is wanted, (ask, allowed, here)
    seen[wanted, ask.protocol] += 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS)
def test_denied_beginnings_are_dropped_and_nothing_else(judge, seed):
    world = make_world(seed, connections=30)
    judge.sync(world.snapshot())
    for ask in world.connections:
        check(judge, world, ask, Counter())


def test_worlds_have_what_is_dropped_and_what_is_not(judge):
    seen = Counter()
    for seed in range(25):
        world = make_world(seed, connections=60)
        judge.sync(world.snapshot())
        for ask in world.connections:
            check(judge, world, ask, seen)
    for protocol in (f.TCP, f.UDP, SCTP, f.ICMP, f.ICMPV6):
        assert seen[True, protocol], seen
        assert seen[False, protocol], seen


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS)
def test_what_is_remembered_never_outlives_a_change(judge, seed):
    store, tracker, changes = random_steps(seed)
    random = Random(seed)
    judge.sync(store.snapshot())
    tracker.take()
    asks = [make_connection(random, list(store.snapshot().of(POD).values())) for _ in range(25)]
    for _ in changes():
        judge.sync(store.current(), tracker.take())
        for ask in asks:
            check(judge, store.snapshot(), ask, Counter())


# --- one pod that is denied everything -------------------------------------------------------------------------------

POD_IP = {4: "10.244.1.2", 6: "fd00:244:1::2"}
PEER = {4: "192.0.2.9", 6: "2001:db8:9::9"}
ECHO = {4: f.ICMP, 6: f.ICMPV6}


def shop(*policies):
    store = Store()
    store.put(NAMESPACE, "shop", Namespace(meta=Meta(name="shop")))
    cidrs = ("10.244.1.0/24", "fd00:244:1::/64")
    store.put(NODE, "n1", KubeNode(meta=Meta(name="n1"), pod_cidrs=cidrs, internal_ips=tuple(LOCAL.values())))
    for number, app in ((2, "db"), (3, "web")):
        ips = (f"10.244.1.{number}", f"fd00:244:1::{number}")
        meta = Meta(name=f"p{number}", namespace="shop", labels={"app": app})
        store.put(POD, meta.key, Pod(meta=meta, node="n1", ips=ips, phase="Running"))
    for item in policies:
        store.put(NETWORK_POLICY, item.meta.key, item)
    return store.snapshot()


CLOSED = policy("shop/deny", web(app="db"), ingress=(), egress=())
BLOCKS = policy(
    "shop/blocks",
    web(app="db"),
    ingress=(rule(block("192.0.0.0/8", "192.0.2.0/28"), block("2001:db8::/32", "2001:db8:9::/48")),),
)


@pytest.fixture(params=[CLOSED, BLOCKS], ids=["deny all", "outside a block"])
def denied(judge, request):
    judge.sync(shop(request.param))
    return request.param


BOTH = pytest.mark.parametrize("family", [4, 6])


def bare(family, protocol, data, **fields):
    return f.ip(PEER[family], POD_IP[family], protocol, data, **fields)


@BOTH
@pytest.mark.parametrize("protocol", [f.TCP, SCTP, "echo"])
def test_the_pod_is_denied_what_begins(judge, denied, family, protocol):
    number = ECHO[family] if protocol == "echo" else protocol
    packet = bare(family, number, payload(number))
    assert all(judge.drops(frame) for frame in (plain(packet), vxlan(packet), vxlan(packet, 6)))


@BOTH
def test_datagrams_are_denied_where_they_can_be_no_answers(judge, family):
    frame = plain(bare(family, f.UDP, payload(f.UDP)))
    judge.sync(shop(CLOSED))
    assert judge.drops(frame)
    judge.sync(
        shop(
            policy(
                "shop/deny", ingress=(), egress=(rule(block("198.51.100.0/24"), block("2001:db8:7::/48")),)
            )
        )
    )
    assert not judge.drops(frame)
    judge.sync(shop(policy("shop/deny", ingress=())))
    assert not judge.drops(frame)


SYN = f.tcp(80)
PASSING = {
    "an answer to a SYN": lambda n: bare(n, f.TCP, f.tcp(80, flags=0x12)),
    "data": lambda n: bare(n, f.TCP, f.tcp(80, flags=0x10)),
    "a reset": lambda n: bare(n, f.TCP, f.tcp(80, flags=4)),
    "SYN and FIN": lambda n: bare(n, f.TCP, f.tcp(80, flags=3)),
    "a TCP header too short": lambda n: bare(n, f.TCP, SYN[:12] + b"\x40" + SYN[13:]),
    "a cut-off TCP header": lambda n: bare(n, f.TCP, SYN[:16]),
    "a first fragment": lambda n: bare(n, f.TCP, SYN, more=True),
    "a later fragment": lambda n: bare(n, f.TCP, SYN, offset=64),
    "the last hop": lambda n: bare(n, f.TCP, SYN, hops=1),
    "SCTP data": lambda n: bare(n, SCTP, f.sctp_init(80)[:12] + b"\0" + f.sctp_init(80)[13:]),
    "SCTP with a tag": lambda n: bare(n, SCTP, f.sctp_init(80)[:4] + b"\1" + f.sctp_init(80)[5:]),
    "an echo's answer": lambda n: bare(n, ECHO[n], f.icmp(0 if n == 4 else 129, 0, bytes(4))),
    "an ICMP error": lambda n: bare(n, ECHO[n], f.icmp(3 if n == 4 else 1, 0, bytes(4) + bare(n, f.TCP, SYN))),
    "GRE": lambda n: bare(n, 47, bytes(40)),
    "another protocol's echo": lambda n: bare(n, ECHO[10 - n], payload(ECHO[n])),
    "another pod": lambda n: f.ip(PEER[n], POD_IP[n][:-1] + "3", f.TCP, SYN),
    "no pod": lambda n: f.ip(PEER[n], POD_IP[n][:-1] + "9", f.TCP, SYN),
    "the node's own address": lambda n: f.ip(LOCAL[n], POD_IP[n], f.TCP, SYN),
    "the node's bridge": lambda n: f.ip(POD_IP[n][:-1] + "1", POD_IP[n], f.TCP, SYN),
    "the pod itself": lambda n: f.ip(POD_IP[n], POD_IP[n], f.TCP, SYN),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("what", PASSING)
def test_what_is_not_certain_passes(judge, denied, family, what):
    assert judge.drops(plain(bare(family, f.TCP, SYN)))  # and is remembered
    packet = PASSING[what](family)
    assert not any(judge.drops(frame) for frame in (plain(packet), vxlan(packet), vxlan(packet, 6)))


def _longer(packet):
    """Says that it is longer than it is."""
    return packet[:2] + (len(packet) + 1).to_bytes(2, "big") + packet[4:]


GOOD = bare(4, f.TCP, SYN)
FRAMES = {
    "a VLAN's": lambda: f.ether(MAC, bytes(6), GOOD, tags=(5,)),
    "two VLANs'": lambda: f.ether(MAC, bytes(6), GOOD, tags=(5, 6)),
    "another machine's": lambda: plain(GOOD, f.mac("02:00:00:00:00:99")),
    "everybody's": lambda: plain(GOOD, f.BROADCAST),
    "nobody's": lambda: plain(GOOD, bytes(6)),
    "IPv4 options": lambda: plain(bare(4, f.TCP, SYN, options=b"\1\1\1\1")),
    "an IPv6 extension header": lambda: plain(f.extended(PEER[6], POD_IP[6], [(60, b"\0" + bytes(6))], f.TCP, SYN)),
    "IPv4 said to be longer": lambda: plain(_longer(GOOD)),
    "IPv4 said to be shorter": lambda: plain(GOOD[:2] + b"\0\x20" + GOOD[4:]),
    "IPv4 in IPv4": lambda: plain(f.ip(PEER[4], LOCAL[4], 4, GOOD)),
    "another type": lambda: f.ether(MAC, bytes(6), GOOD, f.ARP),
    "IPv4 called IPv6": lambda: f.ether(MAC, bytes(6), GOOD, f.IP6),
    "an IPv4 address in IPv6": lambda: plain(f.ip("2001:db8:9::9", "::ffff:10.244.1.2", f.TCP, SYN)),
    "another network's VXLAN": lambda: vxlan(GOOD, vni=77),
    "the other tunnel's network": lambda: vxlan(GOOD, vni=2),
    "another port": lambda: vxlan(GOOD, port=4789),
    "VXLAN with a group policy": lambda: vxlan(GOOD, flags=0x88),
    "VXLAN without a network": lambda: vxlan(GOOD, flags=0),
    "VXLAN to a pod": lambda: vxlan(GOOD, destination="10.244.1.3"),
    "VXLAN to another node": lambda: vxlan(GOOD, destination=REMOTE[4], source=LOCAL[4]),
    "VXLAN in pieces": lambda: vxlan(GOOD, more=True),
    "VXLAN with IPv4 options": lambda: vxlan(GOOD, options=b"\1\1\1\1"),
    "VXLAN longer than its UDP": lambda: _short_udp(vxlan(GOOD)),
    "VXLAN longer than its IPv4": lambda: vxlan(GOOD)[:16] + (50 + 39).to_bytes(2, "big") + vxlan(GOOD)[18:],
    "VXLAN in VXLAN": lambda: vxlan(vxlan(GOOD)[14:]),
    "a VLAN's inside": lambda: vxlan(b"\x45" + GOOD[1:]).replace(b"\x08\x00" + GOOD[:4], b"\x81\x00\0\5\x08\x00" + GOOD[:4]),
    "nothing": lambda: bytes(14),
}  # fmt: skip


def _short_udp(frame):
    return frame[:38] + (int.from_bytes(frame[38:40], "big") - 1).to_bytes(2, "big") + frame[40:]


@pytest.mark.parametrize("what", FRAMES)
def test_frames_that_are_not_plain_pass(judge, denied, what):
    assert judge.drops(plain(GOOD))
    assert judge.drops(vxlan(GOOD))
    assert not judge.drops(FRAMES[what]())


@BOTH
def test_every_cut_of_a_frame_passes(judge, denied, family):
    for frame in (plain(bare(family, f.TCP, SYN)), vxlan(bare(family, f.TCP, SYN), family)):
        assert judge.drops(frame)
        assert not any(judge.drops(frame[:size]) for size in range(14, len(frame)))


def test_padding_behind_a_packet_is_no_part_of_it(judge, denied):
    assert judge.drops(plain(GOOD) + bytes(20))
    cut = bare(4, f.TCP, b"")
    assert not judge.drops(plain(cut) + SYN)


def test_while_it_stands_aside_everything_passes(judge, denied):
    assert judge.drops(plain(GOOD))
    judge.path.aside()
    assert not judge.drops(plain(GOOD))
    judge.path.apply()
    assert judge.drops(plain(GOOD))


def test_many_sources_do_not_mix(judge):
    judge.sync(shop(BLOCKS))
    for _ in range(2):
        for number in range(1500):
            source = f"{(192, 10)[number % 2]}.0.{3 + number // 200}.{number % 200 + 1}"
            assert judge.drops(plain(first_packet(source, POD_IP[4], f.TCP, 80))) is bool(number % 2)


def test_a_pods_other_addresses_reach_it(judge):
    store = shop(CLOSED)
    both = Store()
    for kind in (NAMESPACE, NODE, NETWORK_POLICY):
        both.replace(kind, dict(store.of(kind)))
    ips = ("10.244.1.2", "10.244.1.22")
    meta = Meta(name="p2", namespace="shop", labels={"app": "db"})
    both.put(POD, "shop/p2", Pod(meta=meta, node="n1", ips=ips, phase="Running"))
    judge.sync(both.snapshot())
    for ends in (ips, ips[::-1]):
        assert not judge.drops(plain(first_packet(*ends, f.TCP, 80)))
        assert judge.drops(plain(first_packet(PEER[4], ends[0], f.TCP, 80)))


# --- with programs at pods -------------------------------------------------------------------------------------------


@pytest.fixture
def tracking(judge):
    judge.path._tracked = True
    maps = judge.path.below.maps
    judge.sync(shop(policy("shop/deny", web(app="db"), ingress=(), egress=(rule(),))))
    pods = {pack_address(f.packed(text)): PodRow(7, 0, 0, MAC, 1500).pack() for text in POD_IP.values()}
    maps[flows.PODS].update(pods)
    maps[flows.GRACE].put(bytes(4), bytes(8))
    yield maps
    for name in (flows.PODS, flows.FLOWS, flows.SEEN):
        maps[name].remove(maps[name].items())
    judge.path._tracked = False


def key_of(family, protocol, port=80):
    ends = [
        (pack_address(f.packed(text)), number)
        for text, number in ((PEER[family], 40000), (POD_IP[family], port))
    ]
    if protocol == ECHO[family]:
        ends = [(ends[0][0], 7), (ends[1][0], 0)]
    return flows.flow_key(*ends, protocol)[0]


def _size(maps, name):
    return maps[name].spec.value


@BOTH
@pytest.mark.parametrize("protocol", [f.UDP, SCTP, "echo"])
@pytest.mark.parametrize("where", [flows.FLOWS, flows.SEEN])
def test_a_known_connection_goes_on(judge, tracking, family, protocol, where):
    number = ECHO[family] if protocol == "echo" else protocol
    frame = plain(bare(family, number, payload(number)))
    assert judge.drops(frame)
    used = (time.monotonic_ns() - 10**9).to_bytes(8, "little")
    tracking[where].put(key_of(family, number), used.ljust(_size(tracking, where), b"\0"))
    assert not judge.drops(frame)
    tracking[where].delete(key_of(family, number))
    assert judge.drops(frame)


def test_datagrams_that_may_be_answers_pass(judge, tracking):
    frame = plain(bare(4, f.UDP, payload(f.UDP)))
    assert judge.drops(frame)
    tracking[flows.GRACE].put(bytes(4), (1 << 62).to_bytes(8, "little"))
    assert not judge.drops(frame)
    tracking[flows.GRACE].put(bytes(4), bytes(8))
    since = PodRow(7, 0, 1 << 62, MAC, 1500).pack()
    tracking[flows.PODS].put(pack_address(f.packed(POD_IP[4])), since)
    assert not judge.drops(frame)
    tracking[flows.PODS].delete(pack_address(f.packed(POD_IP[4])))
    assert not judge.drops(frame)


def test_layout_of_what_the_node_says():
    tunnel = Tunnel(b"\xc0\xa8\0\1", 8472, 0x010203)
    assert tunnel.pack() == bytes(10) + b"\xff\xff\xc0\xa8\0\1" + b"\1\2\3\0" + b"\x21\x18" + b"\3\0"
    setup = Setup((MAC,), (tunnel,), frozenset({b"\xc0\xa8\0\1"}), tracked=True).pack()
    assert len(setup) == 32 + 96 + 64 + 8
    assert sum(byte.bit_count() for byte in setup[128:192]) == 1
    assert 0 <= own_bit(b"\xc0\xa8\0\1") < 512
