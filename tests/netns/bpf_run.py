"""Programs run by the kernel on packets that are made up (BPF_PROG_TEST_RUN, include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import struct

from pycni.kernel import bpf

TEST_RUN, LIVE_FRAMES = 10, 2
XDP_DROP, XDP_PASS = 1, 2
_ROOM = 4096


def run(program: int, frame: bytes, repeat: int = 1) -> tuple[int, int]:
    """What a program (its descriptor) says of a frame, and nanoseconds for it, the mean of ``repeat`` times."""
    given = ctypes.create_string_buffer(frame, len(frame))
    back = ctypes.create_string_buffer(_ROOM)
    attr = ctypes.create_string_buffer(
        struct.pack(
            "=4IQQ2I2IQQ3I4x",
            *(program, 0, len(frame), _ROOM, ctypes.addressof(given), ctypes.addressof(back), repeat, 0),
            *(0, 0, 0, 0, 0, 0, 0),
        )
    )
    bpf.call(TEST_RUN, attr, "run program")
    return struct.unpack_from("=I", attr, 4)[0], struct.unpack_from("=I", attr, 36)[0]


def send(program: int, frame: bytes, count: int, ifindex: int, batch: int = 64) -> None:
    """Have a program that redirects treat a frame as received by an interface, over and over: real packets leave."""
    given = ctypes.create_string_buffer(frame, len(frame))
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0))
    attr = ctypes.create_string_buffer(
        struct.pack(
            "=4IQQ2I2IQQ3I4x",
            *(program, 0, len(frame), 0, ctypes.addressof(given), 0, count, 0),
            *(24, 0, ctypes.addressof(context), 0, LIVE_FRAMES, 0, batch),
        )
    )
    bpf.call(TEST_RUN, attr, "run program on live frames")
