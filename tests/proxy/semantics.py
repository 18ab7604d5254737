"""The semantics suite: every row of kube-proxy's rules (field.md 4.1, 4.2) and every annotation of kube-router's."""

from __future__ import annotations

from collections.abc import Sequence

from pycni.model.family import Family
from pycni.model.kube import TCP, EndpointSlice, Service, ServicePortSpec, SlicePort
from tests.proxy.cases import LABEL, PORTS, VIP, VIP2, At, Case, Check, eps, svc, with_facts
from tests.unit.service_world import net

_CASES: list[Case] = []


def case(
    name: str,
    services: Service | Sequence[Service],
    slices: Sequence[EndpointSlice],
    checks: Sequence[tuple[str, ...]],
    **fields: object,
) -> None:
    made = (services,) if isinstance(services, Service) else tuple(services)
    _CASES.append(Case(name, made, tuple(slices), tuple(Check(*item) for item in checks), **fields))  # type: ignore[arg-type]


def rows() -> list[Case]:
    """All cases, in the order they are best run: changes of facts cost new data planes."""
    if not _CASES:
        for part in (_endpoints, _hints, _verdicts, _policies, _addresses, _annotations, _others):
            part()
        assert len({item.name for item in _CASES}) == len(_CASES)
    return _CASES


def _endpoints() -> None:
    everywhere = svc(type="LoadBalancer", lb="lb", external="ext")
    case("ready endpoints anywhere answer", svc(), eps("a", "x"), [
        ("c", "vip", "a x"), ("a", "vip", "a~ x"), ("node", "vip", "a~ x~"),
        ("out", "vip", "a~ x~"),
    ])  # fmt: skip
    case("without endpoints every kind of address rejects", everywhere, eps(), [
        (client, place, "reject") for client in ("c", "node", "out") for place in ("vip", "node", "ext", "lb")
    ])  # fmt: skip
    case("unready and ended endpoints are nobody", everywhere, eps("a:unready", "x:gone"), [
        ("c", "vip", "reject"), ("out", "node", "reject"), ("node", "lb", "reject"),
    ])  # fmt: skip
    case("what drains gets nothing new while others are ready", svc(), eps("a", "b:draining", "x:draining"), [
        ("c", "vip", "a"), ("out", "vip", "a~"),
    ])  # fmt: skip
    case("without ready ones those that drain and serve answer", everywhere, eps("a:draining", "x:draining"), [
        ("c", "vip", "a x"), ("out", "node", "a~ x~"), ("out", "lb", "a~ x~"),
    ])  # fmt: skip
    case("Local falls back to what drains here, though others are ready elsewhere",
         svc(lb="lb", internal_local=True, external_local=True), eps("a:draining", "x"), [
        ("c", "vip", "a"), ("out", "lb", "a"), ("out", "node", "a"), ("c", "lb", "x"),
    ])  # fmt: skip
    case("an address in several slices counts once", svc(annotations={"scheduler": "rr"}),
         (*eps("a", "x"), *eps("a", part=2)), [("c", "vip", "a x", "turn")])  # fmt: skip
    case("of two entries of an address the better conditions count", svc(),
         (*eps("a:draining", "x"), *eps("a", part=2)), [("c", "vip", "a x")])  # fmt: skip
    case("headless slices are ignored", svc(), eps("a", headless=True), [("c", "vip", "reject")])
    case("slices of another proxy are ignored", svc(), eps("a", labels={LABEL: "other"}), [
        ("c", "vip", "reject"),
    ])  # fmt: skip
    case("an endpoint in the node's own network answers", svc(), eps(
        "host", ports=tuple(SlicePort(port=9090, name=port.name, protocol=port.protocol) for port in PORTS)
    ), [("c", "vip", "host"), ("x", "vip", "host")])  # fmt: skip


