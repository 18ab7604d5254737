"""What of a node is not as its agent wants it, in words. Pure; part of ``graph``.

Only what agents and CNI made is compared: what is wanted and not there. Entries beyond that are nobody's fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from pycni.model.family import show
from pycni.model.space import NODE, FdbState, LinkState, NeighbourState, NodePart, RouteState, SpaceState

OVERLAYS = frozenset({"vxlan", "ipip", "wireguard", "tun"})
_MAIN = 254

Entry = RouteState | NeighbourState | FdbState


def link_trouble(link: LinkState | None) -> str:
    """Why nothing passes a device; "" when it may."""
    if link is None:
        return "is missing"
    if not link.up:
        return "is down"
    return "" if link.carrier else "has no carrier"


class Compared:
    """A node as it is beside what is wanted of it."""

    def __init__(self, part: NodePart) -> None:
        self.part = part
        self.reach = Reach(part)
        self._missing = {
            space: list(_differences(wanted, part.actual[space]))
            for space, wanted in part.wanted.items()
            if space in part.actual
        }
        self._actual = part.actual.get(NODE, SpaceState())
        wanted = part.wanted.get(NODE, SpaceState())
        links = {**self._actual.links, **wanted.links}
        self._overlays: dict[str, list[RouteState]] = {
            name: [
                route
                for state in (wanted, self._actual)
                for route in state.routes
                if route.device == name and route.kind == "unicast"
            ]
            for name, link in links.items()
            if link.kind in OVERLAYS
        }

    def missing(self, space: str) -> list[str]:
        """What is wanted in a space and is not there, in words. A space nobody wants anything of is as it should be."""
        return [text for _, text in self._missing.get(space, ())]

    def tunnels_to(self, other: Compared) -> dict[str, str]:
        """Devices by which packets go to another node, with what is missing on the way there ("": nothing)."""
        found: dict[str, str] = {}
        for name, routes in self._overlays.items():
            leading = [route for route in routes if other.reach.by(route)]
            if leading:
                gateways = {route.gateway for route in leading} - {b""}
                trouble = [
                    link_trouble(self._actual.links.get(name)),
                    *(
                        text
                        for entry, text in self._missing.get(NODE, ())
                        if entry.device == name and _concerns(entry, other, gateways)
                    ),
                ]
                found[name] = "; ".join(text for text in trouble if text)
        return found


class Reach:
    """Addresses of a node behind its underlay: by which routes are they reached?"""

    def __init__(self, part: NodePart) -> None:
        state = part.actual.get(NODE, SpaceState())
        self._addresses = {
            item.address
            for item in state.addresses
            if item.device not in {"lo", part.underlay} and item.address[:2] != b"\xfe\x80"
        } | {address for place in part.pods for address in place.addresses}
        self._heads: dict[tuple[int, int], set[int]] = {}

    def by(self, route: RouteState) -> bool:
        """Whether a route leads there; a default route leads to nobody in particular."""
        if not route.prefix_len:
            return False
        size = len(route.destination)
        shift = size * 8 - route.prefix_len
        heads = self._heads.get((size, shift))
        if heads is None:
            heads = {int.from_bytes(item) >> shift for item in self._addresses if len(item) == size}
            self._heads[size, shift] = heads
        return int.from_bytes(route.destination) >> shift in heads


def _concerns(entry: Entry, other: Compared, gateways: set[bytes]) -> bool:
    if isinstance(entry, RouteState):
        return other.reach.by(entry)
    if isinstance(entry, NeighbourState):
        return entry.address in gateways
    return entry.remote in other.part.addresses


def _differences(wanted: SpaceState, actual: SpaceState) -> Iterator[tuple[Entry, str]]:
    routes = {_route(item) for item in actual.routes}
    for route in wanted.routes:
        if route.table == _MAIN and _route(route) not in routes:
            yield route, f"{_words(route)} is missing"
    neighbours = {(item.device, item.address): item.mac for item in actual.neighbours}
    for entry in wanted.neighbours:
        there = neighbours.get((entry.device, entry.address))
        text = f"neighbour {show(entry.address)} on {entry.device}"
        if there is None:
            yield entry, f"{text} is missing"
        elif there != entry.mac:
            yield entry, f"{text} has the MAC {there.hex(':')}, not {entry.mac.hex(':')}"
    fdb = {(item.device, item.mac, item.remote) for item in actual.fdb}
    for item in wanted.fdb:
        if (item.device, item.mac, item.remote) not in fdb:
            yield (
                item,
                f"forwarding entry {item.mac.hex(':')} to {show(item.remote)} on {item.device} is missing",
            )


def _route(item: RouteState) -> tuple[object, ...]:
    return item.kind, item.destination, item.prefix_len, item.device, item.gateway


def _words(route: RouteState) -> str:
    to = str(ip_network((route.destination, route.prefix_len))) if route.prefix_len else "default"
    via = f" via {show(route.gateway)}" if route.gateway else ""
    return f"route {to}{via} dev {route.device}" if route.device else f"route {to}"
