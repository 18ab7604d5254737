"""ICMP and ICMPv6 as the lab's probes use them: echo requests out; replies and errors in. Pure.

Layouts: RFC 792 (echo, destination unreachable, time exceeded), RFC 1191 (next-hop MTU), RFC 4443 for IPv6. An error
quotes the packet it is about: its IP header and at least the first eight bytes behind it, which is enough to find
the check that sent it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pycni.model.family import Family

ICMP = 1
TCP = 6
UDP = 17
ICMP6 = 58
HEADER = 8
"""Bytes of an echo header."""
IP_HEADER = {Family.V4: 20, Family.V6: 40}

_ECHO_REQUEST = {Family.V4: 8, Family.V6: 128}
_ECHO_REPLY = {Family.V4: 0, Family.V6: 129}
_UNREACHABLE = {Family.V4: 3, Family.V6: 1}
_TOO_BIG6 = 2
_TIME_EXCEEDED = {Family.V4: 11, Family.V6: 3}
WANTED = {Family.V4: (0, 3, 11), Family.V6: (1, 2, 3, 129)}
"""Types a probe's raw socket lets through."""

_CODES = {
    (Family.V4, 0): "network unreachable",
    (Family.V4, 1): "host unreachable",
    (Family.V4, 2): "protocol unreachable",
    (Family.V4, 3): "port unreachable",
    (Family.V4, 9): "prohibited by a filter",
    (Family.V4, 10): "prohibited by a filter",
    (Family.V4, 13): "prohibited by a filter",
    (Family.V6, 0): "no route",
    (Family.V6, 1): "prohibited by a filter",
    (Family.V6, 3): "address unreachable",
    (Family.V6, 4): "port unreachable",
    (Family.V6, 5): "prohibited by a filter",
    (Family.V6, 6): "route rejected",
}


class Echo(NamedTuple):
    """An echo reply."""

    ident: int
    sequence: int
    payload: bytes


class Refusal(NamedTuple):
    """An error about a packet of ours."""

    protocol: int
    destination: bytes
    """Where the packet was to go, packed."""
    first: int
    """ICMP: identifier; UDP and TCP: source port."""
    second: int
    """ICMP: sequence number; UDP and TCP: destination port."""
    text: str


def echo_request(family: Family, ident: int, sequence: int, payload: bytes) -> bytes:
    """An echo request; ICMPv6 checksums cover the addresses and are filled in by the kernel (RFC 3542 section 3.1)."""
    head = struct.pack("!BBHHH", _ECHO_REQUEST[family], 0, 0, ident, sequence)
    if family is Family.V6:
        return head + payload
    return struct.pack("!BBHHH", 8, 0, checksum(head + payload), ident, sequence) + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse(family: Family, packet: bytes, sender: str) -> Echo | Refusal | None:
    """What a raw socket received: IPv4 packets come with their IP header, IPv6 ones without. None: neither."""
    if family is Family.V4:
        packet = packet[(packet[0] & 15) * 4 :]
    if len(packet) < HEADER:
        return None
    kind, code, _sum, first, second = struct.unpack_from("!BBHHH", packet)
    if kind == _ECHO_REPLY[family]:
        return Echo(first, second, packet[HEADER:])
    text = _refusal_text(family, kind, code, (first << 16) | second)
    quoted = _quoted(family, packet[HEADER:])
    if text is None or quoted is None:
        return None
    return Refusal(*quoted, f"{sender} says: {text}")


def _refusal_text(family: Family, kind: int, code: int, argument: int) -> str | None:
    if family is Family.V4 and (kind, code) == (3, 4):
        return f"packet too big, next hop takes {argument & 0xFFFF} bytes"
    if family is Family.V6 and kind == _TOO_BIG6:
        return f"packet too big, next hop takes {argument} bytes"
    if kind == _UNREACHABLE[family]:
        return _CODES.get((family, code), f"destination unreachable (code {code})")
    if kind == _TIME_EXCEEDED[family]:
        return "hop limit exceeded: a routing loop"
    return None


def _quoted(family: Family, packet: bytes) -> tuple[int, bytes, int, int] | None:
    """Protocol, destination and the two numbers that name the flow, of the packet an error quotes."""
    length = (packet[0] & 15) * 4 if family is Family.V4 and packet else IP_HEADER[family]
    if len(packet) < length + HEADER:
        return None
    if family is Family.V4:
        protocol, destination = packet[9], packet[16:20]
    else:
        protocol, destination = packet[6], packet[24:40]
    offset = length + (4 if protocol in {ICMP, ICMP6} else 0)
    first, second = struct.unpack_from("!HH", packet, offset)
    return protocol, destination, first, second
