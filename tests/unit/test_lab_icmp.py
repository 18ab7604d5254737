"""ICMP codecs of the probes."""

from __future__ import annotations

import struct

import pytest

from pycni.lab import icmp
from pycni.lab.icmp import Echo, Refusal
from pycni.model.family import Family

V4_HEADER = bytes.fromhex("45000054000040004001000 00a0000010a000002".replace(" ", ""))
V6_HEADER = bytes.fromhex("6000000000203a40") + bytes(15) + b"\x01" + bytes(15) + b"\x02"
SOURCE_DESTINATION6 = bytes(15) + b"\x02"


def header4(protocol: int) -> bytes:
    return V4_HEADER[:9] + bytes([protocol]) + V4_HEADER[10:]


def header6(protocol: int) -> bytes:
    return V6_HEADER[:6] + bytes([protocol]) + V6_HEADER[7:]


def test_an_ipv4_request_has_a_checksum_that_verifies() -> None:
    request = icmp.echo_request(Family.V4, 0x1234, 7, b"odd")
    assert request[:2] == b"\x08\x00"
    assert icmp.checksum(request) == 0


def test_the_checksum_of_rfc_1071_section_3() -> None:
    assert icmp.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_an_ipv6_request_leaves_the_checksum_to_the_kernel() -> None:
    assert icmp.echo_request(Family.V6, 1, 2, b"x") == bytes.fromhex("8000000000010002") + b"x"


@pytest.mark.parametrize(
    ("family", "packet", "expected"),
    [
        pytest.param(
            Family.V4,
            V4_HEADER + bytes.fromhex("0000000012340007") + b"hi",
            Echo(0x1234, 7, b"hi"),
            id="reply",
        ),
        pytest.param(
            Family.V6, bytes.fromhex("8100000012340007") + b"hi", Echo(0x1234, 7, b"hi"), id="reply 6"
        ),
        pytest.param(
            Family.V4,
            V4_HEADER + bytes.fromhex("0301000000000000") + header4(1) + bytes.fromhex("0800000012340007"),
            Refusal(1, bytes([10, 0, 0, 2]), 0x1234, 7, "gw says: host unreachable"),
            id="host unreachable",
        ),
        pytest.param(
            Family.V4,
            V4_HEADER
            + bytes.fromhex("03040000000005aa")
            + header4(17)
            + struct.pack("!HHHH", 4000, 53, 8, 0),
            Refusal(17, bytes([10, 0, 0, 2]), 4000, 53, "gw says: packet too big, next hop takes 1450 bytes"),
            id="fragmentation needed",
        ),
        pytest.param(
            Family.V4,
            V4_HEADER
            + bytes.fromhex("0b00000000000000")
            + header4(17)
            + struct.pack("!HHHH", 4000, 53, 8, 0),
            Refusal(17, bytes([10, 0, 0, 2]), 4000, 53, "gw says: hop limit exceeded: a routing loop"),
            id="time exceeded",
        ),
        pytest.param(
            Family.V6,
            bytes.fromhex("02000000000005aa") + header6(58) + bytes.fromhex("8000000012340007"),
            Refusal(58, SOURCE_DESTINATION6, 0x1234, 7, "gw says: packet too big, next hop takes 1450 bytes"),
            id="too big 6",
        ),
        pytest.param(
            Family.V6,
            bytes.fromhex("0100000000000000") + header6(17) + struct.pack("!HHHH", 4000, 53, 8, 0),
            Refusal(17, SOURCE_DESTINATION6, 4000, 53, "gw says: no route"),
            id="no route 6",
        ),
        pytest.param(
            Family.V6,
            bytes.fromhex("0163000000000000") + header6(17) + struct.pack("!HHHH", 4000, 53, 8, 0),
            Refusal(17, SOURCE_DESTINATION6, 4000, 53, "gw says: destination unreachable (code 99)"),
            id="unknown code",
        ),
        pytest.param(Family.V4, V4_HEADER + bytes.fromhex("0800000012340007"), None, id="request"),
        pytest.param(
            Family.V4, V4_HEADER + bytes.fromhex("0301000000000000") + header4(1), None, id="quote cut off"
        ),
        pytest.param(Family.V4, V4_HEADER + b"\x00\x00", None, id="cut off"),
        pytest.param(
            Family.V6, bytes.fromhex("8700000000000000") + bytes(16), None, id="neighbour solicitation"
        ),
    ],
)
def test_packets_are_replies_refusals_or_nothing(family: Family, packet: bytes, expected: object) -> None:
    assert icmp.parse(family, packet, "gw") == expected
