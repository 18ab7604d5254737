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
from pycni.trace.frames import ALL_BITS, NAME_FLAGS, UPPER_HALF, Dissected, answer_port, asks_names, dissect
from pycni.trace.match import Seen
from pycni.trace.model import UDP, Flow, Note
from pycni.trace.said import decisive
from pycni.tracing.eyes import NodeEyes, Order, Report, Watching

PROBE = frozenset({"probe"})
ANSWER = frozenset({"answer", "reset", "error"})
"""Kinds of frames that go back to the asker."""
PATIENCE_S = 1.0
"""How long an answer may take."""
QUIET_S = 0.05
"""For frames that are still under way when the answer is there, and for errors about the answer."""
DOOMED_S = 0.5
"""For an answer after all, when some kernel has dropped a packet of the probe's: it may have been a copy."""
PORTS = range(33000, 60000)
FRAMES = 10000
"""More are not kept of one watch."""
UDP_BATCH = 12
"""Probes of one watch: answers of UDP are known by port, and a filter holds so many."""
BATCH = 200
STEP = 16
"""From token to token of one watch: TCP's own numbers near one must not look like another."""
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
    if asks_names(flow):
        most = 1  # what a question of DNS has room for does not tell one from the next
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
    first = _token(flows)
    bits = ALL_BITS if len(flows) == 1 else UPPER_HALF
    order = Order(
        token=first,
        flow=flows[0],
        bits=bits,
        more=tuple(flows[1:]),
        deep=deep,
        seconds=2 * PATIENCE_S * len(flows),
    )
    pool = _Pool(asker, order)
    refused: dict[Flow, str] = {}
    busy: list[Flow] = []
    with watching(nodes, order) as watches:
        apart = {name for name, node in nodes.items() if node.apart}
        lost = 0
        for number, flow in enumerate(flows):
            try:
                launched = nodes[asker.node].send(asker.space, flow, first + number * STEP, size)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # the port has just been taken
                    raise
                busy.append(flow)
                continue
            refused[flow] = launched.refused
            pool.next(number, last=flow is flows[-1])
            patience = HASTY_S if lost >= _LOST_IN_A_ROW else PATIENCE_S
            pool.add(collect(watches, QUIET_S if launched.refused else patience, pool.over))
            lost = 0 if pool.answered else lost + 1
    found = [pool.sent(number, refused[flow], apart) for number, flow in enumerate(flows) if flow in refused]
    for flow in busy:
        found += _batch(nodes, asker, [_fresh(flow)], deep=deep, size=size)
    return found


def _token(flows: Sequence[Flow]) -> int:
    """Of the first probe; those of further ones follow at steps."""
    if asks_names(flows[0]):
        return secrets.randbits(16) << 16 | NAME_FLAGS
    if len(flows) == 1:
        return secrets.randbits(32)
    return secrets.randbits(16) << 16


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


class _Pool:
    """What has come of all probes of a watch, told apart by their tokens, and UDP's answers by their ports."""

    def __init__(self, asker: Asker, order: Order) -> None:
        self._asker, self._order = asker, order
        self._flows = (order.flow, *order.more)
        self._ports = {answer_port(flow): number for number, flow in enumerate(self._flows)}
        self._found: list[list[tuple[Frame, Dissected]]] = [[] for _ in self._flows]
        self._notes: list[Note] = []
        self._current, self._last, self._looked = 0, True, 0
        self.answered = False

    def next(self, number: int, *, last: bool) -> None:
        """The probe that is waited for from now on."""
        self._current, self._last, self._looked, self.answered = number, last, 0, False

    def over(self, report: Report) -> float | None:
        """How long to go on: a little when the asker has something back, or when it will not get anything."""
        self._sort(report.frames[self._looked :])
        self._looked = len(report.frames)
        here = (*self._asker, False)
        mine = self._mine(self._current)
        self.answered = any(
            what.kind in ANSWER and (frame.node, frame.space, frame.outgoing) == here for frame, what in mine
        )
        if self.answered:
            # What is still under way is of no other probe: only the last one has to be waited for.
            return QUIET_S if self._last else 0.0
        return DOOMED_S if any(decisive(note) for note in report.notes) else None

    def add(self, report: Report) -> None:
        """What came since the last look."""
        self._sort(report.frames[self._looked :])
        self._notes += report.notes

    def sent(self, number: int, refused: str, apart: set[str]) -> Sent:
        """What became of a probe."""
        mine = self._mine(number)
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
            seen = align(seen, self._asker.node, apart)
        notes = tuple(self._notes) if len(self._flows) == 1 else ()
        return Sent(self._flows[number], seen, refused, tuple(frame for frame, _ in mine), notes)

    def _sort(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            what, number = self._judge(frame)
            if what is not None and 0 <= number < len(self._found):
                self._found[number].append((frame, what))

    def _judge(self, frame: Frame) -> tuple[Dissected | None, int]:
        """A frame, and the number of the probe it is about."""
        order = self._order
        for port, number in self._ports.items():
            what = dissect(frame.data, order.token, ethernet=frame.ethernet, bits=order.bits, port=port)
            if what is None:
                continue
            if what.kind == "answer" and port:
                return what, number
            steps, odd = divmod(what.token - order.token, STEP)
            return (what, steps) if not odd else (None, 0)
        return None, 0

    def _mine(self, number: int) -> list[tuple[Frame, Dissected]]:
        """The frames that are of a probe or answer it, by time."""
        found = sorted(self._found[number], key=lambda item: item[0].time_ns)
        if not answer_port(self._flows[number]):
            return found
        # Others may send to the same port number elsewhere: an answer goes back where the probe was seen.
        backs = {what.flow.back for _, what in found if what.kind == "probe"}
        return [(frame, what) for frame, what in found if what.kind != "answer" or what.flow in backs]
