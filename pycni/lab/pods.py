"""Pods of a lab: a namespace each, attached by the real CNI executable.

Pods that are attached to nothing, or share a namespace, have no ADD (``modes``).

Life: the record is written first, with the container id, so that a name is given once and whatever happens in between
``remove`` and ``lab down`` know what to undo; ADD's result completes it. ``remove`` goes the way a runtime goes: end
the processes, DEL, then take the namespace away. Threads may add and remove different pods at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

import msgspec

from pycni.errors import KernelError, PycniError
from pycni.lab import inside, modes, topology
from pycni.lab.node import LabNode
from pycni.lab.runtime import Attachment
from pycni.lab.state import LabState, PodRecord
from pycni.lab.topology import LabError


class PodExistsError(LabError):
    """The name is taken."""


def find(state: LabState, name: str) -> PodRecord:
    """One pod. Raises LabError naming the ones there are."""
    pods = state.pods()
    for pod in pods:
        if pod.name == name:
            return pod
    there = ", ".join(pod.name for pod in pods) or "none"
    raise LabError(f"lab {state.name} has no pod {name!r}; there are: {there}", usage=True)


def add(
    state: LabState,
    node: LabNode,
    name: str,
    capability_args: Mapping[str, Any] | None = None,
    network: str = modes.CLUSTER,
) -> PodRecord:
    """Make a pod. Raises LabError with the plugin's error, after which nothing of the pod is left."""
    lab = node.spec.name
    container_id = f"{lab}-{name}-{os.urandom(4).hex()}"
    pod = PodRecord(
        name=name,
        node=node.name,
        namespace=topology.pod_namespace(lab, name),
        container_id=container_id,
        network=network,
    )
    if network == modes.HOST or modes.lender(network):
        return _share(state, node, pod)
    path = _claim(state, node, pod)
    try:
        if network in modes.BY_CNI:
            pod = _attach(node, pod, path, capability_args)
        else:
            node.driver.call(node.name, inside.set_loopback_up, pod.namespace)
    except PycniError:
        node.driver.call(node.name, inside.delete_namespace, pod.namespace)
        state.drop_pod(name)
        raise
    state.put_pod(pod)
    return pod


def home(state: LabState, network: str, node: str | None) -> str | None:
    """The node a pod has to be made on, None for any; ``node`` is the one asked for. Raises LabError."""
    if not modes.lender(network):
        return node
    there = find(state, modes.lender(network)).node
    if node not in {None, there}:
        raise LabError(f"--network {network!r}: this pod is on {there}", usage=True)
    return there


def _share(state: LabState, node: LabNode, pod: PodRecord) -> PodRecord:
    """A pod in the namespace of its node, or of another pod, which has to be there."""
    if pod.network == modes.HOST:
        ips = tuple(str(address.ip) for address in node.addresses.values())
        pod = msgspec.structs.replace(pod, namespace=node.namespace, ips=ips)
    else:
        other = find(state, modes.lender(pod.network))
        if other.network in modes.BY_CNI and not other.ips:
            raise LabError(f"pod {other.name} has no network yet", usage=True)
        # Whoever shares with one that shares itself, shares with the same one.
        words = other.network if modes.lender(other.network) else pod.network
        pod = msgspec.structs.replace(pod, namespace=other.namespace, ips=other.ips, network=words)
    if not state.claim_pod(pod):
        raise PodExistsError(f"lab {state.name} has a pod {pod.name} already", usage=True)
    if lender := modes.lender(pod.network):
        try:
            find(state, lender)  # who removes it looks for those that share before and after
        except LabError:
            state.drop_pod(pod.name)
            raise
    return pod


def _claim(state: LabState, node: LabNode, pod: PodRecord) -> str:
    """Take the name and make the namespace; returns its file."""
    if not state.claim_pod(pod):
        raise PodExistsError(f"lab {state.name} has a pod {pod.name} already", usage=True)
    try:
        return node.driver.call(node.name, inside.make_namespace, pod.namespace)
    except BaseException as exc:
        state.drop_pod(pod.name)
        if isinstance(exc, KernelError) and exc.errno == errno.EEXIST:
            raise PodExistsError(f"lab {state.name} has a pod {pod.name} already", usage=True) from exc
        raise


def _attach(node: LabNode, pod: PodRecord, path: str, capability_args: Mapping[str, Any] | None) -> PodRecord:
    """CNI ADD. Raises LabError with the plugin's error."""
    attachment = Attachment(
        pod.container_id,
        path,
        pod.interface,
        cni_args=_kubernetes_args(pod),
        capability_args=capability_args or {},
    )
    try:
        outcome = node.runtime(single=pod.network == modes.BRIDGE).add(attachment)
    except PycniError as exc:
        notes = "".join(f" ({note})" for note in getattr(exc, "__notes__", ()))
        raise LabError(f"pod {pod.name} on {node.name}: {exc}{notes}") from exc
    result = outcome.result or {}
    addresses = [ip_interface(item["address"]).ip for item in result.get("ips", ())]
    return msgspec.structs.replace(
        pod,
        ips=tuple(str(address) for address in sorted(addresses, key=lambda item: item.version)),
        result=result,
        add_seconds=outcome.seconds,
    )


def add_any(
    state: LabState,
    node: LabNode,
    capability_args: Mapping[str, Any] | None = None,
    network: str = modes.CLUSTER,
) -> PodRecord:
    """Make a pod with the first free name ``pod<n>``."""
    number = 1
    while True:
        try:
            return add(state, node, f"pod{number}", capability_args, network)
        except PodExistsError:
            number += 1


def remove(state: LabState, node: LabNode, pod: PodRecord, *, force: bool = False) -> None:
    """Remove a pod. ``force``: also when DEL fails, else LabError and the pod stays for another try.

    One without a namespace of its own is only forgotten. With one that lends its network, by ``force``, go those that
    have it from there.
    """
    sharing = _sharing(state, pod)
    if sharing and not force:
        raise LabError(f"pod {pod.name} lends its network to {', '.join(sharing)}", usage=True)
    if pod.network != modes.HOST and not modes.lender(pod.network):
        _dismantle(node, pod, force=force)
    state.drop_pod(pod.name)
    for name in _sharing(state, pod):
        state.drop_pod(name)


def _sharing(state: LabState, pod: PodRecord) -> list[str]:
    """Who has the network of a pod."""
    return [other.name for other in state.pods() if modes.lender(other.network) == pod.name]


def _dismantle(node: LabNode, pod: PodRecord, *, force: bool) -> None:
    """End what runs in a pod's own namespace, send DEL if there was an ADD, remove the namespace."""
    path = node.driver.call(node.name, inside.end_processes, pod.namespace)
    if pod.network in modes.BY_CNI:
        try:
            runtime = node.runtime(single=pod.network == modes.BRIDGE)
            runtime.delete(Attachment(pod.container_id, path, pod.interface))
        except PycniError as exc:
            if not force:
                raise LabError(f"pod {pod.name} on {node.name}: {exc}") from exc
    node.driver.call(node.name, inside.delete_namespace, pod.namespace)


def _kubernetes_args(pod: PodRecord) -> dict[str, str]:
    """CNI_ARGS as kubelet's runtimes give them."""
    namespace, name = topology.pod_key(pod.name)
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
    }
