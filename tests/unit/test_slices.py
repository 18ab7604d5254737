"""EndpointSlices derived from Services and pods, as the Kubernetes controller makes them."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import (
    SCTP,
    TCP,
    UDP,
    ContainerPort,
    EndpointSlice,
    KubeNode,
    Meta,
    Pod,
    Service,
    ServicePortSpec,
    SlicePort,
)
from pycni.view.slices import derive, families
from pycni.wire.kube import from_mapping
from pycni.wire.manifest import encode_slice

LABELS = {"app": "web"}


def service(**fields: object) -> Service:
    defaults: dict[str, object] = {
        "meta": Meta(name="web", namespace="shop"),
        "cluster_ips": ("10.96.0.1",),
        "selector": LABELS,
        "ports": (ServicePortSpec(port=80),),
    }
    return Service(**{**defaults, **fields})  # type: ignore[arg-type]


def pod(name: str = "web-1", ip: str | tuple[str, ...] = "10.244.1.2", **fields: object) -> Pod:
    meta = Meta(
        name=name,
        namespace=str(fields.pop("namespace", "shop")),
        labels=fields.pop("labels", LABELS),  # type: ignore[arg-type]
        deleting=bool(fields.pop("deleting", False)),
    )
    ips = (ip,) if isinstance(ip, str) else ip
    defaults: dict[str, object] = {"ips": ips, "phase": "Running", "ready": True, "node": "n1"}
    return Pod(meta=meta, **{**defaults, **fields})  # type: ignore[arg-type]


def addresses(found: tuple[EndpointSlice, ...]) -> list[str]:
    return [endpoint.address for item in found for endpoint in item.endpoints]


@pytest.mark.parametrize(
    ("candidate", "chosen"),
    [
        pytest.param(pod(), True, id="labels match"),
        pytest.param(pod(labels={"app": "web", "more": "x"}), True, id="more labels"),
        pytest.param(pod(labels={"app": "db"}), False, id="another value"),
        pytest.param(pod(labels={}), False, id="no labels"),
        pytest.param(pod(namespace="other"), False, id="another namespace"),
        pytest.param(pod(phase="Succeeded"), False, id="ended well"),
        pytest.param(pod(phase="Failed"), False, id="ended badly"),
        pytest.param(pod(phase="Pending"), True, id="pending with an address"),
        pytest.param(pod(ip=()), False, id="no address yet"),
        pytest.param(pod(ip="fd00::2"), False, id="address of the other family"),
        pytest.param(pod(ready=False), True, id="not ready is still an endpoint"),
    ],
)
def test_which_pods_become_endpoints(candidate: Pod, chosen: bool) -> None:
    assert bool(addresses(derive(service(), [candidate]))) is chosen


@pytest.mark.parametrize(
    ("ready", "deleting", "publish", "expected"),
    [
        pytest.param(True, False, False, (True, True, False), id="ready"),
        pytest.param(False, False, False, (False, False, False), id="not ready"),
        pytest.param(True, True, False, (False, True, True), id="draining: serving, not ready"),
        pytest.param(False, True, False, (False, False, True), id="ending and not ready"),
        pytest.param(False, False, True, (True, False, False), id="publishNotReadyAddresses"),
        pytest.param(False, True, True, (True, False, True), id="publishNotReadyAddresses, ending"),
    ],
)
def test_conditions(ready: bool, deleting: bool, publish: bool, expected: tuple[bool, bool, bool]) -> None:
    (found,) = derive(service(publish_not_ready=publish), [pod(ready=ready, deleting=deleting)])
    (endpoint,) = found.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


HTTP = (ContainerPort(port=8080, name="http"), ContainerPort(port=53, name="dns", protocol=UDP))


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        pytest.param(ServicePortSpec(port=80), 80, id="no target port: the port itself"),
        pytest.param(ServicePortSpec(port=80, target_port=8080), 8080, id="number"),
        pytest.param(ServicePortSpec(port=80, target_port="http"), 8080, id="name"),
        pytest.param(ServicePortSpec(port=53, target_port="dns", protocol=UDP), 53, id="name of a UDP port"),
        pytest.param(ServicePortSpec(port=80, target_port="dns"), None, id="name with another protocol"),
        pytest.param(ServicePortSpec(port=80, target_port="nope"), None, id="unknown name"),
        pytest.param(ServicePortSpec(port=9, target_port=9, protocol=SCTP), 9, id="SCTP"),
    ],
)
def test_target_ports_are_those_of_the_pod(port: ServicePortSpec, expected: int | None) -> None:
    (found,) = derive(service(ports=(port,)), [pod(ports=HTTP)])
    assert [item.port for item in found.ports] == ([] if expected is None else [expected])
    assert all(item.protocol == port.protocol for item in found.ports)


def test_pods_with_other_numbers_for_a_name_are_in_slices_of_their_own() -> None:
    named = service(ports=(ServicePortSpec(port=80, name="web", target_port="http"),))
    old = [pod(f"old-{n}", f"10.244.1.{n}", ports=(ContainerPort(port=80, name="http"),)) for n in (1, 2)]
    new = pod("new", "10.244.2.1", ports=(ContainerPort(port=8080, name="http"),))
    found = derive(named, [*old, new])
    assert [(item.ports, addresses((item,))) for item in found] == [
        ((SlicePort(port=80, name="web"),), ["10.244.1.1", "10.244.1.2"]),
        ((SlicePort(port=8080, name="web"),), ["10.244.2.1"]),
    ]
    assert [item.meta.name for item in found] == ["web-ipv4-0", "web-ipv4-1"]


def test_slices_are_per_family_and_take_the_pods_address_of_it() -> None:
    dual = service(families=(Family.V4, Family.V6), cluster_ips=("10.96.0.1", "fd00::1"))
    found = derive(dual, [pod(ip=("10.244.1.2", "fd00::2"))])
    assert [(item.family, addresses((item,))) for item in found] == [
        (Family.V4, ["10.244.1.2"]),
        (Family.V6, ["fd00::2"]),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"families": (Family.V6,)}, (Family.V6,), id="spec.ipFamilies"),
        pytest.param({"cluster_ips": ("fd00::1",)}, (Family.V6,), id="of the address"),
        pytest.param({"cluster_ips": ("None",)}, (Family.V4, Family.V6), id="headless"),
        pytest.param({"cluster_ips": ()}, (Family.V4,), id="not assigned yet"),
    ],
)
def test_families_of_a_service(fields: dict[str, object], expected: tuple[Family, ...]) -> None:
    assert families(service(**fields)) == expected


def test_nobody_is_told_by_a_slice_without_endpoints() -> None:
    (found,) = derive(service(ports=(ServicePortSpec(port=80), ServicePortSpec(port=1, target_port="x"))), [])
    assert (found.endpoints, [port.port for port in found.ports]) == ((), [80])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"selector": {}}, id="no selector"),
        pytest.param({"type": "ExternalName", "cluster_ips": ()}, id="ExternalName"),
    ],
)
def test_services_whose_endpoints_are_not_ours_to_find(fields: dict[str, object]) -> None:
    assert derive(service(**fields), [pod()]) == ()


def test_an_endpoint_tells_pod_node_and_zone() -> None:
    node = KubeNode(meta=Meta(name="n1", labels={"topology.kubernetes.io/zone": "east"}))
    (found,) = derive(service(), [pod(), pod("web-2", "10.244.1.3", node="n2")], {"n1": node})
    assert [(item.pod, item.node, item.zone) for item in found.endpoints] == [
        ("shop/web-1", "n1", "east"),
        ("shop/web-2", "n2", ""),
    ]
    assert found.service == "shop/web"
    assert found.meta.labels["kubernetes.io/service-name"] == "web"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"hostname": "a", "subdomain": "web"}, "a", id="subdomain is the service"),
        pytest.param({"hostname": "a", "subdomain": "db"}, "", id="another service's subdomain"),
        pytest.param({"hostname": "a"}, "", id="no subdomain"),
    ],
)
def test_hostnames(fields: dict[str, object], expected: str) -> None:
    (found,) = derive(service(cluster_ips=("None",), families=(Family.V4,)), [pod(**fields)])  # type: ignore[arg-type]
    assert found.headless
    assert found.endpoints[0].hostname == expected


@pytest.mark.parametrize(("count", "sizes"), [(100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_a_slice_has_at_most_a_hundred_endpoints(count: int, sizes: list[int]) -> None:
    pods = [pod(f"web-{n}", f"10.244.{n // 250}.{n % 250 + 1}") for n in range(count)]
    found = derive(service(), pods)
    assert [len(item.endpoints) for item in found] == sizes
    assert len(set(addresses(found))) == count
    assert len({item.meta.key for item in found}) == len(found)


def test_the_order_of_pods_does_not_matter() -> None:
    pods = [
        pod("a", "10.244.1.1", ports=HTTP),
        pod("b", "10.244.1.2", ready=False),
        pod("c", "10.244.1.3", ports=(ContainerPort(port=81, name="http"),)),
        pod("d", "10.244.1.4", ports=HTTP),
    ]
    named = service(ports=(ServicePortSpec(port=80, target_port="http"),))
    first, *others = [derive(named, order) for order in permutations(pods)]
    assert len(first) == 3
    assert all(other == first for other in others)


pods_of_any_kind = st.builds(
    pod,
    name=st.from_regex(r"[a-c]{1,2}", fullmatch=True),
    ip=st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), unique=True, max_size=2).map(tuple),
    ready=st.booleans(),
    deleting=st.booleans(),
    hostname=st.sampled_from(["", "h"]),
    subdomain=st.sampled_from(["", "web"]),
    node=st.sampled_from(["", "n1"]),
    ports=st.lists(
        st.builds(ContainerPort, port=st.integers(1, 3), name=st.sampled_from(["http", ""])), max_size=2
    ).map(tuple),
)
ports_of_any_kind = st.builds(
    ServicePortSpec,
    port=st.integers(1, 65535),
    name=st.sampled_from(["a", "b"]),
    protocol=st.sampled_from([TCP, UDP, SCTP]),
    target_port=st.one_of(st.integers(0, 65535), st.just("http")),
)


@given(st.lists(pods_of_any_kind, max_size=6), st.lists(ports_of_any_kind, max_size=3).map(tuple))
def test_what_is_written_to_the_api_is_read_back_the_same(
    pods: list[Pod], ports: tuple[ServicePortSpec, ...]
) -> None:
    headless = service(ports=ports, cluster_ips=("None",))
    for item in derive(headless, pods):
        decoded = from_mapping(encode_slice(item))
        assert decoded == ("EndpointSlice", item)
