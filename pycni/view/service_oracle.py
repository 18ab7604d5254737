"""What Kubernetes' API says becomes of a packet: the yardstick for ``resolve``, the compilers and the kernel. Pure.

Life: tests ask ``decide`` about one packet at a time. It starts from the packet and reads the objects as they are, so
it shares no code with the view; it is slow and plain on purpose. Sources: the API reference (v1 Service, discovery/v1
EndpointSlice), kubernetes.io "Virtual IPs and Service Proxies" and "Service", kube-proxy's topology.go for the order of
fallbacks, kube-router's user guide for its annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from pycni.model.family import Address, Family
from pycni.model.kube import EndpointSlice, Service, ServicePortSpec, SliceEndpoint
from pycni.model.service import UNTOUCHED, Decision, Kind, NodeFacts, Packet, Target, Verdict

Services = Mapping[str, Service]
Slices = Mapping[str, EndpointSlice]
_Where = tuple[Address, int]
_REJECT = Decision(Verdict.REJECT, frozenset())
_DROP = Decision(Verdict.DROP, frozenset())


class _Door(NamedTuple):
    """One way into a service."""

    kind: Kind
    address: Address | None
    """None: any node-port address."""
    family: Family
    protocol: int
    number: int
    service: Service
    port: ServicePortSpec


def decide(services: Services, slices: Slices, facts: NodeFacts, packet: Packet) -> Decision:
    """What this node does to the first packet of a connection.

    Of several services that want the same address and port the one created first has it, of equally old ones that with
    the smaller ``namespace/name``.
    """
    destination = ip_address(packet.destination)
    doors = [door for key in _by_age(services) for door in _doors(services[key], facts)]
    owned: dict[tuple[object, ...], _Door] = {}
    for door in doors:
        owned.setdefault((door.family, door.address, door.protocol, door.number), door)
    family = Family.of(destination)
    found = owned.get((family, destination, packet.protocol, packet.port))
    if found is None and _is_node_port_address(destination, facts):
        found = owned.get((family, None, packet.protocol, packet.port))
    if found is not None:
        return _enter(found, slices, facts, packet)
    if any(door.kind is Kind.CLUSTER_IP and door.address == destination for door in owned.values()):
        return _REJECT
    if any(destination in network for network in facts.service_networks):
        return _DROP
    return UNTOUCHED


def _by_age(services: Services) -> list[str]:
    return sorted(services, key=lambda key: (services[key].meta.created, key))


# --- ways in -------------------------------------------------------------------------------------------------


def _doors(service: Service, facts: NodeFacts) -> Iterator[_Door]:
    """Every address and port a service is to be reached at on this node."""
    if service.type == "ExternalName" or "None" in service.cluster_ips:
        return
    if "service.kubernetes.io/headless" in service.meta.labels or _somebody_elses(service.meta.labels, facts):
        return
    own = [ip_address(text) for text in service.cluster_ips]
    own = [address for address in own if not service.families or Family.of(address) in service.families]
    own = [address for address in own if Family.of(address) in facts.families]
    families = {Family.of(address) for address in own}
    numbers: set[tuple[int, int]] = set()
    for port in service.ports:
        if (port.protocol, port.port) in numbers:
            continue
        numbers.add((port.protocol, port.port))
        seen: set[Family] = set()
        for address in own:
            if Family.of(address) not in seen:
                seen.add(Family.of(address))
                yield _door(Kind.CLUSTER_IP, address, service, port)
        if service.type in {"NodePort", "LoadBalancer"} and port.node_port:
            for family in families:
                yield _Door(Kind.NODE_PORT, None, family, port.protocol, port.node_port, service, port)
        for address in _load_balancers(service):
            if Family.of(address) in families:
                yield _door(Kind.LOAD_BALANCER, address, service, port)
        for address in map(ip_address, service.external_ips):
            if Family.of(address) in families and _external_ip_allowed(address, service, facts):
                yield _door(Kind.EXTERNAL_IP, address, service, port)


def _door(kind: Kind, address: Address, service: Service, port: ServicePortSpec) -> _Door:
    return _Door(kind, address, Family.of(address), port.protocol, port.port, service, port)


def _somebody_elses(labels: Mapping[str, str], facts: NodeFacts) -> bool:
    """Label service-proxy-name: "Kube-proxy ignores Services with this label"; ours are those with our name."""
    label = "service.kubernetes.io/service-proxy-name"
    return label in labels and (not facts.proxy_name or labels[label] != facts.proxy_name)


def _load_balancers(service: Service) -> list[Address]:
    """Addresses of type VIP, unless kube-router's annotation leaves them to somebody else."""
    if service.type != "LoadBalancer" or _annotated(service, "skiplbips"):
        return []
    return [ip_address(ingress.ip) for ingress in service.ingress if not ingress.proxy]


