"""Where a pod of a lab has its network from: the cluster's, by CNI, or one of the ways a single host knows. Pure.

Life: ``lab pod add --network`` gives the words, ``check`` refuses wrong ones, the pod's record keeps them; ``pods``
makes it so, and the matrix asks ``reaches`` which pairs of hosts there is a way between.

    cluster         a namespace of its own, an address of its node's subnet, by the conflist of the cluster's network
    bridge          a namespace of its own on a bridge that no other node knows of, behind its node's address
    host            no namespace of its own: the node's
    container:NAME  no namespace of its own: that of another pod
    none            a namespace with nothing but loopback
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pycni.lab.topology import LabError, check_pod_name

if TYPE_CHECKING:
    from pycni.lab.state import PodRecord

CLUSTER, BRIDGE, HOST, NONE = "cluster", "bridge", "host", "none"
UNDERLAY = "underlay"
"""Of pods of the cluster where it has them on the underlay."""
PLAIN = (CLUSTER, BRIDGE, HOST, NONE)
SHARED = "container:"
BY_CNI = (CLUSTER, BRIDGE)
"""Made by the plugin, by a conflist."""


def check(network: str, driver: str, *, capabilities: object = None, manifest: object = None) -> None:
    """Refuse words of ``--network`` that mean nothing, or nothing here. Raises LabError."""
    if network.startswith(SHARED):
        check_pod_name(network.removeprefix(SHARED))
    elif network not in PLAIN:
        raise LabError(f"--network {network!r}: not one of {', '.join(PLAIN)}, {SHARED}NAME", usage=True)
    if network == BRIDGE and driver == "uml":
        raise LabError(
            f"--network {network!r}: guests, which have no nftables, cannot masquerade", usage=True
        )
    if capabilities and network not in BY_CNI:
        raise LabError(f"--network {network!r}: no plugin is asked that had capabilities", usage=True)
    if manifest and network != CLUSTER:
        reason = "labels and ports are for pods of the cluster's network"
        raise LabError(f"--network {network!r}: {reason}", usage=True)


def lender(network: str) -> str:
    """The pod whose namespace is shared, "" for none."""
    return network.removeprefix(SHARED) if network.startswith(SHARED) else ""


def root(pod: PodRecord, pods: Mapping[str, PodRecord]) -> str:
    """The way a pod has its network, be it by another: one of ``PLAIN``. ``pods``: all of them, by name."""
    other = pods.get(lender(pod.network))
    return NONE if other is None and lender(pod.network) else (other or pod).network


def reaches(source: str, source_node: str, target: str, target_node: str) -> bool:
    """Whether there is a way from one host to another. A node is a host in the way of ``host``.

    Between two nodes it is the underlay's business. Behind its node's address nobody from elsewhere reaches a pod,
    nor do those that are on the underlay themselves and send past their node.
    """
    if NONE in {source, target} or (source == target == HOST):
        return False
    return target != BRIDGE or (source_node == target_node and source != UNDERLAY)
