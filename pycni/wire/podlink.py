"""rtnetlink messages of a pod's attachment: the veth pair, its bridge port, the cut-off. Pure.

Each ADD sends the first few of these and each DEL the last: they are packed here in as few messages as the kernel's
order of evaluation allows. In do_setlink (net/core/rtnetlink.c) flags are applied before IFLA_AF_SPEC, and on
creation IFLA_IFALIAS and IFLA_AF_SPEC are not looked at: so a link is made, then described, then brought up.
"""

from __future__ import annotations

import struct

from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attr,
    attr_str,
    attr_u8,
    attr_u32,
    message,
    nested,
    parse_attrs,
)
from pycni.wire.rtlink import (
    AF_BRIDGE,
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_MODE,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_OPERSTATE,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    VETH_INFO_PEER,
    ifinfo,
)

IFF_LOWER_UP = 0x10000
OPER_UNKNOWN, OPER_UP = 0, 6
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_EXT_MASK = 29
RTEXT_FILTER_SKIP_STATS = 1 << 3
IFLA_BRIDGE_VLAN_INFO = 2
BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 2, 4
IFLA_BR_VLAN_FILTERING = 7
IFLA_INET_CONF = 1
IPV4_DEVCONF_ARP_NOTIFY = 22
IFLA_INET6_ADDR_GEN_MODE = 8
ADDR_GEN_EUI64, ADDR_GEN_NONE = 0, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
RTM_NEWADDR = 20
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDA_DST, NDA_LLADDR, NDA_PROTOCOL = 1, 2, 12
NUD_REACHABLE, NUD_PERMANENT = 0x02, 0x80
NTF_PROXY = 0x08
AF_INET, AF_INET6 = 2, 10
_DEFAULT_VLAN = 1

_IFINDEX = struct.Struct("=xxxxi")
_FLAGS = struct.Struct("=8xI")
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_ONE_QUEUE = attr_u32(IFLA_NUM_TX_QUEUES, 1) + attr_u32(IFLA_NUM_RX_QUEUES, 1)
"""What a veth has by default; asked for, the kernel does not reserve one per CPU (0.1 ms of an ADD on 2 CPUs)."""
_VETH = attr_str(IFLA_INFO_KIND, "veth")
_NO_STATS = attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
_INET6_GEN_NONE = nested(AF_INET6, attr_u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE))
_INET6_GEN_EUI64 = nested(AF_INET6, attr_u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_EUI64))
_INET_NOTIFY = nested(AF_INET, nested(IFLA_INET_CONF, attr_u32(IPV4_DEVCONF_ARP_NOTIFY, 1)))


def create_pair(
    host: str, host_mac: bytes, master: int, mtu: int, *, pod: str, pod_mac: bytes, netns_fd: int
) -> bytes:
    """Make both ends of a veth pair, down: one on the bridge, the other in the pod's namespace.

    ``mtu`` 0: the kernel's default; ``master`` 0: on no bridge. The answer echoes the host end's RTM_NEWLINK, which
    names both indexes (kernel 6.2; older ones only acknowledge). EEXIST: one of the names is taken.
    """
    size = attr_u32(IFLA_MTU, mtu) if mtu else b""
    peer = (
        ifinfo()
        + attr_str(IFLA_IFNAME, pod)
        + attr(IFLA_ADDRESS, pod_mac)
        + size
        + attr_u32(IFLA_NET_NS_FD, netns_fd)
        + _ONE_QUEUE
    )
    data = nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, peer))
    body = (
        ifinfo()
        + attr_str(IFLA_IFNAME, host)
        + attr(IFLA_ADDRESS, host_mac)
        + size
        + (attr_u32(IFLA_MASTER, master) if master else b"")
        + _ONE_QUEUE
        + nested(IFLA_LINKINFO, _VETH, data)
    )
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, body)


def describe_leg(ifindex: int, alias: str, *, inet6: bool) -> bytes:
    """Name the owner of a host end that is on no bridge; it makes no link-local address of its own (``inet6``)."""
    quiet = nested(IFLA_AF_SPEC, _INET6_GEN_NONE) if inet6 else b""
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + attr(IFLA_IFALIAS, alias.encode()) + quiet)


