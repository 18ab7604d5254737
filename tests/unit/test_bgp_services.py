"""Which addresses of a Service a node announces: flags, annotations, traffic policy Local."""

from __future__ import annotations

import ipaddress

import pytest

from pycni.model.family import Family
from pycni.model.kube import EndpointSlice, Ingress, Meta, Service, ServicePortSpec, SliceEndpoint, SlicePort
from pycni.model.service import NodeFacts
from pycni.view.services import resolve
from pycni_bgp.services import Announced, announced
from pycni_bgp.settings import BgpSettings

FACTS = NodeFacts(
    name="a", addresses=(bytes((192, 0, 2, 1)),), cluster_networks=(ipaddress.ip_network("10.1.0.0/16"),),
    any_external_ip=True,
)  # fmt: skip
ALL = BgpSettings(cluster_ips=True, external_ips=True, load_balancer_ips=True)
CLUSTER_IP, EXTERNAL_IP, BALANCER = "10.96.0.7/32", "198.51.100.8/32", "203.0.113.9/32"


def _ask(settings: BgpSettings, *, node: str = "a", local: bool = False, **annotations: str) -> Announced:
    service = Service(
        meta=Meta(
            name="web",
            namespace="x",
            annotations={
                f"kube-router.io/service.advertise.{key}": value for key, value in annotations.items()
            },
        ),
        type="LoadBalancer",
        cluster_ips=("10.96.0.7",),
        families=(Family.V4,),
        external_ips=("198.51.100.8",),
        ingress=(Ingress(ip="203.0.113.9"),),
        ports=(ServicePortSpec(port=80, node_port=30080), ServicePortSpec(port=443, name="s")),
        external_local=local,
    )
    piece = EndpointSlice(
        meta=Meta(name="web-1", namespace="x"),
        service="x/web",
        family=Family.V4,
        ports=(SlicePort(port=8080), SlicePort(port=8443, name="s")),
        endpoints=(SliceEndpoint(address="10.1.2.3", node=node),) if node else (),
    )
    return announced(service, resolve(service, [piece], FACTS).frontends, settings)


def _texts(found: Announced) -> set[str]:
    return {str(item) for item in found.prefixes}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (BgpSettings(), set()),
        (BgpSettings(cluster_ips=True), {CLUSTER_IP}),
        (BgpSettings(external_ips=True), {EXTERNAL_IP}),
        (BgpSettings(load_balancer_ips=True), {BALANCER}),
        (ALL, {CLUSTER_IP, EXTERNAL_IP, BALANCER}),
    ],
    ids=["nothing", "cluster", "external", "balancer", "all"],
)
def test_flags_say_which_kinds_are_announced(settings: BgpSettings, wanted: set[str]) -> None:
    found = _ask(settings)
    assert _texts(found) == wanted
    assert {str(item) for item in found.withheld} == {CLUSTER_IP, EXTERNAL_IP, BALANCER} - wanted


@pytest.mark.parametrize(
    ("settings", "annotations", "wanted"),
    [
        (BgpSettings(), {"clusterip": "true"}, {CLUSTER_IP}),
        (ALL, {"externalip": "false"}, {CLUSTER_IP, BALANCER}),
        (BgpSettings(), {"loadbalancerip": "true", "externalip": "true"}, {EXTERNAL_IP, BALANCER}),
    ],
    ids=["on", "off", "two"],
)
def test_annotations_overrule_flags(
    settings: BgpSettings, annotations: dict[str, str], wanted: set[str]
) -> None:
    assert _texts(_ask(settings, **annotations)) == wanted


def test_with_policy_local_only_nodes_with_an_endpoint_announce() -> None:
    assert _texts(_ask(ALL, node="a", local=True)) == {CLUSTER_IP, EXTERNAL_IP, BALANCER}
    elsewhere = _ask(ALL, node="b", local=True)
    assert _texts(elsewhere) == {CLUSTER_IP}
    assert set(elsewhere.withheld.values()) == {"traffic policy Local, and no ready endpoint on this node"}


def test_an_unknown_word_is_a_problem_and_the_flag_holds() -> None:
    found = _ask(BgpSettings(cluster_ips=True), clusterip="yes")
    assert _texts(found) == {CLUSTER_IP}
    assert found.problems == (
        "Service x/web: annotation kube-router.io/service.advertise.clusterip 'yes': not true or false",
    )


def test_what_is_announced_names_its_service() -> None:
    owners = {(item.kind, item.owner) for item in _ask(ALL).prefixes.values()}
    assert owners == {(kind, "Service x/web") for kind in ("ClusterIP", "ExternalIP", "LoadBalancer")}
