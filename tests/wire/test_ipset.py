"""ipset messages, byte by byte; the guest of tests/proxy/test_ipvs.py shows that the kernel agrees."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.wire import ipset
from pycni.wire.ipset import Member, SetSpec
from pycni.wire.netlink import MalformedError, Message, attr, attr_str, attr_u8, nested


def packed(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def body(msg, command):
    size, kind, _, seq, port = struct.unpack_from("=IHHII", msg)
    assert (size, kind, seq, port) == (len(msg), 6 << 8 | command, 0, 0)
    return msg[16:].hex()


HEAD = "020000000500010006000000"  # nfgenmsg AF_INET; protocol 6
NAME = "0600020041000000"

MESSAGES = {
    "create with marks": (
        ipset.create("A", SetSpec("hash:ip,port", Family.V4, marks=True), 7, max_members=65536),
        2,
        HEAD + NAME + "11000300" + b"hash:ip,port\0".hex() + "000000"
        "05000400" "07000000" "05000500" "02000000"
        "1c000780" "08001240" "00000400" "08001340" "00010000" "08000840" "00000040",
    ),
    "create ports": (
        ipset.create("A", SetSpec("bitmap:port", Family.V4), 3),
        2,
        HEAD + NAME + "10000300" + b"bitmap:port\0".hex() + "05000400" "03000000" "05000500" "00000000"
        "14000780" "06000440" "0000" "0000" "06000540" "ffff" "0000",
    ),
    "destroy": (ipset.destroy("A"), 3, HEAD + NAME),
    "swap": (ipset.swap("A", "B"), 6, HEAD + NAME + "06000300" "4200" "0000"),
    "add with a mark": (
        ipset.alter("A", [(Member(packed("10.0.0.1"), TCP, 80), 0x40000001)], add=True, marks=True),
        9,
        HEAD + NAME + "08000940" "00000000" "30000880" "2c000780"
        "0c000180" "08000140" "0a000001" "06000440" "0050" "0000" "05000700" "06000000"
        "0c001b40" "40000001" "ffffffff",
    ),
    "delete a third part with its network": (
        ipset.alter("A", [(Member(packed("10.0.0.1"), UDP, 53, packed("10.2.0.0"), 16), 9)], add=False, marks=True),
        10,
        HEAD + NAME + "08000940" "00000000" "38000880" "34000780"
        "0c000180" "08000140" "0a000001" "06000440" "0035" "0000" "05000700" "11000000"
        "0c001480" "08000140" "0a020000" "05001500" "10000000",
    ),
    "delete a port": (
        ipset.alter("A", [(Member(port=30000), 0)], add=False, marks=False),
        10,
        HEAD + NAME + "08000940" "00000000" "10000880" "0c000780" "06000440" "7530" "0000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_packed_as_the_kernel_reads_them(name):
    message, command, wanted = MESSAGES[name]
    assert body(message, command) == wanted


def listed(name, kind, family, members, *, marks):
    """A dump's message as the kernel sends it: head and members."""
    adt = b"".join(
        nested(
            ipset.ATTR_DATA,
            ipset.encode_member(member),
            attr(ipset.SKBMARK | ipset.NET_BYTEORDER, struct.pack(">II", mark, 0xFFFFFFFF)) if marks else b"",
        )
        for member, mark in members.items()
    )
    flags = attr(ipset.CADT_FLAGS | ipset.NET_BYTEORDER, struct.pack(">I", 64 if marks else 0))
    payload = (
        b"\x02\0\0\0"
        + attr_str(ipset.ATTR_SETNAME, name)
        + attr_str(ipset.ATTR_TYPENAME, kind)
        + attr_u8(ipset.ATTR_FAMILY, family)
        + nested(ipset.ATTR_DATA, flags)
        + attr(ipset.ATTR_ADT | 0x8000, adt)
    )
    return Message(6 << 8 | 7, 2, 1, payload)


addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
ports = st.integers(1, 65535)
protocols = st.sampled_from((TCP, UDP, SCTP))


def third(address, prefixes=(0,)):
    return st.tuples(st.just(address), protocols, ports, st.just(address[::-1]), st.sampled_from(prefixes))


MEMBERS = {
    "hash:ip": addresses.map(Member),
    "hash:ip,port": st.tuples(addresses, protocols, ports).map(lambda parts: Member(*parts)),
    "hash:ip,port,ip": addresses.flatmap(third).map(lambda parts: Member(*parts)),
    "hash:ip,port,net": addresses.flatmap(lambda a: third(a, range(1, len(a) * 8 + 1))).map(
        lambda parts: Member(*parts)
    ),
    "hash:net,port": st.tuples(addresses, protocols, ports, st.just(b""), st.integers(1, 32)).map(
        lambda parts: Member(*parts)
    ),
    "bitmap:port": ports.map(lambda port: Member(port=port)),
}


@pytest.mark.parametrize("kind", MEMBERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_members_come_back_as_they_were_sent(kind, data):
    members = data.draw(st.dictionaries(MEMBERS[kind], st.integers(1, 2**32 - 1), max_size=5))
    found = ipset.parse_sets([listed("X", kind, Family.V4, members, marks=True)])
    assert found["X"].members == members
    assert found["X"].spec == SetSpec(kind, Family.V4, marks=True)


def test_a_large_set_comes_in_several_messages():
    first, second = ({Member(packed(f"10.0.{n}.1")): 0} for n in (1, 2))
    head = listed("X", "hash:ip", Family.V6, first, marks=False)
    rest = Message(
        head.kind,
        2,
        1,
        b"\x02\0\0\0" + attr_str(2, "X") + attr(0x8008, nested(7, ipset.encode_member(*second))),
    )
    found = ipset.parse_sets([head, rest])["X"]
    assert found.members == first | second
    assert found.spec.family is Family.V6
    with pytest.raises(MalformedError, match="before its head"):
        ipset.parse_sets([rest])


TEXTS = {
    "10.0.0.1": Member(packed("10.0.0.1")),
    "fd00::1,udp:53": Member(packed("fd00::1"), UDP, 53),
    "10.0.0.1,tcp:80,10.0.0.1": Member(packed("10.0.0.1"), TCP, 80, packed("10.0.0.1")),
    "10.0.0.1,sctp:80,10.2.0.0/16": Member(packed("10.0.0.1"), SCTP, 80, packed("10.2.0.0"), 16),
    "0.0.0.0/1,tcp:80": Member(bytes(4), TCP, 80, prefix=1),
    "30000": Member(port=30000),
}


@pytest.mark.parametrize("text", TEXTS)
def test_members_print_as_ipset_prints_them(text):
    assert ipset.member_text(TEXTS[text]) == text
    assert ipset.member_text(TEXTS[text], 0x4000AB01) == f"{text} skbmark 0x4000ab01"


def test_names_and_batches_have_limits():
    with pytest.raises(ValueError, match="longer than 31"):
        ipset.destroy("x" * 32)
    for count in (0, ipset.MAX_MEMBERS + 1):
        with pytest.raises(ValueError, match="members"):
            ipset.alter("A", [(Member(port=1), 0)] * count, add=True, marks=False)
    widest = Member(packed("fd00::1"), TCP, 80, packed("fd00::2"), 64)
    assert len(ipset.alter("A", [(widest, 1)] * ipset.MAX_MEMBERS, add=True, marks=True)) < 1 << 16
