"""Frontends written down shortly, for tests of the nftables data plane."""

from __future__ import annotations

from typing import Any

from pycni.model.family import Family
from pycni.model.service import (
    DEFAULT_OPTIONS,
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Options,
    Pool,
    PortName,
    Target,
    Verdict,
)
from tests.unit.service_world import net, pack

V4, V6 = Family.V4, Family.V6
FACTS = NodeFacts(
    name="n1",
    addresses=(pack("192.168.0.1"), pack("fd00:a::1")),
    cluster_networks=(net("10.244.0.0/16"), net("fd00:244::/32")),
    service_networks=(net("10.96.0.0/16"), net("fd00:96::/112")),
    families=(V4, V6),
)
PREFIX = {V4: "10.244.1.", V6: "fd00:244::"}


def target(family: Family, number: int, port: int = 8080) -> Target:
    """The pod with this number; even ones are on the node."""
    return Target(pack(f"{PREFIX[family]}{number}"), port, number % 2 == 0)


def pool(family: Family, *numbers: int, empty: Verdict = Verdict.REJECT) -> Pool:
    return Pool(tuple(sorted(target(family, number) for number in numbers)), (), empty)


def frontend(address: str, *numbers: int, family: Family | None = None, **fields: Any) -> Frontend:
    """TCP port 80 of a ClusterIP, or with address "" node port 30080, leading to pods with these numbers."""
    family = family or (V6 if ":" in address else V4)
    kind = fields.pop("kind", Kind.CLUSTER_IP if address else Kind.NODE_PORT)
    port = fields.pop("port", 80 if address else 30080)
    inside = fields.pop("inside", None)
    return Frontend(
        key=FrontendKey(family, pack(address) if address else b"", fields.pop("protocol", 6), port),
        kind=kind,
        name=PortName("default", "web", ""),
        pool=pool(family, *numbers, empty=fields.pop("empty", Verdict.REJECT)),
        inside=None if inside is None else pool(family, *inside),
        options=fields.pop("options", DEFAULT_OPTIONS),
        **fields,
    )


def asking(scheduler: str = "", flags: tuple[str, ...] = (), affinity: int = 0) -> Options:
    return Options(scheduler=scheduler, sched_flags=flags, affinity_s=affinity)


EVERY_SHAPE = {
    "cluster ip": frontend("10.96.0.1", 1, 2, 3, 4, 5),
    "cluster ip v6": frontend("fd00:96::1", 1, 2, 3),
    "nobody": frontend("10.96.0.2"),
    "silence": frontend("fd00:96::2", empty=Verdict.DROP),
    "udp": frontend("10.96.0.1", 1, 2, protocol=17, port=53),
    "sctp": frontend("10.96.0.1", 1, 2, protocol=132, port=53),
    "node port": frontend("", 1, 2, 3),
    "node port v6": frontend("", 1, 2, 3, family=V6),
    "local node port": frontend("", 2, port=30081, inside=(1, 2, 3), local_only=True),
    "local, none here": frontend(
        "198.51.100.1", inside=(1, 3), local_only=True, kind=Kind.LOAD_BALANCER, empty=Verdict.DROP
    ),
    "local, none anywhere": frontend(
        "198.51.100.2", inside=(), local_only=True, kind=Kind.LOAD_BALANCER, empty=Verdict.REJECT
    ),
    "external ip": frontend("203.0.113.1", 1, 2, kind=Kind.EXTERNAL_IP),
    "ranges": frontend(
        "198.51.100.3",
        1,
        2,
        kind=Kind.LOAD_BALANCER,
        source_ranges=(net("192.0.2.0/24"), net("192.168.0.0/16"), net("0.0.0.0/0")),
    ),
    "ranges v6, local": frontend(
        "fd00:51::3",
        2,
        kind=Kind.LOAD_BALANCER,
        source_ranges=(net("2001:db8:9::/64"), net("fd00:a::1/128")),
        local_only=True,
        inside=(1, 2, 3),
    ),
    "nobody allowed": frontend("198.51.100.4", 1, kind=Kind.LOAD_BALANCER, source_ranges=()),
    "rr": frontend("10.96.0.3", 1, 2, 3, options=asking("rr")),
    "rr, local": frontend("", 2, 4, port=30082, inside=(1, 2, 3, 4), local_only=True, options=asking("rr")),
    "sh": frontend("10.96.0.4", 1, 2, 3, options=asking("sh")),
    "sh by port v6": frontend("fd00:96::4", 1, 2, 3, options=asking("sh", ("flag-2",))),
    "dh": frontend("10.96.0.5", 1, 2, 3, options=asking("dh")),
    "dh v6": frontend("", 1, 2, family=V6, port=30083, options=asking("dh")),
    "mh": frontend("10.96.0.6", 1, 2, 3, options=asking("mh", ("flag-1", "flag-2"))),
    "affinity": frontend("10.96.0.7", 1, 2, 3, options=asking(affinity=60)),
    "affinity v6": frontend("fd00:96::7", 1, 2, options=asking(affinity=10800)),
    "affinity, local": frontend(
        "", 2, port=30084, inside=(1, 2, 3), local_only=True, options=asking(affinity=60)
    ),
    "affinity, rr": frontend("10.96.0.8", 1, 2, 3, options=asking("rr", affinity=5)),
    "affinity, sh by port v6": frontend("fd00:96::8", 1, 2, options=asking("sh", ("flag-2",), affinity=5)),
    "affinity, dh v6": frontend("fd00:96::9", 1, 2, options=asking("dh", affinity=5)),
    "affinity, mh v6 node port": frontend("", 1, 2, family=V6, port=30085, options=asking("mh", affinity=5)),
}
"""One frontend of every kind the table knows."""
