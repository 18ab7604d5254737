"""Live traffic instead of a probe: how the kernel finds what is asked for, which packet is followed. Pure.

Life: ``filter.parse`` reads the words; ``patterns`` say what packet sockets let through in which spaces (``program``,
classic BPF); what is captured becomes ``Caught`` packets, which have the same fingerprint at every place, whatever is
translated; ``pick`` chooses one that was seen at most places, and the answer to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from pycni.model.spot import Spot
from pycni.trace.filter import Filter
from pycni.trace.frames import ETHERNET, Dissected, Parts, flow_of, inside, places, split_ip
from pycni.trace.match import Seen
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow
from pycni.trace.pcap import Captured

_FIN, _SYN, _ACK = 0x01, 0x02, 0x10
_ECHO = {ICMP: (8, 0), ICMPV6: (128, 129)}
_FINGER = 48
"""Bytes of a payload that tell packets apart."""
_LD_W, _LD_H, _LD_B, _LD_LEN = 0x20, 0x28, 0x30, 0x80
_JEQ, _JGE, _JSET, _RET = 0x15, 0x35, 0x45, 0x06
_HEAD = {4: 20, 6: 40}
_ENDS = {4: (12, 16), 6: (20, 36)}
"""Offsets of source's and destination's last four bytes in the IP header."""
_PROTOCOL_AT = {4: 9, 6: 6}
_MOST_ADDRESSES, _MOST_PORTS = 16, 16
_SNAP = 0xFFFF
_TRIED = 32
"""Packets looked at for one that was answered."""
_SLACK_NS = 50_000
"""Time stamps of two processors may differ by so much."""


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """Packets to let through: those with one of the addresses and one of the ports at either end, however wrapped."""

    version: int
    protocol: int
    addresses: tuple[bytes, ...]
    ports: tuple[int, ...] = ()
    """(): any."""
    opening: bool = False
    """Of TCP those with SYN only."""
    place: tuple[str, str] | None = None
    """Node and space; None: everywhere."""


class Told(NamedTuple):
    """What tells a packet from others, whatever is translated."""

    finger: bytes
    """The same at every place."""
    opening: bool
    """TCP: the first of a connection; ICMP: a request."""
    sequence: int = 0
    """TCP: the number behind its last byte; ICMP: that of the echo."""
    acknowledged: int = 0
    kind: int = 0
    """ICMP's type."""


class Caught(NamedTuple):
    """A packet at a place."""

    node: str
    space: str
    interface: str
    outgoing: bool
    time_ns: int
    length: int
    flow: Flow
    """Innermost."""
    overhead: int
    told: Told

    @property
    def name(self) -> tuple[int, bytes]:
        """The same for the same packet."""
        return self.flow.protocol, self.told.finger

    @property
    def where(self) -> tuple[str, str, str, bool]:
        """Node, space, interface and direction."""
        return self.node, self.space, self.interface, self.outgoing


def patterns(
    wanted: Filter,
    near: tuple[str, str],
    sources: Collection[bytes],
    targets: Collection[bytes],
    ports: Collection[int],
) -> tuple[Pattern, ...]:
    """What to let through while the connection is not known yet.

    ``near``: node and space of the asker, where all that fits is heard; elsewhere only the beginnings of connections
    are (all of UDP and ICMP, which have no beginnings). ``targets``: addresses the packets may have after translation,
    too; ``ports``: the same of ports, () for any.
    """
    found = []
    for version in sorted({4 if len(address) == 4 else 6 for address in sources}):
        numbers = (ICMPV6 if version == 6 else ICMP, TCP, UDP)
        size = 4 if version == 4 else 16
        own = tuple(address for address in sources if len(address) == size)
        others = tuple(address for address in targets if len(address) == size)
        for number in numbers:
            plain = ICMP if number == ICMPV6 else number
            if wanted.protocol not in {0, plain} or (plain == ICMP and wanted.ports):
                continue
            some = tuple(sorted(ports)[:_MOST_PORTS]) if plain != ICMP else ()
            both = (own + others)[:_MOST_ADDRESSES]
            found.append(
                Pattern(
                    version=version,
                    protocol=number,
                    addresses=both,
                    ports=some,
                    opening=number == TCP,
                )
            )
            if number == TCP and not wanted.new:
                found.append(
                    Pattern(
                        version=version,
                        protocol=number,
                        addresses=own,
                        ports=some,
                        place=near,
                    )
                )
    return tuple(found)


