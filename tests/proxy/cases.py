"""How a case of the semantics suite is written down: objects, and who connects where with what result.

A case holds for both families and for TCP and UDP unless it says otherwise, and then for SCTP too: where the kernel has
no SCTP, evaluators alone are asked about it. ``expect`` is a word
of its own, independent of the oracle:

    "a x"       one of these answers and sees the client's own address; all of them do when asked often enough
    "a~ x"      a sees the node's address instead
    "elsewhere" nobody translated it: the machine that has the address answers
    "reject"    refused at once (TCP reset, ICMP port unreachable)
    "drop"      silence
    "closed"    not translated, and nobody listens there: the kernel that has the address refuses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from pycni.model.family import FAMILIES, Family
from pycni.model.kube import (
    SCTP,
    TCP,
    UDP,
    EndpointSlice,
    Ingress,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.service import NodeFacts
from tests.proxy.rig import FACTS
from tests.proxy.topology import NODE, OUTER, PODS, REMOTE, SECOND

VIP, VIP2, FREE = ("10.96.0.10", "fd00:96::10"), ("10.96.0.20", "fd00:96::20"), ("10.96.0.77", "fd00:96::77")
PLACES: Mapping[str, tuple[str, str]] = {
    **OUTER,
    "vip": VIP,
    "vip2": VIP2,
    "free": FREE,
    "node": NODE,
    "second": SECOND,
    "lo": ("127.0.0.1", "::1"),
    "xpod": REMOTE["x"],
}
NODE_PORT = 30080
ENDPOINTS: Mapping[str, tuple[str, str]] = {**PODS, **REMOTE, "host": NODE}
LABEL = "service.kubernetes.io/service-proxy-name"


class Check(NamedTuple):
    """Connections from one client to one place."""

    client: str
    place: str
    """A key of ``PLACES``; ``place:port`` for another port than 80 (the node: than the node port)."""
    expect: str
    how: str = ""
    """"sticky": always the same one answers. "turn": all answer equally often."""

    @property
    def target(self) -> tuple[tuple[str, str], int]:
        """Addresses and port."""
        name, _, port = self.place.partition(":")
        usual = NODE_PORT if name in {"node", "second", "lo"} else 80
        return PLACES[name], int(port or usual)


class Case(NamedTuple):
    """One row of the suite."""

    name: str
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    checks: tuple[Check, ...]
    facts: NodeFacts = FACTS
    families: tuple[Family, ...] = FAMILIES
    protocols: tuple[int, ...] = (TCP, UDP)
    owned: bool = False
    """Untouched packets to addresses a service has: where IPVS serves, these are the node's own, and it refuses."""
    direct: bool = False
    """Direct server return is asked for: who can do it keeps the source, who cannot translates as ever. The pods of the
    rig have no tunnels, so where it is granted only the evaluators are asked."""
    problems: int = 0
    """How many lines the engine reports, data planes' remarks left out."""


PORTS = (
    ServicePortSpec(port=80, name="t", protocol=TCP, target_port=8080),
    ServicePortSpec(port=80, name="u", protocol=UDP, target_port=8080),
    ServicePortSpec(port=80, name="s", protocol=SCTP, target_port=8080),
)
SLICE_PORTS = tuple(SlicePort(port=8080, name=port.name, protocol=port.protocol) for port in PORTS)


def node_ports(port: int = NODE_PORT) -> tuple[ServicePortSpec, ...]:
    """The usual ports with a node port."""
    return tuple(msgspec.structs.replace(item, node_port=port) for item in PORTS)


def svc(name: str = "web", **fields: Any) -> Service:
    """A dual-stack service at ``vip``. ``annotations`` are kube-router's without prefix; ``lb`` and ``external`` are
    places."""
    annotations = {f"kube-router.io/service.{k}": v for k, v in fields.pop("annotations", {}).items()}
    meta = Meta(
        name=name,
        namespace="default",
        labels=fields.pop("labels", {}),
        annotations=annotations,
        created=fields.pop("created", 1),
    )
    if "lb" in fields:
        fields["type"] = "LoadBalancer"
        proxied = fields.pop("proxied", ())
        fields["ingress"] = tuple(
            Ingress(ip=ip, proxy=place in proxied)
            for place in fields.pop("lb").split()
            for ip in PLACES[place]
        )
    if "external" in fields:
        fields["external_ips"] = tuple(ip for place in fields.pop("external").split() for ip in PLACES[place])
    if fields.get("type", "ClusterIP") in {"NodePort", "LoadBalancer"}:
        fields.setdefault("ports", node_ports())
    fields.setdefault("ports", PORTS)
    fields.setdefault("cluster_ips", VIP)
    return Service(meta=meta, **fields)


STATES = {
    "ready": (True, True, False),
    "draining": (False, True, True),
    "gone": (False, False, True),
    "unready": (False, False, False),
}


class At(NamedTuple):
    """An endpoint: whose, and with what beside its address."""

    who: str
    state: str = "ready"
    zone: str = ""
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def eps(*members: str | At, name: str = "web", part: int = 1, **fields: Any) -> tuple[EndpointSlice, ...]:
    """A slice per family. ``"a"`` is a ready endpoint, ``"a:draining"`` one in another state."""
    made = []
    for index, family in enumerate(FAMILIES):
        endpoints = []
        for member in members:
            at = member if isinstance(member, At) else At(*member.split(":"))
            ready, serving, terminating = STATES[at.state]
            endpoints.append(
                SliceEndpoint(
                    address=ENDPOINTS[at.who][index],
                    ready=ready,
                    serving=serving,
                    terminating=terminating,
                    node="n2" if at.who in REMOTE else "n1",
                    zone=at.zone,
                    hint_zones=at.zones,
                    hint_nodes=at.nodes,
                )
            )
        made.append(
            EndpointSlice(
                meta=Meta(
                    name=f"{name}-{family.label}-{part}", namespace="default", labels=fields.get("labels", {})
                ),
                service=f"default/{name}",
                family=family,
                ports=fields.get("ports", SLICE_PORTS),
                endpoints=tuple(endpoints),
                headless=fields.get("headless", False),
            )
        )
    return tuple(made)


def with_facts(**fields: Any) -> NodeFacts:
    """The usual node, but."""
    return msgspec.structs.replace(FACTS, **fields)