def _hints() -> None:
    far = At("x", zones=("z2",), nodes=("n2",))
    case("zone hints keep to the zone", svc(type="NodePort"), eps(At("a", zones=("z1",)), far), [
        ("c", "vip", "a"), ("out", "node", "a~"),
    ])  # fmt: skip
    case("zone hints may name a remote endpoint", svc(), eps(At("a", zones=("z2",)), At("x", zones=("z1",))), [
        ("c", "vip", "x"),
    ])  # fmt: skip
    case("one ready endpoint without zone hint voids them", svc(), eps(At("a", zones=("z1",)), "x"), [
        ("c", "vip", "a x"),
    ])  # fmt: skip
    case("zone hints that name nobody here are void", svc(), eps(At("a", zones=("z3",)), far), [
        ("c", "vip", "a x"),
    ])  # fmt: skip
    case("node hints go before zone hints", svc(),
         eps(At("a", zones=("z1",), nodes=("n1",)), At("x", zones=("z1",), nodes=("n2",))), [
        ("c", "vip", "a"),
    ])  # fmt: skip
    case("node hints that name nobody here leave the zone", svc(),
         eps(At("a", zones=("z2",), nodes=("n3",)), At("x", zones=("z1",), nodes=("n2",))), [
        ("c", "vip", "x"),
    ])  # fmt: skip
    case("Local does not look at hints", svc(type="NodePort", external_local=True, internal_local=True),
         eps(At("a", zones=("z2",)), At("x", zones=("z1",))), [
        ("c", "vip", "a"), ("out", "node", "a"), ("c", "node", "x"),
    ])  # fmt: skip
    case("PreferClose without hints goes by zones", svc(traffic_distribution="PreferClose"),
         eps(At("a", zone="z1"), At("x", zone="z2")), [("c", "vip", "a")])  # fmt: skip
    case("PreferSameZone without hints goes by zones", svc(traffic_distribution="PreferSameZone"),
         eps(At("a", zone="z2"), At("x", zone="z1")), [("c", "vip", "x")])  # fmt: skip
    case("PreferSameNode without hints goes by nodes", svc(traffic_distribution="PreferSameNode"),
         eps(At("a", zone="z2"), At("x", zone="z1")), [("c", "vip", "a")])  # fmt: skip


def _verdicts() -> None:
    case("Local with endpoints only elsewhere is silent to outsiders", svc(lb="lb", external_local=True), eps("x"), [
        ("out", "node", "drop"), ("out", "lb", "drop"), ("c", "lb", "x"), ("c", "node", "x"),
        ("node", "lb", "x~"), ("node", "node", "x~"), ("out", "vip", "x~"),
    ])  # fmt: skip
    case("external IPs follow the external policy", svc(external="ext", external_local=True), eps("x"), [
        ("out", "ext", "drop"), ("c", "ext", "x"), ("node", "ext", "x~"),
    ])  # fmt: skip
    case("internal Local with endpoints only elsewhere is silent", svc(type="NodePort", internal_local=True),
         eps("x"), [("c", "vip", "drop"), ("node", "vip", "drop"), ("c", "node", "x~"), ("out", "node", "x~")])  # fmt: skip
    case("Local without any endpoint rejects", svc(lb="lb", internal_local=True, external_local=True), eps(), [
        ("c", "vip", "reject"), ("out", "lb", "reject"), ("out", "node", "reject"), ("c", "lb", "reject"),
        ("node", "node", "reject"),
    ])  # fmt: skip
    case("other ports of a cluster IP reject", svc(), eps("a"), [
        (client, "vip:81", "reject") for client in ("c", "node", "out")
    ])  # fmt: skip
    case("a port of another protocol is another port", svc(ports=PORTS[1:2]), eps("a"), [
        ("c", "vip", "reject"), ("out", "vip", "reject"),
    ], protocols=(TCP,))  # fmt: skip
    case("unallocated service addresses are silent", svc(), eps("a"), [
        (client, "free", "drop") for client in ("c", "node", "out")
    ])  # fmt: skip
    case("other ports of outer addresses are not touched", svc(lb="lb", external="ext", ports=tuple(
        ServicePortSpec(port=8000, name=port.name, protocol=port.protocol) for port in PORTS
    )), eps("a"), [("c", "lb", "elsewhere"), ("out", "ext", "elsewhere")], owned=True)  # fmt: skip


