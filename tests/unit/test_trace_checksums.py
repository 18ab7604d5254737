"""Checksums of captured probes: right ones, wrong ones, and those that cannot be told."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

from pycni.trace import frames
from pycni.trace.checksums import damage
from pycni.trace.model import ICMPV6, Flow

PACKETS = {
    "TCP": IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2, flags="S"),
    "ICMP": IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / b"odd",
    "TCP of IPv6": IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1, dport=2),
    "ICMPv6": IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(data=b"data"),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_any_changed_byte_is_noticed(packet: Packet) -> None:
    raw = bytes(packet)
    assert damage(raw) == ""
    assert damage(raw + b"padding of Ethernet") == ""
    start = 20 if raw[0] >> 4 == 4 else 40
    for at in range(start, len(raw)):
        wrong = bytearray(raw)
        wrong[at] ^= 0x5A
        assert damage(bytes(wrong)).endswith("checksum"), at


def test_a_wrong_ip_header_is_told_first() -> None:
    raw = bytearray(bytes(PACKETS["TCP"]))
    raw[8] -= 1
    assert damage(bytes(raw)) == "IP checksum"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x45",
        bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(chksum=7)),
        bytes(PACKETS["TCP"])[:-1],
        bytes(IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / TCP(chksum=1)),
        bytes(PACKETS["TCP of IPv6"])[:-1],
    ],
    ids=["nothing", "a byte", "UDP", "cut", "a fragment", "cut IPv6"],
)
def test_what_cannot_be_told_is_not_called_wrong(raw: bytes) -> None:
    assert damage(raw) == ""


@pytest.mark.parametrize("size", [0, 576, 1430])
def test_probes_are_right_and_as_large_as_asked(size: int) -> None:
    flow = Flow(
        protocol=ICMPV6, source=ip_address("fd00::1").packed, destination=ip_address("fd00::2").packed
    )
    body = frames.probe(flow, 0x12345678, size=size)
    head = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 64) + flow.source + flow.destination
    assert damage(head + body) == ""
    assert not size or len(head + body) == size
