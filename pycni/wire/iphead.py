"""The addresses and ports of a packet from its first bytes. Pure.

Life: what told of a packet (nfnetlink_log, a program's ring buffer) hands over its beginning; ``decode`` walks the IPv4
header or IPv6's chain of headers to the transport header. What was cut off or is not there is 0.
Sources: RFC 791, RFC 826, RFC 8200 section 4, RFC 4302 (AH), IANA "Protocol Numbers".
"""

from __future__ import annotations

from typing import NamedTuple

_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite: two ports come first."""
_FRAGMENT, _AUTHENTICATION, _NONE = 44, 51, 59
_EXTENSIONS = frozenset({0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140})

ETH_ARP = 0x0806


class IpHead(NamedTuple):
    """What a packet's first bytes tell."""

    source: bytes
    destination: bytes
    protocol: int
    """Of the transport header; of IPv6 the last one that could be read."""
    source_port: int = 0
    """0 where there are none, as in later fragments; so is ``port``."""
    port: int = 0


def decode(data: bytes) -> IpHead | None:
    """None when this is no IP header or less than one."""
    if not data:
        return None
    return _ipv4(data) if data[0] >> 4 == 4 else _ipv6(data) if data[0] >> 4 == 6 else None


def arp(data: bytes) -> IpHead | None:
    """Sender and target of ARP for IPv4, with protocol 0; None when this is something else."""
    if len(data) < 28 or data[2:6] != b"\x08\x00\x06\x04":
        return None
    return IpHead(data[14:18], data[24:28], 0)


def _ipv4(data: bytes) -> IpHead | None:
    size = (data[0] & 0x0F) * 4
    if size < 20 or len(data) < 20:
        return None
    later = int.from_bytes(data[6:8], "big") & 0x1FFF
    return IpHead(data[12:16], data[16:20], data[9], *_ports(data, data[9], -1 if later else size))


def _ipv6(data: bytes) -> IpHead | None:
    if len(data) < 40:
        return None
    protocol, at = data[6], 40
    while protocol in _EXTENSIONS and at + 8 <= len(data):
        following, length = data[at], data[at + 1]
        if protocol == _FRAGMENT and int.from_bytes(data[at + 2 : at + 4], "big") >> 3:
            return IpHead(data[8:24], data[24:40], following)
        size = (
            8
            if protocol == _FRAGMENT
            else (length + 2) * 4
            if protocol == _AUTHENTICATION
            else (length + 1) * 8
        )
        protocol, at = following, at + size
    return IpHead(data[8:24], data[24:40], protocol, *_ports(data, protocol, at))


def _ports(data: bytes, protocol: int, at: int) -> tuple[int, int]:
    if protocol not in _PORTS or at < 0 or len(data) < at + 4:
        return 0, 0
    return int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
