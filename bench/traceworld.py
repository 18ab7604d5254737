"""A made-up cluster for predictions: as many nodes, pods, Services and policies as wanted, everything in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from pycni.backends.masq import Masquerade
from pycni.model.service import NodeFacts
from pycni.model.space import (
    NODE,
    AddressState,
    FdbState,
    LinkState,
    NeighbourState,
    NodePart,
    PodPlace,
    RouteState,
    SpaceState,
)
from pycni.trace.cluster import NodeTerms
from pycni.trace.join import join
from pycni.tracing.eyes import Gathered, NodeEyes
from pycni.wire.kube import from_mapping

PORT = 8080
CLUSTER = ip_network("10.244.0.0/16")


def packed(text: str) -> bytes:
    return ip_address(text).packed


def mac(kind: int, node: int, pod: int = 0) -> bytes:
    return bytes((2, kind, 0, 0, node, pod))


def route(net: str, device: str, via: str = "", *, kind: str = "unicast") -> RouteState:
    host, _, length = net.partition("/")
    return RouteState(
        table=255 if kind == "local" else 254,
        destination=packed(host),
        prefix_len=int(length or 32),
        kind=kind,
        device=device,
        gateway=packed(via) if via else b"",
    )


def pod_space(node: int, pod: int) -> SpaceState:
    address = f"10.244.{node}.{pod + 2}"
    link = LinkState(name="eth0", kind="veth", mac=mac(3, node, pod), mtu=1450, index=2, peer_index=10 + pod)
    return SpaceState(
        links={"eth0": link},
        addresses=(AddressState("eth0", packed(address), 24),),
        routes=(
            route(address, "lo", kind="local"),
            route(f"10.244.{node}.0/24", "eth0"),
            route("0.0.0.0/0", "eth0", f"10.244.{node}.1"),
        ),
        listening=(("tcp", bytes(4), PORT),),
    )


def node_space(node: int, nodes: int, pods: int) -> SpaceState:
    own = f"172.20.0.{node}"
    links = {
        "eth0": LinkState(name="eth0", mac=mac(1, node), mtu=1500, index=2),
        "cni0": LinkState(name="cni0", kind="bridge", mac=mac(2, node), mtu=1450, index=3),
        "flannel.1": LinkState(
            name="flannel.1", kind="vxlan", mac=mac(4, node), mtu=1450, index=4, vni=1, port=8472, local=packed(own)
        ),
    }  # fmt: skip
    for pod in range(pods):
        name = f"veth{pod}"
        links[name] = LinkState(
            name=name, kind="veth", mtu=1450, index=10 + pod, peer_index=2, master="cni0", hairpin=True
        )
    others = [other for other in range(1, nodes + 1) if other != node]
    return SpaceState(
        links=links,
        addresses=(
            AddressState("eth0", packed(own), 16),
            AddressState("cni0", packed(f"10.244.{node}.1"), 24),
        ),
        routes=(
            route(own, "lo", kind="local"),
            route(f"10.244.{node}.1", "lo", kind="local"),
            route("172.20.0.0/16", "eth0"),
            route(f"10.244.{node}.0/24", "cni0"),
            *(route(f"10.244.{other}.0/24", "flannel.1", f"10.244.{other}.0") for other in others),
        ),
        neighbours=tuple(
            NeighbourState("flannel.1", packed(f"10.244.{other}.0"), mac(4, other), "permanent")
            for other in others
        ),
        fdb=tuple(
            FdbState("flannel.1", mac(4, other), remote=packed(f"172.20.0.{other}")) for other in others
        ),
        sysctls={"net.ipv4.ip_forward": "1"},
    )


def part(node: int, nodes: int, pods: int) -> NodePart:
    name = f"node{node}"
    spaces = {f"default/pod{node}-{pod}": pod_space(node, pod) for pod in range(pods)}
    spaces[NODE] = node_space(node, nodes, pods)
    return NodePart(
        name=name,
        addresses=(packed(f"172.20.0.{node}"),),
        underlay="eth0",
        backend="vxlan",
        actual=spaces,
        wanted=dict(spaces),
        pods=tuple(
            PodPlace(
                name=f"default/pod{node}-{pod}",
                node=name,
                addresses=(packed(f"10.244.{node}.{pod + 2}"),),
                host_interface=f"veth{pod}",
                bridge="cni0",
            )
            for pod in range(pods)
        ),
    )


def objects(nodes: int, pods: int, services: int, policies: int) -> Iterator[dict[str, Any]]:
    """Service ``s<n>`` has three endpoints on other nodes than the first; policy ``p<n>`` lets everybody to some pods."""
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    for node in range(1, nodes + 1):
        for pod in range(pods):
            yield {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": f"pod{node}-{pod}", "namespace": "default", "labels": {"group": f"g{(node * pods + pod) % policies}"}},
                "spec": {"nodeName": f"node{node}", "containers": [{"name": "c", "ports": [{"containerPort": PORT}]}]},
                "status": {"phase": "Running", "podIPs": [{"ip": f"10.244.{node}.{pod + 2}"}]},
            }  # fmt: skip
    for number in range(services):
        ends = [(2 + (number + step) % (nodes - 1), number % pods) for step in range(3)]
        yield {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{number}", "namespace": "default"},
            "spec": {"clusterIP": f"10.96.{number // 250}.{1 + number % 250}", "ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
        }  # fmt: skip
        yield {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"s{number}-1", "namespace": "default", "labels": {"kubernetes.io/service-name": f"s{number}"}},
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": [f"10.244.{node}.{pod + 2}"], "nodeName": f"node{node}", "conditions": {"ready": True}}
                for node, pod in ends
            ],
        }  # fmt: skip
    for number in range(policies):
        yield {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": f"p{number}", "namespace": "default"},
            "spec": {
                "podSelector": {"matchLabels": {"group": f"g{number}"}},
                "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": PORT}]}],
            },
        }  # fmt: skip


class Objects:
    """See ``trace.cluster.Objects``."""

    def __init__(self, values: Iterator[dict[str, Any]]) -> None:
        self._held: dict[str, dict[str, Any]] = {}
        for value in values:
            found = from_mapping(value)
            assert found is not None, value
            self._held.setdefault(found[0], {})[found[1].meta.key] = found[1]

    def of(self, kind: str) -> Mapping[str, Any]:
        return self._held.get(kind, {})


class MadeUp:
    """See ``tracing.eyes.Eyes``: nothing can be sent there."""

    nodes: Mapping[str, NodeEyes] = {}

    def __init__(self, nodes: int, pods: int, services: int = 300, policies: int = 100) -> None:
        """``pods``: per node."""
        world = join([part(node, nodes, pods) for node in range(1, nodes + 1)])
        terms = {
            name: NodeTerms(
                NodeFacts(name=name, addresses=part_.addresses, cluster_networks=(CLUSTER,), uplink="eth0"),
                True,
                (Masquerade(cluster=CLUSTER, own=ip_network(f"10.244.{number}.0/24")),),
            )
            for number, (name, part_) in enumerate(world.nodes.items(), 1)
        }
        self._known = Gathered(world, Objects(objects(nodes, pods, services, policies)), terms)

    def gather(self) -> Gathered:
        return self._known
