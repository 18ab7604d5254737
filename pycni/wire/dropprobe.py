# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""The eBPF program that hears of the packets a kernel drops, and what it tells. Pure.

Life: ``program`` makes the instructions for one trace, from where this kernel keeps what it needs of a packet
(``Layout``) and from what the packet has to have in it (``Spot``); ``kernel/dropreason`` loads them on the tracepoint
skb:kfree_skb, whose arguments are the packet, the place in the kernel and the reason (from Linux 5.17 on). They look at
dropped packets only, and copy into a ring what matches; ``decode`` takes that apart.

No compiler is needed: loads from packets go by ``bpf_probe_read_kernel``, which the kernel gives to programs under the
GPL only; this one is offered under either licence named above.

    event   u64 nanoseconds since boot | u64 place | u32 reason | u32 interface | u32 namespace | u32 0 | packet
                                    (include/trace/events/skb.h, include/net/dropreason-core.h, uapi/linux/bpf.h)
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pycni.model.spot import Spot

LICENCE = "GPL"
TRACEPOINT = "kfree_skb"
COPY = 176
"""Bytes of each packet, from its network header on; spots have to be in them."""
_EVENT = struct.Struct("=QQIIII")
EVENT_BYTES = _EVENT.size + COPY
_KTIME, _READ, _OUTPUT = 5, 113, 130
"""bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_ringbuf_output."""
_R0, _R1, _R2, _R3, _R4, _R6, _R7, _R8, _FP = 0, 1, 2, 3, 4, 6, 7, 8, 10
_AT = -EVENT_BYTES
_TIME, _PLACE, _REASON, _DEVICE, _SPACE, _ZERO, _PACKET = 0, 8, 16, 20, 24, 28, 32
_SCRATCH = _AT - 8
_PSEUDO_MAP_FD = 1


class Layout(msgspec.Struct, frozen=True):
    """Byte offsets in this kernel's structures."""

    head: int
    network_header: int
    device: int
    socket: int
    device_index: int
    device_space: int
    space_number: int
    socket_space: int


class Event(NamedTuple):
    """One dropped packet."""

    since_boot_ns: int
    place: int
    """Address in the kernel that dropped it."""
    reason: int
    interface: int
    """Index; 0: none any more."""
    space: int
    """Number of its network namespace; 0: not known."""
    packet: bytes
    """From its network header on; what is behind its end is somebody else's."""


def decode(data: bytes) -> Event:
    """An event from the ring. Raises struct.error."""
    since, place, reason, interface, space, _ = _EVENT.unpack_from(data)
    return Event(since, place, reason, interface, space, data[_EVENT.size : _EVENT.size + COPY])


def program(layout: Layout, spots: Sequence[Spot], ring: int) -> bytes:
    """The instructions; ``ring``: descriptor of the ring buffer."""
    load = _read(_SCRATCH, 8, _R7, layout.head)
    start = [
        _op(0xBF, _R6, _R1),
        _op(0x79, _R7, _R6),
        *load,
        _op(0x79, _R8, _FP, _SCRATCH),
        *_read(_SCRATCH, 2, _R7, layout.network_header),
        _op(0x69, _R1, _FP, _SCRATCH),
        _op(0x0F, _R8, _R1),
        *_read(_AT + _PACKET, COPY, _R8, 0),
    ]
    tell = _tell(layout, ring)
    search = _search(spots)
    # What could not be read is nothing; what is not found ends the program, a find jumps behind that.
    leave = [_op(0xB7, _R0), _op(0x95)]
    check = [_op(0x15, _R0, offset=2, value=0), *leave]
    return b"".join([*start, *check, *search, *leave, *tell, *leave])


def _search(spots: Sequence[Spot]) -> list[bytes]:
    """Halves of words are compared: the stack is read at multiples of a load's size only."""
    groups = []
    for spot in spots:
        if spot.offset % 2 or len(spot.value) % 2 or spot.offset + len(spot.value) > COPY:
            raise ValueError(f"a packet cannot be known by {len(spot.value)} bytes at {spot.offset}")
        halves = [
            (spot.offset + at, int.from_bytes(spot.value[at : at + 2], sys.byteorder))
            for at in range(0, len(spot.value), 2)
        ]
        groups.append(halves)
    total = sum(2 * len(group) + 1 for group in groups)
    found, done = [], 0
    for group in groups:
        size = 2 * len(group) + 1
        for index, (offset, value) in enumerate(group):
            rest = size - 2 * index - 2
            found += [
                _op(0x69, _R1, _FP, _AT + _PACKET + offset),
                _op(0x55, _R1, offset=rest, value=value),
            ]
        done += size
        found.append(_op(0x05, offset=total - done + 2))
    return found


def _tell(layout: Layout, ring: int) -> list[bytes]:
    by_device = [
        *_read(_AT + _DEVICE, 4, _R8, layout.device_index),
        *_read(_SCRATCH, 8, _R8, layout.device_space),
        _op(0x79, _R8, _FP, _SCRATCH),
    ]
    by_socket = [
        *_read(_SCRATCH, 8, _R7, layout.socket),
        _op(0x79, _R8, _FP, _SCRATCH),
        *_read(_SCRATCH, 8, _R8, layout.socket_space),
        _op(0x79, _R8, _FP, _SCRATCH),
    ]
    return [
        _op(0x85, value=_KTIME),
        _op(0x7B, _FP, _R0, _AT + _TIME),
        _op(0x79, _R1, _R6, 8),
        _op(0x7B, _FP, _R1, _AT + _PLACE),
        _op(0x79, _R1, _R6, 16),
        _op(0x63, _FP, _R1, _AT + _REASON),
        _op(0x62, _FP, offset=_AT + _DEVICE),
        _op(0x62, _FP, offset=_AT + _ZERO),
        *_read(_SCRATCH, 8, _R7, layout.device),
        _op(0x79, _R8, _FP, _SCRATCH),
        _op(0x15, _R8, offset=len(by_device) + 1),
        *by_device,
        _op(0x05, offset=len(by_socket)),
        *by_socket,
        *_read(_AT + _SPACE, 4, _R8, layout.space_number),
        _op(0x18, _R1, _PSEUDO_MAP_FD, value=ring),
        _op(0),
        _op(0xBF, _R2, _FP),
        _op(0x07, _R2, value=_AT),
        _op(0xB7, _R3, value=EVENT_BYTES),
        _op(0xB7, _R4),
        _op(0x85, value=_OUTPUT),
    ]


def _read(into: int, size: int, base: int, offset: int) -> list[bytes]:
    """Copy kernel memory to the stack; what cannot be read is zeroes there."""
    return [
        _op(0xBF, _R1, _FP),
        _op(0x07, _R1, value=into),
        _op(0xB7, _R2, value=size),
        _op(0xBF, _R3, base),
        _op(0x07, _R3, value=offset),
        _op(0x85, value=_READ),
    ]


def _op(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhi", code, registers, offset, value)
