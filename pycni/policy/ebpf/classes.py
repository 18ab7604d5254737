"""Rules of one tier made flat: what decides first becomes what is found by the longest prefix. Pure.

Life: ``claims`` turns the rules of a tier, in their order, into claims with ranks, names of ports resolved as far as
they are the subject's own. Out of claims that hold for one peer ``ports_of`` makes a class of ports; out of those with
blocks ``blocks_of`` makes prefixes, each with the class of all claims whose blocks hold it. ``prefixes`` finds the
fewest prefixes for disjoint ranges, in the way of Draves et al., "Constructing optimal IP routing tables" (1999).

All numbers are hashes of contents; what is equal is the same.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from pycni.model.family import Family
from pycni.model.policy import Action, Direction
from pycni.policy.ebpf.layout import (
    ALLOW,
    DENY,
    ID,
    NONE,
    PASS,
    PeerRules,
    Said,
    block_key,
    port_key,
)
from pycni.view.policy_rules import Match, Named, PortsOf, Range

ACTIONS = {Action.ACCEPT: ALLOW, Action.DENY: DENY, Action.PASS: PASS}
_ALL_PORTS = ((0, 0xFFFF),)
_KEY_ID = slice(4, 4 + ID)
_NOTHING = Said().pack()

Numbers: TypeAlias = tuple[PortsOf, ...]
Own: TypeAlias = frozenset[tuple[Named, int]]
"""Named ports of a pod, as far as their names are in use."""
Span: TypeAlias = tuple[int, int, int]
"""First, last, colour."""


class RuleName(NamedTuple):
    """What a rule's number stands for."""

    policies: tuple[str, ...]
    """``NetworkPolicy a/x``; several where they deny together what none of them allows."""
    direction: Direction
    place: int = -1
    """Place among the policy's rules, of which those that say the same to the same are one; -1: isolation."""

    def __str__(self) -> str:
        side = self.direction.name.lower()
        if self.place < 0:
            return f"{side} isolated by {', '.join(self.policies)}"
        return f"{self.policies[0]} {side}[{self.place}]"


class Claim(NamedTuple):
    """A rule in its tier."""

    said: Said
    anybody: bool
    groups: tuple[str, ...]
    ranges: tuple[tuple[Range, ...], tuple[Range, ...]]
    numbers: Numbers | None
    """None: everything."""
    names: tuple[Named, ...]
    """Of the peer's ports."""


class PortClass(NamedTuple):
    """What some claims say together."""

    value: PeerRules
    rows: tuple[tuple[bytes, bytes], ...]
    """Of PORTS."""
    packed: bytes
    """The value."""


def number_of(*parts: Any) -> bytes:
    """Eight bytes that stand for values whose ``repr`` says all of them; never NONE."""
    return hash_of(repr(parts).encode())


def hash_of(*parts: bytes) -> bytes:
    """Eight bytes that stand for rows, all of one kind and so of known lengths; never NONE."""
    found = hashlib.blake2b(b"".join(parts), digest_size=ID).digest()
    return found if found != NONE else b"\1" * ID


def rule_number(name: RuleName) -> bytes:
    """The number of a rule."""
    return hash_of(f"rule {name.direction:d} {name.place} {' '.join(name.policies)}".encode())


class TierRule(NamedTuple):
    """A rule of a policy, before it is known where it stands in its tier."""

    name: RuleName
    number: bytes
    action: int
    match: Match


def numbered(name: RuleName, action: int, match: Match) -> TierRule:
    """With the rule's number."""
    return TierRule(name, rule_number(name), action, match)


def claims(rules: Iterable[TierRule], direction: Direction, own: Own) -> tuple[Claim, ...]:
    """The rules of a tier in their order. ``own``: the subject's ports."""
    found = []
    for rank, (_, number, action, match) in enumerate(rules):
        numbers: Numbers | None = None
        names: tuple[Named, ...] = ()
        if match.ports is not None:
            numbers, names = match.ports.numbers, match.ports.names
            if direction is Direction.INGRESS and names:
                numbers += resolved(names, own)
                names = ()
            if not numbers and not names:
                continue
        groups = tuple([group.name for group in match.groups])
        found.append(Claim(Said(number, rank, action), match.anybody, groups, match.ranges, numbers, names))
    return tuple(found)


def resolved(names: Iterable[Named], bearer: Own) -> Numbers:
    """The ports that a pod has by these names."""
    wanted = set(names)
    return tuple([(named[0], ((port, port),)) for named, port in sorted(bearer) if named in wanted])


# --- ports -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 12)
def ports_of(some: tuple[tuple[Said, Numbers | None], ...]) -> PortClass:
    """What claims say of each port, sorted by rank: the first that matches counts."""
    rest = Said()
    spans: dict[int, list[Span]] = {}
    for place, (said, numbers) in enumerate(some):
        if numbers is None:
            rest = said
            break
        for protocol, ranges in numbers:
            spans.setdefault(protocol, []).extend([(*ends, place) for ends in ranges or _ALL_PORTS])
    if not spans:
        return _class(PeerRules(NONE, rest), ())
    said_by = [said.pack() for said, _ in some] + [_NOTHING]
    bare = [
        (port_key(NONE, protocol, value, length), said_by[colour])
        for protocol, held in sorted(spans.items())
        for value, length, colour in prefixes(tuple(_first(held)), 16)
    ]
    number = hash_of(b"ports", *[part for row in bare for part in row])
    rows = tuple([(key[:4] + number + key[_KEY_ID.stop :], value) for key, value in bare])
    return _class(PeerRules(number, rest), rows)


