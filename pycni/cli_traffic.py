"""Reading a node's traffic, beside its agent: samples for ``pycnictl top``, connections for ``pycnictl flows``.

Life: ``sources(args)`` says where to look. A ``Meter`` gives a ``Sample`` whenever it is asked; ``Source.flows`` goes
on until it is closed. Connection tracking is read here and not in the agent: a flood of connections costs this process,
and the agent neither time nor memory. On this node that happens in the command itself; on a lab's nodes in a program of
its own, one per node: ``python -m pycni.cli_traffic SOCKET meter|events|changes|table NODE``.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from typing import IO, Protocol

import msgspec

from pycni import cli_agent
from pycni.cli_agent import Agent, AgentError
from pycni.errors import PycniError
from pycni.kernel import ctevents
from pycni.kernel.ctevents import CtEvents, CtTable
from pycni.model.kube import PROTOCOLS
from pycni.traffic.follow import Follower, closed
from pycni.traffic.model import Counted, Flow, Listening, Lost, Names, Sample, Tracked
from pycni.traffic.tally import Tallier, finder
from pycni.wire.ctnetlink import Event

SHARE = 0.1
"""Of the time, spent on reading the connection tracking table for samples."""
NAMES_S = 1.0
"""Names are asked for so often at most."""
ANSWER_S = 30.0
"""How long a node may take for a sample."""
ASKED = 64
"""Counters of so many closed connections are asked for at a time; more close in a flood, which must be kept up with."""
LISTEN_S = 0.5
RESYNC_S = 1.0
"""Between two readings of the table because events were lost, at least."""
DRAIN = 64
"""Reads of what is queued before such a reading; a flood that goes on must not keep it from happening."""
BATCH = 512
TABLE = "table"
_OFF = "nf_conntrack_events is 0, so the kernel tells nothing"
_FLOOD = "more events than the buffer holds; those that began and ended meanwhile are not shown"

Told = Flow | Lost | Listening
# Made once and here: msgspec (0.22) crashes when several threads decode a type for the first time together.
_FLOWS: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)
_SAMPLES = msgspec.json.Decoder(Sample)
_COUNTED = msgspec.json.Decoder(Counted)
_NAMES = msgspec.json.Decoder(Names)


class Meter(Protocol):
    """Where samples come from."""

    def ask(self) -> None:
        """Begin a sample."""

    def answer(self) -> Sample:
        """The sample that was begun. Raises AgentError."""

    def close(self) -> None:
        """No more."""


@dataclass(frozen=True)
class Source:
    """One node."""

    agent: Agent
    prefix: Sequence[str] = ()
    """Words before a command that run it in the node's network namespace; none: the command runs there."""

    @property
    def node(self) -> str:
        """Its name; "" while only the agent itself knows."""
        return self.agent.node

    def meter(self) -> Meter:
        """Samples of it."""
        return NodeMeter(self.agent) if not self.prefix else PipedMeter(self.node, self._words("meter"))

    def flows(self, what: str, node: str) -> Iterator[Told]:
        """``events``, ``changes`` or ``table`` of connection tracking, until closed. Raises PycniError."""
        if not self.prefix:
            for batch in flows(what, node):
                yield from batch
            return
        pipe = subprocess.PIPE
        with subprocess.Popen(self._words(what), stdin=pipe, stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    yield _FLOWS.decode(line)
                complaint = process.stderr.read().decode(errors="replace").strip()
                if process.wait() or what != TABLE:
                    raise AgentError(f"{node}: {(complaint.splitlines() or ['the reader has ended'])[-1]}")
            finally:
                process.terminate()

    def _words(self, what: str) -> list[str]:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return [
            *self.prefix,
            *("env", f"PYTHONPATH={root}", sys.executable, "-P", "-m", "pycni.cli_traffic"),
            *(self.agent.path, what, self.node),
        ]


def sources(args: argparse.Namespace) -> list[Source]:
    """Where to look, by the arguments of ``cli_agent.add_arguments``. Raises LabError: there is no such lab or node."""
    if not args.name and not args.node:
        return [Source(Agent("", args.socket))]
    from pycni.lab.run import Lab  # noqa: PLC0415 - most calls are for no lab

    lab = Lab.open(args.name or "default")
    nodes = [args.node] if args.node else list(lab.record.nodes)
    return [Source(cli_agent.of_lab(lab, node), tuple(lab.exec_argv(node, []))) for node in nodes]


def names(agent: Agent, known: str = "") -> Names:
    """What a node's agent calls addresses. Raises AgentError."""
    return _NAMES.decode(agent.fetch(f"/names?known={known}"))


# --- samples ---------------------------------------------------------------------------------------------------------


class NodeMeter:
    """Samples of the node this runs on."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._names: Names | None = None
        self._named = float("-inf")
        self._pods: dict[bytes, str] = {}
        self._find = finder({}, frozenset())
        self._tallier = Tallier()
        self._table: CtTable | None = None
        self._tracked: Tracked | None = None
        self._due = float("-inf")

    def ask(self) -> None:
        """Nothing to begin."""

    def answer(self) -> Sample:
        """A sample of now. Raises AgentError when the agent does not answer."""
        counted = _COUNTED.decode(self._agent.fetch("/rates"))
        troubles: dict[str, str] = {}
        try:
            self._look_at_names()
            if time.monotonic() >= self._due:
                self._tracked = self._track()
        except PycniError as error:
            troubles["connections"] = str(error)
        return Sample(
            node=counted.node, time=time.time(), counted=counted, tracked=self._tracked, troubles=troubles
        )

    def close(self) -> None:
        """Close the socket."""
        if self._table is not None:
            self._table.close()

    def _look_at_names(self) -> None:
        began = time.monotonic()
        if began < self._named:
            return
        found = names(self._agent, self._names.generation if self._names is not None else "")
        if found.fresh:
            self._names = found
            local = {address: found.pods.get(address, "") for address in found.local}
            self._pods = {ip_address(address).packed: name for address, name in local.items() if name}
            frontends = {
                (ip_address(item.address).packed if item.address else b"", number, item.port): item.service
                for item in found.services.frontends
                if (number := PROTOCOLS.get(item.protocol)) is not None
            }
            self._find = finder(frontends, frozenset(ip_address(item).packed for item in found.addresses))
        now = time.monotonic()
        self._named = now + max(NAMES_S, (now - began) / SHARE)

    def _track(self) -> Tracked:
        began = time.monotonic()
        if self._table is None:
            self._table = CtTable()
        settings = ctevents.settings()
        at_ns = time.monotonic_ns()
        accounting = settings.accounting == 1
        entries = self._tallier.read(self._table.entries(), self._pods, self._find, accounting=accounting)
        took = time.monotonic() - began
        # A rate takes two readings: the second one is made as soon as it is asked for.
        self._due = began + took / SHARE if self._tracked is not None else began
        return Tracked(
            at_ns=at_ns,
            entries=entries,
            limit=max(0, settings.limit),
            accounting=accounting,
            read_s=round(took, 6),
            pods=self._tallier.pods(),
            services=self._tallier.services(),
        )


class PipedMeter:
    """Samples of another node, from a program over there."""

    def __init__(self, node: str, words: Sequence[str]) -> None:
        self._node = node
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def ask(self) -> None:
        """Ask for a sample."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except OSError:
            return  # the answer will tell

    def answer(self) -> Sample:
        """See ``Meter``."""
        line = _line(self._process, ANSWER_S)
        if not line:
            raise AgentError(f"{self._node}: {self._complaint()}")
        try:
            return _SAMPLES.decode(line)
        except msgspec.ValidationError:
            raise AgentError(str(msgspec.json.decode(line).get("error", line.decode()))) from None

    def close(self) -> None:
        """End the program."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def _complaint(self) -> str:
        if self._process.poll() is None:
            return f"no sample within {ANSWER_S:g} s"
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the reader ended with {self._process.returncode}"


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of a program that writes one at a time; b"": none in time, or it has ended."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        return b""
    return process.stdout.readline()


# --- flows -----------------------------------------------------------------------------------------------------------


def flows(what: str, node: str, until: int | None = None) -> Iterator[list[Told]]:
    """``events``, ``changes`` or ``table`` of this network namespace, some at a time. Raises KernelError.

    The first two go on until closed, or until the file ``until`` can be read.
    """
    follower = Follower(node)
    if what != TABLE:
        yield from _follow(node, follower, changes=what == "changes", until=until)
        return
    with CtTable() as table:
        present = follower.present(table.entries(), time.time_ns())
        while batch := list(islice(present, BATCH)):
            yield [*batch]


def _follow(node: str, follower: Follower, *, changes: bool, until: int | None) -> Iterator[list[Told]]:
    events = CtEvents(changes=changes)
    try:
        with CtTable() as table:
            # Joined first, then read: a connection that begins between both is news, and has a beginning.
            follower.begin(table.entries())
            first: list[Told] = [Listening(time=time.time(), node=node, what="connections")]
            if ctevents.settings().events == 0:
                first.append(Lost(time=time.time(), node=node, what=f"connections: {_OFF}"))
            yield first
            overruns, due = 0, float("-inf")
            while True:
                heard = [events.fileno(), *([] if until is None else [until])]
                ready = select.select(heard, [], [], LISTEN_S)[0]
                if until in ready:
                    return
                news = _with_counters(events.read(), table)
                told: list[Told] = [flow for event in news if (flow := follower.flow(event)) is not None]
                if told:
                    yield told
                if events.overruns != overruns and time.monotonic() >= due:
                    overruns, began = events.overruns, time.monotonic()
                    yield _resync(node, follower, events, table)
                    due = time.monotonic() + max(RESYNC_S, (time.monotonic() - began) / SHARE)
    finally:
        events.close()


def _with_counters(news: list[Event], table: CtTable) -> list[Event]:
    """Events of closing do not tell what went over a connection: the table does, while there is time to ask."""
    over = [event for event in news if closed(event)]
    if not over or len(over) > ASKED or ctevents.settings().accounting != 1:
        return news
    return [event._replace(entry=table.counted(event.entry)) if closed(event) else event for event in news]


def _resync(node: str, follower: Follower, events: CtEvents, table: CtTable) -> list[Told]:
    """After events were lost: what is still queued, then what the table has that nobody told of."""
    queued: list[Told] = []
    for _ in range(DRAIN):
        found = events.read()
        queued += [flow for event in found if (flow := follower.flow(event)) is not None]
        if not found:
            break
    lost = Lost(time=time.time(), node=node, what=f"connections: {_FLOOD}")
    return [*queued, lost, *follower.resync(table.entries(), time.time_ns())]


# --- over there ------------------------------------------------------------------------------------------------------


def _meter(agent: Agent, requests: IO[bytes], out: Callable[[bytes], object]) -> None:
    meter = NodeMeter(agent)
    try:
        while requests.readline():
            try:
                out(msgspec.json.encode(meter.answer()) + b"\n")
            except PycniError as error:
                answer: Mapping[str, str] = {"error": str(error)}
                out(msgspec.json.encode(answer) + b"\n")
    finally:
        meter.close()


def _main() -> int:
    path, what, *rest = sys.argv[1:]
    node = rest[0] if rest else ""

    def out(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    try:
        if what == "meter":
            _meter(Agent(node, path), sys.stdin.buffer, out)
            return 0
        encoder = msgspec.json.Encoder()
        for batch in flows(what, node, sys.stdin.fileno()):
            out(encoder.encode_lines(batch))
    except PycniError as error:
        print(error, file=sys.stderr)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
