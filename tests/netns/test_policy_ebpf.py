"""The fast path of network policies: what the API says arrives and which way it went, full maps, its own life."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time

import pytest

from pycni.errors import ConfigError
from pycni.kernel import bpf, bpf_build
from pycni.kernel.bpf_map import MapSpec
from pycni.kernel.bpf_object import attached_programs
from pycni.model.kube import TCP, UDP
from pycni.model.policy import Peer, PortRange, Selector
from pycni.policy.base import LocalPod, Packet
from pycni.policy.ebpf import devices, driver, fastpath, flows
from pycni.policy.ebpf.driver import Places
from tests.netns.fabric_nodes import run
from tests.netns.policy_ebpf_rig import NO_GRACE, FastRig, Socket, fast_rig, in_node, local_pods, pins
from tests.netns.policy_rig import EVERY, Try, policy, rule, web
from tests.netns.test_policy_ebpf_hazards import ONE_WAY, answers, checksum, frame, packet4
from tests.netns.test_policy_nft import WORLDS
from tests.proxy.cases import VIP, eps, svc
from tests.proxy.dataplanes import plain, sockets
from tests.proxy.topology import NODE, PODS

ALL = Selector()
SAME_NODE = [Try("a", "b", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]


@pytest.fixture(scope="module")
def proxy():
    """The topology with servers, and services by nftables."""
    with plain("nftables") as made:
        made.apply({}, {})
        yield made


@pytest.fixture
def rig(proxy):
    with fast_rig(proxy) as made:
        yield made


# --- what arrives, and by which way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "world", ["stacked policies", "admin before, baseline behind", "blocks with exceptions"]
)
def test_what_the_api_says_arrives(rig, world):
    rig.only(*WORLDS[world])
    assert rig.engine.aside == ""
    wanted = {one: rig.judged(one) for one in EVERY}
    for one, passed in zip(EVERY, rig.passes(EVERY), strict=True):
        told, why = wanted[one]
        source, destination = (ipaddress.ip_address(end).packed for end in one.ends)
        packet = Packet(source, destination, one.protocol, one.port, local=one.client == "node")
        assert (passed, rig.fast.decide(packet).allowed) == (told, told), f"{one}\n{why}"
    found = rig.fast.driver.read()
    assert found == {name: dict(rig.fast.compiled.tables[name]) for name in found}


def test_connections_of_pods_of_the_node_go_past_the_bridge(rig):
    rig.only(*ONE_WAY)
    assert answers(rig, SAME_NODE) == ["answer"] * 4
    assert [rig.carried(one) for one in SAME_NODE] == [True] * 4
    with contextlib.ExitStack() as stack:
        numbers = [number for _, number in rig._traffic.hold([rig.dial(one, 3) for one in SAME_NODE])]
        stack.callback(rig._traffic.drop, numbers)
        before = rig.crossed()
        for _ in range(5):
            assert [one.verdict for one in rig._traffic.ask(numbers)] == ["answer"] * 4
        assert rig.crossed() == before
    entries = run(rig.spaces.names["node"], "bridge fdb show dev pa")
    mac = local_pods(rig.spaces)[0].mac
    assert any(mac.hex(":") in line and "static" in line for line in entries.splitlines())


def pinged(sock, address, number, timeout):
    """Whether an echo is answered."""
    six = ":" in address
    body = struct.pack(">BBHHH", 128 if six else 8, 0, 0, number, 1)
    if not six:
        body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    sock.sock.sendto(body, (address, 0))
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        raw = sock.receive(left)
        at = 0 if six else 20
        if raw is not None and raw[at] == (129 if six else 0) and raw[at + 4 : at + 6] == body[4:6]:
            return True
    return False


def test_pings_are_carried_and_begin_one_way(rig):
    rig.only(*ONE_WAY)
    for family in (0, 1):
        kind = ("icmp", "icmp6")[family]
        with (
            Socket(rig.spaces, "a", kind, PODS["a"][family]) as a,
            Socket(rig.spaces, "b", kind, PODS["b"][family]) as b,
        ):
            for number in (7, 7, 9):
                assert pinged(a, PODS["b"][family], number, 2)
            assert rig.carried(Try("a", "b", family, (1, 58)[family], 0))
            before = rig.crossed()
            assert pinged(a, PODS["b"][family], 9, 2)
            assert rig.crossed() == before
            for number in (7, 8):
                assert not pinged(b, PODS["a"][family], number, 0.3)


def test_remote_pods_and_the_outside_are_judged_where_they_come_in(rig):
    only = rule(
        Peer(pods=web(app="web")),
        ports=[PortRange(first=80, last=80), PortRange(protocol=UDP, first=80, last=80)],
    )
    rig.only(policy("shop/p", ingress=(only,), egress=(rule(Peer(pods=ALL)),)))  # fmt: skip
    tries = [Try("x", "a", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
    assert answers(rig, tries) == ["answer"] * 4
    assert [rig.carried(one) for one in tries] == [True] * 4
    away = [Try("a", "x", family, protocol, 80) for family in (0, 1) for protocol in (TCP, UDP)]
    assert answers(rig, away) == ["answer"] * 4
    assert [rig.carried(one) for one in away] == [True] * 4
    denied = [Try("y", "a", 0, TCP, 80), Try("out", "a", 0, TCP, 80), Try("x", "a", 1, TCP, 8080)]
    assert answers(rig, denied, 0.3) == ["silence"] * 3
    found = {(item.policy, item.direction): item.packets for item in rig.fast.denied()}
    assert found["NetworkPolicy shop/p", "ingress"] >= 3
    assert answers(rig, [Try("out", "a", 0, UDP, 80), Try("a", "y", 0, UDP, 80)], 0.3) == ["silence"] * 2


def test_replies_from_other_nodes_to_services_of_theirs_pass(proxy, rig):
    """A datagram to a service whose endpoint is on another node comes back from a known pod, to a port nobody opened."""
    rig.only(policy("shop/p", ingress=(), egress=(rule(Peer(pods=ALL)),)))
    service = svc()
    proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("x")})
    try:
        dials = [
            rig.dial(Try("a", "x", family, protocol, 80), 3)._replace(address=VIP[family])
            for family in (0, 1)
            for protocol in (TCP, UDP)
        ]
        assert [item.verdict for item in rig._traffic.dial(dials)] == ["answer"] * 4
    finally:
        proxy.apply({}, {})


def test_denials_are_counted_and_told(rig):
    rig.only(policy("shop/in", web(app="web"), ingress=()), policy("shop/more", web(app="web"), ingress=()))
    with contextlib.closing(rig.fast.drops()) as drops:
        assert answers(rig, [Try("b", "a", 1, UDP, 80)], 0.3) == ["silence"]
        [drop] = drops.read()
        assert drops.lost == 0
    source, destination = (ipaddress.ip_address(end).packed for end in Try("b", "a", 1, UDP, 80).ends)
    assert (drop.source, drop.destination, drop.protocol, drop.port) == (source, destination, UDP, 80)
    assert (drop.direction, drop.policy, drop.more, drop.by) == (
        "ingress",
        "NetworkPolicy shop/in",
        1,
        "ebpf",
    )
    assert 33000 <= drop.source_port < 60000
    found = {(item.policy, item.direction): item.packets for item in rig.fast.denied()}
    assert found == {("NetworkPolicy shop/in", "ingress"): 1, ("NetworkPolicy shop/more", "ingress"): 1}
    rig.only(policy("shop/in", web(app="web"), ingress=(rule(),)))
    assert answers(rig, [Try("b", "a", 1, UDP, 80)]) == ["answer"]
    assert any(item.packets == 1 for item in rig.fast.driver.decided().values())


def test_denials_nobody_reads_are_lost_in_number_and_reading_goes_on(rig):
    rig.only(policy("shop/in", web(app="web"), ingress=()))
    room = flows.EVENT_BYTES // 64 - 1
    with (
        contextlib.closing(rig.fast.drops()) as drops,
        Socket(rig.spaces, "b", UDP, PODS["b"][0], 29950) as sock,
    ):
        for more in (room + 500, 700):
            for number in range(more):
                sock.send(b"x", PODS["a"][0], 1024 + number % 60000)
            told = drops.read()
            assert len(told) == min(more, room)
            assert drops.lost == 500
            ports = [drop.port for drop in told]
            assert ports == [1024 + number % 60000 for number in range(len(told))]
        assert not drops.read()
    [found] = rig.fast.denied()
    assert found.packets == room + 1200


@pytest.mark.parametrize(
    "setup",
    [
        "ip link set pb type bridge_slave isolated on",
        "tc qdisc add dev pb root tbf rate 1gbit burst 100k latency 50ms",
        "tc qdisc add dev pb clsact; tc filter add dev pb ingress prio 9 u32 match u32 0 0 flowid 1:1",
        "",
    ],
    ids=["isolated port", "shaped", "led away", "VLANs"],
)
def test_where_the_way_has_something_to_do_packets_take_it(proxy, monkeypatch, setup):
    node = proxy.spaces.names["node"]
    for line in setup.split("; ") if setup else ():
        run(node, line)
    if not setup:  # this kernel's bridge knows no VLANs
        monkeypatch.setattr(devices, "filters_vlans", lambda *_: True)
    try:
        with fast_rig(proxy) as rig:
            rig.only(*ONE_WAY)
            assert answers(rig, SAME_NODE) == ["answer"] * 4
            assert [rig.carried(one) for one in SAME_NODE] == [True] * 4
            before = rig.crossed()
            assert answers(rig, SAME_NODE) == ["answer"] * 4
            assert rig.crossed() > before
            assert answers(rig, [Try("b", "a", 0, TCP, 80)], 0.3) == ["silence"]
    finally:
        run(node, "ip link set pb type bridge_slave isolated off")
        if "qdisc" in setup:
            run(node, f"tc qdisc del dev pb {'root' if 'tbf' in setup else 'clsact'}")


def test_packets_with_options_or_over_the_receivers_size_take_the_stack(rig):
    rig.only(*ONE_WAY)
    with (
        Socket(rig.spaces, "a", UDP, PODS["a"][0], 29800) as a,
        Socket(rig.spaces, "b", UDP, PODS["b"][0], 29800) as b,
    ):

        def once(data):
            before = rig.crossed()
            a.send(data, PODS["b"][0], 29800)
            assert b.receive() == data
            return rig.crossed() - before

        def crossing(data):
            """The least of several: what interfaces say of themselves is counted too."""
            return min(once(data) for _ in range(4))

        assert crossing(b"plain") == 0
        a.sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x94\x04\0\0")
        assert crossing(b"options") == 1
        a.sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"")
        assert crossing(b"plain again") == 0
        assert crossing(b"l" * 1400) == 0
        rows = rig.fast.maps[flows.FLOWS].items()
        rig.fast.maps[flows.FLOWS].update({key: raw[:30] + b"\0\5" + raw[32:] for key, raw in rows.items()})
        assert crossing(b"l" * 1252) == 0
        assert crossing(b"l" * 1253) == 1


# --- full maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_a_full_map_leaves_new_connections_to_the_stack(proxy, monkeypatch, protocol):
    small = {flows.FLOWS: 3, flows.SEEN: 4}
    specs = tuple(spec._replace(entries=small.get(spec.name, spec.entries)) for spec in driver.SPECS)
    monkeypatch.setattr(driver, "SPECS", specs)
    assert all(isinstance(spec, MapSpec) for spec in specs)
    with fast_rig(proxy) as rig:
        rig.reset(NO_GRACE._replace(grace=60 * flows.SECOND))
        rig.only(*ONE_WAY)
        one = rig.dial(Try("a", "b", 0, protocol, 80), 4)
        held = rig._traffic.hold([one] * 12)
        try:
            assert [outcome.verdict for outcome, _ in held] == ["answer"] * 12
            assert len(rig.fast.maps[flows.FLOWS].items()) == 3
            numbers = [number for _, number in held]
            assert [item.verdict for item in rig._traffic.ask(numbers)] == ["answer"] * 12
        finally:
            rig._traffic.drop([number for _, number in held if number])
        assert answers(rig, [Try("b", "a", 0, protocol, 80)], 0.3) == ["silence"]


def test_without_room_for_notes_datagrams_are_left_to_the_stack(proxy, monkeypatch):
    """What cannot be noted must not be taken for a beginning: all datagrams are the stack's for a while."""
    specs = tuple(spec._replace(entries=2) if spec.name == flows.SEEN else spec for spec in driver.SPECS)
    monkeypatch.setattr(driver, "SPECS", specs)
    with fast_rig(proxy) as rig:
        rig.reset(NO_GRACE._replace(grace=60 * flows.SECOND))
        rig.only(*ONE_WAY)
        service = svc()
        proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("b")})
        try:
            dial = rig.dial(Try("a", "b", 0, UDP, 80), 3)._replace(address=VIP[0])
            outcomes = rig._traffic.dial([dial] * 6)
            assert [item.verdict for item in outcomes] == ["answer"] * 6
        finally:
            proxy.apply({}, {})
        assert not rig.carried(Try("a", "b", 0, UDP, 80))
        assert answers(rig, [Try("a", "b", 0, UDP, 80)]) == ["answer"]
        assert not rig.carried(Try("a", "b", 0, UDP, 80))


