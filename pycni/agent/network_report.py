"""How the network component is doing: into health, metrics and the log.

Life: the component tells what it finds (trouble, refusals, repairs), the runner how passes end; everything is said
once, when it becomes so, and again only after it was over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.vtep_probe import VtepProber
from pycni.backends.base import Refusal
from pycni.reconcile.runner import describe
from pycni.view.fabric import PeerKey

log = logging.getLogger("pycni.network")

PART, FABRIC = "network", "fabric"
RTT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Seconds: from two nodes in one rack to the probe's patience."""


class NetworkReport:
    """Health parts "network" (lease, underlay, passes) and "fabric" (peers), metrics ``pycni_fabric_*``."""

    def __init__(
        self, health: Health | None = None, metrics: Registry | None = None, *, valid_s: float = 150.0
    ) -> None:
        """``valid_s``: after how long without a successful pass the network is not well any more."""
        self._health = health or Health()
        metrics = metrics or Registry()
        self._valid_s = valid_s
        self._trouble = ""
        self.not_ready: Callable[[], str] = lambda: ""
        """Why pods cannot be attached; asked after every pass."""
        self._refusals: dict[PeerKey, Refusal] = {}
        self._peers = 0
        self._probes: VtepProber | None = None
        self._passes = metrics.histogram(
            "pycni_fabric_pass_seconds", "Duration of successful passes over the pod network."
        )
        self._failures = metrics.counter(
            "pycni_fabric_pass_failures_total", "Passes over the pod network that failed."
        )
        self._repairs = metrics.counter(
            "pycni_fabric_repairs_total", "Entries found changed by somebody else and set right."
        )
        metrics.callback("pycni_fabric_peers", "Peers with entries, per family.", lambda: float(self._peers))
        metrics.callback(
            "pycni_fabric_refused",
            "Leases without entries: something is wrong with them, or another backend's.",
            lambda: float(len(self._refusals)),
        )
        self.carried: Callable[[], Mapping[str, int]] = dict
        """What the udp forwarder has counted."""
        metrics.callback(
            "pycni_udp_packets_total",
            "Packets the udp forwarder carried.",
            lambda: self._carried({"tun_packets": "out", "udp_packets": "in"}),
            ["direction"],
            kind="counter",
        )
        metrics.callback(
            "pycni_udp_dropped_total",
            "Packets the udp forwarder dropped.",
            lambda: self._carried({name: name[5:] for name in self.carried() if name.startswith("drop_")}),
            ["reason"],
            kind="counter",
        )
        metrics.callback(
            "pycni_fabric_probed_peers",
            "Peers asked through the pod network, per family: reachable, unreachable (answered once, but not now), "
            "silent (never answered: something else may run there).",
            self._probed,
            ["state"],
        )
        self._rtt = metrics.histogram(
            "pycni_fabric_probe_seconds",
            "Round trips to peers' agents through the pod network.",
            buckets=RTT_BUCKETS,
        )
        self._probe_results = metrics.counter(
            "pycni_fabric_probes_total", "Peers asked through the pod network, by result.", ("result",)
        )
        for result in ("answered", "lost"):
            self._probe_results.inc(0, result=result)
        metrics.callback(
            "pycni_checksum_faults_total",
            "Checksum offloads proven wrong and switched off.",
            lambda: float(self._probes.faults if self._probes is not None else 0),
            kind="counter",
        )
        self._health.expect(PART)
        self._health.expect(FABRIC, "the leases were not listed yet")

    def watch(self, probes: VtepProber) -> None:
        """Have the probe's findings in the metrics."""
        self._probes = probes
        probes.observe = self._asked

    def _asked(self, rtt_s: float | None) -> None:
        """A peer was asked; None: it did not answer."""
        self._probe_results.inc(result="lost" if rtt_s is None else "answered")
        if rtt_s is not None:
            self._rtt.observe(rtt_s)

    def trouble(self, reason: str) -> None:
        """What keeps the network from being right though passes run; "" when nothing does."""
        if reason and reason != self._trouble:
            log.error("network: %s", reason)
        elif self._trouble and not reason:
            log.info("network: all well again")
        self._trouble = reason

    def judged(self, keys: Iterable[PeerKey], refusals: Mapping[PeerKey, Refusal], peers: int) -> None:
        """Peers whose verdict may have changed."""
        self._peers = peers
        for key in sorted(keys):
            refusal, before = refusals.get(key), self._refusals.get(key)
            if refusal == before:
                continue
            name, family = key
            if refusal is None:
                del self._refusals[key]
                log.info("peer %s (%s): no longer skipped", name, family.label)
            else:
                self._refusals[key] = refusal
                level = logging.ERROR if refusal.fault else logging.WARNING
                log.log(level, "peer %s (%s) is skipped: %s", name, family.label, refusal.reason)

    def replanned(self) -> None:
        """Refusals of an earlier plan do not count any more."""
        self._refusals.clear()

    def synchronised(self) -> None:
        """The kernel is as it should be."""
        faults = [
            f"peer {name}: {refusal.reason}" for (name, _), refusal in self._refusals.items() if refusal.fault
        ]
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        self._health.set(FABRIC, not faults, "; ".join(sorted(faults)[:3]) + more)

    def repaired(self, entries: int, why: str) -> None:
        """Somebody else had changed entries of ours."""
        self._repairs.inc(entries)
        self._health.repaired(FABRIC, entries, why)
        log.warning("%d entries of the fabric were not ours any more and are set right (%s)", entries, why)

    def passed(self, _component: str, seconds: float) -> None:
        """Runner: a pass succeeded."""
        self._passes.observe(seconds)
        reason = self._trouble or self.not_ready()
        self._health.set(PART, not reason, reason, valid_for=self._valid_s)

    def failed(self, _component: str, error: Exception, _failures: int) -> None:
        """Runner: a pass failed."""
        self._failures.inc()
        self._health.set(PART, ok=False, reason=describe(error))

    def _carried(self, names: Mapping[str, str]) -> list[tuple[tuple[str, ...], float]]:
        counters = self.carried()
        return [((label,), float(counters[name])) for name, label in names.items() if name in counters]

    def _probed(self) -> list[tuple[tuple[str, ...], float]]:
        counts = {"reachable": 0, "unreachable": 0, "silent": 0}
        for probe in list(self._probes.peers.values()) if self._probes is not None else ():
            counts[{True: "reachable", False: "unreachable", None: "silent"}[probe.reachable]] += 1
        return [((state,), float(count)) for state, count in counts.items()]
