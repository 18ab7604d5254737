"""Short ways to write down services, slices and the node they are resolved for."""

from __future__ import annotations

import ipaddress
from typing import Any

from pycni.model.family import Family
from pycni.model.kube import (
    TCP,
    EndpointSlice,
    Ingress,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.service import Frontend, NodeFacts, Packet, Pool, Resolved
from pycni.view.services import resolve

V4, V6 = Family.V4, Family.V6


def net(text: str) -> Any:
    return ipaddress.ip_network(text)


def pack(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


FACTS = NodeFacts(
    name="n1",
    zone="z1",
    addresses=(pack("192.168.0.1"), pack("fd00:a::1")),
    cluster_networks=(net("10.244.0.0/16"), net("fd00:244::/32")),
    service_networks=(net("10.96.0.0/16"), net("fd00:96::/112")),
    external_ip_ranges=(net("203.0.113.0/24"), net("2001:db8::/64")),
    families=(V4, V6),
)


def service(name: str = "web", namespace: str = "default", **fields: Any) -> Service:
    """A ClusterIP service on 10.96.0.10:80 unless told otherwise. ``annotations`` without their prefix."""
    annotations = {f"kube-router.io/service.{k}": v for k, v in fields.pop("annotations", {}).items()}
    meta = Meta(
        name=name,
        namespace=namespace,
        annotations=annotations,
        labels=fields.pop("labels", {}),
        created=fields.pop("created", 1),
    )
    fields.setdefault("cluster_ips", ("10.96.0.10",))
    fields.setdefault("ports", (ServicePortSpec(port=80, target_port=8080),))
    return Service(meta=meta, **fields)


def ep(address: str, node: str = "n1", state: str = "ready", **fields: Any) -> SliceEndpoint:
    """An endpoint; ``state`` is ready, draining (serving, terminating), gone (terminating only) or unready."""
    conditions = {
        "ready": {"ready": True, "serving": True, "terminating": False},
        "draining": {"ready": False, "serving": True, "terminating": True},
        "gone": {"ready": False, "serving": False, "terminating": True},
        "unready": {"ready": False, "serving": False, "terminating": False},
        "odd": {"ready": False, "serving": True, "terminating": False},
    }[state]
    return SliceEndpoint(address=address, node=node, **conditions, **fields)


def piece(*endpoints: SliceEndpoint, name: str = "web-1", service_key: str = "default/web", **fields: Any):
    labels = fields.pop("labels", {})
    fields.setdefault("ports", (SlicePort(port=8080, protocol=fields.pop("protocol", TCP)),))
    family = V6 if endpoints and ":" in endpoints[0].address else V4
    fields.setdefault("family", family)
    return EndpointSlice(
        meta=Meta(name=name, namespace=service_key.split("/", maxsplit=1)[0], labels=labels),
        service=service_key,
        endpoints=endpoints,
        **fields,
    )


def vip(ip: str, *, proxy: bool = False) -> Ingress:
    return Ingress(ip=ip, proxy=proxy)


def show_pool(pool: Pool | None) -> str:
    """``10.244.1.1:8080 ... drain 10.244.1.2:8080``; REJECT or DROP when empty."""
    if pool is None:
        return "-"
    words = [str(target) + ("*" if target.local else "") for target in pool.targets] or [pool.empty.name]
    if pool.draining:
        words += ["drain", *(str(target) for target in pool.draining)]
    return " ".join(words)


def show(frontend: Frontend) -> str:
    """One line: what, where, pool, inside."""
    line = f"{frontend.kind.label} {frontend.key} -> {show_pool(frontend.pool)}"
    if frontend.local_only:
        line += " local"
    if frontend.inside is not None:
        line += f" inside {show_pool(frontend.inside)}"
    if frontend.source_ranges is not None:
        line += " from " + (",".join(map(str, frontend.source_ranges)) or "nobody")
    return line


def resolved(svc: Service, *slices: EndpointSlice, facts: NodeFacts = FACTS) -> Resolved:
    return resolve(svc, slices, facts)


def lines(svc: Service, *slices: EndpointSlice, facts: NodeFacts = FACTS) -> list[str]:
    return [show(item) for item in resolve(svc, slices, facts).frontends]


def packet(source: str, to: str, port: int = 80, protocol: int = TCP, *, from_node: bool = False) -> Packet:
    return Packet(pack(source), 40000, pack(to), protocol, port, from_node)