def test_datagrams_are_the_stacks_for_a_while_after_programs_came(proxy):
    with fast_rig(proxy, NO_GRACE._replace(grace=60 * flows.SECOND)) as rig:
        rig.only(*ONE_WAY)
        assert answers(rig, [Try("a", "b", 0, UDP, 80), Try("a", "b", 0, TCP, 80)]) == ["answer"] * 2
        assert not rig.carried(Try("a", "b", 0, UDP, 80))
        assert rig.carried(Try("a", "b", 0, TCP, 80))


def test_forged_senders_pass_when_the_check_is_off(rig):
    rig.fast.close()
    rig.engine.fast = rig.make(spoof_check=False)
    rig.fast.pods(local_pods(rig.spaces))
    _, b, c = local_pods(rig.spaces)
    with (
        Socket(rig.spaces, "b", UDP, PODS["b"][0], 29700) as hears,
        Socket(rig.spaces, "c", "frames", "eth0") as sock,
    ):
        sock.sock.send(frame(b.mac, c.mac, 0x0800, packet4(PODS["a"][0], PODS["b"][0])).ljust(60, b"\0"))
        assert hears.receive() == b""


# --- its own life -----------------------------------------------------------------------------------------------------


def programs_on(rig, device):
    """Ids of the programs on what a device of the node receives."""

    def ask():
        index = socket.if_nametoindex(device)
        return bpf.attached(index, bpf.TCX_INGRESS)

    return in_node(rig.spaces, ask)


