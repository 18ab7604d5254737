"""The packet log's messages byte by byte, packets' heads, and that nothing malformed gets further than an error."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.policy.drops_nft import drop_of
from pycni.wire import iphead, nflog
from pycni.wire.iphead import IpHead
from pycni.wire.netlink import MalformedError, attr, message

MESSAGES = {
    # type and flags; nfgenmsg with the group; attribute
    "bind": (nflog.bind(100), "01040500", "00000064 0500 0100 01000000"),
    "copy": (nflog.copy(100, 128), "01040500", "00000064 0a00 0200 00000080 0200 0000"),
    "settings": (
        nflog.settings(258, 4096),
        "01040500",
        "00000102 0800 0500 00000001 0800 0300 00001000 0600 0600 00010000",
    ),
}


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_request_is_these_bytes(case):
    found, kind, body = case
    payload = bytes.fromhex(body)
    assert found == (16 + len(payload)).to_bytes(4, "little") + bytes.fromhex(kind) + bytes(8) + payload


def told(*attributes, group=100):
    return message(4 << 8, 0, struct.pack(">BBH", 2, 0, group) + b"".join(attributes))


WHOLE = told(
    attr(1, bytes.fromhex("0800 04 00")),
    attr(10, b"pycni ingress NetworkPolicy a/x: \0"),
    attr(3, struct.pack(">QQ", 1700000000, 250000)),
    attr(4, struct.pack(">I", 7)),
    attr(5, struct.pack(">I", 9)),
    attr(2, struct.pack(">I", 0x4000)),
    attr(9, b"\x45payload"),
    attr(12, struct.pack(">I", 41)),
)
PACKETS = {
    "everything": (WHOLE, nflog.Packet(100, "pycni ingress NetworkPolicy a/x: ", 0x0800, 4, b"\x45payload", 1700000000.25, 7, 9, 0x4000, 41)),
    "nothing": (told(group=3), nflog.Packet(3, "", 0, 0, b"")),
}  # fmt: skip


@pytest.mark.parametrize("case", PACKETS.values(), ids=PACKETS.keys())
def test_a_packet_is_read(case):
    raw, wanted = case
    assert list(nflog.decode(raw)) == [wanted]
    assert list(nflog.decode(raw + message(2, 0, bytes(4)) + raw)) == [wanted, wanted]


@pytest.mark.parametrize(
    "raw",
    [
        message(4 << 8, 0, b"\0\0"),
        told(attr(1, b"\0")),
        told(attr(3, bytes(8))),
        told(attr(12, b"\0\0")),
        told(struct.pack("=HH", 2, 1)),
        WHOLE[:-5],
    ],
    ids=["short head", "short header", "short time", "short number", "bad length", "cut off"],
)
def test_what_makes_no_sense_is_refused(raw):
    with pytest.raises(MalformedError):
        list(nflog.decode(raw))


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_no_bytes_do_anything_but_decode_or_fail_properly(noise, cut):
    for raw in (noise, WHOLE[:cut] + noise, told(noise)):
        try:
            found = list(nflog.decode(raw))
        except MalformedError:
            continue
        for packet in found:
            drop_of(packet, 0.0)


# --- heads -----------------------------------------------------------------------------------------------------------

A4, B4 = (ip_address(text).packed for text in ("10.0.0.1", "10.0.0.2"))
A6, B6 = (ip_address(text).packed for text in ("fd00::1", "fd00::2"))
PORTS = struct.pack(">HH", 40000, 80)


def v4(protocol, rest, *, options=b"", fragment=0):
    size = 20 + len(options)
    head = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(rest), 0, fragment, 64, protocol, 0)
    return head + A4 + B4 + options + rest


def v6(following, rest):
    return struct.pack(">IHBB", 6 << 28, len(rest), following, 64) + A6 + B6 + rest


HEADS = {
    "TCP": (v4(6, PORTS), IpHead(A4, B4, 6, 40000, 80)),
    "UDP behind options": (v4(17, PORTS, options=bytes(8)), IpHead(A4, B4, 17, 40000, 80)),
    "first fragment": (v4(17, PORTS, fragment=0x2000), IpHead(A4, B4, 17, 40000, 80)),
    "later fragment": (v4(17, PORTS, fragment=0x2001), IpHead(A4, B4, 17)),
    "ICMP": (v4(1, PORTS), IpHead(A4, B4, 1)),
    "ports cut off": (v4(6, PORTS[:3]), IpHead(A4, B4, 6)),
    "IPv6 SCTP": (v6(132, PORTS), IpHead(A6, B6, 132, 40000, 80)),
    "hop by hop, routing, destination options": (
        v6(0, bytes([43, 0]) + bytes(6) + bytes([60, 1]) + bytes(14) + bytes([6, 0]) + bytes(6) + PORTS),
        IpHead(A6, B6, 6, 40000, 80),
    ),
    "authentication header": (v6(51, bytes([17, 4]) + bytes(22) + PORTS), IpHead(A6, B6, 17, 40000, 80)),
    "IPv6 first fragment": (v6(44, bytes([17, 0, 0, 1]) + bytes(4) + PORTS), IpHead(A6, B6, 17, 40000, 80)),
    "IPv6 later fragment": (v6(44, bytes([17, 0, 0, 9]) + bytes(4) + PORTS), IpHead(A6, B6, 17)),
    "no next header": (v6(59, b""), IpHead(A6, B6, 59)),
    "extension cut off": (v6(60, bytes([6, 9])), IpHead(A6, B6, 60)),
    "too short": (v4(6, b"")[:19], None),
    "IPv6 too short": (v6(6, b"")[:39], None),
    "another version": (b"\x50" + bytes(40), None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("case", HEADS.values(), ids=HEADS.keys())
def test_a_head_tells_ends_and_ports(case):
    raw, wanted = case
    assert iphead.decode(raw) == wanted


def test_arp_tells_sender_and_target():
    raw = bytes.fromhex("0001 0800 06 04 0001") + bytes(6) + A4 + bytes(6) + B4
    assert iphead.arp(raw) == IpHead(A4, B4, 0)
    assert iphead.arp(raw[:27]) is None
    assert iphead.arp(b"\0\x06" + raw[2:4] + b"\x08" + raw[5:]) is None


@given(st.binary(max_size=80), st.sampled_from([0x40, 0x45, 0x4F, 0x60]))
def test_any_bytes_have_a_head_or_none(noise, first):
    found = iphead.decode(bytes([first]) + noise)
    assert found is None or (len(found.source) == len(found.destination) == (4 if first < 0x60 else 16))


# --- prefixes --------------------------------------------------------------------------------------------------------

PREFIXES = [
    ("pycni ingress NetworkPolicy a/x: ", ("ingress", "NetworkPolicy a/x", 0)),
    ("pycni egress ClusterNetworkPolicy x +12: ", ("egress", "ClusterNetworkPolicy x", 12)),
    ("pycni ingress pods not known yet: ", ("ingress", "pods not known yet", 0)),
    ("pycni egress spoofed source: ", ("egress", "spoofed source", 0)),
    ("pycni sideways x: ", None),
    ("somebody else's", None),
    ("", None),
]


@pytest.mark.parametrize(("prefix", "wanted"), PREFIXES, ids=[case[0] for case in PREFIXES])
def test_a_prefix_says_who_denies(prefix, wanted):
    found = drop_of(nflog.Packet(100, prefix, 0x0800, 4, v4(17, PORTS)), 5.0)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert (found.direction, found.policy, found.more) == wanted
        assert (found.time, found.source, found.port) == (5.0, A4, 80)


def test_the_packets_own_time_counts_and_arp_is_understood():
    found = drop_of(
        nflog.Packet(
            100,
            "pycni egress spoofed ARP sender: ",
            0x0806,
            0,
            bytes.fromhex("0001080006040001") + bytes(6) + A4 + bytes(6) + B4,
            7.5,
        ),
        5.0,
    )
    assert found is not None
    assert (found.time, found.source, found.destination, found.protocol) == (7.5, A4, B4, 0)
    assert drop_of(nflog.Packet(100, "pycni egress spoofed ARP sender: ", 0x0806, 0, b"\0"), 5.0) is None
