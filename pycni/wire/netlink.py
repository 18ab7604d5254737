"""Netlink framing without I/O: messages and attributes, bytes both ways.

Life: encoders (``wire/rtnl``, ``wire/tc``) build attributes and call ``message``; ``kernel/netlink`` patches the
sequence number (offset 8) and sends; ``split`` and ``parse_attrs`` take the kernel's answers apart.

    nlmsghdr: u32 length | u16 type | u16 flags | u32 sequence | u32 port     (include/uapi/linux/netlink.h)
    nlattr:   u16 length | u16 type | payload, padded to 4 bytes

All integers are in host byte order unless a name says ``be``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NLMSGERR_ATTR_MSG = 1

HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class Message(NamedTuple):
    """One message of a datagram."""

    kind: int
    flags: int
    seq: int
    payload: bytes
    port: int = 0
    """Of the socket it answers or, in an announcement, whose request is announced; 0: the kernel's own doing."""


class MalformedError(ValueError):
    """The bytes are no netlink message or attribute."""


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    size = len(payload)
    return _ATTR.pack(size + 4, kind) + payload + _PAD[size & 3]


def nested(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes (flag NLA_F_NESTED set)."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def attr_u8(kind: int, value: int) -> bytes:
    """An attribute with one byte."""
    return struct.pack("=HHBxxx", 5, kind, value)


def attr_u16(kind: int, value: int) -> bytes:
    """An attribute with 16 bits, host order."""
    return struct.pack("=HHHxx", 6, kind, value)


def attr_u32(kind: int, value: int) -> bytes:
    """An attribute with 32 bits, host order."""
    return struct.pack("=HHI", 8, kind, value)


def attr_u64(kind: int, value: int) -> bytes:
    """An attribute with 64 bits, host order."""
    return struct.pack("=HHQ", 12, kind, value)


def attr_be16(kind: int, value: int) -> bytes:
    """An attribute with 16 bits, network order."""
    return attr(kind, struct.pack(">H", value))


def attr_str(kind: int, text: str) -> bytes:
    """A zero-terminated string."""
    return attr(kind, text.encode() + b"\0")


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """A message with sequence and port 0; the length is filled in."""
    return HEADER.pack(len(payload) + 16, kind, flags, 0, 0) + payload


def parse_attrs(data: bytes | memoryview, offset: int = 0) -> dict[int, bytes]:
    """Attributes from ``offset`` on, by type (flag bits stripped); the last one of a type wins.

    Raises MalformedError when a length does not fit.
    """
    found: dict[int, bytes] = {}
    end = len(data)
    unpack = _ATTR.unpack_from
    while offset + 4 <= end:
        size, kind = unpack(data, offset)
        if size < 4 or offset + size > end:
            raise MalformedError(f"attribute at {offset}: length {size} in {end} bytes")
        found[kind & NLA_TYPE_MASK] = bytes(data[offset + 4 : offset + size])
        offset += (size + 3) & ~3
    return found


def text(payload: bytes) -> str:
    """A string attribute's text."""
    return payload.partition(b"\0")[0].decode(errors="replace")


def split(data: bytes | memoryview) -> Iterator[Message]:
    """The messages of one datagram. Raises MalformedError when a length does not fit."""
    offset, end = 0, len(data)
    unpack = HEADER.unpack_from
    while offset + 16 <= end:
        size, kind, flags, seq, port = unpack(data, offset)
        if size < 16 or offset + size > end:
            raise MalformedError(f"message at {offset}: length {size} in {end} bytes")
        yield Message(kind, flags, seq, bytes(data[offset + 16 : offset + size]), port)
        offset += (size + 3) & ~3


def parse_error(msg: Message) -> tuple[int, str]:
    """Errno (positive, 0 for an ACK) and extended-ack text of an NLMSG_ERROR message."""
    if len(msg.payload) < 4:
        raise MalformedError(f"error message of {len(msg.payload)} bytes")
    (code,) = _ERROR.unpack_from(msg.payload)
    if not msg.flags & NLM_F_ACK_TLVS or len(msg.payload) < 20:
        return -code, ""
    # The request's header follows the code; its payload too unless it was capped.
    (size,) = struct.unpack_from("=I", msg.payload, 4)
    offset = 20 if msg.flags & NLM_F_CAPPED else 4 + ((size + 3) & ~3)
    found = parse_attrs(msg.payload, offset)
    return -code, text(found.get(NLMSGERR_ATTR_MSG, b""))
