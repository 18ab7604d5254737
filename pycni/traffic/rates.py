"""Rates from raw counters: per pod, service, policy and node. Pure.

Life: one ``Rates`` per command; ``feed`` takes a round of samples, one per node, and gives a ``Frame``. Parts of a
sample carry the monotonic time they were read at, because nodes read what is costly less often: a part that has not
been read again keeps its rates. A counter that went down was begun anew (a pod's interface was made again, a service
programmed again) and counts from 0. None: that is not counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import msgspec

from pycni.traffic.model import EARLY, Counted, PodCount, PolicyCount, Sample, ServiceCount, Tally, Tracked

_NANO = 1_000_000_000


class PodRate(msgspec.Struct, kw_only=True):
    """A pod; directions are its view. Per second."""

    node: str
    pod: str
    interface: str
    bytes_in: float
    bytes_out: float
    packets_in: float
    packets_out: float
    drops: float
    new: float | None = None
    """Connections it opened or was sent."""
    active: int | None = None


class ServiceRate(msgspec.Struct, kw_only=True):
    """A service on a node; of several nodes, their sum. ``in`` is from clients. Per second."""

    node: str
    service: str
    bytes_in: float | None = None
    bytes_out: float | None = None
    packets_in: float | None = None
    packets_out: float | None = None
    new: float | None = None
    active: int | None = None


class PolicyRate(msgspec.Struct, kw_only=True):
    """What a policy denies on a node. Per second."""

    node: str
    policy: str
    direction: str
    packets: float
    bytes: float
    total: int
    """Packets since it was programmed."""


class NodeRate(msgspec.Struct, kw_only=True):
    """A node: the sums of its pods, and its connection tracking."""

    node: str
    pods: int
    bytes_in: float
    bytes_out: float
    packets_in: float
    packets_out: float
    drops: float
    denied: float | None = None
    new: float | None = None
    """Connections of its pods."""
    active: int | None = None
    tracked: int | None = None
    tracked_limit: int | None = None
    planes: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


class Frame(msgspec.Struct, kw_only=True):
    """All rates at one moment."""

    time: float
    interval_s: float
    """Since the sample before."""
    nodes: list[NodeRate]
    pods: list[PodRate]
    services: list[ServiceRate]
    policies: list[PolicyRate]


Numbers = tuple[int, ...]


class _Part:
    """The last two readings of one part of one node, as rates by row."""

    def __init__(self) -> None:
        self._at = 0
        self._before: Mapping[Hashable, Numbers] = {}
        self.seconds = 0.0
        self.rates: dict[Hashable, tuple[float | None, ...]] = {}
        self.ready = False

    def feed(self, at_ns: int, rows: Mapping[Hashable, Numbers]) -> None:
        if not at_ns or at_ns == self._at:
            return
        if at_ns < self._at:  # another boot, another clock
            self._at = 0
        if self._at:
            self.seconds = (at_ns - self._at) / _NANO
            self.rates = {
                key: tuple(
                    _rate(was, now, self.seconds)
                    for was, now in zip(self._before.get(key, (0,) * len(numbers)), numbers, strict=True)
                )
                for key, numbers in rows.items()
            }
            self.ready = True
        self._at, self._before = at_ns, rows


def _rate(was: int, now: int, seconds: float) -> float | None:
    if now < 0:
        return None
    return (now - was if now >= was >= 0 else now) / seconds


class _Node:
    def __init__(self) -> None:
        self.pods, self.services, self.policies = _Part(), _Part(), _Part()
        self.tracked_pods, self.tracked_services = _Part(), _Part()


class Rates:
    """Of some nodes."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._time = 0.0

    def feed(self, samples: Mapping[str, Sample]) -> Frame | None:
        """A round of samples by node; None while there is no earlier one to compare with."""
        now = max((sample.time for sample in samples.values()), default=0.0)
        frame = Frame(time=now, interval_s=now - self._time, nodes=[], pods=[], services=[], policies=[])
        first, self._time = not self._time, now
        for name, sample in samples.items():
            node = self._nodes.setdefault(name, _Node())
            counted, tracked = sample.counted, sample.tracked
            if counted is not None:
                _feed_counted(node, counted)
            if tracked is not None:
                node.tracked_pods.feed(tracked.at_ns, _tallies(tracked.pods))
                node.tracked_services.feed(tracked.at_ns, _tallies(tracked.services))
            _rows(frame, name, node, sample)
        return None if first else frame


def _feed_counted(node: _Node, counted: Counted) -> None:
    node.pods.feed(counted.at_ns, {(row.pod, row.interface): _of_pod(row) for row in counted.pods})
    services, policies = counted.services, counted.policies
    node.services.feed(services.at_ns, {row.service: _of_service(row) for row in services.rows})
    node.policies.feed(
        policies.at_ns, {(row.policy, row.direction): (row.packets, row.bytes) for row in policies.rows}
    )


