"""The eBPF data plane's pure half: rows, Maglev, what it refuses, and that its bytes are what the C source reads."""

from __future__ import annotations

import collections
import ipaddress
import random
import re
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.service import (
    UNTOUCHED,
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Options,
    Packet,
    Pool,
    PortName,
    Target,
    Verdict,
)
from pycni_proxy.ebpf import layout, maglev
from pycni_proxy.ebpf.compile import FRONTENDS, MAGLEV, NODES, OUTSIDE, POOLS, SCHEDULERS, SockCompiler
from pycni_proxy.ebpf.layout import Meta

SOURCE = Path(__file__).parents[2] / "proxy/pycni_proxy/ebpf/sock.c"
NODE = ipaddress.ip_address("192.0.2.7").packed
FACTS = NodeFacts(
    name="n1",
    addresses=(NODE,),
    cluster_networks=(ipaddress.ip_network("10.244.0.0/16"), ipaddress.ip_network("fd00:10::/32")),
    families=tuple(Family),
)
COMPILER = SockCompiler(FACTS)
POD = ipaddress.ip_address("10.244.1.5").packed


def targets(count: int, family: Family = Family.V4) -> tuple[Target, ...]:
    base = "10.244.2.0" if family is Family.V4 else "fd00:10::"
    first = ipaddress.ip_address(base)
    return tuple(Target((first + number).packed, 8080, local=number % 2 == 0) for number in range(count))


def entry(count: int = 3, *, address: str = "10.96.0.1", protocol: int = TCP, **changes: object) -> Frontend:
    where = ipaddress.ip_address(address)
    made = Frontend(
        key=FrontendKey(Family.of(where), where.packed, protocol, 80),
        kind=Kind.CLUSTER_IP,
        name=PortName("ns", "svc", ""),
        pool=Pool(targets(count, Family.of(where))),
    )
    return msgspec.structs.replace(made, **changes)


def packet(source: bytes = POD, to: str = "10.96.0.1", **changes: object) -> Packet:
    made = Packet(source, 40000, ipaddress.ip_address(to).packed, TCP, 80)
    return made._replace(**changes)


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "uplink", "met"),
    [
        ({}, "eth0", True),
        ({}, "", False),
        ({"kind": Kind.NODE_PORT}, "eth0", True),
        ({"kind": Kind.EXTERNAL_IP}, "eth0", True),
        ({"kind": Kind.CLUSTER_IP}, "eth0", False),
        ({"protocol": UDP}, "eth0", False),
        ({"count": 0}, "eth0", False),
        ({"options": Options(scheduler="mh")}, "eth0", True),
        ({"options": Options(scheduler="wlc")}, "eth0", False),
        ({"pool": Pool((Target(NODE, 30080, local=True),))}, "eth0", False),
        ({"pool": Pool((Target(NODE, 8080, local=True),))}, "eth0", True),
    ],
)
def test_the_uplink_serves_tcp_to_external_addresses(
    changes: dict[str, object], uplink: str, met: bool
) -> None:
    compiler = SockCompiler(msgspec.structs.replace(FACTS, uplink=uplink))
    made = entry(**{"kind": Kind.LOAD_BALANCER, **changes})  # type: ignore[arg-type]
    assert (OUTSIDE in compiler.rows([made])) is met


def test_only_cluster_policy_hides_the_source_of_clients_outside() -> None:
    compiler = SockCompiler(msgspec.structs.replace(FACTS, uplink="eth0"))
    outside = ipaddress.ip_address("198.51.100.9").packed
    made = entry(kind=Kind.LOAD_BALANCER)
    everybody = frozenset(made.pool.targets)
    assert compiler.decide(compiler.rows([made]), packet(outside)) == (None, everybody, everybody)
    near = Pool(made.pool.targets[:1])
    local = msgspec.structs.replace(made, pool=near, inside=made.pool, local_only=True)
    rows = compiler.rows([local])
    assert compiler.decide(rows, packet(outside)) == (None, frozenset(near.targets), frozenset())
    assert compiler.decide(rows, packet()).targets == everybody
    assert any(line.startswith("uplink TCP 10.96.0.1:80 random -> ") for line in compiler.text(rows))
    assert any(line.endswith("masquerade") for line in compiler.text(compiler.rows([made])))


