"""rtnetlink messages about links, encoded and decoded. Pure.

    ifinfomsg: u8 family | u8 pad | u16 type | i32 index | u32 flags | u32 change    (include/uapi/linux/rtnetlink.h)

Encoders return whole messages for ``kernel/netlink``; a link is named by index (0: by name in the attributes).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attr,
    attr_be16,
    attr_str,
    attr_u8,
    attr_u32,
    message,
    nested,
    parse_attrs,
    text,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_PROTINFO, IFLA_OPERSTATE, IFLA_LINKINFO = 10, 12, 16, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 20, 26, 27, 28
IFLA_EXT_MASK, IFLA_LINK_NETNSID = 29, 37
RTEXT_FILTER_SKIP_STATS = 8
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_GBP = 15, 17, 23
IFLA_IPTUN_LINK, IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE = 1, 2, 3
IFLA_INET6_ADDR_GEN_MODE = 8
ADDR_GEN_MODE_NONE = 1

IFF_UP, IFF_LOOPBACK, IFF_PROMISC, IFF_LOWER_UP = 0x1, 0x8, 0x100, 0x10000
AF_BRIDGE, AF_INET6 = 7, 10
OPER_UP = 6

_IFINFO = struct.Struct("=BxHiII")


class Vxlan(NamedTuple):
    """What a VXLAN device is (IFLA_INFO_DATA). ``local`` is packed, empty when none is set."""

    vni: int
    parent: int
    """Index of the underlay link, 0 when none."""
    local: bytes
    port: int
    learning: bool
    gbp: bool


class Ipip(NamedTuple):
    """What an IPv4-in-IPv4 device is (IFLA_INFO_DATA). Addresses are packed, empty when none is set."""

    parent: int
    """Index of the underlay link, 0 when none."""
    local: bytes
    remote: bytes = b""
    """Empty: whatever gateway the route names."""


class Link(NamedTuple):
    """A link as RTM_NEWLINK describes it."""

    ifindex: int
    name: str
    flags: int
    kind: str
    mtu: int
    mac: bytes
    master: int
    alias: str
    group: int
    operstate: int
    parent: int
    """IFLA_LINK: index of the lower device or of a veth's peer."""
    vxlan: Vxlan | None
    hairpin: bool
    isolated: bool
    ipip: Ipip | None = None

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """The fixed header of a link message."""
    return _IFINFO.pack(family, 0, index, flags, change)


def new_link(name: str, kind: str, *attrs: bytes, data: bytes = b"", up: bool = False) -> bytes:
    """Create a link; fails with EEXIST when the name is taken. ``data`` is the content of IFLA_INFO_DATA."""
    info = attr_str(IFLA_INFO_KIND, kind)
    if data:
        info += nested(IFLA_INFO_DATA, data)
    flags = IFF_UP if up else 0
    body = (
        ifinfo(0, flags, flags) + attr_str(IFLA_IFNAME, name) + b"".join(attrs) + nested(IFLA_LINKINFO, info)
    )
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(name: str, *attrs: bytes, peer_name: str, peer_netns_fd: int, peer_attrs: bytes = b"") -> bytes:
    """Create a veth pair, the far end inside another namespace at once.

    IFF_UP for the far end is refused by the kernel (ENOTCONN): bring it up afterwards.
    """
    peer = ifinfo() + attr_str(IFLA_IFNAME, peer_name) + attr_u32(IFLA_NET_NS_FD, peer_netns_fd) + peer_attrs
    return new_link(name, "veth", *attrs, data=nested(VETH_INFO_PEER, peer))


def new_vxlan(name: str, vxlan: Vxlan, *, mac: bytes, mtu: int, alias: str = "") -> bytes:
    """Create a VXLAN device (down). ``addr_gen_mode`` is refused here (EAFNOSUPPORT): set it before IFF_UP."""
    local = IFLA_VXLAN_LOCAL if len(vxlan.local) == 4 else IFLA_VXLAN_LOCAL6
    data = (
        attr_u32(IFLA_VXLAN_ID, vxlan.vni)
        + attr_u32(IFLA_VXLAN_LINK, vxlan.parent)
        + attr(local, vxlan.local)
        + attr_be16(IFLA_VXLAN_PORT, vxlan.port)
        + attr_u8(IFLA_VXLAN_LEARNING, vxlan.learning)
        + (attr(IFLA_VXLAN_GBP, b"") if vxlan.gbp else b"")
    )
    attrs = [attr(IFLA_ADDRESS, mac), attr_u32(IFLA_MTU, mtu)]
    if alias:
        attrs.append(link_alias(alias))
    return new_link(name, "vxlan", *attrs, data=data)


def new_ipip(name: str, ipip: Ipip, *, mtu: int) -> bytes:
    """Create an IPv4-in-IPv4 device (down). The kernel refuses a second one with the same ends (EEXIST)."""
    return new_link(name, "ipip", attr_u32(IFLA_MTU, mtu), data=_ipip_data(ipip))


def change_ipip(index: int, ipip: Ipip, *, mtu: int) -> bytes:
    """Give a living IPv4-in-IPv4 device other ends; its routes stay. Without the MTU the kernel would choose one."""
    info = attr_str(IFLA_INFO_KIND, "ipip") + nested(IFLA_INFO_DATA, _ipip_data(ipip))
    return set_link(index, attr_u32(IFLA_MTU, mtu), nested(IFLA_LINKINFO, info))


