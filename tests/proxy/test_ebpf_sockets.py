"""Services in the socket layer: what programs in a pod see of them, with real sockets of both families."""

from __future__ import annotations

import collections
import errno
import random
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from pycni.model.family import Family
from pycni.model.kube import TCP, UDP
from pycni.model.service import Frontend, Kind, Packet, Verdict
from pycni_proxy.ebpf import layout
from tests.proxy import ebpf_rig
from tests.proxy.ebpf_rig import CLIENT, NODE, PORT, Rig, frontend, send, server_address, vip

pytestmark = pytest.mark.root
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
PROTOCOLS = pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
SERVERS = 6


@pytest.fixture(scope="module")
def world() -> Iterator[Rig]:
    with ebpf_rig.rig(SERVERS) as made:
        yield made


@pytest.fixture
def rig(world: Rig) -> Iterator[Rig]:
    yield world
    world.apply()


def ask(rig: Rig, protocol: int, address: str, **where: str) -> int:
    return rig.ask_tcp(address, **where) if protocol == TCP else rig.ask_udp(address, **where)


@FAMILIES
@PROTOCOLS
def test_rr_goes_exactly_in_turn(rig: Rig, family: Family, protocol: int) -> None:
    rig.apply(frontend(0, family, [0, 1, 2], protocol=protocol, scheduler="rr"))
    assert [ask(rig, protocol, vip(0, family)) for _ in range(9)] == [0, 1, 2] * 3


@FAMILIES
@PROTOCOLS
def test_without_a_scheduler_every_endpoint_is_met(rig: Rig, family: Family, protocol: int) -> None:
    rig.apply(frontend(0, family, range(SERVERS), protocol=protocol))
    seen = collections.Counter(ask(rig, protocol, vip(0, family)) for _ in range(120))
    assert set(seen) == set(range(SERVERS))
    assert max(seen.values()) < 60


@FAMILIES
def test_the_node_itself_is_served(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [3]))
    assert rig.ask_tcp(vip(0, family), where="node") == 3


@FAMILIES
def test_a_tcp_peer_is_shown_as_the_service(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [1]))
    with rig.socket(int(family), socket.SOCK_STREAM) as sock:
        sock.connect((vip(0, family), 80))
        assert sock.getpeername()[:2] == (vip(0, family), 80)
        assert sock.recv(1) == b"\1"


@FAMILIES
def test_a_connected_udp_socket_sees_the_service_only(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [1], protocol=UDP))
    with rig.socket(int(family), socket.SOCK_DGRAM) as sock:
        sock.connect((vip(0, family), 80))
        assert sock.getpeername()[:2] == (vip(0, family), 80)
        sock.send(b"?")
        answer, peer = sock.recvfrom(16)
        assert (answer, peer[:2]) == (b"\1", (vip(0, family), 80))
        sock.send(b"?")
        answer, _, _, peer = sock.recvmsg(16)
        assert (answer, peer[:2]) == (b"\1", (vip(0, family), 80))


def test_an_ipv6_socket_reaches_an_ipv4_service_by_its_mapped_address(rig: Rig) -> None:
    mapped = f"::ffff:{vip(0, Family.V4)}"
    rig.apply(frontend(0, Family.V4, [2]), frontend(1, Family.V4, [2], protocol=UDP))
    with rig.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.connect((mapped, 80))
        assert sock.recv(1) == b"\2"
        assert sock.getpeername()[:2] == (mapped, 80)
    mapped = f"::ffff:{vip(1, Family.V4)}"
    for connect in (False, True):
        with rig.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if connect:
                sock.connect((mapped, 80))
                sock.send(b"?")
            else:
                sock.sendto(b"?", (mapped, 80))
            answer, peer = sock.recvfrom(16)
            assert (answer, peer[:2]) == (b"\2", (mapped, 80))


@FAMILIES
def test_one_socket_may_speak_to_a_service_and_to_its_endpoint(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [1], protocol=UDP))
    with rig.socket(int(family), socket.SOCK_DGRAM) as sock:
        sock.connect((vip(0, family), 80))
        sock.connect((server_address(1, family), PORT))
        assert sock.getpeername()[:2] == (server_address(1, family), PORT)