def describe_port(ifindex: int, alias: str, *, hairpin: bool, isolated: bool, inet6: bool) -> bytes:
    """Name a host end's owner and set its bridge port's options.

    ``inet6``: the kernel knows IPv6; the port then makes no link-local address of its own, which nobody would use.
    """
    options = attr_u8(IFLA_BRPORT_MODE, hairpin) + attr_u8(IFLA_BRPORT_ISOLATED, isolated)
    slave = nested(
        IFLA_LINKINFO, attr_str(IFLA_INFO_SLAVE_KIND, "bridge"), nested(IFLA_INFO_SLAVE_DATA, options)
    )
    quiet = nested(IFLA_AF_SPEC, _INET6_GEN_NONE) if inet6 else b""
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + attr(IFLA_IFALIAS, alias.encode()) + slave + quiet)


def no_link_local(ifindex: int) -> bytes:
    """Keep the kernel from making an IPv6 link-local address when the link comes up: it is given by hand."""
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + nested(IFLA_AF_SPEC, _INET6_GEN_NONE))


def describe_pod(ifindex: int, *, own_link_local: bool) -> bytes:
    """Let the pod's interface announce its IPv4 addresses from now on (arp_notify).

    ``own_link_local``: ``no_link_local`` came first; from now on the kernel makes link-local addresses again.
    """
    spec = nested(IFLA_AF_SPEC, _INET_NOTIFY, _INET6_GEN_EUI64 if own_link_local else b"")
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + spec)


def announce_v4(ifindex: int, mac: bytes) -> bytes:
    """Set the MAC the interface has: with arp_notify the kernel then announces its IPv4 addresses."""
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + attr(IFLA_ADDRESS, mac))


def advertisement(address: bytes, mac: bytes) -> bytes:
    """An unsolicited neighbour advertisement that overrides what others remember (RFC 4861 section 4.4).

    ICMPv6 message with checksum 0: the kernel fills it in.
    """
    return struct.pack("!BBHI", 136, 0, 0, 0x20000000) + address + b"\x02\x01" + mac


def set_up(ifindex: int) -> bytes:
    """Bring a link up."""
    return message(RTM_NEWLINK, 0, ifinfo(ifindex, IFF_UP, IFF_UP))


def set_up_promisc(ifindex: int) -> bytes:
    """Bring a link up and make it promiscuous."""
    flags = IFF_UP | IFF_PROMISC
    return message(RTM_NEWLINK, 0, ifinfo(ifindex, flags, flags))


def cut_off(name: str = "", ifindex: int = 0, *, group: int) -> bytes:
    """Take a link down, off its bridge and into a group that is to be deleted. ENODEV: there is none."""
    by_name = attr_str(IFLA_IFNAME, name) if name else b""
    body = ifinfo(ifindex, 0, IFF_UP) + by_name + attr_u32(IFLA_GROUP, group) + attr_u32(IFLA_MASTER, 0)
    return message(RTM_SETLINK, 0, body)


def get_state(ifindex: int = 0, name: str = "") -> bytes:
    """Ask for one link without its statistics."""
    by_name = attr_str(IFLA_IFNAME, name) if name else b""
    return message(RTM_GETLINK, 0, ifinfo(ifindex) + by_name + _NO_STATS)