def _ipip_data(ipip: Ipip) -> bytes:
    data = attr_u32(IFLA_IPTUN_LINK, ipip.parent) + attr(IFLA_IPTUN_LOCAL, ipip.local)
    return data + (attr(IFLA_IPTUN_REMOTE, ipip.remote) if ipip.remote else b"")


def set_link(index: int, *attrs: bytes, up: bool | None = None, name: str = "") -> bytes:
    """Change a link by index, or by name when the index is 0. ``up`` None leaves the state."""
    flags = IFF_UP if up else 0
    change = 0 if up is None else IFF_UP
    by_name = attr_str(IFLA_IFNAME, name) if name else b""
    return message(RTM_NEWLINK, 0, ifinfo(index, flags, change) + by_name + b"".join(attrs))


def del_link(index: int = 0, name: str = "", group: int = 0) -> bytes:
    """Delete by index, by name, or every link of a group at once."""
    attrs = attr_str(IFLA_IFNAME, name) if name else b""
    if group:
        attrs += attr_u32(IFLA_GROUP, group)
    return message(RTM_DELLINK, 0, ifinfo(index) + attrs)


def get_link(index: int = 0, name: str = "") -> bytes:
    """Ask for one link; with neither index nor name, the message to dump all."""
    return message(RTM_GETLINK, 0, ifinfo(index) + (attr_str(IFLA_IFNAME, name) if name else b""))


def dump_links(*, master: int = 0, kind: str = "") -> bytes:
    """Dump links without their counters, only ports of a bridge or only one kind when given."""
    attrs = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    attrs += attr_u32(IFLA_MASTER, master) if master else b""
    if kind:
        attrs += nested(IFLA_LINKINFO, attr_str(IFLA_INFO_KIND, kind))
    return message(RTM_GETLINK, 0, ifinfo() + attrs)


def link_alias(alias: str) -> bytes:
    """IFLA_IFALIAS (at most 255 bytes; without the zero, as ip(8) sends it)."""
    return attr(IFLA_IFALIAS, alias.encode())


def addr_gen_mode(mode: int) -> bytes:
    """IFLA_AF_SPEC with the way the kernel makes IPv6 link-local addresses."""
    return nested(IFLA_AF_SPEC, nested(AF_INET6, attr_u8(IFLA_INET6_ADDR_GEN_MODE, mode)))


def parse_link(msg: Message) -> Link:
    """Decode RTM_NEWLINK or RTM_DELLINK. Raises MalformedError or struct.error on foreign bytes."""
    _, _, index, flags, _ = _IFINFO.unpack_from(msg.payload)
    attrs = parse_attrs(msg.payload, 16)
    info = parse_attrs(attrs.get(IFLA_LINKINFO, b""))
    kind = text(info.get(IFLA_INFO_KIND, b""))
    port = parse_attrs(info.get(IFLA_INFO_SLAVE_DATA, b"")) if IFLA_INFO_SLAVE_KIND in info else {}
    return Link(
        ifindex=index,
        name=text(attrs.get(IFLA_IFNAME, b"")),
        flags=flags,
        kind=kind,
        mtu=_u32(attrs.get(IFLA_MTU)),
        mac=attrs.get(IFLA_ADDRESS, b""),
        master=_u32(attrs.get(IFLA_MASTER)),
        alias=text(attrs.get(IFLA_IFALIAS, b"")),
        group=_u32(attrs.get(IFLA_GROUP)),
        operstate=attrs.get(IFLA_OPERSTATE, b"\0")[0],
        parent=_u32(attrs.get(IFLA_LINK)),
        vxlan=_parse_vxlan(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else None,
        hairpin=port.get(IFLA_BRPORT_MODE, b"\0") != b"\0",
        isolated=port.get(IFLA_BRPORT_ISOLATED, b"\0") != b"\0",
        ipip=_parse_ipip(info.get(IFLA_INFO_DATA, b"")) if kind == "ipip" else None,
    )


def _parse_vxlan(data: bytes) -> Vxlan:
    attrs = parse_attrs(data)
    return Vxlan(
        vni=_u32(attrs.get(IFLA_VXLAN_ID)),
        parent=_u32(attrs.get(IFLA_VXLAN_LINK)),
        local=attrs.get(IFLA_VXLAN_LOCAL) or attrs.get(IFLA_VXLAN_LOCAL6) or b"",
        port=int.from_bytes(attrs.get(IFLA_VXLAN_PORT, b"\0\0"), "big"),
        learning=attrs.get(IFLA_VXLAN_LEARNING, b"\0") != b"\0",
        gbp=IFLA_VXLAN_GBP in attrs,
    )


def _parse_ipip(data: bytes) -> Ipip:
    attrs = parse_attrs(data)
    local, remote = attrs.get(IFLA_IPTUN_LOCAL, b""), attrs.get(IFLA_IPTUN_REMOTE, b"")
    return Ipip(
        _u32(attrs.get(IFLA_IPTUN_LINK)), local if any(local) else b"", remote if any(remote) else b""
    )


def _u32(payload: bytes | None) -> int:
    return int(struct.unpack("=I", payload)[0]) if payload else 0