def _external_ip_allowed(address: Address, service: Service, facts: NodeFacts) -> bool:
    """Nobody's cluster IP and routable; and, unless all are allowed, listed, not a node's and not a pod's."""
    if address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified:
        return False
    if str(address) in service.cluster_ips or any(address in network for network in facts.service_networks):
        return False
    if facts.any_external_ip:
        return True
    taken = address.packed in facts.addresses or any(address in network for network in facts.cluster_networks)
    return not taken and any(address in network for network in facts.external_ip_ranges)


def _is_node_port_address(address: Address, facts: NodeFacts) -> bool:
    if not facts.node_port_ranges:
        return address.packed in facts.addresses
    return not address.is_loopback and any(address in network for network in facts.node_port_ranges)


def _annotated(service: Service, name: str) -> bool:
    return service.meta.annotations.get(f"kube-router.io/service.{name}", "false") in {"", "true"}


# --- through a door ------------------------------------------------------------------------------------------


def _enter(door: _Door, slices: Slices, facts: NodeFacts, packet: Packet) -> Decision:
    """Source ranges, then the traffic policy's endpoints, then whose address the endpoint sees."""
    if door.kind is Kind.LOAD_BALANCER and not _source_allowed(door, facts, packet):
        return _DROP
    local_only = _local_only(door)
    from_inside = packet.from_node or _is_pod(packet.source, facts)
    short_circuit = local_only and door.kind is not Kind.CLUSTER_IP and from_inside
    everywhere = _Endpoints(door, slices, facts)
    if local_only and not short_circuit:
        chosen = everywhere.local_policy()
        if not chosen:
            return _DROP if everywhere.usable() else _REJECT
    else:
        chosen = everywhere.cluster_policy()
        if not chosen:
            return _REJECT
    targets = frozenset(everywhere.target(where) for where in chosen)
    direct = _direct_return(door, everywhere, local_only=local_only)
    rewritten = () if direct else (item for item in targets if _rewritten(item, door, facts, packet))
    return Decision(None, targets, frozenset(rewritten))


def _source_allowed(door: _Door, facts: NodeFacts, packet: Packet) -> bool:
    """Field loadBalancerSourceRanges; the node itself counts by its address, whatever source the kernel picked."""
    if not door.service.source_ranges:
        return True
    sources = [ip_address(packet.source)]
    if packet.from_node:
        same_family = [address for address in facts.addresses if len(address) == len(packet.source)]
        sources += map(ip_address, same_family)
    ranges = [ip_network(text, strict=False) for text in door.service.source_ranges]
    return any(source in network for source in sources for network in ranges)


def _local_only(door: _Door) -> bool:
    if _annotated(door.service, "local"):
        return True
    return door.service.internal_local if door.kind is Kind.CLUSTER_IP else door.service.external_local


def _is_pod(source: bytes, facts: NodeFacts) -> bool:
    return any(ip_address(source) in network for network in facts.cluster_networks)


