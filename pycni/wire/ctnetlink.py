"""Connection tracking over netlink (ctnetlink): entries and events decoded, tuples and counters both ways. Pure.

Life: ``kernel/ctevents`` hears datagrams of events and ``kernel/conntrack*`` asks for entries; both hand the payload of
a message to ``entry``. What a kernel leaves out (counters while nf_conntrack_acct is off, times while
nf_conntrack_timestamp is off, the state of protocols without one) is None or -1, never 0.

    nfgenmsg: u8 family | u8 version | be16 resource     all integers in attributes are in network byte order
      (include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pycni.model.family import Family
from pycni.wire.netlink import (
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    MalformedError,
    Message,
    attr,
    attr_be16,
    attr_u8,
    message,
    nested,
    parse_attrs,
    split,
)

SUBSYSTEM = 1 << 8
NEW, GET, DELETE = SUBSYSTEM | 0, SUBSYSTEM | 1, SUBSYSTEM | 2
"""Types of messages; an answer to GET and an event about a new or changed entry are both of type NEW."""

GROUP_NEW, GROUP_UPDATE, GROUP_DESTROY = 1, 2, 3
"""NFNLGRP_CONNTRACK_*: multicast groups of events."""

TUPLE_ORIG, TUPLE_REPLY = 1, 2
STATUS, PROTOINFO, TIMEOUT, MARK, COUNTERS_ORIG, COUNTERS_REPLY, ID = 3, 4, 7, 8, 9, 10, 12
ZONE, TIMESTAMP, FILTER, TIMESTAMP_EVENT = 18, 20, 25, 27
"""CTA_*."""

EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SOURCE_NAT, TARGET_NAT, DYING = 1 << 4, 1 << 5, 1 << 9
"""IPS_*: bits of ``Entry.status``. NAT bits: the entry's reply differs from its original in that address or port."""

TCP_STATES = (
    *("none", "syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack"),
    *("time-wait", "close", "listen"),
)
"""enum tcp_conntrack, as ``conntrack -L`` names it in lower case."""

TIME_WAIT, CLOSE = 7, 8
"""Of them: closed, only remembered."""
PROTOINFO_TCP, TCP_STATE = 1, 1

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58

_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.V4: 1, Family.V6: 3}
_PROTO_NUM, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3
_ICMP = {Family.V4: (4, 5, 6), Family.V6: (7, 8, 9)}
"""CTA_PROTO_ICMP(V6)_ID, _TYPE, _CODE."""
_PACKETS, _BYTES = 1, 2
_START, _STOP = 1, 2
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_HEADER = struct.Struct("=HH")


class Tuple(NamedTuple):
    """One direction of a connection; addresses packed."""

    source: bytes
    target: bytes
    source_port: int
    """ICMP: the identifier of an echo; 0 for protocols without."""
    target_port: int
    """ICMP: type and code, ``type << 8 | code``."""


class Count(NamedTuple):
    """What went one way."""

    packets: int
    bytes: int


class Entry(NamedTuple):
    """A tracked connection: as its first packet was sent, and as answers are expected."""

    family: Family
    protocol: int
    original: Tuple
    reply: Tuple
    zone: int = 0
    status: int = 0
    """IPS_* bits."""
    state: int = -1
    """Index into ``TCP_STATES``; -1: not told, or no TCP."""
    timeout_s: int = -1
    mark: int = 0
    ident: int = 0
    """Tells two entries of the same addresses, one after the other, apart; 0: not told."""
    sent: Count | None = None
    """From the opener; None: not counted (nf_conntrack_acct)."""
    answered: Count | None = None
    started_ns: int = 0
    """Since the epoch; 0: not told (nf_conntrack_timestamp)."""
    stopped_ns: int = 0

    @property
    def target_translated(self) -> bool:
        """Whether the destination was rewritten (DNAT)."""
        return self.reply[0] != self.original[1] or (
            self.protocol not in {ICMP, ICMPV6} and self.reply[2] != self.original[3]
        )

    @property
    def source_translated(self) -> bool:
        """Whether the source was rewritten (SNAT, masquerading)."""
        return self.reply[1] != self.original[0] or (
            self.protocol not in {ICMP, ICMPV6} and self.reply[3] != self.original[2]
        )


class Event(NamedTuple):
    """Something happened to an entry."""

    kind: int
    """GROUP_NEW, GROUP_UPDATE or GROUP_DESTROY."""
    entry: Entry
    time_ns: int
    """Since the epoch, as the kernel told it; 0: it did not (before 6.14, or nf_conntrack_timestamp is off)."""


def head(family: Family) -> bytes:
    """The nfgenmsg of a request about a family."""
    return bytes((family, 0, 0, 0))