@FAMILIES
@PROTOCOLS
def test_affinity_keeps_a_client_at_one_endpoint_until_it_is_idle(
    rig: Rig, family: Family, protocol: int
) -> None:
    rig.apply(frontend(0, family, range(SERVERS), protocol=protocol, affinity_s=1, scheduler="rr"))
    first = ask(rig, protocol, vip(0, family))
    assert {ask(rig, protocol, vip(0, family)) for _ in range(10)} == {first}
    time.sleep(1.3)
    # rr counts kept connections as turns too, so the next free choice is another one.
    assert ask(rig, protocol, vip(0, family)) == (first + 11) % SERVERS


@FAMILIES
def test_affinity_ends_with_its_endpoint_and_survives_other_changes(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, range(SERVERS), affinity_s=600))
    first = rig.ask_tcp(vip(0, family))
    others = [number for number in range(SERVERS) if number != first]
    rig.apply(frontend(0, family, sorted([first, *others[:2]]), affinity_s=600))
    assert {rig.ask_tcp(vip(0, family)) for _ in range(8)} == {first}
    rig.apply(frontend(0, family, others, affinity_s=600))
    second = rig.ask_tcp(vip(0, family))
    assert second != first
    assert {rig.ask_tcp(vip(0, family)) for _ in range(8)} == {second}


@FAMILIES
def test_lc_follows_the_open_connections(rig: Rig, family: Family) -> None:
    entry = frontend(0, family, [0, 1, 2], scheduler="lc")
    rig.apply(entry)
    held: dict[int, list[socket.socket]] = {0: [], 1: [], 2: []}
    try:
        for _ in range(30):
            sock = rig.socket(int(family), socket.SOCK_STREAM)
            sock.connect((vip(0, family), 80))
            held[sock.recv(1)[0]].append(sock)
        assert [len(held[number]) for number in range(3)] == [10, 10, 10]
        assert [state.active for state in rig.plane.driver.targets(entry.key)] == [10, 10, 10]
        for sock in held[1]:
            sock.close()
        held[1] = []
        for _ in range(10):
            sock = rig.socket(int(family), socket.SOCK_STREAM)
            sock.connect((vip(0, family), 80))
            held[sock.recv(1)[0]].append(sock)
        assert [len(held[number]) for number in range(3)] == [10, 10, 10]
    finally:
        for socks in held.values():
            for sock in socks:
                sock.close()
    assert [state.active for state in rig.plane.driver.targets(entry.key)] == [0, 0, 0]


@FAMILIES
@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_one_source_always_meets_the_same_endpoint(rig: Rig, family: Family, scheduler: str) -> None:
    rig.apply(frontend(0, family, range(SERVERS), scheduler=scheduler))
    assert len({rig.ask_tcp(vip(0, family)) for _ in range(12)}) == 1


@FAMILIES
@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_with_ports_in_the_hash_one_source_meets_several(rig: Rig, family: Family, scheduler: str) -> None:
    rig.apply(frontend(0, family, range(SERVERS), scheduler=scheduler, sched_flags=("flag-2",)))
    assert len({rig.ask_tcp(vip(0, family)) for _ in range(40)}) >= 3


@FAMILIES
def test_dh_sends_everybody_to_one_endpoint_per_service(rig: Rig, family: Family) -> None:
    rig.apply(*(frontend(number, family, range(SERVERS), scheduler="dh") for number in range(16)))
    found = [
        {rig.ask_tcp(vip(number, family), where=where) for where in ("client", "node")}
        for number in range(16)
    ]
    assert all(len(item) == 1 for item in found)
    assert len(set.union(*found)) >= 3


