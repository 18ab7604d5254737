"""Packets of policy probes: SCTP's first chunks (RFC 9260), the heads of first packets, the filter for them. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from pycni.kernel.sockfilter import Instruction
from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP

INIT, INIT_ACK = 1, 2
SNAP = 128
"""Bytes of a packet that are looked at."""
ETHERTYPES = {Family.V4: 0x0800, Family.V6: 0x86DD}
_SCTP_HEAD = struct.Struct("!HHI4s")
"""Source port, destination port, verification tag, checksum."""
_CHUNK = struct.Struct("!BBHIIHHI")
"""Type, flags, length, initiate tag, window, streams out and in, first TSN."""
_COOKIE = struct.pack("!HH4x", 7, 8)
"""An INIT ACK has to have one; nobody reads it here."""
_WINDOW = 65536
_SYN, _ACK = 0x02, 0x10

# Classic BPF (include/uapi/linux/bpf_common.h), packet as of its IP header.
_LD_B_ABS, _LD_B_IND, _LD_H_IND = 0x30, 0x50, 0x48
_LDX_IHL, _LDX_IMM = 0xB1, 0x01
_AND, _JEQ, _RET = 0x54, 0x15, 0x06


class SctpHead(NamedTuple):
    """What counts of an INIT or an INIT ACK."""

    kind: int
    source: int
    destination: int
    tag: int
    """Of an INIT its initiate tag; of an INIT ACK the verification tag, which is the same number."""


def sctp_init(source: int, destination: int, tag: int) -> bytes:
    """A packet with an INIT. ``tag``: 1 to 2**32 - 1."""
    chunk = _CHUNK.pack(INIT, 0, _CHUNK.size, tag, _WINDOW, 1, 1, tag)
    return _sctp(source, destination, 0, chunk)


def sctp_init_ack(init: SctpHead) -> bytes:
    """The answer to an INIT."""
    chunk = _CHUNK.pack(INIT_ACK, 0, _CHUNK.size + len(_COOKIE), init.tag, _WINDOW, 1, 1, init.tag)
    return _sctp(init.destination, init.source, init.tag, chunk + _COOKIE)


def parse_sctp(packet: bytes, family: Family) -> SctpHead | None:
    """What a raw socket received: of IPv4 with the IP header. None for anything but INIT and INIT ACK."""
    offset = (packet[0] & 0xF) * 4 if family is Family.V4 and packet else 0
    if len(packet) < offset + _SCTP_HEAD.size + 8:
        return None
    source, destination, verification, _checksum = _SCTP_HEAD.unpack_from(packet, offset)
    kind, _flags, _length, initiate = struct.unpack_from("!BBHI", packet, offset + _SCTP_HEAD.size)
    if kind not in {INIT, INIT_ACK}:
        return None
    return SctpHead(kind, source, destination, initiate if kind == INIT else verification)


def _sctp(source: int, destination: int, verification: int, chunk: bytes) -> bytes:
    bare = _SCTP_HEAD.pack(source, destination, verification, bytes(4)) + chunk
    return _SCTP_HEAD.pack(source, destination, verification, crc32c(bare).to_bytes(4, "little")) + chunk


def _table() -> tuple[int, ...]:
    found = []
    for number in range(256):
        value = number
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 9260 appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _head4(packet: bytes) -> tuple[bytes, int, int]:
    at = (packet[0] & 0xF) * 4
    return packet[12:16], packet[9], packet[at + 2] << 8 | packet[at + 3]


def _head6(packet: bytes) -> tuple[bytes, int, int]:
    return packet[8:24], packet[6], packet[42] << 8 | packet[43]


HEADS: Mapping[Family, Callable[[bytes], tuple[bytes, int, int]]] = {Family.V4: _head4, Family.V6: _head6}
"""Of a packet that passed ``first_packets``: source address, protocol, destination port."""


def first_packets(family: Family, ports: Collection[int]) -> list[Instruction]:
    """A socket filter for what begins a connection to one of the ports: TCP's SYN, any of UDP, any of SCTP.

    Packets begin with the IP header; IPv6 extension headers are not looked behind.
    """
    load_protocol = (_LD_B_ABS, 0, 0, 9 if family is Family.V4 else 6)
    transport = (_LDX_IHL, 0, 0, 0) if family is Family.V4 else (_LDX_IMM, 0, 0, 40)
    numbers = sorted(ports)
    count = len(numbers)
    program: list[Instruction] = [
        transport,
        load_protocol,
        (_JEQ, 5, 0, UDP),  # to the port
        (_JEQ, 4, 0, SCTP),  # to the port
        (_JEQ, 0, count + 4, TCP),  # else drop
        (_LD_B_IND, 0, 0, 13),
        (_AND, 0, 0, _SYN | _ACK),
        (_JEQ, 0, count + 1, _SYN),  # else drop
        (_LD_H_IND, 0, 0, 2),
    ]
    program += [(_JEQ, count - index, 0, number) for index, number in enumerate(numbers)]
    return [*program, (_RET, 0, 0, 0), (_RET, 0, 0, SNAP)]
