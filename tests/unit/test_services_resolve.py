"""Every rule of endpoint choice, traffic policy, address and annotation, one row each: ``resolve`` and oracle."""

from __future__ import annotations

import msgspec
import pytest

from pycni.model.kube import SCTP, TCP, UDP, ServicePortSpec, SlicePort
from pycni.model.service import HealthCheck, Resolved
from pycni.view.service_decide import decide_frontends
from pycni.view.service_oracle import decide
from pycni.view.services import resolve
from tests.unit.service_world import (
    FACTS,
    V4,
    V6,
    ep,
    lines,
    net,
    pack,
    packet,
    piece,
    resolved,
    service,
    vip,
)

A, B, C = "10.244.1.1", "10.244.1.2", "10.244.2.1"
CLUSTER = "ClusterIP TCP 10.96.0.10:80 -> "
NODE_PORT = (ServicePortSpec(port=80, target_port=8080, node_port=30080),)


def near(address, node="n1", zones=(), nodes=(), **kw):
    return ep(address, node, hint_zones=tuple(zones), hint_nodes=tuple(nodes), **kw)


CHOICE = {
    "all ready ones, sorted, the local one marked": (
        {}, [piece(ep(C, "n2"), ep(A))], [f"{A}:8080* {C}:8080"]),
    "no endpoint at all rejects": ({}, [], ["REJECT"]),
    "unready ones are nobody": ({}, [piece(ep(A, state="unready"))], ["REJECT"]),
    "terminating ones that no longer serve are nobody": ({}, [piece(ep(A, state="gone"))], ["REJECT"]),
    "serving without terminating or being ready is nobody": ({}, [piece(ep(A, state="odd"))], ["REJECT"]),
    "a terminating one that serves drains beside ready ones": (
        {}, [piece(ep(A), ep(B, state="draining"))], [f"{A}:8080* drain {B}:8080"]),
    "without ready ones those that drain take traffic": (
        {}, [piece(ep(A, state="draining"), ep(C, "n2", "draining"), ep(B, state="unready"))],
        [f"{A}:8080* {C}:8080"]),
    "an address in two slices counts once": (
        {}, [piece(ep(A)), piece(ep(A), name="web-2")], [f"{A}:8080*"]),
    "of two entries of an address the better conditions count": (
        {}, [piece(ep(A, "n2", "draining")), piece(ep(A), name="web-2")], [f"{A}:8080*"]),
    "an address with two ports in two slices is two targets": (
        {}, [piece(ep(A)), piece(ep(A), name="web-2", ports=(SlicePort(port=9090),))],
        [f"{A}:8080* {A}:9090*"]),
    "headless slices are ignored": ({}, [piece(ep(A), headless=True)], ["REJECT"]),
    "slices for another proxy are ignored": (
        {}, [piece(ep(A), labels={"service.kubernetes.io/service-proxy-name": "x"})], ["REJECT"]),
    "slices of the other family are ignored": ({}, [piece(ep("fd00:244::1"))], ["REJECT"]),
    "a slice port of another name is another port": (
        {}, [piece(ep(A), ports=(SlicePort(port=8080, name="x"),))], ["REJECT"]),
    "a slice port of another protocol is another port": ({}, [piece(ep(A), protocol=UDP)], ["REJECT"]),
    "a slice port without a number is passed over": (
        {}, [piece(ep(A), ports=(SlicePort(port=0),))], ["REJECT"]),
    "an endpoint that is no address is left out": (
        {}, [piece(ep(A), ep("10.244.1"), ep("nonsense"), ep("10.244.1.300"))], [f"{A}:8080*"]),
    "zone hints keep traffic in the zone": (
        {}, [piece(near(A, zones=["z1"]), near(C, "n2", ["z2"]))], [f"{A}:8080*"]),
    "an endpoint may be hinted for several zones": (
        {}, [piece(near(A, zones=["z2"]), near(C, "n2", ["z2", "z1"]))], [f"{C}:8080"]),
    "one ready endpoint without a zone hint voids them": (
        {}, [piece(near(A, zones=["z1"]), near(C, "n2"))], [f"{A}:8080* {C}:8080"]),
    "an unready endpoint without a hint voids nothing": (
        {}, [piece(near(A, zones=["z1"]), near(C, "n2", ["z2"]), near(B, state="unready"))], [f"{A}:8080*"]),
    "zone hints that name no endpoint here are void": (
        {}, [piece(near(A, zones=["z2"]), near(C, "n2", ["z3"]))], [f"{A}:8080* {C}:8080"]),
    "node hints go before zone hints": (
        {}, [piece(near(A, zones=["z1"], nodes=["n1"]), near(B, zones=["z1"], nodes=["n2"]))], [f"{A}:8080*"]),
    "node hints that name no endpoint here leave the zone": (
        {}, [piece(near(B, "n3", ["z1"], ["n3"]), near(C, "n2", ["z2"], ["n2"]))], [f"{B}:8080"]),
    "draining endpoints are chosen whatever their hints": (
        {}, [piece(near(A, zones=["z2"], state="draining"))], [f"{A}:8080*"]),
    "Local policies do not look at hints": (
        {"internal_local": True}, [piece(near(A, zones=["z2"]), near(C, "n2", ["z1"]))], [f"{A}:8080* local"]),
    "PreferClose takes zones for hints that are missing": (
        {"traffic_distribution": "PreferClose"},
        [piece(ep(A, zone="z2"), ep(C, "n2", zone="z1"))], [f"{C}:8080"]),
    "PreferSameNode takes nodes for hints that are missing": (
        {"traffic_distribution": "PreferSameNode"},
        [piece(ep(A, zone="z1"), ep(C, "n2", zone="z1"))], [f"{A}:8080*"]),
    "hints of a controller stand before what could be derived": (
        {"traffic_distribution": "PreferSameNode"},
        [piece(ep(A, zone="z1"), ep(C, "n2", zone="z1", hint_zones=("z1",)))], [f"{A}:8080* {C}:8080"]),
    "an unknown distribution is none": (
        {"traffic_distribution": "PreferMars"},
        [piece(ep(A, zone="z2"), ep(C, "n2", zone="z1"))], [f"{A}:8080* {C}:8080"]),
    "internal Local keeps to this node": (
        {"internal_local": True}, [piece(ep(A), ep(C, "n2"))], [f"{A}:8080* local"]),
    "internal Local with endpoints elsewhere drops": (
        {"internal_local": True}, [piece(ep(C, "n2"))], ["DROP local"]),
    "internal Local with endpoints elsewhere on their way out drops": (
        {"internal_local": True}, [piece(ep(C, "n2", "draining"))], ["DROP local"]),
    "internal Local without any endpoint rejects": (
        {"internal_local": True}, [piece(ep(C, "n2", "unready"))], ["REJECT local"]),
    "Local takes what drains here though others are ready elsewhere": (
        {"internal_local": True}, [piece(ep(A, state="draining"), ep(C, "n2"))], [f"{A}:8080* local"]),
    "Local lists only this node's draining ones": (
        {"internal_local": True},
        [piece(ep(A), ep(B, state="draining"), ep(C, "n2", "draining"))], [f"{A}:8080* drain {B}:8080 local"]),
    "annotation local makes the internal policy Local": (
        {"annotations": {"local": "true"}}, [piece(ep(A), ep(C, "n2"))], [f"{A}:8080* local"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICE, ids=str)
def test_endpoints_of_a_cluster_ip(case):
    fields, slices, expected = CHOICE[case]
    assert lines(service(**fields), *slices) == [CLUSTER + line for line in expected]


LB = {"type": "LoadBalancer", "ingress": (vip("198.51.100.1"),), "ports": NODE_PORT}
HERE_AND_THERE = [piece(ep(A), ep(C, "n2"))]
ALL = f"{A}:8080* {C}:8080"
KINDS = {
    "NodePort": ({"type": "NodePort", "ports": NODE_PORT}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}"]),
    "a node port of a ClusterIP service is none": ({"ports": NODE_PORT}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}"]),
    "LoadBalancer": (LB, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
        f"LoadBalancer TCP 198.51.100.1:80 -> {ALL}"]),
    "LoadBalancer without node ports": (
        {**LB, "allocate_node_ports": False, "ports": (ServicePortSpec(port=80),)}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"LoadBalancer TCP 198.51.100.1:80 -> {ALL}"]),
    "ipMode Proxy is left alone": (
        {**LB, "ingress": (vip("198.51.100.1", proxy=True), vip("198.51.100.2"))}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
            f"LoadBalancer TCP 198.51.100.2:80 -> {ALL}"]),
    "ingress of another type is stale": ({**LB, "type": "ClusterIP"}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}"]),
    "annotation skiplbips leaves the addresses to others": (
        {**LB, "annotations": {"skiplbips": "true"}}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}"]),
    "an allowed external IP": ({"external_ips": ("203.0.113.7",)}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"ExternalIP TCP 203.0.113.7:80 -> {ALL}"]),
    "an external IP that is a load balancer's address is that": (
        {**LB, "ports": (ServicePortSpec(port=80),), "ingress": (vip("203.0.113.7"),),
         "external_ips": ("203.0.113.7", "203.0.113.7")}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"LoadBalancer TCP 203.0.113.7:80 -> {ALL}"]),
    "external Local short-circuits what comes from inside": ({**LB, "external_local": True}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}",
        f"NodePort TCP nodeport:30080 -> {A}:8080* local inside {ALL}",
        f"LoadBalancer TCP 198.51.100.1:80 -> {A}:8080* local inside {ALL}"]),
    "external Local with endpoints elsewhere drops what comes from outside": (
        {**LB, "external_local": True}, [piece(ep(C, "n2"))], [
            f"ClusterIP TCP 10.96.0.10:80 -> {C}:8080",
            f"NodePort TCP nodeport:30080 -> DROP local inside {C}:8080",
            f"LoadBalancer TCP 198.51.100.1:80 -> DROP local inside {C}:8080"]),
    "external Local without any endpoint rejects": ({**LB, "external_local": True}, [], [
        "ClusterIP TCP 10.96.0.10:80 -> REJECT",
        "NodePort TCP nodeport:30080 -> REJECT local inside REJECT",
        "LoadBalancer TCP 198.51.100.1:80 -> REJECT local inside REJECT"]),
    "both Local: inside still goes everywhere by the outer address": (
        {"type": "NodePort", "ports": NODE_PORT, "external_local": True, "internal_local": True},
        [piece(ep(C, "n2"))], [
            "ClusterIP TCP 10.96.0.10:80 -> DROP local",
            f"NodePort TCP nodeport:30080 -> DROP local inside {C}:8080"]),
    "annotation local makes both policies Local": (
        {"type": "NodePort", "ports": NODE_PORT, "annotations": {"local": "true"}}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {A}:8080* local",
            f"NodePort TCP nodeport:30080 -> {A}:8080* local inside {ALL}"]),
    "annotation local false changes nothing": ({"annotations": {"local": "false"}}, HERE_AND_THERE, [
        f"ClusterIP TCP 10.96.0.10:80 -> {ALL}"]),
    "source ranges are the load balancer's alone": (
        {**LB, "source_ranges": ("192.0.2.0/24", "10.0.0.0/8")}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
            f"LoadBalancer TCP 198.51.100.1:80 -> {ALL} from 10.0.0.0/8,192.0.2.0/24"]),
    "source ranges of the other family let nobody in": (
        {**LB, "source_ranges": ("2001:db8::/32",)}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
            f"LoadBalancer TCP 198.51.100.1:80 -> {ALL} from nobody"]),
    "a source range that is none lets nobody in": (
        {**LB, "source_ranges": ("nonsense",)}, HERE_AND_THERE, [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
            f"LoadBalancer TCP 198.51.100.1:80 -> {ALL} from nobody"]),
    "dual-stack is a set of frontends per family": (
        {"type": "NodePort", "ports": NODE_PORT, "cluster_ips": ("10.96.0.10", "fd00:96::10"),
         "families": (V4, V6)}, [*HERE_AND_THERE, piece(ep("fd00:244:1::1"), name="web-6")], [
            f"ClusterIP TCP 10.96.0.10:80 -> {ALL}", f"NodePort TCP nodeport:30080 -> {ALL}",
            "ClusterIP TCP [fd00:96::10]:80 -> [fd00:244:1::1]:8080*",
            "NodePort TCP nodeport:30080 -> [fd00:244:1::1]:8080*"]),
    "an address of a family the service has no cluster IP in is left out": (
        {**LB, "ports": (ServicePortSpec(port=80),), "ingress": (vip("2001:db8::1"),),
         "external_ips": ("2001:db8::2",)}, HERE_AND_THERE, [f"ClusterIP TCP 10.96.0.10:80 -> {ALL}"]),
    "named ports find the slice's numbers": (
        {"ports": (ServicePortSpec(port=80, name="http", target_port="web"),
                   ServicePortSpec(port=53, name="dns", protocol=UDP))},
        [piece(ep(A), ports=(SlicePort(port=8080, name="http"), SlicePort(port=5353, name="dns", protocol=UDP))),
         piece(ep(C, "n2"), name="web-2", ports=(SlicePort(port=9090, name="http"),))], [
            f"ClusterIP TCP 10.96.0.10:80 -> {A}:8080* {C}:9090", f"ClusterIP UDP 10.96.0.10:53 -> {A}:5353*"]),
    "SCTP, and one number for two protocols": (
        {"ports": (ServicePortSpec(port=80, protocol=SCTP), ServicePortSpec(port=80, protocol=TCP))},
        [piece(ep(A), protocol=SCTP)], [
            f"ClusterIP SCTP 10.96.0.10:80 -> {A}:8080*", "ClusterIP TCP 10.96.0.10:80 -> REJECT"]),
    "a port given twice counts once": (
        {"ports": (ServicePortSpec(port=80), ServicePortSpec(port=80, name="again"))}, [piece(ep(A))],
        [f"ClusterIP TCP 10.96.0.10:80 -> {A}:8080*"]),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_frontends_of_each_kind(case):
    fields, slices, expected = KINDS[case]
    assert lines(service(**fields), *slices) == expected


