"""Devices of the fabric as messages: bytes of include/uapi/linux/{if_link,if_tunnel}.h, both ways."""

import pytest

from pycni.wire import rtlink
from pycni.wire.netlink import HEADER, Message

ENDS = rtlink.Ipip(7, bytes([192, 0, 2, 1]))
NEW = bytes.fromhex(
    "60000000" "1000" "0006" "00000000" "00000000"  # nlmsghdr: RTM_NEWLINK, CREATE | EXCL
    "00000000" "00000000" "00000000" "00000000"  # ifinfomsg
    "1100" "0300" "666c616e6e656c2e6970697000" "000000"  # IFLA_IFNAME flannel.ipip
    "0800" "0400" "c8050000"  # IFLA_MTU 1480
    "2400" "1280"  # IFLA_LINKINFO
    "0900" "0100" "6970697000" "000000"  # kind ipip
    "1400" "0280" "0800" "0100" "07000000" "0800" "0200" "c0000201"  # data: link 7, local 192.0.2.1
)  # fmt: skip


def test_an_ipip_device_is_made_with_these_bytes():
    assert rtlink.new_ipip("flannel.ipip", ENDS, mtu=1480).hex() == NEW.hex()


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        (b"\xc0\0\2\1", b"\0\0\0\0", rtlink.Ipip(7, b"\xc0\0\2\1", b"")),
        (b"\0\0\0\0", b"\xc0\0\2\2", rtlink.Ipip(7, b"", b"\xc0\0\2\2")),
    ],
    ids=["no far end", "no own end"],
)
def test_an_end_of_zeros_is_none(local, remote, expected):
    made = rtlink.new_ipip("x", rtlink.Ipip(7, local, remote), mtu=1480)
    assert rtlink.parse_link(Message(16, 0, 0, made[HEADER.size :])).ipip == expected


def test_a_change_names_kind_ends_and_mtu():
    raw = rtlink.change_ipip(12, ENDS, mtu=1300)
    link = rtlink.parse_link(Message(16, 0, 0, raw[HEADER.size :]))
    assert (link.ifindex, link.kind, link.ipip, link.mtu) == (12, "ipip", ENDS, 1300)
    assert HEADER.unpack_from(raw)[2] == 0
