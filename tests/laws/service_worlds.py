"""Random services, slices, nodes and packets, out of few names and addresses, so that they meet each other.

Made by ``random.Random`` of a seed that Hypothesis draws: strategies for such deep values favour extremes so much that
hardly a packet got through to an endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from pycni.model.family import Family
from pycni.model.kube import (
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
from pycni.model.service import NodeFacts, Packet
from tests.unit.service_world import FACTS, V4, V6, net, pack

NODES, ZONES = ("n1", "n2", "n3"), ("", "z1", "z2")
VIPS = {
    V4: ("10.96.0.1", "10.96.0.2", "203.0.113.1", "203.0.113.2", "198.51.100.1", "192.168.0.1"),
    V6: ("fd00:96::1", "fd00:96::2", "2001:db8::1", "2001:db8::2", "fd00:51::1", "fd00:a::1"),
}
PODS = {
    V4: ("10.244.1.1", "10.244.1.2", "10.244.2.1", "10.244.2.2"),
    V6: ("fd00:244:1::1", "fd00:244:1::2", "fd00:244:2::1", "fd00:244:2::2"),
}
OUTSIDE = {V4: ("192.0.2.9", "192.168.0.1", "192.168.0.2"), V6: ("2001:db8:9::9", "fd00:a::1", "fd00:a::2")}
NETWORKS = ("10.244.0.0/16", "192.0.2.0/24", "192.168.0.0/24", "fd00:244::/32", "2001:db8:9::/48")
ANNOTATIONS = (("local", "true"), ("skiplbips", ""), ("dsr", "tunnel"), ("scheduler", "sh"), ("local", "no"))
OTHER_PROXY = {"service.kubernetes.io/service-proxy-name": "other"}
KEYS = ("a/one", "a/two", "b/one")


class World(NamedTuple):
    services: Mapping[str, Service]
    slices: Mapping[str, EndpointSlice]
    facts: NodeFacts
    packets: list[Packet]


T = TypeVar("T")
CONDITIONS = (
    *((True, True, False),) * 4,
    *((False, True, True),) * 3,
    (False, False, True),
    (False, False, False),
    (False, True, False),
)
"""ready, serving, terminating."""


def rarely(random: Random, default: T, *others: T) -> T:
    """The default in nine of ten cases: worlds in which nothing works teach nothing."""
    return random.choice(others) if random.random() < 0.1 else default


def some(random: Random, values: Sequence[T], most: int, least: int = 0) -> tuple[T, ...]:
    return tuple(random.choice(values) for _ in range(random.randint(least, most)))


def _labels(random: Random) -> dict[str, str]:
    return rarely(random, {}, OTHER_PROXY, {"service.kubernetes.io/headless": ""})


def _port(random: Random) -> ServicePortSpec:
    return ServicePortSpec(
        port=random.choice((80, 81)),
        name=random.choice(("", "http")),
        protocol=random.choice((TCP, TCP, UDP)),
        target_port=8080,
        node_port=random.choice((0, 30080, 30081)),
    )


def make_service(random: Random, key: str) -> Service:
    namespace, name = key.split("/")
    families = random.choice(((V4,), (V6,), (V4, V6), (V6, V4)))
    anywhere = VIPS[V4] + VIPS[V6]
    annotations = dict(some(random, ANNOTATIONS, 2) if random.random() < 0.3 else ())
    return Service(
        meta=Meta(
            name=name,
            namespace=namespace,
            created=random.randint(0, 2),
            labels=_labels(random),
            annotations={f"kube-router.io/service.{key}": value for key, value in annotations.items()},
        ),
        type=random.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")),
        cluster_ips=rarely(
            random, tuple(random.choice(VIPS[family][:2]) for family in families), ("None",), ()
        ),
        families=random.choice((families, families, ())),
        external_ips=some(random, anywhere, 2) if random.random() < 0.4 else (),
        ingress=tuple(
            Ingress(ip=ip, proxy=random.random() < 0.3)
            for ip in some(random, anywhere[2:6] + anywhere[8:], 2)
        ),
        source_ranges=some(random, NETWORKS, 2) if random.random() < 0.3 else (),
        ports=some(random, [_port(random) for _ in range(2)], 2, 1),
        internal_local=random.random() < 0.4,
        external_local=random.random() < 0.5,
        traffic_distribution=random.choice(("", "", "PreferClose", "PreferSameNode")),
    )


def _endpoint(random: Random, family: Family, *, hinted: bool) -> SliceEndpoint:
    ready, serving, terminating = random.choice(CONDITIONS)
    return SliceEndpoint(
        address=random.choice(PODS[family]),
        ready=ready,
        serving=serving,
        terminating=terminating,
        node=random.choice(NODES),
        zone=random.choice(ZONES),
        hint_zones=some(random, ZONES[1:], 2) if hinted else (),
        hint_nodes=some(random, NODES, 2) if hinted else (),
    )


def make_slice(random: Random, name: str, service: Service) -> EndpointSlice:
    families = [V6 if ":" in text else V4 for text in service.cluster_ips if text != "None"]
    family = rarely(random, random.choice(families or (V4, V6)), V4, V6)
    hinted = random.random() < 0.4
    ports = [(port.name, port.protocol) for port in service.ports]
    return EndpointSlice(
        meta=Meta(name=name, namespace=service.meta.namespace, labels=rarely(random, {}, _labels(random))),
        service=service.meta.key,
        family=family,
        headless=rarely(random, False, True),
        ports=tuple(
            SlicePort(port=random.choice((8080, 8080, 80, 0)), name=name, protocol=protocol)
            for name, protocol in rarely(random, ports, [*ports, ("http", TCP)])
        ),
        endpoints=tuple(_endpoint(random, family, hinted=hinted) for _ in range(random.randint(1, 4))),
    )


def _facts(random: Random) -> NodeFacts:
    return NodeFacts(
        name="n1",
        zone=random.choice(ZONES),
        addresses=FACTS.addresses,
        node_port_ranges=rarely(random, (), (net("203.0.113.0/24"), net("fd00:a::/64"))),
        cluster_networks=rarely(random, FACTS.cluster_networks, FACTS.cluster_networks[:1], ()),
        service_networks=rarely(random, FACTS.service_networks, ()),
        external_ip_ranges=random.choice((FACTS.external_ip_ranges, FACTS.external_ip_ranges, ())),
        any_external_ip=random.random() < 0.3,
        masquerade_all=rarely(random, False, True),
        families=rarely(random, (V4, V6), (V4,), (V6,)),
    )


def _packet(random: Random, services: Mapping[str, Service]) -> Packet:
    """Mostly to an address and port that a service asks for."""
    service = services[random.choice(sorted(services))]
    port = random.choice(service.ports)
    doors = [(text, port.port) for text in (*service.cluster_ips, *service.external_ips) if text != "None"]
    doors += [(ingress.ip, port.port) for ingress in service.ingress]
    doors += [(text, port.node_port) for text in ("192.168.0.1", "fd00:a::1") if port.node_port]
    doors += [random.choice((("10.96.0.77", 80), ("fd00:96::77", 80), ("203.0.113.1", 30080)))]
    destination, number = random.choice(doors)
    family = V6 if ":" in destination else V4
    return Packet(
        source=pack(random.choice(PODS[family] + OUTSIDE[family])),
        source_port=40000,
        destination=pack(destination),
        protocol=rarely(random, port.protocol, TCP, UDP),
        port=rarely(random, number, 80, 81, 30080),
        from_node=random.random() < 0.2,
    )


def make_world(seed: int) -> World:
    """The same world for the same seed."""
    random = Random(seed)
    services = {key: make_service(random, key) for key in random.sample(KEYS, random.randint(1, 3))}
    slices = [
        make_slice(random, f"s{number}", services[random.choice(sorted(services))])
        for number in range(random.randint(0, 5))
    ]
    return World(
        services,
        {item.meta.key: item for item in slices},
        _facts(random),
        [_packet(random, services) for _ in range(6)],
    )
