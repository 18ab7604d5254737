"""The Kubernetes objects a check brings: namespace, pods, Services, policies. Pure.

On the first node are three pods, ``a``, ``b`` and ``c``, on every further one a pod ``far-<node>``. All of them serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pycni.check.model import FAR, NAMESPACE, PORT, Site

FIRST = ("a", "b", "c")
"""Pods of the first node. ``a`` asks most, ``b`` gets the egress policy, ``c`` is the one that is denied."""
APP = "pycni-check"
ALL, OWN, STICKY, HEADLESS = "all", "own", "sticky", "headless"
"""Services: all servers, ``a`` alone, all with affinity, all without an address."""
CLOSED, OPENED, KEPT, LET_OUT = "closed", "opened", "kept", "let-out"
"""Policies: ingress denied and allowed for one, egress denied and allowed to one."""
LABELS = {
    "app.kubernetes.io/managed-by": "pycnictl-check",
    # The pods that ask need raw sockets, and some are in their node's network.
    "pod-security.kubernetes.io/enforce": "privileged",
}
Mappings = dict[str, Any]


def far(site: Site) -> list[str]:
    """The pods of the further nodes, in their order. A name is a label's value too, which has 63 characters at most."""
    names = [FAR + node.name for node in site.nodes[1:]]
    return [name if len(name) < 60 else f"{FAR}{number}" for number, name in enumerate(names, 2)]


def pods(site: Site) -> dict[str, str]:
    """Node by pod."""
    first, *others = site.nodes
    return {
        **dict.fromkeys(FIRST, first.name),
        **{name: node.name for name, node in zip(far(site), others, strict=True)},
    }


def guarded(site: Site) -> str:
    """The pod that ingress policies are about: on another node where there is one."""
    return far(site)[0] if len(site.nodes) > 1 else "c"


def namespace() -> Mappings:
    """The check's own."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": dict(LABELS)}}


def pod(name: str, node: str, **spec: Any) -> Mappings:
    """A server."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": APP, "name": name}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, **spec},
    }


def services() -> list[Mappings]:
    """The Services."""
    everybody = {"app": APP}
    return [
        _service(ALL, everybody, type="NodePort"),
        _service(OWN, {**everybody, "name": FIRST[0]}),
        _service(STICKY, everybody, sessionAffinity="ClientIP"),
        _service(HEADLESS, everybody, clusterIP="None"),
    ]


def denying(site: Site) -> list[Mappings]:
    """Nobody gets to one pod, another one gets to nobody."""
    return [
        _policy(CLOSED, guarded(site), {"policyTypes": ["Ingress"]}),
        _policy(KEPT, FIRST[1], {"policyTypes": ["Egress"]}),
    ]


def allowing(site: Site) -> list[Mappings]:
    """``a`` does, and ``b`` gets to ``a``: by the servers' port."""
    peer = [{"podSelector": {"matchLabels": {"name": FIRST[0]}}}]
    ports = [{"port": PORT}, {"port": PORT, "protocol": "UDP"}]
    return [
        _policy(
            OPENED, guarded(site), {"policyTypes": ["Ingress"], "ingress": [{"from": peer, "ports": ports}]}
        ),
        _policy(LET_OUT, FIRST[1], {"policyTypes": ["Egress"], "egress": [{"to": peer, "ports": ports}]}),
    ]


def _service(name: str, selector: Mapping[str, str], **spec: Any) -> Mappings:
    ports = [
        {"name": protocol.lower(), "port": 80, "targetPort": PORT, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    own = {"selector": dict(selector), "ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec}
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": own}


def _policy(name: str, subject: str, spec: Mapping[str, Sequence[Any]]) -> Mappings:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"name": subject}}, **spec},
    }
