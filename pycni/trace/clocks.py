"""Time stamps of nodes with clocks of their own, put on the asker's. Pure.

Clocks of machines differ by far more than a packet takes from one to the other, and only the order of sightings tells
one that was expected from one of an earlier round. Life: ``align`` is given what was seen of one probe, each node by
its own clock (brought near the asker's by whoever fetched it), and moves each other node as a whole: what it saw lies
between the probe's last sight on its way out of the asker's node and the first of its answer coming back in, the rest
shared equally between both directions (the assumption of NTP, RFC 5905 section 8). Without an answer a node is only
moved as far as causes have to come before their effects. Durations on one node are always that node's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pycni.trace.match import Seen

PROBE = "probe"


def align(seen: Sequence[Seen], asker: str, apart: Collection[str]) -> list[Seen]:
    """The same, sorted by time. ``apart``: nodes whose clock is not the asker's."""
    moves = offsets(seen, asker, apart)
    moved = [item._replace(time_ns=item.time_ns - moves.get(item.node, 0)) for item in seen]
    return sorted(moved, key=lambda item: item.time_ns)


def offsets(seen: Sequence[Seen], asker: str, apart: Collection[str]) -> dict[str, int]:
    """By how much each node's clock is ahead, nanoseconds."""
    own = sorted((item for item in seen if item.node == asker), key=lambda item: item.time_ns)
    left = [item.time_ns for item in own if item.outgoing and item.what.kind == PROBE]
    if not left:
        return {}
    back = [item.time_ns for item in own if not item.outgoing and item.what.kind != PROBE]
    out = left[-1]
    home = next((stamp for stamp in back if stamp >= out), None)
    found = {}
    for node in apart:
        there = [item for item in seen if item.node == node]
        if node == asker or not there:
            continue
        first = min(item.time_ns for item in there)
        answers = [item.time_ns for item in there if item.outgoing and item.what.kind != PROBE]
        ahead = first - out
        if home is not None and answers:
            found[node] = (ahead + max(answers) - home) // 2
        elif ahead < 0:
            found[node] = ahead
    return found
