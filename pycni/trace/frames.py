"""Probes as bytes, and what of them is in captured frames, however wrapped. Pure.

A probe is known by 32 random bits, its token, which no translation changes: TCP's sequence number (RFC 9293 section
3.1; the answer acknowledges it plus one), the first word of a UDP datagram or an ICMP echo (RFC 792, RFC 4443). ICMP
errors carry the packet they are about, with the token in it. What a UDP program answers is known by the probe's fresh
source port. Many probes of one watch have the upper half of their tokens in common.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pycni.model.spot import Spot
from pycni.trace.checksums import damage
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow

ETHERNET = 14
VXLAN_PORTS = frozenset({8472, 4789})
FLANNEL_UDP = 8285
_IPIP, _IPV6_IN_IP = 4, 41
_SYN = 0x02
_ECHO = {ICMP: (8, 0), ICMPV6: (128, 129)}
"""Request and answer by protocol."""
_ERRORS = {ICMP: frozenset({3, 4, 11, 12}), ICMPV6: frozenset({1, 2, 3, 4})}
_HEAD = {4: 20, 6: 40}
_ERROR_HEAD = 8
_DNS = 53
NAME_FLAGS = 0x0100
"""Lower half of a token that is a question's: recursion is desired."""
_AROUND = ((0, 0), (UDP, 8), (UDP, 8 + 8 + ETHERNET))
"""Between an outer and an inner IP header: protocol (0: IPIP, by the inner version) and bytes: IPIP, our UDP, VXLAN."""
_INNER = {4: 4, 6: 41}
_LD_W, _LD_H, _LD_LEN, _JEQ, _JGE, _RET = 0x20, 0x28, 0x80, 0x15, 0x35, 0x06
ALL_BITS, UPPER_HALF = 32, 16
"""How many bits of their tokens probes of one watch have in common."""


class Dissected(NamedTuple):
    """A probe or what it caused."""

    flow: Flow
    """Innermost."""
    kind: str
    """probe, answer, reset or error (an ICMP message about the probe)."""
    overhead: int
    """Bytes around the innermost IP packet, without the outer Ethernet header."""
    said: str = ""
    token: int = 0
    """The probe's; 0 where only its port tells (an answer of a UDP program)."""
    damaged: str = ""
    """Of a probe: its checksum that is wrong."""


def probe(flow: Flow, token: int, size: int = 0) -> bytes:
    """The transport header and payload of a first packet, checksummed.

    ``size``: bytes of the whole IP packet (its header without options), 0: as small as it comes.
    """
    word = struct.pack("!I", token)
    if flow.protocol == TCP:
        options = struct.pack("!BBH", 2, 4, 1200)  # MSS, as a real SYN has one
        head = struct.pack(
            "!HHIIBBHHH", flow.source_port, flow.destination_port, token, 0, 6 << 4, _SYN, 64240, 0, 0
        )
        return _summed(flow, head + options + _filling(flow, size, len(head + options)), 16)
    if flow.protocol == UDP:
        body = _question(word) if asks_names(flow) else word + b"pycni trace\n"
        body += _filling(flow, size, 8 + len(body))
        head = struct.pack("!HHHH", flow.source_port, flow.destination_port, 8 + len(body), 0)
        return _summed(flow, head + body, 6)
    head = struct.pack("!BBHHH", _ECHO[flow.protocol][0], 0, 0, flow.source_port, token & 0xFFFF)
    body = word + bytes(range(52))
    return _summed(flow, head + body + _filling(flow, size, len(head + body)), 2)


def asks_names(flow: Flow) -> bool:
    """Whether a probe is a question of DNS: its servers answer nothing else."""
    return flow.protocol == UDP and flow.destination_port == _DNS


def _question(word: bytes) -> bytes:
    """For the name servers of the root (RFC 1035 section 4.1); the token is identifier and flags."""
    return word + struct.pack("!HHHH", 1, 0, 0, 0) + b"\0" + struct.pack("!HH", 2, 1)


def _filling(flow: Flow, size: int, there: int) -> bytes:
    """What a packet lacks of its size."""
    return bytes(max(size - _HEAD[4 if len(flow.source) == 4 else 6] - there, 0))


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


class Place(NamedTuple):
    """Where a transport header may begin."""

    version: int
    """Of the outermost IP header."""
    protocol: int
    """The outermost one's."""
    offset: int
    """From the outermost network header on."""
    inside_error: bool
    """It is what an ICMP error is about."""


def places(version: int, protocol: int) -> Iterator[Place]:
    """All places of a packet of that version and protocol: as it is, in overlays' packets, in ICMP errors."""
    head, error = _HEAD[version], ICMP if version == 4 else ICMPV6
    yield Place(version, protocol, head, False)
    yield Place(version, error, head + _ERROR_HEAD + head, True)
    for outer in (4, 6):
        for around, gap in _AROUND:
            start = _HEAD[outer] + gap + head
            yield Place(outer, around or _INNER[version], start, False)
            yield Place(outer, around or _INNER[version], start + _ERROR_HEAD + head, True)


