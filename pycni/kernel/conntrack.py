"""Connection tracking entries: listed by protocol and port, forgotten one by one (ctnetlink).

UDP has no end of connection: an entry made before a mapped port existed, or for a pod that is gone, would keep a
client's packets on the old way for as long as it sends. The kernel filters the listing (CTA_FILTER, kernel 5.8; an
older one lists all and the filter is applied here), so a large table costs little.

    nfgenmsg: u8 family | u8 version | be16 resource     (include/uapi/linux/netfilter/nfnetlink.h)
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.family import Family
from pycni.wire.netlink import attr, attr_be16, attr_u8, attr_u32, message, nested, parse_attrs

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ZONE, _FILTER = 1, 2, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.V4: 1, Family.V6: 3}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_PROTO_NUM, _BY_PROTO_DST_PORT = 1 << 3, 1 << 5
"""CTA_FILTER_F_CTA_PROTO_* of net/netfilter/nf_internals.h."""
_PORT = struct.Struct(">H")


class Tuple(NamedTuple):
    """One direction of a connection; addresses packed."""

    source: bytes
    target: bytes
    source_port: int
    target_port: int


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
    body = (
        _head(family) + nested(_TUPLE_ORIG, proto) + nested(_FILTER, flags, attr_u32(_FILTER_REPLY_FLAGS, 0))
    )
    found = []
    for answer in sock.dump(message(_GET, 0, body), "list connections", f"to port {port}"):
        attrs = parse_attrs(answer.payload, 4)
        number, original = _tuple(attrs[_TUPLE_ORIG], family)
        if number == protocol and original.target_port == port:
            zone = _PORT.unpack(attrs[_ZONE])[0] if _ZONE in attrs else 0
            found.append(Flow(original, _tuple(attrs[_TUPLE_REPLY], family)[1], zone))
    return found


def forget(family: Family, protocol: int, port: int, stale: Callable[[Flow], bool]) -> int:
    """Delete the connections to a port for which ``stale`` holds; returns how many. Raises KernelError."""
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        gone = 0
        for flow in flows(sock, family, protocol, port):
            if not stale(flow):
                continue
            body = _head(family) + _encode(family, protocol, flow.original)
            if flow.zone:
                body += attr_be16(_ZONE, flow.zone)
            try:
                sock.request(message(_DELETE, 0, body), "forget connection", f"to port {port}")
                gone += 1
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        return gone


def _head(family: Family) -> bytes:
    return bytes((family, 0, 0, 0))


def _encode(family: Family, protocol: int, flow: Tuple) -> bytes:
    source = _IP_SOURCE[family]
    return nested(
        _TUPLE_ORIG,
        nested(_TUPLE_IP, attr(source, flow.source), attr(source + 1, flow.target)),
        nested(
            _TUPLE_PROTO,
            attr_u8(_PROTO_NUM, protocol),
            attr_be16(_PROTO_SRC_PORT, flow.source_port),
            attr_be16(_PROTO_DST_PORT, flow.target_port),
        ),
    )


def _tuple(data: bytes, family: Family) -> tuple[int, Tuple]:
    attrs = parse_attrs(data)
    address, proto = parse_attrs(attrs[_TUPLE_IP]), parse_attrs(attrs[_TUPLE_PROTO])
    source = _IP_SOURCE[family]
    ports = (
        _PORT.unpack(proto[number])[0] if number in proto else 0
        for number in (_PROTO_SRC_PORT, _PROTO_DST_PORT)
    )
    return proto[_PROTO_NUM][0], Tuple(address.get(source, b""), address.get(source + 1, b""), *ports)
