"""What a packet between two pods of a node pays for the kind of attachment, and what an ADD does.

Ports of a bridge beside routed links (attachment ``ptp``), bare and as the agent has them with network policies on:
bridged packets pass the IP hooks, the table judges, senders are checked. One run, variants in turns.

    pytest bench/test_attachments.py          ATTACHMENT_ROUNDS (7) rounds, two seconds per variant and round
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench.backendpath import CPU, GBIT, METRICS, TRIP, Figures, Pods, Variant, rounds
from bench.rows import row
from bench.size import sized
from pycni.kernel import netns
from pycni.model.attachment import AttachmentKind
from tests.netns.evade_world import NAMES, Judged
from tests.netns.podenv import Env, run

ROUNDS = int(os.environ.get("ATTACHMENT_ROUNDS", str(sized(7, 1))))
ADDS = sized(40, 10)
BRIDGE, PTP = AttachmentKind.BRIDGE, AttachmentKind.PTP
BARE, JUDGED = "bare", "with policies"


class Node:
    """A node on a thread of its own, which is in the node's namespace."""

    def __init__(self, make: Callable[[], str], kind: AttachmentKind, *, judged: bool) -> None:
        self.kind, self._judged, self._make = kind, judged, make
        self.pods: Pods = {}
        self._ready, self._end = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def close(self) -> None:
        """Take it away."""
        self._end.set()
        self._thread.join()

    def _live(self) -> None:
        try:
            env = Env(self._make)
            with ExitStack() as exits:
                exits.callback(env.close)
                self._build(env, exits)
                self._ready.set()
                self._end.wait()
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    def _build(self, env: Env, exits: ExitStack) -> None:
        routed = NAMES if self.kind is PTP else ()
        if self._judged:
            for kind in ("iptables", "ip6tables"):
                run(f"sysctl -qw net.bridge.bridge-nf-call-{kind}=1")
            world = Judged(env, exits, programs=False, routed=routed)
            ends: dict[str, Any] = {"a": world.a, "c": world.c}
        else:
            for kind in ("iptables", "ip6tables"):
                run(f"sysctl -qw net.bridge.bridge-nf-call-{kind}=0")
            ends = {name: env.attach((4, 6), attachment=self.kind) for name in ("a", "c")}
        self.pods = {name: (pod.name, pod.v4()) for name, pod in ends.items()}


@pytest.fixture
def make() -> Iterator[Callable[[], str]]:
    """Names of fresh namespaces, which go at the end."""
    made: list[str] = []
    numbers = itertools.count()

    def one() -> str:
        name = f"pyb{os.getpid()}a{next(numbers)}"
        netns.create(name)
        made.append(name)
        return name

    yield one
    for name in made:
        netns.delete(name)


@pytest.mark.timeout(900)
def test_path(make: Callable[[], str]) -> None:
    networks: dict[Variant, Pods] = {}
    with ExitStack() as exits:
        for what in (BARE, JUDGED):
            for kind in (BRIDGE, PTP):
                there = Node(make, kind, judged=what == JUDGED)
                exits.callback(there.close)
                networks[Variant(what, kind)] = there.pods
        found = rounds(networks, ROUNDS)
    for what, metric in itertools.product((BARE, JUDGED), METRICS):
        report(found, what, metric)


def best(found: Figures, variant: Variant, metric: str) -> float:
    """Of all rounds: what is left of other work on the machine."""
    return (max if metric == GBIT else min)(found.values[variant, metric])


def report(found: Figures, what: str, metric: str) -> None:
    """A row: routed beside bridged, median and best; the ratio is the median of the rounds'."""
    ours, peer = Variant(what, PTP), Variant(what, BRIDGE)
    digits = {GBIT: ".1f", TRIP: ".1f", CPU: ".3f"}[metric]
    row(
        f"pods of a node, {what}, {metric}: ptp / bridge",
        *(
            f"{found.median(item, metric):{digits}} / {best(found, item, metric):{digits}}"
            for item in (ours, peer)
        ),
        found.ratio(ours, peer, metric),
        ">= 0.97",
        ratios=found.ratios(ours, peer, metric),
    )


def test_add_and_del(make: Callable[[], str]) -> None:
    """The kernel's part of an ADD and a DEL, without runtime and shim."""
    times: dict[tuple[str, AttachmentKind], list[float]] = {}
    failure: list[BaseException] = []

    def work() -> None:
        try:
            env = Env(make)
            try:
                for kind in (BRIDGE, PTP):
                    env.attach((4, 6), attachment=kind)
                for _ in range(ADDS):
                    for kind in random.sample((BRIDGE, PTP), 2):
                        pod = env.pod()
                        pod.plan = env.plan(pod, (4, 6), attachment=kind)
                        began = time.perf_counter()
                        env.driver.attach(pod.plan, pod.fd)
                        times.setdefault(("ADD", kind), []).append(time.perf_counter() - began)
                        began = time.perf_counter()
                        env.driver.detach(pod.plan.owner, pod.fd)
                        times.setdefault(("DEL", kind), []).append(time.perf_counter() - began)
                        env.driver.wait_gone(pod.plan.owner)
            finally:
                env.close()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    for verb in ("ADD", "DEL"):
        ours, peer = (statistics.median(times[verb, kind]) * 1e3 for kind in (PTP, BRIDGE))
        pairs = zip(times[verb, PTP], times[verb, BRIDGE], strict=True)
        row(
            f"{verb} in the kernel, both families, ms: ptp / bridge",
            f"{ours:.2f}",
            f"{peer:.2f}",
            ours / peer,
            better="less",
            ratios=[one / other for one, other in pairs],
        )
