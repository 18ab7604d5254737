"""Worlds for the view's tests: nodes with VXLAN and bridges, a few pods each, objects about them."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from pycni.model.family import Family
from pycni.model.kube import EndpointSlice, Meta, Pod, Service, ServicePortSpec, SliceEndpoint, SlicePort
from pycni.model.policy import NetworkPolicy, Selector
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
    World,
)
from pycni.trace.join import join


def packed(text: str) -> bytes:
    return ip_address(text).packed


def mac(node: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, node])


class Objects:
    def __init__(self, held: Mapping[str, Mapping[str, Any]] = {}) -> None:
        self._held = held

    def of(self, kind: str) -> Mapping[str, Any]:
        return self._held.get(kind, {})


def part(number: int, nodes: int, pods: int, bridge: str = "cni0", tunnel: str = "flannel.1") -> NodePart:
    """Node ``number`` of so many, each with so many pods; without a bridge pods are routed, without a tunnel host-gw."""
    name, own = f"node{number}", packed(f"172.20.0.{number}")
    links = [LinkState(name="lo"), LinkState(name="eth0", kind="veth", mtu=1500, index=2)]
    addresses = [AddressState("eth0", own, 16)]
    routes, neighbours, fdb = [], [], []
    if tunnel:
        links.append(
            LinkState(
                name=tunnel, kind="vxlan", mtu=1450, index=3, vni=1, port=8472, local=own, mac=mac(number)
            )
        )
        addresses.append(AddressState(tunnel, packed(f"10.244.{number}.0"), 32))
    if bridge:
        links.append(LinkState(name=bridge, kind="bridge", mtu=1450, index=4))
        addresses.append(AddressState(bridge, packed(f"10.244.{number}.1"), 24))
    for other in range(1, nodes + 1):
        if other == number:
            continue
        net = packed(f"10.244.{other}.0")
        if tunnel:
            routes.append(
                RouteState(table=254, destination=net, prefix_len=24, device=tunnel, gateway=net, onlink=True)
            )
            neighbours.append(NeighbourState(tunnel, net, mac(other), "permanent"))
            fdb.append(FdbState(tunnel, mac(other), remote=packed(f"172.20.0.{other}")))
        else:
            via = packed(f"172.20.0.{other}")
            routes.append(RouteState(table=254, destination=net, prefix_len=24, device="eth0", gateway=via))
    spaces: dict[str, SpaceState] = {}
    places = []
    for pod in range(1, pods + 1):
        key, veth = f"shop/web-{number}-{pod}", f"veth{number}x{pod}"
        links.append(LinkState(name=veth, kind="veth", master=bridge, index=10 + pod, peer_index=2))
        address = packed(f"10.244.{number}.{pod + 1}")
        spaces[key] = SpaceState(
            links={"eth0": LinkState(name="eth0", kind="veth", index=2, peer_index=10 + pod, mtu=1450)},
            addresses=(AddressState("eth0", address, 24),),
        )
        places.append(PodPlace(name=key, node=name, addresses=(address,), host_interface=veth, bridge=bridge))
    own_space = SpaceState(
        links={link.name: link for link in links},
        addresses=tuple(addresses),
        routes=tuple(routes),
        neighbours=tuple(neighbours),
        fdb=tuple(fdb),
    )
    actual = {NODE: own_space, **spaces}
    return NodePart(
        name=name,
        addresses=(own,),
        underlay="eth0",
        backend="vxlan" if tunnel else "host-gw",
        actual=actual,
        wanted=actual,
        pods=tuple(places),
    )


def world(nodes: int = 3, pods: int = 2, **how: str) -> World:
    return join(part(number, nodes, pods, **how) for number in range(1, nodes + 1))


def changed(before: World, node: str, space: str = NODE, **fields: Any) -> World:
    """The same with something else in one space."""
    found = before.nodes[node]
    state = msgspec.structs.replace(found.actual[space], **fields)
    new = msgspec.structs.replace(found, actual={**found.actual, space: state})
    return msgspec.structs.replace(before, nodes={**before.nodes, node: new})


def objects(of: World, services: int = 1, ready: bool = True) -> Objects:
    """All pods behind each of so many Services, and isolated by one policy."""
    ends = tuple(
        SliceEndpoint(address=str(ip_address(pod.addresses[0])), ready=ready, pod=pod.name)
        for pod in of.pods.values()
    )
    made = {
        f"shop/svc{number}": Service(
            meta=Meta(name=f"svc{number}", namespace="shop"),
            cluster_ips=(str(ip_network("10.96.0.0/16")[number]),),
            ports=(ServicePortSpec(port=80),),
        )
        for number in range(1, services + 1)
    }
    slices = {
        f"{key}-1": EndpointSlice(
            meta=Meta(name=f"{key}-1"),
            service=key,
            family=Family.V4,
            ports=(SlicePort(port=8080),),
            endpoints=ends,
        )
        for key in made
    }
    pods = {
        pod.name: Pod(
            meta=Meta(name=pod.name.split("/")[1], namespace="shop", labels={"app": "web"}),
            node=pod.node,
            ips=(str(ip_address(pod.addresses[0])),),
            ready=True,
        )
        for pod in of.pods.values()
    }
    policy = NetworkPolicy(meta=Meta(name="closed", namespace="shop"), pods=Selector(), ingress=())
    return Objects(
        {"Service": made, "EndpointSlice": slices, "Pod": pods, "NetworkPolicy": {"shop/closed": policy}}
    )
