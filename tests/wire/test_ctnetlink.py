"""Entries and events of connection tracking: both ways of reading agree, nothing malformed passes for an entry."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.wire import ctnetlink
from pycni.wire.ctnetlink import Count, Entry, Tuple
from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    MalformedError,
    attr,
    attr_be16,
    attr_u8,
    message,
    nested,
    parse_attrs,
)

PORT = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
COUNT = st.none() | st.builds(Count, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


def tuples(family):
    address = st.binary(min_size=family.bits // 8, max_size=family.bits // 8)
    return st.builds(Tuple, address, address, PORT, PORT)


@st.composite
def entries(draw):
    family = draw(st.sampled_from(Family))
    return Entry(
        family,
        draw(st.sampled_from([ctnetlink.TCP, ctnetlink.UDP, ctnetlink.ICMP, ctnetlink.ICMPV6, 132, 47])),
        draw(tuples(family)),
        draw(tuples(family)),
        draw(PORT),
        draw(U32),
        draw(st.integers(-1, 9)),
        draw(st.integers(-1, 2**31)),
        draw(U32),
        draw(U32),
        draw(COUNT),
        draw(COUNT),
        *draw(st.just((0, 0)) | st.tuples(st.integers(1, 2**63), st.integers(0, 2**63))),
    )


def u32(kind, value):
    return attr(kind, struct.pack(">I", value))


def encode(entry, *, zone_first=False, event_time=0):
    """As ctnetlink_fill_info writes it."""
    both = ctnetlink.encode_tuple(
        ctnetlink.TUPLE_ORIG, entry.family, entry.protocol, entry.original
    ) + ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, entry.family, entry.protocol, entry.reply)
    zone = attr_be16(ctnetlink.ZONE, entry.zone)
    out = ctnetlink.head(entry.family) + (zone + both if zone_first else both + zone)
    out += u32(ctnetlink.STATUS, entry.status) + u32(ctnetlink.ID, entry.ident)
    if entry.timeout_s >= 0:
        out += u32(ctnetlink.TIMEOUT, entry.timeout_s)
    if entry.state >= 0:
        out += nested(ctnetlink.PROTOINFO, nested(1, attr_u8(1, entry.state), attr_u8(2, 7)))
    if entry.sent is not None:
        out += ctnetlink.counters(ctnetlink.COUNTERS_ORIG, entry.sent)
    if entry.answered is not None:
        out += ctnetlink.counters(ctnetlink.COUNTERS_REPLY, entry.answered)
    times = attr(1, struct.pack(">Q", entry.started_ns)), attr(2, struct.pack(">Q", entry.stopped_ns))
    if entry.started_ns:
        out += nested(ctnetlink.TIMESTAMP, *times)
    out += u32(ctnetlink.MARK, entry.mark)
    if event_time:
        out += attr(ctnetlink.TIMESTAMP_EVENT, struct.pack(">Q", event_time))
    return out


@given(entries(), st.booleans())
@settings(max_examples=60)
def test_an_entry_is_read_as_it_was_written_by_either_way(entry, zone_first):
    assert ctnetlink.entry(encode(entry, zone_first=zone_first)) == entry


@settings(max_examples=25)
@given(st.lists(st.tuples(entries(), st.sampled_from([1, 2, 3]), st.integers(0, 2**63)), max_size=5))
def test_events_come_in_their_order_with_kind_and_time(some):
    types = {
        ctnetlink.GROUP_NEW: (ctnetlink.NEW, NLM_F_CREATE | NLM_F_EXCL),
        ctnetlink.GROUP_UPDATE: (ctnetlink.NEW, 0),
        ctnetlink.GROUP_DESTROY: (ctnetlink.DELETE, 0),
    }
    datagram = b"".join(message(*types[kind], encode(item, event_time=time)) for item, kind, time in some)
    found = [(event.entry, event.kind, event.time_ns) for event in ctnetlink.events(datagram)]
    assert found == some


@given(entries(), st.binary(max_size=64))
def test_bytes_that_are_no_entry_raise_one_error_only(entry, noise):
    whole = encode(entry)
    for cut in (noise, whole[: len(noise) * 3], whole[:4] + noise, whole[:-2]):
        try:
            ctnetlink.entry(cut)
        except MalformedError:
            continue


ODD = [
    pytest.param(nested(ctnetlink.COUNTERS_ORIG, attr(2, b"\0" * 7 + b"\x05"), attr(1, b"\0" * 7 + b"\x04")), {"sent": Count(4, 5)}, id="counters the other way round"),
    pytest.param(nested(ctnetlink.COUNTERS_ORIG, attr(1, b"\0" * 8)), {"sent": None}, id="half a counter"),
    pytest.param(nested(ctnetlink.PROTOINFO, nested(1, attr_u8(2, 7), attr_u8(1, 3))), {"state": 3}, id="state behind a scale"),
    pytest.param(nested(ctnetlink.PROTOINFO, nested(3, attr_u8(1, 3), attr_u8(1, 3))), {"state": -1}, id="a state of SCTP"),
    pytest.param(attr(99, b"x"), {}, id="something new"),
]  # fmt: skip


@pytest.mark.parametrize(("odd", "expected"), ODD)
def test_attributes_that_are_laid_out_otherwise_are_read_all_the_same(odd, expected):
    plain = Entry(Family.V4, 6, Tuple(bytes(4), bytes(4), 1, 2), Tuple(bytes(4), bytes(4), 2, 1), status=8)
    assert ctnetlink.entry(encode(plain) + odd) == plain._replace(**expected)


def test_ports_that_stand_elsewhere_are_found_all_the_same():
    """The quick way looks at headers, so a kernel that orders attributes differently is read the slow way."""
    flow = Tuple(bytes(4), bytes((10, 0, 0, 1)), 1, 2)
    swapped = nested(
        ctnetlink.TUPLE_ORIG,
        nested(1, attr(1, flow.source), attr(2, flow.target)),
        nested(2, attr_u8(1, 6), attr_be16(3, 2), attr_be16(2, 1)),
    )
    back = ctnetlink.encode_tuple(ctnetlink.TUPLE_REPLY, Family.V4, 6, flow)
    found = ctnetlink.entry(ctnetlink.head(Family.V4) + swapped + back)
    assert (found.original, found.reply) == (flow, flow)


@pytest.mark.parametrize(
    ("reply", "target", "source"),
    [
        pytest.param(("10.0.0.2", "10.0.0.1", 80, 1024), False, False, id="as sent"),
        pytest.param(("10.0.0.3", "10.0.0.1", 80, 1024), True, False, id="another server"),
        pytest.param(("10.0.0.2", "10.0.0.1", 8080, 1024), True, False, id="another port"),
        pytest.param(("10.0.0.2", "10.0.0.9", 80, 1024), False, True, id="masqueraded"),
        pytest.param(("10.0.0.2", "10.0.0.1", 80, 5), False, True, id="masqueraded to a port"),
        pytest.param(("10.0.0.3", "10.0.0.9", 8080, 5), True, True, id="both"),
    ],
)
def test_a_translation_shows_in_the_reply(reply, target, source):
    def pack(text):
        return bytes(map(int, text.split(".")))

    back = Tuple(pack(reply[0]), pack(reply[1]), *reply[2:])
    there = Tuple(pack("10.0.0.1"), pack("10.0.0.2"), 1024, 80)
    found = Entry(Family.V4, 6, there, back)
    assert (found.target_translated, found.source_translated) == (target, source)


@pytest.mark.parametrize("family", Family, ids=lambda item: item.label)
@pytest.mark.parametrize("protocol", [ctnetlink.TCP, ctnetlink.ICMP, ctnetlink.ICMPV6])
def test_one_entry_is_asked_for_by_its_tuple_and_zone(family, protocol):
    flow = Tuple(bytes(range(family.bits // 8)), bytes(family.bits // 8), 7, 8 << 8)
    attrs = parse_attrs(ctnetlink.request(family, protocol, flow, zone=5), 16 + 4)
    assert ctnetlink.decode_tuple(attrs[ctnetlink.TUPLE_ORIG], family) == (protocol, flow)
    assert attrs[ctnetlink.ZONE] == b"\0\5"