def encode_tuple(which: int, family: Family, protocol: int, flow: Tuple) -> bytes:
    """A direction of a connection as an attribute; ``which``: ``TUPLE_ORIG`` or ``TUPLE_REPLY``."""
    source = _IP_SOURCE[family]
    if protocol in {ICMP, ICMPV6}:
        ident, kind, code = _ICMP[family]
        proto = attr_be16(ident, flow.source_port)
        proto += attr_u8(kind, flow.target_port >> 8) + attr_u8(code, flow.target_port & 0xFF)
    else:
        proto = attr_be16(_SOURCE_PORT, flow.source_port) + attr_be16(_TARGET_PORT, flow.target_port)
    return nested(
        which,
        nested(_TUPLE_IP, attr(source, flow.source), attr(source + 1, flow.target)),
        nested(_TUPLE_PROTO, attr_u8(_PROTO_NUM, protocol), proto),
    )


def decode_tuple(data: bytes, family: Family) -> tuple[int, Tuple]:
    """Protocol and direction from a tuple attribute's payload. Raises MalformedError."""
    attrs = parse_attrs(data)
    try:
        address, proto = parse_attrs(attrs[_TUPLE_IP]), parse_attrs(attrs[_TUPLE_PROTO])
        number, source = proto[_PROTO_NUM][0], _IP_SOURCE[family]
        if number in {ICMP, ICMPV6}:
            ident, kind, code = _ICMP[family]
            ports = _number(proto, ident), _byte(proto, kind) << 8 | _byte(proto, code)
        else:
            ports = _number(proto, _SOURCE_PORT), _number(proto, _TARGET_PORT)
        return number, Tuple(address.get(source, b""), address.get(source + 1, b""), *ports)
    except (KeyError, IndexError, struct.error) as exc:
        raise MalformedError(f"tuple of {len(data)} bytes: {exc!r}") from exc


def request(family: Family, protocol: int, flow: Tuple, *, zone: int = 0, which: int = TUPLE_ORIG) -> bytes:
    """A message that asks for one entry, by either direction. The kernel answers it, or ENOENT."""
    body = head(family) + encode_tuple(which, family, protocol, flow)
    if zone:
        body += attr_be16(ZONE, zone)
    return message(GET, 0, body)


def listing(family: Family | None = None) -> bytes:
    """A message to dump the whole table of a family, or of all."""
    return message(GET, 0, bytes((family or 0, 0, 0, 0)))


def entry(payload: bytes) -> Entry:
    """An entry from a message's payload (nfgenmsg and attributes). Raises MalformedError."""
    try:
        family = Family(payload[0])
    except (ValueError, IndexError) as exc:
        raise MalformedError(f"entry of {len(payload)} bytes: no known family") from exc
    layout = _LAYOUTS[family]
    at = layout.reply_at
    if (
        payload[4:8] == layout.original
        and payload[at : at + 4] == layout.reply
        and len(payload) >= layout.end
    ):
        source, target, protocol, one, port, two, port2, source2, target2, _, three, port3, four, port4 = (
            layout.fields.unpack_from(payload, 4)
        )
        if one == three == _FIRST and two == four == _SECOND:
            return _quick(
                payload,
                layout.end,
                (family, protocol, Tuple(source, target, port, port2), Tuple(source2, target2, port3, port4)),
            )
    return _slow(family, payload)


def events(datagram: bytes | memoryview) -> Iterator[Event]:
    """The events of a datagram; other messages are passed over. Raises MalformedError."""
    for msg in split(datagram):
        kind = kind_of(msg)
        if kind:
            yield Event(kind, entry(msg.payload), _event_time(msg.payload))


def kind_of(msg: Message) -> int:
    """GROUP_* of an event's message; 0: it is none."""
    if msg.kind == NEW:
        return GROUP_NEW if msg.flags & (NLM_F_CREATE | NLM_F_EXCL) else GROUP_UPDATE
    return GROUP_DESTROY if msg.kind == DELETE else 0


def counters(kind: int, value: Count) -> bytes:
    """Counters as the kernel writes them; ``kind``: ``COUNTERS_ORIG`` or ``COUNTERS_REPLY``. For tests and tools."""
    return nested(kind, attr(_PACKETS, _U64.pack(value.packets)), attr(_BYTES, _U64.pack(value.bytes)))


class _Layout(NamedTuple):
    """Both tuples as the kernel lays them out (ctnetlink_dump_tuples), to be read without walking attributes."""

    original: bytes
    """Header of CTA_TUPLE_ORIG."""
    reply: bytes
    reply_at: int
    end: int
    fields: struct.Struct
    """Of each tuple source, target, protocol, header and value of both ports; from the first tuple's header on."""


def _layout(family: Family) -> _Layout:
    size = family.bits // 8
    # nested tuple, nested IP | source | destination | nested proto, number | source port | destination port
    one = 4 + 4 + (4 + size) * 2 + 4 + 8 + 8 + 8
    side = f"4x4x4x{size}s4x{size}s4x4xB3x4sH2x4sH2x"
    return _Layout(
        _HEADER.pack(one, TUPLE_ORIG | 0x8000),
        _HEADER.pack(one, TUPLE_REPLY | 0x8000),
        4 + one,
        4 + one * 2,
        struct.Struct(f">{side}{side}"),
    )


_LAYOUTS = {family: _layout(family) for family in Family}
_FIRST, _SECOND = _HEADER.pack(6, _SOURCE_PORT), _HEADER.pack(6, _TARGET_PORT)
_COUNTS = struct.Struct(">4sQ4sQ")
_COUNTED = (_HEADER.pack(12, _PACKETS), _HEADER.pack(12, _BYTES))
_TCP_HEADS = (PROTOINFO_TCP | 0x8000, 5, TCP_STATE)
_STATE = struct.Struct("=2xHHHB")


