"""What happens over time: connections that stay while endpoints change, and memory of clients. For any data plane.

Each story gets a rig, applies objects in steps and gives disagreements in words, as ``judge.run`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from pycni.model.kube import TCP, UDP, EndpointSlice, Service
from tests.proxy.cases import VIP, VIP2, eps, svc
from tests.proxy.rig import Rig, Visit

TRIES = 6
AFFINITY_S = 60


def _apply(rig: Rig, services: Iterable[Service], slices: Iterable[EndpointSlice]) -> None:
    rig.apply({item.meta.key: item for item in services}, {item.meta.key: item for item in slices})


def _visits(client: str = "c", protocols: tuple[int, ...] = (TCP, UDP), times: int = TRIES) -> list[Visit]:
    return [Visit(client, address, 80, protocol) for protocol in protocols for address in VIP] * times


def _names(rig: Rig, visits: list[Visit]) -> list[str]:
    return [outcome.name or outcome.verdict for outcome in rig.dial(visits)]


def draining(rig: Rig) -> list[str]:
    """Connections to an endpoint that begins to drain go on; new ones go elsewhere."""
    web = svc(type="NodePort")
    _apply(rig, [web], eps("a", "x"))
    visits = _visits(protocols=(TCP,)) + _visits("out", (TCP,))
    held = rig.hold(visits)
    found = [f"before: {outcome}" for outcome, _ in held if outcome.name not in {"a", "x"}]
    if not any(outcome.name == "a" for outcome, _ in held):
        found.append("nobody came to a: nothing to see")
    _apply(rig, [web], eps("a:draining", "x"))
    after = rig.traffic.ask([number for _, number in held])
    for (was, _), now in zip(held, after, strict=True):
        if was != now:
            found.append(f"a connection answered {was} and then {now}")
    if set(_names(rig, visits)) != {"x"}:
        found.append("new connections go to what drains")
    rig.traffic.drop([number for _, number in held])
    return found


def neighbours(rig: Rig) -> list[str]:
    """Connections go on while endpoints come to their service and other services come and go."""
    web, other = svc(), svc("other", cluster_ips=VIP2)
    _apply(rig, [web], eps("a"))
    held = rig.hold(_visits(protocols=(TCP,), times=2) + _visits("out", (TCP,), times=2))
    numbers = [number for _, number in held]
    found = [f"before: {outcome}" for outcome, _ in held if outcome.name != "a"]
    for services, slices in (
        ([web, other], (*eps("a", "x"), *eps("b", name="other"))),
        ([web], eps("a", "b", "x")),
        ([web, other], (*eps("a", "b"), *eps("x", name="other"))),
    ):
        _apply(rig, services, slices)
        for (was, _), now in zip(held, rig.traffic.ask(numbers), strict=True):
            if was != now:
                found.append(f"a connection answered {was} and then {now}")
    rig.traffic.drop(numbers)
    return found


def affinity_ends_with_the_endpoint(rig: Rig) -> list[str]:
    """A client whose endpoint is gone is led to another, and stays there when the first one is back."""
    web = svc(affinity_s=AFFINITY_S)
    found = []
    for protocol in (TCP, UDP):
        visits = [Visit("c", VIP[0], 80, protocol)] * TRIES
        _apply(rig, [web], eps("a", "x"))
        first = set(_names(rig, visits))
        if len(first) != 1 or not first <= {"a", "x"}:
            return [f"not one endpoint at first, but {first}"]
        (gone,) = first
        other = "x" if gone == "a" else "a"
        _apply(rig, [web], eps(other))
        if set(_names(rig, visits)) != {other}:
            found.append(f"without {gone}: {_names(rig, visits)}")
        _apply(rig, [web], eps("a", "x"))
        if set(_names(rig, visits)) != {other}:
            found.append(f"with {gone} back: {_names(rig, visits)}")
        _apply(rig, [], [])
    return found


def affinity_ends_with_its_time(rig: Rig) -> list[str]:
    """After the time of affinity a client may be led anywhere again."""
    _apply(rig, [svc(affinity_s=1)], eps("a", "b", "x"))
    visits = [visit for client in ("c", "out", "out2", "node") for visit in _visits(client, times=1)]
    rounds = [_names(rig, visits)]
    time.sleep(2.2)
    rounds.append(_names(rig, visits))
    wrong = {name for names in rounds for name in names} - {"a", "b", "x"}
    if wrong:
        return [f"answered by {wrong}"]
    moved = [names for names in zip(*rounds, strict=True) if len(set(names)) > 1]
    return [] if moved else [f"nobody of {len(visits)} ever moved: {rounds}"]


def an_address_moves(rig: Rig) -> list[str]:
    """A service that gives up an address lets the next one have it, in one step; then the first one has it back."""
    found = []
    old, new = svc("old", created=1), svc("new", created=2)
    slices = (*eps("a", name="old"), *eps("b", name="new"))
    for services, expected in (([old, new], "a"), ([new], "b"), ([old, new], "a"), ([old], "a")):
        _apply(rig, services, slices)
        names = set(_names(rig, _visits(times=2)))
        if names != {expected}:
            found.append(f"{[item.meta.name for item in services]}: {names}, expected {expected}")
    return found


KEEPS_LONGER = frozenset({"affinity ends with its time"})
"""Not for IPVS: its kernel keeps a client's entry as long as it remembers a connection made by it (UDP: five minutes)."""

STORIES: Mapping[str, Callable[[Rig], list[str]]] = {
    "what drains keeps its connections and gets no new ones": draining,
    "connections go on while endpoints and services come and go": neighbours,
    "affinity ends with the endpoint": affinity_ends_with_the_endpoint,
    "affinity ends with its time": affinity_ends_with_its_time,
    "a contested address moves and comes back": an_address_moves,
}
