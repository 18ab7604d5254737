"""From objects and leases to a plan: what this node has to announce, and to whom. Pure.

Life: the component tells ``View`` which objects changed; services are resolved anew as far as they did, nodes' wishes
are decoded again when a Node changed; ``plan`` then puts everything together. Nodes are the Node objects where there
are any, else the leases (a network on etcd without Kubernetes): both name addresses and subnets.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from pycni.model.family import FAMILIES, Family, Network
from pycni.model.kube import NODE, SERVICE, KubeNode, Service
from pycni.model.lease import Lease
from pycni.model.service import NodeFacts
from pycni.view.service_index import ServiceIndex
from pycni.view.services import resolve
from pycni_bgp.annotations import NodeSettings, node_settings
from pycni_bgp.drain import reasons
from pycni_bgp.engine import Plan
from pycni_bgp.model import Local, Prefix
from pycni_bgp.neighbours import Neighbourhood, neighbours
from pycni_bgp.services import Announced, announced
from pycni_bgp.settings import BgpSettings


class Objects(Protocol):
    """The part of ``store.Snapshot`` and ``store.Current`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""


class Place(NamedTuple):
    """This node, by what is not in its object."""

    name: str
    addresses: tuple[bytes, ...] = ()
    """Of its underlay."""
    subnets: tuple[Network, ...] = ()
    """Its pods', when the agent runs the pod network too."""
    router_id: bytes = b""
    """As it is set; empty: by its address or name."""
    port: int = 179
    uplink: str = ""
    """Its external interface."""
    drained: bool = False
    """An operator has said so."""


class Draft(NamedTuple):
    """A plan with what the engine need not know."""

    plan: Plan
    neighbourhood: Neighbourhood
    withheld: Mapping[Prefix, str]
    """Addresses of services that nobody is told of, and why."""
    problems: tuple[str, ...]
    drained: tuple[str, ...] = ()
    """Why no services are announced."""


class View:
    """What one node announces. One thread at a time."""

    def __init__(self, settings: BgpSettings) -> None:
        self._settings = settings
        self._index = ServiceIndex()
        self._services: dict[str, Announced] = {}
        self._nodes: dict[str, NodeSettings] = {}
        self._complaints: dict[str, tuple[str, ...]] = {}

    def update(self, objects: Objects, changed: Mapping[str, set[str]] | None, facts: NodeFacts) -> None:
        """Take in what changed (``Tracker.take``; None: anything, the facts too)."""
        services: Mapping[str, Service] = objects.of(SERVICE)
        for key in self._index.update(objects, changed):
            service = services.get(key)
            self._services.pop(key, None)
            if service is not None:
                frontends = resolve(service, self._index.slices_of(key), facts).frontends
                found = announced(service, frontends, self._settings)
                if found != ({}, {}, ()):
                    withheld = {prefix: f"Service {key}: {why}" for prefix, why in found.withheld.items()}
                    self._services[key] = found._replace(withheld=withheld)
        nodes: Mapping[str, KubeNode] = objects.of(NODE)
        for name in set(nodes) | set(self._nodes) if changed is None else changed.get(NODE, ()):
            node = nodes.get(name)
            self._nodes.pop(name, None)
            self._complaints.pop(name, None)
            if node is not None:
                problems: list[str] = []
                self._nodes[name] = node_settings(node, problems)
                self._complaints[name] = tuple(problems)

    def plan(self, objects: Objects, leases: Mapping[str, Lease], place: Place) -> Draft:
        """Everything together."""
        own = self._own(place)
        others = self._nodes or _from_leases(leases, own)
        around = neighbours(self._settings, own, others)
        local, withheld, complaints = self._of_services()
        local.update({Prefix.of(item): Local("pod CIDR", f"node {own.name}") for item in own.pod_cidrs})
        drained = reasons(objects.of(NODE).get(place.name), self._settings, by_hand=place.drained)
        plan = Plan(
            router_id=place.router_id or _router_id(own),
            settings=self._settings,
            own=own,
            sessions=around.sessions,
            local=local,
            draining=bool(drained),
            port=place.port,
            uplink=place.uplink,
        )
        for prefix in withheld.keys() & local.keys():
            del withheld[prefix]
        problems = (*self._complaints.get(own.name, ()), *around.problems, *complaints)
        return Draft(plan, around, withheld, problems, drained)

    def _of_services(self) -> tuple[dict[Prefix, Local], dict[Prefix, str], list[str]]:
        """All together: announced, withheld, problems. Of several that want an address the first has it.

        Walked through for every change of any of thousands: nothing is worked out here.
        """
        local: dict[Prefix, Local] = {}
        withheld: dict[Prefix, str] = {}
        problems: list[str] = []
        services = self._services
        for key in sorted(services, reverse=True):
            announced_here, not_announced, complaints = services[key]
            local.update(announced_here)
            if not_announced:
                withheld.update(not_announced)
            if complaints:
                problems[:0] = complaints
        return local, withheld, problems

    def _own(self, place: Place) -> NodeSettings:
        """This node: what its object says, else its underlay; the subnets its pods really have."""
        found = self._nodes.get(place.name) or NodeSettings(name=place.name)
        return msgspec.structs.replace(
            found,
            addresses=found.addresses or place.addresses,
            pod_cidrs=place.subnets or found.pod_cidrs,
        )


def _from_leases(leases: Mapping[str, Lease], own: NodeSettings) -> dict[str, NodeSettings]:
    """A node per lease, named by it; this node's own is left out."""
    found = {}
    for key, lease in leases.items():
        public = (lease.attrs.public(family) for family in FAMILIES)
        addresses = tuple(item.packed for item in public if item is not None)
        subnets = tuple(net for family in FAMILIES if (net := lease.of(family)) is not None)
        if not set(addresses) & set(own.addresses):
            found[key] = NodeSettings(name=key, addresses=addresses, pod_cidrs=subnets)
    return found


def _router_id(own: NodeSettings) -> bytes:
    """The node's first IPv4 address; where it has none, four bytes of its name's checksum."""
    for address in own.addresses:
        if Family.of_packed(address) is Family.V4:
            return address
    return ipaddress.IPv4Address(zlib.crc32(own.name.encode()) or 1).packed
