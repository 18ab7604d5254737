"""Many matches of a policy brought apart by ports: a packet's port is in at most one of them then. Pure.

Life: ``policy_rules.section`` gives the matches of a policy; where they are many, their ports are cut where one of them
begins or ends, and pieces that the same matches have make a new match, with the peers of all of these. So whoever looks
for a packet's port first has found all peers that matter. A policy that would grow too much stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from pycni.view.policy_rules import Match, Named, Ports, Range, Section, joined, merged, united

MANY = 4
"""Up to so many matches stay as they are."""
GROWTH = 4
"""So many times as many peers as before are not too much."""
_Piece: TypeAlias = tuple[Ports, frozenset[int]]
"""Ports, and the matches that have them."""


def apart(matches: Section) -> Section:
    """Equivalent matches with at most one group each whose ports do not overlap; those without ports are as they were.

    As given when they are few, or that would be too much.
    """
    if len(matches) <= MANY:
        return matches
    rest = [match for match in matches if match.ports is None]
    some = [match for match in matches if match.ports is not None]
    most = GROWTH * sum(_weight(match) for match in some)
    by_owners: dict[frozenset[int], list[Ports]] = {}
    size = 0
    for ports, owners in _pieces([match.ports for match in some if match.ports is not None]):
        known = by_owners.setdefault(owners, [])
        if not known:
            size += sum(_weight(some[number]) for number in owners)
        known.append(ports)
        if size > most:
            return matches
    pieces = (
        _together([some[number] for number in sorted(owners)], ports) for owners, ports in by_owners.items()
    )
    return (*rest, *pieces)


def _weight(match: Match) -> int:
    return 1 + len(match.groups) + sum(map(len, match.ranges))


def _pieces(ports: Sequence[Ports]) -> Iterator[_Piece]:
    spans: dict[int, list[tuple[int, int, int]]] = {}
    names: dict[Named, set[int]] = {}
    for number, item in enumerate(ports):
        for protocol, ranges in item.numbers:
            spans.setdefault(protocol, []).extend(
                (low, high, number) for low, high in ranges or ((0, 0xFFFF),)
            )
        for named in item.names:
            names.setdefault(named, set()).add(number)
    for protocol in sorted(spans):
        for low, high, owners in _cut(spans[protocol]):
            whole = () if (low, high) == (0, 0xFFFF) else ((low, high),)
            yield Ports(((protocol, whole),)), owners
    for named in sorted(names):
        yield Ports(names=(named,)), frozenset(names[named])


def _cut(spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Pieces of ranges with the numbers of the ranges that cover them."""
    begin: dict[int, list[int]] = {}
    end: dict[int, list[int]] = {}
    for low, high, number in spans:
        begin.setdefault(low, []).append(number)
        end.setdefault(high + 1, []).append(number)
    active: set[int] = set()
    before = 0
    for at in sorted(begin.keys() | end.keys()):
        if active:
            yield before, at - 1, frozenset(active)
        active.difference_update(end.get(at, ()))
        active.update(begin.get(at, ()))
        before = at


def _together(matches: Sequence[Match], ports: Sequence[Ports]) -> Match:
    """The peers of all of them, with these ports."""
    if any(match.anybody for match in matches):
        return Match(anybody=True, ports=joined(ports))
    groups = {
        part.name: part for match in matches for group in match.groups for part in group.parts or (group,)
    }
    found = tuple(groups.values()) if len(groups) < 2 else (united(tuple(groups.values())),)
    ranges = (_ranges(match.ranges[0] for match in matches), _ranges(match.ranges[1] for match in matches))
    return Match(False, found, ranges, joined(ports))


def _ranges(some: Iterable[tuple[Range, ...]]) -> tuple[Range, ...]:
    every = [pair for ranges in some for pair in ranges]
    if not every:
        return ()
    size = len(every[0][0])
    spans = merged((int.from_bytes(low, "big"), int.from_bytes(high, "big")) for low, high in every)
    return tuple((low.to_bytes(size, "big"), high.to_bytes(size, "big")) for low, high in spans)
