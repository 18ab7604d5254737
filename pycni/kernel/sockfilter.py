"""Classic BPF on a netlink socket: the kernel drops what nobody here wants before it costs a wake-up.

A program is a list of (code, jump if true, jump if false, value); jumps count instructions from the next one.
Source: include/uapi/linux/filter.h; loads take bytes as big-endian, netlink writes host order (see ``as_loaded``).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]

LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
DROP: Instruction = (RETURN, 0, 0, 0)
ACCEPT: Instruction = (RETURN, 0, 0, 0xFFFFFFFF)

_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")


def as_loaded(layout: str, *values: int) -> int:
    """What a load of these host-order fields gives, to compare with."""
    return int.from_bytes(struct.pack("=" + layout, *values), "big")


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Put the program on the socket, in place of an earlier one."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
