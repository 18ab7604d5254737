"""The nine pods of the policy suites, as upstream's end-to-end tests have them, and a lab with them.

namespaces x, y, z (label ns), pods a, b, c in each (label pod), ports 80 and 81 by TCP, UDP and SCTP,
named serve-80-tcp ... serve-81-sctp; pod j of namespace i runs on node (i + j) mod 3, so every pair of letters
and every pair of namespaces meets on one node and between nodes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycni.model.kube import PROTOCOL_NAMES, SCTP, TCP, UDP

SPACES, LETTERS = ("x", "y", "z"), ("a", "b", "c")
NODES = ("node1", "node2", "node3")
PODS = tuple(f"{space}/{letter}" for space in SPACES for letter in LETTERS)
PROTOCOLS = (TCP, UDP, SCTP)
NUMBERS = (80, 81)
PORTS = tuple((protocol, number) for protocol in PROTOCOLS for number in NUMBERS)

Mappings = dict[str, Any]


def node_of(pod: str) -> str:
    space, letter = pod.split("/")
    return NODES[(SPACES.index(space) + LETTERS.index(letter)) % len(NODES)]


def port_name(number: int, protocol: int) -> str:
    return f"serve-{number}-{PROTOCOL_NAMES[protocol].lower()}"


def space_labels(space: str) -> dict[str, str]:
    return {"ns": space}


def pod_labels(pod: str) -> dict[str, str]:
    return {"pod": pod.split("/")[1]}


def space_object(space: str, labels: Mapping[str, str] | None = None) -> Mappings:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": space, "labels": dict(space_labels(space) if labels is None else labels)},
    }


def pod_object(pod: str) -> Mappings:
    space, name = pod.split("/")
    ports = [
        {
            "name": port_name(number, protocol),
            "containerPort": number,
            "protocol": PROTOCOL_NAMES[protocol],
        }
        for protocol, number in PORTS
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        # The prober listens in the pods itself.
        "metadata": {
            "name": name,
            "namespace": space,
            "labels": {**pod_labels(pod), "all": "pods"},
            "annotations": {"pycni/listen": "off"},
        },
        "spec": {"nodeName": node_of(pod), "containers": [{"name": "c", "ports": ports}]},
    }


def service_object(pod: str) -> Mappings:
    """A Service of which one pod is the only endpoint, on ports 8080 and 8081."""
    space, name = pod.split("/")
    ports = [
        {
            "name": port_name(number, protocol),
            "port": number + 8000,
            "targetPort": port_name(number, protocol),
            "protocol": PROTOCOL_NAMES[protocol],
        }
        for protocol, number in PORTS
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"pod": name}, "ipFamilyPolicy": "RequireDualStack", "ports": ports},
    }
