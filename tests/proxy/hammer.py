"""A client that never stops connecting while a service's endpoints are replaced under it.

Every request has to be answered, and by an endpoint that was one at some moment between the request's start and its
end: an address that lingers is as much a failure as one that refuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.kube import TCP, UDP, EndpointSlice, Service
from tests.proxy.cases import VIP, eps, svc
from tests.proxy.rig import Rig, Visit
from tests.proxy.traffic import Outcome

REPLACEMENTS = 100
SETS = (("a", "x"), ("b", "x"), ("b", "y"), ("a", "y"), ("a", "b"), ("x", "y"))
"""The endpoints ready in turn; who was ready before and is not now drains."""
CLIENTS = ("c", "node", "out")


class Asked(NamedTuple):
    """One request."""

    visit: Visit
    started: float
    ended: float
    outcome: Outcome


class Hammer(threading.Thread):
    """Connects from all clients, by TCP and UDP, until told to stop."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(name="hammer")
        self.rig = rig
        self.asked: list[Asked] = []
        self.error: BaseException | None = None
        self._done = threading.Event()

    def run(self) -> None:
        visits = [Visit(client, VIP[0], 80, protocol) for client in CLIENTS for protocol in (TCP, UDP)]
        try:
            while not self._done.is_set():
                started = time.monotonic()
                outcomes = self.rig.dial(visits)
                ended = time.monotonic()
                self.asked += [
                    Asked(visit, started, ended, outcome)
                    for visit, outcome in zip(visits, outcomes, strict=True)
                ]
        except BaseException as error:  # shown by the thread that waits
            self.error = error

    def stop(self) -> None:
        self._done.set()
        self.join()
        if self.error is not None:
            raise self.error


def objects(
    ready: Sequence[str], before: Sequence[str]
) -> tuple[dict[str, Service], dict[str, EndpointSlice]]:
    """The service with these endpoints, those of before draining."""
    draining = [f"{name}:draining" for name in before if name not in ready]
    service = svc()
    return {service.meta.key: service}, {piece.meta.key: piece for piece in eps(*ready, *draining)}


def hammer(rig: Rig, replacements: int = REPLACEMENTS) -> tuple[int, list[str]]:
    """Replace endpoints under fire. Returns how many requests were made and what was wrong with some, in words."""
    spans: list[tuple[float, frozenset[str]]] = []
    """From when on (before it was applied) which endpoints may answer, besides those until it was applied."""
    rig.apply(*objects(SETS[0], ()))
    spans.append((time.monotonic(), frozenset(SETS[0])))
    client = Hammer(rig)
    client.start()
    try:
        for number in range(1, replacements + 1):
            before, ready = SETS[(number - 1) % len(SETS)], SETS[number % len(SETS)]
            spans.append((time.monotonic(), frozenset(before) | frozenset(ready)))
            rig.apply(*objects(ready, before))
            spans.append((time.monotonic(), frozenset(ready)))
            time.sleep(0.01)
    finally:
        client.stop()
    return len(client.asked), [text for asked in client.asked if (text := wrong(asked, spans))]


def wrong(asked: Asked, spans: Sequence[tuple[float, frozenset[str]]]) -> str:
    """What is wrong with a request; "" when nothing is."""
    names: set[str] = set()
    for number, (start, allowed) in enumerate(spans):
        end = spans[number + 1][0] if number + 1 < len(spans) else float("inf")
        if start <= asked.ended and end >= asked.started:
            names |= allowed
    if asked.outcome.verdict == "answer" and asked.outcome.name in names:
        return ""
    took = asked.ended - asked.started
    return f"{asked.visit}: {asked.outcome} after {took:.3f} s, when {sorted(names)} were endpoints"