@pytest.mark.parametrize("count", [1, 8, 9, 100], ids=lambda n: f"{n} targets")
@pytest.mark.parametrize("address", ["10.96.0.1", "fd00:96::1"], ids=["ipv4", "ipv6"])
def test_every_target_comes_back_from_the_rows(count: int, address: str) -> None:
    tables = COMPILER.rows([entry(count, address=address)])
    assert len(tables[POOLS]) == -(-count // layout.CHUNK)
    source = POD if "." in address else ipaddress.ip_address("fd00:10::9").packed
    decision = COMPILER.decide(tables, packet(source, address))
    assert decision.targets == frozenset(entry(count, address=address).pool.targets)
    assert decision.verdict is None
    assert not decision.masqueraded


def test_frontends_of_one_service_share_a_pool() -> None:
    tables = COMPILER.rows([entry(), entry(address="10.96.0.2"), entry(address="10.96.0.3")])
    assert len(tables[FRONTENDS]) == 3
    assert len(tables[POOLS]) == 1


def test_a_changed_pool_is_another_pool() -> None:
    pools = [
        Meta.unpack(next(iter(COMPILER.rows([entry(count)])[FRONTENDS].values()))).pool for count in (2, 3)
    ]
    assert pools[0] != pools[1]


def test_draining_targets_are_behind_the_others_and_get_nothing_new() -> None:
    pool = Pool(targets(3)[:2], draining=targets(3)[2:])
    tables = COMPILER.rows([entry(pool=pool)])
    meta = Meta.unpack(next(iter(tables[FRONTENDS].values())))
    assert (meta.targets, meta.draining) == (2, 1)
    assert COMPILER.decide(tables, packet()).targets == frozenset(pool.targets)


@pytest.mark.parametrize(
    ("protocol", "empty", "refused"),
    [(TCP, Verdict.REJECT, True), (TCP, Verdict.DROP, False), (UDP, Verdict.REJECT, False)],
    ids=["tcp-reject", "tcp-drop", "udp-reject"],
)
def test_only_tcp_to_nobody_is_refused_in_the_socket(protocol: int, empty: Verdict, refused: bool) -> None:
    tables = COMPILER.rows([entry(protocol=protocol, pool=Pool(empty=empty))])
    decision = COMPILER.decide(tables, packet(protocol=protocol))
    assert decision.verdict is (Verdict.REJECT if refused else None)
    assert (FRONTENDS in tables) == refused


def test_sockets_use_the_inside_pool() -> None:
    inside = Pool(targets(5))
    tables = COMPILER.rows([entry(kind=Kind.LOAD_BALANCER, local_only=True, pool=Pool(), inside=inside)])
    assert COMPILER.decide(tables, packet()).targets == frozenset(inside.targets)


@pytest.mark.parametrize(
    ("source", "from_node", "served"),
    [(POD, False, True), (NODE, True, True), (NODE, False, False), (b"\xc6\x33\x64\x01", False, False)],
    ids=["pod", "node", "another node", "outside"],
)
def test_only_this_clusters_sockets_are_translated(source: bytes, from_node: bool, served: bool) -> None:
    tables = COMPILER.rows([entry()])
    decision = COMPILER.decide(tables, packet(source, from_node=from_node))
    assert (decision != UNTOUCHED) == served


@pytest.mark.parametrize(("to", "met"), [("192.0.2.7", True), ("192.0.2.8", False), ("127.0.0.1", False)])
def test_node_ports_are_met_at_node_addresses_only(to: str, met: bool) -> None:
    tables = {**COMPILER.common(), **COMPILER.rows([entry(key=FrontendKey(Family.V4, b"", TCP, 80))])}
    assert (COMPILER.decide(tables, packet(to=to)) != UNTOUCHED) == met


def test_with_node_port_ranges_the_addresses_are_the_drivers() -> None:
    facts = msgspec.structs.replace(FACTS, node_port_ranges=(ipaddress.ip_network("192.0.2.0/24"),))
    assert SockCompiler(facts).common() == {}
    assert COMPILER.common() == {NODES: {layout.pack_address(NODE): bytes(4)}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"key": FrontendKey(Family.V4, bytes(4), SCTP, 80)}, "SCTP"),
        ({"source_ranges": ()}, "source ranges"),
        ({"options": Options(dsr="tunnel")}, "direct server return"),
        ({"options": Options(scheduler="lblc")}, "lblc"),
        *(({"options": Options(scheduler=name)}, "") for name in SCHEDULERS),
    ],
)
def test_refusals_say_why(changes: dict[str, object], words: str) -> None:
    reason = COMPILER.refusal(entry(**changes))
    assert words in reason
    assert bool(reason) == bool(words)


