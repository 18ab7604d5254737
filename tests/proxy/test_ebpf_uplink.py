"""TCP from outside by the uplink's programs: who answers, who sees whom, and that nothing is ever torn between two."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from pycni.kernel import bpf
from pycni.model.kube import TCP, SlicePort
from pycni_proxy import ebpf
from pycni_proxy.ebpf import uplink
from pycni_proxy.ebpf.layout import LEFT, pack_address
from tests.proxy.cases import NODE_PORT, PORTS, eps, svc, with_facts
from tests.proxy.dataplanes import sockets
from tests.proxy.rig import FACTS, PATIENCE_S, Rig, Visit
from tests.proxy.topology import BRIDGE, NODE, OUTER, OUTSIDE, PODS
from tests.proxy.traffic import Dial
from tests.proxy.uplink_rig import (
    Sniffer,
    connected,
    connections,
    counted,
    family_of,
    inside,
    listening,
    next_life,
    own_sums,
    sock_driver,
    stream,
    taken,
    too_big,
)
from tests.proxy.uplink_rig import uplink as uplink_of
from tests.unit.service_world import pack

pytestmark = pytest.mark.root
BOTH = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
SOURCES = {0: [f"192.0.2.{n}" for n in range(20, 60)], 1: [f"2001:db8:9::{n}" for n in range(20, 60)]}
LB, EXTERNAL = OUTER["lb"], OUTER["ext"]
EVERYBODY = ("a", "b", "x", "y")
MEGABYTE = 1 << 20
STREAM_PORT = 7070
STREAM_PORTS = tuple(item for item in PORTS if item.protocol == TCP)


@pytest.fixture(scope="module")
def node() -> Iterator[Rig]:
    with sockets() as made:
        for family, length in ((0, 32), (1, 128)):
            lines = "".join(
                f"addr add {address}/{length} dev lo{' nodad' if family else ''}\n"
                for address in SOURCES[family]
            )
            command = ["ip", f"-{6 if family else 4}", "-n", made.spaces.names["out"], "-batch", "-"]
            subprocess.run(command, input=lines, text=True, check=True)
        yield made


def put(node: Rig, service, slices, facts=FACTS) -> None:
    node.apply({service.meta.key: service}, {item.meta.key: item for item in slices}, facts)


def ask(node: Rig, addresses, address: str, port: int = 80) -> list[str]:
    """Who answers each source, in order; all at once."""
    path = node.spaces.netns_of("out")
    outcomes = node.traffic.dial([Dial(path, source, address, port, TCP, PATIENCE_S) for source in addresses])
    assert {outcome.verdict for outcome in outcomes} == {"answer"}, outcomes
    return [outcome.name for outcome in outcomes]


def hooks(node: Rig) -> list[list[int]]:
    """Programs on the uplink, both ways."""

    def read() -> list[list[int]]:
        index = socket.if_nametoindex("eth0")
        return [bpf.attached(index, hook) for hook in (bpf.TCX_INGRESS, bpf.TCX_EGRESS)]

    return node.inside(read)


@BOTH
@pytest.mark.parametrize(
    ("place", "port"), [(NODE, NODE_PORT), (LB, 80), (EXTERNAL, 80)], ids=["node-port", "lb", "external"]
)
@pytest.mark.parametrize("local", [False, True], ids=["cluster", "local"])
def test_tcp_from_outside_passes_the_uplinks_programs_and_no_rule(node, family, place, port, local):
    put(node, svc(lb="lb", external="ext", external_local=local), eps("a", "x"))
    before = counted(node, place[family], port, 0)
    outcomes = node.dial([Visit("out", place[family], port, TCP)] * 12)
    answered = {(outcome.name, outcome.seen) for outcome in outcomes}
    client = OUTSIDE["out"][family]
    if local:
        assert answered == {("a", client)}
    else:
        assert answered == {("a", BRIDGE[family]), ("x", NODE[family])}
    assert len(taken(node, place[family])) >= 12
    assert counted(node, place[family], port, 0) == before + 12
    assert counted(node, place[family], port, 1) == 0, "no connection met the rules"


@BOTH
def test_rr_goes_in_turn_for_all_clients_together(node, family):
    put(node, svc(lb="lb", annotations={"scheduler": "rr"}), eps(*EVERYBODY))
    names = [ask(node, [source], LB[family])[0] for source in SOURCES[family][:12]]
    assert Counter(names) == Counter(dict.fromkeys(EVERYBODY, 3))
    assert names[:4] * 3 == names


@BOTH
@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_a_source_meets_the_same_endpoint_again_and_sources_are_spread(node, family, scheduler):
    put(node, svc(lb="lb", annotations={"scheduler": scheduler}), eps(*EVERYBODY))
    first = ask(node, SOURCES[family], LB[family])
    assert ask(node, SOURCES[family], LB[family]) == first
    assert set(first) == set(EVERYBODY)
    if scheduler == "mh":
        put(node, svc(lb="lb", annotations={"scheduler": scheduler}), eps("a", "x", "y"))
        after = ask(node, SOURCES[family], LB[family])
        moved = [now for was, now in zip(first, after, strict=True) if was != now]
        gone = first.count("b")
        assert gone <= len(moved) <= gone + len(first) // 4


@BOTH
def test_by_default_everybody_gets_a_share(node, family):
    put(node, svc(lb="lb"), eps(*EVERYBODY))
    names = Counter(ask(node, SOURCES[family] * 3, LB[family]))
    assert set(names) == set(EVERYBODY)
    assert max(names.values()) < 60


@BOTH
def test_affinity_keeps_a_client_at_one_endpoint(node, family):
    put(node, svc(lb="lb", affinity_s=600), eps(*EVERYBODY))
    first = ask(node, SOURCES[family], LB[family])
    assert len(set(first)) > 1
    assert ask(node, SOURCES[family], LB[family]) == first
    put(node, svc(lb="lb", affinity_s=600), eps("a", "b", "x"))
    after = ask(node, SOURCES[family], LB[family])
    assert [now for was, now in zip(first, after, strict=True) if was != "y"] == [
        n for n in first if n != "y"
    ]
    assert "y" not in after


@BOTH
@pytest.mark.parametrize("after", ["a:draining", "a:gone"])
def test_connections_stay_where_they_are_when_the_endpoint_goes(node, family, after):
    put(node, svc(lb="lb"), eps("a", "x"))
    held = node.hold([Visit("out", LB[family], 80, TCP)] * 8)
    names = [outcome.name for outcome, _ in held]
    assert set(names) == {"a", "x"}
    put(node, svc(lb="lb"), eps(after, "x"))
    numbers = [number for _, number in held]
    assert [outcome.name for outcome in node.traffic.ask(numbers)] == names
    assert set(ask(node, SOURCES[family][:12], LB[family])) == {"x"}
    node.traffic.drop(numbers)


@BOTH
def test_a_restarted_agent_finds_programs_and_connections(node, family):
    put(node, svc(lb="lb", annotations={"scheduler": "rr"}), eps(*EVERYBODY))
    held = node.hold([Visit("out", LB[family], 80, TCP)] * 6)
    before = hooks(node)
    assert [len(ids) for ids in before] == [1, 1]
    next_life(node)
    assert hooks(node) == before, "nothing is loaded or attached again"
    numbers = [number for _, number in held]
    assert [o.name for o in node.traffic.ask(numbers)] == [outcome.name for outcome, _ in held]
    assert len(taken(node, LB[family])) >= 6
    node.traffic.drop(numbers)


@BOTH
def test_an_upgrade_swaps_the_programs_under_connections(node, family, monkeypatch):
    put(node, svc(lb="lb"), eps(*EVERYBODY))
    held = node.hold([Visit("out", LB[family], 80, TCP)] * 6)
    before = hooks(node)
    original = uplink.source
    monkeypatch.setattr(
        "pycni_proxy.ebpf.uplink.source",
        lambda cache: original(cache)._replace(text=original(cache).text + f"\n/* newer {family} */\n"),
    )
    next_life(node)
    after = hooks(node)
    assert [len(ids) for ids in after] == [1, 1]
    assert all(was != now for was, now in zip(before, after, strict=True))
    numbers = [number for _, number in held]
    assert [o.name for o in node.traffic.ask(numbers)] == [outcome.name for outcome, _ in held]
    node.traffic.drop(numbers)


@BOTH
def test_what_nftables_has_begun_stays_with_it_when_the_programs_come(node, family):
    put(node, svc(lb="lb"), eps(*EVERYBODY), with_facts(uplink=""))
    held = node.hold([Visit("out", LB[family], 80, TCP)] * 12)
    names = [outcome.name for outcome, _ in held]
    next_life(node)
    assert [len(ids) for ids in hooks(node)] == [1, 1]
    numbers = [number for _, number in held]
    for _ in range(3):
        assert [outcome.name for outcome in node.traffic.ask(numbers)] == names
    assert not connections(node)
    ask(node, SOURCES[family][:4], LB[family])
    assert len(taken(node, LB[family])) == 4
    node.traffic.drop(numbers)


@BOTH
def test_at_first_openings_are_only_watched_and_stay_with_nftables(node, family, monkeypatch):
    put(node, svc(lb="lb"), eps(*EVERYBODY))
    original = node._make

    def settling(facts):
        first, *rest = original(facts)
        first.driver.uplink._settle_ns = 3600 * 10**9
        return (first, *rest)

    next_life(node, with_facts(uplink=""))
    monkeypatch.setattr(node, "_make", settling)
    next_life(node)
    ask(node, SOURCES[family][:4], LB[family])
    found = connections(node)
    assert len(found) == 4
    assert all(conn.flags == LEFT for _, conn, _ in found)
    assert counted(node, LB[family], 80, 1) >= 4
    config = uplink_of(node)._object.maps["config"]
    raw = config.get(bytes(4))
    config.put(bytes(4), bytes(8) + raw[8:])
    # The same client's port again is taken for another try of the same connection.
    port = int.from_bytes(found[0][0].ports[:2], "big")
    source = next(s for s in SOURCES[family] if pack_address(pack(s)) == found[0][0].client)
    again(node, source, port, LB[family])
    assert not taken(node, LB[family])
    ask(node, SOURCES[family][4:8], LB[family])
    assert len(taken(node, LB[family])) == 4


def again(node: Rig, source: str, port: int, address: str, to: int = 80) -> bytes:
    """A connection from a port that was used before; the answer."""
    with inside(node, "out", lambda: socket.socket(family_of(address), socket.SOCK_STREAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.settimeout(PATIENCE_S)
        sock.bind((source, port))
        sock.connect((address, to))
        sock.sendall(b"who\n")
        return sock.recv(100)


@BOTH
def test_one_port_of_a_client_may_be_at_one_endpoint_twice(node, family):
    """Behind the programs both would be the same connection: the second one is left to nftables."""
    put(node, svc(lb="lb", external="ext", external_local=True), eps("a"))
    with contextlib.ExitStack() as stack:
        socks = []
        for address in (LB[family], EXTERNAL[family]):
            sock = stack.enter_context(
                inside(node, "out", lambda: socket.socket(family_of(LB[family]), socket.SOCK_STREAM))
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(PATIENCE_S)
            sock.bind((SOURCES[family][0], 45000))
            sock.connect((address, 80))
            socks.append(sock)
        for _ in range(3):
            for sock in socks:
                sock.sendall(b"who\n")
                assert sock.recv(100).decode() == f"a {SOURCES[family][0]}\n"
    flags = {
        where.other: conn.flags for where, conn, _ in connections(node) if where.ports[:2] == b"\xaf\xc8"
    }
    assert not flags[pack_address(pack(LB[family]))] & LEFT
    assert flags[pack_address(pack(EXTERNAL[family]))] & LEFT


@BOTH
def test_a_port_that_was_used_for_a_service_may_be_used_for_its_endpoint(node, family):
    put(node, svc(lb="lb", external_local=True), eps("a"))
    source = SOURCES[family][5]
    for _ in range(3):
        assert again(node, source, 45002, LB[family]).startswith(b"a ")
        assert again(node, source, 45002, PODS["a"][family], 8080).startswith(b"a ")


@BOTH
def test_a_port_used_again_may_meet_another_endpoint(node, family):
    put(node, svc(lb="lb", annotations={"scheduler": "rr"}), eps(*EVERYBODY))
    met = {again(node, SOURCES[family][0], 45001, LB[family]).split()[0] for _ in range(8)}
    assert met == {name.encode() for name in EVERYBODY}
    assert [w for w, _, _ in taken(node, LB[family]) if w.ports[:2] == b"\xaf\xc9"]


@BOTH
@pytest.mark.parametrize("local", [False, True], ids=["cluster", "local"])
def test_large_transfers_arrive_unchanged_both_ways(node, family, local):
    put(node, svc(lb="lb", external_local=local, ports=stream_ports()), stream_eps())
    source = SOURCES[family][0]
    with (
        listening(node, "a", PODS["a"][family], STREAM_PORT) as server,
        connected(node, server, source, LB[family], 80) as (client, accepted),
    ):
        seen = accepted.getpeername()[0]
        assert seen == (source if local else BRIDGE[family])
        stream(client, accepted, 24 * MEGABYTE)
        stream(accepted, client, 24 * MEGABYTE)
        port = client.getsockname()[1].to_bytes(2, "big")
        [reply] = [reply for where, _, reply in taken(node, LB[family]) if where.ports[:2] == port]
        # Segments came in pieces far larger than the link's: checksums were left to the device.
        assert 24 * MEGABYTE / reply.packets > 3000, reply


@BOTH
@pytest.mark.parametrize(
    "devices",
    [
        [("out", "node"), ("a", "eth0")],
        [("node", "eth0"), ("node", "pa")],
        [("out", "node"), ("a", "eth0"), ("node", "eth0"), ("node", "pa")],
    ],
    ids=["before", "behind", "everywhere"],
)
def test_checksums_are_right_whoever_writes_them(node, family, devices):
    """Before the programs the sender writes them, behind them the node does, from what the programs made of them."""
    put(node, svc(lb="lb", external_local=True, ports=stream_ports()), stream_eps())
    with (
        own_sums(node, *devices),
        listening(node, "a", PODS["a"][family], STREAM_PORT) as server,
        connected(node, server, SOURCES[family][4], LB[family], 80) as (client, accepted),
    ):
        stream(client, accepted, MEGABYTE)
        stream(accepted, client, MEGABYTE)


def stream_ports():
    return tuple(
        msgspec.structs.replace(item, target_port=STREAM_PORT, node_port=NODE_PORT) for item in STREAM_PORTS
    )


def stream_eps():
    return eps(
        "a", ports=tuple(SlicePort(port=STREAM_PORT, name=item.name, protocol=TCP) for item in STREAM_PORTS)
    )


@BOTH
@pytest.mark.parametrize("local", [False, True], ids=["cluster", "local"])
def test_an_error_about_an_answer_reaches_the_endpoint(node, family, local):
    """A router on the way to the client says what is too big for it."""
    put(node, svc(lb="lb", external_local=local, ports=stream_ports()), stream_eps())
    mtu = 1300
    level, option = ((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 24))[family]
    sniffer = Sniffer(node, "out", "br0", LB[family])
    try:
        with (
            listening(node, "a", PODS["a"][family], STREAM_PORT) as server,
            connected(node, server, SOURCES[family][1], LB[family], 80) as (client, accepted),
        ):
            accepted.sendall(b"x" * 100)
            assert client.recv(100)
            assert accepted.getsockopt(level, option) == 1500
            body, protocol = too_big(sniffer.next(0x18), mtu)
            with inside(
                node, "out", lambda: socket.socket(family_of(LB[family]), socket.SOCK_RAW, protocol)
            ) as raw:
                raw.sendto(body, (LB[family], 0))
            deadline = time.monotonic() + 5
            while accepted.getsockopt(level, option) != mtu:
                assert time.monotonic() < deadline, accepted.getsockopt(level, option)
                time.sleep(0.05)
            stream(accepted, client, MEGABYTE)
    finally:
        sniffer.close()


@BOTH
def test_an_error_about_a_request_reaches_the_client(node, family):
    """Behind the node is less room than the client was told: it hears of it and sends less at a time."""
    put(node, svc(lb="lb", external_local=True, ports=stream_ports()), stream_eps())
    mtu = 1300
    level, option = ((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 24))[family]
    with (
        listening(node, "a", PODS["a"][family], STREAM_PORT) as server,
        connected(node, server, SOURCES[family][2], LB[family], 80) as (client, accepted),
        smaller(node, "cni0", mtu),
    ):
        assert client.getsockopt(level, option) == 1500
        stream(client, accepted, MEGABYTE)
        assert client.getsockopt(level, option) == mtu


@contextlib.contextmanager
def smaller(node: Rig, device: str, mtu: int) -> Iterator[None]:
    command = ["ip", "-n", node.spaces.names["node"], "link", "set", device, "mtu"]
    subprocess.run([*command, str(mtu)], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, "1500"], check=True)


def test_answers_in_fragments_arrive(node):
    """An endpoint that allows it has its packets cut on the uplink: all pieces get the frontend's address."""
    put(node, svc(external="ext", type="NodePort", external_local=True, ports=stream_ports()), stream_eps())
    with (
        listening(node, "a", PODS["a"][0], STREAM_PORT) as server,
        connected(node, server, SOURCES[0][3], EXTERNAL[0], 80) as (client, accepted),
        smaller(node, "eth0", 1300),
    ):
        accepted.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        before = reassembled(node)
        stream(accepted, client, MEGABYTE // 4)
        assert reassembled(node) > before


def reassembled(node: Rig) -> int:
    """Datagrams the client's machine has put together so far."""

    def read() -> int:
        with open(f"/proc/self/task/{threading.get_native_id()}/net/snmp") as file:
            names, values = (line.split() for line in file if line.startswith("Ip:"))
        return int(values[names.index("ReasmOKs")])

    return inside(node, "out", read)


@BOTH
def test_a_fragmented_datagram_goes_by_nftables(node, family):
    put(node, svc(lb="lb"), eps("a"))
    with inside(node, "out", lambda: socket.socket(family_of(LB[family]), socket.SOCK_DGRAM)) as sock:
        sock.settimeout(PATIENCE_S)
        sock.bind((SOURCES[family][0], 0))
        sock.sendto(b"x" * 4000, (LB[family], 80))
        answer, peer = sock.recvfrom(100)
    assert answer.startswith(b"a ")
    assert peer[:2] == (LB[family], 80)


@BOTH
@pytest.mark.parametrize(
    "service",
    [
        svc(lb="lb", annotations={"scheduler": "lc"}),
        svc(lb="lb", source_ranges=("192.0.2.0/24", "2001:db8:9::/64")),
    ],
    ids=["lc", "source-ranges"],
)
def test_what_the_programs_do_not_serve_nftables_does(node, family, service):
    put(node, service, eps("a", "x"))
    before = len(taken(node, LB[family]))
    assert set(ask(node, SOURCES[family][:16], LB[family])) == {"a", "x"}
    assert len(taken(node, LB[family])) == before
    assert counted(node, LB[family], 80, 1) >= 16


@BOTH
def test_clients_that_are_routed_elsewhere_are_left_to_nftables(node, family):
    put(node, svc(lb="lb", external_local=True), eps("a"))
    ask(node, SOURCES[family][:4], LB[family])
    before = len(taken(node, LB[family]))
    assert before >= 4
    version, table = f"-{6 if family else 4}", "77"
    command = ["ip", version, "-n", node.spaces.names["node"], "rule"]
    subprocess.run(
        [*command, "add", "priority", "900", "to", SOURCES[family][0], "lookup", table], check=True
    )
    try:
        node.inside(lambda: uplink_of(node).attach())
        ask(node, SOURCES[family][4:8], LB[family])
        assert len(taken(node, LB[family])) == before, "a rule may send answers anywhere"
    finally:
        subprocess.run([*command, "del", "priority", "900"], check=True)
    node.inside(lambda: uplink_of(node).attach())
    ask(node, SOURCES[family][4:8], LB[family])
    assert len(taken(node, LB[family])) == before + 4


def test_the_sweep_forgets_only_what_is_over(node, monkeypatch):
    put(node, svc(lb="lb"), eps("a"))
    held = node.hold([Visit("out", LB[0], 80, TCP)] * 2)
    ask(node, SOURCES[0][:3], LB[0])
    monkeypatch.setattr("pycni_proxy.ebpf.uplink.SHORT_NS", 0)
    node.inside(uplink_of(node).sweep)
    assert len(uplink_of(node).conns.items()) == 4
    assert {outcome.name for outcome in node.traffic.ask([number for _, number in held])} == {"a"}
    node.traffic.drop([number for _, number in held])


def test_programs_go_with_the_plane_and_with_what_it_left(node):
    put(node, svc(lb="lb"), eps("a"))
    assert [len(ids) for ids in hooks(node)] == [1, 1]
    gone = node.inside(sock_driver(node).remove)
    assert "uplink/links/uplink_in" in gone
    assert hooks(node) == [[], []]
    assert ask(node, SOURCES[0][:4], LB[0]) == ["a"] * 4, "nftables serves alone"
    node.close()
    put(node, svc(lb="lb"), eps("a"))
    folder = uplink_of(node).folder
    places = ebpf.Places(bpffs=os.path.dirname(os.path.dirname(os.path.dirname(folder))))
    gone = node.inside(lambda: ebpf.leftovers(places))
    assert any(name.endswith("links/uplink_in") for name in gone)
    assert hooks(node) == [[], []]
    assert not os.path.exists(folder)
    node.close()


def test_a_node_without_an_uplink_has_no_programs_on_any(node):
    put(node, svc(lb="lb"), eps("a"))
    folder = uplink_of(node).folder
    next_life(node, with_facts(uplink=""))
    assert hooks(node) == [[], []]
    assert not os.path.exists(folder)
    assert ask(node, SOURCES[0][:4], LB[0]) == ["a"] * 4
    next_life(node)
    assert [len(ids) for ids in hooks(node)] == [1, 1]


def test_an_interface_that_comes_back_gets_its_programs_again(node):
    facts = with_facts(uplink="up0")
    put(node, svc(lb="lb"), eps("a"), facts)
    link = ["ip", "-n", node.spaces.names["node"], "link"]

    def there() -> list[int]:
        index = socket.if_nametoindex("up0")
        return [len(bpf.attached(index, hook)) for hook in (bpf.TCX_INGRESS, bpf.TCX_EGRESS)]

    try:
        for _ in range(2):
            subprocess.run([*link, "add", "up0", "type", "veth", "peer", "up1"], check=True)
            node.inside(sock_driver(node).read)
            assert node.inside(there) == [1, 1]
            subprocess.run([*link, "del", "up0"], check=True)
            node.inside(sock_driver(node).read)
            assert node.inside(lambda: os.listdir(f"{uplink_of(node).folder}/links")) == []
    finally:
        subprocess.run([*link, "del", "up0"], check=False, capture_output=True)
        node.close()
