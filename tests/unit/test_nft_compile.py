"""Which rows frontends become in the nftables table, and what those rows do."""

import re

import msgspec
import pytest

from pycni.model.family import Family
from pycni.model.service import FrontendKey, Kind, Packet, Verdict
from pycni.view.service_decide import decide_frontends
from pycni_proxy.base import Compiler, Remarking
from pycni_proxy.nft.chains import INSIDE
from pycni_proxy.nft.compile import NftCompiler
from pycni_proxy.nft.layout import (
    CHAINS,
    TARGETS,
    VERDICTS,
    frontend_bytes,
    frontend_key,
    generation,
    index,
    named_by,
    networks,
    target_parts,
)
from pycni_proxy.nft.slots import SLOTS, table
from tests.unit.nft_world import EVERY_SHAPE, FACTS, V4, V6, asking, frontend, target
from tests.unit.service_world import net, pack


def unsharded(text):
    """Words and chain names without the letter of their map of targets."""
    text = re.sub(r"\b(dnat|recall|forget|learn|pick) ([46]) [0-9a-f] ", r"\1 \2 ", text)
    return re.sub(r"\b(cluster|others|plain)([46])[0-9a-f]-", r"\1\2-", text)


def targets(tables, version):
    """All rows of targets of a family."""
    return {key: value for name in TARGETS[version] for key, value in tables.get(name, {}).items()}


def chain_of(tables, one):
    """The chain a frontend leads to, and its rules; ``unsharded``."""
    name = tables[VERDICTS][
        named_by(tables[f"services{4 if one.key.family is V4 else 6}"][frontend_bytes(one.key)])
    ]
    rules = tables.get(CHAINS, {}).get(name)
    return unsharded(name), None if rules is None else tuple(map(unsharded, rules))


def rows(*frontends, facts=FACTS):
    return NftCompiler(facts).rows(frontends)


def test_the_compiler_is_one():
    compiler: Compiler = NftCompiler(FACTS)
    assert isinstance(compiler, Remarking)
    assert compiler.shared <= set(compiler.tables)


CHAINS_OF = {
    "cluster ip": ("cluster4-vip-random-5", ("outside 4 mark", "dnat 4 vip random 5 0", "drop")),
    "nobody": ("refuse", None),
    "silence": ("drop", None),
    "node port v6": ("others6-port-random-3", ("mark", "dnat 6 port random 3 0", "drop")),
    "external ip": ("others4-vip-random-2", ("mark", "dnat 4 vip random 2 0", "drop")),
    "rr": (
        "cluster4-vip-turn-3-0a6000030600000000500000",
        ("outside 4 mark", "dnat 4 vip turn 3 0", "drop"),
    ),
    "sh": ("cluster4-vip-source-3", ("outside 4 mark", "dnat 4 vip source 3 0", "drop")),
    "sh by port v6": ("cluster6-vip-source-port-3", ("outside 6 mark", "dnat 6 vip source-port 3 0", "drop")),
    "dh": ("cluster4-vip-destination-3", ("outside 4 mark", "dnat 4 vip destination 3 0", "drop")),
    "mh": (
        f"cluster4-vip-source-port-{SLOTS}",
        ("outside 4 mark", f"dnat 4 vip source-port {SLOTS} 0", "drop"),
    ),
    "affinity v6": (
        "cluster6-vip-random-2-10800s",
        (
            "outside 6 mark",
            "recall 6 vip 10800",
            "forget 6 vip",
            "learn 6 vip random 2 0 10800",
            "pick 6 vip random 2 0",
            "drop",
        ),
    ),
}


@pytest.mark.parametrize("name", CHAINS_OF)
def test_a_frontend_leads_to_its_chain(name):
    one = EVERY_SHAPE[name]
    assert chain_of(rows(one), one) == CHAINS_OF[name]


def test_local_traffic_is_told_apart_by_its_source():
    one = EVERY_SHAPE["local node port"]
    tables = rows(one)
    _, rules = chain_of(tables, one)
    assert rules == (
        "node mark goto plain4-port-random-3-1024",
        "cluster 4 goto plain4-port-random-3-1024",
        "goto plain4-port-random-1",
    )
    chains = {unsharded(name): tuple(map(unsharded, rules)) for name, rules in tables[CHAINS].items()}
    assert chains["plain4-port-random-3-1024"] == (f"dnat 4 port random 3 {INSIDE}", "drop")
    assert chains["plain4-port-random-1"] == ("dnat 4 port random 1 0", "drop")
    where = frontend_bytes(one.key)
    assert {target_parts(targets(tables, 4)[index(INSIDE + n) + where])[0] for n in range(3)} == {
        target(V4, n).address for n in (1, 2, 3)
    }


def test_source_ranges_come_before_everything_and_end_in_silence():
    one = EVERY_SHAPE["ranges v6, local"]
    tables = rows(one)
    name, rules = chain_of(tables, one)
    assert name.startswith("ranges6-")
    (then,) = {rule.split()[-1] for rule in rules[:-1]}
    assert rules == (
        f"node goto {then}",
        f"from 2001:db8:9::/64 goto {then}",
        f"from fd00:a::1/128 goto {then}",
        "drop",
    )
    assert tables[CHAINS][then][0].startswith("node mark goto")


