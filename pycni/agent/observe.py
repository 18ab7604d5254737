"""What parts tell about themselves, as health and metrics: names, units and label values in one place.

Counters that parts keep as plain attributes are read at a scrape; nothing here costs anything otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pycni.agent.health import Health
from pycni.agent.metrics import Registry, Sample
from pycni.reconcile.runner import describe

if TYPE_CHECKING:
    from pycni.agent.collector import Collector
    from pycni.agent.pods import PodKeeper
    from pycni.ipam.allocate import RangeSets
    from pycni.ipam.endpoints import EndpointStore
    from pycni.ipam.pool import Pools
    from pycni.sources.etcd import EtcdClient
    from pycni.sources.kube import KindFollower
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.leases import LeaseSource

COUNTER = "counter"
OPERATIONS = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"})


class PassObserver:
    """Passes of a reconcile loop (``reconcile.runner.Observer``) as one health part and two metrics."""

    def __init__(
        self, health: Health, metrics: Registry, *, valid_s: float, parts: Sequence[str] = ()
    ) -> None:
        """``valid_s``: after how long without success the part is red, whatever the reason.

        ``parts``: whose failures are told from the beginning; a series that begins at 1 has not increased.
        """
        self._health = health
        self._valid_s = valid_s
        self._seconds = metrics.histogram(
            "pycni_pass_seconds", "Duration of successful passes of a reconcile loop.", ("part",)
        )
        self._failures = metrics.counter(
            "pycni_pass_failures_total", "Passes of a reconcile loop that failed.", ("part",)
        )
        for part in parts:
            self._failures.inc(0, part=part)

    def passed(self, component: str, seconds: float) -> None:
        """A pass succeeded."""
        self._seconds.observe(seconds, part=component)
        self._health.set(component, ok=True, valid_for=self._valid_s)

    def failed(self, component: str, error: Exception, failures: int) -> None:
        """A pass raised."""
        self._failures.inc(part=component)
        self._health.set(component, ok=False, reason=f"{failures} passes failed, the last: {describe(error)}")


class CniObserver:
    """Calls of the CNI plugin."""

    def __init__(self, metrics: Registry) -> None:
        self._calls = metrics.counter(
            "pycni_cni_calls_total", "CNI calls answered, by operation and result.", ("operation", "result")
        )
        for operation in sorted(OPERATIONS):
            for result in ("success", "error"):
                self._calls.inc(0, operation=operation, result=result)
        self._seconds = metrics.histogram(
            "pycni_cni_seconds", "From accepting a CNI call to its answer.", ("operation",)
        )
        self._errors = metrics.counter(
            "pycni_cni_errors_total",
            "CNI calls answered by an error, by its code (CNI specification, section 5; 100 and above: this plugin's).",
            ("operation", "code"),
        )

    def called(self, operation: str, exit_code: int, seconds: float) -> None:
        """A call was answered (``cni_server.Observer``)."""
        self._calls.inc(operation=_known(operation), result="error" if exit_code else "success")
        self._seconds.observe(seconds, operation=_known(operation))

    def error(self, operation: str, code: int) -> None:
        """A call was answered by an error."""
        self._errors.inc(operation=_known(operation), code=code)


def _known(operation: str) -> str:
    """Label values come from a closed set, whatever a caller sends."""
    return operation if operation in OPERATIONS else "other"


def follow_leases(metrics: Registry, source: LeaseSource, client: EtcdClient) -> None:
    """The connection to etcd and our lease."""
    add = metrics.callback
    add("pycni_etcd_connected", "1 while the leases are followed.", lambda: float(source.connected))
    add("pycni_etcd_dials_total", "Connections made to etcd.", lambda: float(client.dials), kind=COUNTER)
    for name, text in (
        ("reconnects", "Watches opened anew."),
        ("relists", "Full listings (at the start, after a compaction)."),
        ("events", "Changes received."),
    ):

        def read(name: str = name) -> list[Sample]:
            leases, config = source.followers
            return [(("leases",), float(getattr(leases, name))), (("config",), float(getattr(config, name)))]

        add(f"pycni_etcd_{name}_total", text, read, labels=("what",), kind=COUNTER)
    add("pycni_lease_renewals_total", "Renewals of our lease.", lambda: float(source.renewals), kind=COUNTER)
    add("pycni_lease_malformed", "Records that cannot be read.", lambda: float(len(source.malformed)))

    def expires() -> list[Sample]:
        held = source.held
        return [] if held is None or held.expires is None else [((), held.expires)]

    add("pycni_lease_expires_timestamp_seconds", "When our lease ends, seconds since the epoch.", expires)


def follow_kube_client(metrics: Registry, client: KubeClient) -> None:
    """Connections to the Kubernetes API."""
    metrics.callback(
        "pycni_kube_dials_total",
        "Connections made to the Kubernetes API.",
        lambda: float(client.dials),
        kind=COUNTER,
    )


def follow_kube(metrics: Registry, prefix: str, followers: Mapping[str, KindFollower]) -> None:
    """Objects followed at the Kubernetes API, by kind. ``prefix``: of the metrics' names."""
    for name, text, kind in (
        ("connected", "1 while the kind is followed.", "gauge"),
        ("reconnects_total", "Watches opened anew.", COUNTER),
        ("relists_total", "Full listings after the first.", COUNTER),
        ("events_total", "Changes received.", COUNTER),
        ("malformed", "Objects that cannot be read.", "gauge"),
    ):

        def read(name: str = name) -> list[Sample]:
            field = name.removesuffix("_total")
            found = {what: getattr(each, field) for what, each in followers.items()}
            return [
                ((what,), float(len(value) if isinstance(value, dict) else value))
                for what, value in found.items()
            ]

        metrics.callback(f"{prefix}_{name}", text, read, labels=("kind",), kind=kind)


