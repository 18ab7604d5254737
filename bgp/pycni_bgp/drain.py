"""Whether a node is to get no more traffic for services, and why. Pure.

The label is the one that load balancers of clouds honour (Kubernetes, "Well-Known Labels"). A node that is being
deleted, or that the cluster autoscaler is going to delete, gets none either (KEP-3836); the taint ``out-of-service`` is
put on nodes that were shut down. A node without scheduling (``kubectl cordon``) still serves, as Kubernetes has it,
unless the setting says otherwise. Taints that Kubernetes puts on a node whose kubelet is silent do not count: its data
plane stays.
"""

from __future__ import annotations

from pycni.model.kube import KubeNode
from pycni_bgp.settings import BgpSettings

LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
TAINTS = ("ToBeDeletedByClusterAutoscaler", "node.kubernetes.io/out-of-service")
BY_HAND = "pycnictl bgp drain"


def reasons(node: KubeNode | None, settings: BgpSettings, *, by_hand: bool) -> tuple[str, ...]:
    """Why this node is being drained; () when it is not."""
    found = [BY_HAND] if by_hand else []
    if node is not None:
        if LABEL in node.meta.labels:
            found.append(f"label {LABEL}")
        found += [f"taint {key}" for key in TAINTS if key in node.taints]
        if node.meta.deleting:
            found.append("it is being deleted")
        if node.unschedulable and settings.drain_unschedulable:
            found.append("it is unschedulable")
    return tuple(found)