@FAMILIES
def test_tcp_to_nobody_is_refused_at_once(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, []))
    with rig.socket(int(family), socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((vip(0, family), 80))


@FAMILIES
@pytest.mark.parametrize(
    ("protocol", "empty"), [(TCP, Verdict.DROP), (UDP, Verdict.REJECT)], ids=["tcp-drop", "udp-reject"]
)
def test_other_traffic_to_nobody_is_left_to_nftables(
    rig: Rig, family: Family, protocol: int, empty: Verdict
) -> None:
    rig.apply(frontend(0, family, [], protocol=protocol, empty=empty))
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    with rig.socket(int(family), kind) as sock:
        sock.setblocking(False)
        code = sock.connect_ex((vip(0, family), 80))
        assert code in {0, errno.EINPROGRESS}
        if protocol == UDP:
            assert sock.getpeername()[:2] == (vip(0, family), 80)


@FAMILIES
def test_node_ports_are_at_the_node_address_and_nowhere_else(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [4], address="", port=30080, kind=Kind.NODE_PORT))
    assert rig.ask_tcp(NODE[family], 30080) == 4
    assert rig.ask_tcp(NODE[family], 30080, where="node") == 4
    for address in ("127.0.0.1" if family is Family.V4 else "::1", CLIENT[family]):
        with pytest.raises(ConnectionRefusedError):
            rig.ask_tcp(address, 30080)
    other = Family.V6 if family is Family.V4 else Family.V4
    with pytest.raises(ConnectionRefusedError):
        rig.ask_tcp(NODE[other], 30080)


@FAMILIES
def test_sockets_of_the_node_use_the_inside_pool(rig: Rig, family: Family) -> None:
    entry = frontend(0, family, [], kind=Kind.EXTERNAL_IP, empty=Verdict.DROP)
    inside = frontend(0, family, [5]).pool
    rig.apply(msgspec.structs.replace(entry, inside=inside, local_only=True))
    assert rig.ask_tcp(vip(0, family)) == 5


@FAMILIES
def test_namespaces_that_are_not_the_nodes_are_left_alone(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [0]))
    with rig.socket(int(family), socket.SOCK_DGRAM, "servers") as sock:
        sock.connect((server_address(0, family), 80))
        rig.apply(frontend(0, family, [1], protocol=UDP, address=server_address(0, family)))
        sock.connect((server_address(0, family), 80))
        sock.settimeout(0.3)
        # Translated, server 1 would answer; nobody listens at port 80 itself.
        sock.send(b"?")
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            sock.recv(1)


@FAMILIES
def test_an_unconnected_socket_stays_with_its_endpoint_while_that_is_there(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, range(SERVERS), protocol=UDP))
    with rig.socket(int(family), socket.SOCK_DGRAM) as sock:
        first = send(sock, vip(0, family))
        assert {send(sock, vip(0, family)) for _ in range(10)} == {first}
        rest = [number for number in range(SERVERS) if number != first]
        rig.apply(frontend(0, family, sorted([first, *rest[1:]]), protocol=UDP))
        assert send(sock, vip(0, family)) == first
        rig.apply(frontend(0, family, rest, protocol=UDP, draining=[first]))
        assert send(sock, vip(0, family)) == first, "it drains: old flows live on"
        assert first not in {rig.ask_udp(vip(0, family)) for _ in range(20)}
        rig.apply(frontend(0, family, rest, protocol=UDP))
        moved = send(sock, vip(0, family))
        assert moved != first
        assert {send(sock, vip(0, family)) for _ in range(10)} == {moved}


@FAMILIES
def test_a_connected_udp_socket_to_a_gone_endpoint_is_ended(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [1, 2], protocol=UDP), frontend(1, family, [1, 2], protocol=UDP))
    socks = {}
    try:
        for number in (0, 1):
            for _ in range(40):
                sock = rig.socket(int(family), socket.SOCK_DGRAM)
                sock.connect((vip(number, family), 80))
                sock.send(b"?")
                server = sock.recv(1)[0]
                if (number, server) in socks:
                    sock.close()
                else:
                    socks[number, server] = sock
        assert len(socks) == 4
        rig.apply(frontend(0, family, [2], protocol=UDP), frontend(1, family, [1, 2], protocol=UDP))
        rig.plane.driver.poll()
        with pytest.raises(ConnectionAbortedError):
            socks[0, 1].recv(1)
        for key in ((0, 2), (1, 1), (1, 2)):
            socks[key].send(b"?")
            assert socks[key].recv(1)[0] == key[1]
    finally:
        for sock in socks.values():
            sock.close()


