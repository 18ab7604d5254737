"""The bytes of tables, chains, rules and their instructions; what a dump of them is read for."""

from typing import Any

import pytest

from pycni.wire import nftexpr as x
from pycni.wire.netlink import attr, nested, parse_attrs, split
from pycni.wire.nftmsg import (
    NETDEV_EGRESS,
    PREROUTING,
    Hook,
    RuleComment,
    add_chain,
    add_rule,
    add_table,
    decode_chain,
    decode_rule,
    decode_table_comment,
    delete_chain,
    delete_table,
    flush_chain,
    get_rules,
)
from pycni.wire.nftset import IPV4, MARK, Remembered, SetSpec
from pycni.wire.nfttable import Retired, RowChange, Schema, build, change, steps

MESSAGES = {
    # type, flags; family inet; table t; flags 0
    "table": (add_table("t"), "000a 0104", "0600 0100 74000000 0800 0200 00000000"),
    "table gone": (delete_table("t"), "020a 0100", "0600 0100 74000000"),
    "chain": (add_chain("t", "c"), "030a 0104", "0600 0100 74000000 0600 0300 63000000"),
    "base chain": (
        add_chain("t", "c", Hook("nat", PREROUTING, -100)),
        "030a 0104",
        (
            "0600 0100 74000000 0600 0300 63000000 0800 0700 6e617400 0800 0500 00000001"
            # hook > number 0, priority -100
            "1400 0480 0800 0100 00000000 0800 0200 ffffff9c"
        ),
    ),
    "base chain of a device": (
        add_chain("t", "c", Hook("filter", NETDEV_EGRESS, 0, "e")),
        "030a 0104",
        (
            "0600 0100 74000000 0600 0300 63000000 0b00 0700 66696c7465720000 0800 0500 00000001"
            # hook > number 1, priority 0, device
            "1c00 0480 0800 0100 00000001 0800 0200 00000000 0600 0300 65000000"
        ),
    ),
    "chain gone": (delete_chain("t", "c"), "050a 0100", "0600 0100 74000000 0600 0300 63000000"),
    "rules gone": (flush_chain("t", "c"), "080a 0100", "0600 0100 74000000 0600 0200 63000000"),
    "rules asked for": (get_rules("t", "c"), "070a 0100", "0600 0100 74000000 0600 0200 63000000"),
    "rule": (
        add_rule("t", "c", x.masquerade(), "hi"),
        "060a 010c",
        (
            "0600 0100 74000000 0600 0200 63000000"
            # expressions > element > name masq, data > flags 0x10 (fully random)
            "2000 0480 1c00 0180 0900 0100 6d61737100000000 0c00 0280 0800 0100 00000010"
            # user data: type 0 (comment), three bytes
            "0900 0700 0003 686900 000000"
        ),
    ),
}


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_message_is_these_bytes(case):
    message, kind, attributes = case
    body = bytes.fromhex("01 00 0000" + attributes)
    assert message == (16 + len(body)).to_bytes(4, "little") + bytes.fromhex(kind) + bytes(8) + body


def instruction(name, data):
    """An element with a name and data."""
    return nested(1, attr(1, name.encode() + b"\0"), nested(2, bytes.fromhex(data)))


