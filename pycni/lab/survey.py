"""Looking at a lab: the status object and the matrix run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pycni.kernel import netns as kernel_netns
from pycni.lab import apply_tables, attachments, backends, inside, modes, policy_matrix, topology
from pycni.lab.ask import ask
from pycni.lab.checks import Check
from pycni.lab.cleanup import command
from pycni.lab.leases import leases
from pycni.lab.matrix import Matrix, judge_alone, plan, plan_alone
from pycni.lab.matrix_services import Asker, Try, judge
from pycni.lab.matrix_services import plan as plan_services
from pycni.lab.node import LabNode, Readiness
from pycni.lab.objects import Key, Mappings
from pycni.lab.policy_matrix import PolicyMatrix
from pycni.lab.policy_probe import REFUSED, Outcome, PolicyProber
from pycni.lab.policy_station import Target
from pycni.lab.processes import ProcessId
from pycni.lab.serve import ServedPod
from pycni.lab.state import PodRecord
from pycni.lab.stations import Host
from pycni.lab.topology import LabError, LabSpec, pod_key
from pycni.model.family import Family
from pycni.model.podnet import PodNetwork
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY

GREET_S = 7.0
"""Seconds in which WireGuard tries twice, should the first try have come before the peer was known."""
SHOTS = 1500
"""Connections tried at once to see what policies do."""
POLICY_QUIET_S = 0.1
TOGETHER = 200
"""Questions to Services under way at once from one node."""
ASKING = 8
"""Nodes asked for their readiness at the same time: one that hangs must not hold up the rest."""


def run_matrix(
    spec: LabSpec, nodes: Sequence[LabNode], pods: Sequence[PodRecord], tries: Sequence[Try], timeout: float
) -> Matrix:
    """Try who reaches whom. ``tries``: of Services. Raises LabError when there is no pod."""
    roots = {pod.name: modes.root(pod, {item.name: item for item in pods}) for pod in pods}
    usual = modes.UNDERLAY if attachments.ATTACHMENTS[spec.attach].underlay else modes.CLUSTER
    ways = {name: usual if way == modes.CLUSTER else way for name, way in roots.items()}
    there = sorted(
        (pod for pod in pods if pod.ips or ways[pod.name] == modes.NONE),
        key=lambda pod: topology.node_index(pod.node),
    )
    if not there:
        raise LabError(f"lab {spec.name} has no pods to check; add one with: {command('pod add', spec.name)}")
    started = time.monotonic()
    by_name = {node.name: node for node in nodes}
    node_hosts = [_node_host(node) for node in nodes]
    alone = [_lone_host(pod, spec) for pod in there if ways[pod.name] == modes.NONE]
    pod_hosts = [_pod_host(pod, by_name[pod.node]) for pod in there if ways[pod.name] != modes.NONE]
    greet(spec, nodes)
    with nodes[0].driver.probes([*node_hosts, *pod_hosts, *alone], timeout) as prober:
        reasons = prober.run(plan(node_hosts, pod_hosts, roots=ways))
        reasons |= judge_alone(prober.run(plan_alone(node_hosts, alone)))
    reasons |= _ask_services(spec, by_name, there, tries, timeout)
    return Matrix(
        nodes=tuple(host.name for host in node_hosts),
        pods=tuple((pod.name, pod.node) for pod in there),
        services=tuple(dict.fromkeys(item.check.target for item in tries)),
        outside=(topology.CLIENT,) if any(item.check.source == topology.CLIENT for item in tries) else (),
        reasons=reasons,
        modes={pod.name: pod.network for pod in there if pod.network != modes.CLUSTER},
        seconds=time.monotonic() - started,
    )


def greet(spec: LabSpec, nodes: Sequence[LabNode]) -> None:
    """Let peers that agree on keys do so, one of each two beginning.

    Where both begin at the same moment both give way, and WireGuard tries again after five seconds only. Who does not
    answer here does not answer later either, and is told of there.
    """
    if not backends.of(spec.backend).greets:
        return
    hosts = [_tunnel_host(node, network) for node in nodes if (network := node.pod_network())]
    checks = [
        Check(one.name, other.name, family, "ping")
        for number, one in enumerate(hosts)
        for other in hosts[number + 1 :]
        for family in one.addresses
        if family in other.addresses
    ]
    with nodes[0].driver.probes(hosts, GREET_S) as prober:
        prober.run(checks)


def run_policy_matrix(
    spec: LabSpec,
    pods: Sequence[PodRecord],
    objects: Mapping[Key, Mappings],
    only: tuple[int, int] | None,
    timeout: float,
) -> PolicyMatrix:
    """Try what policies do between pods. ``only``: one (protocol, port). Raises LabError when there are no two pods."""
    if spec.driver != "netns":
        raise LabError("policies are tried where nodes are namespaces", usage=True)
    there = sorted(
        (pod for pod in pods if pod.ips and pod.network == modes.CLUSTER),
        key=lambda pod: (pod_key(pod.name), pod.node),
    )
    if len(there) < 2:
        raise LabError(f"lab {spec.name} has no two pods; add some with: {command('pod add', spec.name)}")
    underlay = attachments.ATTACHMENTS[spec.attach].underlay
    started = time.monotonic()
    snapshot = policy_matrix.Snapshot(objects)
    targets = [
        Target(
            pod.name,
            kernel_netns.path(pod.namespace),
            {Family.V6 if ":" in ip else Family.V4: ip for ip in pod.ips},
        )
        for pod in there
    ]
    shots = policy_matrix.plan(snapshot, targets, only)
    said = policy_matrix.judge(snapshot, shots, targets)
    with PolicyProber(targets, {(shot.protocol, shot.port) for shot in shots}) as prober:
        expected = {shot: item.allowed for shot, item in said.items()}
        outcomes = {
            shot: _inside(outcome) if underlay else outcome
            for first in range(0, len(shots), SHOTS)
            for shot, outcome in prober.run(
                shots[first : first + SHOTS], expected, quiet=POLICY_QUIET_S, patience=timeout
            ).items()
        }
    return PolicyMatrix(
        pods=tuple((pod.name, pod.node) for pod in there),
        pairs={shot: policy_matrix.Pair(outcomes[shot], said[shot]) for shot in shots},
        seconds=time.monotonic() - started,
    )


def _inside(outcome: Outcome) -> Outcome:
    """What became of a shot at a pod whose policies are enforced inside of it, behind its device.

    There everything arrives; what counts is what got past the policies.
    """
    return outcome._replace(arrived=outcome.answered or outcome.trouble == REFUSED)


def service_tries(
    spec: LabSpec,
    nodes: Sequence[LabNode],
    pods: Sequence[PodRecord],
    objects: Mapping[Key, Mappings],
    served: Sequence[ServedPod],
) -> list[Try]:
    """What to try of the lab's Services; nothing without a data plane for them."""
    if spec.proxy == "none":
        return []
    askers = [Asker(node.name, node.name, spec.families) for node in nodes]
    askers += [
        Asker(pod.name, pod.node, spec.families) for pod in pods if pod.ips and pod.network == modes.CLUSTER
    ]
    askers.append(Asker(topology.CLIENT, "", spec.families))
    addresses = {
        node.name: {family: str(address.ip) for family, address in node.addresses.items()} for node in nodes
    }
    return plan_services(objects, served, askers, addresses)


