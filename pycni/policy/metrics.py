"""Metrics of network policies: what holds here, what it has denied, how the fast path is; kube-router's names too.

Life: the component tells of every pass (``synced``). What has to be read from the kernel is read only while somebody
scrapes: a scrape shows the last ``Reading`` and notes that it was there; the component takes a new one (``read``, on
the thread that owns the engine) every ``READ_S`` seconds as long as ``due``. So the first scrape after a silence has
none of these, and a node nobody scrapes pays nothing.

Denials are told by policy and direction for at most ``limit`` of these pairs, the first that deny anything; the rest is
one series ``(others)``. The kernel counts anew when rows are programmed anew; what is told never goes down.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pycni.agent.metrics import Registry, Sample
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.policy.base import Denied
from pycni.policy.effective_texts import SIDES
from pycni.policy.engine import PolicyEngine, SyncResult
from pycni.policy.nft.layout import CHAINS
from pycni.view.policy_stages import CLOSED, GROUPS, SUBJECTS

READ_S = 10.0
SILENCE_S = 120.0
"""So long after the last scrape nothing is read any more."""
OTHERS = "(others)"
SPOOFED = "spoofed"
"""How reasons begin that are no policies' but the check of pods' own addresses."""
LIMIT = " limit"
"""How a figure of the fast path ends that is the limit of another."""
_POLICIES = (NETWORK_POLICY, CLUSTER_NETWORK_POLICY)


class Reading(NamedTuple):
    """Everything at one moment."""

    policies: Mapping[str, int]
    """By kind."""
    isolated: Mapping[str, int]
    """Pods of this node by direction."""
    closed: Mapping[str, int]
    """Addresses by direction."""
    rows: Mapping[str, int]
    """In the kernel, by table."""
    rules: int
    groups: int
    """Of pods, that rules refer to."""
    denied: Sequence[Denied]
    fast: Mapping[str, float] | None
    """Of the fast path, by name; None: there is none."""
    judging: bool = False
    """The fast path judges."""


def read(
    engine: PolicyEngine, policies: Mapping[str, int], more: Callable[[], Iterable[Denied]] = tuple
) -> Reading:
    """A reading, on the thread that owns the engine. ``more``: denials of other parts. Raises KernelError."""
    tables, fast = engine.tables, engine.fast
    denied = [*engine.plane.driver.denied(), *more()]
    isolated: dict[str, set[str]] = {side: set() for side in SIDES.values()}
    for (address, direction), subject in engine.view.tables[SUBJECTS].items():
        if subject.stages.policies is not None:
            isolated[SIDES[direction]].add(engine.view.holder(address) or address.hex())
    closed = Counter(SIDES[direction] for _, direction in engine.view.tables[CLOSED])
    fills: Mapping[str, float] | None = None
    if fast is not None:
        denied += fast.denied()
        fills = fast.figures()
    return Reading(
        policies,
        {side: len(keys) for side, keys in isolated.items()},
        {side: closed[side] for side in SIDES.values()},
        {name: len(rows) for name, rows in tables.items()},
        sum(map(len, tables.get(CHAINS, {}).values())),
        len(engine.view.tables[GROUPS]),
        denied,
        fills,
        fast is not None and not engine.aside,
    )


class PolicyMetrics:
    """One per component. ``clock``: monotonic seconds. Readings may be given from any thread."""

    def __init__(self, registry: Registry, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._now: Reading | None = None
        self._asked = float("-inf")
        self._totals: dict[tuple[str, str], tuple[int, int]] = {}
        """Denied packets and bytes by policy (or ``OTHERS``) and direction."""
        self._by_reason: Counter[tuple[str, str]] = Counter()
        self._last: dict[tuple[str, str], tuple[int, int]] = {}
        self.wanted: Callable[[], None] = lambda: None
        """Called when a scrape finds nothing read lately."""
        self._sync = registry.histogram(
            "kube_router_controller_policy_chains_sync_time",
            "Seconds it took to bring policies to the kernel.",
        )
        self._register(registry)

    def _register(self, registry: Registry) -> None:
        for name, text, label, value in _GAUGES:
            registry.callback(name, text, partial(self._told, value), (label,) if label else ())
        for number, (name, text) in enumerate((("packets", "Packets denied"), ("bytes", "Bytes denied"))):
            registry.callback(
                f"pycni_policy_denied_{name}_total",
                f"{text}, by policy (or what else denied them) and direction.",
                partial(self._denied, number),
                ("policy", "direction"),
                kind="counter",
            )
        registry.callback(
            "pycni_policy_drops_total",
            "Packets denied, by reason: NetworkPolicy, ClusterNetworkPolicy, spoofed, closed.",
            self._reasons,
            ("reason", "direction"),
            kind="counter",
        )

    def synced(self, result: SyncResult) -> None:
        """A pass has brought its changes to the kernel."""
        self._sync.observe(result.compile_s + result.apply_s)

    @property
    def due(self) -> bool:
        """Whether a reading should be taken: somebody scrapes."""
        return self._clock() - self._asked < SILENCE_S

    def take(self, reading: Reading) -> None:
        """A reading made just now."""
        counts: dict[tuple[str, str], tuple[int, int]] = {}
        for item in reading.denied:
            packets, size = counts.get((item.policy, item.direction), (0, 0))
            counts[item.policy, item.direction] = (packets + item.packets, size + item.bytes)
        for key in self._totals.keys() - counts.keys():
            if key[0] != OTHERS:
                del self._totals[key]
        for key, now in counts.items():
            before = self._last.get(key, (0, 0))
            # Counters that are less than they were have begun anew.
            since = now if now[0] < before[0] else (now[0] - before[0], now[1] - before[1])
            if since[0]:
                self._add(key, *since)
        self._last, self._now = counts, reading

    def _add(self, key: tuple[str, str], packets: int, size: int) -> None:
        policy, side = key
        self._by_reason[reason(policy), side] += packets
        if key not in self._totals and sum(name != OTHERS for name, _ in self._totals) >= self._limit:
            key = (OTHERS, side)
        total = self._totals.get(key, (0, 0))
        self._totals[key] = (total[0] + packets, total[1] + size)

    def _told(self, value: _Value) -> list[Sample]:
        reading = self._recent()
        if reading is None:
            return []
        found = value(reading)
        return [((), float(found))] if isinstance(found, int | float) else _samples(found)

    def _recent(self) -> Reading | None:
        """The last reading; None while there is none that means anything now."""
        now = self._clock()
        self._asked, silent = now, now - self._asked >= SILENCE_S
        if silent:
            self._now = None
            self.wanted()
        return self._now

    def _denied(self, number: int) -> list[Sample]:
        if self._recent() is None or not self._limit:
            return []
        return [(key, float(total[number])) for key, total in sorted(self._totals.items())]

    def _reasons(self) -> list[Sample]:
        if self._recent() is None:
            return []
        return [(key, float(count)) for key, count in sorted(self._by_reason.items())]


def reason(policy: str) -> str:
    """The kind of what denied."""
    kind = policy.partition(" ")[0]
    return kind if kind in {*_POLICIES, SPOOFED} else "closed" if kind == "pods" else policy


_Value = Callable[[Reading], "Mapping[str, float] | float"]
_GAUGES: Sequence[tuple[str, str, str, _Value]] = (
    ("pycni_policy_policies", "Policies there are.", "kind", lambda it: it.policies),
    (
        "pycni_policy_isolated_pods",
        "Pods of this node that a NetworkPolicy isolates.",
        "direction",
        lambda it: it.isolated,
    ),
    (
        "pycni_policy_closed_addresses",
        "Addresses closed because their pod is not known yet.",
        "direction",
        lambda it: it.closed,
    ),
    ("pycni_policy_rows", "Rows policies have in the kernel.", "table", lambda it: it.rows),
    ("pycni_policy_rules", "Rules policies have in the kernel.", "", lambda it: it.rules),
    (
        "pycni_policy_fast_path",
        "1: programs at pods judge; 0: they stand aside, or there are none.",
        "",
        lambda it: it.judging,
    ),
    (
        "pycni_policy_fast_path_entries",
        "What the programs at pods have: connections (flows, seen), pods, uplinks.",
        "what",
        lambda it: {
            name.replace(" ", "_"): value
            for name, value in (it.fast or {}).items()
            if not name.endswith(LIMIT)
        },
    ),
    (
        "pycni_policy_fast_path_limit",
        "Most they can have, of what may fill up.",
        "what",
        lambda it: {
            name.removesuffix(LIMIT).replace(" ", "_"): value
            for name, value in (it.fast or {}).items()
            if name.endswith(LIMIT)
        },
    ),
    (
        "kube_router_controller_policy_chains",
        "Chains policies have.",
        "",
        lambda it: it.rows.get(CHAINS, 0),
    ),
    (
        "kube_router_controller_policy_ipsets",
        "Groups of pods that rules refer to.",
        "",
        lambda it: it.groups,
    ),
)


def _samples(values: Mapping[str, float]) -> list[Sample]:
    return [((name,), float(value)) for name, value in values.items()]
