"""rtnetlink messages about addresses, routes and neighbours, encoded and decoded. Pure.

    ifaddrmsg: u8 family | u8 prefix | u8 flags | u8 scope | u32 index
    rtmsg:     u8 family | u8 dst len | u8 src len | u8 tos | u8 table | u8 protocol | u8 scope | u8 type | u32 flags
    rtnexthop: u16 length | u8 flags | u8 weight - 1 | i32 index
    ndmsg:     u8 family | u8,u16 pad | i32 index | u16 state | u8 flags | u8 type
                                                        (include/uapi/linux/{if_addr,rtnetlink,neighbour}.h)

Addresses are packed bytes (4 or 16); the family follows from their length. Links are in ``wire/rtlink``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    MalformedError,
    Message,
    attr,
    attr_u32,
    message,
    nested,
    parse_attrs,
)

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x200

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = 8, 9, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
RT_TABLE_MAIN = 254
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE, RTN_UNREACHABLE = 1, 2, 6, 7
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RTPROT_STATIC = 4
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200

NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
NUD_PERMANENT, NUD_NOARP = 0x80, 0x40
NTF_SELF = 0x02

_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTNH = struct.Struct("=HBBi")


class AddressInfo(NamedTuple):
    """An interface address as the kernel lists it."""

    ifindex: int
    address: bytes
    prefix_len: int
    flags: int
    scope: int


class RouteInfo(NamedTuple):
    """A route as the kernel lists it. ``oif`` and ``gateway`` are of a single next hop (0 and empty if none)."""

    family: int
    table: int
    protocol: int
    scope: int
    kind: int
    destination: bytes
    prefix_len: int
    oif: int
    gateway: bytes
    source: bytes
    metric: int
    flags: int
    multipath: bool
    mtu: int
    hops: tuple[bytes, ...] = ()
    """Gateways, when there are several."""


class NeighbourInfo(NamedTuple):
    """A neighbour or forwarding entry as the kernel lists it."""

    family: int
    ifindex: int
    state: int
    flags: int
    destination: bytes
    mac: bytes


def family_of(address: bytes) -> int:
    """AF_INET or AF_INET6 by length."""
    return AF_INET if len(address) == 4 else AF_INET6


def new_address(
    index: int,
    address: bytes,
    prefix_len: int,
    *,
    flags: int = 0,
    replace: bool = True,
    broadcast: bytes = b"",
) -> bytes:
    """Add an address; with ``replace`` an equal one is success."""
    body = _IFADDR.pack(family_of(address), prefix_len, 0, 0, index) + attr(IFA_LOCAL, address)
    body += attr(IFA_ADDRESS, address)
    if broadcast:
        body += attr(IFA_BROADCAST, broadcast)
    if flags:
        body += attr_u32(IFA_FLAGS, flags)
    return message(RTM_NEWADDR, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), body)


def del_address(index: int, address: bytes, prefix_len: int) -> bytes:
    """Remove an address."""
    body = _IFADDR.pack(family_of(address), prefix_len, 0, 0, index) + attr(IFA_LOCAL, address)
    return message(RTM_DELADDR, 0, body + attr(IFA_ADDRESS, address))


def dump_addresses(index: int = 0, family: int = 0) -> bytes:
    """Dump addresses, of one interface when its index is given."""
    return message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, index))


def new_route(
    destination: bytes,
    prefix_len: int,
    *,
    oif: int = 0,
    gateway: bytes = b"",
    source: bytes = b"",
    protocol: int = RTPROT_STATIC,
    metric: int = 0,
    table: int = RT_TABLE_MAIN,
    onlink: bool = False,
    kind: int = RTN_UNICAST,
    scope: int | None = None,
    mtu: int = 0,
    advmss: int = 0,
    hops: Sequence[tuple[bytes, int]] = (),
    replace: bool = False,
) -> bytes:
    """Add a route, or put it in the place of one with equal key (``replace``). ``scope`` None: as ip(8) chooses.

    ``hops``: several gateways, each with the number of its device, in place of ``gateway`` and ``oif``.
    """
    if scope is None:
        direct = not gateway and not hops and kind == RTN_UNICAST and len(destination) == 4
        scope = RT_SCOPE_LINK if direct else RT_SCOPE_UNIVERSE
    flags = RTNH_F_ONLINK if onlink else 0
    head = _RTMSG.pack(
        family_of(destination), prefix_len, 0, 0, table if table < 256 else 0, protocol, scope, kind, flags
    )
    parts = [head, attr_u32(RTA_TABLE, table)]
    if prefix_len:
        parts.append(attr(RTA_DST, destination))
    if gateway:
        parts.append(attr(RTA_GATEWAY, gateway))
    if source:
        parts.append(attr(RTA_PREFSRC, source))
    if oif:
        parts.append(attr_u32(RTA_OIF, oif))
    if metric:
        parts.append(attr_u32(RTA_PRIORITY, metric))
    if hops:
        parts.append(attr(RTA_MULTIPATH, b"".join(_next_hop(*hop) for hop in hops)))
    metrics = (attr_u32(RTAX_MTU, mtu) if mtu else b"") + (attr_u32(RTAX_ADVMSS, advmss) if advmss else b"")
    if metrics:
        parts.append(nested(RTA_METRICS, metrics))
    return message(RTM_NEWROUTE, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), b"".join(parts))


def _next_hop(gateway: bytes, oif: int) -> bytes:
    """Struct rtnexthop with its attribute."""
    via = attr(RTA_GATEWAY, gateway)
    return _RTNH.pack(_RTNH.size + len(via), 0, 0, oif) + via


def _gateways(payload: bytes | None) -> tuple[bytes, ...]:
    """Of RTA_MULTIPATH. Raises MalformedError when a length does not fit."""
    found, offset = [], 0
    while payload is not None and offset + _RTNH.size <= len(payload):
        size = _RTNH.unpack_from(payload, offset)[0]
        if not _RTNH.size <= size <= len(payload) - offset:
            raise MalformedError(f"rtnexthop of {size} bytes at {offset} of {len(payload)}")
        found.append(parse_attrs(payload[offset : offset + size], _RTNH.size).get(RTA_GATEWAY, b""))
        offset += (size + 3) & ~3
    return tuple(found)


def del_route(
    destination: bytes,
    prefix_len: int,
    *,
    oif: int = 0,
    gateway: bytes = b"",
    protocol: int = 0,
    metric: int = 0,
    table: int = RT_TABLE_MAIN,
    kind: int = 0,
) -> bytes:
    """Remove a route; what is 0 or empty is not compared."""
    scope_nowhere = 255
    head = _RTMSG.pack(
        family_of(destination),
        prefix_len,
        0,
        0,
        table if table < 256 else 0,
        protocol,
        scope_nowhere,
        kind,
        0,
    )
    parts = [head, attr_u32(RTA_TABLE, table)]
    if prefix_len:
        parts.append(attr(RTA_DST, destination))
    if gateway:
        parts.append(attr(RTA_GATEWAY, gateway))
    if oif:
        parts.append(attr_u32(RTA_OIF, oif))
    if metric:
        parts.append(attr_u32(RTA_PRIORITY, metric))
    return message(RTM_DELROUTE, 0, b"".join(parts))


def dump_routes(family: int = 0, *, table: int = 0, protocol: int = 0, oif: int = 0) -> bytes:
    """Dump routes; the kernel filters by what is not 0 (strict checking is on in ``kernel/netlink``)."""
    attrs = (attr_u32(RTA_TABLE, table) if table else b"") + (attr_u32(RTA_OIF, oif) if oif else b"")
    return message(RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + attrs)


def get_route(destination: bytes) -> bytes:
    """Ask which way a packet to ``destination`` would take."""
    head = _RTMSG.pack(family_of(destination), len(destination) * 8, 0, 0, 0, 0, 0, 0, 0)
    return message(RTM_GETROUTE, 0, head + attr(RTA_DST, destination))


def new_neighbour(index: int, address: bytes, mac: bytes) -> bytes:
    """Add or replace a permanent neighbour."""
    head = _NDMSG.pack(family_of(address), index, NUD_PERMANENT, 0, 0)
    return message(
        RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, head + attr(NDA_DST, address) + attr(NDA_LLADDR, mac)
    )


def del_neighbour(index: int, address: bytes) -> bytes:
    """Remove a neighbour."""
    return message(RTM_DELNEIGH, 0, _NDMSG.pack(family_of(address), index, 0, 0, 0) + attr(NDA_DST, address))


def new_fdb(index: int, mac: bytes, remote: bytes) -> bytes:
    """Add or replace a VXLAN device's own forwarding entry."""
    head = _NDMSG.pack(AF_BRIDGE, index, NUD_NOARP | NUD_PERMANENT, NTF_SELF, 0)
    return message(
        RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, head + attr(NDA_LLADDR, mac) + attr(NDA_DST, remote)
    )


