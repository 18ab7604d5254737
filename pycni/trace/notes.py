"""What kernels said of a packet, put to the hops it belongs to. Pure.

Life: a watch gives notes (``model.Note``) with node, space, interface and the packet's addresses; ``attach`` finds for
each the hop of that place that is about it: a rule of our tables belongs to the component that has them, a rule of
somebody else to the hop by whose interface the packet came or went, a drop to where the packet was then. What fits no
hop is given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from pycni.trace.model import ICMP, ICMPV6, Flow, Hop, Note
from pycni.trace.said import BY_POLICY, decisive

_BY_RULE = "netfilter_drop"
MOST = 200
"""Notes of one hop."""
_COMPONENTS = {
    "pycni_proxy": ("service",),
    "pycni_policy": ("policy",),
    "pycni_shut": ("policy",),
    "pycni_guard": ("bridge", "interface"),
    "pycni_spoof": ("bridge", "interface"),
    "pycni_leg_guard": ("bridge", "interface"),
}
"""Whose a table is, by its name."""


class Attached(NamedTuple):
    """Hops with their notes."""

    there: tuple[Hop, ...]
    back: tuple[Hop, ...]
    rest: tuple[Note, ...]
    """Notes of no hop."""


def attach(there: Sequence[Hop], back: Sequence[Hop], notes: Iterable[Note]) -> Attached:
    """Put notes to hops, in their order; what was said twice is said once."""
    hops = (*there, *back)
    split = len(there)
    found: dict[int, dict[tuple[str, ...], Note]] = {}
    rest: list[Note] = []
    ends: dict[tuple[str, str], int] = {}
    # Rules have the time they were read at, drops the kernel's: the rule that dropped a packet comes before its drop.
    for note in sorted(notes, key=lambda item: (item.kind != "rule", item.time_ns)):
        if note.kind == "limit":
            continue
        index = _place(hops, split, note)
        if note.verdict == _BY_RULE:
            index = ends.get((note.node, note.space), index)
        if index is None:
            rest.append(note)
            continue
        if note.kind == "rule" and note.verdict == "drop":
            ends.setdefault((note.node, note.space), index)
        key = (note.kind, note.place, note.detail, note.verdict, note.space)
        mine = found.setdefault(index, {})
        if len(mine) < MOST:
            mine.setdefault(key, note)
    whole = [
        msgspec.structs.replace(hop, notes=tuple(found[index].values())) if index in found else hop
        for index, hop in enumerate(hops)
    ]
    return Attached(tuple(whole[:split]), tuple(whole[split:]), tuple(rest))


def limits(notes: Iterable[Note]) -> tuple[str, ...]:
    """What kernels could not tell, once for all nodes of the same trouble."""
    nodes: dict[str, list[str]] = {}
    for note in notes:
        if note.kind == "limit":
            places = nodes.setdefault(note.detail, [])
            if note.node not in places:
                places.append(note.node)
    return tuple(f"{', '.join(places)}: {detail}" for detail, places in nodes.items())


def _place(hops: Sequence[Hop], split: int, note: Note) -> int | None:
    """Index of the hop a note is about."""
    way = _way(hops, split, note)
    here = [
        index for index in way if (hops[index].node, hops[index].space) == (note.node, note.space)
    ]  # fmt: skip
    if not here:
        return None
    if note.kind == "connection":
        return next((index for index in here if hops[index].action == "translated"), here[0])
    wanted = ("policy",) if note.verdict == BY_POLICY else _COMPONENTS.get(_table(note), ())
    if wanted:
        mine = [index for index in here if hops[index].component in wanted]
        if mine:
            return mine[0]
    if note.interface:
        by = [index for index in here if hops[index].interface == note.interface]
        if by:
            return by[0]
    # Rules without a hop of their own are met on arrival; what is dropped is dropped at the end.
    return here[0] if note.kind == "rule" and not decisive(note) else here[-1]


def _way(hops: Sequence[Hop], split: int, note: Note) -> range:
    """Whether it is about the packet or its answer: by its addresses, those around it too."""
    there, back = range(split), range(split, len(hops))
    if note.flow is None:
        return range(len(hops))
    if note.kind == "connection":
        return there
    for way in (there, back):
        known = {_ends(hops[index].flow) for index in way}
        around = {_hosts(outer) for index in way if (outer := hops[index].outer) is not None}
        if _ends(note.flow) in known or _hosts(note.flow) in around:
            return way
    return range(len(hops))


def _ends(flow: Flow) -> tuple[bytes, bytes, int, int, int]:
    if flow.protocol in {ICMP, ICMPV6}:
        return flow.source, flow.destination, flow.protocol, 0, 0
    return flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port


def _hosts(flow: Flow) -> tuple[bytes, bytes]:
    """Of a packet around another one only its addresses are known before."""
    return flow.source, flow.destination


def _table(note: Note) -> str:
    parts = note.place.split()
    return parts[1] if len(parts) > 1 else ""
