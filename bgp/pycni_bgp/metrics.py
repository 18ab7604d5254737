"""BGP in numbers, for Prometheus. Names are ours; kube-router's are given beside where it has the same."""

from __future__ import annotations

from collections.abc import Sequence

from pycni.agent.metrics import Registry, Sample
from pycni.model.family import show
from pycni_bgp.engine import Session
from pycni_bgp.view import Draft


class BgpMetrics:
    """What the component tells; scraped from any thread."""

    def __init__(self, registry: Registry) -> None:
        self._sessions: Sequence[Session] = ()
        self._draft: Draft | None = None
        self._downs = registry.counter(
            "pycni_bgp_session_downs_total", "Times a session was found no longer established.", ("peer",)
        )

        def per_session(value: str) -> list[Sample]:
            return [((show(item.address),), float(getattr(item, value))) for item in self._sessions]

        registry.callback(
            "pycni_bgp_session_up",
            "1 for each session that is established, 0 for each that is not.",
            lambda: per_session("up"),
            labels=("peer",),
        )
        registry.callback(
            "pycni_bgp_received_routes",
            "Routes taken from a neighbour.",
            lambda: per_session("imported"),
            labels=("peer",),
        )
        registry.callback(
            "pycni_bgp_sent_routes",
            "Routes told to a neighbour.",
            lambda: per_session("exported"),
            labels=("peer",),
        )
        registry.callback(
            "pycni_bgp_announced_prefixes",
            "Prefixes this node has to announce.",
            lambda: float(len(self._draft.plan.local) if self._draft else 0),
        )
        registry.callback(
            "kube_router_controller_bgp_peers",
            "Neighbours this node is to have.",
            lambda: float(len(self._draft.plan.sessions) if self._draft else 0),
        )

    def planned(self, draft: Draft) -> None:
        """There is a new plan."""
        self._draft = draft

    def looked(self, sessions: Sequence[Session]) -> None:
        """Sessions were looked at."""
        before = {item.address for item in self._sessions if item.up}
        for item in sessions:
            self._downs.inc(float(item.address in before and not item.up), peer=show(item.address))
        for gone in {item.address for item in self._sessions} - {item.address for item in sessions}:
            self._downs.remove(peer=show(gone))
        self._sessions = sessions