def del_fdb(index: int, mac: bytes, remote: bytes = b"") -> bytes:
    """Remove a forwarding entry; without ``remote`` whatever it points to."""
    head = _NDMSG.pack(AF_BRIDGE, index, 0, NTF_SELF, 0)
    return message(RTM_DELNEIGH, 0, head + attr(NDA_LLADDR, mac) + (attr(NDA_DST, remote) if remote else b""))


def dump_neighbours(family: int, index: int = 0) -> bytes:
    """Dump neighbours of a family, of one device when its index is given."""
    ifindex = 8
    attrs = attr_u32(ifindex, index) if index else b""
    return message(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0) + attrs)


def dump_fdb(index: int) -> bytes:
    """Dump the forwarding entries of one device (the kernel filters by ``ndm_ifindex``)."""
    return message(RTM_GETNEIGH, 0, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def parse_address(msg: Message) -> AddressInfo:
    """Decode RTM_NEWADDR or RTM_DELADDR."""
    _, prefix_len, flags, scope, index = _IFADDR.unpack_from(msg.payload)
    attrs = parse_attrs(msg.payload, 8)
    wide = attrs.get(IFA_FLAGS)
    return AddressInfo(
        index,
        attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS, b""),
        prefix_len,
        _u32(wide) if wide else flags,
        scope,
    )


