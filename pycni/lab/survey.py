"""Looking at a lab: the status object and the matrix run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pycni.kernel import netns as kernel_netns
from pycni.lab import apply_tables, inside, topology
from pycni.lab.cleanup import command
from pycni.lab.matrix import Matrix, plan
from pycni.lab.node import LabNode, Readiness
from pycni.lab.objects import Key, Mappings
from pycni.lab.processes import ProcessId
from pycni.lab.state import PodRecord
from pycni.lab.stations import Host
from pycni.lab.topology import LabError, LabSpec
from pycni.model.family import Family

ASKING = 8
"""Nodes asked for their readiness at the same time: one that hangs must not hold up the rest."""


def run_matrix(spec: LabSpec, nodes: Sequence[LabNode], pods: Sequence[PodRecord], timeout: float) -> Matrix:
    """Try who reaches whom. Raises LabError when there is no pod."""
    there = sorted((pod for pod in pods if pod.ips), key=lambda pod: topology.node_index(pod.node))
    if not there:
        raise LabError(f"lab {spec.name} has no pods to check; add one with: {command('pod add', spec.name)}")
    started = time.monotonic()
    by_name = {node.name: node for node in nodes}
    node_hosts = [_node_host(node) for node in nodes]
    pod_hosts = [_pod_host(pod, by_name[pod.node]) for pod in there]
    with nodes[0].driver.probes([*node_hosts, *pod_hosts], timeout) as prober:
        reasons = prober.run(plan(node_hosts, pod_hosts))
    return Matrix(
        nodes=tuple(host.name for host in node_hosts),
        pods=tuple((pod.name, pod.node) for pod in there),
        reasons=reasons,
        seconds=time.monotonic() - started,
    )


def missing_routes(nodes: Sequence[LabNode]) -> list[str]:
    """Pod subnets of other nodes that a node's agent has told its kernel nothing about, in words."""
    subnets = {node.name: network.subnets for node in nodes if (network := node.pod_network())}
    missing = []
    for node in nodes:
        known = set(node.routes())
        missing += [
            f"{node.name} has no route to {subnet} of {other}"
            for other, theirs in subnets.items()
            for subnet in theirs
            if other != node.name and str(subnet) not in known
        ]
    return missing


def status(
    spec: LabSpec,
    nodes: Sequence[LabNode],
    pods: Sequence[PodRecord],
    processes: Mapping[str, ProcessId],
    objects: Mapping[Key, Mappings],
) -> dict[str, Any]:
    """The object ``lab status --json`` prints."""
    with ThreadPoolExecutor(ASKING) as pool:
        readiness = list(pool.map(LabNode.readiness, nodes))
    server = processes.get("etcd")
    return {
        "name": spec.name,
        "driver": spec.driver,
        "backend": spec.backend,
        "family": spec.family,
        "proxy": spec.proxy,
        "ready": all(item.ready for item in readiness),
        "fabric": {
            "namespace": topology.fabric_namespace(spec.name),
            "ips": [str(item.ip) for item in topology.underlay_addresses(spec, 0).values()],
        },
        "etcd": {
            "endpoint": topology.etcd_endpoint(spec),
            "pid": server.pid if server else None,
            "alive": bool(server and server.alive()),
        },
        "nodes": [
            _node_status(node, answer, processes.get(node.name))
            for node, answer in zip(nodes, readiness, strict=True)
        ],
        "pods": [pod_status(pod) for pod in pods],
        "services": apply_tables.services(objects),
    }


def _node_host(node: LabNode) -> Host:
    addresses = {family: str(address.ip) for family, address in node.addresses.items()}
    return Host(node.name, node.netns, addresses, node.spec.mtu, node.name)


def _pod_host(pod: PodRecord, node: LabNode) -> Host:
    addresses = {Family.V6 if ":" in ip else Family.V4: ip for ip in pod.ips}
    # The MTU the agent promised, not the one the interface happens to have: they have to be equal.
    network = node.pod_network()
    mtu = network.mtu if network else node.driver.call(node.name, inside.mtu_of, pod.namespace, pod.interface)
    return Host(pod.name, kernel_netns.path(pod.namespace), addresses, mtu or node.spec.mtu, node.name)


def _node_status(node: LabNode, readiness: Readiness, process: ProcessId | None) -> dict[str, Any]:
    network = node.pod_network()
    return {
        "name": node.name,
        "ips": [str(address.ip) for address in node.addresses.values()],
        "namespace": node.namespace,
        "pid": process.pid if process else None,
        "alive": bool(process and process.alive()),
        "ready": readiness.ready,
        "reason": readiness.reason,
        "backend": node.spec.backend,
        "subnets": [str(subnet) for subnet in network.subnets] if network else [],
        "mtu": network.mtu if network else None,
        "socket": node.socket,
        "log": str(node.log),
    }


def pod_status(pod: PodRecord) -> dict[str, Any]:
    """One pod of the status object."""
    return {
        "name": pod.name,
        "node": pod.node,
        "ips": list(pod.ips),
        "namespace": pod.namespace,
        "container_id": pod.container_id,
        "interface": pod.interface,
        "add_seconds": round(pod.add_seconds, 4),
    }