INSTRUCTIONS = {
    "meta load l4proto => reg 2": (
        x.meta(x.META_L4PROTO, 2),
        "meta",
        "0800 0200 00000010 0800 0100 0000000a",
    ),
    "meta set mark with reg 0": (x.set_mark(0), "meta", "0800 0200 00000003 0800 0300 00000008"),
    "payload load 4b @ network header + 16": (
        x.payload(x.NETWORK_HEADER, 16, 4, 1),
        "payload",
        "0800 0100 00000009 0800 0200 00000001 0800 0300 00000010 0800 0400 00000004",
    ),
    "ct load status": (x.ct_status(0), "ct", "0800 0200 00000002 0800 0100 00000008"),
    "fib saddr type": (
        x.fib_type(0, source=True),
        "fib",
        "0800 0100 00000008 0800 0200 00000003 0800 0300 00000001",
    ),
    "cmp neq reg 0": (
        x.cmp(0, b"\1", x.NEQ),
        "cmp",
        "0800 0100 00000008 0800 0200 00000001 0c00 0380 0500 0100 01000000",
    ),
    "lookup reg 0 set s != ": (
        x.lookup("s", 0, absent=True),
        "lookup",
        "0600 0100 73000000 0800 0200 00000008 0800 0500 00000001",
    ),
    "lookup reg 1 set m dreg 0 (verdict)": (
        x.lookup("m", 1, x.VERDICT),
        "lookup",
        "0600 0100 6d000000 0800 0200 00000009 0800 0300 00000000",
    ),
    "numgen inc mod 5 offset 7": (
        x.numgen(0, 5, random=False, offset=7),
        "numgen",
        "0800 0100 00000008 0800 0200 00000005 0800 0300 00000000 0800 0400 00000007",
    ),
    "jhash(reg 3, 8) mod 5": (
        x.jhash(3, 8, 0, 5, seed=9),
        "hash",
        (
            "0800 0100 0000000b 0800 0200 00000008 0800 0300 00000008 0800 0400 00000005"
            "0800 0500 00000009 0800 0600 00000000 0800 0700 00000000"
        ),
    ),
    "nat dnat ip6 reg 0, reg 4": (
        x.dnat(6, 0, 4),
        "nat",
        "0800 0100 00000001 0800 0200 0000000a 0800 0300 00000008 0800 0500 0000000c",
    ),
    "reject type 1 code 0": (x.reject_tcp(), "reject", "0800 0100 00000001 0500 0200 00000000"),
    "reject type 2 code 1": (x.reject_port(), "reject", "0800 0100 00000002 0500 0200 01000000"),
    "immediate reg 0 drop": (
        x.goto("drop"),
        "immediate",
        "0800 0100 00000000 1000 0280 0c00 0280 0800 0100 00000000",
    ),
    "immediate reg 0 goto -> c": (
        x.goto("c"),
        "immediate",
        "0800 0100 00000000 1800 0280 1400 0280 0800 0100 fffffffc 0600 0200 63000000",
    ),
    "dynset update reg_key 3 set a sreg_data 1 timeout 1000ms": (
        x.remember("a", 3, 1, 1000),
        "dynset",
        (
            "0600 0100 61000000 0800 0300 00000001 0800 0400 0000000b 0800 0500 00000009"
            "0c00 0600 00000000000003e8"
        ),
    ),
    "dynset delete reg_key 3 set a": (
        x.forget("a", 3, 1),
        "dynset",
        "0600 0100 61000000 0800 0300 00000002 0800 0400 0000000b 0800 0500 00000009",
    ),
    "bitwise reg 0 = ( reg 0 & 0xff ) ^ 1": (
        x.bitwise(0, b"\xff", b"\x01"),
        "bitwise",
        (
            "0800 0100 00000008 0800 0200 00000008 0800 0300 00000001"
            "0c00 0480 0500 0100 ff000000 0c00 0580 0500 0100 01000000 0800 0600 00000000"
        ),
    ),
}


@pytest.mark.parametrize("case", INSTRUCTIONS.values(), ids=INSTRUCTIONS.keys())
def test_an_instruction_is_these_bytes(case):
    packed, name, data = case
    assert packed == instruction(name, data)


def payload(message):
    (reply,) = split(message)
    return reply.payload


def test_comments_come_back():
    assert decode_table_comment(payload(add_table("t", "generation 7"))) == "generation 7"
    assert decode_table_comment(payload(add_table("t"))) == ""
    assert decode_rule(payload(add_rule("t", "c", b"", "dnat 4"))) == RuleComment("c", "dnat 4")
    assert decode_rule(payload(add_rule("t", "c", b""))) == RuleComment("c", "")
    assert decode_chain(payload(add_chain("t", "c"))) == ("t", "c")


def test_a_comment_is_found_behind_other_user_data():
    data = bytes((3, 4)) + b"abcd" + bytes((0, 3)) + b"hi\0"
    message = payload(add_rule("t", "c", b""))
    assert decode_rule(message + attr(7, data)).comment == "hi"


ELEMENTS = SetSpec("s", (IPV4,))
MEMORY = SetSpec("m", (IPV4,), (MARK,), dynamic=9)
SCHEMA = Schema(
    table="t",
    generation="g",
    table_row="table",
    chains="chains",
    sets={"s": ELEMENTS},
    kept=(MEMORY,),
    fixed=(add_chain("t", "fixed"),),
    fixed_chains={"fixed": ()},
    instructions=x.goto,
)
KINDS = {
    0: "table+",
    2: "table-",
    3: "chain+",
    5: "chain-",
    6: "rule+",
    8: "rules-",
    12: "element+",
    14: "element-",
}


def kinds(messages):
    return [KINDS[reply.kind & 0xFF] for message in messages for reply in split(message)]


def test_a_table_is_replaced_and_what_it_remembered_kept():
    messages = list(build(SCHEMA, {"m": [Remembered(b"abcd", b"efgh", 10, 5)]}))
    assert kinds(messages) == ["table+", "table-", "table+", "chain+", "element+"]
    assert decode_table_comment(payload(messages[2])) == "g"


def test_removals_go_before_additions_and_against_the_order():
    changes = [
        RowChange("chains", ("old",), {"new": ("fixed",)}),
        RowChange("s", (b"abcd",), {b"efgh": None}),
    ]
    assert kinds(change(SCHEMA, changes)) == ["element-", "rules-", "chain-", "chain+", "rule+", "element+"]


