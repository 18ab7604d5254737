"""Probes sent and watched: one, or many in a row.

Life: all nodes are watched at once (``watching``); one probe after the other leaves its socket; what comes is collected
until its answer is back, the kernel said why there will be none, or patience ends; each probe's frames become
``Sent``. Whatever happens, nothing is left open.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from pycni.kernel.capture import Frame
from pycni.trace.clocks import align
from pycni.trace.frames import ALL_BITS, UPPER_HALF, Dissected, answer_port, dissect
from pycni.trace.match import Seen
from pycni.trace.model import UDP, Flow, Note
from pycni.trace.said import decisive
from pycni.tracing.eyes import Launched, NodeEyes, Order, Report, Watching

PROBE = frozenset({"probe"})
ANSWER = frozenset({"answer", "reset", "error"})
"""Kinds of frames that go back to the asker."""
PATIENCE_S = 1.0
"""How long an answer may take."""
QUIET_S = 0.05
"""For frames that are still under way when the answer is there, and for errors about the answer."""
DOOMED_S = 0.25
"""For an answer after all, when some kernel has dropped a packet of the probe's: it may have been a copy."""
PORTS = range(33000, 60000)
FRAMES = 10000
"""More are not kept of one watch."""
UDP_BATCH = 12
"""Probes of one watch: answers of UDP are known by port, and a filter holds so many."""
BATCH = 200
HASTY_S = 0.3
"""Patience with each further probe, once several have been lost."""
_LOST_IN_A_ROW = 3


class Sent(NamedTuple):
    """A probe that was sent, or was to be, and what became of it."""

    flow: Flow
    seen: list[Seen]
    refused: str = ""
    """Why it did not leave its socket."""
    frames: tuple[Frame, ...] = ()
    """Those that were seen, as they were captured."""
    notes: tuple[Note, ...] = ()


class Asker(NamedTuple):
    """Where probes begin."""

    node: str
    space: str


@contextlib.contextmanager
def watching(nodes: Mapping[str, NodeEyes], order: Order) -> Iterator[list[Watching]]:
    """All nodes under watch. Raises KernelError, OSError when one of them cannot be watched."""
    if not nodes:
        yield []
        return
    with ThreadPoolExecutor(len(nodes)) as pool:
        opening = [pool.submit(node.watch, order) for node in nodes.values()]
        failed = [error for item in opening if (error := item.exception()) is not None]
        opened = [item.result() for item in opening if item.exception() is None]
        try:
            if failed:
                raise failed[0]
            yield opened
        finally:
            # Each takes the kernel some milliseconds of waiting: at the same time.
            for done in [pool.submit(item.close) for item in opened]:
                done.result()


def send(nodes: Mapping[str, NodeEyes], asker: Asker, flow: Flow, size: int = 0) -> Sent:
    """One probe, watched as deeply as can be. ``size``: see ``NodeEyes.send``.

    Raises KernelError, OSError (no socket for it can be had).
    """
    return _batch(nodes, asker, [_fresh(flow)], deep=not size, size=size)[0]


def send_many(nodes: Mapping[str, NodeEyes], asker: Asker, flow: Flow, count: int) -> list[Sent]:
    """Many, each from a fresh port; the first one is watched deeply. Raises KernelError, OSError."""
    found = [send(nodes, asker, flow)]
    most = UDP_BATCH if flow.protocol == UDP else BATCH
    while len(found) < count:
        flows = [_fresh(flow) for _ in range(min(most, count - len(found)))]
        found += _batch(nodes, asker, flows, deep=False)
    return found


def _fresh(flow: Flow) -> Flow:
    return msgspec.structs.replace(flow, source_port=secrets.choice(PORTS))