def _class(value: PeerRules, rows: tuple[tuple[bytes, bytes], ...]) -> PortClass:
    return PortClass(value, rows, value.pack())


def _first(spans: Sequence[Span]) -> Iterator[Span]:
    """Disjoint ranges, each with the lowest colour of those that hold it; neighbours of one colour are one."""
    if len(spans) == 1:
        yield spans[0]
        return
    waiting: list[tuple[int, int]] = []
    ordered = sorted(spans)
    edges = sorted({edge for low, high, _ in spans for edge in (low, high + 1)})
    at, start, last = 0, 0, -1
    for edge, after in zip(edges, [*edges[1:], edges[-1]], strict=True):
        while at < len(ordered) and ordered[at][0] == edge:
            heapq.heappush(waiting, (ordered[at][2], ordered[at][1]))
            at += 1
        while waiting and waiting[0][1] < edge:
            heapq.heappop(waiting)
        colour = waiting[0][0] if waiting and after > edge else -1
        if colour != last:
            if last >= 0:
                yield start, edge - 1, last
            start, last = edge, colour


# --- blocks ----------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Addresses that the same claims are about."""

    key: bytes
    """Of BLOCKS, with NONE for the number."""
    value: PortClass


def blocks_of(some: Sequence[Claim], family: Family) -> tuple[Block, ...]:
    """What claims with blocks say of the addresses of a family, none where they have no blocks of it."""
    side = family is Family.V6
    mine = [(claim.said, claim.numbers, claim.ranges[side]) for claim in some if claim.ranges[side]]
    mine = [item for item in mine if item[1] is None or item[1]]
    if not mine:
        return ()
    spans = [
        (int.from_bytes(low, "big"), int.from_bytes(high, "big"), place)
        for place, (_, _, ranges) in enumerate(mine)
        for low, high in ranges
    ]
    parts, colours = _together(spans)
    size = family.bits // 8
    classes = [ports_of(tuple([mine[place][:2] for place in places])) for places in colours]
    none = _class(PeerRules(), ())
    return tuple(
        Block(
            block_key(NONE, value.to_bytes(size, "big"), length),
            classes[colour] if colour >= 0 else none,
        )
        for value, length, colour in prefixes(parts, family.bits)
    )


def _together(spans: Sequence[Span]) -> tuple[tuple[Span, ...], list[tuple[int, ...]]]:
    """Disjoint ranges coloured by a number for all that hold them, and what these numbers stand for."""
    colours: dict[tuple[int, ...], int] = {}
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for low, high, place in spans:
        begins.setdefault(low, []).append(place)
        ends.setdefault(high + 1, []).append(place)
    active: list[int] = []
    found: list[Span] = []
    start = 0
    for edge in sorted(begins.keys() | ends.keys()):
        if active and edge > start:
            colour = colours.setdefault(tuple(active), len(colours))
            if found and found[-1][2] == colour and found[-1][1] == start - 1:
                found[-1] = (found[-1][0], edge - 1, colour)
            else:
                found.append((start, edge - 1, colour))
        for place in ends.get(edge, ()):
            del active[bisect_left(active, place)]
        for place in begins.get(edge, ()):
            insort(active, place)
        start = edge
    return tuple(found), list(colours)


# --- prefixes --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 12)
def prefixes(spans: tuple[Span, ...], bits: int) -> tuple[Span, ...]:
    """The fewest prefixes (value, length, colour) of which the longest that holds a number has its colour.

    ``spans`` are disjoint and sorted, with colours from 0 on. Outside of them no prefix holds, or one of colour -1.
    """
    if not spans:
        return ()
    low, high = spans[0][0], spans[-1][1]
    free = (low ^ high).bit_length()
    low = low >> free << free
    tiles = list(_tiles(spans, low, low + (1 << free) - 1))
    if len(tiles) == 1:
        return ((low, bits - free, tiles[0][2]),)
    found: list[Span] = []
    _choose(_tree(tiles, 0, len(tiles), low, free), -1, bits, found)
    return tuple(found)


def _tiles(spans: Sequence[Span], low: int, high: int) -> Iterator[Span]:
    """Aligned blocks (value, free bits, colour) from low to high in order, colour -1 between the spans."""
    for first, last, colour in spans:
        if first > low:
            yield from _aligned(low, first - 1, -1)
        yield from _aligned(first, last, colour)
        low = last + 1
    if low <= high:
        yield from _aligned(low, high, -1)


def _aligned(low: int, high: int, colour: int) -> Iterator[Span]:
    while low <= high:
        free = (high - low + 1).bit_length() - 1
        if low:
            free = min(free, (low & -low).bit_length() - 1)
        yield low, free, colour
        low += 1 << free


_Node: TypeAlias = tuple[int, int, frozenset[int], Any, Any]
"""Value, free bits, colours it would do with, its halves."""


def _tree(tiles: Sequence[Span], begin: int, end: int, value: int, free: int) -> _Node:
    if end - begin == 1:
        return value, free, frozenset((tiles[begin][2],)), None, None
    free -= 1
    half = value + (1 << free)
    middle = bisect_left(tiles, (half,), begin, end)
    left = _tree(tiles, begin, middle, value, free)
    right = _tree(tiles, middle, end, half, free)
    return value, free + 1, left[2] & right[2] or left[2] | right[2], left, right


def _choose(node: _Node, inherited: int, bits: int, found: list[Span]) -> None:
    value, free, colours, left, right = node
    if inherited not in colours:
        inherited = min(colours)
        found.append((value, bits - free, inherited))
    if left is not None:
        _choose(left, inherited, bits, found)
        _choose(right, inherited, bits, found)
