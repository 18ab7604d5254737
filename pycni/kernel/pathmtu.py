"""Which sizes of packets get to a node and back: pings that nobody may cut into pieces, to all peers at once.

Life: ``answered`` opens two raw sockets in the calling thread's namespace, sends every size to every peer, waits for
what comes back and closes them. The path's MTU that the kernel remembers is not asked (IP_PMTUDISC_PROBE): what counts
is what arrives. Sources: RFC 792, RFC 4443, ip(7), ipv6(7).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence

from pycni.errors import KernelError
from pycni.model.family import Family, show

SMALL = 100
"""Bytes of a packet that passes everywhere."""
PATIENCE_S = 1.0
"""For all answers together; a silent peer is asked twice in it."""
_HEADER = {Family.V4: 28, Family.V6: 48}
_REQUEST = {Family.V4: 8, Family.V6: 128}
_REPLY = {Family.V4: 0, Family.V6: 129}
_PROBE = 3
_SETUP = {
    Family.V4: (socket.AF_INET, socket.IPPROTO_ICMP, socket.IPPROTO_IP, 10),  # IP_MTU_DISCOVER
    Family.V6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, socket.IPPROTO_IPV6, 23),  # IPV6_MTU_DISCOVER
}
_BUFFER_BYTES = 65536


def answered(
    peers: Sequence[bytes], sizes: Sequence[int], patience_s: float = PATIENCE_S
) -> Mapping[bytes, frozenset[int]]:
    """The sizes (bytes of IP packets) that came back, by peer. Raises KernelError when raw sockets are refused."""
    ident = int.from_bytes(os.urandom(2), "big")
    got: dict[bytes, set[int]] = {peer: set() for peer in peers}
    with contextlib.ExitStack() as stack:
        sockets = {
            family: stack.enter_context(_socket(family)) for family in {Family.of_packed(p) for p in peers}
        }
        deadline = time.monotonic() + patience_s
        for until in (deadline - patience_s / 2, deadline):
            missing = [(peer, at) for peer in peers for at in range(len(sizes)) if sizes[at] not in got[peer]]
            for peer, at in missing:
                family = Family.of_packed(peer)
                with contextlib.suppress(OSError):  # no route, larger than the device takes: not answered
                    sockets[family].sendto(_echo(family, ident, at, sizes[at]), (show(peer), 0))
            while (
                any(len(found) < len(sizes) for found in got.values())
                and (left := until - time.monotonic()) > 0
            ):
                _collect(sockets, left, ident, sizes, got)
    return {peer: frozenset(found) for peer, found in got.items()}


def _collect(
    sockets: Mapping[Family, socket.socket],
    left: float,
    ident: int,
    sizes: Sequence[int],
    got: dict[bytes, set[int]],
) -> None:
    ready, _, _ = select.select(list(sockets.values()), [], [], left)
    for family, sock in sockets.items():
        if sock not in ready:
            continue
        with contextlib.suppress(BlockingIOError):
            packet, sender = sock.recvfrom(_BUFFER_BYTES)
            peer = socket.inet_pton(_SETUP[family][0], sender[0].partition("%")[0])
            body = packet[(packet[0] & 15) * 4 :] if family is Family.V4 else packet
            if len(body) >= 8 and peer in got:
                kind, _code, _sum, theirs, at = struct.unpack_from("!BBHHH", body)
                if (kind, theirs) == (_REPLY[family], ident) and at < len(sizes):
                    got[peer].add(sizes[at])


def _socket(family: Family) -> socket.socket:
    domain, protocol, level, discover = _SETUP[family]
    try:
        sock = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    except OSError as exc:
        raise KernelError(exc.errno or 0, "open raw socket", family.label) from exc
    sock.setsockopt(level, discover, _PROBE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return sock


def _echo(family: Family, ident: int, sequence: int, size: int) -> bytes:
    """An echo request that makes an IP packet of ``size`` bytes; the kernel fills in ICMPv6's checksum."""
    body = bytes(max(size - _HEADER[family], 0))
    head = struct.pack("!BBHHH", _REQUEST[family], 0, 0, ident, sequence)
    if family is Family.V6:
        return head + body
    total = sum(struct.unpack("!4H", head))  # the rest is zeros
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", _REQUEST[family], 0, ~total & 0xFFFF, ident, sequence) + body