def parse_route(msg: Message) -> RouteInfo:
    """Decode RTM_NEWROUTE or RTM_DELROUTE."""
    family, prefix_len, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(msg.payload)
    attrs = parse_attrs(msg.payload, 12)
    metrics = parse_attrs(attrs[RTA_METRICS]) if RTA_METRICS in attrs else {}
    return RouteInfo(
        family=family,
        table=_u32(attrs.get(RTA_TABLE)) or table,
        protocol=protocol,
        scope=scope,
        kind=kind,
        destination=attrs.get(RTA_DST) or bytes(4 if family == AF_INET else 16),
        prefix_len=prefix_len,
        oif=_u32(attrs.get(RTA_OIF)),
        gateway=attrs.get(RTA_GATEWAY, b""),
        source=attrs.get(RTA_PREFSRC, b""),
        metric=_u32(attrs.get(RTA_PRIORITY)),
        flags=flags,
        multipath=RTA_MULTIPATH in attrs,
        mtu=_u32(metrics.get(RTAX_MTU)),
        hops=_gateways(attrs.get(RTA_MULTIPATH)),
    )


def route_protocol(msg: Message) -> int:
    """rtm_protocol alone, for a look before decoding the rest."""
    return msg.payload[5]


def parse_neighbour(msg: Message) -> NeighbourInfo:
    """Decode RTM_NEWNEIGH or RTM_DELNEIGH."""
    family, index, state, flags, _ = _NDMSG.unpack_from(msg.payload)
    attrs = parse_attrs(msg.payload, 12)
    return NeighbourInfo(family, index, state, flags, attrs.get(NDA_DST, b""), attrs.get(NDA_LLADDR, b""))


def _u32(payload: bytes | None) -> int:
    return int(struct.unpack("=I", payload)[0]) if payload else 0