def test_a_restarted_agent_adopts_what_is_there(rig, proxy):
    rig.only(*ONE_WAY)
    before = attached_programs(rig.fast.driver.folder)
    assert len(before) == 8
    [(_, number)] = rig._traffic.hold([rig.dial(Try("a", "b", 0, TCP, 80), 3)])
    try:
        rig.fast.close()
        rig.engine.fast = rig.make()
        assert rig.fast.driver.judging
        assert answers(rig, [Try("a", "b", 0, TCP, 80), Try("b", "a", 0, TCP, 80)], 0.5) == [
            "answer",
            "silence",
        ]
        assert rig.carried(Try("a", "b", 0, TCP, 80))
        rig.fast.pods(local_pods(rig.spaces))
        rig.engine.sync(rig.store.snapshot())
        assert rig.fast.compiled.against(rig.fast.driver.read()) == []
        assert rig.fast.driver.judging
        assert attached_programs(rig.fast.driver.folder) == before
        assert rig._traffic.ask([number])[0].verdict == "answer"
    finally:
        rig._traffic.drop([number])


def test_another_version_swaps_programs_under_traffic(rig, monkeypatch):
    rig.only(*ONE_WAY)
    before = attached_programs(rig.fast.driver.folder)
    held = rig._traffic.hold([rig.dial(one, 3) for one in SAME_NODE])
    numbers = [number for _, number in held]
    try:
        original = driver.source

        def newer(cache):
            item = original(cache)
            return item._replace(text=item.text + f"\n/* {os.getpid()} */\n", cache=cache)

        monkeypatch.setattr(driver, "source", newer)
        monkeypatch.setattr(fastpath, "source", newer)
        rig.fast.close()
        rig.engine.fast = rig.make()
        after = attached_programs(rig.fast.driver.folder)
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        crossed = rig.crossed()
        assert [one.verdict for one in rig._traffic.ask(numbers)] == ["answer"] * 4
        assert rig.crossed() == crossed
        assert answers(rig, [Try("b", "a", 0, TCP, 80)], 0.3) == ["silence"]
    finally:
        rig._traffic.drop(numbers)
        digest = bpf_build.digest(newer("").text, list(driver.HOOK_OF))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{bpf_build.CACHE}/{digest}.json")


