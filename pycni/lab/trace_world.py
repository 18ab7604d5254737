"""Everything a trace goes by in a lab: kernels read directly, leases from etcd, objects from the lab's folder.

Life: ``gather`` looks at all nodes and pods at once, whether their agents live or not. What agents want follows from
the leases and from what CNI gave to pods; a lab whose etcd does not answer has no wanted state, which is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, NamedTuple

import msgspec

from pycni.agent.wireguard_key import SOCKETS
from pycni.backends.masq import Masquerade
from pycni.errors import ConfigError, KernelError
from pycni.lab import netns, topology
from pycni.lab.apply import Cluster
from pycni.lab.inside_trace import space_states
from pycni.lab.leases import keys_below
from pycni.lab.node import LabNode
from pycni.lab.objects import Key, Mappings, decoded
from pycni.lab.run import Lab
from pycni.lab.state import PodRecord
from pycni.lab.topology import LabError, LabSpec
from pycni.model.lease import Lease
from pycni.model.network import NetConf
from pycni.model.service import NodeFacts
from pycni.model.space import NODE, NodePart, PodPlace, SpaceState
from pycni.trace.cluster import NodeTerms
from pycni.trace.join import join
from pycni.trace.wanted import WantedPod, Where, fabric, membership, node_space, own_lease, pod_space
from pycni.tracing.eyes import Gathered
from pycni.wire.lease import decode_lease
from pycni.wire.netconf import decode_netconf


class LabObjects:
    """The lab's objects as ``trace.cluster`` reads them."""

    def __init__(self, found: Mapping[Key, Mappings]) -> None:
        self._held: dict[str, dict[str, Any]] = {}
        for key, value in found.items():
            item = decoded(value)
            if item is not None:
                self._held.setdefault(key.kind, {})[item.meta.key] = item

    def of(self, kind: str) -> Mapping[str, Any]:
        """By key."""
        return self._held.get(kind, {})


class _Etcd(NamedTuple):
    conf: NetConf
    leases: Mapping[str, Lease]


def gather(lab: Lab) -> Gathered:
    """Look at a lab. Raises LabError, KernelError."""
    spec, nodes, pods = lab.spec, lab.nodes(), lab.pods()
    shared, trouble = _ask_etcd(spec)

    def part(node: LabNode) -> NodePart:
        mine = [pod for pod in pods if pod.node == node.name]
        return _part(node, mine, shared, spec, alive=lab.agent(node.name) is not None)

    with ThreadPoolExecutor(max(len(nodes), 1)) as pool:
        parts = list(pool.map(part, nodes))
    terms = {node.name: _terms(spec, node, shared) for node in nodes}
    return Gathered(join(parts), LabObjects(Cluster(lab).objects()), terms, trouble)


def _part(
    node: LabNode, pods: Sequence[PodRecord], shared: _Etcd | None, spec: LabSpec, *, alive: bool
) -> NodePart:
    where = Where(node.name, netns.UPLINK, tuple(item.ip.packed for item in node.addresses.values()))
    sockets = str(node.home / "state" / SOCKETS)
    actual = node.driver.call(node.name, space_states, namespaces(node, pods), sockets)
    mine = [(_wanted_pod(pod), pod) for pod in pods if pod.network == "cluster"]
    return NodePart(
        name=node.name,
        addresses=where.addresses,
        underlay=where.underlay,
        backend=shared.conf.backend.type if shared is not None else "",
        actual=actual,
        wanted=_wanted(where, actual, [want for want, _ in mine], shared, bridged=_bridged(spec))
        if shared is not None
        else {},
        pods=tuple(_place(pod) for pod in pods if pod.network == "cluster"),
        agent="" if alive else "the agent is not running: nobody repairs what is damaged",
        lease=membership(shared.leases, where.addresses) if shared is not None else "",
    )


def _bridged(spec: LabSpec) -> bool:
    """Whether rules of nftables have to see what bridges hand on."""
    return spec.policy == "nftables" or spec.proxy in {"nftables", "ipvs"}


