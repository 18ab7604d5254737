from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import (
    HEADER,
    MalformedError,
    Message,
    attr,
    attr_be16,
    attr_str,
    attr_u8,
    attr_u16,
    attr_u32,
    attr_u64,
    message,
    nested,
    parse_attrs,
    parse_error,
    split,
    text,
)

ATTRS = {
    "u8": (attr_u8(7, 255), b"\x05\0\x07\0\xff\0\0\0"),
    "u16": (attr_u16(7, 258), b"\x06\0\x07\0\x02\x01\0\0"),
    "u32": (attr_u32(7, 1), b"\x08\0\x07\0\x01\0\0\0"),
    "u64": (attr_u64(7, 1), b"\x0c\0\x07\0\x01\0\0\0\0\0\0\0"),
    "be16": (attr_be16(15, 8472), b"\x06\0\x0f\0\x21\x18\0\0"),
    "string": (attr_str(3, "lo"), b"\x07\0\x03\0lo\0\0"),
    "nested": (nested(18, attr_u8(1, 2)), b"\x0c\0\x12\x80\x05\0\x01\0\x02\0\0\0"),
}


@pytest.mark.parametrize(("made", "expected"), ATTRS.values(), ids=ATTRS)
def test_attributes_are_laid_out_as_the_kernel_wants(made: bytes, expected: bytes) -> None:
    assert made == expected


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back(items: list[tuple[int, bytes]]) -> None:
    blob = b"".join(attr(kind, payload) for kind, payload in items)
    assert parse_attrs(b"head" + blob, 4) == dict(items)


@given(st.lists(st.tuples(st.integers(16, 200), st.binary(max_size=40)), max_size=5))
def test_messages_come_back(items: list[tuple[int, bytes]]) -> None:
    padded = [message(kind, 0, payload) + bytes(-len(payload) % 4) for kind, payload in items]
    assert [(m.kind, m.payload) for m in split(b"".join(padded))] == items


@given(st.binary(max_size=80))
def test_foreign_bytes_are_refused_not_misread(data: bytes) -> None:
    for take_apart in (parse_attrs, lambda raw: list(split(raw))):
        try:
            take_apart(data)
        except MalformedError:
            continue


@pytest.mark.parametrize("capped", [True, False], ids=["capped", "whole request"])
def test_an_error_carries_the_kernels_words(capped: bool) -> None:
    request = message(24, 0, b"12345678")
    body = struct.pack("=i", -17) + (request[:16] if capped else request) + attr_str(1, "No way")
    flags = 0x200 | (0x100 if capped else 0)
    assert parse_error(Message(2, flags, 1, body)) == (17, "No way")


def test_an_ack_is_no_error() -> None:
    assert parse_error(Message(2, 0x100, 1, struct.pack("=i", 0) + bytes(16))) == (0, "")
    with pytest.raises(MalformedError):
        parse_error(Message(2, 0, 1, b"ab"))


def sent(raw: bytes) -> Message:
    size, kind, flags, seq, _ = HEADER.unpack_from(raw)
    assert size == len(raw)
    return Message(kind, flags, seq, raw[16:])


@pytest.mark.parametrize("bits", [4, 16], ids=["ipv4", "ipv6"])
def test_what_is_encoded_decodes(bits: int) -> None:
    address, gateway, mac = b"\x0a" * bits, b"\x0b" * bits, b"\x02\0\0\0\0\x01"
    route = rtnl.parse_route(
        sent(
            rtnl.new_route(address, 24, oif=7, gateway=gateway, protocol=112, metric=9, onlink=True, mtu=1400)
        )
    )
    assert (route.destination, route.prefix_len, route.oif, route.gateway) == (address, 24, 7, gateway)
    assert (route.protocol, route.metric, route.flags & 4, route.mtu, route.table) == (112, 9, 4, 1400, 254)
    assert rtnl.parse_route(sent(rtnl.new_route(address, 24, oif=7, table=1000))).table == 1000
    assert rtnl.parse_route(sent(rtnl.new_route(bytes(bits), 0, oif=1))).destination == bytes(bits)
    info = rtnl.parse_address(sent(rtnl.new_address(3, address, 24, flags=0x200)))
    assert (info.ifindex, info.address, info.prefix_len, info.flags) == (3, address, 24, 0x200)
    neighbour = rtnl.parse_neighbour(sent(rtnl.new_neighbour(3, address, mac)))
    assert (neighbour.ifindex, neighbour.destination, neighbour.mac) == (3, address, mac)
    entry = rtnl.parse_neighbour(sent(rtnl.new_fdb(3, mac, gateway)))
    assert (entry.family, entry.flags, entry.destination, entry.mac) == (7, 2, gateway, mac)
    vxlan = rtlink.Vxlan(9, 2, address, 8472, learning=False, gbp=True)
    link = rtlink.parse_link(sent(rtlink.new_vxlan("flannel.9", vxlan, mac=mac, mtu=1450, alias="pycni")))
    assert (link.name, link.kind, link.mac, link.mtu, link.alias) == (
        "flannel.9",
        "vxlan",
        mac,
        1450,
        "pycni",
    )
    assert link.vxlan == vxlan


def test_strings_end_at_their_zero() -> None:
    assert text(b"eth0\0junk") == "eth0"