def test_rows_that_are_damaged_are_put_right_by_a_full_pass(rig):
    rig.only(*ONE_WAY, *WORLDS["blocks with exceptions"])
    maps = rig.fast.maps
    for name in ("subjects", "peers", "pairs", "blocks"):
        rows = maps[name].items()
        maps[name].remove(list(rows)[:1])
    key = next(iter(maps["peers"].items()))
    maps["peers"].put(key, b"\7" * 8)
    rig.engine.sync(rig.store.snapshot())
    found = rig.fast.driver.read()
    assert found == {name: dict(rig.fast.compiled.tables[name]) for name in found}


def test_a_gone_pods_programs_and_rows_go(rig):
    rig.only(*ONE_WAY)
    assert answers(rig, SAME_NODE) == ["answer"] * 4
    rig.fast.pods(local_pods(rig.spaces, ("a", "c")))
    assert not any(rig.carried(one) for one in SAME_NODE)
    assert len(rig.fast.maps[flows.PODS].items()) == 4
    assert len(attached_programs(rig.fast.driver.folder)) == 6
    assert answers(rig, SAME_NODE) == ["answer"] * 4
    assert not any(rig.carried(one) for one in SAME_NODE)
    rig.fast.pods(local_pods(rig.spaces))
    assert answers(rig, SAME_NODE[:1]) == ["answer"]
    assert rig.carried(SAME_NODE[0])


