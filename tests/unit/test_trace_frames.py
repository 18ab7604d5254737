"""Probes as bytes: what is built is found again however it is wrapped, and nothing else is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address

import msgspec
import pytest

from pycni.trace.frames import dissect, probe, socket_filter, spots
from pycni.trace.match import Seen, match
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow, Hop

TOKEN = 0xFFFFFFFF
"""The one whose successor needs care."""
ETHERNET = bytes(12)


def flow(version: int, protocol: int) -> Flow:
    ends = ("10.5.1.2", "10.5.2.2") if version == 4 else ("fd00::1:2", "fd00::2:2")
    number = ICMPV6 if protocol == ICMP and version == 6 else protocol
    return Flow(
        protocol=number, source=ip_address(ends[0]).packed, destination=ip_address(ends[1]).packed, source_port=40000,
        destination_port=0 if protocol == ICMP else 80,
    )  # fmt: skip


def ip(what: Flow, payload: bytes) -> bytes:
    if len(what.source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, what.protocol, 0)
        return head + what.source + what.destination + payload
    head = struct.pack("!IHBB", 6 << 28, len(payload), what.protocol, 64)
    return head + what.source + what.destination + payload


def outer(version: int, protocol: int, payload: bytes) -> bytes:
    ends = ("192.0.2.1", "192.0.2.2") if version == 4 else ("2001:db8::1", "2001:db8::2")
    both = Flow(protocol=protocol, source=ip_address(ends[0]).packed, destination=ip_address(ends[1]).packed)
    return ip(both, payload)


def udp(port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 12345, port, 8 + len(payload), 0) + payload


def frame(packet: bytes) -> bytes:
    return ETHERNET + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


WRAPS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "plain": (lambda packet: packet, 0),
    "vxlan": (lambda packet: outer(4, UDP, udp(8472, b"\x08" + bytes(7) + frame(packet))), 50),
    "vxlan over IPv6": (lambda packet: outer(6, UDP, udp(8472, b"\x08" + bytes(7) + frame(packet))), 70),
    "ipip": (lambda packet: outer(4, 4, packet), 20),
    "udp": (lambda packet: outer(4, UDP, udp(8285, packet)), 28),
}
KINDS = [(version, protocol) for version in (4, 6) for protocol in (ICMP, TCP, UDP)]


def passes(program: list[tuple[int, int, int, int]], data: bytes) -> bool:
    """Classic BPF as the kernel runs it (Documentation/networking/filter.rst), for what the filter uses."""
    at, value = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            if k + 4 > len(data):
                return False
            value = struct.unpack_from("!I", data, k)[0]
        elif code == 0x28:
            if k + 2 > len(data):
                return False
            value = struct.unpack_from("!H", data, k)[0]
        elif code == 0x30:
            if k >= len(data):
                return False
            value = data[k]
        elif code == 0x80:
            value = len(data)
        elif code in {0x15, 0x35, 0x45}:
            at += yes if {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code] else no
        else:
            assert code == 0x06
            return k > 0


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_a_probe_is_found_in_whatever_is_around_it(
    version: int, protocol: int, wrap: tuple[Callable[[bytes], bytes], int]
) -> None:
    around, overhead = wrap
    sent = flow(version, protocol)
    whole = frame(around(ip(sent, probe(sent, TOKEN))))
    found = dissect(whole, TOKEN)
    assert found is not None
    assert (found.flow, found.kind, found.overhead) == (sent, "probe", overhead)
    assert dissect(whole, TOKEN - 7) is None
    assert passes(socket_filter(spots([sent], TOKEN)), whole)
    other = msgspec.structs.replace(sent, source_port=1234)
    assert not passes(socket_filter(spots([other], TOKEN - 7)), whole)
    bare = dissect(whole[14:], TOKEN, ethernet=False)
    assert bare == found


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_checksums_are_right(version: int, protocol: int) -> None:
    sent = flow(version, protocol)
    packet = probe(sent, TOKEN)
    pseudo = (
        b""
        if sent.protocol == ICMP
        else sent.source + sent.destination + struct.pack("!II", len(packet), sent.protocol)
    )
    data = pseudo + packet + bytes(len(packet) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def answer_of(sent: Flow, flags: int) -> bytes:
    back = sent.back
    tcp = struct.pack(
        "!HHIIBBHHH",
        back.source_port,
        back.destination_port,
        5,
        (TOKEN + 1) & 0xFFFFFFFF,
        5 << 4,
        flags,
        0,
        0,
        0,
    )
    return ip(back, tcp)


@pytest.mark.parametrize(("flags", "kind"), [(0x12, "answer"), (0x14, "reset")])
@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_of_tcp_acknowledges_the_probe(version: int, flags: int, kind: str) -> None:
    sent = flow(version, TCP)
    whole = frame(answer_of(sent, flags))
    found = dissect(whole, TOKEN)
    assert found is not None
    assert (found.kind, found.flow) == (kind, sent.back)
    assert passes(socket_filter(spots([sent], TOKEN)), whole)


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
@pytest.mark.parametrize("version", [4, 6])
def test_an_error_is_about_the_probe_that_is_in_it(version: int, protocol: int) -> None:
    sent = flow(version, protocol)
    code = (ICMP, 3) if version == 4 else (ICMPV6, 1)
    about = ip(sent, probe(sent, TOKEN))
    error = Flow(protocol=code[0], source=sent.destination, destination=sent.source)
    whole = frame(ip(error, struct.pack("!BBHI", code[1], 3, 0, 0) + about))
    found = dissect(whole, TOKEN)
    assert found is not None
    assert (found.kind, found.said) == ("error", f"ICMP type {code[1]} code 3")
    assert passes(socket_filter(spots([sent], TOKEN)), whole)
    assert dissect(whole, 1) is None


@pytest.mark.parametrize("cut", range(60))
def test_frames_that_are_cut_are_nothing(cut: int) -> None:
    sent = flow(4, TCP)
    whole = frame(ip(sent, probe(sent, TOKEN)))[:cut]
    found = dissect(whole, TOKEN)
    assert found is None or cut >= 42
    passes(socket_filter(spots([sent], TOKEN)), whole)


def hop(component: str, interface: str, action: str, node: str = "n1") -> Hop:
    return Hop(
        node=node, space="", component=component, interface=interface, action=action, flow=flow(4, ICMP)
    )


HOPS = (
    hop("socket", "", "sent"),
    hop("routing", "eth1", "forwarded"),
    hop("overlay", "v0", "encapsulated"),
    hop("underlay", "eth0", "forwarded"),
    hop("overlay", "v0", "decapsulated", "n2"),
)


def seen(node: str, interface: str, *, outgoing: bool, time_ns: int) -> Seen:
    sent = flow(4, ICMP)
    what = dissect(frame(ip(sent, probe(sent, TOKEN))), TOKEN)
    assert what is not None
    return Seen(node, "", interface, outgoing, time_ns, 98, what)


WAY = [
    seen("n1", "eth1", outgoing=True, time_ns=1_000_000),
    seen("n1", "eth0", outgoing=True, time_ns=1_040_000),
    seen("n2", "v0", outgoing=False, time_ns=1_050_000),
]


def test_hops_get_what_was_seen_of_them_with_the_time_between() -> None:
    found = match(HOPS, WAY, frozenset({"probe"}))
    assert found.lost is None
    assert [hop.sight.after_us if hop.sight else None for hop in found.hops] == [None, 0.0, None, 40.0, 10.0]
    assert found.last_ns == 1_050_000


@pytest.mark.parametrize(("missing", "lost"), [(0, 1), (1, 3), (2, 4)])
def test_a_hop_that_should_show_and_does_not_is_where_it_was_lost(missing: int, lost: int) -> None:
    rest = [item for index, item in enumerate(WAY) if index != missing]
    assert match(HOPS, rest, frozenset({"probe"})).lost == lost


def test_frames_of_another_kind_or_way_do_not_count() -> None:
    assert match(HOPS, WAY, frozenset({"answer"})).lost == 1
    turned = [item._replace(outgoing=not item.outgoing) for item in WAY]
    assert match(HOPS, turned, frozenset({"probe"})).lost == 1