def follow_pods(
    metrics: Registry,
    endpoints: EndpointStore,
    pools: Pools,
    keeper: PodKeeper,
    ranges: Callable[[], RangeSets],
) -> None:
    """Attachments and addresses of this node. ``ranges``: those of the node's lease."""

    def states() -> list[Sample]:
        counts = {"pending": 0, "ready": 0, "dying": 0}
        for endpoint in endpoints.all():
            counts[endpoint.state] += 1
        return [((state,), float(count)) for state, count in counts.items()]

    def usage(capacity: bool) -> list[Sample]:
        counts: Counter[tuple[str, str]] = Counter()
        for pool in pools.all():
            for family, used in pool.usage(ranges).items():
                number = used.capacity if capacity else used.reserved
                if number is not None:
                    counts[pool.network, family.label] += number
        return [(labels, float(count)) for labels, count in sorted(counts.items())]

    metrics.callback("pycni_endpoints", "Attachments of pods on record, by state.", states, labels=("state",))
    for name, text, capacity in (
        ("reserved", "Addresses reserved for pods.", False),
        ("capacity", "Addresses that can be given to pods, those in use too.", True),
    ):
        metrics.callback(f"pycni_ipam_{name}", text, partial(usage, capacity), labels=("network", "family"))
    metrics.callback(
        "pycni_pod_repairs_total",
        "Things of pods put back in the kernel: bridges, routes, rules.",
        lambda: float(keeper.repairs),
        kind=COUNTER,
    )


def follow_collector(metrics: Registry, collector: Collector) -> None:
    """Sweeps of what outlived its pod."""
    for name, text in (
        ("sweeps", "Sweeps completed."),
        ("failures", "Sweeps and removals that failed."),
        ("endpoints_removed", "Attachments removed because their pod was gone."),
        ("reservations_removed", "Reservations discarded because nobody held them."),
        ("reservations_restored", "Reservations made again for running pods."),
    ):

        def read(name: str = name) -> float:
            return float(getattr(collector, name))

        metrics.callback(f"pycni_collector_{name}_total", text, read, kind=COUNTER)
    metrics.callback(
        "pycni_collector_suspects",
        "Attachments and reservations found without their pod once; found so again, they go.",
        lambda: float(collector.suspects),
    )
