"""IPVS virtual and real servers as generic netlink messages, encoded and decoded. Pure.

    genlmsghdr: u8 command | u8 version | u16 reserved                    (include/uapi/linux/genetlink.h)
    commands, attributes, flags:                                           (include/uapi/linux/ip_vs.h)

The family has no fixed message type: every encoder takes the number that ``wire/genl`` asks for. Ports and IPv4
netmasks are in network order inside their attributes, everything else in host order; addresses always fill 16 bytes.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from pycni.model.family import Family, show
from pycni.model.kube import PROTOCOL_NAMES, SCTP, TCP, UDP
from pycni.wire.genl import genl_message
from pycni.wire.netlink import (
    Message,
    attr,
    attr_str,
    attr_u8,
    attr_u16,
    attr_u32,
    nested,
    parse_attrs,
    text,
)

FAMILY_NAME, VERSION = "IPVS", 1

NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE = 1, 2, 3, 4
NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = 5, 6, 7, 8
SET_CONFIG, GET_CONFIG, GET_INFO, ZERO = 12, 13, 15, 16

ATTR_SERVICE, ATTR_DEST = 1, 2
ATTR_TIMEOUT_TCP, ATTR_TIMEOUT_TCP_FIN, ATTR_TIMEOUT_UDP = 4, 5, 6
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK = 1, 2, 3, 4, 5
SVC_SCHED_NAME, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK, SVC_STATS, SVC_PE_NAME, SVC_STATS64 = range(6, 13)
DEST_ADDR, DEST_PORT, DEST_FWD_METHOD, DEST_WEIGHT, DEST_U_THRESH, DEST_L_THRESH = range(1, 7)
DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT, DEST_STATS, DEST_FAMILY, DEST_STATS64 = range(7, 13)
DEST_TUN_TYPE, DEST_TUN_PORT, DEST_TUN_FLAGS = 13, 14, 15
STATS_CONNS, STATS_INPKTS, STATS_OUTPKTS, STATS_INBYTES, STATS_OUTBYTES = 1, 2, 3, 4, 5
INFO_VERSION, INFO_CONN_TAB_SIZE = 1, 2

PERSISTENT, HASHED, ONE_PACKET, SCHED1, SCHED2, SCHED3 = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
"""Service flags. HASHED is the kernel's own and never part of a ``ServiceSpec``."""
SETTABLE = PERSISTENT | ONE_PACKET | SCHED1 | SCHED2 | SCHED3
SH_FALLBACK = MH_FALLBACK = SCHED1
SH_PORT = MH_PORT = SCHED2

MASQ, LOCALNODE, TUNNEL, ROUTE = 0, 1, 2, 3
METHOD_MASK = 7
TUN_IPIP, TUN_GUE, TUN_GRE = 0, 1, 2
TUN_CSUM, TUN_REMCSUM = 1, 2
_CHECKSUMS = {0: "nocsum", TUN_CSUM: "csum", TUN_REMCSUM: "remcsum"}
_TUNNELS = {TUN_IPIP: "ipip", TUN_GUE: "gue", TUN_GRE: "gre"}

SCHEDULERS = frozenset(
    {"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"}
)
"""Every scheduler of the kernel (net/netfilter/ipvs); ``twos`` came with 6.3 and is left out."""

_FLAGS = struct.Struct("=II")
_STAT64 = struct.Struct("=Q")


class ServiceKey(NamedTuple):
    """What the kernel finds a virtual server by: address, protocol and port, or a firewall mark alone."""

    family: Family
    address: bytes = b""
    """Packed; b"" for a firewall mark."""
    protocol: int = 0
    port: int = 0
    fwmark: int = 0

    def __str__(self) -> str:
        if self.fwmark:
            return f"fwmark {self.fwmark:#x} {self.family.label}"
        host = show(self.address)
        host = f"[{host}]" if self.family is Family.V6 else host
        return f"{PROTOCOL_NAMES.get(self.protocol, self.protocol)} {host}:{self.port}"


class ServiceSpec(NamedTuple):
    """The rest of a virtual server."""

    scheduler: str
    flags: int = 0
    """PERSISTENT, ONE_PACKET, SCHED1..3."""
    timeout_s: int = 0
    """Persistence timeout; 0 without."""
    prefix_len: int = 0
    """Clients in one such network stick together; 0: each for itself (32 or 128)."""


