"""Captured frames as a file for Wireshark and its like: pcapng, an interface per place. Pure.

Source: draft-ietf-opsawg-pcapng, sections 4.1 to 4.3: blocks of type, length, body padded to 32 bits, length again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC, _MAJOR, _MINOR = 0x1A2B3C4D, 1, 0
_ETHERNET, _RAW_IP = 1, 101
"""LINKTYPE_ETHERNET, LINKTYPE_RAW."""
_IF_NAME, _IF_RESOLUTION, _FLAGS = 2, 9, 2
_NANOSECONDS = bytes([9])
_INBOUND, _OUTBOUND = 1, 2
_UNLIMITED = 0
"""Snapshot length."""


class Captured(Protocol):
    """What is written of a frame (``kernel.capture.Frame``)."""

    @property
    def node(self) -> str:
        """Where it was captured."""

    @property
    def space(self) -> str:
        """In which of the node's namespaces."""

    @property
    def interface(self) -> str:
        """By which interface."""

    @property
    def outgoing(self) -> bool:
        """Whether it left by it."""

    @property
    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def data(self) -> bytes:
        """The frame."""

    @property
    def ethernet(self) -> bool:
        """Whether it begins with an Ethernet header."""


def pcapng(frames: Iterable[Captured]) -> bytes:
    """The file, frames in the order given."""
    return b"".join(_blocks(frames))


def _blocks(frames: Iterable[Captured]) -> Iterator[bytes]:
    yield _block(_SECTION, struct.pack("=IHHq", _MAGIC, _MAJOR, _MINOR, -1))
    numbers: dict[tuple[str, str, str, bool], int] = {}
    for frame in frames:
        place = (frame.node, frame.space, frame.interface, frame.ethernet)
        if place not in numbers:
            numbers[place] = len(numbers)
            name = " ".join(part for part in place[:3] if part).encode()
            options = _option(_IF_NAME, name) + _option(_IF_RESOLUTION, _NANOSECONDS) + _option(0, b"")
            kind = _ETHERNET if frame.ethernet else _RAW_IP
            yield _block(_INTERFACE, struct.pack("=HHI", kind, 0, _UNLIMITED) + options)
        size = len(frame.data)
        head = struct.pack(
            "=IIIII", numbers[place], frame.time_ns >> 32, frame.time_ns & 0xFFFFFFFF, size, size
        )
        way = struct.pack("=I", _OUTBOUND if frame.outgoing else _INBOUND)
        yield _block(_PACKET, head + _padded(frame.data) + _option(_FLAGS, way) + _option(0, b""))


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
