"""Pods of a lab: a namespace each, attached by the real CNI executable.

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
from pycni.lab import inside, topology
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
    state: LabState, node: LabNode, name: str, capability_args: Mapping[str, Any] | None = None
) -> PodRecord:
    """Make a pod. Raises LabError with the plugin's error, after which nothing of the pod is left."""
    lab = node.spec.name
    space = topology.pod_namespace(lab, name)
    container_id = f"{lab}-{name}-{os.urandom(4).hex()}"
    pod = PodRecord(name=name, node=node.name, namespace=space, container_id=container_id)
    if not state.claim_pod(pod):
        raise PodExistsError(f"lab {lab} has a pod {name} already", usage=True)
    try:
        path = node.driver.call(node.name, inside.make_namespace, space)
    except BaseException as exc:
        state.drop_pod(name)
        if isinstance(exc, KernelError) and exc.errno == errno.EEXIST:
            raise PodExistsError(f"lab {lab} has a pod {name} already", usage=True) from exc
        raise
    attachment = Attachment(
        container_id,
        path,
        pod.interface,
        cni_args=_kubernetes_args(pod),
        capability_args=capability_args or {},
    )
    try:
        outcome = node.runtime().add(attachment)
    except PycniError as exc:
        node.driver.call(node.name, inside.delete_namespace, space)
        state.drop_pod(name)
        notes = "".join(f" ({note})" for note in getattr(exc, "__notes__", ()))
        raise LabError(f"pod {name} on {node.name}: {exc}{notes}") from exc
    result = outcome.result or {}
    addresses = [ip_interface(item["address"]).ip for item in result.get("ips", ())]
    pod = msgspec.structs.replace(
        pod,
        ips=tuple(str(address) for address in sorted(addresses, key=lambda item: item.version)),
        result=result,
        add_seconds=outcome.seconds,
    )
    state.put_pod(pod)
    return pod


def add_any(state: LabState, node: LabNode, capability_args: Mapping[str, Any] | None = None) -> PodRecord:
    """Make a pod with the first free name ``pod<n>``."""
    number = 1
    while True:
        try:
            return add(state, node, f"pod{number}", capability_args)
        except PodExistsError:
            number += 1


def remove(state: LabState, node: LabNode, pod: PodRecord, *, force: bool = False) -> None:
    """Remove a pod. ``force``: also when DEL fails, else LabError and the pod stays for another try."""
    path = node.driver.call(node.name, inside.end_processes, pod.namespace)
    try:
        node.runtime().delete(Attachment(pod.container_id, path, pod.interface))
    except PycniError as exc:
        if not force:
            raise LabError(f"pod {pod.name} on {node.name}: {exc}") from exc
    node.driver.call(node.name, inside.delete_namespace, pod.namespace)
    state.drop_pod(pod.name)


def _kubernetes_args(pod: PodRecord) -> dict[str, str]:
    """CNI_ARGS as kubelet's runtimes give them."""
    namespace, name = topology.pod_key(pod.name)
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
    }
