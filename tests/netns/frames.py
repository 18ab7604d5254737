"""Ethernet frames byte by byte, true and forged, sent from and caught in namespaces."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

ETH_P_ALL = 3
BROADCAST = b"\xff" * 6
IP, IP6, ARP = 0x0800, 0x86DD, 0x0806
ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str | bytes) -> bytes:
    return address if isinstance(address, bytes) else ipaddress.ip_address(address).packed


def ether(
    destination: bytes, source: bytes, payload: bytes, kind: int = 0, *, tags: Sequence[int] = ()
) -> bytes:
    """``tags``: 802.1Q identifiers, outermost first; the type is told from the payload unless given."""
    kind = kind or (IP6 if payload[0] >> 4 == 6 else IP)
    tagged = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return destination + source + tagged + struct.pack(">H", kind) + payload


def ip(
    source: str | bytes,
    destination: str | bytes,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    offset: int = 0,
    more: bool = False,
    ident: int = 0x1234,
    hops: int = 64,
    summed: bool = True,
) -> bytes:
    """An IP packet of the addresses' family. ``options``: IPv4 options; ``offset``: of a fragment, bytes."""
    ends = packed(source), packed(destination)
    if summed and not offset and not more:
        payload = _with_sum(ends, protocol, payload)
    if len(ends[0]) == 16:
        if offset or more:
            payload = struct.pack(">BBHI", protocol, 0, offset | more, ident) + payload
            protocol = 44
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, hops) + ends[0] + ends[1] + payload
    options += bytes(-len(options) % 4)
    size = 20 + len(options)
    field = offset // 8 | (0x2000 if more else 0)
    head = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), ident, field, hops, protocol, 0)
    head += ends[0] + ends[1] + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def extended(
    source: str, destination: str, headers: Sequence[tuple[int, bytes]], protocol: int, payload: bytes
) -> bytes:
    """An IPv6 packet with extension headers (type, body behind the next-header byte)."""
    body = _with_sum((packed(source), packed(destination)), protocol, payload)
    following = protocol
    for kind, content in reversed(headers):
        body = bytes((following,)) + content + body
        following = kind
    return ip(source, destination, following, body, summed=False)


def udp(port: int, data: bytes = b"", source_port: int = 40000) -> bytes:
    return struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data


def tcp(
    port: int, data: bytes = b"", *, flags: int = 2, source_port: int = 40000, seq: int = 1, ack: int = 0
) -> bytes:
    """``flags``: 2 SYN, 16 ACK, 4 RST."""
    return struct.pack(">HHIIBBHHH", source_port, port, seq, ack, 0x50, flags, 8192, 0, 0) + data


def sctp_init(port: int, data: bytes = b"") -> bytes:
    """An INIT chunk; its checksum is left out, which only an SCTP stack minds."""
    return (
        struct.pack(">HHII", 40000, port, 0, 0)
        + struct.pack(">BBHIIHHI", 1, 0, 20 + len(data), 1, 65535, 1, 1, 1)
        + data
    )


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """ICMP or ICMPv6: type, code, what follows the checksum."""
    return struct.pack(">BBH", kind, code, 0) + body


def arp(operation: int, sender: tuple[bytes, str], target: tuple[bytes, str]) -> bytes:
    """An ARP packet for Ethernet and IPv4."""
    return (
        struct.pack(">HHBBH", 1, IP, 6, 4, operation)
        + sender[0]
        + packed(sender[1])
        + target[0]
        + packed(target[1])
    )


def advertisement(target: str, link: bytes) -> bytes:
    """A neighbour advertisement, override flag set."""
    return icmp(136, 0, b"\x20\0\0\0" + packed(target) + b"\x02\x01" + link)


def solicitation(target: str, link: bytes = b"") -> bytes:
    """A neighbour solicitation, with or without the sender's link address."""
    return icmp(135, 0, bytes(4) + packed(target) + (b"\x01\x01" + link if link else b""))


def group_mac(address: str) -> bytes:
    """The MAC a multicast address is sent to."""
    raw = packed(address)
    return b"\x33\x33" + raw[-4:] if len(raw) == 16 else b"\x01\x00\x5e" + bytes((raw[1] & 127,)) + raw[2:]


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


_SUMS = {ICMP: 2, IGMP: 2, TCP: 16, UDP: 6, ICMPV6: 2}


def _with_sum(ends: tuple[bytes, bytes], protocol: int, payload: bytes) -> bytes:
    at = _SUMS.get(protocol)
    if at is None or len(payload) < at + 2:
        return payload
    pseudo = b""
    if protocol not in {ICMP, IGMP}:
        pseudo = ends[0] + ends[1]
        pseudo += (
            struct.pack(">IHBB", len(payload), 0, 0, protocol)
            if len(ends[0]) == 16
            else struct.pack(">BBH", 0, protocol, len(payload))
        )
    value = checksum(pseudo + payload)
    return payload[:at] + struct.pack(">H", value or 0xFFFF) + payload[at + 2 :]


def wire(device: str) -> socket.socket:
    """A raw socket on a device of the calling thread's namespace, sending and catching."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((device, 0))
    return sock


class Catcher:
    """Frames that come in by a device, by what they carry."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.seen: list[bytes] = []

    def wait(self, *tokens: bytes, seconds: float = 0.4) -> set[bytes]:
        """Which of the tokens came within that time; at once when all have."""
        deadline = time.monotonic() + seconds
        while True:
            found = {token for token in tokens if any(token in frame for frame in self.seen)}
            left = deadline - time.monotonic()
            if left <= 0 or found == set(tokens):
                return found
            self._sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                frame, (_, _, kind, *_) = self._sock.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING:
                    self.seen.append(frame)


@contextlib.contextmanager
def catching(
    inside: Callable[[Callable[[], socket.socket]], socket.socket], device: str
) -> Iterator[Catcher]:
    """Catch in a namespace; ``inside`` runs a function there."""
    with inside(lambda: wire(device)) as sock:
        yield Catcher(sock)
