"""What the kernel finds for a packet: route, next hop's MAC, port of a bridge, far end of a tunnel. Pure.

Each answer follows the kernel's own order (fib_rules_lookup, fib_table_lookup, neigh_lookup, br_fdb_find_rcu,
vxlan_find_mac) over states that were read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pycni.model.family import Family, show
from pycni.model.space import (
    NODE,
    FdbState,
    LinkState,
    NeighbourState,
    RouteState,
    RuleState,
    SpaceState,
    World,
)

_USABLE = frozenset({"permanent", "noarp", "reachable", "stale", "delay", "probe"})
_CHILDREN = frozenset({"macvlan", "ipvlan"})
MAIN_RULES = ((0, 255), (32766, 254), (32767, 253))


class Station(NamedTuple):
    """An interface that answers for an address on a link."""

    node: str
    space: str
    device: str
    mac: bytes


class Query(NamedTuple):
    """What a route is looked up by."""

    destination: bytes
    source: bytes = b""
    """Empty: not chosen yet."""
    iif: str = ""
    """The interface the packet came in by; "": it begins here."""
    mark: int = 0


def route(space: SpaceState, query: Query) -> RouteState | None:
    """The route a packet takes; None: there is none. The rules are tried in their order, ``throw`` goes on."""
    family = Family.of_packed(query.destination)
    for rule in _rules(space, family):
        if not _matches(rule, query):
            continue
        if rule.action != "lookup":
            return RouteState(table=0, destination=query.destination, prefix_len=0, kind=rule.action)
        found = _in_table(space, rule.table, query.destination)
        if found is not None and found.kind != "throw":
            return found
    return None


def _rules(space: SpaceState, family: Family) -> list[RuleState]:
    found = [rule for rule in space.rules if rule.family is family]
    if not found:  # a state without rules means the usual ones
        found = [RuleState(priority=priority, family=family, table=table) for priority, table in MAIN_RULES]
    return sorted(found, key=lambda rule: rule.priority)


def _matches(rule: RuleState, query: Query) -> bool:
    hit = (
        inside(query.source, rule.source, rule.source_len)
        and inside(query.destination, rule.destination, rule.destination_len)
        and (not rule.iif or rule.iif == (query.iif or "lo"))
        and not rule.oif
        and query.mark & rule.mask == rule.mark
    )
    return hit is not rule.invert


def _in_table(space: SpaceState, table: int, destination: bytes) -> RouteState | None:
    best = None
    for item in space.routes:
        if item.table != table or len(item.destination) != len(destination):
            continue
        if not inside(destination, item.destination, item.prefix_len) or not _alive(space, item):
            continue
        if best is None or (-item.prefix_len, item.metric) < (-best.prefix_len, best.metric):
            best = item
    return best


def _alive(space: SpaceState, item: RouteState) -> bool:
    """Routes of a device that is down are not used; without carrier they are (ignore_routes_with_linkdown is off)."""
    link = space.links.get(item.device)
    return item.kind == "local" or link is None or link.up


def inside(address: bytes, network: bytes, length: int) -> bool:
    """Whether an address is in a network; everything is in the one of length 0."""
    if not length:
        return True
    if len(address) != len(network):
        return False
    shift = len(address) * 8 - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(network, "big") >> shift


def source(space: SpaceState, device: str, destination: bytes) -> bytes:
    """The address the kernel gives what leaves by a device (inet_select_addr, ipv6_dev_get_saddr); empty: it has none.

    Where the device has only addresses of its link, one of another device is taken: of IPv4 the first, of IPv6 the one
    nearest to the destination (RFC 6724, rules 5 and 8).
    """
    right = [item for item in space.addresses if len(item.address) == len(destination) and not item.trouble]
    wide = [item for item in right if not _of_link(item.address)]
    found = [item.address for item in wide if item.device == device]
    if not found:
        order = {name: link.index for name, link in space.links.items()}
        found = [item.address for item in sorted(wide, key=lambda item: order.get(item.device, 0))]
    if not found:
        found = [item.address for item in right if item.device == device]
    if len(destination) == 16:
        found.sort(key=lambda address: -_common(address, destination))
    return found[0] if found else b""


def _of_link(address: bytes) -> bool:
    """Whether an address means something on its link or its machine only."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe" or address[0] == 127
    return (address[0] == 0xFE and address[1] & 0xC0 == 0x80) or address == bytes(15) + b"\x01"


def _common(one: bytes, two: bytes) -> int:
    """Bits two addresses begin with alike."""
    differs = int.from_bytes(one, "big") ^ int.from_bytes(two, "big")
    return len(one) * 8 - differs.bit_length()


def entry(space: SpaceState, device: str, address: bytes) -> NeighbourState | None:
    """The neighbour entry the kernel would use; None: it has to ask."""
    found = (item for item in space.neighbours if (item.device, item.address) == (device, address))
    return next((item for item in found if item.state in _USABLE), None)


def asked(space: SpaceState, device: str, address: bytes) -> bool:
    """Whether the kernel has asked for an address in vain, or is asking."""
    found = (item for item in space.neighbours if (item.device, item.address) == (device, address))
    return any(item.state in {"failed", "incomplete"} for item in found)


