"""Many probes in one table: round trips, losses, the time from hop to hop, what they were spread over. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pycni.model.family import show
from pycni.trace.match import Seen, match
from pycni.trace.model import Hop, Series

_PROBE = frozenset({"probe"})
_ANSWER = frozenset({"answer", "reset", "error"})


class Run(NamedTuple):
    """One probe, or one connection of live traffic."""

    round_trip_us: float | None
    """None: nothing came back."""
    endpoint: tuple[bytes, int] | None
    """Where it was translated to."""
    seen: tuple[Seen, ...]


def series(runs: Sequence[Run], shown: int, there: Sequence[Hop], back: Sequence[Hop]) -> Series:
    """All runs together; ``there`` and ``back``: the hops that are shown, of run ``shown``."""
    trips = sorted(run.round_trip_us for run in runs if run.round_trip_us is not None)
    ends = Counter(_end(run.endpoint) for run in runs if run.endpoint is not None)
    ways = Counter(_way(run.seen) for run in runs)
    return Series(
        sent=len(runs),
        answered=len(trips),
        shown=shown,
        round_trip_us=(trips[0], median(trips), trips[-1]) if trips else None,
        hops_us=_hops(runs, there, back),
        endpoints=tuple(ends.most_common()) if ends else (),
        ways=tuple(ways.most_common()) if len(ways) > 1 else (),
    )


def _hops(runs: Sequence[Run], there: Sequence[Hop], back: Sequence[Hop]) -> tuple[float | None, ...]:
    """Medians over the runs that took the hops that are shown."""
    gaps: list[list[float]] = [[] for _ in (*there, *back)]
    for run in runs:
        forth = match(there, run.seen, _PROBE)
        home = match(back, run.seen, _ANSWER, forth.last_ns)
        for index, hop in enumerate((*forth.hops, *home.hops)):
            if hop.sight is not None:
                gaps[index].append(hop.sight.after_us)
    return tuple(round(median(found), 1) if found else None for found in gaps)


def _end(end: tuple[bytes, int]) -> str:
    address, port = end
    text = f"[{show(address)}]" if len(address) == 16 else show(address)
    return f"{text}:{port}" if port else text


def _way(seen: Sequence[Seen]) -> str:
    """By which interfaces a probe left nodes for others: what equal-cost routes differ in."""
    mine = [item for item in seen if item.what.kind == "probe"]
    left = [
        f"{one.node} {one.interface}" for one, two in pairwise(mine) if one.node != two.node and one.outgoing
    ]
    return " > ".join(left) or "no node is left"
