"""Policies with a number of rules in two shapes, for benchmarks of what a packet pays: pure objects.

    one     all rules select the one pod that is measured: every second one a pod by its label, every second a block
    ports   the same, every rule with a port of its own
    stacked the same in policies of a hundred rules each
    spread  ten rules for each pod of the node, of which one is measured, as in a cluster

The client is a pod that the rule in the middle allows: a fair place for lists. Pods ``b`` on node n1 and ``c`` on node n2
are measured, ``a`` on n1 is the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import lru_cache

from pycni.model.kube import NAMESPACE, NODE, POD, KubeNode, Meta, Namespace, Pod
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
from pycni.store import Snapshot, Store

SHAPES = ("one", "ports", "stacked", "spread")
SPACE = "bench"
ADDRESSES = {"a": "10.244.1.2", "b": "10.244.1.3", "c": "10.244.2.2"}
NODES = {"a": "n1", "b": "n1", "c": "n2"}
PORTS = PortRange(first=5000, last=19999)
"""What is allowed to be measured."""
PER_POD, PER_POLICY = 10, 100


def select(**labels: str) -> Selector:
    """matchLabels."""
    return Selector(labels=tuple(sorted(labels.items())))


def _pod(name: str, address: str, node: str, **labels: str) -> Pod:
    meta = Meta(name=name, namespace=SPACE, labels=labels)
    return Pod(meta=meta, node=node, phase="Running", ips=(address,))


def rules(count: int, *, own_ports: bool = False) -> Iterator[Rule]:
    """``count`` rules, the client's in the middle."""
    for number in range(count):
        client = number == count // 2
        if client or number % 2:
            peer = Peer(pods=select(app="client" if client else f"x{number}"))
        else:
            peer = Peer(block=IpBlock(cidr=ipaddress.ip_network((0xC6120000 + number * 4, 30))))
        port = PORTS if client or not own_ports else PortRange(first=20000 + number, last=20000 + number)
        yield Rule(peers=(peer,), ports=(port,))


def policy(name: str, own: str, some: tuple[Rule, ...]) -> NetworkPolicy:
    """Ingress of the pods with one label."""
    meta = Meta(name=name, namespace=SPACE)
    return NetworkPolicy(meta=meta, pods=select(own=own), ingress=some, egress=None)


@lru_cache(maxsize=16)
def cluster(shape: str, count: int) -> Snapshot:
    """All objects of a cluster with ``count`` rules for each of the two nodes."""
    return filled(shape, count).snapshot()


def filled(shape: str, count: int) -> Store:
    """The same in a store of its own."""
    store = Store()
    pods = [_pod("a", ADDRESSES["a"], "n1", app="client")]
    policies = []
    others = count // PER_POD if shape == "spread" else 1
    each = tuple(rules(min(count, PER_POD) if shape == "spread" else count, own_ports=shape == "ports"))
    for name in ("b", "c"):
        pods.append(_pod(name, ADDRESSES[name], NODES[name], own=name))
        size = PER_POLICY if shape == "stacked" else count
        some = [each[start : start + size] for start in range(0, len(each), size)]
        policies += [policy(f"for-{name}-{number}", name, part) for number, part in enumerate(some)]
        for number in range(1, others):
            own = f"{name}{number}"
            pods.append(
                _pod(own, f"10.{245 + (name == 'c')}.{number >> 8}.{number & 255}", NODES[name], own=own)
            )
            policies.append(policy(f"for-{own}", own, each))
    peers = {peer.pods.labels[0][1] for rule in each for peer in rule.peers or () if peer.pods is not None}
    for number, app in enumerate(sorted(peers - {"client"}), 1):
        pods.append(_pod(app, f"10.250.{number >> 8}.{number & 255}", "n3", app=app))
    store.replace(NAMESPACE, {SPACE: Namespace(meta=Meta(name=SPACE))})
    store.replace(NODE, {name: _node(name) for name in ("n1", "n2", "n3")})
    store.replace(POD, {pod.meta.key: pod for pod in pods})
    store.replace(NETWORK_POLICY, {item.meta.key: item for item in policies})
    store.replace(CLUSTER_NETWORK_POLICY, {})
    return store


def _node(name: str) -> KubeNode:
    number = int(name[1:])
    return KubeNode(
        meta=Meta(name=name), internal_ips=(f"192.168.90.{number}",), pod_cidrs=(f"10.244.{number}.0/24",)
    )