def tight(flows: Iterable[Flow]) -> tuple[Pattern, ...]:
    """Only one connection: as it is named at its places."""
    found = {}
    for flow in flows:
        port = flow.source_port if flow.protocol in {TCP, UDP} else 0
        found[flow] = Pattern(
            version=4 if len(flow.source) == 4 else 6,
            protocol=flow.protocol,
            addresses=(flow.source, flow.destination),
            ports=(port,) if port else (),
        )
    return tuple(found.values())


def program(chosen: Sequence[Pattern]) -> list[tuple[int, int, int, int]]:
    """A classic BPF program (code, jt, jf, k) for a packet socket; with an Ethernet header and without."""
    code: list[tuple[int, int, int, int]] = []
    for pattern in chosen:
        for place in places(pattern.version, pattern.protocol):
            if not place.inside_error:
                for link in (ETHERNET, 0):
                    code += _block(pattern, place.offset + link)
    return [*code, (_RET, 0, 0, 0)]


def _block(pattern: Pattern, transport: int) -> list[tuple[int, int, int, int]]:
    """Tests of one place: goes on behind itself where one does not fit."""
    version = pattern.version
    start = transport - _HEAD[version]
    need = transport + (14 if pattern.protocol == TCP else 8)
    tests: list[list[tuple[int, int, int, int]]] = [
        [(_LD_LEN, 0, 0, 0), (_JGE, 0, -1, need)],
        [(_LD_B, 0, 0, start + _PROTOCOL_AT[version]), (_JEQ, 0, -1, pattern.protocol)],
        _either(_LD_W, [start + at for at in _ENDS[version]], [_last(item) for item in pattern.addresses]),
    ]
    if pattern.ports:
        tests.append(_either(_LD_H, [transport, transport + 2], list(pattern.ports)))
    if pattern.opening:
        tests.append([(_LD_B, 0, 0, transport + 13), (_JSET, 0, -1, _SYN)])
    steps = [step for test in tests for step in test]
    size = len(steps) + 1
    found = [
        (code, yes, size - at - 1 if no == -1 else no, value)
        for at, (code, yes, no, value) in enumerate(steps)
    ]
    return [*found, (_RET, 0, 0, _SNAP)]


