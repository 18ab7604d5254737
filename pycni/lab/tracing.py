"""One trace in a lab, from the question to the verdict.

Life: the world is gathered, a probe is sent and watched, the packet is led through the wanted and the actual world with
what the probe has shown of free choices (the endpoint of a Service), and the three are judged together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pycni.lab.run import Lab
from pycni.lab.trace_probe import Sent, send
from pycni.lab.trace_world import Gathered, gather
from pycni.trace.cluster import ClusterWays
from pycni.trace.match import Seen, match
from pycni.trace.model import UDP, Fault, Flow, Trace
from pycni.trace.pcap import pcapng
from pycni.trace.question import Question, ask
from pycni.trace.verdict import Walks, judge, watched
from pycni.trace.walk import answer, walk
from pycni.trace.ways import Ways

PROBE = frozenset({"probe"})
ANSWER = frozenset({"answer", "reset", "error"})
"""Kinds of frames that go back to the asker."""


class Asked(NamedTuple):
    """What was typed."""

    source: str
    target: str
    protocol: str = ""
    predict: bool = False
    """Nothing is sent."""
    pcap: str = ""
    """File the probe's frames are written to; "": none."""


def trace(lab: Lab, asked: Asked, started: float) -> Trace:
    """The trace of a question. ``started``: when it was asked (perf_counter).

    Raises QuestionError, LabError, KernelError, OSError (the file cannot be written).
    """
    known, predict = gather(lab), asked.predict
    question = ask(known.world, known.objects, asked.source, asked.target, asked.protocol)
    probe = Sent(question.flow, []) if predict else send(lab, question.node, question.space, question.flow)
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
