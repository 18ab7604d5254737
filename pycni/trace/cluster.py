"""What a cluster's objects do to packets: Services, policies and masquerading, by what the API's text says. Pure.

Life: made for one question from the objects, as a source has them, and from what differs between nodes. The answers
come from the oracles (``view/service_oracle``, ``view/policy_oracle``), which share no code with what is compiled: a
trace does not repeat a compiler's mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, Protocol

from pycni.backends.masq import NEVER, Masquerade
from pycni.model.family import Family
from pycni.model.kube import ENDPOINT_SLICE, SERVICE, Service
from pycni.model.service import NodeFacts, Packet, Verdict
from pycni.trace.model import Flow
from pycni.trace.ways import Judged, Turn
from pycni.view.policy_oracle import verdict
from pycni.view.service_oracle import decide


class Objects(Protocol):
    """The part of ``store.Snapshot`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""


class NodeTerms(NamedTuple):
    """What differs between nodes."""

    facts: NodeFacts | None = None
    """For Services; None: this node serves none."""
    policies: bool = False
    """Whether this node judges by policies."""
    masquerades: tuple[Masquerade, ...] = ()


class ClusterWays:
    """See ``ways.Ways``."""

    def __init__(
        self, objects: Objects, terms: Mapping[str, NodeTerms], target: tuple[bytes, int] | None = None
    ) -> None:
        """``target``: the endpoint that is known to have been chosen, where there is a choice."""
        self._objects, self._terms, self._target = objects, terms, target
        self._turns: dict[tuple[str, Flow, str], Turn | None] = {}

    def service(self, node: str, flow: Flow, came: str) -> Turn | None:
        """See ``ways.Ways``: one of the endpoints, the others named as possible."""
        # The wanted and the actual world ask the same, and the oracle looks at every Service.
        asked = (node, flow, came)
        if asked not in self._turns:
            self._turns[asked] = self._turn(node, flow, came)
        return self._turns[asked]

    def _turn(self, node: str, flow: Flow, came: str) -> Turn | None:
        facts = self._terms[node].facts if node in self._terms else None
        if facts is None:
            return None
        packet = Packet(
            flow.source,
            flow.source_port,
            flow.destination,
            flow.protocol,
            flow.destination_port,
            came == "node",
        )
        services = self._objects.of(SERVICE)
        decision = decide(services, self._objects.of(ENDPOINT_SLICE), facts, packet)
        name = service_name(services, flow) or "no Service"
        if decision.verdict is not None:
            return Turn(name, None, refused=decision.verdict is Verdict.REJECT)
        if not decision.targets:
            return None
        found = sorted((target.address, target.port) for target in decision.targets)
        chosen = self._target if self._target in found else found[0]
        others = tuple(item for item in found if item != chosen)
        hidden = any((target.address, target.port) == chosen for target in decision.masqueraded)
        how = f"one of {len(found)} endpoints" if others else "its only endpoint"
        return Turn(name, chosen, masquerade=hidden, others=others, how=how)

    def policy(self, node: str, flow: Flow) -> Sequence[Judged]:
        """See ``ways.Ways``: egress where the sender is, ingress where the receiver is."""
        if node not in self._terms or not self._terms[node].policies:
            return ()
        said = verdict(self._objects, flow.source, flow.destination, flow.protocol, flow.destination_port)
        owners = {address: name for name, addresses in self._pods(node) for address in addresses}
        found = []
        for side, address in ((said.egress, flow.source), (said.ingress, flow.destination)):
            if address in owners and (side.policies or not side.allowed):
                found.append(Judged(side.allowed, str(side)))
        return found

    def _pods(self, node: str) -> list[tuple[str, list[bytes]]]:
        return [
            (key, [ip_address(text).packed for text in pod.ips])
            for key, pod in self._objects.of("Pod").items()
            if pod.node == node and not pod.host_network
        ]

    def masquerade(self, node: str, flow: Flow) -> bool:
        """See ``ways.Ways``: chain ``postrouting`` of ``backends/masq``."""
        terms = self._terms.get(node)
        source, destination = ip_address(flow.source), ip_address(flow.destination)
        family = Family.of(source)
        for masq in terms.masquerades if terms is not None else ():
            if Family.of(masq.cluster) is not family:
                continue
            inside, to_cluster = source in masq.cluster, destination in masq.cluster
            if (source in masq.own and to_cluster) or destination in masq.own:
                return False
            kept = [
                *map(ip_network, NEVER[family]),
                *(net for net in masq.exclude if Family.of(net) is family),
            ]
            if inside and any(destination in net for net in kept):
                return False
            return inside or to_cluster
        return False


def service_name(services: Mapping[str, Service], flow: Flow) -> str:
    """``namespace/name:port`` of the Service a packet is for, by address or node port; "" when it is nobody's."""
    destination = str(ip_address(flow.destination))
    for key in sorted(services):
        service = services[key]
        addresses = {*service.cluster_ips, *service.external_ips, *(item.ip for item in service.ingress)}
        for port in service.ports:
            if port.protocol != flow.protocol:
                continue
            named = f"{key}:{port.name}" if port.name else key
            if destination in {str(address) for address in addresses} and port.port == flow.destination_port:
                return named
            if port.node_port and port.node_port == flow.destination_port and destination not in addresses:
                return f"{named} (node port)"
    return ""
