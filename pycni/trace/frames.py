"""Probes as bytes, and what of them is in captured frames, however wrapped. Pure.

A probe is known by 32 random bits, its token, which no translation changes: TCP's sequence number (RFC 9293 section
3.1; the answer acknowledges it plus one), the first word of a UDP datagram or an ICMP echo (RFC 792, RFC 4443). ICMP
errors carry the packet they are about, with the token in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow

ETHERNET = 14
VXLAN_PORTS = frozenset({8472, 4789})
FLANNEL_UDP = 8285
_IPIP, _IPV6_IN_IP = 4, 41
_SYN = 0x02
_ECHO = {ICMP: (8, 0), ICMPV6: (128, 129)}
"""Request and answer by protocol."""
_ERRORS = {ICMP: frozenset({3, 4, 11, 12}), ICMPV6: frozenset({1, 2, 3, 4})}
_HEADS = (20, 40, 34, 54, 62, 82, 84, 102, 104, 124)
"""Where the transport header may begin: plain, with Ethernet, in IP, in our UDP, in VXLAN; of both families."""
_LD_W, _LD_LEN, _JEQ, _JGE, _RET = 0x20, 0x80, 0x15, 0x35, 0x06


class Dissected(NamedTuple):
    """A probe or what it caused."""

    flow: Flow
    """Innermost."""
    kind: str
    """probe, answer, reset or error (an ICMP message about the probe)."""
    overhead: int
    """Bytes around the innermost IP packet, without the outer Ethernet header."""
    said: str = ""


def probe(flow: Flow, token: int) -> bytes:
    """The transport header and payload of a first packet, checksummed."""
    word = struct.pack("!I", token)
    if flow.protocol == TCP:
        options = struct.pack("!BBH", 2, 4, 1200)  # MSS, as a real SYN has one
        head = struct.pack(
            "!HHIIBBHHH", flow.source_port, flow.destination_port, token, 0, 6 << 4, _SYN, 64240, 0, 0
        )
        return _summed(flow, head + options, 16)
    if flow.protocol == UDP:
        body = word + b"pycni trace\n"
        head = struct.pack("!HHHH", flow.source_port, flow.destination_port, 8 + len(body), 0)
        return _summed(flow, head + body, 6)
    head = struct.pack("!BBHHH", _ECHO[flow.protocol][0], 0, 0, flow.source_port, 1)
    return _summed(flow, head + word + bytes(range(52)), 2)


def _summed(flow: Flow, packet: bytes, at: int) -> bytes:
    """With its checksum (RFC 1071) over the pseudo header, which ICMP for IPv4 has not."""
    pseudo = b""
    if flow.protocol != ICMP:
        pseudo = flow.source + flow.destination + struct.pack("!II", len(packet), flow.protocol)
    data = pseudo + packet
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = (~total & 0xFFFF) or (0xFFFF if flow.protocol == UDP else 0)
    return packet[:at] + struct.pack("!H", checksum) + packet[at + 2 :]


def socket_filter(token: int) -> list[tuple[int, int, int, int]]:
    """A classic BPF program (code, jt, jf, k) that lets through what has the token, at any depth, and nothing else.

    It looks at fixed places only, so that packets of hundreds of other connections cost a few nanoseconds each.
    """
    program: list[tuple[int, int, int, int]] = [(_LD_LEN, 0, 0, 0)]
    wanted = (token, (token + 1) & 0xFFFFFFFF)
    for start in sorted({head + more for head in _HEADS for more in (0, 28, 48)}):
        for offset, values in ((start + 4, wanted[:1]), (start + 8, wanted)):
            tests = [step for value in values for step in ((_JEQ, 0, 1, value), (_RET, 0, 0, 0xFFFF))]
            # A load behind the packet's end would end the program: look at the length first.
            program += [
                (_LD_LEN, 0, 0, 0),
                (_JGE, 0, 1 + len(tests), offset + 4),
                (_LD_W, 0, 0, offset),
                *tests,
            ]
    return [*program, (_RET, 0, 0, 0)]


def dissect(frame: bytes, token: int, *, ethernet: bool = True) -> Dissected | None:
    """What a frame has to do with a probe; None: nothing, or nothing that can be seen (it is encrypted)."""
    for depth, packet in _inside(frame[ETHERNET:] if ethernet else frame):
        parts = _ip(packet)
        if parts is None:
            return None
        found = _judge(parts, token)
        if found is not None:
            return found._replace(overhead=depth)
    return None


class _Parts(NamedTuple):
    protocol: int
    source: bytes
    destination: bytes
    rest: bytes


def _ip(packet: bytes) -> _Parts | None:
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        return _Parts(packet[9], packet[12:16], packet[16:20], packet[size:])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return _Parts(packet[6], packet[8:24], packet[24:40], packet[40:])
    return None


def _inside(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """The packet, and what is in it, with the bytes around."""
    depth = 0
    while True:
        yield depth, packet
        parts = _ip(packet)
        if parts is None:
            return
        size = len(packet) - len(parts.rest)
        if parts.protocol in {_IPIP, _IPV6_IN_IP}:
            skip = size
        elif parts.protocol == UDP and len(parts.rest) >= 8:
            port = struct.unpack_from("!H", parts.rest, 2)[0]
            if port == FLANNEL_UDP:
                skip = size + 8
            elif port in VXLAN_PORTS or parts.rest[8:9] == b"\x08":
                skip = size + 8 + 8 + ETHERNET
            else:
                return
        else:
            return
        depth, packet = depth + skip, packet[skip:]


def _judge(parts: _Parts, token: int) -> Dissected | None:
    rest, protocol = parts.rest, parts.protocol
    if protocol in _ERRORS and len(rest) >= 8 and rest[0] in _ERRORS[protocol]:
        about = _ip(rest[8:])
        if about is None or _kind(about, token) is None:
            return None
        flow = Flow(protocol=protocol, source=parts.source, destination=parts.destination)
        return Dissected(flow, "error", 0, f"ICMP type {rest[0]} code {rest[1]}")
    kind = _kind(parts, token)
    if kind is None:
        return None
    ports = (
        struct.unpack_from("!HH", rest)
        if protocol in {TCP, UDP}
        else (struct.unpack_from("!H", rest, 4)[0], 0)
    )
    flow = Flow(
        protocol=protocol,
        source=parts.source,
        destination=parts.destination,
        source_port=ports[0],
        destination_port=ports[1],
    )
    return Dissected(flow, kind, 0)


def _kind(parts: _Parts, token: int) -> str | None:
    """What a transport packet is to the probe; an embedded one may be cut behind eight bytes."""
    rest = parts.rest
    if len(rest) < 8:
        return None
    word = struct.unpack_from("!I", rest, 4)[0]
    if parts.protocol == TCP:
        if word == token:
            return "probe"
        if len(rest) >= 14 and struct.unpack_from("!I", rest, 8)[0] == (token + 1) & 0xFFFFFFFF:
            return "reset" if rest[13] & 0x04 else "answer"
        return None
    if len(rest) < 12 or struct.unpack_from("!I", rest, 8)[0] != token:
        return None
    if parts.protocol in _ECHO:
        return "answer" if rest[0] == _ECHO[parts.protocol][1] else "probe"
    return "probe" if parts.protocol == UDP else None
