"""Type information, rule traces and the listener for drops as bytes."""

from __future__ import annotations

import struct

import pytest

from pycni.model.spot import Spot
from pycni.wire import dropprobe, nfttrace
from pycni.wire.btf import Btf
from pycni.wire.netlink import MalformedError, attr, attr_str, message, nested
from pycni.wire.nftmsg import NFPROTO_BRIDGE, NFPROTO_INET, attr_be32, attr_be64

NAMES = [
    b"",
    b"int",
    b"skb",
    b"head",
    b"dev",
    b"len",
    b"net",
    b"why",
    b"NONE",
    b"NO_SOCKET",
    b"tp",
    b"inum",
    b"alias",
]
STRINGS = b"\0".join(NAMES) + b"\0"


def name(text: str) -> int:
    return STRINGS.index(b"\0" + text.encode() + b"\0") + 1 if text else 0


def kind(number: int, size: int, text: str = "", *, members: int = 0, flag: int = 0) -> bytes:
    return struct.pack("=III", name(text), members | number << 24 | flag << 31, size)


def member(text: str, of: int, bits: int) -> bytes:
    return struct.pack("=III", name(text), of, bits)


TYPES = b"".join(
    (
        kind(1, 4, "int") + struct.pack("=I", 32),  # 1
        kind(4, 8, "net", members=1) + member("inum", 1, 32),  # 2
        kind(5, 8, members=2) + member("dev", 5, 0) + member("len", 1, 0),  # 3, without a name
        kind(4, 24, "skb", members=2) + member("head", 1, 64) + member("", 3, 128),  # 4
        kind(8, 2, "alias"),  # 5: typedef of net
        kind(6, 4, "why", members=2) + struct.pack("=IIII", name("NONE"), 0, name("NO_SOCKET"), 3),  # 6
        kind(13, 0, members=3) + struct.pack("=IIIIII", 0, 1, 0, 1, 0, 6),  # 7: a function of three
        kind(2, 7),  # 8: pointer to it
        kind(8, 8, "tp"),  # 9
    )
)


def btf(types: bytes = TYPES) -> bytes:
    return (
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(STRINGS)) + types + STRINGS
    )


@pytest.mark.parametrize(
    ("path", "offset"),
    [("skb.head", 8), ("skb.len", 16), ("skb.dev.inum", 20), ("net.inum", 4)],
)
def test_members_are_found_in_parts_without_names_and_behind_typedefs(path: str, offset: int) -> None:
    assert Btf(btf()).offset(path) == offset


def test_constants_and_arguments_are_told() -> None:
    types = Btf(btf())
    assert types.constants("why") == {0: "NONE", 3: "NO_SOCKET"}
    assert types.arguments("tp") == 3


@pytest.mark.parametrize("path", ["skb.inum", "nothing.head", "skb.head.dev"])
def test_what_is_not_there_is_named(path: str) -> None:
    with pytest.raises(KeyError):
        Btf(btf()).offset(path)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 24, btf()[:40], btf(TYPES[:-8])], ids=["empty", "magic", "cut", "type"]
)
def test_type_information_that_is_cut_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Btf(data)


def told(*attrs: bytes, family: int = 2) -> bytes:
    return message(10 << 8 | 17, 0, bytes((family, 0, 0, 0)) + b"".join(attrs))


RULE = (attr_str(1, "foe"), attr_str(2, "c"), attr_be64(3, 7), attr_be32(4, 3), attr_be32(6, 99))


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (nested(5, attr_be32(1, 0)), "drop"),
        (nested(5, attr_be32(1, 1)), "accept"),
        (nested(5, attr_be32(1, 0xFFFFFFFF)), "continue"),
        (nested(5, attr_be32(1, 0xFFFFFFFD), attr_str(2, "d")), "jump d"),
        (nested(5, attr_be32(1, 0xFFFFFFFC), attr_str(2, "d")), "goto d"),
        (nested(5, attr_be32(1, 77)), "77"),
    ],
)
def test_a_rule_that_was_met_is_told_with_its_verdict(verdict: bytes, words: str) -> None:
    packet = (attr(8, b"net"), attr(9, b"transport"), attr_be32(10, 4), attr_be32(12, 5))
    [met] = nfttrace.decode(told(*RULE, verdict, *packet))
    assert met == nfttrace.Met("ip", "foe", "c", 7, "rule", words, 99, b"net", b"transport", 4, 5)


def test_the_policy_of_a_chain_is_told_and_other_messages_are_passed_over() -> None:
    policy = told(attr_str(1, "foe"), attr_str(2, "c"), attr_be32(4, 1), attr_be32(16, 0), family=7)
    [met] = nfttrace.decode(message(10 << 8 | 6, 0, bytes(4)) + policy)
    assert (met.family, met.handle, met.kind, met.verdict) == ("bridge", 0, "policy", "drop")


def test_a_trace_that_is_cut_is_malformed() -> None:
    with pytest.raises(MalformedError):
        list(nfttrace.decode(told(attr_str(1, "t"), attr(3, b"\0"))))


SPOTS = [Spot(4, 6, 24, b"abcd"), Spot(4, 17, 54, b"ab"), Spot(6, 17, 90, b"abcd")]


@pytest.mark.parametrize(("family", "chains"), [(NFPROTO_INET, 2), (NFPROTO_BRIDGE, 1)])
def test_a_packet_meets_only_what_its_protocol_may_have(family: int, chains: int) -> None:
    made = nfttrace.table("t", SPOTS, family)
    kinds = [struct.unpack_from("=H", item, 4)[0] & 0xFF for item in made]
    assert kinds == [0, *[3] * (chains + 3), *[6] * (3 + chains * 3)], "table, chains, rules"
    assert attr_be32(2, 2) in made[0], "owned by its socket"


LAYOUT = dropprobe.Layout(
    **dict.fromkeys(
        (
            *("head", "network_header", "device", "socket", "device_index"),
            *("device_space", "space_number", "socket_space"),
        ),
        16,
    )
)


def test_the_listeners_jumps_stay_inside_the_program() -> None:
    code = dropprobe.program(LAYOUT, SPOTS, 3)
    steps = [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)]
    for at, (operation, _, jump, _) in enumerate(steps):
        if operation & 7 == 5 and operation not in {0x85, 0x95}:
            assert 0 <= at + 1 + jump < len(steps)
    assert steps[-1][0] == 0x95


@pytest.mark.parametrize("spot", [Spot(4, 6, 23, b"abcd"), Spot(4, 6, 24, b"abc"), Spot(4, 6, 174, b"abcd")])
def test_a_spot_that_cannot_be_looked_at_is_refused(spot: Spot) -> None:
    with pytest.raises(ValueError, match="cannot be known by"):
        dropprobe.program(LAYOUT, [spot], 3)


def test_an_event_is_taken_apart() -> None:
    packet = bytes(range(dropprobe.COPY))
    event = dropprobe.decode(struct.pack("=QQIIII", 1, 2, 3, 4, 5, 0) + packet)
    assert event == dropprobe.Event(1, 2, 3, 4, 5, packet)
    with pytest.raises(struct.error):
        dropprobe.decode(b"\0" * 20)
