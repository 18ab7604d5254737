"""One trace, from the question to the verdict.

Life: the world is gathered; a probe is sent and watched, or several, or live traffic is listened to; the packet is led
through the wanted and the actual world with what was seen of free choices (the endpoint of a Service); what was seen
and what kernels said is put to its hops, and all of it is judged together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pycni.errors import PycniError
from pycni.trace import filter as words
from pycni.trace import said
from pycni.trace.behind import behind
from pycni.trace.cluster import ClusterWays
from pycni.trace.match import Seen, match
from pycni.trace.model import UDP, Fault, Flow, Hop, Note, Trace
from pycni.trace.notes import attach, limits
from pycni.trace.pcap import pcapng
from pycni.trace.question import Question, QuestionError, ask, split
from pycni.trace.series import Run, series
from pycni.trace.verdict import Walks, judge, watched
from pycni.trace.walk import answer, walk
from pycni.trace.ways import Ways
from pycni.tracing.eyes import Eyes, Gathered, NodeEyes
from pycni.tracing.follow import follow
from pycni.tracing.listening import Bounds, Meant, listen
from pycni.tracing.probing import ANSWER, PROBE, Asker, Sent, send, send_many

MOST = 10_000
"""Probes in a row."""


class QuietError(PycniError):
    """No traffic passed that was to be followed."""


class Asked(NamedTuple):
    """What was typed."""

    source: str
    target: str
    protocol: str = ""
    predict: bool = False
    """Nothing is sent."""
    pcap: str = ""
    """File the probe's frames are written to; "": none."""
    times: int = 1
    """Probes; of live traffic: connections."""
    live: str | None = None
    """Which traffic to follow instead of a probe, in the words of ``trace.filter``."""
    seconds: float = 10.0
    """How long to wait for it."""


class _One(NamedTuple):
    """A packet that was sent, or found under way."""

    sent: Sent
    opening: bool = True
    """The first of its connection."""


class _Judged(NamedTuple):
    """What became of it."""

    there: tuple[Hop, ...]
    back: tuple[Hop, ...]
    fault: Fault | None
    others: tuple[Fault, ...]
    rest: tuple[Note, ...]
    predicted_ms: float


def trace(eyes: Eyes, asked: Asked, started: float) -> Trace:
    """The trace of a question. ``started``: when it was asked (perf_counter).

    Raises PycniError (the question makes no sense, nobody can be asked), OSError (the file cannot be written).
    """
    if not 0 < asked.times <= MOST:
        raise QuestionError(f"--count {asked.times}: expected 1 to {MOST}")
    wanted = words.parse(asked.live) if asked.live is not None else None
    known = eyes.gather()
    question = ask(known.world, known.objects, asked.source, asked.target, asked.protocol)
    nodes = eyes.nodes if not asked.predict else {}
    found = _packets(nodes, known, question, asked, wanted)
    if asked.pcap:
        Path(asked.pcap).write_bytes(pcapng(frame for one in found for frame in one.sent.frames))
    runs = [_run(question, one) for one in found]
    first = next((number for number, run in enumerate(runs) if run.round_trip_us is None), 0)
    # A packet that arrives and is not answered is judged as the others: only the verdict tells what failed.
    shown = found[first]
    result = _judged(known, question, shown, nodes, predict=asked.predict)
    spread = None
    if asked.times > 1 and not asked.predict:
        spread = series(runs, first, result.there, result.back)
    return Trace(
        ok=result.fault is None,
        question=f"{question.words}: {shown.sent.flow.text()}",
        hops=result.there,
        back=result.back,
        fault=result.fault,
        suspicions=result.others,
        notes=result.rest,
        limits=limits(shown.sent.notes),
        series=spread,
        predicted_ms=result.predicted_ms,
        took_ms=(time.perf_counter() - started) * 1000,
        round_trip_us=runs[first].round_trip_us,
    )


def _packets(
    nodes: Mapping[str, NodeEyes],
    known: Gathered,
    question: Question,
    asked: Asked,
    wanted: words.Filter | None,
) -> list[_One]:
    """What there is to follow; at least one. Raises QuietError."""
    asker = Asker(question.node, question.space)
    if asked.predict:
        return [_One(Sent(question.flow, []))]
    if wanted is None:
        if asked.times > 1:
            return [_One(sent) for sent in send_many(nodes, asker, question.flow, asked.times)]
        return [_One(send(nodes, asker, question.flow))]
    heard = listen(
        nodes,
        asker,
        question.flow,
        _meant(known, question, asked.target, wanted),
        Bounds(asked.times, asked.seconds),
    )
    if not heard:
        raise QuietError(
            f"no packet of {words.words(wanted)} from {asked.source} to {asked.target} passed"
            f" within {asked.seconds:g} s"
        )
    return [_One(item.sent, item.opening) for item in heard]