def test_a_pod_that_is_cut_off_leaves_nothing_to_the_next_one(rig):
    """Without the fast path's owner: it may be in the middle of a long pass."""
    rig.only(policy("shop/p", web(app="web"), ingress=(rule(),)))
    ways = [Try("x", "a", 0, TCP, 80), Try("b", "a", 0, UDP, 80), Try("b", "a", 1, TCP, 80)]
    assert answers(rig, [*ways, Try("c", "b", 0, TCP, 80)]) == ["answer"] * 4
    assert [rig.carried(one) for one in ways] == [True] * 3
    address = ipaddress.ip_address(PODS["a"][0]).packed
    assert in_node(rig.spaces, lambda: fastpath.forget([address], Places(bpffs=rig.bpffs))) == 2
    assert [rig.carried(one) for one in ways] == [False, False, True]
    assert rig.carried(Try("c", "b", 0, TCP, 80))
    assert answers(rig, ways[:1], 0.3) == ["silence"], "it may not send any more"
    rig.fast.pods(local_pods(rig.spaces))
    assert answers(rig, ways[:1]) == ["answer"]
    assert rig.carried(ways[0])


def test_a_pod_of_the_node_that_is_not_served_is_no_remote_one(rig):
    rig.only(policy("shop/p", ingress=(rule(Peer(pods=web(app="db"))),)))
    rig.fast.pods(local_pods(rig.spaces, ("a", "c")))
    tries = [Try("c", "b", family, TCP, 80) for family in (0, 1)]
    assert answers(rig, tries, 0.4) == ["silence"] * 2
    rig.fast.pods(local_pods(rig.spaces, ("a", "b")))
    assert answers(rig, tries, 0.4) == ["silence"] * 2


