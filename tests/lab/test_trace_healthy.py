"""Sound networks raise no alarm: hundreds of traces over backends, attachments, data planes and families, each ok.

A trace of a sound way has no fault and no suspicion either. Probes are sent from this process: what is tried is the
trace, not the start of two hundred interpreters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from pycni.lab.apply import Cluster
from pycni.lab.node import LabNode
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import client_address, underlay_address
from pycni.lab.tracing import LabEyes
from pycni.model.family import Family
from pycni.trace.report import as_json
from pycni.tracing.course import Asked, trace

from .conftest import LabMaker

PATIENCE_S = 30.0
LEAST = 200
"""Traces over all labs."""
EXTERNAL = {Family.V4: "10.99.0.5", Family.V6: "fd00:10:99::5"}


class Net(NamedTuple):
    """What a lab is made of."""

    backend: str = "vxlan"
    attach: str = "bridge"
    family: str = "ipv4"
    proxy: str = "nftables"
    policy: str = "nftables"
    bgp: str = "none"
    xdp: bool = False
    driver: str = "netns"
    conf: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        words = [self.backend, self.attach, self.family, f"proxy {self.proxy}", f"policy {self.policy}"]
        if self.driver != "netns":
            words.append(self.driver)
        return " ".join([*words, *(["xdp"] if self.xdp else []), *(str(item) for item in self.conf)])


NETS = (
    Net(),
    Net(family="ipv6"),
    Net(family="dual", proxy="ebpf", policy="ebpf"),
    Net(family="dual", proxy="none", policy="none"),
    Net(policy="ebpf", xdp=True),
    Net(attach="ptp", policy="ebpf", proxy="ebpf", conf=(("DirectRouting", True),)),
    Net(backend="host-gw", family="dual"),
    Net(backend="host-gw", attach="ptp", policy="ebpf", family="ipv6", xdp=True),
    Net(backend="wireguard", proxy="ebpf", policy="none"),
    Net(backend="wireguard", attach="ptp", family="ipv6", policy="ebpf"),
    Net(backend="udp", policy="nftables"),
    Net(backend="udp", family="ipv6", proxy="none", policy="ebpf"),
    Net(backend="bgp", family="dual", bgp="bird"),
    Net(backend="extension", family="dual", policy="none"),
    Net(backend="alloc", attach="macvlan", proxy="none", policy="none"),
    Net(backend="vxlan", attach="macvlan", family="dual"),
    Net(backend="ipip", driver="uml", proxy="ipvs", policy="none"),
)


def objects(families: tuple[Family, ...]) -> list[dict[str, Any]]:
    """Two servers behind a Service of every kind of address, one behind a Service of its own, policies that allow."""

    def pod(name: str, node: str) -> dict[str, Any]:
        ports = [{"containerPort": 8080}, {"containerPort": 9000, "protocol": "UDP"}]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "web", "who": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        }

    def service(name: str, selector: dict[str, str], **spec: Any) -> dict[str, Any]:
        ports = [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "stats", "port": 9000, "targetPort": 9000, "protocol": "UDP"},
        ]
        own = {"selector": selector, "ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": own}

    def policy(name: str, spec: dict[str, Any]) -> dict[str, Any]:
        kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
        return {**kind, "metadata": {"name": name}, "spec": spec}

    anyone = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    ports = [{"port": 8080}, {"port": 9000, "protocol": "UDP"}]
    return [
        pod("web1", "node1"),
        pod("web2", "node2"),
        service(
            "shop", {"app": "web"}, type="NodePort", externalIPs=[EXTERNAL[family] for family in families]
        ),
        service("own", {"who": "web1"}),
        policy("web", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": anyone, "ports": ports}]}),
        policy("pod1", {"podSelector": {"matchLabels": {"pod": "pod1"}}, "policyTypes": ["Egress"], "egress": [{}]}),
    ]  # fmt: skip


def ways(lab: Lab, family: Family) -> Iterator[tuple[str, str, str]]:
    """(from, to, protocol) of everything to try in a family: each of them has to arrive."""

    def at(name: str) -> str:
        return next(ip for ip in lab.pod(name).ips if (":" in ip) is (family is Family.V6))

    def port(address: str, number: int) -> str:
        return f"[{address}]:{number}" if family is Family.V6 else f"{address}:{number}"

    pods = {name: at(name) for name in ("pod1", "pod2", "web1", "web2")}
    nodes = {f"node{index}": str(underlay_address(family, index).ip) for index in (1, 2)}
    underlay = lab.spec.attach == "macvlan"
    yield "pod1", pods["pod2"], ""
    yield "pod2", pods["pod1"], ""
    yield "pod1", port(pods["web1"], 8080), ""
    yield "pod1", port(pods["web2"], 8080), ""
    yield "pod1", port(pods["web2"], 9000), "udp"
    yield "pod1", nodes["node2"], ""
    yield "node1", pods["pod2"], ""
    yield "node2", port(pods["web1"], 8080), ""
    yield "node1", nodes["node2"], ""
    if not underlay:
        yield "pod1", nodes["node1"], ""
        yield "node1", pods["pod1"], ""
        yield "node1", port(pods["web1"], 8080), ""
    if lab.spec.has_client:
        outside = str(client_address(family).ip)
        if lab.spec.driver == "netns":  # guests masquerade nothing, and outside nobody knows pods
            yield "pod1", outside, ""
        yield "node1", outside, ""
    if lab.spec.proxy == "none":
        return
    served = Cluster(lab).objects()
    shop, own = (served[Key("Service", "default", name)]["spec"] for name in ("shop", "own"))
    node_port = shop["ports"][0]["nodePort"]
    yield "node1", port(vip(shop, family), 80), ""
    yield "node2", port(nodes["node1"], node_port), ""
    yield "node1", port(nodes["node1"], node_port), ""
    if not underlay:
        yield "pod1", port(vip(shop, family), 80), ""
        yield "pod2", port(vip(shop, family), 80), ""
        yield "pod1", port(vip(shop, family), 9000), "udp"
        yield "web1", port(vip(own, family), 80), ""
        yield "pod1", port(nodes["node2"], node_port), ""
        yield "pod2", port(EXTERNAL[family], 80), ""


def vip(service: dict[str, Any], family: Family) -> str:
    """The Service's address of a family."""
    found: list[str] = service["clusterIPs"]
    return next(ip for ip in found if (":" in ip) is (family is Family.V6))


