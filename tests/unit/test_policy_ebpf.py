"""The maps that judge connections: their layout, rules made flat, and what happens when there is no room."""

from __future__ import annotations

import ctypes
import ipaddress
from random import Random

import pytest

from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.policy import Action, Direction, Selector
from pycni.policy.base import Packet
from pycni.policy.ebpf import evaluate, layout
from pycni.policy.ebpf.classes import RuleName, _first, _together, ports_of, prefixes, rule_number
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ebpf.layout import (
    ALLOW,
    BLOCKS,
    DENY,
    NONE,
    PAIRS,
    PASS,
    PEERS,
    PORTS,
    RULES,
    SUBJECTS,
    Said,
)
from pycni.view.policy_rules import ClusterMatch, Group, Match, Ports
from pycni.view.policy_stages import ABSENT, ClusterPart, RowDiff, Stages, Subject

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


def pack(text):
    return ipaddress.ip_address(text).packed


def span(text):
    """``first-last`` or a network."""
    if "-" in text:
        first, last = text.split("-")
        return pack(first), pack(last)
    found = ipaddress.ip_network(text)
    return found.network_address.packed, found.broadcast_address.packed


def ranges(*texts):
    found = [span(text) for text in texts]
    return tuple(item for item in found if len(item[0]) == 4), tuple(
        item for item in found if len(item[0]) == 16
    )


# --- layout ----------------------------------------------------------------------------------------------------------