class DestKey(NamedTuple):
    """A real server of some virtual server."""

    address: bytes
    port: int


class DestSpec(NamedTuple):
    """The rest of a real server."""

    weight: int = 1
    method: int = MASQ
    upper: int = 0
    """Connections from which on it is overloaded; 0: never."""
    lower: int = 0
    tunnel: int = TUN_IPIP
    tunnel_port: int = 0
    """UDP port of GUE."""
    tunnel_flags: int = 0
    """Checksums of GUE and GRE: 0, TUN_CSUM, TUN_REMCSUM."""


class Stats(NamedTuple):
    """Counters since the virtual or real server was made."""

    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


_NO_STATS = Stats()


class ServiceInfo(NamedTuple):
    """A virtual server as the kernel lists it."""

    key: ServiceKey
    spec: ServiceSpec
    stats: Stats


class DestInfo(NamedTuple):
    """A real server as the kernel lists it."""

    key: DestKey
    spec: DestSpec
    active: int
    """Open connections."""
    inactive: int
    """Connections being opened or closed (TCP), all (UDP)."""
    persistent: int
    stats: Stats


class Timeouts(NamedTuple):
    """Idle times after which connections are forgotten, seconds."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


def _message(family: int, command: int, *attrs: bytes) -> bytes:
    return genl_message(family, command, VERSION, *attrs)


@lru_cache(maxsize=1024)
def _identity(key: ServiceKey) -> bytes:
    """The attributes that name a virtual server; real servers of one follow each other, so few are kept."""
    head = attr_u16(SVC_AF, key.family)
    if key.fwmark:
        return head + attr_u32(SVC_FWMARK, key.fwmark)
    return (
        head
        + attr_u16(SVC_PROTOCOL, key.protocol)
        + attr(SVC_ADDR, key.address.ljust(16, b"\0"))
        + attr(SVC_PORT, key.port.to_bytes(2, "big"))
    )


def put_service(family: int, key: ServiceKey, spec: ServiceSpec, *, new: bool) -> bytes:
    """Make a virtual server (EEXIST when there) or change one (ESRCH when missing). Unknown scheduler: ENOENT."""
    body = nested(
        ATTR_SERVICE,
        _identity(key),
        attr_str(SVC_SCHED_NAME, spec.scheduler),
        attr(SVC_FLAGS, _FLAGS.pack(spec.flags, SETTABLE)),
        attr_u32(SVC_TIMEOUT, spec.timeout_s),
        attr(SVC_NETMASK, _netmask(key.family, spec.prefix_len)),
    )
    return _message(family, NEW_SERVICE if new else SET_SERVICE, body)


def del_service(family: int, key: ServiceKey) -> bytes:
    """Remove a virtual server with its real servers (ESRCH when missing)."""
    return _message(family, DEL_SERVICE, nested(ATTR_SERVICE, _identity(key)))


def dump_services(family: int) -> bytes:
    """Ask for all virtual servers."""
    return _message(family, GET_SERVICE)


def put_dest(family: int, service: ServiceKey, key: DestKey, spec: DestSpec, *, new: bool) -> bytes:
    """Make a real server (EEXIST when there) or change one (ENOENT when missing)."""
    attrs = (
        _dest_identity(key)
        + attr_u32(DEST_FWD_METHOD, spec.method)
        + attr_u32(DEST_WEIGHT, spec.weight)
        + attr_u32(DEST_U_THRESH, spec.upper)
        + attr_u32(DEST_L_THRESH, spec.lower)
    )
    if spec.method == TUNNEL and spec.tunnel != TUN_IPIP:
        attrs += (
            attr_u8(DEST_TUN_TYPE, spec.tunnel)
            + attr(DEST_TUN_PORT, spec.tunnel_port.to_bytes(2, "big"))
            + attr_u16(DEST_TUN_FLAGS, spec.tunnel_flags)
        )
    body = nested(ATTR_SERVICE, _identity(service)) + nested(ATTR_DEST, attrs)
    return _message(family, NEW_DEST if new else SET_DEST, body)


def del_dest(family: int, service: ServiceKey, key: DestKey) -> bytes:
    """Remove a real server (ENOENT when missing); its connections stay until they end or are expired."""
    body = nested(ATTR_SERVICE, _identity(service)) + nested(ATTR_DEST, _dest_identity(key))
    return _message(family, DEL_DEST, body)


def dump_dests(family: int, service: ServiceKey) -> bytes:
    """Ask for the real servers of one virtual server."""
    return _message(family, GET_DEST, nested(ATTR_SERVICE, _identity(service)))


def set_timeouts(family: int, timeouts: Timeouts) -> bytes:
    """Set the idle times of all connections; 0 leaves one as it is."""
    return _message(
        family,
        SET_CONFIG,
        attr_u32(ATTR_TIMEOUT_TCP, timeouts.tcp),
        attr_u32(ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
        attr_u32(ATTR_TIMEOUT_UDP, timeouts.udp),
    )


def get_timeouts(family: int) -> bytes:
    """Ask for the idle times."""
    return _message(family, GET_CONFIG)


def get_info(family: int) -> bytes:
    """Ask for version and size of the connection table."""
    return _message(family, GET_INFO)


def parse_service(msg: Message) -> ServiceInfo:
    """Decode a GET_SERVICE answer. Raises MalformedError or struct.error on foreign bytes."""
    attrs = parse_attrs(parse_attrs(msg.payload, 4).get(ATTR_SERVICE, b""))
    family = Family(_u16(attrs.get(SVC_AF)))
    fwmark = _u32(attrs.get(SVC_FWMARK))
    if fwmark:
        key = ServiceKey(family, fwmark=fwmark)
    else:
        key = ServiceKey(
            family,
            attrs[SVC_ADDR][: family.bits // 8],
            _u16(attrs.get(SVC_PROTOCOL)),
            int.from_bytes(attrs[SVC_PORT][:2], "big"),
        )
    flags = _FLAGS.unpack_from(attrs[SVC_FLAGS])[0] & SETTABLE
    persistent = flags & PERSISTENT
    spec = ServiceSpec(
        text(attrs.get(SVC_SCHED_NAME, b"")),
        flags,
        _u32(attrs.get(SVC_TIMEOUT)) if persistent else 0,
        _prefix_len(family, attrs.get(SVC_NETMASK, b"\0\0\0\0")) if persistent else 0,
    )
    return ServiceInfo(key, spec, _stats(attrs.get(SVC_STATS64, b"")))


def parse_dest(msg: Message, *, stats: bool = True) -> DestInfo:
    """Decode a GET_DEST answer. Raises MalformedError or struct.error on foreign bytes.

    Counters are half the work and 0 without ``stats``.
    """
    attrs = parse_attrs(parse_attrs(msg.payload, 4).get(ATTR_DEST, b""))
    family = Family(_u16(attrs[DEST_FAMILY])) if DEST_FAMILY in attrs else Family.V4
    return DestInfo(
        DestKey(attrs[DEST_ADDR][: family.bits // 8], int.from_bytes(attrs[DEST_PORT][:2], "big")),
        DestSpec(
            weight=_u32(attrs.get(DEST_WEIGHT)),
            method=_u32(attrs.get(DEST_FWD_METHOD)) & METHOD_MASK,
            upper=_u32(attrs.get(DEST_U_THRESH)),
            lower=_u32(attrs.get(DEST_L_THRESH)),
            tunnel=attrs.get(DEST_TUN_TYPE, b"\0")[0],
            tunnel_port=int.from_bytes(attrs.get(DEST_TUN_PORT, b"\0\0"), "big"),
            tunnel_flags=_u16(attrs.get(DEST_TUN_FLAGS)),
        ),
        active=_u32(attrs.get(DEST_ACTIVE)),
        inactive=_u32(attrs.get(DEST_INACTIVE)),
        persistent=_u32(attrs.get(DEST_PERSISTENT)),
        stats=_stats(attrs.get(DEST_STATS64, b"")) if stats else _NO_STATS,
    )


def parse_timeouts(msg: Message) -> Timeouts:
    """Decode a GET_CONFIG answer."""
    attrs = parse_attrs(msg.payload, 4)
    names = (ATTR_TIMEOUT_TCP, ATTR_TIMEOUT_TCP_FIN, ATTR_TIMEOUT_UDP)
    return Timeouts(*(_u32(attrs.get(name)) for name in names))


def parse_info(msg: Message) -> tuple[str, int]:
    """Version ("1.2.1") and number of buckets of the connection table from a GET_INFO answer."""
    attrs = parse_attrs(msg.payload, 4)
    version = _u32(attrs.get(INFO_VERSION))
    return f"{version >> 16}.{version >> 8 & 255}.{version & 255}", _u32(attrs.get(INFO_CONN_TAB_SIZE))


def service_words(key: ServiceKey) -> str:
    """``-t 10.96.0.1:80`` as ipvsadm(8) names a virtual server."""
    if key.fwmark:
        return f"-f {key.fwmark}" + (" -6" if key.family is Family.V6 else "")
    option = {TCP: "-t", UDP: "-u", SCTP: "--sctp-service"}.get(key.protocol, f"protocol {key.protocol}")
    return f"{option} {_host_port(key.address, key.port)}"


def service_line(key: ServiceKey, spec: ServiceSpec) -> str:
    """The line of ``ipvsadm -Sn`` that makes a virtual server."""
    words = ["-A", service_words(key), f"-s {spec.scheduler}"]
    if spec.flags & PERSISTENT:
        words.append(f"-p {spec.timeout_s}")
        full = key.family.bits
        if spec.prefix_len not in {0, full}:
            mask = _netmask(key.family, spec.prefix_len)
            words.append(f"-M {show(mask) if key.family is Family.V4 else spec.prefix_len}")
    if spec.flags & ONE_PACKET:
        words.append("-o")
    named = {"sh": ("sh-fallback", "sh-port"), "mh": ("mh-fallback", "mh-port")}.get(spec.scheduler)
    names = named or ("flag-1", "flag-2")
    flags = [
        name for bit, name in ((SCHED1, names[0]), (SCHED2, names[1]), (SCHED3, "flag-3")) if spec.flags & bit
    ]
    if flags:
        words.append(f"-b {','.join(flags)}")
    return " ".join(words)


def dest_line(service: ServiceKey, key: DestKey, spec: DestSpec) -> str:
    """The line of ``ipvsadm -Sn`` that adds a real server."""
    method = {MASQ: "-m", TUNNEL: "-i", ROUTE: "-g", LOCALNODE: "-g"}.get(spec.method, "-m")
    words = f"-a {service_words(service)} -r {_host_port(key.address, key.port)} {method} -w {spec.weight}"
    if spec.upper or spec.lower:
        words += f" -x {spec.upper} -y {spec.lower}"
    if spec.method == TUNNEL:
        words += f" --tun-type {_TUNNELS.get(spec.tunnel, str(spec.tunnel))}"
        words += f" --tun-port {spec.tunnel_port}" if spec.tunnel == TUN_GUE else ""
        if spec.tunnel != TUN_IPIP:
            words += f" --tun-{_CHECKSUMS.get(spec.tunnel_flags, spec.tunnel_flags)}"
    return words


def _host_port(address: bytes, port: int) -> str:
    host = show(address)
    return f"[{host}]:{port}" if len(address) == 16 else f"{host}:{port}"


def _dest_identity(key: DestKey) -> bytes:
    return (
        attr_u16(DEST_FAMILY, Family.of_packed(key.address))
        + attr(DEST_ADDR, key.address.ljust(16, b"\0"))
        + attr(DEST_PORT, key.port.to_bytes(2, "big"))
    )


def _netmask(family: Family, prefix_len: int) -> bytes:
    """IPv4: the mask in network order; IPv6: the prefix length in host order. 0 stands for a whole address."""
    bits = prefix_len or family.bits
    if family is Family.V6:
        return struct.pack("=I", bits)
    return ((1 << 32) - (1 << (32 - bits))).to_bytes(4, "big")


def _prefix_len(family: Family, mask: bytes) -> int:
    bits = _u32(mask) if family is Family.V6 else int.from_bytes(mask, "big").bit_count()
    return 0 if bits == family.bits else bits


def _stats(data: bytes) -> Stats:
    attrs = parse_attrs(data)
    names = (STATS_CONNS, STATS_INPKTS, STATS_OUTPKTS, STATS_INBYTES, STATS_OUTBYTES)
    return Stats(*(_STAT64.unpack(attrs[name])[0] if name in attrs else 0 for name in names))


def _u32(payload: bytes | None) -> int:
    return int(struct.unpack_from("=I", payload)[0]) if payload else 0


def _u16(payload: bytes | None) -> int:
    return int(struct.unpack_from("=H", payload)[0]) if payload else 0