def _rewritten(target: Target, door: _Door, facts: NodeFacts, packet: Packet) -> bool:
    if target.local and target.address == packet.source:
        return True  # or it would answer itself past the translation
    if door.kind is not Kind.CLUSTER_IP:
        return packet.from_node or not _local_only(door)
    if facts.masquerade_all:
        return True
    version = ip_address(packet.source).version
    knows_pods = any(network.version == version for network in facts.cluster_networks)
    return knows_pods and not _is_pod(packet.source, facts)


def _direct_return(door: _Door, endpoints: _Endpoints, *, local_only: bool) -> bool:
    """kube-router's dsr: for addresses from outside, and only when no port has to be translated."""
    if door.kind not in {Kind.EXTERNAL_IP, Kind.LOAD_BALANCER}:
        return False
    if door.service.meta.annotations.get("kube-router.io/service.dsr") != "tunnel":
        return False
    all_chosen = endpoints.cluster_policy() | (endpoints.local_policy() if local_only else set())
    return all(port == door.port.port for _, port in all_chosen)


class _Endpoints:
    """The endpoints behind one door: every (address, port) with all entries the slices have for it."""

    def __init__(self, door: _Door, slices: Slices, facts: NodeFacts) -> None:
        self._facts = facts
        self._entries: dict[_Where, list[SliceEndpoint]] = {}
        self._distribution = door.service.traffic_distribution
        self._hinted = False
        for piece in slices.values():
            if piece.service != door.service.meta.key or piece.family != door.family or piece.headless:
                continue
            if _somebody_elses(piece.meta.labels, facts):
                continue
            self._hinted |= any(item.hint_nodes or item.hint_zones for item in piece.endpoints)
            self._read(piece, door.port)

    def _read(self, piece: EndpointSlice, wanted: ServicePortSpec) -> None:
        for port in piece.ports:
            if port.port and (port.name, port.protocol) == (wanted.name, wanted.protocol):
                for item in piece.endpoints:
                    where = (ip_address(item.address), port.port)
                    self._entries.setdefault(where, []).append(item)

    def ready(self) -> set[_Where]:
        """Ready by any of its entries."""
        return {where for where, items in self._entries.items() if any(item.ready for item in items)}

    def going(self) -> set[_Where]:
        """Not ready, but terminating and still serving."""
        able = {
            where
            for where, items in self._entries.items()
            if any(item.serving and item.terminating and not item.ready for item in items)
        }
        return able - self.ready()

    def usable(self) -> bool:
        """Whether there is anybody anywhere."""
        return bool(self.ready() or self.going())

    def cluster_policy(self) -> set[_Where]:
        """Ready ones, near ones first; else those on their way out."""
        ready = self.ready()
        if not ready:
            return self.going()
        for mine, hints in ((self._facts.name, self._node_hints), (self._facts.zone, self._zone_hints)):
            near = {where for where in ready if mine in hints(where)}
            if mine and near and all(hints(where) for where in ready):
                return near
        return ready

    def local_policy(self) -> set[_Where]:
        """The same among endpoints of this node, without hints."""
        return {where for where in self.ready() if self.is_local(where)} or {
            where for where in self.going() if self.is_local(where)
        }

    def is_local(self, where: _Where) -> bool:
        """Whether it runs on this node."""
        return any(item.node == self._facts.name for item in self._usable_entries(where))

    def target(self, where: _Where) -> Target:
        """As data planes have it."""
        return Target(where[0].packed, where[1], self.is_local(where))

    def _usable_entries(self, where: _Where) -> Sequence[SliceEndpoint]:
        return [item for item in self._entries[where] if item.ready or (item.serving and item.terminating)]

    def _node_hints(self, where: _Where) -> set[str]:
        items = self._usable_entries(where)
        if self._hinted or self._distribution != "PreferSameNode":
            return {name for item in items for name in item.hint_nodes}
        return {item.node for item in items if item.node}

    def _zone_hints(self, where: _Where) -> set[str]:
        items = self._usable_entries(where)
        known = {"PreferClose", "PreferSameZone", "PreferSameNode"}
        if self._hinted or self._distribution not in known:
            return {name for item in items for name in item.hint_zones}
        return {item.zone for item in items if item.zone}