NOT_OURS = {
    "headless": {"cluster_ips": ("None",)},
    "ExternalName": {"type": "ExternalName"},
    "no cluster IP yet": {"cluster_ips": ()},
    "another proxy's": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
    "a nameless proxy's": {"labels": {"service.kubernetes.io/service-proxy-name": ""}},
    "labelled headless": {"labels": {"service.kubernetes.io/headless": ""}},
    "only of a family the node lacks": {"cluster_ips": ("fd00:96::10",)},
}


@pytest.mark.parametrize("case", NOT_OURS, ids=str)
def test_a_service_that_is_not_for_this_proxy_gives_nothing(case):
    facts = msgspec.structs.replace(FACTS, families=(V4,))
    assert resolved(service(**NOT_OURS[case]), *HERE_AND_THERE, facts=facts) == Resolved()


def test_a_proxy_with_a_name_serves_what_names_it_and_what_names_nobody():
    named = msgspec.structs.replace(FACTS, proxy_name="mine")
    label = "service.kubernetes.io/service-proxy-name"
    for labels, served in (({label: "mine"}, True), ({}, True), ({label: "other"}, False)):
        assert bool(lines(service(labels=labels), facts=named)) is served


@pytest.mark.parametrize("families", [(V4,), (V6,)], ids=lambda value: value[0].label)
def test_a_node_of_one_family_serves_that_family_and_does_not_complain(families):
    facts = msgspec.structs.replace(FACTS, families=families)
    found = resolved(
        service(
            cluster_ips=("10.96.0.10", "fd00:96::10"), external_ips=("203.0.113.7", "2001:db8::7"),
            type="LoadBalancer", ingress=(vip("198.51.100.1"), vip("2001:db8::1")),
        ),
        facts=facts,
    )  # fmt: skip
    assert {item.key.family for item in found.frontends} == set(families)
    assert len(found.frontends) == 3
    assert found.problems == ()


