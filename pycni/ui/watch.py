"""What browsers are told, looked up once for all of them: the graph, counters, denied packets, traces.

Life: one ``Watch`` for one server, asked by its threads. What was found is kept as long as it is fresh. Agents are
listened to for denied packets from the first browser on until the last one has gone.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from pycni.cli_agent import AgentError
from pycni.errors import PycniError
from pycni.kernel.linkcounts import LinkCount
from pycni.model.family import show
from pycni.model.kube import POD
from pycni.policy.effective import Facts, Overview, PodRules, of_pod
from pycni.policy.explain import Answer, put_together
from pycni.trace.report import as_json
from pycni.tracing.course import Asked, trace
from pycni.tracing.eyes import Gathered
from pycni.ui.denied import Denied
from pycni.ui.graph import graph
from pycni.ui.layout import layout
from pycni.ui.model import Graph, Peer
from pycni.ui.path import Ways
from pycni.ui.source import Source, ask, peers

log = logging.getLogger("pycni.ui")
T = TypeVar("T")
COUNTS_S, POLICIES_S, GRAPH_S = 0.5, 2.0, 2.0
"""How long what was found is fresh."""
PATIENCE = 10
"""A look at everything takes at most one part in so many of the time."""
TRACE_WAIT_S = 15.0
FIRST_S = 1.0
"""How long the first answer of agents is waited for."""


class BusyError(PycniError):
    """Too many traces at once."""

    status = 503


class Kept(Generic[T]):
    """A value that is looked up again when it is old; who asks meanwhile waits for it."""

    def __init__(self, look: Callable[[], T], fresh_s: float) -> None:
        self._look, self._fresh_s = look, fresh_s
        self._lock = threading.Lock()
        self._value: T | None = None
        self._until = float("-inf")

    def get(self) -> T:
        """The value. Raises what looking raises."""
        with self._lock:
            began = time.monotonic()
            if self._value is None or began >= self._until:
                self._value = self._look()
                took = time.monotonic() - began
                self._until = began + max(self._fresh_s, PATIENCE * took)
            return self._value


class Latest(Generic[T]):
    """What agents last said: asked in the background, as one that stands still must not hold up everything else."""

    def __init__(self, look: Callable[[], T], fresh_s: float, nothing: T) -> None:
        self._look, self._fresh_s = look, fresh_s
        self._lock = threading.Lock()
        self._value = nothing
        self._until = float("-inf")
        self._asking = False
        self._answered = threading.Event()

    def get(self) -> T:
        """The latest value; the first one is waited for, a little."""
        with self._lock:
            if not self._asking and time.monotonic() >= self._until:
                self._asking = True
                threading.Thread(target=self._ask, daemon=True).start()
        self._answered.wait(FIRST_S)
        return self._value

    def _ask(self) -> None:
        try:
            self._value = self._look()
        except PycniError as error:  # a lab that is gone: the graph tells
            log.debug("agents: %s", error)
        finally:
            self._until = time.monotonic() + self._fresh_s
            self._asking = False
            self._answered.set()


class Seen(NamedTuple):
    """One look."""

    version: str
    """Changes whenever the graph does."""
    graph: Graph
    gathered: Gathered


class Watch:
    """See the module."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen = Kept(self._look, GRAPH_S)
        self._counts: Kept[tuple[int, Mapping[str, LinkCount]]] = Kept(self._count, COUNTS_S)
        nobody: tuple[dict[str, Overview], dict[str, str]] = ({}, {})
        self._policies = Latest(self._ask_policies, POLICIES_S, nobody)
        self._peers: Latest[list[Peer]] = Latest(self._ask_peers, GRAPH_S, [])
        self._nodes: Mapping[str, str] = {}
        self._tracing = threading.Lock()
        self.denied = Denied(source)

    @property
    def title(self) -> str:
        """What is looked at."""
        return self._source.title

    # looking

    def seen(self) -> Seen:
        """The latest look. Raises PycniError."""
        return self._seen.get()

    def _look(self) -> Seen:
        gathered = self._source.eyes().gather()
        self._nodes = {
            show(address): name for name, part in gathered.world.nodes.items() for address in part.addresses
        }
        found = graph(gathered.world, gathered.objects, self._peers.get(), gathered.trouble)
        digest = hashlib.sha256(msgspec.json.encode(_without_figures(found))).hexdigest()[:16]
        return Seen(digest, found, gathered)

    def _ask_peers(self) -> list[Peer]:
        return peers(self._source.agents(), self._source.outside(), self._nodes)

    def topology(self, open_nodes: Sequence[str] | None, width: float, height: float) -> dict[str, Any]:
        """``/api/topology``. Raises PycniError."""
        seen = self.seen()
        return {
            "title": self.title,
            "version": seen.version,
            "graph": seen.graph,
            "places": layout(seen.graph, open_nodes, width, height),
        }

    # counting

    def counters(self) -> dict[str, Any]:
        """``/api/counters``: raw; rates are the browser's to compute. Raises PycniError."""
        at, counts = self._counts.get()
        policies, silent = self._policies.get()
        return {
            "at_ns": at,
            "devices": counts,
            "denied": {
                node: sum(
                    count.packets
                    for sides in (*(row.denied for row in item.policies), *item.refused.values())
                    for count in sides.values()
                )
                for node, item in policies.items()
            },
            "silent": silent,
            "drops": self.denied.counted(),
        }

    def _count(self) -> tuple[int, Mapping[str, LinkCount]]:
        at = time.monotonic_ns()
        return at, self._source.counts()

    def _ask_policies(self) -> tuple[dict[str, Overview], dict[str, str]]:
        return ask(self._source.agents(), "/policies", Overview)

    # questions

    def policy(self, pod: str) -> dict[str, Any]:
        """``/api/policy``: what holds for a pod. Raises PycniError."""
        target = f"/policies?{urlencode({'pod': pod})}"
        held = self.seen().gathered.objects.of(POD).get(pod)
        agents = self._source.agents()
        first = [agent for agent in agents if held is not None and agent.node == held.node]
        found, silent = ask(first or agents, target, PodRules)
        for rules in sorted(found.values(), key=lambda item: item.node != item.runs_on):
            return {"rules": rules, "notes": list(silent.values()), "counted": rules.node == rules.runs_on}
        if held is None:
            raise AgentError(f"no pod {pod}", 404)
        empty = Facts(held.node, (), {}, {}, frozenset(), frozenset())
        reasons = sorted({f"{node or 'the agent'}: {reason}" for node, reason in silent.items()})
        notes = [*reasons, "from the objects alone: whether they are enforced nobody tells"]
        return {
            "rules": of_pod(self.seen().gathered.objects, held, empty),
            "notes": notes,
            "counted": False,
        }

    def explain(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """``/api/explain``: what becomes of a connection. Raises PycniError when no agent can tell."""
        found, silent = ask(self._source.agents(), f"/policies/explain?{urlencode(asked)}", Answer)
        if not found:
            raise AgentError("; ".join(sorted(set(silent.values()))) or "no agent answers", 503)
        together = put_together(list(found.values()))
        return {
            "connections": [
                {
                    "connection": item.connection,
                    "by_node": item.by_node,
                    "not_asked": item.not_asked,
                    "differences": item.differences,
                }
                for item in together
            ],
            "silent": silent,
        }

    def trace(self, asked: Asked) -> dict[str, Any]:
        """``/api/trace``: one probe, and its way on the graph. Raises PycniError, OSError."""
        if not self._tracing.acquire(timeout=TRACE_WAIT_S):
            raise BusyError("other traces are under way")
        try:
            started = time.perf_counter()
            found = trace(self._source.eyes((asked.source, asked.target)), asked, started)
        finally:
            self._tracing.release()
        ways = Ways(self.seen().graph)
        return {
            **as_json(found),
            "steps": [
                *ways.steps(found.hops),
                *ways.steps(found.back, len(found.hops)),
            ],
        }


def _without_figures(found: Graph) -> Graph:
    """Without what changes all the time and moves nothing."""
    items = tuple(
        msgspec.structs.replace(
            item, facts=tuple((name, value) for name, value in item.facts if name != "connections")
        )
        for item in found.items
    )
    return msgspec.structs.replace(found, items=items)
