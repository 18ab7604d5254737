"""Counters per service, under kube-router's metric names, read from the kernel only while somebody scrapes them.

Life: a scrape renders the figures read last and notes that it was there; the component's ``follow`` reads them anew, on
its worker thread, every ``READ_S`` seconds as long as the last scrape is recent. So the first scrape after a silence is
empty, a scrape never waits for the kernel, and a node nobody scrapes pays nothing. Rates are between two readings.

At 10,000 services the text is 12 MB a scrape: above ``limit`` services there is none of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from pycni.agent.metrics import Registry, Sample
from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.model.service import Frontend, FrontendKey
from pycni_proxy.base import Counters

READ_S = 10.0
SILENCE_S = 120.0
"""So long after the last scrape nothing is read any more."""

LABELS = ("svc_namespace", "service_name", "service_vip", "protocol", "port")

_TOTALS = (
    ("total_connections", "connections", "Connections."),
    ("packets_in", "packets_in", "Packets from clients."),
    ("packets_out", "packets_out", "Packets to clients."),
    ("bytes_in", "bytes_in", "Bytes from clients."),
    ("bytes_out", "bytes_out", "Bytes to clients."),
)
_RATES = (
    ("cps", "connections", "Connections per second."),
    ("pps_in", "packets_in", "Packets from clients per second."),
    ("pps_out", "packets_out", "Packets to clients per second."),
    ("bps_in", "bytes_in", "Bytes from clients per second."),
    ("bps_out", "bytes_out", "Bytes to clients per second."),
)


class Reading(NamedTuple):
    """All counters at one moment."""

    at: float
    counters: Mapping[FrontendKey, Counters]


class ServiceMetrics:
    """One per component. ``clock``: monotonic seconds. Readings may be given from any thread."""

    def __init__(
        self,
        registry: Registry,
        frontends: Callable[[], Mapping[str, tuple[Frontend, ...]]],
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frontends = frontends
        self._limit = limit
        self._clock = clock
        self._now: Reading | None = None
        self._before: Reading | None = None
        self._labels: dict[FrontendKey, tuple[str, ...]] = {}
        self._asked = float("-inf")
        self.wanted: Callable[[], None] = lambda: None
        """Called when a scrape finds nothing read lately."""
        registry.callback(
            "pycni_proxy_services", "Services this node serves.", lambda: float(len(self._frontends()))
        )
        registry.callback(
            "pycni_proxy_frontends",
            "Virtual addresses with protocol and port, node ports too, that this node serves.",
            lambda: float(sum(map(len, list(self._frontends().values())))),
        )
        if not limit:
            return
        for name, field, text in _TOTALS:
            registry.callback(
                f"kube_router_service_{name}",
                text,
                partial(self._totals, field),
                LABELS,
                # A counter, whose name does not end as one should.
                kind="untyped",
            )
        for name, field, text in _RATES:
            registry.callback(f"kube_router_service_{name}", text, partial(self._rates, field), LABELS)

    @property
    def due(self) -> bool:
        """Whether counters should be read: somebody scrapes, and there are not too many services."""
        return self._clock() - self._asked < SILENCE_S and len(self._frontends()) <= self._limit

    def take(self, counters: Mapping[FrontendKey, Counters]) -> None:
        """A reading of the kernel's counters, made just now."""
        names: dict[FrontendKey, tuple[str, ...]] = {
            item.key: (
                item.name.namespace,
                item.name.service,
                show(item.key.address) if item.key.address else "nodeport",
                PROTOCOL_NAMES.get(item.key.protocol, str(item.key.protocol)),
                str(item.key.port),
            )
            for items in list(self._frontends().values())
            for item in items
        }
        self._before, self._now = self._now, Reading(self._clock(), dict(counters))
        self._labels = names

    def _recent(self) -> Reading | None:
        """The last reading; None while there is none that means anything now."""
        now = self._clock()
        self._asked, silent = now, now - self._asked >= SILENCE_S
        if silent:
            self._before = self._now = None
            self.wanted()
        return self._now if len(self._frontends()) <= self._limit else None

    def _totals(self, field: str) -> list[Sample]:
        reading = self._recent()
        if reading is None:
            return []
        return [
            (self._labels[key], float(value))
            for key, counters in reading.counters.items()
            if key in self._labels and (value := getattr(counters, field)) >= 0
        ]

    def _rates(self, field: str) -> list[Sample]:
        now, before = self._recent(), self._before
        if now is None or before is None or now.at <= before.at:
            return []
        found: list[Sample] = []
        for key, counters in now.counters.items():
            value, old = getattr(counters, field), before.counters.get(key)
            if key not in self._labels or value < 0 or old is None:
                continue
            # A frontend programmed anew counts from 0 again.
            found.append((self._labels[key], max(0.0, value - getattr(old, field)) / (now.at - before.at)))
        return found