C_TYPES = {"u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64}


def structure(name):
    """As a C compiler lays it out."""
    fields = []
    for field in layout.STRUCTS[name].fields:
        kind = C_TYPES.get(field.type) or structure(field.type.removeprefix("struct "))
        fields.append((field.name, kind * field.times if field.times > 1 else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.parametrize("name", layout.STRUCTS)
def test_a_structure_in_c_has_no_hidden_padding(name):
    assert ctypes.sizeof(structure(name)) == layout.STRUCTS[name].size


ID = [bytes([number]) * 8 for number in range(9)]
TIERS = (layout.TierIds(ID[1], ID[2]), layout.TierIds(ID[3], ID[4]), layout.TierIds(ID[5], ID[6]))
PACKED = {
    "subject": layout.SubjectRow(TIERS, ID[7], ID[8], 2).pack(),
    "said": Said(ID[1], 7, PASS).pack(),
    "peer_rules": layout.PeerRules(ID[2], Said(ID[1], 7, PASS)).pack(),
    "config": layout.Config(1, 2, 3, 4).pack(),
    "subject_key": layout.subject_key(pack("10.0.0.1"), EGRESS),
    "block_key": layout.block_key(ID[3], pack("10.1.0.0"), 16),
    "port_key": layout.port_key(ID[4], TCP, 0x5000, 8),
    "pair_key": layout.pair_key(ID[1], ID[2]),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_bytes_are_a_structure_of_c(name):
    found = structure(name).from_buffer_copy(PACKED[name])
    assert ctypes.sizeof(found) == len(PACKED[name])
    whole = [int.from_bytes(number, "little") for number in ID]
    if name == "subject":
        assert [(tier.pairs, tier.blocks) for tier in found.tiers] == list(
            zip(whole[1:6:2], whole[2:7:2], strict=True)
        )
        assert (found.isolated, found.pod, found.flags) == (whole[7], whole[8], layout.LEAVE)
    elif name == "said":
        assert (found.rule, found.rank, found.action) == (whole[1], 7, PASS)
    elif name == "peer_rules":
        assert (found.ports, found.rest.rule, found.rest.rank, found.rest.action) == (
            whole[2],
            whole[1],
            7,
            PASS,
        )
    elif name == "config":
        assert (found.judging, found.flags, found.since, found.until) == (1, 2, 3, 4)
    elif name == "subject_key":
        assert bytes(found.address) == bytes(10) + b"\xff\xff\x0a\0\0\1"
        assert found.direction == EGRESS
    elif name == "block_key":
        assert found.bits == 64 + 96 + 16
        assert bytes(found.blocks) + bytes(found.address) == ID[3] + bytes(10) + b"\xff\xff\x0a\1\0\0"
    elif name == "port_key":
        assert (found.bits, found.protocol, found.port) == (80 + 8, TCP, 0x0050)
        assert bytes(found.ports) == ID[4]
    else:
        assert (found.pairs, found.identity) == (whole[1], whole[2])


def test_declarations_name_every_structure_and_constant():
    text = layout.declarations()
    assert all(f"struct {name} {{" in text for name in layout.STRUCTS)
    assert f"sizeof(struct subject) == {layout.STRUCTS['subject'].size}" in text
    for name in (
        "INGRESS",
        "EGRESS",
        "NOTHING",
        "ALLOW",
        "DENY",
        "PASS",
        "CLOSED",
        "LEAVE",
        "BLOCK_BITS",
        "PORT_BITS",
    ):
        value = getattr(Direction, name, None) or getattr(layout, name, None) or 0
        assert f"{name} = {int(value)}" in text


# --- prefixes --------------------------------------------------------------------------------------------------------

V4 = {
    "one network": ([("10.0.0.0/8", 0)], ["10.0.0.0/8 0"]),
    "one address": ([("10.0.0.1/32", 0)], ["10.0.0.1/32 0"]),
    "everything": ([("0.0.0.0/0", 0)], ["0.0.0.0/0 0"]),
    "a network with a hole is two rows": (
        [("10.0.0.0-10.0.0.3", 0), ("10.0.0.8-10.0.0.255", 0)],
        ["10.0.0.0/24 0", "10.0.0.4/30 -"],
    ),
    "a network with another colour inside": (
        [("10.0.0.0-10.0.0.63", 0), ("10.0.0.64-10.0.0.127", 1), ("10.0.0.128-10.0.0.255", 0)],
        ["10.0.0.0/24 0", "10.0.0.64/26 1"],
    ),
    "a range that is no network": (
        [("10.0.0.1-10.0.0.4", 0)],
        ["10.0.0.0/30 0", "10.0.0.0/32 -", "10.0.0.4/32 0"],
    ),
    "two halves of two colours": ([("0.0.0.0/1", 0), ("128.0.0.0/1", 1)], ["0.0.0.0/0 0", "128.0.0.0/1 1"]),
    "networks far apart": ([("10.0.0.0/8", 0), ("192.168.0.0/16", 0)], ["10.0.0.0/8 0", "192.168.0.0/16 0"]),
}


@pytest.mark.parametrize("case", V4)
def test_ranges_become_the_fewest_prefixes(case):
    given, wanted = V4[case]
    spans = [(*(int.from_bytes(end, "big") for end in span(text)), colour) for text, colour in given]
    found = [
        f"{ipaddress.IPv4Address(value)}/{length} {colour if colour >= 0 else '-'}"
        for value, length, colour in prefixes(tuple(spans), 32)
    ]
    assert found == wanted


def test_an_address_taken_out_of_all_of_ipv6_is_one_more_row():
    last = (1 << 128) - 1
    hole = int(ipaddress.ip_address("2001:db8::1"))
    assert prefixes(((0, hole - 1, 0), (hole + 1, last, 0)), 128) == ((0, 0, 0), (hole, 128, -1))


def longest(rows, number, bits):
    """What a trie finds."""
    fits = [
        (length, colour)
        for value, length, colour in rows
        if number >> (bits - length) == value >> (bits - length)
    ]
    return max(fits, default=(0, -1))[1]


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_the_longest_prefix_finds_what_comes_first(bits):
    random = Random(bits)
    for _ in range(300):
        spans = []
        for _ in range(random.randint(1, 6)):
            low, high = sorted(random.randrange(1 << bits) for _ in range(2))
            spans.append((low, high, random.randrange(4)))
        flat = tuple(_first(spans))
        rows = prefixes(flat, bits)
        assert len({row[:2] for row in rows}) == len(rows)
        assert all(value % (1 << (bits - length)) == 0 for value, length, _ in rows)
        numbered = [(low, high, place) for place, (low, high, _) in enumerate(spans)]
        parts, colours = _together(numbered)
        for number in range(1 << bits):
            wanted = min((colour for low, high, colour in spans if low <= number <= high), default=-1)
            assert longest(rows, number, bits) == wanted, spans
            holding = tuple(place for low, high, place in numbered if low <= number <= high)
            found = [colour for low, high, colour in parts if low <= number <= high]
            assert [colours[colour] for colour in found] == ([holding] if holding else [])


# --- ports -----------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (Said(ID[rank + 1], rank, action) for rank, action in enumerate((ALLOW, DENY, PASS)))
PORT_CASES = {
    "everything": ([(FIRST, None)], 0, {(TCP, 80): 0, (1, 0): 0}),
    "what follows everything never counts": (
        [(FIRST, None), (SECOND, ((TCP, ((80, 80),)),))],
        0,
        {(TCP, 80): 0},
    ),
    "one port": (
        [(FIRST, ((TCP, ((80, 80),)),))],
        1,
        {(TCP, 80): 0, (TCP, 81): None, (UDP, 80): None, (1, 0): None},
    ),
    "every port of a protocol": (
        [(FIRST, ((SCTP, ()),))],
        1,
        {(SCTP, 1): 0, (SCTP, 65535): 0, (TCP, 1): None},
    ),
    "a range": (
        [(FIRST, ((TCP, ((80, 83),)),))],
        1,
        {(TCP, 79): None, (TCP, 80): 0, (TCP, 83): 0, (TCP, 84): None},
    ),
    "the highest ports": ([(FIRST, ((TCP, ((1024, 65535),)),))], 2, {(TCP, 1023): None, (TCP, 65535): 0}),
    "the first of two that overlap": (
        [(FIRST, ((TCP, ((80, 90),)),)), (SECOND, ((TCP, ((85, 100),)),))],
        None,
        {(TCP, 84): 0, (TCP, 85): 0, (TCP, 90): 0, (TCP, 91): 1, (TCP, 100): 1, (TCP, 101): None},
    ),
    "a wide one behind a narrow one": (
        [(FIRST, ((TCP, ((443, 443),)),)), (SECOND, ((TCP, ()),)), (THIRD, None)],
        2,
        {(TCP, 443): 0, (TCP, 442): 1, (UDP, 443): 2, (58, 0): 2},
    ),
    "a narrow one behind a wide one": (
        [(FIRST, ((TCP, ()),)), (SECOND, ((TCP, ((443, 443),)),))],
        1,
        {(TCP, 443): 0, (UDP, 443): None},
    ),
    "two protocols": (
        [(FIRST, ((TCP, ((53, 53),)), (UDP, ((53, 53),)))), (SECOND, None)],
        2,
        {(TCP, 53): 0, (UDP, 53): 0, (SCTP, 53): 1},
    ),
    "a protocol given twice": (
        [(FIRST, ((TCP, ((80, 80),)), (TCP, ((90, 90),))))],
        2,
        {(TCP, 80): 0, (TCP, 85): None, (TCP, 90): 0},
    ),
}


@pytest.mark.parametrize("case", PORT_CASES)
def test_of_each_port_the_first_rule_counts(case):
    given, rows, wanted = PORT_CASES[case]
    found = ports_of(tuple(given))
    assert rows is None or len(found.rows) == rows
    assert (found.value.ports == NONE) is not bool(found.rows)
    assert found.value.pack() == found.packed
    maps = {PORTS: dict(found.rows)}
    for (protocol, port), rank in wanted.items():
        said = evaluate._said(maps, found.packed, Packet(b"", b"", protocol, port))
        assert (said.rank if said.action else None) == rank, (protocol, port)


# --- maps ------------------------------------------------------------------------------------------------------------

POD, PEER, FAR = pack("10.0.0.1"), pack("10.0.0.2"), pack("192.0.2.1")
POD6, PEER6 = pack("fd00::1"), pack("fd00::2")
WEB = Group("0123456789ab", "a", None, Selector())
HTTP = (TCP, "http")
EVERYBODY = Match(anybody=True)


def tcp(*ports):
    return Ports(numbers=((TCP, tuple((port, port) for port in ports)),))


def part(name, *rules):
    return ClusterPart(name, tuple(ClusterMatch(action, match) for action, match in rules))


def filled(rows, room=None):
    """Maps with rows (table, key, value) of the view."""
    maps = Maps(room or {})
    maps.update([RowDiff(table, key, ABSENT, value) for table, key, value in rows], full=True)
    return maps


def judged(stages, *, end=POD, direction=INGRESS, siblings=None):
    return ("subjects", (end, direction), Subject(stages, siblings or (end,)))


def member(address, group=WEB):
    return ("members", (group.name, address), None)


def asks(maps, source, destination, port=80, protocol=TCP):
    return maps.decide(Packet(source, destination, protocol, port))


ACCEPT, DENIES, PASSES = Action.ACCEPT, Action.DENY, Action.PASS
ONLY_443 = ("sections", ("a/x", INGRESS), (Match(groups=(WEB,), ports=tcp(443)),))
TIER_CASES = {
    "nothing decides": (Stages(admin=(part("c", (DENIES, Match(groups=(WEB,), ports=tcp(81)))),)), True, ""),
    "the first rule": (Stages(admin=(part("c", (ACCEPT, EVERYBODY), (DENIES, EVERYBODY)),)), True, ""),
    "the first policy": (
        Stages(admin=(part("c", (DENIES, EVERYBODY)), part("d", (ACCEPT, EVERYBODY)))),
        False,
        "ClusterNetworkPolicy c",
    ),
    "a rule for all behind one for a port": (
        Stages(admin=(part("c", (ACCEPT, Match(groups=(WEB,), ports=tcp(80))), (DENIES, EVERYBODY)),)),
        True,
        "",
    ),
    "a rule by address before one by labels": (
        Stages(
            admin=(part("c", (DENIES, Match(ranges=ranges("10.0.0.0/24"))), (ACCEPT, Match(groups=(WEB,)))),)
        ),
        False,
        "ClusterNetworkPolicy c",
    ),
    "pass leaves its tier to isolation": (
        Stages(admin=(part("c", (PASSES, EVERYBODY), (ACCEPT, EVERYBODY)),), policies=("a/x",)),
        False,
        "NetworkPolicy a/x",
    ),
    "pass leaves its tier to the baseline": (
        Stages(admin=(part("c", (PASSES, EVERYBODY)),), baseline=(part("d", (DENIES, EVERYBODY)),)),
        False,
        "ClusterNetworkPolicy d",
    ),
    "pass in the baseline is the end": (
        Stages(baseline=(part("c", (PASSES, EVERYBODY), (DENIES, EVERYBODY)),)),
        True,
        "",
    ),
    "accept in the admin tier ends it": (
        Stages(
            admin=(part("c", (ACCEPT, EVERYBODY)),),
            policies=("a/x",),
            baseline=(part("d", (DENIES, EVERYBODY)),),
        ),
        True,
        "",
    ),
    "isolation hides the baseline": (
        Stages(policies=("a/x",), baseline=(part("d", (ACCEPT, EVERYBODY)),)),
        False,
        "NetworkPolicy a/x",
    ),
}


@pytest.mark.parametrize("case", TIER_CASES)
def test_tiers_decide_in_turn(case):
    stages, allowed, by = TIER_CASES[case]
    found = asks(filled([judged(stages), ONLY_443, member(PEER)]), PEER, POD)
    assert (found.allowed, "".join(found.denied_by)) == (allowed, by)


def test_a_block_of_ipv6_holds_no_address_of_ipv4():
    section = (Match(ranges=ranges("::/0")),)
    stages = Stages(policies=("a/x",))
    maps = filled([("sections", ("a/x", INGRESS), section), judged(stages), judged(stages, end=POD6)])
    assert not asks(maps, PEER, POD).allowed
    assert asks(maps, PEER6, POD6).allowed


def test_names_of_ports_are_the_destinations():
    """At ingress the subject's own, also for blocks; at egress the peers', never for blocks."""
    match = Match(groups=(WEB,), ranges=ranges("192.0.2.0/24"), ports=Ports(names=(HTTP,)))
    stages = Stages(policies=("a/x",))
    maps = filled(
        [
            *(("sections", ("a/x", direction), (match,)) for direction in Direction),
            *(judged(stages, direction=direction) for direction in Direction),
            member(PEER),
            member(FAR),
            ("names", HTTP, None),
            ("ports", (HTTP, POD, 8080), None),
            ("ports", (HTTP, PEER, 9090), None),
        ]
    )
    assert [asks(maps, PEER, POD, port).allowed for port in (8080, 9090)] == [True, False]
    assert [asks(maps, FAR, POD, port).allowed for port in (8080, 9090)] == [True, False]
    assert [asks(maps, POD, PEER, port).allowed for port in (8080, 9090)] == [False, True]
    assert [asks(maps, POD, FAR, port).allowed for port in (8080, 9090)] == [False, False]
    maps.update([RowDiff("ports", (HTTP, POD, 8080), None, ABSENT)], full=False)
    maps.update([RowDiff("ports", (HTTP, PEER, 9091), ABSENT, None)], full=False)
    assert not asks(maps, PEER, POD, 8080).allowed
    assert [asks(maps, POD, PEER, port).allowed for port in (9090, 9091)] == [True, True]


DENY_ALL = Stages(policies=("a/x",))


def test_a_pod_reaches_itself_by_each_of_its_addresses():
    both = (POD, PEER)
    maps = filled(
        [
            ("sections", ("a/x", INGRESS), ()),
            *(judged(DENY_ALL, end=end, siblings=both) for end in both),
            judged(DENY_ALL, end=FAR),
        ]
    )
    for source, destination in ((POD, POD), (POD, PEER), (PEER, POD), (FAR, FAR)):
        packet = Packet(source, destination, TCP, 80)
        assert maps.decide(packet).allowed
        assert evaluate.judge_end(maps.tables, packet, INGRESS).why == "itself"
    assert not asks(maps, FAR, POD).allowed


def test_closed_addresses_and_the_node_are_left_to_the_stack():
    rows = [("closed", (POD, INGRESS), None), ("own", FAR, None), member(PEER)]
    maps = filled(rows)
    closed, own, open_ = (Packet(PEER, POD, TCP, 80), Packet(FAR, POD, TCP, 80), Packet(POD, PEER, TCP, 80))
    assert [maps.decide(packet).allowed for packet in (closed, own, open_)] == [False, True, True]
    assert [evaluate.judge(maps.tables, packet).why for packet in (closed, own)] == ["closed", "own"]
    assert evaluate.judge(maps.tables, open_).action == ALLOW
    maps.update([RowDiff("sections", ("a/x", INGRESS), ABSENT, ())], full=False)
    table, key, value = judged(Stages(admin=(part("c", (ACCEPT, EVERYBODY)),)))
    maps.update(
        [RowDiff("closed", (POD, INGRESS), None, ABSENT), RowDiff(table, key, ABSENT, value)], full=False
    )
    assert evaluate.judge(maps.tables, closed).action == ALLOW


def test_programs_know_what_they_are_told_of():
    maps = filled([("sections", ("a/x", INGRESS), ()), judged(DENY_ALL)])
    packet = Packet(PEER, POD, TCP, 80)
    assert evaluate.judge(maps.tables, packet).why == "unknown"
    found = evaluate.judge(maps.tables, packet, {PEER})
    assert (found.action, found.direction) == (DENY, INGRESS)
    assert str(maps.rule_names()[found.rule]) == "ingress isolated by NetworkPolicy a/x"


def test_every_rule_is_counted_by_its_own_name():
    section = (Match(groups=(WEB,)), Match(ranges=ranges("192.0.2.0/24")))
    maps = filled([("sections", ("a/x", INGRESS), section), judged(DENY_ALL), member(PEER)])
    names = [RuleName(("NetworkPolicy a/x",), INGRESS, place) for place in (0, 1, -1)]
    assert maps.rule_names() == {rule_number(name): name for name in names}
    assert maps.tables[RULES].keys() == maps.rule_names().keys()
    for source, name in zip((PEER, FAR, POD6), names, strict=True):
        end = POD if len(source) == 4 else POD6
        told = evaluate.judge_end(maps.tables, Packet(source, end, TCP, 80), INGRESS)
        assert told.rule == (rule_number(name) if end == POD else NONE)
    assert str(names[1]) == "NetworkPolicy a/x ingress[1]"
    number = rule_number(names[2]).hex()
    assert evaluate.decide(maps.tables, {}, Packet(POD6[:4], POD, TCP, 80)).denied_by == (f"rule {number}",)


# --- changes ---------------------------------------------------------------------------------------------------------


def changed(maps):
    return {name: (len(delta.add), len(delta.change), len(delta.remove)) for name, delta in maps.take()}


def test_a_change_costs_what_it_touches():
    """Of two hundred pods that a hundred policies name, one gets other labels."""
    groups = [Group(f"{number:012x}", "a", None, Selector()) for number in range(100)]
    pods = [pack(f"10.0.1.{number}") for number in range(200)]
    rows = []
    for number, group in enumerate(groups):
        key = f"a/x{number}"
        rows.append(("sections", (key, INGRESS), (Match(groups=(group,), ports=tcp(number + 1)),)))
        rows.append(judged(Stages(policies=(key,)), end=pods[number]))
        rows += [member(pods[number], group), member(pods[number + 100], group)]
    maps = filled(rows)
    assert len(maps.tables[PAIRS]) == len(maps.tables[PORTS]) == 100
    maps.take()
    moves = [((groups[3].name, pods[3]), None, ABSENT), ((groups[4].name, pods[3]), ABSENT, None)]
    maps.update([RowDiff("members", *move) for move in moves], full=False)
    assert changed(maps) == {PEERS: (0, 1, 0)}
    maps.update([RowDiff("members", (groups[5].name, pods[3]), ABSENT, None)], full=False)
    assert changed(maps) == {PEERS: (0, 1, 0), PAIRS: (2, 0, 0)}
    section = (Match(groups=(groups[7],), ports=tcp(999)),)
    maps.update([RowDiff("sections", ("a/x7", INGRESS), None, section)], full=False)
    assert changed(maps) == {PAIRS: (1, 0, 1), PORTS: (1, 0, 1), SUBJECTS: (0, 1, 0)}


def test_other_blocks_leave_rows_by_labels_alone():
    section = (Match(groups=(WEB,), ports=tcp(80)), Match(ranges=ranges("192.0.2.0/24")))
    maps = filled([("sections", ("a/x", INGRESS), section), judged(DENY_ALL), member(PEER)])
    maps.take()
    other = (section[0], Match(ranges=ranges("192.0.2.0/25")))
    maps.update([RowDiff("sections", ("a/x", INGRESS), section, other)], full=False)
    assert changed(maps) == {BLOCKS: (1, 0, 1), SUBJECTS: (0, 1, 0)}
    maps.update([RowDiff("sections", ("a/x", INGRESS), other, section)], full=False)
    maps.update([RowDiff("sections", ("a/x", INGRESS), section, other)], full=False)
    assert changed(maps) == {}


def test_pods_that_change_places_keep_what_is_said_to_both():
    other = Group("ba9876543210", "a", None, Selector())
    section = (Match(groups=(WEB,), ports=tcp(80)), Match(groups=(other,), ports=tcp(81)))
    maps = filled(
        [("sections", ("a/x", INGRESS), section), judged(DENY_ALL), member(PEER), member(FAR, other)]
    )
    maps.take()
    moves = [(WEB, PEER, ABSENT), (other, PEER, None), (other, FAR, ABSENT), (WEB, FAR, None)]
    maps.update(
        [
            RowDiff("members", (group.name, at), ABSENT if after is None else None, after)
            for group, at, after in moves
        ],
        full=False,
    )
    assert changed(maps) == {PEERS: (0, 2, 0)}
    assert [asks(maps, FAR, POD, port).allowed for port in (80, 81)] == [True, False]
    assert [asks(maps, PEER, POD, port).allowed for port in (80, 81)] == [False, True]


# --- room ------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_whole_and_comes_back():
    section = (Match(ranges=ranges("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")),)
    small = (Match(ranges=ranges("192.0.2.0/24")),)
    rows = [
        ("sections", ("a/big", INGRESS), section),
        ("sections", ("a/small", INGRESS), small),
        judged(Stages(policies=("a/big",))),
        judged(Stages(policies=("a/small",)), end=PEER),
    ]
    maps = filled(rows, {BLOCKS: 3})
    assert len(maps.tables[BLOCKS]) == 1
    assert asks(maps, FAR, POD) is None
    assert asks(maps, FAR, PEER).allowed
    assert evaluate.judge_end(maps.tables, Packet(FAR, POD, TCP, 80), INGRESS).why == "left"
    assert maps.problems() == [
        "maps blocks (blocks of addresses, room for 3): no room for the rules about 1 addresses"
    ]
    maps.update([RowDiff("subjects", (PEER, INGRESS), rows[3][2], ABSENT)], full=False)
    assert maps.problems() == []
    assert asks(maps, FAR, POD).allowed
    assert maps.tables == filled([*rows[:1], rows[2]]).tables


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (SUBJECTS, judged(DENY_ALL, end=PEER)),
        (PEERS, member(FAR)),
        ("own", ("own", FAR, None)),
    ],
    ids=str,
)
def test_nothing_is_judged_where_not_even_the_ends_fit(name, row):
    rows = [("sections", ("a/x", INGRESS), ()), judged(DENY_ALL), member(PEER), ("own", PEER6, None)]
    maps = filled(rows, {name: 1})
    assert maps.unfit == ""
    assert not asks(maps, PEER, POD).allowed
    maps.update([RowDiff(row[0], row[1], ABSENT, row[2])], full=False)
    assert maps.unfit.startswith(f"map {name}: 2 ")
    assert maps.problems() == [maps.unfit]
    assert asks(maps, PEER, POD) is None


def test_rules_without_a_counter_are_judged_all_the_same():
    section = (Match(groups=(WEB,)), Match(ranges=ranges("192.0.2.0/24")))
    maps = filled([("sections", ("a/x", INGRESS), section), judged(DENY_ALL), member(PEER)], {RULES: 2})
    assert len(maps.tables[RULES]) == 2
    assert maps.problems() == ["map rules: 3 rules, 2 are counted"]
    assert asks(maps, PEER, POD).allowed
    assert asks(maps, pack("203.0.113.9"), POD).denied_by == ("NetworkPolicy a/x",)