def _policies() -> None:
    both = svc(lb="lb", external="ext")
    case("Cluster: any endpoint, the source hidden", both, eps("a", "x"), [
        (client, place, "a~ x~") for client in ("c", "node", "out") for place in ("node", "lb", "ext")
    ])  # fmt: skip
    case("external Local: this node's endpoints, the source kept",
         svc(lb="lb", external="ext", external_local=True), eps("a", "b", "x"), [
        ("out", "node", "a b"), ("out", "lb", "a b"), ("out", "ext", "a b"),
    ])  # fmt: skip
    case("what pods and the node send to Local addresses goes to all",
         svc(lb="lb", external="ext", external_local=True), eps("a", "x"), [
        ("c", "lb", "a x"), ("a", "lb", "a~ x"), ("node", "lb", "a~ x~"), ("c", "node", "a x"),
        ("c", "ext", "a x"), ("node", "node", "a~ x~"),
    ])  # fmt: skip
    case("internal Local: this node's endpoints", svc(type="NodePort", internal_local=True), eps("a", "b", "x"), [
        ("c", "vip", "a b"), ("a", "vip", "a~ b"), ("node", "vip", "a~ b~"), ("out", "vip", "a~ b~"),
        ("c", "node", "a~ b~ x~"),
    ])  # fmt: skip
    case("both Local: outer addresses still short-circuit", svc(lb="lb", internal_local=True, external_local=True),
         eps("x"), [("c", "vip", "drop"), ("c", "lb", "x"), ("out", "lb", "drop")])  # fmt: skip


def _addresses() -> None:
    ranges = ("192.0.2.9/32", "2001:db8:9::9/128")
    case("source ranges hold for the load balancer's address alone", svc(lb="lb", source_ranges=ranges), eps("a"), [
        ("out", "lb", "a~"), ("out2", "lb", "drop"), ("c", "lb", "drop"), ("node", "lb", "drop"),
        ("out2", "node", "a~"), ("c", "vip", "a"),
    ])  # fmt: skip
    case("source ranges with the node's and the pods' addresses let those in",
         svc(lb="lb", source_ranges=("192.168.0.0/24", "fd00:a::/64", "10.244.0.0/16", "fd00:244::/32")),
         eps("a"), [("node", "lb", "a~"), ("c", "lb", "a~"), ("out", "lb", "drop")])  # fmt: skip
    case("source ranges stand before the endpoints", svc(lb="lb", source_ranges=ranges), eps(), [
        ("out", "lb", "reject"), ("out2", "lb", "drop"),
    ])  # fmt: skip
    case("source ranges and Local", svc(lb="lb", source_ranges=ranges, external_local=True), eps("a", "x"), [
        ("out", "lb", "a"), ("out2", "lb", "drop"),
    ])  # fmt: skip
    case("a family without source ranges of its own is shut", svc(lb="lb", source_ranges=ranges[:1]), eps("a"), [
        ("out", "lb", "drop"),
    ], families=(Family.V6,))  # fmt: skip
    case("a load balancer of mode Proxy is not short-circuited", svc(lb="lb lb2", proxied=("lb",)), eps("a"), [
        ("c", "lb", "elsewhere"), ("node", "lb", "elsewhere"), ("out", "lb", "elsewhere"), ("c", "lb2", "a~"),
    ])  # fmt: skip
    case("without node ports there is none", svc(lb="lb", allocate_node_ports=False, ports=PORTS), eps("a"), [
        ("out", "node", "closed"), ("out", "lb", "a~"),
    ])  # fmt: skip
    case("node ports are at the primary address only", svc(type="NodePort"), eps("a"), [
        ("out", "node", "a~"), ("out", "second", "closed"), ("node", "lo", "closed"), ("c", "second", "closed"),
    ])  # fmt: skip
    case("an allowed external IP is served, others are not", svc(external="ext stray"), eps("a"), [
        ("out", "ext", "a~"), ("c", "ext", "a~"), ("c", "stray", "elsewhere"), ("out", "stray", "elsewhere"),
    ], problems=2)  # fmt: skip
    case("an external IP takes over neither cluster IPs nor nodes nor pods",
         [svc(created=2), svc("evil", created=1, cluster_ips=VIP2, external="vip node xpod")],
         (*eps("a"), *eps("b", name="evil")), [
        ("c", "vip", "a"), ("out", "node:80", "closed"), ("c", "xpod", "x"), ("c", "vip2", "b"),
    ], problems=6)  # fmt: skip
    case("of two services that want an address the older one has it",
         [svc(created=5, external="ext"), svc("zz", created=4, cluster_ips=VIP2, external="ext")],
         (*eps("a"), *eps("b", name="zz")), [("out", "ext", "b~"), ("c", "vip", "a"), ("c", "vip2", "b")],
         problems=6)  # fmt: skip