def _meant(known: Gathered, question: Question, target: str, wanted: words.Filter) -> Meant:
    """Live traffic between the ends of a question: as it is sent, and as Services translate it."""
    port = split(target)[1]
    if port and not wanted.ports:
        wanted = wanted._replace(ports=(("dst", port),))
    ends = behind(known.objects, question.flow.destination)
    numbers = [number for _, number in wanted.ports]
    ports = {
        *numbers,
        *(item.port for items in ends.values() for item in items if not numbers),
        *(item.port for (_, number), items in ends.items() if number in numbers for item in items),
    }

    def fits(flow: Flow) -> bool:
        if flow.destination == question.flow.destination:
            return wanted.fits(flow)
        # Translated before it left the socket: what was meant is the Service's port.
        return any(
            (item.address, item.port) == (flow.destination, flow.destination_port)
            and wanted.fits(
                msgspec.structs.replace(flow, destination=question.flow.destination, destination_port=number)
            )
            for (protocol, number), items in ends.items()
            if protocol == flow.protocol
            for item in items
        )

    addresses = {
        question.flow.destination,
        *(item.address for items in ends.values() for item in items),
    }
    return Meant(wanted, (question.flow.source,), addresses, sorted(ports) if numbers else (), fits)


def _judged(
    known: Gathered, question: Question, one: _One, nodes: Mapping[str, NodeEyes], *, predict: bool
) -> _Judged:
    """One packet: predicted, matched with what was seen and said, and judged."""
    flow, seen = one.sent.flow, one.sent.seen
    begin = time.perf_counter()
    ways = ClusterWays(known.objects, known.terms, chosen(flow, seen))
    walks = _walks(known, ways, question, flow, early=_early(question, flow, seen))
    predicted_ms = (time.perf_counter() - begin) * 1000
    fault, others = judge(known.world, walks)
    there, back = walks.actual.hops, walks.actual_back.hops if walks.actual_back is not None else ()
    if predict:
        return _Judged(there, back, fault, others, (), predicted_ms)
    forth = match(there, seen, PROBE)
    home = match(back, seen, ANSWER, forth.last_ns)
    noted = attach(forth.hops, home.hops, one.sent.notes)
    forth, home = forth._replace(hops=noted.there), home._replace(hops=noted.back)
    # Programs need not answer a datagram, nor any packet that is not the first of its connection.
    told = (flow.protocol != UDP and one.opening) or any(item.what.kind in ANSWER for item in seen)
    reply = _reply(question, seen)
    answered = bool(reply)
    verdict = watched(
        known.world,
        (fault, others),
        forth,
        home if told else None,
        answered=answered,
        reply=reply if one.opening else "",
    )
    if one.opening:
        verdict = follow(
            known.world,
            verdict,
            forth,
            home if told else None,
            lambda node, space, what, size: _again(nodes, Asker(node, space), what, size),
        )
    fault, others = verdict
    full = any(item.kind == "conntrack-full" for item in (*others, *([fault] if fault is not None else [])))
    fault = said.settle(fault, said.cause(noted.there, noted.back, full=full), answered=answered)
    if fault is None and one.sent.refused:
        fault = Fault(
            kind="not-sent",
            node=question.node,
            space=question.space,
            component="socket",
            cause=one.sent.refused,
        )
    return _Judged(noted.there, noted.back, fault, others, noted.rest, predicted_ms)


def _again(nodes: Mapping[str, NodeEyes], asker: Asker, flow: Flow, size: int) -> tuple[Sequence[Seen], str]:
    """A further probe (see ``follow``)."""
    sent = send(nodes, asker, flow, size)
    return sent.seen, sent.refused


def _walks(known: Gathered, ways: Ways, question: Question, flow: Flow, *, early: bool) -> Walks:
    """The packet and its answer through both worlds. ``early``: it was translated at its socket."""
    wanted, actual = (
        walk(world, ways, question.node, question.space, flow, early=early)
        for world in (known.world.as_wanted, known.world)
    )
    return Walks(
        wanted,
        answer(known.world.as_wanted, ways, wanted) if wanted.arrived else None,
        actual,
        answer(known.world, ways, actual) if actual.arrived else None,
    )


def chosen(flow: Flow, seen: Sequence[Seen]) -> tuple[bytes, int] | None:
    """The endpoint the probe was translated to, if it was."""
    for item in seen:
        at = item.what.flow
        if item.what.kind == "probe" and at.destination != flow.destination:
            return at.destination, at.destination_port
    return None


def _early(question: Question, flow: Flow, seen: Sequence[Seen]) -> bool:
    """Whether the packet was translated when it left its socket: eBPF does that to datagrams of programs, not to
    packets that are made by hand.
    """
    own = (item for item in seen if (item.node, item.space) == (question.node, question.space))
    first = next((item for item in own if item.outgoing and item.what.kind == "probe"), None)
    return first is not None and first.what.flow.destination != flow.destination


def _run(question: Question, one: _One) -> Run:
    """One of many, for the table of all."""
    sent = one.sent
    return Run(_round_trip_us(question, sent.seen), chosen(sent.flow, sent.seen), tuple(sent.seen))


def _reply(question: Question, seen: Sequence[Seen]) -> str:
    """What the asker got back: answer, reset or error; "": nothing."""
    here = (question.node, question.space, False)
    return next(
        (
            item.what.kind
            for item in seen
            if (item.node, item.space, item.outgoing) == here and item.what.kind in ANSWER
        ),
        "",
    )


def _round_trip_us(question: Question, seen: Sequence[Seen]) -> float | None:
    """From leaving the asker's namespace to coming back there; None: nothing came back."""
    own = [item for item in seen if (item.node, item.space) == (question.node, question.space)]
    left = [item.time_ns for item in own if item.outgoing and item.what.kind == "probe"]
    back = [item.time_ns for item in own if not item.outgoing and item.what.kind in ANSWER]
    return (back[0] - left[0]) / 1000 if left and back else None