def _quick(payload: bytes, offset: int, ends: tuple[Family, int, Tuple, Tuple]) -> Entry:
    """The attributes behind both tuples, in one pass; whatever is laid out otherwise is left to ``_slow``."""
    found: dict[int, int] = {}
    sent = answered = None
    state, end = -1, len(payload)
    try:
        while offset + 4 <= end:
            size, kind = _HEADER.unpack_from(payload, offset)
            if size < 4 or offset + size > end:
                raise MalformedError(f"attribute at {offset}: length {size} in {end} bytes")
            kind &= NLA_TYPE_MASK
            if kind in _NUMBERS:
                found[kind] = _NUMBERS[kind].unpack_from(payload, offset + 4)[0]
            elif kind in _COUNTERS and size == 28:
                one, packets, two, octets = _COUNTS.unpack_from(payload, offset + 4)
                if (one, two) != _COUNTED:
                    return _slow(ends[0], payload)
                if kind == COUNTERS_ORIG:
                    sent = Count(packets, octets)
                else:
                    answered = Count(packets, octets)
            elif kind == PROTOINFO:
                *heads, state = _STATE.unpack_from(payload, offset + 4)
                if (*heads,) != _TCP_HEADS:
                    return _slow(ends[0], payload)
            elif kind in _RARE:
                return _slow(ends[0], payload)
            offset += (size + 3) & ~3
    except struct.error as exc:
        raise MalformedError(f"entry of protocol {ends[1]}: {exc}") from exc
    get = found.get
    return Entry(
        *ends, get(ZONE, 0), get(STATUS, 0), state, get(TIMEOUT, -1), get(MARK, 0), get(ID, 0), sent, answered,
    )  # fmt: skip


_NUMBERS = {ZONE: _U16, STATUS: _U32, TIMEOUT: _U32, MARK: _U32, ID: _U32}
_COUNTERS = frozenset({COUNTERS_ORIG, COUNTERS_REPLY})
_RARE = _COUNTERS | {TIMESTAMP}


def _slow(family: Family, payload: bytes) -> Entry:
    attrs = parse_attrs(payload, 4)
    if TUPLE_ORIG not in attrs or TUPLE_REPLY not in attrs:
        raise MalformedError(f"entry of {len(payload)} bytes lacks a direction")
    protocol, original = decode_tuple(attrs[TUPLE_ORIG], family)
    return _entry(family, protocol, original, decode_tuple(attrs[TUPLE_REPLY], family)[1], attrs)


def _entry(family: Family, protocol: int, original: Tuple, reply: Tuple, attrs: dict[int, bytes]) -> Entry:
    try:
        times = parse_attrs(attrs[TIMESTAMP]) if TIMESTAMP in attrs else {}
        return Entry(
            family,
            protocol,
            original,
            reply,
            _number(attrs, ZONE),
            _long(attrs, STATUS, 0),
            _state(attrs),
            _long(attrs, TIMEOUT, -1),
            _long(attrs, MARK, 0),
            _long(attrs, ID, 0),
            _count(attrs, COUNTERS_ORIG),
            _count(attrs, COUNTERS_REPLY),
            _U64.unpack(times[_START])[0] if _START in times else 0,
            _U64.unpack(times[_STOP])[0] if _STOP in times else 0,
        )
    except (struct.error, IndexError) as exc:
        raise MalformedError(f"entry of protocol {protocol}: {exc}") from exc


def _state(attrs: dict[int, bytes]) -> int:
    if PROTOINFO not in attrs:
        return -1
    tcp = parse_attrs(attrs[PROTOINFO]).get(PROTOINFO_TCP)
    state = parse_attrs(tcp).get(TCP_STATE) if tcp is not None else None
    return state[0] if state is not None else -1


def _count(attrs: dict[int, bytes], kind: int) -> Count | None:
    if kind not in attrs:
        return None
    found = parse_attrs(attrs[kind])
    if _PACKETS not in found or _BYTES not in found:
        return None
    return Count(_U64.unpack(found[_PACKETS])[0], _U64.unpack(found[_BYTES])[0])


def _event_time(payload: bytes) -> int:
    # The last attribute of an event where a kernel writes it (6.14).
    if len(payload) < 16 or payload[-12:-8] != _EVENT_HEADER:
        return 0
    return int(_U64.unpack_from(payload, len(payload) - 8)[0])


_EVENT_HEADER = _HEADER.pack(12, TIMESTAMP_EVENT)


def _number(attrs: dict[int, bytes], kind: int) -> int:
    return int(_U16.unpack(attrs[kind])[0]) if kind in attrs else 0


def _long(attrs: dict[int, bytes], kind: int, otherwise: int) -> int:
    return int(_U32.unpack(attrs[kind])[0]) if kind in attrs else otherwise


def _byte(attrs: dict[int, bytes], kind: int) -> int:
    return attrs[kind][0] if kind in attrs else 0
