"""Messages of nfnetlink_log: joining a group, and the packets it tells of. Pure.

Life: ``kernel/nflog`` sends ``bind``, ``copy`` and ``settings`` once for its socket; each datagram from then on is
taken apart by ``decode``. A rule's ``log prefix "..." group N`` (nftables) decides what comes.

    nlmsghdr type: u8 message | u8 subsystem (4)     nfgenmsg: u8 family | u8 version | be16 group
    nfulnl_msg_packet_hdr: be16 protocol | u8 hook | pad      nfulnl_msg_config_mode: be32 bytes | u8 mode | pad
                                        (include/uapi/linux/netfilter/nfnetlink_log.h, net/netfilter/nfnetlink_log.c)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pycni.wire.netlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    MalformedError,
    attr,
    message,
    parse_attrs,
    split,
    text,
)

SUBSYSTEM = 4
_PACKET, _CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _CFG_BUFFER, _CFG_THRESHOLD, _CFG_FLAGS = 1, 2, 3, 5, 6
_BIND = 1
_COPY_PACKET = 2
_FLAG_SEQUENCE = 1
_HEADER, _MARK, _TIMESTAMP, _INDEV, _OUTDEV, _PAYLOAD, _PREFIX, _SEQUENCE = 1, 2, 3, 4, 5, 9, 10, 12
_NFGENMSG = struct.Struct(">BBH")
_HEAD = struct.Struct(">HBx")
_TIME = struct.Struct(">QQ")
_U32 = struct.Struct(">I")


class Packet(NamedTuple):
    """One packet a rule has told of."""

    group: int
    prefix: str
    protocol: int
    """The Ethernet protocol of ``payload``: 0x0800 IPv4, 0x86dd IPv6."""
    hook: int
    payload: bytes
    """From the network header on, at most as long as asked for."""
    time: float = 0.0
    """Seconds since the epoch when it arrived on this machine; 0.0: not known (packets that leave have none)."""
    indev: int = 0
    """Index of the device it came by; 0: none. So is ``outdev``."""
    outdev: int = 0
    mark: int = 0
    sequence: int = -1
    """Counts the packets of the group since ``bind``, those that got lost too; -1: not told."""


def bind(group: int) -> bytes:
    """Join a group. The kernel answers EPERM when somebody else has it."""
    return _config(group, attr(_CFG_CMD, bytes((_BIND,))))


def copy(group: int, size: int) -> bytes:
    """So many bytes of each packet."""
    return _config(group, attr(_CFG_MODE, struct.pack(">IBx", size, _COPY_PACKET)))


def settings(group: int, buffer: int) -> bytes:
    """Tell of each packet at once, from buffers of so many bytes, and count them."""
    return _config(
        group,
        attr(_CFG_THRESHOLD, _U32.pack(1))
        + attr(_CFG_BUFFER, _U32.pack(buffer))
        + attr(_CFG_FLAGS, struct.pack(">H", _FLAG_SEQUENCE)),
    )


def decode(datagram: bytes) -> Iterator[Packet]:
    """The packets of a datagram; other messages are passed over. Raises MalformedError."""
    for msg in split(datagram):
        if msg.kind != SUBSYSTEM << 8 | _PACKET:
            continue
        if len(msg.payload) < _NFGENMSG.size:
            raise MalformedError(f"packet message of {len(msg.payload)} bytes")
        _, _, group = _NFGENMSG.unpack_from(msg.payload)
        attrs = parse_attrs(msg.payload, _NFGENMSG.size)
        try:
            yield _packet(group, attrs)
        except struct.error as exc:
            raise MalformedError(f"packet message: {exc}") from exc


def _packet(group: int, attrs: dict[int, bytes]) -> Packet:
    protocol, hook = _HEAD.unpack(attrs.get(_HEADER, b"\0\0\0\0"))
    seconds, micros = _TIME.unpack(attrs[_TIMESTAMP]) if _TIMESTAMP in attrs else (0, 0)
    return Packet(
        group,
        text(attrs.get(_PREFIX, b"")),
        protocol,
        hook,
        attrs.get(_PAYLOAD, b""),
        seconds + micros / 1e6,
        _number(attrs, _INDEV),
        _number(attrs, _OUTDEV),
        _number(attrs, _MARK),
        _number(attrs, _SEQUENCE, -1),
    )


def _number(attrs: dict[int, bytes], kind: int, otherwise: int = 0) -> int:
    return int(_U32.unpack(attrs[kind])[0]) if kind in attrs else otherwise


def _config(group: int, attributes: bytes) -> bytes:
    return message(
        SUBSYSTEM << 8 | _CONFIG, NLM_F_REQUEST | NLM_F_ACK, _NFGENMSG.pack(0, 0, group) + attributes
    )