def test_a_chain_that_only_changes_stays():
    changed = [RowChange("chains", change={"c": ("fixed",)})]
    assert kinds(change(SCHEMA, changed)) == ["rules-", "rule+"]


def test_all_chains_come_before_rules_and_all_rules_go_before_chains():
    """They may lead to each other."""
    changes = [RowChange("chains", ("a", "b"), {"c": ("d",), "d": ("c",)})]
    assert kinds(change(SCHEMA, changes)) == ["rules-"] * 2 + ["chain-"] * 2 + ["chain+"] * 2 + ["rule+"] * 2


def test_rules_carry_their_words():
    (message,) = [
        one
        for one in change(SCHEMA, [RowChange("chains", (), {"c": ("fixed",)})])
        if kinds([one]) == ["rule+"]
    ]
    assert decode_rule(payload(message)) == RuleComment("c", "fixed")
    assert parse_attrs(payload(message), 4)[4] == x.goto("fixed")


ROWS = [
    RowChange("chains", ("old",), {"new": ("r",)}, {"other": ("r",)}),
    RowChange("s", (b"a",), {b"b": None}),
    RowChange("entry", (b"x",), {b"y": None}, {b"z": None}),
]


def test_what_entries_lead_to_is_there_before_them_and_goes_after_them() -> None:
    schema = SCHEMA._replace(entries=frozenset({"entry"}))
    assert steps(schema, ROWS) == (
        [
            [RowChange("chains", add={"new": ("r",)}), RowChange("s", add={b"b": None})],
            [
                RowChange("chains", change={"other": ("r",)}),
                RowChange("entry", (b"x",), {b"y": None}, {b"z": None}),
            ],
        ],
        [RowChange("chains", ("old",)), RowChange("s", (b"a",))],
    )


def test_rows_that_packets_come_to_by_other_ways_go_at_once() -> None:
    schema = SCHEMA._replace(
        entries=frozenset({"entry"}), met_late=lambda name, key: (name, key) != ("s", b"a")
    )
    rows = [RowChange("s", (b"a", b"e")), RowChange("entry", (b"x",))]
    assert steps(schema, rows) == (
        [[RowChange("s", (b"a",)), RowChange("entry", (b"x",))]],
        [RowChange("s", remove=(b"e",))],
    )


def test_without_entries_only_new_chains_come_before() -> None:
    assert steps(SCHEMA, ROWS) == (
        [
            [RowChange("chains", add={"new": ("r",)})],
            [RowChange("chains", ("old",), {}, {"other": ("r",)}), *ROWS[1:]],
        ],
        [],
    )


@pytest.mark.parametrize("entries", [frozenset(), frozenset({"entry"})])
def test_rows_that_nothing_leads_to_differently_change_at_once(entries: frozenset[str]) -> None:
    rows = [RowChange("s", (b"a",), {b"b": None}, {b"c": None})]
    assert steps(SCHEMA._replace(entries=entries), rows) == ([rows], [])


def retired(*rows: RowChange, now: float = 0.0) -> Retired:
    found = Retired(SCHEMA, grace_s=1.0)
    found.take(rows, now)
    return found


def test_rows_that_go_are_kept_for_packets_under_way() -> None:
    kept = retired(RowChange("s", (b"a",)), RowChange("chains", ("old",)))
    kept.take([RowChange("s", (b"b",))], 0.4)
    assert kept.due(0.9) == []
    assert kept.wait_s(0.9) == pytest.approx(0.1)
    assert kept.due(1.0) == [RowChange("chains", ("old",)), RowChange("s", (b"a",))]
    assert kept.wait_s(1.0) == pytest.approx(0.4)
    assert kept.due(9.0) == [RowChange("s", (b"b",))]
    assert kept.wait_s(9.0) is None


def test_a_row_that_comes_again_is_changed_in_place() -> None:
    kept = retired(RowChange("s", (b"a", b"b")))
    rows = [RowChange("s", (b"x",), {b"a": None, b"n": None}, {b"c": None})]
    assert kept.wanted(rows) == [RowChange("s", (b"x",), {b"n": None}, {b"c": None, b"a": None})]
    assert kept.due(2.0) == [RowChange("s", (b"b",))]


def test_what_is_kept_is_not_read_and_what_is_gone_is_not_kept() -> None:
    kept = retired(RowChange("s", (b"a", b"b")))
    tables: dict[str, dict[Any, Any]] = {"s": {b"a": None, b"c": None}}
    kept.without(tables)
    assert tables == {"s": {b"c": None}}
    assert kept.due(2.0) == [RowChange("s", (b"a",))]
