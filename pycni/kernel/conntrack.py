"""Connection tracking entries: listed by protocol and port, forgotten one by one (ctnetlink).

UDP has no end of connection: an entry made before a mapped port existed, or for a pod that is gone, would keep a
client's packets on the old way for as long as it sends. The kernel filters the listing (CTA_FILTER, kernel 5.8; an
older one lists all and the filter is applied here), so a large table costs little.

``flows`` and ``forget`` are for one port, ``forget_host`` for an address; ``sweep`` judges the connections to many, one
after the other as they are read, without holding the table in memory.

    nfgenmsg: u8 family | u8 version | be16 resource     (include/uapi/linux/netfilter/nfnetlink.h)
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.family import Family
from pycni.wire.ctnetlink import (
    FILTER,
    TUPLE_ORIG,
    TUPLE_REPLY,
    ZONE,
    Tuple,
    decode_tuple,
    encode_tuple,
    head,
)
from pycni.wire.netlink import (
    attr,
    attr_be16,
    attr_u8,
    attr_u32,
    message,
    nested,
    parse_attrs,
)

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.V4: 1, Family.V6: 3}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_IP_SOURCE, _BY_PROTO_NUM, _BY_PROTO_DST_PORT = 1 << 0, 1 << 3, 1 << 5
"""CTA_FILTER_F_CTA_* of net/netfilter/nf_internals.h; the bit behind _BY_IP_SOURCE is the destination's."""
_PORT = struct.Struct(">H")
_FEW_PORTS = 8
"""Up to so many ports the kernel is asked once for each: it walks its table, we see the matches only."""
_HEADER = struct.Struct("=HH")

Judge = Callable[[bytes, int, bytes, int], bool]
"""From destination as sent and source of the answers (packed address, port each) to: forget it."""


class Flow(NamedTuple):
    """One tracked connection: as its first packet was sent, and as answers are expected."""

    original: Tuple
    reply: Tuple
    zone: int

    @property
    def translated(self) -> bool:
        """Whether the destination was rewritten (DNAT)."""
        return (
            self.reply.source != self.original.target or self.reply.source_port != self.original.target_port
        )


def flows(sock: NetlinkSocket, family: Family, protocol: int, port: int) -> list[Flow]:
    """Connections of a protocol to a port, as seen by whoever opened them. Raises KernelError."""
    proto = nested(_TUPLE_PROTO, attr_u8(_PROTO_NUM, protocol), attr_be16(_PROTO_DST_PORT, port))
    flags = attr_u32(_FILTER_ORIG_FLAGS, _BY_PROTO_NUM | _BY_PROTO_DST_PORT)
    body = head(family) + nested(TUPLE_ORIG, proto) + nested(FILTER, flags, attr_u32(_FILTER_REPLY_FLAGS, 0))
    found = []
    for answer in sock.dump(message(_GET, 0, body), "list connections", f"to port {port}"):
        attrs = parse_attrs(answer.payload, 4)
        number, original = decode_tuple(attrs[TUPLE_ORIG], family)
        if number == protocol and original.target_port == port:
            zone = _PORT.unpack(attrs[ZONE])[0] if ZONE in attrs else 0
            found.append(Flow(original, decode_tuple(attrs[TUPLE_REPLY], family)[1], zone))
    return found


def forget(family: Family, protocol: int, port: int, stale: Callable[[Flow], bool]) -> int:
    """Delete the connections to a port for which ``stale`` holds; returns how many. Raises KernelError."""
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        gone = 0
        for flow in flows(sock, family, protocol, port):
            if not stale(flow):
                continue
            body = head(family) + encode_tuple(TUPLE_ORIG, family, protocol, flow.original)
            if flow.zone:
                body += attr_be16(ZONE, flow.zone)
            try:
                sock.request(message(_DELETE, 0, body), "forget connection", f"to port {port}")
                gone += 1
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        return gone


def sweep(family: Family, protocol: int, ports: Collection[int], stale: Judge) -> tuple[int, int]:
    """Delete the connections to some ports that are ``stale``: how many were looked at, how many went.

    Protocols with ports only. Raises KernelError.
    """
    looked, doomed = 0, []
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for port in ports if len(ports) <= _FEW_PORTS else (None,):
            for answer in sock.each(_listing(family, protocol, port), "list connections"):
                found = _ends(answer.payload, family)
                if found[0] != protocol or found[2] not in ports:
                    continue
                looked += 1
                if stale(*found[1:]):
                    doomed.append(_deletion(answer.payload))
        results = sock.batch(doomed, "forget connections", f"of protocol {protocol}")
    errors = [error for error in results if error is not None and error.errno != errno.ENOENT]
    if errors:
        raise errors[0]
    return looked, len(doomed)


