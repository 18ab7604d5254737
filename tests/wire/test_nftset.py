"""The bytes by which sets and maps of nf_tables are made, filled and read."""

import struct

import pytest

from pycni.wire.netlink import attr, nested, parse_attrs, split, text
from pycni.wire.nftmsg import batch
from pycni.wire.nftrange import add_ranges
from pycni.wire.nftset import (
    IPV4,
    IPV6,
    MARK,
    PORT,
    PROTO,
    Count,
    Remembered,
    SetSpec,
    add_elements,
    add_remembered,
    add_set,
    decode_counts,
    decode_elements,
    decode_remembered,
    delete_elements,
)

ADD_ONE = bytes.fromhex(
    # batch begin, sequence 6
    "14000000 1000 0100 06000000 00000000 00 00 000a"
    # NFT_MSG_NEWSETELEM, create and ack, sequence 7: table t, set s
    "38000000 0c0a 0504 07000000 00000000 01 00 0000 0600 0100 74000000 0600 0200 73000000"
    # elements > element > key > value 192.0.2.1
    "1400 0380 1000 0180 0c00 0180 0800 0100 c0000201"
    # batch end, sequence 8
    "14000000 1100 0100 08000000 00000000 00 00 000a"
)
SET4 = SetSpec("s", (IPV4,))
TARGETS = SetSpec("m", (IPV4, PROTO, PORT, MARK), (IPV4, PORT))
VERDICTS = SetSpec("v", (IPV6, PROTO, PORT), ())
MEMORY = SetSpec("a", (IPV4,), (MARK,), dynamic=100)


def payloads(messages):
    return [reply.payload for message in messages for reply in split(message)]


def test_one_element_is_these_bytes():
    messages = list(add_elements("t", SET4, {bytes([192, 0, 2, 1]): None}))
    assert batch(messages, 7) == ADD_ONE


def test_a_trial_has_no_end():
    messages = list(add_elements("t", SET4, {bytes([192, 0, 2, 1]): None}))
    assert batch(messages, 7, check=True) == ADD_ONE[:-20]


def test_only_the_last_message_asks_for_an_answer():
    keys = [number.to_bytes(16, "big") for number in range(9000)]
    parts = list(split(batch(list(delete_elements("pycni_fabric", SetSpec("vtep6", (IPV6,)), keys)), 50)))
    assert [part.seq for part in parts] == [49, 50, 51, 52, 53, 54]
    assert [part.kind for part in parts] == [16, *[10 << 8 | 14] * 4, 17]
    assert [bool(part.flags & 4) for part in parts] == [False, False, False, False, True, False]
    for part in parts[1:-1]:
        attrs = parse_attrs(part.payload, 4)
        assert (text(attrs[1]), text(attrs[2])) == ("pycni_fabric", "vtep6")
        assert len(attrs[3]) <= 0xFFFF - 4


def test_many_elements_keep_their_order_over_messages():
    rows = {number.to_bytes(4, "big"): None for number in range(20000)}
    found = {}
    for payload in payloads(add_elements("t", SET4, rows)):
        found.update(decode_elements(SET4, payload))
    assert list(found) == list(rows)


ROWS = {
    "data": (TARGETS, {bytes(range(16)): bytes(range(8)), bytes(16): bytes(8)}),
    "verdicts": (VERDICTS, {bytes(24): "drop", bytes(range(24)): "chain-a", b"\1" * 24: "accept"}),
    "no value": (SET4, {b"abcd": None}),
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_rows_come_back_as_they_went(case):
    spec, rows = case
    (payload,) = payloads(add_elements("t", spec, rows))
    assert dict(decode_elements(spec, payload)) == rows


def test_a_map_element_is_these_bytes():
    (payload,) = payloads(add_elements("t", TARGETS, {bytes(range(16)): bytes(range(8))}))
    assert parse_attrs(payload, 4)[3] == bytes.fromhex(
        "2c00 01801800 0180 1400 0100 000102030405060708090a0b0c0d0e0f1000 0280 0c00 0100 0001020304050607"
    )


def test_going_to_a_chain_is_these_bytes():
    (payload,) = payloads(add_elements("t", VERDICTS, {bytes(24): "lb"}))
    assert parse_attrs(payload, 4)[3] == bytes.fromhex(
        "3c00 0180"
        "2000 0180 1c00 0100" + "00" * 24 +
        # data > verdict > code -4 (NFT_GOTO), chain lb
        "1800 0280 1400 0280 0800 0100 fffffffc 0700 0200 6c620000"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "attributes"),
    [
        (SET4, {3: 0, 4: 7, 5: 4}),
        (TARGETS, {3: 8, 4: ((7 << 6 | 12) << 6 | 13) << 6 | 19, 5: 16, 6: 7 << 6 | 13, 7: 8}),
        (VERDICTS, {3: 8, 4: (8 << 6 | 12) << 6 | 13, 5: 24, 6: 0xFFFFFF00, 7: 0}),
        (SetSpec("r", (IPV6,), interval=True), {3: 4, 4: 8, 5: 16}),
        (MEMORY, {3: 0x38, 4: 7, 5: 4, 6: 19, 7: 4}),
    ],
    ids=["set", "map", "verdict map", "ranges", "dynamic map"],
)
def test_a_set_is_described_as_nft_does(spec, attributes):
    (payload,) = payloads([add_set("t", spec, 3)])
    attrs = parse_attrs(payload, 4)
    numbers = {kind: int.from_bytes(attrs[kind], "big") for kind in attrs if kind in range(3, 8)}
    assert numbers == attributes
    assert attrs[10] == bytes([0, 0, 0, 3])


def test_a_set_that_counts_has_a_counter():
    (payload,) = payloads([add_set("t", SetSpec("c", (IPV4,), counted=True), 1)])
    assert text(parse_attrs(parse_attrs(payload, 4)[17])[1]) == "counter"


def test_ranges_are_starts_and_marked_ends():
    spec = SetSpec("r", (IPV4,), interval=True)
    ranges = [(bytes([10, 0, 0, 0]), bytes([10, 0, 0, 255])), (bytes([240, 0, 0, 0]), b"\xff" * 4)]
    (payload,) = payloads(add_ranges("t", spec, ranges))
    assert parse_attrs(payload, 4)[3] == bytes.fromhex(
        "1000 0180 0c00 0180 0800 0100 0a000000"
        # flags NFT_SET_ELEM_INTERVAL_END
        "1800 0180 0c00 0180 0800 0100 0a000100 0800 0300 00000001"
        # the last range ends with the address space
        "1000 0180 0c00 0180 0800 0100 f0000000"
    )


def test_memories_come_back_as_they_went():
    items = [Remembered(b"abcd", b"efgh", 60000, 12345), Remembered(b"ijkl", b"mnop", 1000, 1)]
    (payload,) = payloads(add_remembered("t", MEMORY, items))
    assert decode_remembered(payload) == items


def test_counters_are_found_in_elements():
    counter = nested(
        7, attr(1, b"counter\0"), nested(2, attr(1, struct.pack(">Q", 840)), attr(2, struct.pack(">Q", 14)))
    )
    element = nested(1, nested(1, attr(1, bytes(24))), nested(2, nested(2, attr(1, bytes(4)))), counter)
    assert decode_counts(bytes(4) + nested(3, element)) == [(bytes(24), Count(packets=14, bytes=840))]
    assert decode_elements(VERDICTS, bytes(4) + nested(3, element)) == [(bytes(24), "drop")]