def _of_pod(row: PodCount) -> Numbers:
    return row.bytes_in, row.bytes_out, row.packets_in, row.packets_out, row.drops


def _of_service(row: ServiceCount) -> Numbers:
    return row.connections, row.bytes_in, row.bytes_out, row.packets_in, row.packets_out


def _tallies(some: Mapping[str, Tally]) -> dict[Hashable, Numbers]:
    return {
        name: (item.new, item.bytes_out, item.bytes_back, item.packets_out, item.packets_back)
        for name, item in some.items()
    }


def _rows(frame: Frame, name: str, node: _Node, sample: Sample) -> None:
    """A node's rows."""
    counted, tracked = sample.counted or Counted(node=name, at_ns=0), sample.tracked
    pods = [_pod(name, row, node, tracked) for row in counted.pods]
    policies = [_policy(name, row, node) for row in counted.policies.rows]
    frame.pods += pods
    frame.policies += policies
    frame.services += _services(name, counted, node, tracked)
    troubles = {**counted.troubles, **sample.troubles}
    frame.nodes.append(
        NodeRate(
            node=name,
            pods=len({row.pod for row in counted.pods}),
            bytes_in=sum(row.bytes_in for row in pods),
            bytes_out=sum(row.bytes_out for row in pods),
            packets_in=sum(row.packets_in for row in pods),
            packets_out=sum(row.packets_out for row in pods),
            drops=sum(row.drops for row in pods),
            denied=sum(row.packets for row in policies) if node.policies.ready else None,
            new=sum_known(row.new for row in _once(pods)),
            active=sum_known(row.active for row in _once(pods)),
            tracked=tracked.entries if tracked is not None else None,
            tracked_limit=(tracked.limit or None) if tracked is not None else None,
            planes=counted.services.planes,
            troubles=tuple(f"{part}: {why}" for part, why in troubles.items()),
        )
    )


def _once(pods: Iterable[PodRate]) -> Iterable[PodRate]:
    """One row a pod: connections are not known by interface."""
    return {row.pod: row for row in pods}.values()


def _pod(name: str, row: PodCount, node: _Node, tracked: Tracked | None) -> PodRate:
    values = [value or 0.0 for value in node.pods.rates.get((row.pod, row.interface), (0.0,) * 5)]
    tally = tracked.pods.get(row.pod, Tally(0, 0)) if tracked is not None else None
    return PodRate(
        node=name,
        pod=row.pod,
        interface=row.interface,
        bytes_in=values[0],
        bytes_out=values[1],
        packets_in=values[2],
        packets_out=values[3],
        drops=values[4],
        new=_new(node.tracked_pods, row.pod),
        active=tally.active if tally is not None else None,
    )


def _new(part: _Part, key: str) -> float | None:
    return part.rates.get(key, (0.0,))[0] if part.ready else None


def _services(name: str, counted: Counted, node: _Node, tracked: Tracked | None) -> Iterable[ServiceRate]:
    """Every service that is counted somewhere. The data plane's own counters go before connection tracking's."""
    if set(EARLY).intersection(counted.services.planes):
        # Connection tracking sees endpoints' addresses only: what it has of services is from outside, not the whole.
        tracked = None
    tallies = tracked.services if tracked is not None else {}
    known = node.tracked_services.rates if tracked is not None else {}
    # A service that no connection is known of has none: nothing passes, rather than nobody counts.
    quiet: tuple[float | None, ...] = (None,) * 5
    if tracked is not None and node.tracked_services.ready:
        quiet = (0.0,) * 5 if tracked.accounting else (0.0, None, None, None, None)
    for service in dict.fromkeys([*(row.service for row in counted.services.rows), *tallies]):
        plane = node.services.rates.get(service, (None,) * 5)
        seen = known.get(service, quiet)
        new, bytes_in, bytes_out, packets_in, packets_out = (
            first if first is not None else second for first, second in zip(plane, seen, strict=True)
        )
        tally = tallies.get(service)
        yield ServiceRate(
            node=name,
            service=service,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            packets_in=packets_in,
            packets_out=packets_out,
            new=new,
            active=tally.active if tally is not None else (0 if tracked is not None else None),
        )


def _policy(name: str, row: PolicyCount, node: _Node) -> PolicyRate:
    packets, size = node.policies.rates.get((row.policy, row.direction), (0.0, 0.0))
    return PolicyRate(
        node=name,
        policy=row.policy,
        direction=row.direction,
        packets=packets or 0.0,
        bytes=size or 0.0,
        total=row.packets,
    )


def sum_known(values: Iterable[Any]) -> Any:
    """None when none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
