"""Generic netlink: families by their names."""

from __future__ import annotations

import struct

import pytest

from pycni.wire.genl import family_request, genl_message, parse_family
from pycni.wire.netlink import MalformedError, Message, attr_u16


def test_a_family_is_asked_for_by_name_and_its_number_read_from_the_answer() -> None:
    message = family_request("IPVS")
    assert struct.unpack_from("=IHH", message) == (len(message), 16, 0)
    assert message[16:] == b"\x03\x01\0\0" + b"\x09\0\x02\0IPVS\0\0\0\0"
    assert family_request("wireguard")[16:].hex() == "030100000e000200776972656775617264000000"
    assert parse_family(Message(16, 0, 0, b"\x01\x02\0\0" + attr_u16(1, 0x21))) == 0x21


@pytest.mark.parametrize(
    "payload", [b"\x01\x02\0\0", b"\x01\x02\0\0\x05\0\x01\0\x21\0\0\0"], ids=["none", "too short"]
)
def test_an_answer_without_a_number_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_family(Message(16, 0, 0, payload))


def test_a_message_has_the_family_as_its_type() -> None:
    message = genl_message(0x21, 4, 1, attr_u16(2, 7))
    assert struct.unpack_from("=IH", message) == (len(message), 0x21)
    assert message[16:20] == b"\x04\x01\0\0"
