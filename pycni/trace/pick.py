"""Which of a cluster's objects and of a node's pods a question is about. Pure.

Life: an agent is asked with the ends of a trace as they were typed (``shop/web:80``, ``10.96.1.2``, ``node1``) and
answers with what can have a part in it, not with everything it holds: of Services those at the ends, their endpoints,
those endpoints' pods; of policies those of the pods' namespaces, and the cluster-wide ones; the Nodes it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.model.space import PodPlace
from pycni.trace.cluster import Objects

EVERYTHING = "*"
"""The end that all objects have something to do with: for who draws the whole cluster."""
KINDS = (SERVICE, ENDPOINT_SLICE, POD, NAMESPACE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY, NODE)


class Ends(NamedTuple):
    """The ends of traces as names and addresses."""

    names: frozenset[str]
    """Also without what may stand before them (``pod/``, ``svc/``) and in Kubernetes' order."""
    addresses: frozenset[str]
    """Canonical text."""
    ports: frozenset[int]


def ends(words: Iterable[str]) -> Ends:
    """What was typed, taken apart; what makes no sense is in there as a name nobody has."""
    names: set[str] = set()
    addresses: set[str] = set()
    ports: set[int] = set()
    for word in words:
        for host, port in {(word, ""), _parted(word)}:
            if port.isdecimal():
                ports.add(int(port))
            try:
                addresses.add(str(ip_address(host.strip("[]"))))
            except ValueError:
                names |= _names(host)
    return Ends(frozenset(names), frozenset(addresses), frozenset(ports))


def pick(objects: Objects, asked: Ends) -> dict[str, dict[str, Any]]:
    """The objects concerned, by kind and key."""
    if EVERYTHING in asked.names:
        return {kind: dict(objects.of(kind)) for kind in KINDS}
    services = {
        key: service
        for key, service in objects.of(SERVICE).items()
        if _called(key, asked)
        or asked.addresses
        & {*service.cluster_ips, *service.external_ips, *(item.ip for item in service.ingress)}
        or any(port.node_port and port.node_port in asked.ports for port in service.ports)
    }
    slices = {key: item for key, item in objects.of(ENDPOINT_SLICE).items() if item.service in services}
    addresses = asked.addresses | {end.address for item in slices.values() for end in item.endpoints}
    pods = {
        key: pod
        for key, pod in objects.of(POD).items()
        if _called(key, asked) or not addresses.isdisjoint(pod.ips)
    }
    spaces = {pod.meta.namespace for pod in pods.values()}
    namespaces = {key: item for key, item in objects.of(NAMESPACE).items() if key in spaces}
    policies = {
        key: item for key, item in objects.of(NETWORK_POLICY).items() if item.meta.namespace in spaces
    }
    everywhere = dict(objects.of(CLUSTER_NETWORK_POLICY)) if pods else {}
    nodes = dict(objects.of(NODE))
    return dict(zip(KINDS, (services, slices, pods, namespaces, policies, everywhere, nodes), strict=True))


def concerned(pods: Sequence[PodPlace], asked: Ends, more: Mapping[str, Any]) -> list[PodPlace]:
    """The pods a question is about. ``more``: EndpointSlices of its Services, by key."""
    addresses = asked.addresses | {end.address for item in more.values() for end in item.endpoints}
    return [
        pod
        for pod in pods
        if _called(pod.name, asked) or any(str(ip_address(address)) in addresses for address in pod.addresses)
    ]


def _parted(word: str) -> tuple[str, str]:
    """Host and port, where there is one."""
    if word.startswith("["):
        host, _, rest = word[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = word.rpartition(":") if word.count(":") == 1 else (word, "", "")
    return host, port


def _names(host: str) -> set[str]:
    for prefix in ("pod/", "svc/", "service/", "node/"):
        host = host.removeprefix(prefix)
    name, dot, namespace = host.partition(".")
    return {host, f"{namespace}/{name}"} if dot else {host}


def _called(key: str, asked: Ends) -> bool:
    return key in asked.names or key.rpartition("/")[2] in asked.names
