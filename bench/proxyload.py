"""Services and endpoints in any number, for benchmarks of the service proxy."""

from __future__ import annotations

import msgspec

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
from pycni.model.service import NodeFacts
from pycni.store import Store

ENDPOINTS = 5
PORT, TARGET_PORT = 80, 8080


def facts(node: str = "n1", address: bytes = bytes((192, 168, 90, 1))) -> NodeFacts:
    """A node of a cluster with pods in 10.128.0.0/9."""
    from ipaddress import IPv4Network

    return NodeFacts(name=node, addresses=(address,), cluster_networks=(IPv4Network("10.128.0.0/9"),))


def virtual(number: int) -> str:
    """The ClusterIP of a service: 10.96.0.0/12 is large enough for all."""
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def endpoint(number: int, index: int, generation: int = 0) -> str:
    """The address of an endpoint; another ``generation`` is another pod."""
    value = (number * ENDPOINTS + index + generation * 300_007) % (127 << 16)
    return f"10.{128 + (value >> 16)}.{value >> 8 & 255}.{value & 255}"


def service(number: int) -> Service:
    """A ClusterIP service with one TCP port."""
    return Service(
        meta=Meta(name=f"s{number}", namespace="bench", created=number),
        cluster_ips=(virtual(number),),
        families=(Family.V4,),
        ports=(ServicePortSpec(port=PORT, target_port=TARGET_PORT),),
    )


def endpoint_slice(number: int, addresses: tuple[str, ...], port: int = TARGET_PORT) -> EndpointSlice:
    """The slice of a service."""
    return EndpointSlice(
        meta=Meta(name=f"s{number}-x", namespace="bench"),
        service=f"bench/s{number}",
        family=Family.V4,
        ports=(SlicePort(port=port),),
        endpoints=tuple(SliceEndpoint(address=address, node="n2") for address in addresses),
    )


def default_slice(number: int, generation: int = 0) -> EndpointSlice:
    """A service's five endpoints; with ``generation`` the first of them was replaced that many times."""
    return endpoint_slice(
        number, tuple(endpoint(number, index, generation if index == 0 else 0) for index in range(ENDPOINTS))
    )


def add_datagrams(store: Store) -> None:
    """One more service, for UDP, at ``virtual(0)``, with the endpoints of service 1."""
    one = service(0)
    ports = (ServicePortSpec(port=PORT, target_port=TARGET_PORT, protocol=UDP),)
    its = endpoint_slice(0, tuple(endpoint(1, index) for index in range(ENDPOINTS)))
    store.put(SERVICE, "bench/s0", msgspec.structs.replace(one, ports=ports))
    slice_ports = (SlicePort(port=TARGET_PORT, protocol=UDP),)
    store.put(ENDPOINT_SLICE, "bench/s0-x", msgspec.structs.replace(its, ports=slice_ports))


def filled(count: int) -> Store:
    """A store with that many services, listed."""
    store = Store()
    store.replace(SERVICE, {f"bench/s{n}": service(n) for n in range(1, count + 1)})
    store.replace(ENDPOINT_SLICE, {f"bench/s{n}-x": default_slice(n) for n in range(1, count + 1)})
    return store