def namespaces(node: LabNode, pods: Iterable[PodRecord]) -> dict[str, str]:
    """Names of a node's namespaces by space: its own, and those of its pods that have one."""
    found = {NODE: node.namespace}
    for pod in pods:
        if pod.node == node.name and pod.namespace and pod.namespace != node.namespace:
            found[pod_key(pod)] = pod.namespace
    return found


def pod_key(pod: PodRecord) -> str:
    """``namespace/name`` of a lab's pod, as Kubernetes has it."""
    name, _, namespace = pod.name.partition(".")
    return f"{namespace or 'default'}/{name}"


def _wanted(
    where: Where,
    actual: Mapping[str, SpaceState],
    pods: Sequence[WantedPod],
    shared: _Etcd,
    *,
    bridged: bool,
) -> dict[str, SpaceState]:
    networks = [net for family in shared.conf.families if (net := shared.conf.of(family)) is not None]
    want = fabric(shared.conf, shared.leases, where, actual[NODE])
    found = {NODE: node_space(actual[NODE], want, pods, networks, bridged=bridged)}
    for pod in pods:
        if pod.space in actual:
            found[pod.space] = pod_space(actual[pod.space], pod)
    return found


def _wanted_pod(pod: PodRecord) -> WantedPod:
    interfaces = [item for item in pod.result.get("interfaces", ()) if not item.get("sandbox")]
    bridge = next((item["name"] for item in interfaces if not item["name"].startswith("veth")), "")
    host = next((item["name"] for item in interfaces if item["name"].startswith("veth")), "")
    return WantedPod(pod_key(pod), host, bridge, pod.result)


def _place(pod: PodRecord) -> PodPlace:
    want = _wanted_pod(pod)
    return PodPlace(
        name=want.space,
        node=pod.node,
        addresses=tuple(ip_address(text).packed for text in pod.ips),
        interface=pod.interface,
        host_interface=want.host_interface,
        bridge=want.bridge,
    )


def _terms(spec: LabSpec, node: LabNode, shared: _Etcd | None) -> NodeTerms:
    networks = tuple(topology.POD_NETWORKS[family] for family in spec.families)
    facts = NodeFacts(
        name=node.name,
        addresses=tuple(item.ip.packed for item in node.addresses.values()),
        cluster_networks=networks,
        service_networks=tuple(topology.SERVICE_NETWORKS[family] for family in spec.families),
        external_ip_ranges=tuple(topology.EXTERNAL_NETWORKS[family] for family in spec.families),
        uplink=netns.UPLINK,
        families=spec.families,
    )
    own = None
    if shared is not None:
        own = own_lease(shared.leases.values(), [item.ip.packed for item in node.addresses.values()])
    masquerades = tuple(
        Masquerade(cluster=topology.POD_NETWORKS[family], own=subnet)
        for family in spec.families
        # Guests have no nftables, and so nothing that would masquerade.
        if spec.driver != "uml" and own is not None and (subnet := own.of(family)) is not None
    )
    return NodeTerms(facts if spec.proxy != "none" else None, spec.policy != "none", masquerades)


def _ask_etcd(spec: LabSpec) -> tuple[_Etcd | None, str]:
    """Net-conf and leases; or why they are not known."""
    try:
        found = keys_below(spec, f"{topology.ETCD_PREFIX}/")
    except (OSError, KernelError, LabError, msgspec.DecodeError) as error:
        return None, f"etcd does not answer: {error}"
    leases = {}
    for key, value in found.items():
        name = key.removeprefix(f"{topology.ETCD_PREFIX}/subnets/")
        if name != key:
            try:
                leases[name] = decode_lease(name, value)
            except ConfigError:
                continue  # no node goes by it either
    try:
        return _Etcd(decode_netconf(found[f"{topology.ETCD_PREFIX}/config"]), leases), ""
    except (KeyError, ConfigError) as error:
        return None, f"the network's configuration: {error}"