def chosen(net: Net, lab: Lab) -> list[tuple[str, str, str]]:
    """Two thirds of a lab's ways, others in each (of guests a quarter); with both families each in one of them."""
    families = lab.spec.families
    number = NETS.index(net)
    both = zip(*(list(ways(lab, family)) for family in families), strict=True)
    turns = [same[(index + number) % len(families)] for index, same in enumerate(both)]
    if net.driver == "uml":  # a trace takes seconds there
        return turns[::4]
    return [way for index, way in enumerate(turns) if (index + number) % 3]


MADE: list[str] = []
"""Questions, over all labs."""


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_sound_network_raises_no_alarm(
    make_lab: LabMaker, monkeypatch: pytest.MonkeyPatch, net: Net
) -> None:
    if net.xdp:
        usual = LabNode.arguments
        monkeypatch.setattr(LabNode, "arguments", lambda node: [*usual(node), "--policy-xdp=auto"])
    lab = make_lab(
        nodes=2,
        pods=1,
        driver=net.driver,
        backend=net.backend,
        attach=net.attach,
        family=net.family,
        proxy=net.proxy,
        policy=net.policy,
        bgp=net.bgp,
        backend_conf=dict(net.conf),
    )
    Cluster(lab).apply([("the test", value) for value in objects(lab.spec.families)])
    assert lab.missing_routes(PATIENCE_S) == []
    alarms = []
    for source, target, protocol in chosen(net, lab):
        found = trace(LabEyes(lab), Asked(source, target, protocol), time.perf_counter())
        MADE.append(found.question)
        if not found.ok or found.fault is not None or found.suspicions:
            alarms.append((source, target, protocol, found))
    assert not alarms, "\n\n".join(tell(*alarm) for alarm in alarms)


def tell(source: str, target: str, protocol: str, found: Any) -> str:
    """A false alarm in one line, and all that led to it."""
    value = as_json(found)
    return (
        f"{source} -> {target} {protocol}: {value['fault']} {value['suspicions']}\n{json.dumps(value)[:6000]}"
    )


def test_it_was_tried_often_enough() -> None:
    assert len(MADE) >= LEAST