def test_an_interface_that_is_not_there_is_named_and_others_are_served(rig):
    missing = LocalPod("shop/z", "pz", b"\2" * 6, (b"\x0a\xf4\x01\x77",))
    rig.fast.pods([missing, *local_pods(rig.spaces)])
    assert rig.fast.problems() == ["shop/z: there is no interface pz"]
    rig.only(*ONE_WAY)
    assert answers(rig, SAME_NODE[:1]) == ["answer"]
    assert rig.carried(SAME_NODE[0])
    rig.fast.pods(local_pods(rig.spaces))
    assert rig.fast.problems() == []


def test_an_exit_that_comes_later_gets_its_programs(rig):
    rig.fast._uplinks = ("eth0", "later")
    rig.fast.apply()
    assert rig.fast.problems() == ["there is no Ethernet interface later"]
    name = rig.spaces.names["node"]
    for _ in range(2):
        run(name, "ip link add later type veth peer name later2")
        rig.fast.apply()
        assert rig.fast.problems() == []
        assert len(programs_on(rig, "later")) == 1
        run(name, "ip link del later")
        rig.fast.apply()
        assert len(attached_programs(rig.fast.driver.folder)) == 8


def test_as_filters_the_programs_do_the_same(proxy):
    with pins() as bpffs:
        rig = FastRig.__new__(FastRig)
        rig.filters = True
        rig.__init__(proxy.spaces, proxy.traffic, bpffs)
        try:
            rig.only(*ONE_WAY)
            assert answers(rig, SAME_NODE) == ["answer"] * 4
            assert programs_on(rig, "pa") == []
            before = rig.crossed()
            assert answers(rig, SAME_NODE) == ["answer"] * 4
            assert rig.crossed() == before
            rig.fast.close()
            rig.engine.fast = rig.make()
            assert len(rig.fast._places) == 8
            rig.fast.pods(local_pods(rig.spaces))
            assert answers(rig, [Try("b", "a", 0, TCP, 80), *SAME_NODE], 0.5) == ["silence", *["answer"] * 4]
        finally:
            rig.close()
    assert "bpf" not in run(proxy.spaces.names["node"], "tc filter show dev pa ingress")


def test_removing_leaves_nothing(proxy):
    with pins() as bpffs:
        rig = FastRig(proxy.spaces, proxy.traffic, bpffs)
        rig.only(*ONE_WAY)
        assert programs_on(rig, "pa")
        rig.close()
        assert not os.path.exists(f"{bpffs}/pycni")
        assert programs_on(rig, "pa") == []
        assert "static" not in run(rig.spaces.names["node"], "bridge fdb show dev pa")


