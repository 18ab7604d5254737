"""Live traffic: the words, what the kernel lets through, which packet is followed."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from pycni.trace.filter import Filter, parse
from pycni.trace.filter import words as text
from pycni.trace.frames import probe
from pycni.trace.live import Caught, Picked, caught, drop_spots, patterns, pick, program, tight
from pycni.trace.model import ICMP, TCP, UDP, Flow
from pycni.trace.question import QuestionError

from .test_trace_frames import WRAPS, flow, frame, ip, passes

ASKER = ("n1", "a/x")
HOST = ip_address("10.1.0.2").packed
SAID = {
    "tcp port 80": Filter(TCP, (("", 80),)),
    "icmp": Filter(ICMP),
    "udp and dst port 53 and host 10.1.0.2": Filter(UDP, (("dst", 53),), (("", HOST),)),
    "src host 10.1.0.2 dst port 1 src port 2": Filter(0, (("dst", 1), ("src", 2)), (("src", HOST),)),
    "TCP AND NEW": Filter(TCP, new=True),
    "": Filter(),
}


@pytest.mark.parametrize(("said", "meant"), SAID.items(), ids=SAID)
def test_words_say_what_is_meant(said: str, meant: Filter) -> None:
    assert parse(said) == meant
    assert parse(text(meant) if meant != Filter() else "") == meant


@pytest.mark.parametrize(
    "said",
    [
        "tcp port",
        "port 0",
        "port 65536",
        "port x",
        "host",
        "host 1.2.3",
        "sctp",
        "src",
        "tcp udp",
        "icmp port 3",
    ],
)
def test_words_that_make_no_sense_are_refused(said: str) -> None:
    with pytest.raises(QuestionError, match=f"--live '{said}'"):
        parse(said)


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ("tcp", True),
        ("udp", False),
        ("port 80", True),
        ("port 40000", True),
        ("src port 80", False),
        ("dst port 80 src port 40000", True),
        ("dst port 80 port 81", False),
        ("host 10.5.1.2", True),
        ("dst host 10.5.1.2", False),
        ("host 10.5.1.77", False),
    ],
)
def test_a_flow_is_meant_when_all_words_are_true_of_it(said: str, *, fits: bool) -> None:
    sent = flow(4, TCP)
    assert (sent.source_port, sent.destination_port) == (40000, 80)
    assert sent.source == ip_address("10.5.1.2").packed
    assert parse(said).fits(sent) is fits


def tcp(sent: Flow, flags: int, sequence: int = 7, acknowledged: int = 0, payload: bytes = b"") -> bytes:
    head = struct.pack(
        "!HHIIBBHHH",
        sent.source_port,
        sent.destination_port,
        sequence,
        acknowledged,
        5 << 4,
        flags,
        9,
        0,
        0,
    )
    return ip(sent, head + payload)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_lets_through_what_is_meant_however_wrapped(version: int, wrap: tuple) -> None:  # type: ignore[type-arg]
    around, _ = wrap
    sent = flow(version, TCP)
    chosen = patterns(parse("tcp port 80"), ASKER, [sent.source], [sent.destination], [80])
    far = program([item for item in chosen if item.place is None])
    near = program(chosen)
    begins, goes_on = (frame(around(tcp(sent, flags))) for flags in (0x02, 0x10))
    assert passes(far, begins)
    assert passes(near, goes_on)
    assert not passes(far, goes_on), "of others only beginnings are looked at"
    back = frame(around(tcp(sent.back, 0x12)))
    assert passes(far, back)
    other = Flow(
        protocol=TCP, source=sent.source, destination=sent.destination, source_port=1, destination_port=81
    )
    assert not passes(near, frame(around(tcp(other, 0x02))))
    only = program(tight([sent]))
    assert passes(only, goes_on)
    assert passes(only, back)
    assert not passes(only, frame(around(tcp(other, 0x10))))
    assert passes(near, begins[14:]), "without an Ethernet header"


@pytest.mark.parametrize("cut", range(0, 90, 3))
def test_the_filter_ends_on_frames_that_are_cut(cut: int) -> None:
    sent = flow(4, TCP)
    passes(
        program(patterns(parse(""), ASKER, [sent.source], [sent.destination], [])), frame(tcp(sent, 2))[:cut]
    )


def test_patterns_fit_into_a_filter() -> None:
    many = [bytes((10, 0, 0, number)) for number in range(60)]
    chosen = patterns(parse("port 80"), ASKER, [HOST], many, range(80, 140))
    assert len(program(chosen)) <= 4096, "BPF_MAXINSNS"
    assert all(max(step[1], step[2]) < 256 for step in program(chosen))


@pytest.mark.parametrize("version", [4, 6])
def test_drops_are_known_by_the_addresses_of_a_flow(version: int) -> None:
    sent = flow(version, UDP)
    for one in (sent, sent.back):
        packet = ip(one, b"\0" * 8)
        plain = [
            spot
            for spot in drop_spots([sent])
            if packet[spot.offset : spot.offset + len(spot.value)] == spot.value
        ]
        assert plain
        assert all(spot.offset % 2 == 0 for spot in plain)


class Place(NamedTuple):
    """Where frames are taken."""

    node: str
    space: str
    interface: str
    outgoing: bool


class Shot(NamedTuple):
    """As ``kernel.capture.Frame``."""

    node: str
    space: str
    interface: str
    outgoing: bool
    time_ns: int
    data: bytes
    ethernet: bool = True


LEFT, ROUTED, ARRIVED = (
    Place("n1", "a/x", "eth0", True),
    Place("n1", "", "v0", True),
    Place("n2", "b/y", "eth0", False),
)
LEAVES, HOME = Place("n2", "b/y", "eth0", True), Place("n1", "a/x", "eth0", False)
SENT = flow(4, TCP)
BEHIND = Flow(
    protocol=TCP,
    source=SENT.source,
    destination=bytes((10, 9, 9, 9)),
    source_port=SENT.source_port,
    destination_port=8080,
)


def shots(*rows: tuple[Place, int, bytes]) -> list[Caught]:
    found = [caught(Shot(*place, time, frame(data))) for place, time, data in rows]
    assert None not in found
    return [item for item in found if item is not None]


def chosen(rows: list[Caught], *, new: bool = False) -> Picked | None:
    return pick(rows, ASKER, lambda item: item == SENT, new=new)


def test_a_packet_is_known_behind_a_translation_and_its_answer_is_found() -> None:
    rows = shots(
        (LEFT, 1000, tcp(SENT, 0x02)),
        (ROUTED, 2000, tcp(BEHIND, 0x02)),
        (ARRIVED, 3000, tcp(BEHIND, 0x02)),
        (LEAVES, 4000, tcp(BEHIND.back, 0x12, 50, 8)),
        (HOME, 5000, tcp(SENT.back, 0x12, 50, 8)),
        (ARRIVED, 6000, tcp(BEHIND, 0x10, 8, 51)),
    )
    found = chosen(rows)
    assert found is not None
    assert (found.flow, found.opening, found.answered) == (SENT, True, True)
    assert [(item.what.kind, item.time_ns) for item in found.seen] == [
        ("probe", 1000),
        ("probe", 2000),
        ("probe", 3000),
        ("answer", 4000),
        ("answer", 5000),
    ]


def test_of_packets_under_way_one_seen_everywhere_and_answered_is_followed() -> None:
    rows = shots(
        (LEFT, 1000, tcp(SENT, 0x18, 10, 1, b"lost")),
        (LEFT, 2000, tcp(SENT, 0x18, 20, 1, b"seen")),
        (ARRIVED, 2500, tcp(BEHIND, 0x18, 20, 1, b"seen")),
        (LEFT, 3000, tcp(SENT, 0x18, 30, 1, b"told")),
        (ARRIVED, 3500, tcp(BEHIND, 0x18, 30, 1, b"told")),
        (LEAVES, 4000, tcp(BEHIND.back, 0x10, 1, 34)),
        (HOME, 4500, tcp(SENT.back, 0x10, 1, 34)),
    )
    found = chosen(rows)
    assert found is not None
    assert (found.seen[0].time_ns, found.opening, found.answered) == (2000, False, True)
    assert chosen(rows, new=True) is None


@pytest.mark.parametrize(
    "rows",
    [
        shots((ROUTED, 1000, tcp(SENT, 0x02))),
        shots((HOME, 1000, tcp(SENT, 0x02))),
        shots((LEFT, 1000, tcp(BEHIND, 0x02))),
        [],
    ],
    ids=["not from the asker", "not leaving", "not meant", "nothing"],
)
def test_what_is_not_meant_is_not_followed(rows: list[Caught]) -> None:
    assert chosen(rows) is None


@pytest.mark.parametrize(("version", "protocol"), [(4, ICMP), (6, ICMP), (4, UDP)])
def test_echoes_and_datagrams_have_fingerprints(version: int, protocol: int) -> None:
    sent = flow(version, protocol)
    one, same, other = (
        caught(Shot(*place, 1, frame(ip(sent, probe(sent, token)))))
        for place, token in ((LEFT, 5), (ARRIVED, 5), (LEFT, 6))
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.name == same.name != other.name
    assert one.flow == sent


def test_what_is_no_packet_of_these_protocols_is_nothing() -> None:
    assert caught(Shot(*LEFT, 1, b"\0" * 60)) is None
    assert caught(Shot(*LEFT, 1, b"")) is None
