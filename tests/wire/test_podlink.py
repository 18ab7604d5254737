"""Messages of a pod's attachment, byte by byte against what the kernel's headers say."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pycni.wire import podlink, tc
from pycni.wire.netlink import Message, nested, parse_attrs, split


def parts(message: bytes) -> tuple[Message, dict[int, bytes]]:
    """The message and its attributes after a link header."""
    (found,) = split(message)
    return found, parse_attrs(found.payload, 16)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def test_a_pair_is_made_by_one_message():
    message, attrs = parts(
        podlink.create_pair(
            "vethabc", b"\2\0\0\0\0\1", 7, 1450, pod="eth0", pod_mac=b"\2\0\0\0\0\2", netns_fd=9
        )
    )
    assert message.kind == 16
    assert message.flags == 0x400 | 0x200 | 0x8, "create, exclusive, echo"
    assert attrs[3] == b"vethabc\0"
    assert attrs[1] == b"\2\0\0\0\0\1"
    assert attrs[4] == u32(1450)
    assert attrs[10] == u32(7)
    assert (attrs[31], attrs[32]) == (u32(1), u32(1))
    info = parse_attrs(attrs[18])
    assert info[1] == b"veth\0"
    peer = parse_attrs(info[2])[1]
    assert peer[:16] == bytes(16), "IFF_UP is refused there"
    assert parse_attrs(peer, 16) == {
        3: b"eth0\0",
        1: b"\2\0\0\0\0\2",
        4: u32(1450),
        28: u32(9),
        31: u32(1),
        32: u32(1),
    }


def test_a_pair_without_mtu_and_bridge_leaves_both_out():
    _, attrs = parts(podlink.create_pair("a", b"\2" * 6, 0, 0, pod="b", pod_mac=b"\2" * 6, netns_fd=3))
    assert 4 not in attrs
    assert 10 not in attrs


@pytest.mark.parametrize("inet6", [True, False])
def test_a_port_is_described_before_it_is_up(inet6):
    message, attrs = parts(podlink.describe_port(5, "pycni:a:b:c", hairpin=True, isolated=False, inet6=inet6))
    assert struct.unpack("=BxHiII", message.payload[:16]) == (0, 0, 5, 0, 0)
    assert attrs[20] == b"pycni:a:b:c"
    slave = parse_attrs(attrs[18])
    assert slave[4] == b"bridge\0"
    assert parse_attrs(slave[5]) == {4: b"\1", 33: b"\0"}
    assert (parse_attrs(parse_attrs(attrs[26])[10]) == {8: b"\1"}) if inet6 else (26 not in attrs)


def test_the_pods_link_local_address_is_given_by_hand_and_then_left_to_the_kernel():
    _, attrs = parts(podlink.no_link_local(2))
    assert parse_attrs(parse_attrs(attrs[26])[10]) == {8: b"\1"}
    _, attrs = parts(podlink.describe_pod(2, own_link_local=True))
    spec = parse_attrs(attrs[26])
    assert parse_attrs(parse_attrs(spec[2])[1]) == {22: u32(1)}, "arp_notify"
    assert parse_attrs(spec[10]) == {8: b"\0"}
    _, attrs = parts(podlink.describe_pod(2, own_link_local=False))
    assert set(parse_attrs(attrs[26])) == {2}


def test_an_advertisement_overrides_what_others_remember():
    made = podlink.advertisement(bytes(range(16)), b"\2\0\0\0\0\3")
    assert made.hex() == "88000000" + "20000000" + bytes(range(16)).hex() + "0201" + "020000000003"
    message, attrs = parts(podlink.announce_v4(3, b"\2\0\0\0\0\3"))
    assert (message.kind, attrs) == (16, {1: b"\2\0\0\0\0\3"})


def test_cutting_off_is_down_off_the_bridge_and_into_the_group():
    message, attrs = parts(podlink.cut_off("vethabc", group=77))
    assert message.kind == 19
    assert struct.unpack("=BxHiII", message.payload[:16]) == (0, 0, 0, 0, 1)
    assert attrs == {3: b"vethabc\0", 27: u32(77), 10: u32(0)}


@pytest.mark.parametrize(("vlan", "count"), [(5, 2), (1, 1)])
def test_a_port_is_in_one_vlan_only(vlan, count):
    messages = podlink.port_vlan(9, vlan)
    assert len(messages) == count
    join, attrs = parts(messages[0])
    assert (join.kind, join.payload[0]) == (19, 7)
    assert parse_attrs(attrs[26]) == {2: struct.pack("=HH", 2 | 4, vlan)}
    if count == 2:
        leave, attrs = parts(messages[1])
        assert leave.kind == 17
        assert parse_attrs(attrs[26]) == {2: struct.pack("=HH", 0, 1)}


def test_own_addresses_carry_their_protocol():
    (message,) = split(podlink.own_address(3, bytes([10, 1, 2, 1]), 24, flags=0, protocol=112))
    assert struct.unpack("=BBBBI", message.payload[:8]) == (2, 24, 0, 0, 3)
    assert parse_attrs(message.payload, 8)[11] == b"\x70"
    (message,) = split(podlink.own_address(3, bytes(16), 64, flags=2, protocol=112))
    assert message.payload[0] == 10
    assert parse_attrs(message.payload, 8)[8] == u32(2)


def test_link_local_address_of_a_mac():
    assert podlink.link_local(bytes.fromhex("021122334455")).hex() == "fe800000000000000011" + "22fffe334455"


def link_message(*attrs: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, 42, 0, 0) + b"".join(attrs)


def test_what_is_read_of_links():
    payload = link_message(b"\x05\0\x10\0\6\0\0\0", struct.pack("=HHI", 8, 5, 17))
    assert podlink.pair_indexes(payload) == (42, 17)
    assert podlink.operstate(payload) == 6
    assert podlink.pair_indexes(link_message()) == (42, 0)
    assert podlink.operstate(link_message()) == 0
    assert not podlink.has_carrier(payload)
    assert podlink.has_carrier(struct.pack("=BxHiII", 0, 1, 42, 0x10001, 0))
    assert podlink.find_attr(payload + b"\0\0\0\0", 99) == b"", "a broken attribute ends the search"


def tc_parts(message: bytes) -> tuple[Message, tuple[int, ...], dict[int, bytes]]:
    (found,) = split(message)
    return found, struct.unpack("=B3xiIII", found.payload[:20]), parse_attrs(found.payload, 20)


def test_a_token_bucket():
    message, head, attrs = tc_parts(tc.add_tbf(4, 1_250_000, 125_000, 156_250))
    assert message.kind == 36
    assert message.flags == 0x1 | 0x400 | 0x100
    assert head == (0, 4, 0x10000, 0xFFFFFFFF, 0)
    assert attrs[1] == b"tbf\0"
    options = parse_attrs(attrs[2])
    assert options[6] == u32(125_000)
    assert 4 not in options
    parms = options[1]
    assert len(parms) == 36
    assert struct.unpack_from("=BBHhHI", parms) == (0, 1, 0, 0, 0, 1_250_000)
    assert struct.unpack_from("=III", parms, 24) == (156_250, 0, 0)


def test_a_rate_beyond_32_bits_has_an_attribute_of_its_own():
    _, _, attrs = tc_parts(tc.add_tbf(4, 2**33, 1, 1))
    options = parse_attrs(attrs[2])
    assert struct.unpack_from("=I", options[1], 8)[0] == 0xFFFFFFFF
    assert options[4] == struct.pack("=Q", 2**33)


def test_token_buckets_read_back():
    (message,) = split(tc.add_tbf(4, 2**33, 1000, 2000))
    assert tc.root_bucket(message.payload, 4) == (2**33, 2000)
    assert tc.root_bucket(message.payload, 5) is None
    (message,) = split(tc.add_clsact(4))
    assert tc.root_bucket(message.payload, 4) is None


def test_a_redirect_reads_back():
    message, head, attrs = tc_parts(tc.add_redirect(4, 9))
    assert message.kind == 44
    assert head[:4] == (0, 4, 0, 0xFFFFFFF2)
    assert head[4] == 0xC000 << 16 | struct.unpack("=H", b"\0\3")[0], "priority and ETH_P_ALL"
    assert attrs[1] == b"u32\0"
    options = parse_attrs(attrs[2])
    assert len(options[5]) == 16 + 16, "tc_u32_sel and one key"
    assert options[5][0] == 1, "TC_U32_TERMINAL"
    assert options[5][2] == 1, "one key"
    assert not any(options[5][16:]), "that matches everything"
    assert tc.redirect_target(message.payload) == 9


@pytest.mark.parametrize(
    "attrs",
    [b"", nested(1), struct.pack("=HH4s", 8, 1, b"bpf\0"), struct.pack("=HH4s", 8, 1, b"u32\0")],
    ids=["nothing", "no name", "another kind", "no action"],
)
def test_other_filters_redirect_nowhere(attrs: Any):
    assert tc.redirect_target(bytes(20) + attrs) is None