def tunnel_entry(space: SpaceState, device: str, mac: bytes) -> FdbState | None:
    """The forwarding entry of an overlay device, or its default destination (MAC of zeros)."""
    mine = [item for item in space.fdb if item.device == device and item.remote]
    for wanted in (mac, bytes(6)):
        for item in mine:
            if item.mac == wanted:
                return item
    return None


def across(world: World, node: str, space: str, device: str) -> Station | None:
    """The other end of a veth pair; None where the world does not have it."""
    link = _space(world, node, space).links.get(device)
    if link is None or link.peer_space is None:
        return None
    far = _space(world, node, link.peer_space).links.get(link.peer)
    return Station(node, link.peer_space, link.peer, far.mac) if far is not None else None


def answerers(world: World, node: str, space: str, device: str, address: bytes) -> list[Station]:
    """Everybody who would answer for an address on the link of a device: two are one too many."""
    found = []
    for station in stations(world, node, space, device):
        state = _space(world, station.node, station.space)
        mine = any(item.address == address and not item.trouble for item in state.of(station.device))
        # IPv4 answers for every address of the machine (arp_ignore 0).
        other = len(address) == 4 and any(
            item.address == address and not item.trouble for item in state.addresses
        )
        if mine or other:
            found.append(station)
    return list(dict.fromkeys(found))


def stations(world: World, node: str, space: str, device: str) -> Iterator[Station]:
    """All interfaces on the link of a device but itself: through a bridge, a veth pair, or the underlay."""
    link = _space(world, node, space).links.get(device)
    if link is None:
        return
    far = across(world, node, space, device)
    if far is not None:
        yield from _behind(world, far)
    elif link.kind == "bridge":
        yield from _ports(world, node, space, device, but="")
    else:
        yield from _on_underlay(world, node, space, device)


def _behind(world: World, far: Station) -> Iterator[Station]:
    """What is met at the far end of a pair: itself, or its bridge with the other ports."""
    master = _space(world, far.node, far.space).links[far.device].master
    if not master:
        yield far
        return
    bridge = _space(world, far.node, far.space).links.get(master)
    if bridge is not None:
        yield Station(far.node, far.space, master, bridge.mac)
        yield from _ports(world, far.node, far.space, master, but=far.device)


def _ports(world: World, node: str, space: str, bridge: str, *, but: str) -> Iterator[Station]:
    for name, link in _space(world, node, space).links.items():
        if link.master == bridge and name != but:
            far = across(world, node, space, name)
            if far is not None:
                yield far


def _on_underlay(world: World, node: str, space: str, device: str) -> Iterator[Station]:
    """Nodes' interfaces, and pods that are on the underlay themselves (macvlan, ipvlan)."""
    link = _space(world, node, space).links[device]
    mine = (node, space, device)
    child = link.kind in _CHILDREN
    if not child and space != NODE:
        return
    if not child and device != world.nodes[node].underlay:
        yield from _by_subnet(world, node, device)
        return
    for name, part in world.nodes.items():
        for where, state in part.actual.items():
            for item in state.links.values():
                way_out = where == NODE and item.name == part.underlay
                # A child and its own parent do not hear each other.
                deaf = name == node and ((child and way_out) or (not child and item.kind in _CHILDREN))
                if (way_out or item.kind in _CHILDREN) and (name, where, item.name) != mine and not deaf:
                    yield Station(name, where, item.name, item.mac)


def _by_subnet(world: World, node: str, device: str) -> Iterator[Station]:
    """Other nodes' interfaces with an address in a subnet of this one: a second network between nodes."""
    mine = [item for item in _space(world, node, NODE).of(device) if item.prefix_len]
    for name in world.nodes:
        state = _space(world, name, NODE)
        for item in state.addresses if name != node else ():
            link = state.links.get(item.device)
            if link is not None and any(inside(item.address, own.address, own.prefix_len) for own in mine):
                yield Station(name, NODE, item.device, link.mac)


def _space(world: World, node: str, space: str) -> SpaceState:
    part = world.nodes.get(node)
    found = part.actual.get(space) if part is not None else None
    return found if found is not None else SpaceState()


def port_of(world: World, station: Station, node: str, bridge: str) -> LinkState | None:
    """The port of a bridge of a node's own namespace behind which a station is; None: it is no port's."""
    for name, link in _space(world, node, NODE).links.items():
        if link.master == bridge:
            far = across(world, node, NODE, name)
            if far is not None and far[:3] == station[:3]:
                return link
    return None


def route_text(found: RouteState) -> str:
    """In the notation of ip-route(8)."""
    words = [] if found.kind == "unicast" else [found.kind]
    whole = len(found.destination) * 8 == found.prefix_len
    net = show(found.destination) + ("" if whole else f"/{found.prefix_len}")
    words.append(net if found.prefix_len else "default")
    if found.gateway:
        words += ["via", show(found.gateway)]
    for hop in found.hops:
        words += ["nexthop via", show(hop)]
    if found.device:
        words += ["dev", found.device]
    if found.table not in {0, 254, 255}:
        words += ["table", str(found.table)]
    if found.metric:
        words += ["metric", str(found.metric)]
    return " ".join(words)