def _ask_services(
    spec: LabSpec,
    nodes: Mapping[str, LabNode],
    pods: Sequence[PodRecord],
    tries: Sequence[Try],
    timeout: float,
) -> dict[Check, str]:
    """Ask from every node's kernel at once, from each a bounded number at a time."""
    homes = {pod.name: (pod.node, pod.namespace) for pod in pods}
    homes |= {node.name: (node.name, node.namespace) for node in nodes.values()}
    homes[topology.CLIENT] = ("", topology.client_namespace(spec.name))
    groups: dict[str, list[Try]] = {}
    for item in tries:
        groups.setdefault(homes[item.check.source][0], []).append(item)

    def run(place: str) -> dict[Check, str]:
        found: dict[Check, str] = {}
        for part in (
            groups[place][first : first + TOGETHER] for first in range(0, len(groups[place]), TOGETHER)
        ):
            questions = [(homes[item.check.source][1], *item[1:4]) for item in part]
            node = nodes.get(place)
            answers = (
                ask(questions, timeout) if node is None else node.driver.call(place, ask, questions, timeout)
            )
            found |= {item.check: judge(item, said) for item, said in zip(part, answers, strict=True)}
        return found

    with ThreadPoolExecutor(ASKING) as pool:
        parts = list(pool.map(run, groups))
    asked = {check: reason for part in parts for check, reason in part.items()}
    return {item.check: asked[item.check] for item in tries}


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
    ways = _ways(spec, nodes)
    server = processes.get("etcd")
    return {
        "name": spec.name,
        "driver": spec.driver,
        "backend": spec.backend,
        "attach": spec.attach,
        "family": spec.family,
        "proxy": spec.proxy,
        "policy": spec.policy,
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
            _node_status(node, answer, processes.get(node.name), ways.get(node.name, spec.backend))
            for node, answer in zip(nodes, readiness, strict=True)
        ],
        "pods": [pod_status(pod) for pod in pods],
        "services": apply_tables.services(objects),
        "policies": [
            {"kind": key.kind, "namespace": key.namespace, "name": key.name}
            for key in objects
            if key.kind in {NETWORK_POLICY, CLUSTER_NETWORK_POLICY}
        ],
    }


