"""Who is meant by what people type: pods, addresses, nodes and Services become pairs of addresses, or one line says why not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    SERVICE,
    UDP,
    EndpointSlice,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.policy.ends import AskError, pod_named, ways
from tests.unit.policy_world import address, pod_object, world


def service(name, *ports, ips=("10.96.0.7",), **fields):
    return Service(meta=Meta(name=name, namespace="x"), cluster_ips=ips, ports=ports, **fields)


PORTS = (SlicePort(port=8080, name="http"),)


def piece(name, number, *ends, ports=PORTS):
    return EndpointSlice(
        meta=Meta(name=f"{name}-{number}", namespace="x"),
        service=f"x/{name}",
        family=Family.V4,
        ports=ports,
        endpoints=ends,
    )


HTTP = ServicePortSpec(port=80, name="http")
A, B, C = (address(f"x/{name}") for name in "abc")
OBJECTS = world(
    "",
    pod_object("x/done", ips=["10.244.1.99"], phase="Succeeded"),
    pod_object("x/host", ips=["192.168.0.1"], hostNetwork=True, nodeName="n1"),
    pod_object("y/only", ips=["10.244.2.77"], nodeName="n2"),
    pod_object("y/old", ips=["10.244.2.78"], nodeName="n2", deleting=True),
    pod_object("y/new", ips=["10.244.2.78"], nodeName="n2"),
)
OBJECTS[SERVICE] = {
    "x/web": service(
        "web", HTTP, ServicePortSpec(port=53, protocol=UDP, name="dns"), external_ips=("203.0.113.9",)
    ),
    "x/headless": service("headless", ips=("None",)),
    "x/ending": service("ending", HTTP, ips=("10.96.0.8",)),
    "x/empty": service("empty", HTTP, ips=("10.96.0.9",)),
}
OBJECTS[ENDPOINT_SLICE] = {
    "x/web-1": piece(
        "web",
        1,
        SliceEndpoint(address=B),
        SliceEndpoint(address=A, ready=False, serving=True, terminating=True),
    ),
    "x/web-2": piece(
        "web",
        2,
        SliceEndpoint(address=C),
        ports=(SlicePort(port=9090, name="http"), SlicePort(port=5353, protocol=UDP, name="dns")),
    ),
    "x/headless-1": piece("headless", 1, SliceEndpoint(address=A), ports=()),
    "x/ending-1": piece(
        "ending",
        1,
        SliceEndpoint(address=A, ready=False, serving=True, terminating=True),
        SliceEndpoint(address=B, ready=False, serving=False),
    ),
    "x/empty-1": piece("empty", 1, SliceEndpoint(address=B, ready=False, serving=False)),
}
A6, B6 = (address(f"x/{name}", Family.V6) for name in "ab")

MEANT = [
    ("pods, one way per family", ("x/a", "x/b", "80"), [(f"x/a ({A})", f"x/b ({B})", 6, 80), (f"x/a ({A6})", f"x/b ({B6})", 6, 80)]),
    ("a name only one pod has", ("only", "x/b", "80"), [("y/only (10.244.2.77)", f"x/b ({B})", 6, 80)]),
    ("addresses", ("192.0.2.1", B, "80"), [("192.0.2.1", f"x/b ({B})", 6, 80)]),
    ("an address in brackets", ("2001:db8::1", f"[{B6}]", "80"), [("2001:db8::1", f"x/b ({B6})", 6, 80)]),
    ("of two pods the one that stays", ("10.244.2.78", "192.0.2.1", "80"), [("y/new (10.244.2.78)", "192.0.2.1", 6, 80)]),
    ("an ended pod's address is nobody's", ("10.244.1.99", "192.0.2.1", "80"), [("10.244.1.99", "192.0.2.1", 6, 80)]),
    ("a node", ("node/n1", "y/only", "80"), [("node n1 (192.168.0.1)", "y/only (10.244.2.77)", 6, 80)]),
    ("a node as the destination", ("y/only", "n2", "80"), [("y/only (10.244.2.77)", "192.168.0.2", 6, 80)]),
    ("a pod on its node's network", ("x/host", "y/only", "80"), [("node n1 (192.168.0.1)", "y/only (10.244.2.77)", 6, 80)]),
    ("ICMP of both families", ("x/a", "x/b", ""), [(f"x/a ({A})", f"x/b ({B})", 1, 0), (f"x/a ({A6})", f"x/b ({B6})", 58, 0)]),
    ("ready endpoints, ports by name", ("192.0.2.1", "web", "80"), [("192.0.2.1", f"x/b ({B})", 6, 8080), ("192.0.2.1", f"x/c ({C})", 6, 9090)]),
    ("a Service's address", ("192.0.2.1", "10.96.0.7", "80"), [("192.0.2.1", f"x/b ({B})", 6, 8080), ("192.0.2.1", f"x/c ({C})", 6, 9090)]),
    ("its external address", ("192.0.2.1", "203.0.113.9", "80"), [("192.0.2.1", f"x/b ({B})", 6, 8080), ("192.0.2.1", f"x/c ({C})", 6, 9090)]),
    ("a Service's UDP port", ("192.0.2.1", "svc/web", "53/UDP"), [("192.0.2.1", f"x/c ({C})", 17, 5353)]),
    ("endpoints that are ending, for want of others", ("192.0.2.1", "ending", "80"), [("192.0.2.1", f"x/a ({A})", 6, 8080)]),
    ("a headless Service keeps the port", ("192.0.2.1", "x/headless", "81"), [("192.0.2.1", f"x/a ({A})", 6, 81)]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "wanted"), [case[1:] for case in MEANT], ids=[case[0] for case in MEANT])
def test_a_question_means(asked, wanted):
    source, destination, what = asked
    port, _, protocol = what.partition("/")
    found = ways(OBJECTS, source, destination, port, protocol or ("TCP" if port else "icmp"))
    assert [(way.source.text, way.destination.text, way.protocol, way.port) for way in found] == wanted


def test_a_pods_node_and_a_senders_are_told_apart():
    (way,) = ways(OBJECTS, "x/host", "y/only", "80")
    assert (way.source.sender, way.source.pod, way.source.node) == ("n1", "", "")
    assert (way.destination.pod, way.destination.node) == ("y/only", "n2")


REFUSED = [
    ("nobody", ("x/a", "nobody", "80"), 404, "nobody: not a pod, a Service, an address or a node that this agent knows of"),
    ("nobody asks", ("nobody", "x/a", "80"), 404, "nobody: not a pod, an address or a node that this agent knows of"),
    ("a Service asks", ("web", "x/a", "80"), 404, "web: not a pod, an address or a node that this agent knows of"),
    ("a pod that has ended", ("x/a", "x/done", "80"), 404, "pod x/done has ended (Succeeded): it has no address any more"),
    ("several of one name", ("x/a", "b", "80"), 400, "b: there are several pods of this name: x/b, y/b, z/b"),
    ("no such port", ("x/a", "web", "81"), 404, "Service x/web has no port 81/TCP; it has 80/TCP, 53/UDP"),
    ("no endpoints", ("x/a", "empty", "80"), 404, "Service x/empty has no endpoints that are ready: there is nobody to connect to"),
    ("two families", ("192.0.2.1", "fd00::1", "80"), 400, "192.0.2.1 and fd00::1 have no address family in common"),
    ("no port", ("x/a", "x/b", ""), 400, "port: TCP needs one"),
    ("a port too high", ("x/a", "x/b", "65536"), 400, "port '65536': expected a number from 1 to 65535"),
    ("a protocol too high", ("x/a", "x/b", "80/256"), 400, "protocol '256': expected TCP, UDP, SCTP, ICMP or a number below 256"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "status", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_makes_no_sense_is_said(asked, status, text):
    port, _, protocol = asked[2].partition("/")
    with pytest.raises(AskError) as caught:
        ways(OBJECTS, asked[0], asked[1], port, protocol or "TCP")
    assert (str(caught.value), caught.value.status) == (text, status)


def test_a_pod_is_found_by_key_name_and_address():
    for text in ("y/only", "only", "10.244.2.77"):
        assert pod_named(OBJECTS, text).meta.key == "y/only"
    assert pod_named(OBJECTS, "x/done").phase == "Succeeded"
    for text in ("192.0.2.1", "y/none", "host"):
        with pytest.raises(AskError):
            pod_named(OBJECTS, text)


TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["x/a", "web", "10.96.0.7", "node/n1", "::1", "fe80::1%eth0", "[", "/", "0", "²"]),
)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT, TEXT, st.one_of(TEXT, st.sampled_from(["TCP", "icmp", "132", "²"])))
def test_whatever_is_typed_means_something_or_is_refused(source, destination, port, protocol):
    with contextlib.suppress(AskError):
        for way in ways(OBJECTS, source, destination, port, protocol):
            assert len(way.source.address) == len(way.destination.address)
            assert 0 <= way.port < 65536
            assert 0 <= way.protocol < 256
    with contextlib.suppress(AskError):
        pod_named(OBJECTS, source)