def test_the_nodes_own_traffic_needs_its_address_in_the_ranges():
    one = frontend("198.51.100.3", 1, kind=Kind.LOAD_BALANCER, source_ranges=(net("192.0.2.0/24"),))
    _, rules = chain_of(rows(one), one)
    assert not any(rule.startswith("node") for rule in rules)


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"masquerade_all": True}, ("mark", "dnat 4 vip random 1 0", "drop")),
        ({"cluster_networks": ()}, ("dnat 4 vip random 1 0", "drop")),
        ({"cluster_networks": (net("fd00:244::/32"),)}, ("dnat 4 vip random 1 0", "drop")),
    ],
    ids=["all", "networks not known", "networks known of the other family"],
)
def test_masquerading_of_cluster_ips_follows_the_facts(fields, rules):
    one = frontend("10.96.0.1", 1)
    assert chain_of(rows(one, facts=msgspec.structs.replace(FACTS, **fields)), one)[1] == rules


def test_services_of_one_shape_share_their_chain():
    some = [frontend(f"10.96.{n >> 8}.{n & 255}", n % 200, n % 200 + 1) for n in range(1, 1001)]
    tables = rows(*some)
    assert len(tables[CHAINS]) == len(TARGETS[4])
    assert {unsharded(name) for name in tables[CHAINS]} == {"cluster4-vip-random-2"}
    assert len(tables["services4"]) == 1000
    sizes = [len(tables[name]) for name in TARGETS[4]]
    assert sum(sizes) == 2000
    assert max(sizes) < 2 * min(sizes)


def test_services_in_turn_have_chains_of_their_own():
    some = [frontend(f"10.96.0.{n}", 1, 2, options=asking("rr")) for n in range(1, 5)]
    assert len(rows(*some)[CHAINS]) == 4


def test_an_id_is_a_targets_own_and_survives_changes_of_the_list():
    where = frontend_bytes(frontend("10.96.0.7").key)

    def ids(*numbers):
        tables = rows(frontend("10.96.0.7", *numbers, options=asking(affinity=60)))
        assert {key[4:] for key in targets(tables, 4)} == {where}
        assert {value[-4:] for value in tables["ids4"].values()} == {key[:4] for key in targets(tables, 4)}
        return {value: key[:4] for key, value in targets(tables, 4).items()}

    many, fewer = ids(1, 2, 3, 4, 5), ids(2, 3, 5)
    assert len(set(many.values())) == 5
    assert {value: many[value] for value in fewer} == fewer
    assert all(int.from_bytes(number, "little") >> 30 == 1 for number in many.values())


def test_an_id_of_one_pool_is_none_of_the_other():
    tables = rows(EVERY_SHAPE["affinity, local"])
    places = {}
    for key, value in targets(tables, 4).items():
        places.setdefault(value, set()).add(int.from_bytes(key[:4], "little") >> 31)
    assert places[target(V4, 2).address + bytes.fromhex("1f900000")] == {0, 1}


def test_targets_with_one_checksum_are_told_apart(monkeypatch):
    monkeypatch.setattr("pycni_proxy.nft.compile.zlib.crc32", lambda _: 0x3FFFFFFF)
    tables = rows(frontend("10.96.0.7", 1, 2, 3, options=asking(affinity=60)))
    assert len(targets(tables, 4)) == 3
    assert len(set(tables["ids4"].values())) == 3


def test_only_targets_of_this_node_can_reach_themselves():
    tables = rows(frontend("10.96.0.1", 1, 2, 3, 4))
    assert set(tables["hairpin4"]) == {target(V4, n).address * 2 for n in (2, 4)}


def pods(count):
    return tuple(bytes([10, 244, number >> 8, number & 255]) for number in range(count))