def _annotations() -> None:
    case("local: this node's endpoints, whatever the policies", svc(lb="lb", annotations={"local": "true"}),
         eps("a", "x"), [("c", "vip", "a"), ("out", "lb", "a"), ("out", "node", "a"), ("c", "lb", "a x")])  # fmt: skip
    case("local: silence without endpoints here", svc(type="NodePort", annotations={"local": "true"}), eps("x"), [
        ("c", "vip", "drop"), ("out", "node", "drop"),
    ])  # fmt: skip
    case("skiplbips: the load balancer's addresses are left alone", svc(lb="lb", annotations={"skiplbips": "true"}),
         eps("a"), [("c", "lb", "elsewhere"), ("out", "lb", "elsewhere"), ("out", "node", "a~")])  # fmt: skip
    case("hairpin: a pod reaches itself", svc(lb="lb", external="ext", annotations={
        "hairpin": "true", "hairpin.externalips": "true"
    }), eps("a"), [
        ("a", "vip", "a~"), ("a", "ext", "a~"), ("a", "lb", "a~"), ("a", "node", "a~"), ("c", "vip", "a"),
    ])  # fmt: skip
    case("hairpin with Local: a pod reaches itself", svc(lb="lb", external_local=True, internal_local=True,
         annotations={"hairpin": "true", "hairpin.externalips": "true"}), eps("a"), [
        ("a", "vip", "a~"), ("a", "lb", "a~"), ("c", "lb", "a"), ("x", "node", "a"), ("x", "vip", "a"),
    ])  # fmt: skip
    for name in "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh".split():
        how = "turn" if name in {"rr", "wrr"} else "sticky" if name in {"sh", "dh", "mh"} else "any"
        flags = {"schedflags": "flag-1"} if name in {"sh", "mh"} else {}
        case(f"scheduler {name}", svc(type="NodePort", annotations={"scheduler": name, **flags}), eps("a", "x"), [
            ("c", "vip", "a x", how), ("out", "node", "a~ x~", how),
        ])  # fmt: skip
    straight = tuple(ServicePortSpec(port=80, name=port.name, protocol=port.protocol) for port in PORTS)
    same = tuple(SlicePort(port=80, name=port.name, protocol=port.protocol) for port in PORTS)
    case("dsr: addresses from outside keep the source where it is granted",
         svc(lb="lb", external="ext", ports=straight, annotations={"dsr": "tunnel"}), eps("a", ports=same), [
        ("out", "lb", "a"), ("out", "ext", "a"),
    ], direct=True)  # fmt: skip
    case("dsr: cluster IPs are translated", svc(lb="lb", ports=straight, annotations={"dsr": "tunnel"}),
         eps("a", ports=same), [("c", "vip", "a"), ("out", "vip", "a~")])  # fmt: skip
    case("dsr: a port that differs is translated, and reported", svc(lb="lb", annotations={"dsr": "tunnel"}),
         eps("a"), [("out", "lb", "a~")], problems=1)  # fmt: skip
    case("an unknown scheduler is reported and the default serves", svc(annotations={"scheduler": "best"}),
         eps("a", "x"), [("c", "vip", "a x")], problems=1)  # fmt: skip


