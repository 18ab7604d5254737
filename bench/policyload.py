"""A cluster with many policies and pods, for benchmarks: 100 namespaces, ten kinds of pods in each, both families."""

from __future__ import annotations

import ipaddress

import msgspec

from pycni.model.kube import NAMESPACE, NODE, POD, UDP, ContainerPort, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    IpBlock,
    NetworkPolicy,
    Peer,
    PortRange,
    Rule,
    Selector,
)
from pycni.store import Store

SPACES, APPS = 100, 10


def select(**labels: str) -> Selector:
    return Selector(labels=tuple(sorted(labels.items())))


def pod(number: int, nodes: int, app: str = "") -> Pod:
    """Pod ``number``, on the nodes in turn."""
    node, place = number % nodes, number // nodes + 2
    labels = {"app": app or f"a{number // SPACES % APPS}"}
    return Pod(
        meta=Meta(name=f"p{number}", namespace=f"ns{number % SPACES}", labels=labels),
        node=f"n{node}",
        phase="Running",
        ips=(f"10.{node}.{place // 250}.{place % 250}", f"fd00:{node:x}::{place:x}"),
        ports=(ContainerPort(port=80, name="http"),),
    )


def policy(number: int, change: int = 0, ports: int = 80) -> NetworkPolicy:
    """Two selectors with two ports and a block with an exception; every other one for egress too."""
    index = number // SPACES
    peers = (
        Peer(pods=select(app=f"a{(index + 1) % APPS}")),
        Peer(namespaces=select(team=f"t{index % 10}"), pods=select(app=f"a{index % APPS}")),
    )
    block = IpBlock(
        cidr=ipaddress.ip_network(f"192.0.{index}.0/24"),
        excluded=(ipaddress.ip_network(f"192.0.{index}.{change * 4}/30"),),
    )
    both = (PortRange(first=80, last=ports), PortRange(protocol=UDP, first=53, last=53))
    rules = (Rule(peers=peers, ports=both), Rule(peers=(Peer(block=block),)))
    return NetworkPolicy(
        meta=Meta(name=f"np{index}", namespace=f"ns{number % SPACES}"),
        pods=select(app=f"a{index % APPS}"),
        ingress=rules,
        egress=rules if number % 2 else None,
    )


def cluster(policies: int, pods: int, nodes: int) -> Store:
    """All of it in a store."""
    store = Store()
    spaces = (Meta(name=f"ns{number}", labels={"team": f"t{number % 10}"}) for number in range(SPACES))
    store.replace(NAMESPACE, {meta.name: Namespace(meta=meta) for meta in spaces})
    names = {f"n{number}": (f"10.{number}.0.0/16",) for number in range(nodes)}
    store.replace(
        NODE, {name: KubeNode(meta=Meta(name=name), pod_cidrs=cidrs) for name, cidrs in names.items()}
    )
    every = (pod(number, nodes) for number in range(pods))
    store.replace(POD, {item.meta.key: item for item in every})
    some = (policy(number) for number in range(policies))
    store.replace(NETWORK_POLICY, {item.meta.key: item for item in some})
    store.replace(CLUSTER_NETWORK_POLICY, {})
    return store


def relabelled(found: Pod, app: str) -> Pod:
    """The same pod as another application."""
    return msgspec.structs.replace(found, meta=msgspec.structs.replace(found.meta, labels={"app": app}))