def _either(load: int, offsets: Sequence[int], values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """One of the values at one of the offsets; ``-1`` stands for the way out."""
    total = len(offsets) * (len(values) + 1)
    steps: list[tuple[int, int, int, int]] = []
    for offset in offsets:
        steps.append((load, 0, 0, offset))
        for value in values:
            left = total - len(steps) - 1
            steps.append((_JEQ, left, -1 if not left else 0, value))
    return steps


def _last(address: bytes) -> int:
    return int(struct.unpack("!I", address[-4:])[0])


def drop_spots(flows: Iterable[Flow]) -> list[Spot]:
    """What a flow's packets are known by where they are dropped: its addresses, however wrapped."""
    found: dict[Spot, None] = {}
    for flow in flows:
        version = 4 if len(flow.source) == 4 else 6
        for place in places(version, flow.protocol):
            if not place.inside_error:
                at = place.offset - (8 if version == 4 else 32)
                for one, two in ((flow.source, flow.destination), (flow.destination, flow.source)):
                    value = one + two if version == 4 else one
                    found[Spot(place.version, place.protocol, at, value)] = None
    return list(found)


def caught(frame: Captured) -> Caught | None:
    """The innermost packet of a captured frame; None: none that is followed."""
    data = frame.data
    found: tuple[int, Parts] | None = None
    for depth, packet in inside(data[ETHERNET:] if frame.ethernet else data):
        parts = split_ip(packet)
        if parts is None:
            break
        found = depth, parts
    told = _read(found[1]) if found is not None else None
    if found is None or told is None:
        return None
    return Caught(
        frame.node,
        frame.space,
        frame.interface,
        frame.outgoing,
        frame.time_ns,
        len(data),
        flow_of(found[1]),
        found[0],
        told,
    )


def _read(parts: Parts) -> Told | None:
    rest, protocol = parts.rest, parts.protocol
    if protocol == TCP and len(rest) >= 20:
        sequence, acknowledged, size, flags = struct.unpack_from("!IIBB", rest, 4)
        payload = rest[(size >> 4) * 4 :]
        finger = struct.pack("!IIB", sequence, acknowledged, flags & 0x17) + payload[:_FINGER]
        behind = (sequence + len(payload) + bool(flags & _SYN) + (flags & _FIN)) & 0xFFFFFFFF
        opening = bool(flags & _SYN) and not flags & _ACK
        return Told(finger, opening, behind, acknowledged)
    if protocol == UDP and len(rest) >= 8:
        return Told(rest[4:6] + rest[8 : 8 + _FINGER], True)
    if protocol in _ECHO and len(rest) >= 8 and rest[0] in _ECHO[protocol]:
        (number,) = struct.unpack_from("!H", rest, 6)
        request = rest[0] == _ECHO[protocol][0]
        return Told(rest[:2] + rest[6 : 8 + _FINGER], request, number, kind=rest[0])
    return None


class Picked(NamedTuple):
    """One packet and its answer, at all places they were seen."""

    flow: Flow
    """As it left the asker's socket."""
    seen: list[Seen]
    opening: bool
    answered: bool
    """The asker got the answer."""


def pick(
    found: Sequence[Caught],
    near: tuple[str, str],
    meant: Callable[[Flow], bool],
    *,
    new: bool = False,
) -> Picked | None:
    """The packet to follow: one that leaves ``near`` and is meant, the beginning of a connection if there is one, else
    one that was seen at most places; of several the first that was answered. ``new``: beginnings only.
    """
    same: dict[tuple[int, bytes], list[Caught]] = {}
    for item in found:
        same.setdefault(item.name, []).append(item)
    firsts = [
        item
        for item in found
        if item.outgoing
        and (item.node, item.space) == near
        and _asks(item)
        and (item.told.opening or not new)
        and meant(item.flow)
    ]
    places = {item.name: len({one.where for one in same[item.name]}) for item in firsts}
    most = max(places.values(), default=0)
    # One under way that was seen at fewer places left before all were watched.
    worth = [item for item in firsts if item.told.opening] or [
        item for item in firsts if places[item.name] == most
    ]
    best = None
    for first in sorted(worth, key=lambda item: item.time_ns)[:_TRIED]:
        picked = _picked(found, same, first, near)
        if picked.answered:
            return picked
        best = best or picked
    return best


def _picked(
    found: Sequence[Caught],
    same: Mapping[tuple[int, bytes], Sequence[Caught]],
    first: Caught,
    near: tuple[str, str],
) -> Picked:
    mine = [item for item in same[first.name] if item.time_ns >= first.time_ns - _SLACK_NS]
    reply = _answer(found, first, mine)
    back = [item for item in same[reply.name] if item.time_ns >= reply.time_ns] if reply is not None else []
    seen = [_seen(item, "probe") for item in mine] + [_seen(item, "answer") for item in back]
    home = any((item.node, item.space) == near and not item.outgoing for item in back)
    return Picked(first.flow, sorted(seen, key=lambda item: item.time_ns), first.told.opening, home)


def _asks(item: Caught) -> bool:
    """Whether a packet is the opener's, as far as one can tell: servers have the lower port."""
    if item.flow.protocol == UDP or (item.flow.protocol == TCP and not item.told.opening):
        return item.flow.source_port >= item.flow.destination_port
    return item.told.opening


def _answer(found: Sequence[Caught], first: Caught, mine: Sequence[Caught]) -> Caught | None:
    """The first packet that goes back and answers it, where the packet arrived if it was seen there."""
    backs = {item.flow.back for item in mine}
    last = max(mine, key=lambda item: item.time_ns)
    replies = [
        item
        for item in found
        if item.flow in backs and item.time_ns >= first.time_ns and _answers(item, first)
    ]
    there = [item for item in replies if (item.node, item.space) == (last.node, last.space)]
    return min(there or replies, key=lambda item: item.time_ns, default=None)


def _answers(item: Caught, first: Caught) -> bool:
    protocol = item.flow.protocol
    if protocol == TCP:
        return (item.told.acknowledged - first.told.sequence) & 0xFFFFFFFF < 1 << 31
    if protocol in _ECHO:
        return item.told.kind == _ECHO[protocol][1] and item.told.sequence == first.told.sequence
    return True


def _seen(item: Caught, kind: str) -> Seen:
    what = Dissected(item.flow, kind, item.overhead)
    return Seen(item.node, item.space, item.interface, item.outgoing, item.time_ns, item.length, what)
