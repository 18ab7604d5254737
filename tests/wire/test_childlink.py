"""Messages of an uplink's children, byte by byte against what the kernel's headers say."""

from __future__ import annotations

import struct

import pytest

from pycni.model.attachment import AttachmentKind
from pycni.wire import childlink
from pycni.wire.netlink import attr, parse_attrs, split


def parts(message):
    (found,) = split(message)
    return found, parse_attrs(found.payload, 16)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        pytest.param(AttachmentKind.MACVLAN, {1: struct.pack("=I", 4)}, id="macvlan, MACVLAN_MODE_BRIDGE"),
        pytest.param(AttachmentKind.IPVLAN, {1: struct.pack("=H", 0)}, id="ipvlan, IPVLAN_MODE_L2"),
    ],
)
def test_a_child_is_made_in_its_namespace_by_one_message(kind, data):
    message, attrs = parts(childlink.create_child(kind, "eth0", 7, netns_fd=9, mac=b"\2" * 6, mtu=1400))
    assert (message.kind, message.flags & 0x600) == (16, 0x600), "create, exclusive"
    info = parse_attrs(attrs.pop(18))
    assert attrs == {
        3: b"eth0\0",
        5: struct.pack("=I", 7),
        28: struct.pack("=I", 9),
        1: b"\2" * 6,
        4: struct.pack("=I", 1400),
    }
    assert (info[1], parse_attrs(info[2])) == (str(kind).encode() + b"\0", data)


def test_mac_and_mtu_may_be_the_parents():
    _, attrs = parts(childlink.create_child(AttachmentKind.IPVLAN, "eth0", 7, netns_fd=9))
    assert attrs.keys().isdisjoint({1, 4})


def test_a_child_is_found_and_deleted_from_elsewhere():
    message, attrs = parts(childlink.get_there(3, "eth0"))
    assert (message.kind, attrs) == (18, {3: b"eth0\0", 46: struct.pack("=i", 3)})
    message, attrs = parts(childlink.delete_there(3, 5))
    assert (message.kind, attrs) == (17, {46: struct.pack("=i", 3)})
    assert struct.unpack("=BxHiII", message.payload[:16]) == (0, 0, 5, 0, 0)


@pytest.mark.parametrize("nsid", [None, 0, 12])
def test_where_the_other_end_of_a_pair_is(nsid):
    payload = bytes(16) + attr(3, b"veth0\0") + (b"" if nsid is None else attr(37, struct.pack("=i", nsid)))
    assert childlink.peer_namespace(payload) == nsid
