"""What a node's frontends do to a packet: the evaluator on the resolved value. Pure.

Life: tests hold it against ``service_oracle``, which reads the objects themselves, and against each data plane's own
evaluator, which reads compiled tables; ``pycnictl`` can tell with it where a connection would go. It looks through all
frontends, so it is for single questions.

Where a packet is taken for: a virtual address and port; else a node port, at the node-port addresses of the node (all
addresses inside ``node_port_ranges`` are taken for addresses of this node); else, at a cluster IP with other ports, a
refusal; else, inside the service network, silence; else it is nobody's business here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from pycni.model.family import Family, Network
from pycni.model.service import (
    UNTOUCHED,
    Decision,
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Packet,
    Pool,
    Target,
    Verdict,
)


def decide_frontends(frontends: Iterable[Frontend], facts: NodeFacts, packet: Packet) -> Decision:
    """What becomes of a first packet. Of each key there may be one frontend only."""
    family = Family.of_packed(packet.destination)
    exact = FrontendKey(family, packet.destination, packet.protocol, packet.port)
    at_node = FrontendKey(family, b"", packet.protocol, packet.port)
    node_port: Frontend | None = None
    cluster_ip = False
    for frontend in frontends:
        if frontend.key == exact:
            return decide_frontend(frontend, facts, packet)
        if frontend.key == at_node:
            node_port = frontend
        cluster_ip |= frontend.kind is Kind.CLUSTER_IP and frontend.key.address == packet.destination
    if node_port is not None and serves_node_ports(packet.destination, facts):
        return decide_frontend(node_port, facts, packet)
    if cluster_ip:
        return Decision(Verdict.REJECT, frozenset())
    if within(packet.destination, facts.service_networks):
        return Decision(Verdict.DROP, frozenset())
    return UNTOUCHED


def decide_frontend(frontend: Frontend, facts: NodeFacts, packet: Packet) -> Decision:
    """What a frontend does to a first packet that meets it."""
    if not _admitted(frontend, facts, packet):
        return Decision(Verdict.DROP, frozenset())
    pool = pool_for(frontend, facts, packet)
    if not pool.targets:
        return Decision(pool.empty, frozenset())
    rewritten = [target for target in pool.targets if masqueraded(frontend, target, facts, packet)]
    return Decision(None, frozenset(pool.targets), frozenset(rewritten))


def pool_for(frontend: Frontend, facts: NodeFacts, packet: Packet) -> Pool:
    """The pool a packet's source entitles it to."""
    if frontend.inside is not None and (packet.from_node or within(packet.source, facts.cluster_networks)):
        return frontend.inside
    return frontend.pool


def masqueraded(frontend: Frontend, target: Target, facts: NodeFacts, packet: Packet) -> bool:
    """Whether the source is rewritten on the way to a target. Direct server return keeps every source."""
    if frontend.options.dsr:
        return False
    if target.local and target.address == packet.source:
        return True
    if frontend.kind is Kind.CLUSTER_IP:
        if facts.masquerade_all:
            return True
        family = Family.of_packed(packet.source)
        known = [network for network in facts.cluster_networks if Family.of(network) is family]
        return bool(known) and not within(packet.source, known)
    return packet.from_node if frontend.local_only else True


def serves_node_ports(address: bytes, facts: NodeFacts) -> bool:
    """Whether node ports are served at an address of this node."""
    if facts.node_port_ranges:
        loopback = ipaddress.ip_address(address).is_loopback
        return not loopback and within(address, facts.node_port_ranges)
    return address in facts.addresses


def within(address: bytes, networks: Collection[Network]) -> bool:
    """Whether a packed address is inside one of the networks."""
    if not networks:
        return False
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in networks)


def _admitted(frontend: Frontend, facts: NodeFacts, packet: Packet) -> bool:
    """Source ranges; what the node sends itself may come from its virtual address, so its own address counts too."""
    ranges = frontend.source_ranges
    if ranges is None or within(packet.source, ranges):
        return True
    return packet.from_node and any(within(address, ranges) for address in facts.addresses)