def _batch(
    nodes: Mapping[str, NodeEyes], asker: Asker, flows: Sequence[Flow], *, deep: bool, size: int = 0
) -> list[Sent]:
    """Probes of one watch, one after the other."""
    bits = ALL_BITS if len(flows) == 1 else UPPER_HALF
    # The lower half counts, and has room for the one that TCP's answer adds.
    first = secrets.randbits(32) if len(flows) == 1 else secrets.randbits(16) << 16 | 1
    order = Order(
        token=first,
        flow=flows[0],
        bits=bits,
        more=tuple(flows[1:]),
        deep=deep,
        seconds=2 * PATIENCE_S * len(flows),
    )
    found: list[Sent] = []
    with watching(nodes, order) as watches:
        apart = {name for name, node in nodes.items() if node.apart}
        patience, lost = PATIENCE_S, 0
        for number, flow in enumerate(flows):
            known = _Known(asker, flow, (first + number) & 0xFFFFFFFF)
            try:
                launched = nodes[asker.node].send(asker.space, flow, known.token, size)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # the port has just been taken
                    raise
                found += _batch(nodes, asker, [_fresh(flow)], deep=deep, size=size)
                continue
            report = collect(watches, QUIET_S if launched.refused else patience, known.over)
            sent = known.sent(launched, report, apart)
            found.append(sent)
            lost = 0 if any(item.what.kind in ANSWER for item in sent.seen) else lost + 1
            patience = HASTY_S if lost >= _LOST_IN_A_ROW else PATIENCE_S
    return found


def collect(watches: Sequence[Watching], patience_s: float, over: Callable[[Report], float | None]) -> Report:
    """Everything until patience ends, or ``over`` says how many seconds it may still take (asked with all so far)."""
    frames: list[Frame] = []
    notes: list[Note] = []
    poll = select.poll()
    by_fd: dict[int, list[Watching]] = {}
    for watch in watches:
        for fd in watch.filenos():
            by_fd.setdefault(fd, []).append(watch)
            poll.register(fd, select.POLLIN)

    def take(some: Sequence[Watching]) -> Report:
        for watch in some:
            found = watch.drain()
            frames.extend(found.frames)
            notes.extend(found.notes)
        return Report(tuple(frames), tuple(notes))

    end = time.monotonic() + patience_s
    while len(frames) < FRAMES and (left := end - time.monotonic()) > 0:
        ready = {id(watch): watch for fd, _ in poll.poll(left * 1000) for watch in by_fd[fd]}
        if ready:
            still = over(take(list(ready.values())))
            if still is not None:
                end = min(end, time.monotonic() + still)
    # What nobody announces: connections as they are in the end.
    return take(watches)


class _Known(NamedTuple):
    """How one probe is told from others."""

    asker: Asker
    flow: Flow
    token: int

    def sightings(self, frames: Sequence[Frame]) -> list[tuple[Frame, Dissected]]:
        """The frames that are this probe's or answer it, by time."""
        port = answer_port(self.flow)
        found = [
            (frame, what)
            for frame in sorted(frames, key=lambda frame: frame.time_ns)
            if (what := dissect(frame.data, self.token, ethernet=frame.ethernet, port=port)) is not None
        ]
        if not port:
            return found
        # Others may send to the same port number elsewhere: an answer goes back where the probe was seen.
        backs = {what.flow.back for _, what in found if what.kind == "probe"}
        return [(frame, what) for frame, what in found if what.kind != "answer" or what.flow in backs]

    def over(self, report: Report) -> float | None:
        """How long to go on: a little when the asker has something back, or when it will not get anything."""
        for frame, what in self.sightings(report.frames):
            here = (frame.node, frame.space, frame.outgoing) == (*self.asker, False)
            if here and what.kind in ANSWER:
                return QUIET_S
        return DOOMED_S if any(decisive(note) for note in report.notes) else None

    def sent(self, launched: Launched, report: Report, apart: set[str]) -> Sent:
        """What became of it."""
        mine = self.sightings(report.frames)
        seen = [
            Seen(
                frame.node,
                frame.space,
                frame.interface,
                frame.outgoing,
                frame.time_ns,
                len(frame.data),
                what,
            )
            for frame, what in mine
        ]
        if apart:
            seen = align(seen, self.asker.node, apart)
        return Sent(self.flow, seen, launched.refused, tuple(frame for frame, _ in mine), report.notes)