def _others() -> None:
    case("affinity and Local: outsiders and pods each stay with their endpoint",
         svc(lb="lb", external="ext", affinity_s=60, external_local=True), eps("a", "b", "x"), [
        *(("out", place, "a b", "sticky") for place in ("lb", "ext", "node")),
        *(("c", place, "a b x", "sticky") for place in ("lb", "ext", "node")), ("node", "lb", "a~ b~ x~", "sticky"),
    ])  # fmt: skip
    case("affinity: a client stays with its endpoint", svc(type="NodePort", affinity_s=60), eps("a", "b", "x"), [
        ("c", "vip", "a b x", "sticky"), ("out", "node", "a~ b~ x~", "sticky"),
        ("node", "vip", "a~ b~ x~", "sticky"),
    ])  # fmt: skip
    case("headless services are not served", svc(cluster_ips=("None",)), eps("a"), [("c", "vip", "drop")])
    case("ExternalName services are not served", svc(type="ExternalName", external="ext"), eps("a"), [
        ("c", "vip", "drop"), ("c", "ext", "elsewhere"),
    ])  # fmt: skip
    case("services of another proxy are not served", svc(lb="lb", labels={LABEL: "other"}), eps("a"), [
        ("c", "lb", "elsewhere"), ("out", "node", "closed"),
    ])  # fmt: skip
    case("services labelled headless are not served",
         svc(lb="lb", labels={"service.kubernetes.io/headless": ""}), eps("a"), [
        ("c", "lb", "elsewhere"), ("out", "node", "closed"),
    ])  # fmt: skip
    case("a service of one family has no address in the other", svc(cluster_ips=VIP[:1], type="NodePort"),
         eps("a"), [("c", "vip", "drop"), ("out", "node", "closed")], families=(Family.V6,))  # fmt: skip
    case("a service of one family serves that one", svc(cluster_ips=VIP[1:], type="NodePort"), eps("a"), [
        ("c", "vip", "a"), ("out", "node", "a~"),
    ], families=(Family.V6,))  # fmt: skip
    named = tuple(ServicePortSpec(port=port.port, name=port.name, protocol=port.protocol, target_port="web")
                  for port in PORTS)  # fmt: skip
    case("named ports may lead to a number per slice", svc(ports=named), (
        *eps("a"),
        *eps("x", part=2, ports=tuple(SlicePort(port=9090, name=p.name, protocol=p.protocol) for p in PORTS)),
    ), [("c", "vip", "a x")])  # fmt: skip
    both = ServicePortSpec(port=81, name="m", protocol=TCP, target_port=9090)
    case("several ports of a service are apart", svc(ports=(PORTS[0], both)), eps("a", ports=(
        SlicePort(port=8080, name="t"), SlicePort(port=9090, name="m"),
    )), [("c", "vip", "a"), ("c", "vip:81", "a"), ("c", "vip:82", "reject")], protocols=(TCP,))  # fmt: skip
    case("without known pod networks cluster IPs keep every source", svc(), eps("a"), [
        ("out", "vip", "a"), ("c", "vip", "a"), ("a", "vip", "a~"),
    ], facts=with_facts(cluster_networks=()))  # fmt: skip
    _other_facts()


def _other_facts() -> None:
    """One node with everything else set otherwise: each change of facts makes data planes anew."""
    facts = with_facts(
        node_port_ranges=(net("192.168.1.0/24"), net("fd00:b::/64"), net("127.0.0.0/8"), net("::1/128")),
        masquerade_all=True,
        service_networks=(),
        any_external_ip=True,
        proxy_name="mine",
    )
    case("node ports with ranges are at all addresses inside, never at localhost", svc(type="NodePort"), eps("a"), [
        ("out", "second", "a~"), ("c", "second", "a~"), ("out", "node", "closed"), ("node", "lo", "closed"),
    ], facts=facts)  # fmt: skip
    case("masquerade-all hides pods from cluster IPs too", svc(), eps("a", "x"), [
        ("c", "vip", "a~ x~"), ("node", "vip", "a~ x~"), ("out", "vip", "a~ x~"),
    ], facts=facts)  # fmt: skip
    case("masquerade-all hides nobody from a Local address", svc(lb="lb", external_local=True), eps("a"), [
        ("out", "lb", "a"), ("c", "lb", "a"),
    ], facts=facts)  # fmt: skip
    case("without a known service network the ports of cluster IPs are still refused", svc(), eps("a"), [
        ("c", "vip:81", "reject"), ("c", "vip", "a~"),
    ], facts=facts)  # fmt: skip
    case("every external IP may be allowed", svc(external="stray"), eps("a"), [
        ("out", "stray", "a~"), ("c", "stray", "a~"),
    ], facts=facts)  # fmt: skip
    case("a proxy with a name serves what names it and no other's", [
        svc(labels={LABEL: "mine"}), svc("other", cluster_ips=VIP2, external="stray", labels={LABEL: "other"}),
    ], (*eps("a", labels={LABEL: "mine"}), *eps("b", name="other")), [
        ("c", "vip", "a~"), ("c", "stray", "elsewhere"),
    ], facts=facts)  # fmt: skip
