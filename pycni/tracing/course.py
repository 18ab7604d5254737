"""One trace, from the question to the verdict.

Life: the world is gathered, a probe is sent and watched, the packet is led through the wanted and the actual world with
what the probe has shown of free choices (the endpoint of a Service), and the three are judged together.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import select
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from pycni.kernel.capture import Frame
from pycni.trace.clocks import align
from pycni.trace.cluster import ClusterWays
from pycni.trace.frames import dissect
from pycni.trace.match import Seen, match
from pycni.trace.model import UDP, Fault, Flow, Note, Trace
from pycni.trace.pcap import pcapng
from pycni.trace.question import Question, ask
from pycni.trace.verdict import Walks, judge, watched
from pycni.trace.walk import answer, walk
from pycni.trace.ways import Ways
from pycni.tracing.eyes import Eyes, Gathered, Launched, NodeEyes, Order, Report, Watching

PROBE = frozenset({"probe"})
ANSWER = frozenset({"answer", "reset", "error"})
"""Kinds of frames that go back to the asker."""
PATIENCE_S = 1.0
"""How long an answer may take."""
QUIET_S = 0.05
"""For frames that are still under way when the answer is there, and for errors about the answer."""
PORTS = range(33000, 60000)
AT_ONCE = 16
FRAMES = 10000
"""More are not kept of one probe."""


class Asked(NamedTuple):
    """What was typed."""

    source: str
    target: str
    protocol: str = ""
    predict: bool = False
    """Nothing is sent."""
    pcap: str = ""
    """File the probe's frames are written to; "": none."""


class Sent(NamedTuple):
    """A probe that was sent, or was to be, and what became of it."""

    flow: Flow
    seen: list[Seen]
    refused: str = ""
    """Why it did not leave its socket."""
    frames: tuple[Frame, ...] = ()
    """Those that were seen, as they were captured."""
    notes: tuple[Note, ...] = ()


def trace(eyes: Eyes, asked: Asked, started: float) -> Trace:
    """The trace of a question. ``started``: when it was asked (perf_counter).

    Raises PycniError (the question makes no sense, nobody can be asked), OSError (the file cannot be written).
    """
    known, predict = eyes.gather(), asked.predict
    question = ask(known.world, known.objects, asked.source, asked.target, asked.protocol)
    probe = (
        Sent(question.flow, []) if predict else send(eyes.nodes, question.node, question.space, question.flow)
    )
    flow, seen = probe.flow, probe.seen
    if asked.pcap:
        Path(asked.pcap).write_bytes(pcapng(probe.frames))
    begin = time.perf_counter()
    walks = _walks(known, ClusterWays(known.objects, known.terms, _chosen(flow, seen)), question, flow)
    predicted_ms = (time.perf_counter() - begin) * 1000
    fault, others = judge(known.world, walks)
    there, back = walks.actual.hops, walks.actual_back.hops if walks.actual_back is not None else ()
    round_trip_us = _round_trip_us(question, seen)
    if not predict:
        forth = match(there, seen, PROBE)
        home = match(back, seen, ANSWER, forth.last_ns)
        told = flow.protocol != UDP or any(item.what.kind in ANSWER for item in seen)
        answered = round_trip_us is not None
        fault, others = watched(
            known.world, (fault, others), forth, home if told else None, answered=answered
        )
        there, back = forth.hops, home.hops
    if fault is None and probe.refused:
        fault = Fault(
            kind="not-sent", node=question.node, space=question.space, component="socket", cause=probe.refused
        )
    return Trace(
        ok=fault is None,
        question=f"{question.words}: {flow.text()}",
        hops=there,
        back=back,
        fault=fault,
        suspicions=others,
        predicted_ms=predicted_ms,
        took_ms=(time.perf_counter() - started) * 1000,
        round_trip_us=round_trip_us,
    )


