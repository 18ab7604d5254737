"""Which endpoints of one service port take traffic on one node. Pure; part of ``services``.

Life: the EndpointSlices of a service, one family at a time, become ``Candidate`` values (address, port and conditions,
duplicates merged); ``Choice`` turns those into pools of targets by the rules of kube-proxy (its topology.go): Cluster
and Local traffic are judged apart; ready endpoints, else those that still serve while they terminate; hints narrow
Cluster traffic to this node or this zone.

The result does not depend on the order of slices or endpoints. An address that several slices list counts once, with
the best of its conditions and all of its hints (the slices of a pod on its way from one slice to another disagree for a
moment).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from pycni.model.kube import EndpointSlice, ServicePortSpec, SliceEndpoint
from pycni.model.service import NodeFacts, Pool, Target, Verdict

_NOBODY = Pool()
_ELSEWHERE = Pool(empty=Verdict.DROP)
PREFER_SAME_NODE = "PreferSameNode"
DISTRIBUTIONS = frozenset({"PreferClose", "PreferSameZone", PREFER_SAME_NODE})
"""Values of spec.trafficDistribution."""


def packed(text: str) -> bytes:
    """An address in network byte order. Raises ValueError for what is none. Several times as fast as ``ipaddress``."""
    if ":" in text:
        return IPv6Address(text).packed
    address = bytes(map(int, text.split(".")))
    if len(address) != 4:
        raise ValueError(f"{text!r} is not an address")
    return address


class Candidate(NamedTuple):
    """One endpoint of a service port: a possible target and what decides on it."""

    target: Target
    ready: bool
    draining: bool
    """Not ready, terminating and still serving."""
    nodes: tuple[str, ...]
    """Nodes it is hinted for."""
    zones: tuple[str, ...]
    """Zones it is hinted for."""


def addresses_of(slices: Iterable[EndpointSlice], problems: list[str]) -> dict[str, bytes]:
    """All endpoints' addresses packed, by their text: parsed once, and one object for all ports.

    What is no address of the slice's family is a problem line, and its endpoint is not found later on.
    """
    found: dict[str, bytes] = {}
    for piece in slices:
        length = piece.family.bits // 8
        for endpoint in piece.endpoints:
            text = endpoint.address
            try:
                address = packed(text)
            except ValueError:
                address = b""
            if len(address) == length:
                found[text] = address
            else:
                problems.append(
                    f"EndpointSlice {piece.meta.key}: endpoints.addresses {text!r}:"
                    f" not an {piece.family.label} address"
                )
    return found


def candidates(
    slices: Sequence[EndpointSlice],
    addresses: Mapping[str, bytes],
    port: ServicePortSpec,
    facts: NodeFacts,
    distribution: str,
) -> list[Candidate]:
    """The endpoints of one port, of slices of one family, each address and port once, in any order.

    ``addresses`` is from ``addresses_of``.

    A port of a slice is the service's when name and protocol are equal; one without a number is passed over, as in
    kube-proxy. ``distribution``: spec.trafficDistribution. The API server's controller turns it into hints; for slices
    of others, without any hint, the endpoint's own zone and node take their place.
    """
    derive = distribution in DISTRIBUTIONS and not any(
        endpoint.hint_zones or endpoint.hint_nodes for piece in slices for endpoint in piece.endpoints
    )
    node = facts.name
    found: dict[tuple[bytes, int], Candidate] = {}
    for piece in slices:
        for slice_port in piece.ports:
            if slice_port.name != port.name or slice_port.protocol != port.protocol or not slice_port.port:
                continue
            number = slice_port.port
            for endpoint in piece.endpoints:
                ready = endpoint.ready
                draining = not ready and endpoint.serving and endpoint.terminating
                address = addresses.get(endpoint.address)
                if address is None or not (ready or draining):
                    continue
                hints = (endpoint.hint_nodes, endpoint.hint_zones)
                if derive:
                    hints = _derived(endpoint, distribution)
                one = Candidate(Target(address, number, endpoint.node == node), ready, draining, *hints)
                key = (address, number)
                found[key] = _merged(found[key], one) if key in found else one
    return list(found.values())


def _derived(endpoint: SliceEndpoint, distribution: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hints (nodes, zones) the EndpointSlice controller would give."""
    zones = (endpoint.zone,) if endpoint.zone else ()
    if distribution == PREFER_SAME_NODE and endpoint.node:
        return (endpoint.node,), zones
    return (), zones


def _merged(one: Candidate, other: Candidate) -> Candidate:
    """Two entries for the same address and port."""
    ready = one.ready or other.ready
    return Candidate(
        one.target._replace(local=one.target.local or other.target.local),
        ready,
        not ready,
        tuple(sorted({*one.nodes, *other.nodes})),
        tuple(sorted({*one.zones, *other.zones})),
    )


class Choice:
    """The pools of one service port and family. Each is made once, when first asked for."""

    __slots__ = ("_cluster", "_facts", "_found", "_local")

    def __init__(self, found: Sequence[Candidate], facts: NodeFacts) -> None:
        self._found = found
        self._facts = facts
        self._cluster: Pool | None = None
        self._local: Pool | None = None

    @property
    def cluster(self) -> Pool:
        """The targets of Cluster traffic; without any, clients are told so."""
        if self._cluster is None:
            ready = [item for item in self._found if item.ready]
            if ready:
                ready = _near(ready, self._facts)
            self._cluster = _pool(ready, self._found, _NOBODY)
        return self._cluster

    @property
    def local(self) -> Pool:
        """The targets of Local traffic. Silence when there are endpoints, but elsewhere."""
        if self._local is None:
            here = [item for item in self._found if item.target.local]
            nobody = _ELSEWHERE if self._found else _NOBODY
            self._local = _pool([item for item in here if item.ready], here, nobody)
        return self._local


def _pool(ready: Iterable[Candidate], found: Sequence[Candidate], nobody: Pool) -> Pool:
    """Ready targets with the draining ones beside them, else those that drain, else ``nobody``."""
    targets = sorted([item.target for item in ready])
    draining = sorted([item.target for item in found if item.draining])
    if targets:
        return Pool(tuple(targets), tuple(draining))
    return Pool(tuple(draining)) if draining else nobody


def _near(ready: list[Candidate], facts: NodeFacts) -> list[Candidate]:
    """Those of the ready endpoints that hints allow here: of this node, else of this zone, else all."""
    if all(item.nodes for item in ready):
        near = [item for item in ready if facts.name in item.nodes]
        if near:
            return near
    if facts.zone and all(item.zones for item in ready):
        near = [item for item in ready if facts.zone in item.zones]
        if near:
            return near
    return ready


def ready_here(slices: Iterable[EndpointSlice], addresses: Mapping[str, bytes], facts: NodeFacts) -> int:
    """Ready endpoints on this node in slices of one family, whatever their ports; each address counts once."""
    return len(
        {
            endpoint.address
            for piece in slices
            for endpoint in piece.endpoints
            if endpoint.ready and endpoint.node == facts.name and endpoint.address in addresses
        }
    )