@pytest.mark.parametrize(("count", "uneven"), [(1, 1.0), (2, 1.1), (5, 1.2), (30, 1.6)])
def test_slots_are_shared_nearly_evenly(count, uneven):
    slots = table(pods(count))
    assert len(slots) == SLOTS
    assert max(map(slots.count, range(count))) <= uneven * SLOTS / count


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30, 100])
def test_only_the_slots_of_a_target_that_goes_move(count):
    names = pods(count)
    before = [names[number] for number in table(names)]
    for gone in range(0, count, max(count // 10, 1)):
        rest = names[:gone] + names[gone + 1 :]
        after = [rest[number] for number in table(rest)]
        moved = [was for was, now in zip(before, after, strict=True) if was != now]
        assert set(moved) == {names[gone]}
        assert len(moved) <= 2 * SLOTS / count


def test_slots_do_not_depend_on_the_order_of_targets():
    names = pods(7)
    turned = names[::-1]
    assert [names[n] for n in table(names)] == [turned[n] for n in table(turned)]


@pytest.mark.parametrize("scheduler", ["lc", "wlc", "sed", "nq", "fo"])
def test_what_counts_connections_is_served_and_said(scheduler):
    one = frontend("10.96.0.1", 1, 2, options=asking(scheduler))
    compiler = NftCompiler(FACTS)
    assert compiler.refusal(one) == ""
    assert f"scheduler {scheduler} needs ipvs" in compiler.remark(one)
    assert chain_of(rows(one), one)[0] == "cluster4-vip-random-2"


@pytest.mark.parametrize("scheduler", ["", "rr", "wrr", "sh", "dh", "mh"])
def test_what_is_granted_needs_no_remark(scheduler):
    assert NftCompiler(FACTS).remark(frontend("10.96.0.1", 1, options=asking(scheduler))) == ""


def test_what_cannot_be_served_is_refused():
    compiler = NftCompiler(msgspec.structs.replace(FACTS, families=(V4,)))
    assert compiler.refusal(frontend("fd00:96::1", 1)) == "this node has no ipv6"
    many = frontend("10.96.0.1")
    targets = tuple(target(V4, 1)._replace(port=number) for number in range(1, INSIDE + 2))
    many = msgspec.structs.replace(many, pool=msgspec.structs.replace(many.pool, targets=targets))
    assert compiler.refusal(many) == f"more than {INSIDE} endpoints"


@pytest.mark.parametrize("one", EVERY_SHAPE.values(), ids=EVERY_SHAPE.keys())
def test_keys_read_back(one):
    assert frontend_key(frontend_bytes(one.key)) == one.key


def test_generations_differ_by_what_is_no_row():
    base = generation(FACTS)
    assert generation(msgspec.structs.replace(FACTS, name="n2", zone="z9")) == base
    for fields in (
        {"masquerade_mark": 0x8000},
        {"cluster_networks": (net("10.0.0.0/8"),)},
        {"addresses": (pack("192.168.0.2"),)},
        {"families": (V4,)},
        {"node_port_ranges": (net("192.168.0.0/24"),)},
        {"service_networks": ()},
    ):
        assert generation(msgspec.structs.replace(FACTS, **fields)) != base, fields


def test_ranges_are_joined_and_kept_by_family():
    facts = msgspec.structs.replace(
        FACTS,
        cluster_networks=tuple(
            map(net, ("10.1.0.0/16", "10.0.0.0/16", "10.0.1.0/24", "10.2.0.0/16", "::/0"))
        ),
    )
    assert networks(facts, 4)["cluster"] == [(pack("10.0.0.0"), pack("10.2.255.255"))]
    assert networks(facts, 6)["cluster"] == [(bytes(16), b"\xff" * 16)]


SOURCES = ("10.244.1.2", "10.244.9.9", "192.0.2.9", "203.0.113.77", "192.168.0.1")
SOURCES6 = ("fd00:244::2", "fd00:244::99", "2001:db8:9::9", "2001:db8::77", "fd00:a::1")


def questions():
    for one in EVERY_SHAPE.values():
        family = one.key.family
        nodes = [address for address in FACTS.addresses if Family.of_packed(address) is family]
        sources = list(map(pack, SOURCES if family is V4 else SOURCES6))
        for destination in [one.key.address] if one.key.address else nodes:
            for port in (one.key.port, 7):
                for source in sources:
                    yield Packet(source, 4711, destination, one.key.protocol, port, source in nodes)
    yield Packet(pack("192.0.2.9"), 1, pack("10.96.77.77"), 6, 80)
    yield Packet(pack("192.0.2.9"), 1, pack("198.51.100.99"), 6, 80)


@pytest.mark.parametrize(
    "fields",
    [{}, {"masquerade_all": True}, {"node_port_ranges": (net("192.168.0.0/16"), net("fd00:a::/64"))}],
    ids=["as usual", "masquerade all", "node port ranges"],
)
def test_the_table_decides_as_the_frontends_say(fields):
    facts = msgspec.structs.replace(FACTS, **fields)
    compiler = NftCompiler(facts)
    everything = tuple(EVERY_SHAPE.values())
    tables = {name: {} for name in compiler.tables} | compiler.common() | compiler.rows(everything)
    seen = set()
    for packet in questions():
        expected = decide_frontends(everything, facts, packet)
        seen.add((expected.verdict, bool(expected.targets), bool(expected.masqueraded)))
        assert compiler.decide(tables, packet) == expected, packet
    assert {(Verdict.DROP, False, False), (Verdict.REJECT, False, False), (None, True, True)} <= seen


def test_a_packet_of_a_family_the_node_lacks_is_left_alone():
    compiler = NftCompiler(msgspec.structs.replace(FACTS, families=(V4,)))
    packet = Packet(pack("2001:db8::1"), 1, pack("fd00:96::1"), 6, 80)
    assert compiler.decide(compiler.common(), packet) == decide_frontends(
        (), FACTS, packet._replace(destination=pack("::2"))
    )


def test_a_node_port_key_has_no_address():
    assert frontend_bytes(FrontendKey(V6, b"", 17, 30000)) == bytes(16) + bytes.fromhex("11000000 75300000")