def port_vlan(ifindex: int, vlan: int) -> list[bytes]:
    """Make a port an untagged member of one VLAN and of no other."""

    def spec(vid: int, flags: int = 0) -> bytes:
        return nested(IFLA_AF_SPEC, attr(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", flags, vid)))

    head = ifinfo(ifindex, family=AF_BRIDGE)
    member = spec(vlan, BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED)
    join = message(RTM_SETLINK, 0, head + member)
    if vlan == _DEFAULT_VLAN:
        return [join]
    return [join, message(RTM_DELLINK, 0, head + spec(_DEFAULT_VLAN))]


def filter_vlans(ifindex: int) -> bytes:
    """Switch a bridge's VLAN filtering on."""
    data = nested(IFLA_INFO_DATA, attr_u8(IFLA_BR_VLAN_FILTERING, 1))
    info = nested(IFLA_LINKINFO, attr_str(IFLA_INFO_KIND, "bridge"), data)
    return message(RTM_NEWLINK, 0, ifinfo(ifindex) + info)


def own_address(
    ifindex: int, address: bytes, prefix_len: int, *, flags: int, protocol: int, scope: int = 0
) -> bytes:
    """Add an address that can be told from others' later by its protocol (IFA_PROTO, kernel 5.18).

    ``scope``: rt_scope; the kernel finds that of IPv6 addresses itself.
    """
    family = AF_INET if len(address) == 4 else AF_INET6
    body = (
        _IFADDR.pack(family, prefix_len, 0, scope, ifindex)
        + attr(IFA_LOCAL, address)
        + attr(IFA_ADDRESS, address)
        + (attr_u32(IFA_FLAGS, flags) if flags else b"")
        + attr_u8(IFA_PROTO, protocol)
    )
    return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def first_neighbour(ifindex: int, address: bytes, mac: bytes) -> bytes:
    """Let a neighbour be known now; the kernel asks for it later as for any it has asked for itself."""
    family = AF_INET if len(address) == 4 else AF_INET6
    head = _NDMSG.pack(family, ifindex, NUD_REACHABLE, 0, 0)
    body = head + attr(NDA_DST, address) + attr(NDA_LLADDR, mac)
    return message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def proxy_neighbour(ifindex: int, address: bytes, *, protocol: int, there: bool = True) -> bytes:
    """Have a device answer for an address that is reached by another one, or not any more (``there`` False)."""
    head = _NDMSG.pack(AF_INET if len(address) == 4 else AF_INET6, ifindex, NUD_PERMANENT, NTF_PROXY, 0)
    body = head + attr(NDA_DST, address) + attr_u8(NDA_PROTOCOL, protocol)
    if there:
        return message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
    return message(RTM_DELNEIGH, 0, body)


def dump_proxies(family: int) -> bytes:
    """Dump the addresses of one family that devices answer for."""
    return message(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, NTF_PROXY, 0))


def proxy_of(payload: bytes) -> tuple[int, bytes, int]:
    """Device, address and protocol of an entry of ``dump_proxies``."""
    attrs = parse_attrs(payload, _NDMSG.size)
    return int(_NDMSG.unpack_from(payload)[1]), attrs.get(NDA_DST, b""), attrs.get(NDA_PROTOCOL, b"\0")[0]


def link_local(mac: bytes) -> bytes:
    """The IPv6 link-local address of a MAC (RFC 4291 appendix A), as the kernel makes it."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]


def pair_indexes(payload: bytes) -> tuple[int, int]:
    """Own index and peer's index (IFLA_LINK; 0: not given) of an RTM_NEWLINK payload."""
    found = find_attr(payload, IFLA_LINK)
    return int(_IFINDEX.unpack_from(payload)[0]), _U32.unpack(found)[0] if found else 0


def operstate(payload: bytes) -> int:
    """IFLA_OPERSTATE of an RTM_NEWLINK payload (RFC 2863; 6: up)."""
    found = find_attr(payload, IFLA_OPERSTATE)
    return found[0] if found else 0


def has_carrier(payload: bytes) -> bool:
    """IFF_LOWER_UP of an RTM_NEWLINK payload."""
    return bool(_FLAGS.unpack_from(payload)[0] & IFF_LOWER_UP)


def find_attr(payload: bytes, wanted: int, offset: int = 16) -> bytes:
    """One attribute of a link message; empty when it is missing. Reads no further than needed."""
    end = len(payload)
    unpack = _ATTR.unpack_from
    while offset + 4 <= end:
        size, kind = unpack(payload, offset)
        if kind == wanted:
            return payload[offset + 4 : offset + size]
        if size < 4:
            break
        offset += (size + 3) & ~3
    return b""