def test_text_has_a_line_per_frontend() -> None:
    one = entry(2, options=Options(scheduler="mh", affinity_s=60))
    tables = {**COMPILER.common(), **COMPILER.rows([one, entry(0, address="10.96.0.2")])}
    assert COMPILER.text(tables) == [
        "node ports at 192.0.2.7",
        "socket TCP 10.96.0.1:80 mh -> 10.244.2.0:8080, 10.244.2.1:8080 affinity 60s",
        "socket TCP 10.96.0.2:80 refuse",
    ]


def test_rows_do_not_depend_on_the_order_of_frontends() -> None:
    entries = [
        entry(number, address=f"10.96.0.{number}", options=Options(scheduler="mh")) for number in range(1, 9)
    ]
    shuffled = entries[:]
    random.Random(4).shuffle(shuffled)
    assert COMPILER.rows(entries) == COMPILER.rows(shuffled)


# --- bytes ----------------------------------------------------------------------------------------------------------


@given(
    family=st.sampled_from(list(Family)),
    raw=st.binary(min_size=16, max_size=16),
    port=st.integers(0, 65535),
    protocol=st.sampled_from([TCP, UDP]),
    node_port=st.booleans(),
)
def test_frontend_keys_come_back(
    family: Family, raw: bytes, port: int, protocol: int, node_port: bool
) -> None:
    address = b"" if node_port else raw[: family.bits // 8]
    if family is Family.V6 and address.startswith(bytes(10) + b"\xff\xff"):
        return  # an IPv4 address by another name
    key = FrontendKey(family, address, protocol, port)
    packed = layout.pack_frontend(key)
    assert len(packed) == 20
    assert layout.unpack_frontend(packed) == key


def test_unspecified_addresses_are_no_node_ports() -> None:
    for family in Family:
        any_address = FrontendKey(family, bytes(family.bits // 8), TCP, 80)
        assert layout.pack_frontend(any_address) != layout.pack_frontend(any_address._replace(address=b""))


def test_targets_come_back() -> None:
    for family in Family:
        for item in targets(4, family):
            assert layout.unpack_target(layout.pack_target(item)) == item


def enumerated(text: str, first: str) -> list[str]:
    """Names of the enumeration that begins with one, as the layout writes them."""
    found = re.search(rf"enum {{ ({first}[^}}]*) }}", text)
    assert found is not None
    return [name.split("=")[0].strip().lower() for name in found[1].split(",")]


def flags(text: str, first: str) -> dict[str, int]:
    found = re.search(rf"enum {{ ({first}[^}}]*) }}", text)
    assert found is not None
    return {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", found[1])}


def test_numbers_of_the_source_are_those_of_the_layout() -> None:
    text, sock, uplink = (SOURCE.with_name(f"{name}.c").read_text() for name in ("balance", "sock", "uplink"))
    shared = enumerated(text, "FRONTENDS")
    assert shared.pop() == "own"
    assert shared + enumerated(sock, "FLOWS") == [row[0] for row in layout.MAPS]
    outside = ["outside", *shared[1:], *enumerated(uplink, "CONNS")]
    assert outside == [row[0] for row in layout.UPLINK_MAPS]
    assert tuple(shared[1:]) == layout.SHARED
    assert enumerated(text, "RANDOM") == list(layout.SCHEDULER_NAMES)
    names = ("REFUSE", "HASH_PORTS", "MASQUERADE")
    assert flags(text, "REFUSE") == {name: getattr(layout, name) for name in names}
    names = ("LEFT", "MARKED", "FIN", "RESET", "ANSWERED")
    assert flags(uplink, "LEFT") == {name: getattr(layout, name) for name in names}
    numbers = dict(re.findall(r"#define (\w+) (\d+)$", text, re.MULTILINE))
    assert int(numbers["CHUNK"]) == layout.CHUNK
    assert int(numbers["MAGLEV_BLOCK"]) == layout.MAGLEV_BLOCK
    assert int(numbers["MAGLEV_SHIFT"]) == layout.MAGLEV_SHIFT
    assert "4093 : size == 1 ? 16381 : 65521" in text
    assert layout.MAGLEV_SIZES == (4093, 16381, 65521)
    assert int(numbers["LC_LOOKS"]) == layout.LC_EXACT


# --- Maglev ---------------------------------------------------------------------------------------------------------

NAMES = st.lists(st.binary(min_size=20, max_size=20), min_size=1, max_size=24, unique=True)


@settings(deadline=None, max_examples=25)
@given(NAMES, st.randoms())
def test_a_maglev_table_is_full_even_and_independent_of_order(names: list[bytes], rng: random.Random) -> None:
    rows = maglev.table(names, 1021)
    shares = collections.Counter(rows)
    assert len(rows) == 1021
    assert set(shares) == set(range(len(names)))
    assert max(shares.values()) - min(shares.values()) <= 1
    shuffled = names[:]
    rng.shuffle(shuffled)
    assert [shuffled[index] for index in maglev.table(shuffled, 1021)] == [names[index] for index in rows]


@pytest.mark.parametrize("count", [2, 3, 5, 10, 50, 100])
def test_maglev_moves_at_most_two_nths_when_one_of_n_goes(count: int) -> None:
    names = [layout.pack_target(item) for item in targets(count)]
    size = layout.MAGLEV_SIZES[maglev.size_class(count)]
    before = [names[index] for index in maglev.table(names, size)]
    moved = []
    for gone in range(0, count, max(1, count // 8)):
        rest = names[:gone] + names[gone + 1 :]
        after = [rest[index] for index in maglev.table(rest, size)]
        moved.append(sum(was != now for was, now in zip(before, after, strict=True)))
    print(f"{count} endpoints: {max(moved) / len(before):.3f} of the rows move, 2/N is {2 / count:.3f}")
    assert max(moved) <= 2 * len(before) / count


@pytest.mark.parametrize("count", [2, 33, 65], ids=["one block", "four blocks", "sixteen blocks"])
def test_a_packed_maglev_table_fills_rows_of_the_map(count: int) -> None:
    names = tuple(layout.pack_target(item) for item in targets(count))
    blocks = maglev.pack(names)
    size = layout.MAGLEV_SIZES[maglev.size_class(count)]
    assert {len(block) for block in blocks} == {next(row[3] for row in layout.MAPS if row[0] == "maglev")}
    rows = struct.unpack_from(f"={size}H", b"".join(blocks))
    assert list(rows) == maglev.table(names, size)
    tables = COMPILER.rows([entry(count, options=Options(scheduler="mh")), entry(address="10.96.0.2")])
    assert len(tables[MAGLEV]) == len(blocks)
    meta = Meta.unpack(tables[FRONTENDS][layout.pack_frontend(entry().key)])
    assert layout.MAGLEV_SIZES[meta.flags >> layout.MAGLEV_SHIFT] == size