def send(nodes: Mapping[str, NodeEyes], node: str, space: str, flow: Flow) -> Sent:
    """Send a probe and watch it pass all nodes. Raises KernelError, OSError (no socket for it can be had)."""
    token = secrets.randbits(32)
    flow = msgspec.structs.replace(flow, source_port=secrets.choice(PORTS))
    order = Order(token=token, flow=flow, seconds=2 * PATIENCE_S)
    with contextlib.ExitStack() as stack:
        watches = _watches(stack, nodes, order)
        try:
            launched = nodes[node].send(space, flow, token)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # the port has just been taken
                return send(nodes, node, space, flow)
            raise
        report = _collect(watches, launched, lambda found: _over(found, node, space, token))
    mine = [
        (frame, what)
        for frame in sorted(report.frames, key=lambda frame: frame.time_ns)
        if (what := dissect(frame.data, token, ethernet=frame.ethernet)) is not None
    ]
    seen = [
        Seen(frame.node, frame.space, frame.interface, frame.outgoing, frame.time_ns, len(frame.data), what)
        for frame, what in mine
    ]
    apart = {name for name, item in nodes.items() if item.apart}
    seen = align(seen, node, apart) if apart else seen
    return Sent(flow, seen, launched.refused, tuple(frame for frame, _ in mine), report.notes)


def _watches(stack: contextlib.ExitStack, nodes: Mapping[str, NodeEyes], order: Order) -> list[Watching]:
    """All nodes under watch, begun at the same time: each may be a few round trips away."""
    if len(nodes) == 1:
        return [stack.enter_context(item.watch(order)) for item in nodes.values()]
    with ThreadPoolExecutor(max(min(len(nodes), AT_ONCE), 1)) as pool:
        begun = [pool.submit(item.watch, order) for item in nodes.values()]
    for future in begun:
        if future.exception() is None:
            stack.enter_context(future.result())
    return [future.result() for future in begun]


def _collect(
    watches: Sequence[Watching], launched: Launched, done: Callable[[Sequence[Frame]], bool]
) -> Report:
    """Everything until the answer is back and a little after, or patience ends."""
    frames: list[Frame] = []
    notes: list[Note] = []
    poll = select.poll()
    by_fd = {fd: watch for watch in watches for fd in watch.filenos()}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    end = time.monotonic() + (QUIET_S if launched.refused else PATIENCE_S)
    over = False
    while len(frames) < FRAMES and (left := end - time.monotonic()) > 0:
        for watch in {id(by_fd[fd]): by_fd[fd] for fd, _ in poll.poll(left * 1000)}.values():
            found = watch.drain()
            frames += found.frames
            notes += found.notes
        if not over and done(frames):
            over, end = True, time.monotonic() + QUIET_S
    return Report(tuple(frames), tuple(notes))


def _over(found: Sequence[Frame], node: str, space: str, token: int) -> bool:
    """Whether the asker has got something back."""
    for frame in found:
        if (frame.node, frame.space, frame.outgoing) == (node, space, False):
            what = dissect(frame.data, token, ethernet=frame.ethernet)
            if what is not None and what.kind in ANSWER:
                return True
    return False


def _walks(known: Gathered, ways: Ways, question: Question, flow: Flow) -> Walks:
    """The packet and its answer through both worlds."""
    wanted, actual = (
        walk(world, ways, question.node, question.space, flow)
        for world in (known.world.as_wanted, known.world)
    )
    return Walks(
        wanted,
        answer(known.world.as_wanted, ways, wanted) if wanted.arrived else None,
        actual,
        answer(known.world, ways, actual) if actual.arrived else None,
    )


def _chosen(flow: Flow, seen: Sequence[Seen]) -> tuple[bytes, int] | None:
    """The endpoint the probe was translated to, if it was."""
    for item in seen:
        at = item.what.flow
        if item.what.kind == "probe" and at.destination != flow.destination:
            return at.destination, at.destination_port
    return None


def _round_trip_us(question: Question, seen: Sequence[Seen]) -> float | None:
    """From leaving the asker's namespace to coming back there; None: nothing came back."""
    own = [item for item in seen if (item.node, item.space) == (question.node, question.space)]
    left = [item.time_ns for item in own if item.outgoing and item.what.kind == "probe"]
    back = [item.time_ns for item in own if not item.outgoing and item.what.kind in ANSWER]
    return (back[0] - left[0]) / 1000 if left and back else None
