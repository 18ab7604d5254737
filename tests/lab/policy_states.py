"""From a step of a case to objects, and from objects to truth: what oracle and compiled values say of every shot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol

from pycni.model.family import Family
from pycni.policy.base import Packet
from pycni.policy.ebpf.compile import Maps
from pycni.policy.nft.compile import NftCompiler
from pycni.reconcile.ledger import Ledger
from pycni.view.policies import KINDS, PolicyView
from pycni.view.policy_oracle import verdict
from pycni.view.policy_stages import ABSENT, RowDiff
from pycni.wire.kube import from_mapping
from tests.lab.policy_build import Address, Step, resolved
from tests.lab.policy_world import NODES, PODS, PORTS, SPACES, Mappings, node_of, pod_object, space_object


class Way(NamedTuple):
    """A connection between two pods."""

    source: str
    target: str
    family: Family
    protocol: int
    port: int


def ways(families: Iterable[Family] = tuple(Family)) -> list[Way]:
    return [
        Way(source, target, family, protocol, number)
        for source in PODS
        for target in PODS
        if source != target
        for family in families
        for protocol, number in PORTS
    ]


class Objects:
    """Decoded objects, as ``store.Snapshot`` has them."""

    def __init__(self, manifests: Iterable[Mappings]) -> None:
        self.held: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for value in manifests:
            found = from_mapping(value)
            assert found is not None, value
            self.held[found[0]][found[1].meta.key] = found[1]

    def of(self, kind: str) -> Mapping[str, Any]:
        return self.held[kind]

    def frozen(self) -> Objects:
        return self


def address_without_lab(pod: str, family: Family) -> str:
    node, number = NODES.index(node_of(pod)) + 1, PODS.index(pod) + 2
    return f"10.244.{node}.{number}" if family is Family.V4 else f"fd00:10:244:{node}::{number:x}"


def manifests_without_lab(step: Step) -> list[Mappings]:
    """All objects of a step where there is no lab to give out addresses."""
    found = [_node(name) for name in NODES]
    found += [space_object(name, step.spaces.get(name)) for name in SPACES]
    for pod in PODS:
        value = labelled(pod_object(pod), step.pods.get(pod))
        ips = [{"ip": address_without_lab(pod, family)} for family in Family]
        found.append({**value, "status": {"phase": "Running", "podIPs": ips}})
    return found + policies_of(step, address_without_lab)


def policies_of(step: Step, address: Address) -> list[Mappings]:
    return [resolved(item, address) for item in step.policies]


def labelled(value: Mappings, labels: Mapping[str, str] | None) -> Mappings:
    if labels is None:
        return value
    return {**value, "metadata": {**value["metadata"], "labels": dict(labels)}}


def _node(name: str) -> Mappings:
    number = NODES.index(name) + 1
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": f"172.20.0.{number}"}]},
    }


class Oracle:
    """What the API text says."""

    def __init__(self, objects: Objects, address: Address) -> None:
        self._objects, self._address = objects, _packed(address)

    def allowed(self, way: Way) -> bool:
        return self.told(way).allowed

    def told(self, way: Way) -> Any:
        source, target = self._address(way.source, way.family), self._address(way.target, way.family)
        return verdict(self._objects, source, target, way.protocol, way.port)


class Decider(Protocol):
    """Compiled tables of one node."""

    def allows(self, packet: Packet) -> bool: ...


class NftNode:
    """One node's compiled nftables rows, without a kernel."""

    compiler = NftCompiler()

    def __init__(self, name: str, objects: Objects) -> None:
        self._ledger = Ledger(self.compiler.tables, self.compiler.shared)
        self._ledger.put(self.compiler.common())
        for row in PolicyView(name).update(objects):
            if row.after is not ABSENT:
                self._ledger.put(self.compiler.rows(row.table, row.key, row.after))

    def allows(self, packet: Packet) -> bool:
        return self.compiler.decide(self._ledger.tables, packet).allowed


class EbpfNode:
    """One node's maps for programs, without a kernel."""

    def __init__(self, name: str, objects: Objects) -> None:
        view = PolicyView(name)
        view.update(objects)
        self._maps = Maps()
        rows = [
            RowDiff(part, key, ABSENT, row) for part, held in view.tables.items() for key, row in held.items()
        ]
        self._maps.update(rows, full=True)

    def allows(self, packet: Packet) -> bool:
        found = self._maps.decide(packet)
        assert found is not None, "everything fits"
        return found.allowed


class Compiled:
    """What the nodes of both ends do together; a connection on one node is judged there once."""

    def __init__(self, nodes: Mapping[str, Decider], address: Address) -> None:
        self._nodes, self._address = nodes, _packed(address)

    def allowed(self, way: Way) -> bool:
        source, target = self._address(way.source, way.family), self._address(way.target, way.family)
        packet = Packet(source, target, way.protocol, way.port)
        return all(self._nodes[name].allows(packet) for name in {node_of(way.source), node_of(way.target)})


def _packed(address: Address) -> Any:
    table = {(pod, family): ip_address(address(pod, family)).packed for pod in PODS for family in Family}
    return lambda pod, family: table[pod, family]


def table(allowed: Mapping[Way, bool], chosen: Sequence[Way]) -> str:
    """For failures: what is allowed, one line per protocol, port and family."""
    lines = []
    for protocol, number in PORTS:
        for family in Family:
            there = [way for way in chosen if way[2:] == (family, protocol, number)]
            open_ = [f"{way.source}>{way.target}" for way in there if allowed[way]]
            if there:
                lines.append(
                    f"{protocol} {number} {family.label}: {len(open_)} of {len(there)}: {' '.join(open_)}"
                )
    return "\n".join(lines)