def forget_host(addresses: Collection[bytes]) -> int:
    """Delete all connections from or to some addresses, as sent or as translated; returns how many. Raises KernelError.

    For hosts that are gone: who gets the address next must not inherit what was allowed to them.
    """
    wanted = {family: {item for item in addresses if Family.of_packed(item) is family} for family in Family}
    doomed: dict[bytes, None] = {}
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for family, hosts in wanted.items():
            for listing in _listings(family, hosts):
                for answer in sock.each(listing, "list connections"):
                    attrs = parse_attrs(answer.payload, 4)
                    original, reply = (
                        decode_tuple(attrs[kind], family)[1] for kind in (TUPLE_ORIG, TUPLE_REPLY)
                    )
                    if not hosts.isdisjoint((original.source, original.target, reply.source)):
                        doomed[_deletion(answer.payload)] = None
        results = sock.batch(list(doomed), "forget connections", "of a host")
    errors = [error for error in results if error is not None and error.errno != errno.ENOENT]
    if errors:
        raise errors[0]
    return len(doomed)


def _listings(family: Family, hosts: Collection[bytes]) -> Iterator[bytes]:
    """What to ask for the connections of some hosts."""
    if hosts and family is Family.V6:
        # The kernel's filter for IPv6 addresses lets through all but those asked for (ctnetlink_filter_match_tuple).
        yield message(_GET, 0, head(family))
        return
    for host in hosts:
        for which, end in ((TUPLE_ORIG, 0), (TUPLE_ORIG, 1), (TUPLE_REPLY, 0)):
            flags = {_FILTER_ORIG_FLAGS: 0, _FILTER_REPLY_FLAGS: 0}
            flags[_FILTER_ORIG_FLAGS if which == TUPLE_ORIG else _FILTER_REPLY_FLAGS] = _BY_IP_SOURCE << end
            chosen = nested(FILTER, *(attr_u32(kind, value) for kind, value in flags.items()))
            place = nested(which, nested(_TUPLE_IP, attr(_IP_SOURCE[family] + end, host)))
            yield message(_GET, 0, head(family) + place + chosen)


def _listing(family: Family, protocol: int, port: int | None) -> bytes:
    proto, flags = [attr_u8(_PROTO_NUM, protocol)], _BY_PROTO_NUM
    if port is not None:
        proto.append(attr_be16(_PROTO_DST_PORT, port))
        flags |= _BY_PROTO_DST_PORT
    chosen = nested(FILTER, attr_u32(_FILTER_ORIG_FLAGS, flags), attr_u32(_FILTER_REPLY_FLAGS, 0))
    body = head(family) + nested(TUPLE_ORIG, nested(_TUPLE_PROTO, *proto)) + chosen
    return message(_GET, 0, body)


class _Layout(NamedTuple):
    """The two tuples as the kernel lays them out (ctnetlink_dump_tuples), for reading without walking attributes."""

    original: bytes
    """Header of CTATUPLE_ORIG."""
    reply: bytes
    reply_at: int
    ends: struct.Struct
    """Destination, protocol and destination port of the original; source and source port of the reply."""


def _layout(family: Family) -> _Layout:
    size = family.bits // 8
    #         nested tuple, nested IP | source | destination |    nested proto, number | source port | destination port
    one = 4 + 4 + (4 + size) * 2 + 4 + 8 + 8 + 8
    ends = struct.Struct(
        f">{4 + 4 + 4 + size + 4}x{size}s4x4xB3x8x4xH2x{4 + 4 + 4}x{size}s{4 + size}x4x8x4xH2x"
    )
    return _Layout(
        _HEADER.pack(one, TUPLE_ORIG | 0x8000), _HEADER.pack(one, TUPLE_REPLY | 0x8000), 4 + one, ends
    )


_LAYOUTS = {family: _layout(family) for family in Family}


def _ends(payload: bytes, family: Family) -> tuple[int, bytes, int, bytes, int]:
    """Protocol, destination as sent with port, source of the answers with port."""
    layout = _LAYOUTS[family]
    at = layout.reply_at
    if payload[4:8] == layout.original and payload[at : at + 4] == layout.reply:
        target, protocol, target_port, source, source_port = layout.ends.unpack_from(payload, 4)
        return protocol, target, target_port, source, source_port
    attrs = parse_attrs(payload, 4)
    protocol, original = decode_tuple(attrs[TUPLE_ORIG], family)
    reply = decode_tuple(attrs[TUPLE_REPLY], family)[1]
    return protocol, original.target, original.target_port, reply.source, reply.source_port


def _deletion(payload: bytes) -> bytes:
    """The message that deletes a connection as listed: same family, original tuple, zone."""
    attrs = parse_attrs(payload, 4)
    body = bytes((payload[0], 0, 0, 0)) + nested(TUPLE_ORIG, attrs[TUPLE_ORIG])
    if ZONE in attrs:
        body += attr(ZONE, attrs[ZONE])
    return message(_DELETE, 0, body)
