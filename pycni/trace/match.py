"""Puts what was captured beside what was to be expected. Pure.

Life: frames that belong to the probe become ``Seen``; each hop that can be seen at an interface takes the first one
that fits and is not earlier than the hop before. A hop whose packet should show but did not is where it was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from pycni.trace.frames import Dissected
from pycni.trace.model import Hop, Sight

SLACK_NS = 50_000
"""Time stamps of two processors may differ by so much."""


class Seen(NamedTuple):
    """One frame of the probe or its answer."""

    node: str
    space: str
    interface: str
    outgoing: bool
    time_ns: int
    length: int
    what: Dissected


class Matched(NamedTuple):
    """Hops with what was seen of them."""

    hops: tuple[Hop, ...]
    lost: int | None
    """Index of the first hop that should have been seen and was not; None: all were."""
    last_ns: int
    """When it was seen last; 0: never."""


def visible(hop: Hop) -> bool | None:
    """Whether a hop shows as a frame that leaves (True) or enters (False) its interface; None: it does not."""
    if not hop.interface or hop.action in {"dropped", "refused"}:
        return None
    if hop.component in {"routing", "underlay"} and hop.action == "forwarded":
        return True
    if hop.component == "bridge":
        return hop.action == "forwarded"
    if hop.component == "overlay" and hop.action == "decapsulated":
        return False
    if hop.component in {"interface", "underlay"} and hop.action == "received":
        return False
    return None


def match(hops: Sequence[Hop], seen: Iterable[Seen], kinds: frozenset[str], after_ns: int = 0) -> Matched:
    """Hops with their sights. ``kinds``: of frames that count here. ``after_ns``: nothing earlier counts."""
    frames = [item for item in seen if item.what.kind in kinds]
    found: list[Hop] = []
    lost, before = None, after_ns
    shown: Hop | None = None
    for index, hop in enumerate(hops):
        way = visible(hop)
        sight = None
        if way is not None and shown is not None and _one(shown, hop):
            # Two decisions over one frame: by which device, and what that leads to.
            sight = msgspec.structs.replace(shown.sight, after_us=0.0) if shown.sight is not None else None
            found.append(msgspec.structs.replace(hop, sight=sight))
            continue
        if way is not None:
            item = next(
                (item for item in frames if _fits(hop, item, way) and item.time_ns >= before - SLACK_NS), None
            )
            if item is not None:
                frames.remove(item)
                gap = (item.time_ns - before) / 1000 if before else 0.0
                sight = Sight(
                    time_ns=item.time_ns,
                    after_us=max(gap, 0.0),
                    length=item.length,
                    said=item.what.said,
                    flow=item.what.flow,
                    damaged=item.what.damaged,
                )
                before = max(before, item.time_ns)
            elif lost is None and not hop.optional:
                lost = index
        found.append(msgspec.structs.replace(hop, sight=sight) if sight is not None else hop)
        shown = found[-1] if way is not None else shown
    return Matched(tuple(found), lost, before)


def _one(before: Hop, hop: Hop) -> bool:
    """Whether two hops show as one and the same frame."""
    same = (before.node, before.space, before.interface) == (hop.node, hop.space, hop.interface)
    return same and visible(before) is True and visible(hop) is True and not hop.overhead


def _fits(hop: Hop, item: Seen, way: bool) -> bool:
    place = (item.node, item.space, item.interface) == (hop.node, hop.space, hop.interface)
    return place and item.outgoing is way