def _node_host(node: LabNode) -> Host:
    addresses = {family: str(address.ip) for family, address in node.addresses.items()}
    return Host(node.name, node.netns, addresses, node.spec.mtu, node.name)


def _tunnel_host(node: LabNode, network: PodNetwork) -> Host:
    """The node by the addresses of its tunnel devices: the base addresses of its subnets."""
    addresses = {Family.of(subnet): str(subnet.network_address) for subnet in network.subnets}
    return Host(node.name, node.netns, addresses, network.mtu, node.name)


def _pod_host(pod: PodRecord, node: LabNode) -> Host:
    addresses = {Family.V6 if ":" in ip else Family.V4: ip for ip in pod.ips}
    # The MTU the agent promised, not the one the interface happens to have: they have to be equal.
    network = node.pod_network()
    if attachments.ATTACHMENTS[node.spec.attach].underlay and pod.network == modes.CLUSTER:
        mtu = node.spec.mtu
    else:
        mtu = (
            network.mtu
            if network
            else node.driver.call(node.name, inside.mtu_of, pod.namespace, pod.interface)
        )
    path = kernel_netns.path(pod.namespace) if pod.namespace else ""
    return Host(pod.name, path, addresses, mtu or node.spec.mtu, node.name)


def _lone_host(pod: PodRecord, spec: LabSpec) -> Host:
    """A pod without a network by its loopback addresses."""
    addresses = {family: "127.0.0.1" if family is Family.V4 else "::1" for family in spec.families}
    return Host(pod.name, kernel_netns.path(pod.namespace), addresses, spec.mtu, pod.node)


def _ways(spec: LabSpec, nodes: Sequence[LabNode]) -> dict[str, str]:
    """By which backend nodes are reached: another one than the lab's half-way through a change."""
    try:
        return {name: attrs.way for name, attrs in leases(spec, nodes).items()}
    except LabError:
        return {}


def _node_status(
    node: LabNode, readiness: Readiness, process: ProcessId | None, backend: str
) -> dict[str, Any]:
    network = node.pod_network()
    return {
        "name": node.name,
        "ips": [str(address.ip) for address in node.addresses.values()],
        "namespace": node.namespace,
        "pid": process.pid if process else None,
        "alive": bool(process and process.alive()),
        "ready": readiness.ready,
        "reason": readiness.reason,
        "backend": backend,
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
        "network": pod.network,
        "add_seconds": round(pod.add_seconds, 4),
    }
