"""What the lab's DNS says: the Kubernetes DNS specification (1.1.0) as dnsmasq's files. Pure.

Life: ``lab apply`` computes ``Records`` from the lab's objects after every change, ``dns_server`` hands them on.

    web.shop.svc.cluster.local                A, AAAA   ClusterIPs; headless: every ready endpoint
    _http._tcp.web.shop.svc.cluster.local     SRV       named ports
    10-244-1-5.web.shop.svc.cluster.local     A, AAAA   an endpoint of a headless Service (its hostname when it has one)
    ext.shop.svc.cluster.local                CNAME     ExternalName
    20.0.96.10.in-addr.arpa                   PTR
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pycni.lab import topology
from pycni.lab.apply_settle import LISTEN
from pycni.lab.objects import Key, Mappings, decoded
from pycni.lab.topology import DNS_DOMAIN, LabSpec
from pycni.model.kube import (
    ENDPOINT_SLICE,
    POD,
    PROTOCOL_NAMES,
    SERVICE,
    EndpointSlice,
    Service,
    SliceEndpoint,
)

DNS_POD = Key(POD, "kube-system", "dns")
ZONE = f"svc.{DNS_DOMAIN}"
_PRIORITY, _WEIGHT = 0, 100


class Records(NamedTuple):
    """Texts of files."""

    hosts: str
    """In the notation of hosts(5): addresses, and by them PTR."""
    special: str
    """dnsmasq options: srv-host and cname, which it reads only when it starts."""


def records(objects: Mapping[Key, Mappings]) -> Records:
    """Everything DNS knows, sorted."""
    slices: dict[str, list[EndpointSlice]] = {}
    for key, value in objects.items():
        if key.kind == ENDPOINT_SLICE and isinstance(item := decoded(value), EndpointSlice) and item.service:
            slices.setdefault(item.service, []).append(item)
    hosts: list[str] = []
    special: list[str] = []
    for key, value in objects.items():
        if key.kind != SERVICE or not isinstance(service := decoded(value), Service):
            continue
        name = f"{key.name}.{key.namespace}.{ZONE}"
        if service.type == "ExternalName":
            special.append(f"cname={name},{value['spec']['externalName'].rstrip('.')}")
        elif service.cluster_ips == ("None",):
            _headless(name, slices.get(service.meta.key, ()), hosts, special)
        else:
            hosts += [f"{address} {name}" for address in service.cluster_ips]
            special += [
                _srv(port.name, port.protocol, name, name, port.port) for port in service.ports if port.name
            ]
    return Records(_text(hosts), _text(special))


def resolv_conf(namespace: str, servers: Iterable[str]) -> str:
    """resolv.conf(5) of a pod, as kubelet writes it for dnsPolicy ClusterFirst."""
    lines = [f"search {namespace}.{ZONE} {ZONE} {DNS_DOMAIN}"]
    return "\n".join([*lines, *(f"nameserver {server}" for server in servers), "options ndots:5", ""])


def _headless(name: str, slices: Iterable[EndpointSlice], hosts: list[str], special: list[str]) -> None:
    for item in slices:
        for endpoint in item.endpoints:
            if not endpoint.ready:
                continue
            own = f"{_label(endpoint)}.{name}"
            hosts.append(f"{endpoint.address} {own} {name}")
            special += [
                _srv(port.name, port.protocol, name, own, port.port) for port in item.ports if port.name
            ]


def _label(endpoint: SliceEndpoint) -> str:
    return endpoint.hostname or endpoint.address.replace(".", "-").replace(":", "-").strip("-")


def _srv(port: str, protocol: int, name: str, target: str, number: int) -> str:
    label = PROTOCOL_NAMES[protocol].lower()
    return f"srv-host=_{port}._{label}.{name},{target},{number},{_PRIORITY},{_WEIGHT}"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in sorted(set(lines)))


def objects(spec: LabSpec) -> list[Mappings]:
    """The pod of the DNS server and its Service."""
    labels = {"k8s-app": "kube-dns"}
    meta = {"namespace": DNS_POD.namespace, "labels": labels}
    protocols = {"dns": "UDP", "dns-tcp": "TCP"}
    return [
        {
            "apiVersion": "v1",
            "kind": POD,
            "metadata": {**meta, "name": DNS_POD.name, "annotations": {LISTEN: "off"}},
            "spec": {
                "containers": [
                    {
                        "name": "dnsmasq",
                        "ports": [
                            {"name": name, "containerPort": 53, "protocol": protocol}
                            for name, protocol in protocols.items()
                        ],
                    }
                ]
            },
        },
        {
            "apiVersion": "v1",
            "kind": SERVICE,
            "metadata": {**meta, "name": "kube-dns"},
            "spec": {
                "clusterIPs": list(topology.dns_addresses(spec)),
                "selector": labels,
                "ports": [
                    {"name": name, "port": 53, "protocol": protocol} for name, protocol in protocols.items()
                ],
            },
        },
    ]
