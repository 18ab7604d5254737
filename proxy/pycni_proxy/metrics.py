"""Metrics of the service proxy, under the names dashboards for kube-proxy have.

Life: the component reports every pass; what is per service is kept by difference, so a pass costs what it changed.
Both families are programmed by one pass: ``ip_family`` repeats its figures for each family of the node.

Network programming latency runs from the moment the endpoints controller saw the change (the slices' annotation
endpoints.kubernetes.io/last-change-trigger-time) to the kernel having it; times from before this process started are
not ours, and the same time is observed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from pycni.agent.metrics import Registry, Sample
from pycni.model.family import Family
from pycni.model.kube import ENDPOINT_SLICE, SERVICE
from pycni.model.service import Frontend, Kind, Verdict
from pycni_proxy.engine import SyncResult

_FAMILY_LABEL = {Family.V4: "IPv4", Family.V6: "IPv6"}
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)
UNTYPED = "untyped"
"""Of a name whose ending says another kind than it is: a gauge of kube-proxy's is called ``_total``."""
_PREFIX = "kubeproxy_sync_proxy_rules_"


class ProxyMetrics:
    """One per component. ``wall``: seconds since the epoch."""

    def __init__(self, registry: Registry, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._born = wall()
        self._families: tuple[Family, ...] = ()
        self._seen: dict[str, float] = {}
        self._without_local: dict[str, set[str]] = {"internal": set(), "external": set()}
        self._totals = {SERVICE: 0, ENDPOINT_SLICE: 0}
        self._pending = {SERVICE: 0, ENDPOINT_SLICE: 0}
        self._last = 0.0
        label = ("ip_family",)
        self._any = registry.histogram(
            _PREFIX + "duration_seconds", "Duration of passes that program services.", label
        )
        self._full = registry.histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Duration of passes that read the kernel back.",
            label,
        )
        self._partial = registry.histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Duration of passes over what changed.",
            label,
        )
        self._latency = registry.histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From a change of endpoints to the kernel.",
            label,
            _LATENCY_BUCKETS,
        )
        self._failures = registry.counter(
            "pycni_proxy_pass_failures_total", "Passes over services that failed."
        )
        self._operations = registry.counter(
            "pycni_proxy_operations_total", "Rows of services written to the kernel."
        )
        self._repairs = registry.counter(
            "pycni_proxy_repairs_total",
            "Rows of services a read-back found different from what had been programmed.",
        )
        add = registry.callback
        add(
            _PREFIX + "last_timestamp_seconds",
            "When services were last programmed, seconds since the epoch.",
            lambda: self._by_family(self._last),
            labels=label,
        )
        for kind, name, what in (
            (SERVICE, "service", "Services"),
            (ENDPOINT_SLICE, "endpoint", "EndpointSlices"),
        ):
            add(
                f"{_PREFIX}{name}_changes_total",
                f"Changed {what} seen.",
                partial(self._count, self._totals, kind),
                labels=label,
                kind="counter",
            )
            add(
                f"{_PREFIX}{name}_changes_pending",
                f"Changed {what} not yet in the kernel.",
                partial(self._count, self._pending, kind),
                labels=label,
            )
        add(
            _PREFIX + "no_local_endpoints_total",
            "Services with a Local traffic policy and no endpoint on this node.",
            lambda: [((policy,), float(len(keys))) for policy, keys in self._without_local.items()],
            labels=("traffic_policy",),
            kind=UNTYPED,
        )

    def taken(self, changed: Mapping[str, Iterable[str]], families: tuple[Family, ...]) -> None:
        """A pass begins with these changed objects."""
        self._families = families
        for kind in self._totals:
            count = len(set(changed.get(kind, ())))
            self._totals[kind] += count
            self._pending[kind] = count

    def failed(self) -> None:
        """A pass failed; what it took is still pending."""
        self._failures.inc()

    def passed(self, result: SyncResult, seconds: float, *, first: bool) -> None:
        """A pass has brought its changes to the kernel."""
        self._last = self._wall()
        self._pending.update(dict.fromkeys(self._pending, 0))
        self._operations.inc(result.operations)
        if result.full and not first and not result.services:
            self._repairs.inc(result.operations)
        for family in self._families:
            labelled = {"ip_family": _FAMILY_LABEL[family]}
            self._any.observe(seconds, **labelled)
            (self._full if result.full else self._partial).observe(seconds, **labelled)
        for key, change in result.services.items():
            self._note_local(key, change.after)
        for key, changed in result.changed.items():
            self._note_latency(key, changed)
        for key in [key for key in result.services if not result.services[key].after]:
            self._seen.pop(key, None)

    def _note_latency(self, key: str, changed: float) -> None:
        if changed <= self._born or self._seen.get(key) == changed:
            return
        self._seen[key] = changed
        for family in self._families:
            self._latency.observe(max(0.0, self._last - changed), ip_family=_FAMILY_LABEL[family])

    def _note_local(self, key: str, frontends: Iterable[Frontend]) -> None:
        found = {"internal": False, "external": False}
        for item in frontends:
            if not item.local_only or item.pool.targets:
                continue
            if item.kind is Kind.CLUSTER_IP:
                found["internal"] |= item.pool.empty is Verdict.DROP
            else:
                found["external"] |= item.inside is not None and bool(item.inside.targets)
        for policy, lacking in found.items():
            (self._without_local[policy].add if lacking else self._without_local[policy].discard)(key)

    def _count(self, counts: Mapping[str, int], kind: str) -> list[Sample]:
        return self._by_family(counts[kind])

    def _by_family(self, value: float) -> list[Sample]:
        return [((_FAMILY_LABEL[family],), float(value)) for family in self._families]
