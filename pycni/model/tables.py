"""The hot tables: what the kernel indexes by (key) and the rest (value), as flat tuples.

Desired state is compiled into ``dict[Key, Value]``; the kernel's state is read back into the same types; a
changed value under an equal key is therefore seen as a change. Addresses are packed bytes (4 or 16, network
byte order), MACs six bytes: equality, hashing and netlink encoding cost nothing extra.

Devices are named, not numbered: an ifindex is not an identity (names are resolved as late as possible).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pycni.model.family import Family, show, show_mac

ROUTE_PROTOCOL = 112
"""rtm_protocol of every route we own (unassigned in include/uapi/linux/rtnetlink.h and in iproute2)."""

POD_ROUTE_PROTOCOL = 114
"""rtm_protocol of routes to single pods of this node (attachment ``ptp``); unassigned too, not the fabric's."""

PROBE_ROUTE_PROTOCOL = 115
"""rtm_protocol of local routes to addresses only agents ask each other at (``kernel/probe_address``)."""

LINK_ALIAS = "pycni"
"""IFLA_IFALIAS of every shared device we made; per-pod links carry ``pycni:<network>:<container id>:<ifname>``."""


class RouteKey(NamedTuple):
    """What the kernel finds a route by (fib_table_lookup / fib6: table, destination, metric)."""

    family: Family
    table: int
    destination: bytes
    prefix_len: int
    metric: int


class Route(NamedTuple):
    """The rest of a route: next hop, device and flags. ``gateway`` None means directly connected."""

    gateway: bytes | None
    device: str | None
    onlink: bool = False
    source: bytes | None = None
    kind: str = "unicast"
    """``unicast`` or ``blackhole``."""


class NeighbourKey(NamedTuple):
    """A neighbour entry is found by device and address."""

    device: str
    address: bytes


class Neighbour(NamedTuple):
    """Permanent neighbour entry."""

    mac: bytes


class FdbKey(NamedTuple):
    """A VXLAN forwarding entry (NTF_SELF) is found by device and inner MAC."""

    device: str
    mac: bytes


class FdbEntry(NamedTuple):
    """Where a VXLAN device sends frames for the MAC: the remote VTEP's underlay address."""

    remote: bytes


RouteTable = Mapping[RouteKey, Route]
NeighbourTable = Mapping[NeighbourKey, Neighbour]
FdbTable = Mapping[FdbKey, FdbEntry]


def route_text(key: RouteKey, route: Route) -> str:
    """One route in the notation of ip-route(8)."""
    words = [] if route.kind == "unicast" else [route.kind]
    any_dst = key.prefix_len == 0 and not any(key.destination)
    words.append("default" if any_dst else f"{show(key.destination)}/{key.prefix_len}")
    if route.gateway is not None:
        words += ["via", show(route.gateway)]
    if route.device is not None:
        words += ["dev", route.device]
    words += ["proto", str(ROUTE_PROTOCOL)]
    if key.table != 254:
        words += ["table", str(key.table)]
    if route.source is not None:
        words += ["src", show(route.source)]
    if key.metric:
        words += ["metric", str(key.metric)]
    if route.onlink:
        words.append("onlink")
    return " ".join(words)


def neighbour_text(key: NeighbourKey, neighbour: Neighbour) -> str:
    """One neighbour in the notation of ip-neighbour(8)."""
    return f"{show(key.address)} dev {key.device} lladdr {show_mac(neighbour.mac)} PERMANENT"


def fdb_text(key: FdbKey, entry: FdbEntry) -> str:
    """One forwarding entry in the notation of bridge(8)."""
    return f"{show_mac(key.mac)} dev {key.device} dst {show(entry.remote)} self permanent"