@FAMILIES
def test_no_connection_fails_while_endpoints_are_replaced(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [0, 1]))
    failures: list[Exception] = []
    stop = threading.Event()
    count = 0

    def hammer() -> None:
        nonlocal count
        while not stop.is_set():
            try:
                rig.ask_tcp(vip(0, family))
                count += 1
            except OSError as exc:
                failures.append(exc)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for step in range(100 if family is Family.V4 else 30):
            pair = [step % SERVERS, (step + 1) % SERVERS]
            rig.apply(frontend(0, family, sorted(pair)))
            assert rig.ask_tcp(vip(0, family)) in pair
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert count > 20


@FAMILIES
def test_connections_are_counted_by_frontend(rig: Rig, family: Family) -> None:
    entries = [frontend(0, family, [0]), frontend(1, family, [0], protocol=UDP)]
    rig.apply(*entries)
    for _ in range(5):
        rig.ask_tcp(vip(0, family))
    for _ in range(3):
        rig.ask_udp(vip(1, family))
    counters = rig.plane.driver.counters()
    assert [counters[entry.key].connections for entry in entries] == [5, 3]
    rig.apply(entries[1])
    assert set(rig.plane.driver.counters()) == {entries[1].key}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_read_back_is_what_was_wanted_after_random_changes(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    entries: dict[tuple[int, Family], Frontend] = {}
    for _ in range(12):
        for _ in range(rng.randrange(1, 30)):
            number, family = rng.randrange(40), rng.choice(list(Family))
            if rng.random() < 0.3:
                entries.pop((number, family), None)
                continue
            servers = sorted(rng.sample(range(60), rng.choice((0, 1, 5, 8, 9, 40))))
            entries[number, family] = frontend(
                number,
                family,
                servers,
                protocol=rng.choice((TCP, UDP)),
                scheduler=rng.choice(("", "rr", "lc", "sh", "mh")),
                draining=[60] * (rng.random() < 0.2),
            )
        rig.apply(*entries.values())
        there = rig.plane.driver.read()
        assert {name: there[name] for name in rig.tables} == rig.tables


@FAMILIES
def test_the_evaluator_agrees_with_the_kernel(rig: Rig, family: Family) -> None:
    rig.apply(frontend(0, family, [1, 3, 5]), frontend(1, family, []))
    decide = rig.plane.compiler.decide
    source = ebpf_rig.packed(CLIENT[family])
    packet = Packet(source, 40000, ebpf_rig.packed(vip(0, family)), TCP, 80)
    decision = decide(rig.tables, packet)
    met = {rig.ask_tcp(vip(0, family)) for _ in range(60)}
    assert {item.address for item in decision.targets} == {
        ebpf_rig.packed(server_address(number, family)) for number in met
    }
    nobody = decide(rig.tables, packet._replace(destination=ebpf_rig.packed(vip(1, family))))
    assert nobody.verdict is Verdict.REJECT
    outside = decide(rig.tables, packet._replace(source=bytes(len(source))))
    assert not outside.targets
    assert outside.verdict is None


def test_counts_of_open_connections_are_forgotten_with_their_endpoints(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.apply(frontend(0, Family.V4, [0, 1], scheduler="lc"))
    for _ in range(6):
        rig.ask_tcp(vip(0, Family.V4))
    rig.apply(frontend(0, Family.V4, [1], scheduler="lc"))
    monkeypatch.setattr("pycni_proxy.ebpf.driver.SWEEP_S", 0.0)
    rig.plane.driver.poll()
    left = ebpf_rig.driver(rig.plane)._maps["open"].items()
    assert {layout.unpack_target(key[8:28]).address for key in left} == {
        ebpf_rig.packed(server_address(1, Family.V4))
    }