@pytest.mark.parametrize("leftover", [False, True], ids=["by its owner", "of an earlier life"])
def test_connections_go_on_when_the_programs_are_taken_away(proxy, leftover):
    """Those whose one side only listens too: a packet from their middle is not taken for a first one."""
    with pins() as bpffs, contextlib.ExitStack() as stack:
        rig = FastRig(proxy.spaces, proxy.traffic, bpffs)
        stack.callback(rig.engine.plane.driver.close)
        stack.callback(rig.engine.plane.driver.remove)
        rig.only(*ONE_WAY)
        ends = []
        for family in (0, 1):
            for number, protocol in enumerate((TCP, UDP)):
                port = 29900 + number
                server = stack.enter_context(Socket(rig.spaces, "b", protocol, PODS["b"][family], port))
                client = stack.enter_context(Socket(rig.spaces, "a", protocol, PODS["a"][family], port))
                if protocol == TCP:
                    server.sock.listen()
                client.connect(PODS["b"][family], port)
                client.sock.send(b"hello")
                if protocol == TCP:
                    speaker, _ = server.sock.accept()
                    stack.callback(speaker.close)
                else:
                    speaker = server.sock
                    assert server.receive() == b"hello"
                    speaker.connect((PODS["a"][family], port))
                ends.append((speaker, client))
        for speaker, client in ends:
            speaker.send(b"one")
            assert client.receive() == b"one"
        if leftover:
            rig.fast.close()
            assert in_node(rig.spaces, lambda: fastpath.leftovers(Places(bpffs=bpffs)))
        else:
            rig.fast.remove()
            rig.fast.close()
        assert programs_on(rig, "pa") == []
        for speaker, client in ends:
            speaker.send(b"two")
            assert client.receive() == b"two"
        assert answers(rig, [Try("b", "a", 0, TCP, 80)], 0.3) == ["silence"]


def test_what_lacks_is_said(proxy, monkeypatch, tmp_path):
    places = Places(cache=str(tmp_path))
    assert fastpath.missing(places) == ""
    monkeypatch.setattr(bpf_build, "missing", lambda _: "the Python package bcc is not installed")
    with pytest.raises(ConfigError, match="policy='ebpf': the Python package bcc is not installed"):
        fastpath.make("n1", places=places)
    monkeypatch.setattr(bpf_build, "kernel", lambda: (5, 4))
    assert "is older than 5.11" in fastpath.missing(places)


def test_ours_come_before_programs_that_translate(rig):
    """Whatever the order in which they came: a node port is none of our business before it is translated."""
    name = rig.spaces.names["node"]
    [ours] = programs_on(rig, "eth0")
    rig.fast._hooks.detach(sorted(rig.fast._places))
    rig.fast._places.clear()
    obj = rig.fast.driver.object
    fd = bpf.get(os.path.join(obj.folder, "programs", "uplink_out"))
    try:
        link = in_node(
            rig.spaces, lambda: bpf.create_link(fd, socket.if_nametoindex("eth0"), bpf.TCX_INGRESS, name)
        )
        try:
            rig.fast.pods(local_pods(rig.spaces))
            found = programs_on(rig, "eth0")
            assert found[0] == ours
            assert len(found) == 2
        finally:
            os.close(link)
    finally:
        os.close(fd)


def test_services_by_sockets_and_by_the_uplink_work_with_it():
    """A socket's connection to a service is one to its endpoint: carried. A node port's is the proxy's, then nftables'."""
    with sockets() as proxy:
        proxy.apply({}, {})
        service = svc(type="NodePort")
        with fast_rig(proxy) as rig:
            proxy.apply({service.meta.key: service}, {piece.meta.key: piece for piece in eps("b")})
            assert len(programs_on(rig, "eth0")) == 2
            port = service.ports[0].node_port

            def verdicts(family, patience):
                dials = [
                    rig.dial(Try(client, "b", family, TCP, 80), wait)._replace(address=address, port=number)
                    for client, address, number, wait in (
                        ("a", VIP[family], 80, 3),
                        ("c", VIP[family], 80, patience),
                        ("out", NODE[family], port, patience),
                    )
                ]
                return [item.verdict for item in rig._traffic.dial(dials)]

            for closed, told in ((False, ["answer"] * 3), (True, ["answer", "silence", "silence"])):
                rig.only(*(ONE_WAY if closed else ()))
                assert [verdicts(family, 0.5 if closed else 3) for family in (0, 1)] == [told] * 2
            for family in (0, 1):
                assert rig.carried(Try("a", "b", family, TCP, 80))
                assert not rig.carried(Try("out", "b", family, TCP, 80))
