"""UDP in large pieces: a burst of equal datagrams is one system call each way (UDP_SEGMENT, UDP_GRO).

include/uapi/linux/udp.h. What an older kernel or a device cannot do is done datagram by datagram.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Sequence

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IP_FREEBIND, IPV6_FREEBIND = 15, 78
BUFFER_BYTES = 8 << 20
PIECE_BYTES = 65000
"""The most one call sends: an IPv4 packet's 65,535 bytes with all its headers."""
PIECE_PACKETS = 64
"""UDP_MAX_SEGMENTS of older kernels."""
TOO_LARGE = frozenset({errno.EINVAL, errno.EMSGSIZE})
"""Refusals of a burst that hold for this path: its MTU is smaller than the datagrams."""

_SIZE = struct.Struct("=H")
_INT = struct.Struct("=i")


def udp_socket(address: bytes, port: int) -> socket.socket:
    """A bound socket that does not block. The address need not be there yet. Raises OSError."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(PermissionError):  # in a user namespace: what the host allows has to do
            made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        with contextlib.suppress(OSError):  # before Linux 5.0
            made.setsockopt(SOL_UDP, UDP_GRO, 1)
        made.bind((socket.inet_ntop(family, address), port))
    except BaseException:
        made.close()
        raise
    return made


def pieces(packets: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut a burst, in order, into runs that one call can send: all of one length, the last one not longer.

    No datagram is empty.
    """
    start = 0
    while start < len(packets):
        size = len(packets[start])
        limit = min(len(packets), start + max(1, min(PIECE_PACKETS, PIECE_BYTES // size)))
        end = start + 1
        while end < limit and len(packets[end]) == size:
            end += 1
        if end < limit and len(packets[end]) < size:
            end += 1
        yield packets[start:end]
        start = end


def send_piece(sock: socket.socket, packets: Sequence[bytes], address: tuple[str, int]) -> None:
    """One of ``pieces``. Raises OSError."""
    if len(packets) == 1:
        sock.sendto(packets[0], address)
    else:
        control = [(SOL_UDP, UDP_SEGMENT, _SIZE.pack(len(packets[0])))]
        sock.sendmsg(packets, control, 0, address)


def segment_size(control: Sequence[tuple[int, int, bytes]], size: int) -> int:
    """Length of each datagram but the last in what one call received."""
    for level, kind, value in control:
        if level == SOL_UDP and kind == UDP_GRO and len(value) >= _INT.size:
            return int(_INT.unpack_from(value)[0]) or size
    return size
