"""The node's ends of routed pods, read all at once and compared with their plans.

Life: ``read`` lists links, routes of protocol 114 and addresses; ``faults`` says what of one plan is missing, in words
and with the message that puts it right: CHECK reports the words, a repair sends the messages. ``subnet_faults`` does
the same for the routes of the last resort.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from pycni.attach.plan import AttachPlan, PodAddress, RoutedLeg
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Family
from pycni.model.tables import POD_ROUTE_PROTOCOL
from pycni.wire import podlink as messages
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import attr_u32
from pycni.wire.rtlink import Link

LAST_METRIC = 0xFFFF0000
"""Of routes that say "unreachable": any other route to the same subnet, as a bridge's, comes before them."""

Place = tuple[bytes, int]
"""Address and prefix length."""


class Fault(NamedTuple):
    """Something missing or left over."""

    text: str
    message: bytes
    """What puts it right."""


class Seen(NamedTuple):
    """What there is."""

    links: Mapping[str, Link]
    """veth devices by name."""
    routes: frozenset[tuple[bytes, int, int]]
    """To pods: address, prefix length, index of the device."""
    closed: frozenset[Place]
    """Subnets with a route of the last resort."""
    addresses: Mapping[int, frozenset[Place]]
    """By index."""


def read(sock: NetlinkSocket) -> Seen:
    """Everything. Raises KernelError."""
    routes, closed = _routes(sock)
    listed = (rtlink.parse_link(msg) for msg in sock.dump(rtlink.dump_links(kind="veth"), "list links"))
    addresses: dict[int, set[Place]] = {}
    for msg in sock.dump(rtnl.dump_addresses(), "list addresses"):
        info = rtnl.parse_address(msg)
        addresses.setdefault(info.ifindex, set()).add((info.address, info.prefix_len))
    return Seen(
        {link.name: link for link in listed},
        routes,
        closed,
        {index: frozenset(places) for index, places in addresses.items()},
    )


def read_subnets(sock: NetlinkSocket) -> Seen:
    """The routes of the last resort alone: for nodes without such pods. Raises KernelError."""
    return Seen({}, frozenset(), _routes(sock)[1], {})


def _routes(sock: NetlinkSocket) -> tuple[frozenset[tuple[bytes, int, int]], frozenset[Place]]:
    routes, closed = set(), set()
    for family in Family:
        request = rtnl.dump_routes(int(family), table=rtnl.RT_TABLE_MAIN, protocol=POD_ROUTE_PROTOCOL)
        for msg in sock.dump(request, "list routes"):
            info = rtnl.parse_route(msg)
            if info.protocol != POD_ROUTE_PROTOCOL:
                continue
            if info.kind == rtnl.RTN_UNREACHABLE:
                closed.add((info.destination, info.prefix_len))
            else:
                routes.add((info.destination, info.prefix_len, info.oif))
    return frozenset(routes), frozenset(closed)


def faults(plan: AttachPlan, link: RoutedLeg, seen: Seen) -> Iterator[Fault]:
    """What of a pod's host end differs, in the order it is put right; nothing for one that is not there."""
    host = seen.links.get(plan.host)
    if host is None:
        return
    name, index = plan.host, host.ifindex
    if host.master:
        text = f"host end {name} is a port of another device"
        yield Fault(text, rtlink.set_link(index, attr_u32(rtlink.IFLA_MASTER, 0)))
    if not host.up:
        yield Fault(f"host end {name} is down", messages.set_up(index))
    present = seen.addresses.get(index, frozenset())
    for gateway in link.gateways:
        if (gateway.address, gateway.prefix_len) not in present:
            text = f"gateway address {gateway.text()} is missing on {name}"
            yield Fault(text, gateway_message(index, gateway))
    for address in plan.addresses:
        if (address.address, address.prefix_len, index) not in seen.routes:
            yield Fault(f"route to {address.text()} by {name} is missing", route_message(index, address))


def subnet_faults(wanted: Collection[PodAddress], seen: Seen) -> Iterator[Fault]:
    """What of the routes of the last resort differs."""
    for subnet in sorted(wanted):
        if (subnet.address, subnet.prefix_len) not in seen.closed:
            yield Fault(f"route unreachable {subnet.text()} is missing", subnet_message(subnet))
    places = {(subnet.address, subnet.prefix_len) for subnet in wanted}
    for address, prefix_len in sorted(seen.closed - places):
        there = PodAddress(Family.of_packed(address), address, prefix_len)
        msg = rtnl.del_route(
            address,
            prefix_len,
            kind=rtnl.RTN_UNREACHABLE,
            metric=LAST_METRIC,
            protocol=POD_ROUTE_PROTOCOL,
        )
        yield Fault(f"route unreachable {there.text()} is left over", msg)


def needed(places: Mapping[str, frozenset[bytes]], gone: Collection[bytes | int]) -> bool:
    """Whether pods need what ``podroutewatch`` says has gone. ``places``: of each, by host end, what leads to it."""
    if not places:
        return False
    names = {_name(item) for item in gone if isinstance(item, int)}
    return (
        b"" in gone
        or not names.isdisjoint(places)
        or any(not own.isdisjoint(gone) for own in places.values())
    )


def _name(index: int) -> str:
    """Name of a device of the calling thread's namespace; "" when it is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def gateway_message(host: int, gateway: PodAddress) -> bytes:
    """Give a host end a gateway address.

    IPv4: of scope "host", so that the node does not choose it as the source of what it sends to pods or, masquerading,
    for others. IPv6 chooses by the scope of addresses.
    """
    v6 = gateway.family is Family.V6
    return messages.own_address(
        host,
        gateway.address,
        gateway.prefix_len,
        flags=rtnl.IFA_F_NODAD if v6 else 0,
        protocol=POD_ROUTE_PROTOCOL,
        scope=rtnl.RT_SCOPE_LINK if v6 else rtnl.RT_SCOPE_HOST,
    )


def route_message(host: int, address: PodAddress) -> bytes:
    """Lead an address of the pod to its host end."""
    return rtnl.new_route(
        address.address, address.prefix_len, oif=host, protocol=POD_ROUTE_PROTOCOL, replace=True
    )


def subnet_message(subnet: PodAddress) -> bytes:
    """Have what no pod has of a subnet unreachable."""
    return rtnl.new_route(
        subnet.address,
        subnet.prefix_len,
        kind=rtnl.RTN_UNREACHABLE,
        metric=LAST_METRIC,
        protocol=POD_ROUTE_PROTOCOL,
    )
