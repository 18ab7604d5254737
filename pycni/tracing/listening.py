"""Live traffic followed instead of a probe.

Life: all nodes are watched for what may begin a connection, and the asker's own namespace for all that is meant
(``trace.live.patterns``). The first packet of a connection is followed as it is: it has been captured everywhere. Of a
connection that is under way the names behind translations are asked of connection tracking, then everything but that
one connection is left alone and its next packet is followed. All of it is bounded in time and in frames.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from pycni.kernel.capture import Frame
from pycni.trace.clocks import align
from pycni.trace.filter import Filter
from pycni.trace.live import Caught, Pattern, Picked, caught, patterns, pick, tight
from pycni.trace.model import Flow, Note
from pycni.tracing.eyes import NodeEyes, Order, Report
from pycni.tracing.probing import QUIET_S, Asker, Sent, collect, watching

SETTLE_S = 1.0
"""For the answer to the packet that is followed."""
UNDER_WAY_S = 3.0
"""For the next packet of a connection that is under way."""
EVERY_S = 0.05
"""How often what has come is looked through."""


class Meant(NamedTuple):
    """What is to be followed."""

    wanted: Filter
    sources: Collection[bytes]
    targets: Collection[bytes]
    """Addresses the packets are sent to, and those they are translated to."""
    ports: Collection[int]
    """The same of ports; (): any."""
    fits: Callable[[Flow], bool]
    """Whether a flow as it leaves the asker is meant."""


class Heard(NamedTuple):
    """One connection that was followed."""

    sent: Sent
    opening: bool
    """Its first packet was."""


class Bounds(NamedTuple):
    """When to stop."""

    times: int = 1
    """Connections."""
    seconds: float = 10.0


def listen(
    nodes: Mapping[str, NodeEyes], asker: Asker, flow: Flow, meant: Meant, bounds: Bounds
) -> list[Heard]:
    """Connections that are meant, within bounds; none when none passed.

    Raises KernelError, OSError.
    """
    end = time.monotonic() + bounds.seconds
    found: list[Heard] = []
    done: set[Flow] = set()
    while len(found) < bounds.times and (left := end - time.monotonic()) > 0:
        search = _Search(
            asker, lambda item: item not in done and meant.fits(item), new=meant.wanted.new, settle=EVERY_S
        )
        chosen = patterns(meant.wanted, asker, meant.sources, meant.targets, meant.ports)
        picked, _, frames = _watch(nodes, flow, chosen, search, left, deep=False)
        if picked is None:
            break
        done.add(picked.flow)
        if picked.opening:
            _, notes, _ = _watch(nodes, picked.flow, (), search, QUIET_S, names=_names(picked))
            found.append(Heard(Sent(picked.flow, picked.seen, frames=frames, notes=notes), True))
            continue
        followed = _under_way(nodes, asker, picked.flow, max(left, UNDER_WAY_S))
        if followed is not None:
            found.append(followed)
    return found


def _under_way(nodes: Mapping[str, NodeEyes], asker: Asker, flow: Flow, left: float) -> Heard | None:
    """A connection that has begun before: by its names at all places; None when it has just ended."""
    search = _Search(asker, lambda item: item == flow, new=False, settle=0.0)
    _, notes, _ = _watch(nodes, flow, (), search, 0.0, names=[flow])
    names = [flow, *(note.translated for note in notes if note.translated is not None and note.flow == flow)]
    search = _Search(asker, lambda item: item == flow, new=False, settle=SETTLE_S)
    picked, later, frames = _watch(nodes, flow, tight(names), search, min(left, UNDER_WAY_S), names=names)
    if picked is None:
        return None
    return Heard(Sent(flow, picked.seen, frames=frames, notes=(*notes, *later)), picked.opening)


def _watch(
    nodes: Mapping[str, NodeEyes],
    flow: Flow,
    chosen: Sequence[Pattern],
    search: _Search,
    seconds: float,
    *,
    deep: bool = True,
    names: Sequence[Flow] = (),
) -> tuple[Picked | None, tuple[Note, ...], tuple[Frame, ...]]:
    """All nodes under watch until the search is over; the packet, what kernels said, the packet's frames."""
    order = Order(
        token=secrets.randbits(32),
        flow=flow,
        more=tuple(names),
        deep=deep,
        # A watch for nothing hears nothing, and asks about the flows.
        patterns=tuple(chosen) or (Pattern(version=4, protocol=255, addresses=()),),
        seconds=seconds + SETTLE_S,
    )
    with watching(nodes, order) as watches:
        apart = {name for name, node in nodes.items() if node.apart}
        search.begin(time.time_ns(), apart)
        report = collect(watches, seconds, search.over)
    picked = search.best(report)
    if picked is None:
        return None, report.notes, ()
    if apart:
        picked = picked._replace(seen=align(picked.seen, search.asker.node, apart))
    stamps = {(item.node, item.space, item.interface, item.outgoing, item.time_ns) for item in picked.seen}
    frames = tuple(frame for frame in report.frames if frame[:5] in stamps)
    return picked, report.notes, frames


def _names(picked: Picked) -> list[Flow]:
    """How the packet was called on its way."""
    return list(dict.fromkeys(item.what.flow for item in picked.seen if item.what.kind == "probe"))


class _Search:
    """Looks through what has come, now and then."""

    def __init__(self, asker: Asker, meant: Callable[[Flow], bool], *, new: bool, settle: float) -> None:
        """``settle``: seconds for the answer to a packet of a connection that is under way."""
        self.asker = asker
        self._meant, self._new = meant, new
        self._caught: list[Caught] = []
        self._looked, self._next = 0, 0.0
        self._since: float | None = None
        self._settle = settle
        self._ready_ns = 0
        self._apart: Collection[str] = ()

    def begin(self, ready_ns: int, apart: Collection[str]) -> None:
        """All nodes are under watch since then: what passed before was not seen everywhere.

        ``apart``: nodes with clocks of their own.
        """
        self._ready_ns, self._apart = ready_ns, apart

    def over(self, report: Report) -> float | None:
        """See ``probing.collect``."""
        now = time.monotonic()
        if now < self._next:
            return None
        picked = self.best(report)
        # Looking through many packets must not take all the time there is.
        self._next = time.monotonic() + max(EVERY_S, 2 * (time.monotonic() - now))
        if picked is None:
            return None
        if self._since is None:
            self._since = now
        if picked.answered:
            return QUIET_S
        return max(SETTLE_S - (now - self._since), 0.0) if picked.opening else self._settle

    def best(self, report: Report) -> Picked | None:
        """The packet to follow, of all that has come."""
        self._caught += [
            item
            for frame in report.frames[self._looked :]
            if (frame.time_ns >= self._ready_ns or frame.node in self._apart)
            and (item := caught(frame)) is not None
        ]
        self._looked = len(report.frames)
        return pick(self._caught, self.asker, self._meant, new=self._new)