def spots(flows: Sequence[Flow], token: int, bits: int = ALL_BITS) -> list[Spot]:
    """What probes of these flows (all of one family and protocol) and their answers are known by.

    ``bits``: of the token, upper ones first, that all probes have in common: 32 or 16.
    """
    version, protocol = 4 if len(flows[0].source) == 4 else 6, flows[0].protocol
    word = token.to_bytes(4, "big")[: bits // 8]
    # TCP's answer acknowledges the token plus one; of many probes that changes the lower half only.
    next_word = ((token + 1) & 0xFFFFFFFF).to_bytes(4, "big")[: bits // 8]
    found: dict[Spot, None] = {}
    for place in places(version, protocol):
        at = [(4, word)] if protocol == TCP else [(8, word)]
        if protocol == TCP and not place.inside_error:
            at.append((8, next_word))
        if protocol == UDP and not place.inside_error:
            at += [(2, flow.source_port.to_bytes(2, "big")) for flow in flows]
        found |= dict.fromkeys(
            Spot(place.version, place.protocol, place.offset + offset, value) for offset, value in at
        )
    return list(found)


def answer_port(flow: Flow) -> int:
    """By which port answers to a probe are known; 0: by its token."""
    return flow.source_port if flow.protocol == UDP else 0


def socket_filter(spots: Iterable[Spot]) -> list[tuple[int, int, int, int]]:
    """A classic BPF program (code, jt, jf, k) that lets through what has one of the spots, and nothing else.

    It looks at fixed places only, so that packets of hundreds of other connections cost a few nanoseconds each; with an
    Ethernet header and without. Spots of two and of four bytes.
    """
    program: list[tuple[int, int, int, int]] = []
    wanted = {(spot.offset + link, spot.value) for spot in spots for link in (0, ETHERNET)}
    for offset, value in sorted(wanted):
        # A load behind the packet's end would end the program: look at the length first.
        program += [
            (_LD_LEN, 0, 0, 0),
            (_JGE, 0, 3, offset + len(value)),
            (_LD_W if len(value) == 4 else _LD_H, 0, 0, offset),
            (_JEQ, 0, 1, int.from_bytes(value, "big")),
            (_RET, 0, 0, 0xFFFF),
        ]
    return [*program, (_RET, 0, 0, 0)]


def dissect(
    frame: bytes, token: int, *, ethernet: bool = True, bits: int = ALL_BITS, port: int = 0
) -> Dissected | None:
    """What a frame has to do with a probe; None: nothing, or nothing that can be seen (it is encrypted).

    ``bits``: how many of the token's upper bits have to fit. ``port``: the source port of a UDP probe, by which its
    answer is known; 0: answers of UDP are not told.
    """
    known = _Known(token >> ALL_BITS - bits, ALL_BITS - bits, port)
    for depth, packet in inside(frame[ETHERNET:] if ethernet else frame):
        parts = split_ip(packet)
        if parts is None:
            return None
        found = _judge(parts, known)
        if found is not None:
            return found._replace(overhead=depth, damaged=damage(packet) if found.kind == "probe" else "")
    return None


class _Known(NamedTuple):
    token: int
    """Without the bits that may differ."""
    shift: int
    port: int

    def fits(self, word: int) -> bool:
        """Whether a word is the token of one of the probes."""
        return word >> self.shift == self.token


class Parts(NamedTuple):
    """An IP packet."""

    protocol: int
    source: bytes
    destination: bytes
    rest: bytes


def split_ip(packet: bytes) -> Parts | None:
    """Its addresses and what it carries; None: no IP packet, or cut."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        return Parts(packet[9], packet[12:16], packet[16:20], packet[size:])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return Parts(packet[6], packet[8:24], packet[24:40], packet[40:])
    return None


def inside(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """The packet, and what is in it, with the bytes around."""
    depth = 0
    while True:
        yield depth, packet
        parts = split_ip(packet)
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


def _judge(parts: Parts, known: _Known) -> Dissected | None:
    rest, protocol = parts.rest, parts.protocol
    if protocol in _ERRORS and len(rest) >= 8 and rest[0] in _ERRORS[protocol]:
        about = split_ip(rest[8:])
        found = _kind(about, known) if about is not None else None
        if found is None:
            return None
        flow = Flow(protocol=protocol, source=parts.source, destination=parts.destination)
        return Dissected(flow, "error", 0, f"ICMP type {rest[0]} code {rest[1]}", found[1])
    found = _kind(parts, known)
    if found is None:
        return None
    return Dissected(flow_of(parts), found[0], 0, token=found[1])


def flow_of(parts: Parts) -> Flow:
    """The flow of a packet that has at least eight bytes behind its IP header."""
    echo = parts.protocol not in {TCP, UDP}
    ports = (struct.unpack_from("!H", parts.rest, 4)[0], 0) if echo else struct.unpack_from("!HH", parts.rest)
    return Flow(
        protocol=parts.protocol,
        source=parts.source,
        destination=parts.destination,
        source_port=ports[0],
        destination_port=ports[1],
    )


def _kind(parts: Parts, known: _Known) -> tuple[str, int] | None:
    """What a transport packet is to the probe, and its token; an embedded one may be cut behind eight bytes."""
    rest = parts.rest
    if len(rest) < 8:
        return None
    if parts.protocol == TCP:
        word = struct.unpack_from("!I", rest, 4)[0]
        if known.fits(word):
            return "probe", word
        before = (struct.unpack_from("!I", rest, 8)[0] - 1) & 0xFFFFFFFF if len(rest) >= 14 else 0
        if len(rest) >= 14 and known.fits(before):
            return ("reset" if rest[13] & 0x04 else "answer"), before
        return None
    word = struct.unpack_from("!I", rest, 8)[0] if len(rest) >= 12 else 0
    mine = len(rest) >= 12 and known.fits(word)
    if parts.protocol == UDP:
        if known.port and struct.unpack_from("!H", rest, 2)[0] == known.port:
            return "answer", word if mine else 0
        return ("probe", word) if mine else None
    if parts.protocol in _ECHO and mine:
        return ("answer" if rest[0] == _ECHO[parts.protocol][1] else "probe"), word
    return None
