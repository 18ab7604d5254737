"""One entry of the hot tables as an rtnetlink message, and back. Pure.

``kernel/fabric`` sends what ``set_message`` and ``remove_message`` build and reads what the ``decode_*`` functions
make of the kernel's answers: None for everything that is not ours. Devices come and go, so they are passed as numbers
that the caller has just looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycni.errors import KernelError
from pycni.model.family import Family
from pycni.model.tables import (
    ROUTE_PROTOCOL,
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    Route,
    RouteKey,
    fdb_text,
    neighbour_text,
    route_text,
)
from pycni.reconcile.order import Action, Step
from pycni.wire import rtnl

IPV6_DEFAULT_METRIC = 1024
"""What the kernel makes of metric 0 for IPv6 (IP6_RT_PRIO_USER, include/net/ip6_fib.h); read back as 0."""
ADOPTED = "adopted"
"""Kind of a route on one of our devices that another program made: unlike any wanted one, so it is replaced."""

_LEFT_TO_KERNEL = frozenset({2, 9})
"""Protocols ``kernel`` and ``ra``: made by the kernel itself, never ours."""
_KINDS = {rtnl.RTN_UNICAST: "unicast", rtnl.RTN_BLACKHOLE: "blackhole"}
_KIND_NUMBERS = {name: number for number, name in _KINDS.items()}
_NOUNS = {"routes": "route", "neighbours": "neighbour", "fdb": "FDB entry"}


def set_message(step: Step, index: int) -> bytes:
    """The message that adds an entry, or puts it in the place of the one with its key (``Action.CHANGE``)."""
    if step.table == "neighbours":
        return rtnl.new_neighbour(index, step.key.address, step.value.mac)
    if step.table == "fdb":
        return rtnl.new_fdb(index, step.key.mac, step.value.remote)
    key, route = step.key, step.value
    return rtnl.new_route(
        key.destination,
        key.prefix_len,
        oif=index,
        gateway=route.gateway or b"",
        source=route.source or b"",
        protocol=ROUTE_PROTOCOL,
        metric=key.metric,
        table=key.table,
        onlink=route.onlink,
        kind=_KIND_NUMBERS[route.kind],
        replace=step.action is Action.CHANGE,
    )


def remove_message(step: Step, index: int) -> bytes:
    """The message that removes an entry: a route with this gateway and device only, whatever the others hold."""
    if step.table == "neighbours":
        return rtnl.del_neighbour(index, step.key.address)
    if step.table == "fdb":  # with all its destinations: a MAC for many (00:00:00:00:00:00) can have several
        return rtnl.del_fdb(index, step.key.mac)
    key, route = step.key, step.value
    # IPv6 takes metric 0 for any metric (net/ipv6/route.c, ip6_route_del).
    metric = key.metric or (IPV6_DEFAULT_METRIC if key.family is Family.V6 else 0)
    return rtnl.del_route(
        key.destination,
        key.prefix_len,
        oif=index,
        gateway=route.gateway or b"",
        protocol=0 if route.kind == ADOPTED else ROUTE_PROTOCOL,
        metric=metric,
        table=key.table,
    )


def is_held_by_itself(step: Step) -> bool:
    """Whether this change may be refused for the route it is to change.

    The kernel takes an IPv6 ``onlink`` gateway only when no route leads to it over another device
    (net/ipv6/route.c, ip6_route_check_nh_onlink), and a VTEP's address lies inside the very subnet the route is for.
    """
    return (
        step.table == "routes"
        and step.action is Action.CHANGE
        and step.key.family is Family.V6
        and step.value.onlink
    )


def clear_message(key: RouteKey) -> bytes:
    """The message that removes our IPv6 route with this key, wherever it leads."""
    return rtnl.del_route(
        key.destination,
        key.prefix_len,
        protocol=ROUTE_PROTOCOL,
        metric=key.metric or IPV6_DEFAULT_METRIC,
        table=key.table,
    )


def route_key(info: rtnl.RouteInfo) -> RouteKey:
    """By what the kernel finds this route."""
    family = Family(info.family)
    metric = 0 if family is Family.V6 and info.metric == IPV6_DEFAULT_METRIC else info.metric
    return RouteKey(family, info.table, info.destination, info.prefix_len, metric)


def decode_route(
    info: rtnl.RouteInfo, by_index: Mapping[int, str], ours: Mapping[int, str]
) -> tuple[RouteKey, Route] | None:
    """A route of ours, or one on ``ours``, our devices by index."""
    mine = info.protocol == ROUTE_PROTOCOL
    if not mine and (info.oif not in ours or info.protocol in _LEFT_TO_KERNEL or info.kind not in _KINDS):
        return None
    if info.flags & rtnl.RTM_F_CLONED:
        return None
    return route_key(info), route_value(info, by_index, adopted=not mine)


def route_value(info: rtnl.RouteInfo, by_index: Mapping[int, str], *, adopted: bool = False) -> Route:
    """Next hop and flags of a route. Blackholes have no device, though IPv6 lists ``lo``."""
    kind = ADOPTED if adopted else _KINDS.get(info.kind, f"type {info.kind}")
    return Route(
        info.gateway or None,
        by_index.get(info.oif) if info.kind == rtnl.RTN_UNICAST else None,
        bool(info.flags & rtnl.RTNH_F_ONLINK),
        info.source or None,
        kind,
    )


def decode_neighbour(
    info: rtnl.NeighbourInfo, ours: Mapping[int, str]
) -> tuple[NeighbourKey, Neighbour] | None:
    """A permanent neighbour on one of our devices, else None."""
    if not info.state & rtnl.NUD_PERMANENT or info.ifindex not in ours or not info.destination:
        return None
    return NeighbourKey(ours[info.ifindex], info.destination), Neighbour(info.mac)


def decode_fdb(info: rtnl.NeighbourInfo, ours: Mapping[int, str]) -> tuple[FdbKey, FdbEntry] | None:
    """A permanent forwarding entry on one of our devices, else None (learned ones are the kernel's)."""
    permanent = info.state & rtnl.NUD_PERMANENT and info.flags & rtnl.NTF_SELF
    if not permanent or info.ifindex not in ours or not info.destination:
        return None
    return FdbKey(ours[info.ifindex], info.mac), FdbEntry(info.destination)


def entry_text(table: str, key: Any, value: Any) -> str:
    """The entry in the notation of ip(8) and bridge(8)."""
    if table == "routes":
        return route_text(key, value)
    return neighbour_text(key, value) if table == "neighbours" else fdb_text(key, value)


def named(step: Step, error: KernelError) -> KernelError:
    """The error with its operation and object."""
    operation = f"{step.action.value} {_NOUNS[step.table]}"
    return KernelError(error.errno, operation, entry_text(step.table, step.key, step.value), error.detail)
