"""Captures as files: read back by scapy, with every frame's place, time and direction."""

from __future__ import annotations

import io
import struct

from scapy.utils import PcapNgReader

from pycni.kernel.capture import Frame
from pycni.trace.pcap import pcapng

FRAMES = [
    Frame("n1", "", "eth0", True, 1_700_000_000_123_456_789, b"\2" * 12 + b"\x88\xb5" + b"odd", True),
    Frame("n1", "a/x", "tun0", False, 1_700_000_000_123_456_999, b"\x45" + bytes(19), False),
    Frame("n1", "", "eth0", False, 1_700_000_001_000_000_000, b"\2" * 12 + b"\x88\xb5", True),
]


def test_every_frame_is_read_back_with_its_place_and_time() -> None:
    with PcapNgReader(io.BytesIO(pcapng(FRAMES))) as reader:
        found = list(reader)
    assert [bytes(packet) for packet in found] == [frame.data for frame in FRAMES]
    assert [round(float(packet.time), 6) for packet in found] == [
        round(item.time_ns / 1e9, 6) for item in FRAMES
    ]
    raw = pcapng(FRAMES)
    assert [raw.count(struct.pack("=HH", 2, len(name)) + name) for name in (b"n1 eth0", b"n1 a/x tun0")] == [
        1,
        1,
    ]


def test_blocks_are_whole_and_padded() -> None:
    raw, at, kinds = pcapng(FRAMES), 0, []
    while at < len(raw):
        kind, size = struct.unpack_from("=II", raw, at)
        assert size % 4 == 0
        assert struct.unpack_from("=I", raw, at + size - 4)[0] == size
        kinds.append(kind)
        at += size
    assert kinds == [0x0A0D0D0A, 1, 6, 1, 6, 6], "an interface once, before its first packet"


def test_nothing_captured_is_a_file_too() -> None:
    assert len(pcapng([])) == 28