def test_a_cluster_ip_of_a_family_the_service_does_not_list_is_not_served():
    found = lines(service(cluster_ips=("10.96.0.10", "fd00:96::10"), families=(V4,)))
    assert found == ["ClusterIP TCP 10.96.0.10:80 -> REJECT"]


@pytest.mark.parametrize(
    ("source", "from_node", "admitted"),
    [("192.0.2.9", False, False), ("192.168.0.7", False, True), ("192.168.0.1", True, True),
     ("10.244.1.1", True, True), ("10.244.1.1", False, False)],
    ids=["outside", "in range", "the node", "the node by another of its addresses", "that address forwarded"],
)  # fmt: skip
def test_source_ranges_with_the_nodes_address_admit_whatever_the_node_sends(source, from_node, admitted):
    svc = service(type="LoadBalancer", ingress=(vip("198.51.100.1"),), source_ranges=("192.168.0.0/24",))
    slices = piece(ep(A))
    asked = packet(source, "198.51.100.1", from_node=from_node)
    found = decide_frontends(resolved(svc, slices).frontends, FACTS, asked)
    assert found == decide({"default/web": svc}, {"default/web-1": slices}, FACTS, asked)
    assert (found.verdict is None) is admitted


REFUSED = {
    "outside the allowed ranges": ("8.8.8.8", "outside service-external-ip-range"),
    "a node's own": ("192.168.0.1", "it is the node's own address"),
    "a cluster IP": ("10.96.7.7", "inside service-cluster-ip-range"),
    "its own cluster IP": ("10.96.0.10", "it is the service's cluster IP"),
    "a pod's": ("10.244.3.3", "inside the pods' networks"),
    "loopback": ("127.0.0.1", "not an address that can be routed to"),
    "link-local": ("169.254.1.1", "not an address that can be routed to"),
    "multicast": ("224.0.0.5", "not an address that can be routed to"),
    "unspecified": ("0.0.0.0", "not an address that can be routed to"),
    "of a family without cluster IP": ("2001:db8::1", "the service has no cluster IP of family ipv6"),
    "no address": ("nonsense", "not an address"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_an_external_ip_is_refused_when_it_is(case):
    address, reason = REFUSED[case]
    ranges = (*FACTS.external_ip_ranges, net("192.168.0.0/16"), net("10.0.0.0/8"), net("127.0.0.0/8"))
    facts = FACTS if "ranges" in case else msgspec.structs.replace(FACTS, external_ip_ranges=ranges)
    found = resolved(service(external_ips=(address, "203.0.113.7")), facts=facts)
    assert [item.kind.label for item in found.frontends] == ["ClusterIP", "ExternalIP"]
    assert len(found.problems) == 1
    assert found.problems[0].endswith(": " + reason)
    assert address in found.problems[0]


def test_external_ips_are_refused_without_any_allowed_range():
    facts = msgspec.structs.replace(FACTS, external_ip_ranges=())
    assert len(lines(service(external_ips=("203.0.113.7",)), facts=facts)) == 1


@pytest.mark.parametrize(
    ("address", "served"),
    [("8.8.8.8", True), ("192.168.0.1", True), ("10.96.7.7", False), ("127.0.0.1", False)],
)
def test_allowing_every_external_ip_still_protects_cluster_ips_and_loopback(address, served):
    facts = msgspec.structs.replace(FACTS, any_external_ip=True)
    assert len(lines(service(external_ips=(address,)), facts=facts)) == 1 + served


def options_of(annotations, *, affinity_s=0, port=80, **fields):
    found = resolved(
        service(
            annotations=annotations, affinity_s=affinity_s, type="LoadBalancer", ingress=(vip("198.51.100.1"),),
            ports=(ServicePortSpec(port=port, node_port=30080),), external_ips=("203.0.113.7",), **fields,
        ),
        piece(ep(A), ports=(SlicePort(port=80),)),
    )  # fmt: skip
    return {item.kind.label: item.options for item in found.frontends}, found.problems


ANNOTATIONS = {
    **{
        f"scheduler {name}": ({"scheduler": name}, {"scheduler": name})
        for name in "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos".split()
    },
    "schedflags": ({"schedflags": "flag-2, flag-1"}, {"sched_flags": ("flag-1", "flag-2")}),
    "hairpin": ({"hairpin": ""}, {"hairpin": True}),
    "hairpin.externalips": ({"hairpin.externalips": "true"}, {"hairpin_external": True}),
    "hairpin false": ({"hairpin": "false"}, {}),
}


@pytest.mark.parametrize("case", ANNOTATIONS, ids=str)
def test_an_annotation_reaches_every_frontend(case):
    annotations, expected = ANNOTATIONS[case]
    found, problems = options_of(annotations)
    assert problems == ()
    assert len(found) == 4
    for options in found.values():
        assert {key: value for key, value in msgspec.structs.asdict(options).items() if value} == expected


@pytest.mark.parametrize(
    ("annotation", "value"),
    [("scheduler", "best"), ("schedflags", "flag-9"), ("dsr", "magic"), ("hairpin", "yes"),
     ("hairpin.externalips", "1"), ("local", "True"), ("skiplbips", "no")],
    ids=lambda value: value,
)  # fmt: skip
def test_an_unknown_value_of_an_annotation_is_reported_and_the_default_holds(annotation, value):
    found, problems = options_of({annotation: value})
    assert (found, ()) == options_of({})
    assert len(problems) == 1
    assert f"kube-router.io/service.{annotation} '{value}'" in problems[0]


def test_direct_server_return_is_for_addresses_from_outside():
    found, problems = options_of({"dsr": "tunnel", "scheduler": "sh"})
    assert {kind: options.dsr for kind, options in found.items()} == {
        "ClusterIP": "", "NodePort": "", "LoadBalancer": "tunnel", "ExternalIP": "tunnel"}  # fmt: skip
    assert {options.scheduler for options in found.values()} == {"sh"}
    assert problems == ()


def test_direct_server_return_cannot_translate_ports_and_says_so():
    found, problems = options_of({"dsr": "tunnel"}, port=8000)
    assert {options.dsr for options in found.values()} == {""}
    assert len(problems) == 1
    assert "port 8000/TCP leads to port 80" in problems[0]


@pytest.mark.parametrize(
    ("given", "used", "complaints"),
    [(0, 0, 0), (1, 1, 0), (86400, 86400, 0), (86401, 10800, 1), (-1, 10800, 1)],
)
def test_affinity_lasts_a_second_to_a_day(given, used, complaints):
    found, problems = options_of({}, affinity_s=given)
    assert {options.affinity_s for options in found.values()} == {used}
    assert len(problems) == complaints


CHECKED = {"type": "LoadBalancer", "external_local": True, "health_check_node_port": 32000}


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        (CHECKED, 2),
        ({**CHECKED, "external_local": False}, None),
        ({**CHECKED, "health_check_node_port": 0}, None),
        ({**CHECKED, "type": "NodePort"}, None),
        ({**CHECKED, "cluster_ips": ("10.96.0.10", "fd00:96::10")}, 3),
    ],
    ids=["of this node", "Cluster policy", "no port", "not a load balancer", "both families"],
)
def test_the_health_check_counts_ready_endpoints(fields, local):
    slices = (
        piece(
            ep(A), ep(B), ep(C, "n2"), ep("10.244.1.9", state="draining"), ep("10.244.1.8", state="unready")
        ),
        piece(ep(A), name="web-2", ports=(SlicePort(port=9090, name="x"),)),
        piece(ep("fd00:244:1::1"), name="web-6"),
    )
    expected = None if local is None else HealthCheck(32000, "default", "web", local)
    assert resolved(service(**fields), *slices).health_check == expected


def test_the_latest_change_of_the_slices_is_kept():
    assert resolved(service(), piece(changed=3.0), piece(name="web-2", changed=5.5)).changed == 5.5


def test_frontends_of_a_port_share_what_they_have_in_common():
    found = resolved(service(**LB, annotations={"scheduler": "sh"}), *HERE_AND_THERE).frontends
    assert len({id(item.pool) for item in found}) == 1
    assert len({id(item.options) for item in found}) == 1
    assert len({id(item.name) for item in found}) == 1
    assert found[0].pool.targets[0].address is not None
    assert found[1].key.address == b""
    assert found[2].key.address == pack("198.51.100.1")


def test_malformed_objects_are_problems_and_never_errors():
    found = resolve(
        service(
            cluster_ips=("10.96.0.10", "rubbish:"), type="LoadBalancer", ingress=(vip(""),),
            external_ips=("",), source_ranges=("x/y",), affinity_s=-5, annotations={"scheduler": "?"},
        ),
        [piece(ep("")), piece(ep("fd00::1"), name="web-2", family=V4)],
        FACTS,
    )  # fmt: skip
    assert len(found.problems) == 8
    assert [item.key.port for item in found.frontends] == [80]
