"""Figures of the node that several parts know together: who it is, its peers, leases, drift, complaints, addresses.

Life: ``NodeReport`` registers them when the agent starts; each is put together at a scrape, on the event loop, from
what the parts know then. Series per peer are bounded: with more than ``PEERS_TOLD`` peers only those that cannot be
reached have one, ``PEERS_TOLD`` at most; how many there are of each kind is told of all
(``pycni_fabric_probed_peers``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from pycni.agent.metrics import Registry, Sample
from pycni.agent.settings import Settings
from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint

if TYPE_CHECKING:
    from pycni.agent.health import Health
    from pycni.agent.network import NetworkComponent
    from pycni.agent.status_log import Recent
    from pycni.agent.vtep_probe import PeerProbe
    from pycni.model.lease import Lease
    from pycni.store import Store
    from pycni.view.fabric import PeerKey

COUNTER = "counter"
PEERS_TOLD = 100
PEER_LABELS = ("peer", "underlay", "family")
NetworkOf = Callable[[], "NetworkComponent | None"]


def follow_agent(registry: Registry, settings: Settings, health: Health, recent: Recent) -> None:
    """Who this agent is, what it complained of and what it set right."""
    info = registry.gauge(
        "pycni_node_info",
        "Always 1; the labels tell the node, its kernel and what runs in this agent.",
        ("node_name", "kernel", "components"),
    )
    info.set(
        1, node_name=settings.node_name, kernel=os.uname().release, components=",".join(settings.components)
    )

    def drift() -> list[Sample]:
        parts = {part: 0 for part, component in _REPAIRING.items() if component in settings.components}
        return [((part,), float(count)) for part, count in (parts | health.repaired_entries).items()]

    registry.callback(
        "pycni_drift_repaired_total",
        "Entries somebody else had changed in the kernel and that are set right, by part.",
        drift,
        labels=("part",),
        kind=COUNTER,
    )
    registry.callback(
        "pycni_log_messages_total",
        "Warnings and errors this agent has logged.",
        lambda: [((level,), float(count)) for level, count in recent.counts.items()],
        labels=("level",),
        kind=COUNTER,
    )


_REPAIRING = {"fabric": "network", "pods": "network", "proxy": "proxy", "policy": "policy"}
"""Parts that look for drift, with the component each belongs to."""


def follow_network(registry: Registry, network: NetworkOf, store: Store) -> None:
    """Leases, MTU, entries and peers of the pod network."""

    def told(make: Callable[[NetworkComponent], list[Sample]]) -> Callable[[], list[Sample]]:
        def read() -> list[Sample]:
            found = network()
            return [] if found is None or found.known is None else make(found)

        return read

    registry.callback(
        "pycni_network_info",
        "Always 1; the labels tell the backend and the underlay interface.",
        told(_network_info),
        labels=("backend", "underlay"),
    )
    registry.callback(
        "pycni_leases", "Nodes with a lease, this one too.", lambda: float(len(store.snapshot().of("lease")))
    )
    registry.callback("pycni_pod_mtu_bytes", "MTU pods get.", told(_pod_mtu))
    registry.callback("pycni_underlay_mtu_bytes", "MTU of the underlay interface.", told(_underlay_mtu))
    registry.callback(
        "pycni_fabric_entries",
        "Entries the pod network is to have in the kernel, by table.",
        told(_entries),
        labels=("table",),
    )

    def each(value: Callable[[PeerProbe], float | None]) -> Callable[[], list[Sample]]:
        return told(lambda found: peer_samples(found, store.snapshot().of("lease"), value))

    registry.callback(
        "pycni_fabric_peer_reachable",
        "1 when the peer answered the last question through the pod network, 0 when it did once but not now. "
        f"Of {PEERS_TOLD} peers; with more of them only those at 0.",
        each(lambda probe: None if probe.reachable is None else float(probe.reachable)),
        labels=PEER_LABELS,
    )
    registry.callback(
        "pycni_fabric_peer_latency_seconds",
        f"Round trip to the peer's agent through the pod network when last asked. Of {PEERS_TOLD} peers at most.",
        each(lambda probe: probe.rtt_s),
        labels=PEER_LABELS,
    )


def _network_info(network: NetworkComponent) -> list[Sample]:
    known = network.known
    conf, plan = (known.newest_conf, known.plan) if known is not None else (None, None)
    if conf is None:
        return []
    return [((conf.backend.type, plan.node.underlay.name if plan is not None else ""), 1.0)]


def _pod_mtu(network: NetworkComponent) -> list[Sample]:
    pods = network.known.pods if network.known is not None else None
    return [] if pods is None else [((), float(pods.mtu))]


def _underlay_mtu(network: NetworkComponent) -> list[Sample]:
    plan = network.known.plan if network.known is not None else None
    return [] if plan is None else [((), float(plan.node.underlay.mtu))]


def _entries(network: NetworkComponent) -> list[Sample]:
    compiler = network.known.compiler if network.known is not None else None
    if compiler is None:
        return []
    names = ("links", "routes", "neighbours", "fdb", "wireguard", "udp", "extension")
    return [((name,), float(len(getattr(compiler.tables, name)))) for name in names]


def peer_samples(
    network: NetworkComponent, leases: Mapping[str, Lease], value: Callable[[PeerProbe], float | None]
) -> list[Sample]:
    """A sample per peer that was asked, bounded as this module says."""
    probed = network.probes.peers if network.probes is not None else {}
    chosen: Iterable[tuple[PeerKey, PeerProbe]] = tuple(probed.items())
    if len(probed) > PEERS_TOLD:
        chosen = islice((item for item in chosen if item[1].reachable is False), PEERS_TOLD)
    found: list[Sample] = []
    for (name, family), probe in chosen:
        lease, number = leases.get(name), value(probe)
        subnet = lease.of(family) if lease is not None else None
        if lease is not None and subnet is not None and number is not None:
            public = lease.attrs.public(family) or lease.attrs.public_ip or lease.attrs.public_ipv6
            found.append(((str(subnet), str(public or ""), family.label), number))
    return found


class _Conf(msgspec.Struct, frozen=True):
    """What counts here of the network configuration an attachment was made with."""

    bridge: str = "cni0"


_conf = msgspec.json.Decoder(_Conf)


def devices(network: NetworkComponent | None, endpoints: Iterable[Endpoint]) -> Collection[str]:
    """The underlay interface, the devices between nodes and the pods' bridges."""
    found: set[str] = set()
    known = network.known if network is not None else None
    if known is not None and known.plan is not None:
        found.add(known.plan.node.underlay.name)
    if known is not None and known.compiler is not None:
        found |= set(known.compiler.tables.links)
    for endpoint in endpoints:
        if endpoint.attachment is AttachmentKind.BRIDGE:
            try:
                found.add(_conf.decode(endpoint.conf).bridge)
            except msgspec.DecodeError:
                continue  # a record without configuration: of an earlier version
    return found
