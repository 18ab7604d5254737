"""What of a node is not as its agent wants it, in words. Pure; part of ``graph``.

Only what agents and CNI made is compared: what is wanted and not there. Entries beyond that are nobody's fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from pycni.model.family import show
from pycni.model.space import NODE, FdbState, LinkState, NeighbourState, NodePart, RouteState, SpaceState

OVERLAYS = frozenset({"vxlan", "ipip", "wireguard", "tun"})
_MAIN = 254


def link_trouble(link: LinkState | None) -> str:
    """Why nothing passes a device; "" when it may."""
    if link is None:
        return "is missing"
    if not link.up:
        return "is down"
    return "" if link.carrier else "has no carrier"


def amiss(part: NodePart, space: str) -> list[str]:
    """What is wanted in a space and is not there. A space nobody wants anything of is as it should be."""
    wanted, actual = part.wanted.get(space), part.actual.get(space)
    if wanted is None or actual is None:
        return []
    return list(_missing(wanted, actual, lambda _: True))


def tunnel_trouble(part: NodePart, other: NodePart) -> dict[str, str]:
    """Tunnels of a node that lead to another one, by device: what is missing on the way there, "" when nothing is."""
    actual = part.actual.get(NODE, SpaceState())
    wanted = part.wanted.get(NODE, actual)
    far = other.actual.get(NODE, SpaceState())
    theirs = {
        item.address
        for item in far.addresses
        if item.device not in {"lo", other.underlay} and item.address[:2] != b"\xfe\x80"
    } | {address for place in other.pods for address in place.addresses}
    links = {**actual.links, **wanted.links}
    found: dict[str, str] = {}
    for name, link in links.items():
        if link.kind not in OVERLAYS:
            continue
        routes = [
            route
            for state in (wanted, actual)
            for route in state.routes
            if route.device == name and route.kind == "unicast" and _covers(route, theirs)
        ]
        if not routes:
            continue
        gateways = {route.gateway for route in routes} - {b""}

        def concerns(entry: object, name: str = name, gateways: Iterable[bytes] = gateways) -> bool:
            if isinstance(entry, RouteState):
                return entry.device == name and _covers(entry, theirs)
            if isinstance(entry, NeighbourState):
                return entry.device == name and entry.address in gateways
            return isinstance(entry, FdbState) and entry.device == name and entry.remote in other.addresses

        trouble = [link_trouble(actual.links.get(name)), *_missing(wanted, actual, concerns)]
        found[name] = "; ".join(text for text in trouble if text)
    return found


def _covers(route: RouteState, addresses: Iterable[bytes]) -> bool:
    """Whether it leads to one of these addresses; a default route leads to nobody in particular."""
    if not route.prefix_len:
        return False
    size, shift = len(route.destination), len(route.destination) * 8 - route.prefix_len
    head = int.from_bytes(route.destination) >> shift
    return any(len(item) == size and int.from_bytes(item) >> shift == head for item in addresses)


def _missing(wanted: SpaceState, actual: SpaceState, concerns: object) -> Iterator[str]:
    assert callable(concerns)
    routes = {_route(item) for item in actual.routes}
    for route in wanted.routes:
        if route.table == _MAIN and concerns(route) and _route(route) not in routes:
            yield f"{_words(route)} is missing"
    neighbours = {(item.device, item.address): item.mac for item in actual.neighbours}
    for entry in wanted.neighbours:
        if concerns(entry):
            there = neighbours.get((entry.device, entry.address))
            text = f"neighbour {show(entry.address)} on {entry.device}"
            if there is None:
                yield f"{text} is missing"
            elif there != entry.mac:
                yield f"{text} has the MAC {there.hex(':')}, not {entry.mac.hex(':')}"
    fdb = {(item.device, item.mac, item.remote) for item in actual.fdb}
    for item in wanted.fdb:
        if concerns(item) and (item.device, item.mac, item.remote) not in fdb:
            yield f"forwarding entry {item.mac.hex(':')} to {show(item.remote)} on {item.device} is missing"


def _route(item: RouteState) -> tuple[object, ...]:
    return item.kind, item.destination, item.prefix_len, item.device, item.gateway


def _words(route: RouteState) -> str:
    to = str(ip_network((route.destination, route.prefix_len))) if route.prefix_len else "default"
    via = f" via {show(route.gateway)}" if route.gateway else ""
    return f"route {to}{via} dev {route.device}" if route.device else f"route {to}"
