"""What one Service means for one node. Pure: the same objects and facts give the same frontends, in any order.

Life: the engine hands over a changed Service with its EndpointSlices; ``resolve`` applies kube-proxy's rules (which
endpoints take traffic, traffic policies, families, verdicts) and kube-router's annotations, and gives frontends for a
data plane, the health-check port to answer, and in words what cannot be honoured. BGP and ``pycnictl services`` read
the same value.

    service_addresses   at which addresses: cluster IP, external IPs, load balancer, source ranges
    service_endpoints   which endpoints: ready, draining, here, near
    service_options     kube-router's annotations, affinity
    service_frontends   the two together
    service_index       which slices belong to which service
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES, EndpointSlice, Service, ServicePortSpec
from pycni.model.service import Frontend, FrontendKey, HealthCheck, NodeFacts, Resolved
from pycni.view.service_addresses import HEADLESS, addresses, source_ranges
from pycni.view.service_endpoints import Choice, addresses_of, candidates, ready_here
from pycni.view.service_frontends import plan, port_frontends
from pycni.view.service_index import ServiceIndex
from pycni.view.service_options import wishes

__all__ = ["ServiceIndex", "resolve"]

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
_NOTHING = Resolved()


def resolve(service: Service, slices: Sequence[EndpointSlice], facts: NodeFacts) -> Resolved:
    """Resolve one Service for one node.

    ``slices``: all EndpointSlices of the service, in any order. A Service that is not for this proxy (headless,
    ExternalName, another service-proxy-name, no cluster IP yet) gives nothing. Malformed values of the objects are
    problems, never errors.
    """
    if not _served(service, facts):
        return _NOTHING
    problems: list[str] = []
    wanted = wishes(service, problems)
    mine = addresses(service, facts, problems, skip_load_balancer=wanted.skip_load_balancer)
    if not mine:
        return Resolved(problems=tuple(problems)) if problems else _NOTHING
    ranges = source_ranges(service, problems) if service.type == "LoadBalancer" else None
    common = plan(service, wanted, ranges)
    ports = _ports(service, problems)
    found: dict[FrontendKey, Frontend] = {}
    here, changed = 0, 0.0
    for family, at in mine.items():
        pieces = _pieces(slices, family, facts)
        packs = addresses_of(pieces, problems)
        for port in ports:
            choice = Choice(candidates(pieces, packs, port, facts, service.traffic_distribution), facts)
            for frontend in port_frontends(common, port, at, choice, problems):
                found.setdefault(frontend.key, frontend)
        here += ready_here(pieces, packs, facts) if service.health_check_node_port else 0
        changed = max([changed, *[piece.changed for piece in pieces]])
    check = None
    if service.type == "LoadBalancer" and service.external_local and service.health_check_node_port:
        check = HealthCheck(service.health_check_node_port, service.meta.namespace, service.meta.name, here)
    return Resolved(
        frontends=tuple(found.values()), health_check=check, changed=changed, problems=tuple(problems)
    )


def _served(service: Service, facts: NodeFacts) -> bool:
    """Whether kube-proxy would serve it."""
    if service.type == "ExternalName" or not service.cluster_ips or HEADLESS in service.cluster_ips:
        return False
    labels = service.meta.labels
    return not labels or (HEADLESS_LABEL not in labels and _ours(labels, facts))


def _ours(labels: Mapping[str, str], facts: NodeFacts) -> bool:
    """Objects that name a proxy are for that one; those that name none are for everybody."""
    named = labels.get(PROXY_NAME_LABEL)
    return named is None or (bool(named) and named == facts.proxy_name)


def _pieces(slices: Sequence[EndpointSlice], family: Family, facts: NodeFacts) -> list[EndpointSlice]:
    """The slices of one family that count."""
    return [
        piece
        for piece in slices
        if piece.family is family and not piece.headless and _ours(piece.meta.labels, facts)
    ]


def _ports(service: Service, problems: list[str]) -> Sequence[ServicePortSpec]:
    """The ports to serve; of two with the same number and protocol the first one."""
    if len(service.ports) < 2:
        return service.ports
    found: dict[tuple[int, int], ServicePortSpec] = {}
    for port in service.ports:
        if found.setdefault((port.protocol, port.port), port) is not port:
            label = PROTOCOL_NAMES.get(port.protocol, str(port.protocol))
            problems.append(f"spec.ports {port.port}/{label}: given twice, the first one counts")
    return tuple(found.values())
