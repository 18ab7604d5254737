"""Who gets a packet on one link: by what is remembered of an address, or by who answers when it is asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.family import show, show_mac
from pycni.model.space import NODE, LinkState, NeighbourState, SpaceState, World
from pycni.trace import lookup
from pycni.trace.lookup import Query, Station

_FIXED = frozenset({"permanent", "noarp"})


class Place(NamedTuple):
    """Where a packet is."""

    node: str
    space: str


class Reached(NamedTuple):
    """Somebody, or nobody and why."""

    station: Station | None
    words: str
    """What decided, as ip-neighbour(8) says it."""
    kind: str = ""
    """A fault's name; with a station: it goes on, but is not right."""
    reason: str = ""


def resolve(world: World, place: Place, link: LinkState, address: bytes) -> Reached:
    """The station on the link of a device that gets what is sent to an address."""
    state = _state(world, place)
    known = lookup.entry(state, link.name, address)
    there = list(lookup.stations(world, *place, link.name))
    claims = lookup.answerers(world, *place, link.name, address)
    words = f"{show(address)} dev {link.name}"
    yielded = _yielded(world, there, claims, address, words)
    if yielded is not None:
        return yielded
    if not claims and _open(world, place, link) and not any(_matches(item, known) for item in there):
        silent = lookup.asked(state, link.name, address) or (
            known is None and world.owner(address) is not None
        )
        return _silence(state, link, address, words) if silent else Reached(None, words)
    if known is None:
        if claims:
            return _twice(claims, claims[0], words) or Reached(claims[0], words)
        proxies = [item for item in there if _proxies(world, item, address)]
        if proxies:
            return _proxied(world, proxies[0], words, address)
        return (
            _nobody(world, there, address, words)
            or _unplugged(world, place, link, address, words)
            or _silence(state, link, address, words)
        )
    words = f"{words} lladdr {show_mac(known.mac)} {known.state}"
    right = [item for item in there if item.mac == known.mac]
    if not there:
        return Reached(None, words)
    if not right:
        wrong = f"no interface on this link has {show_mac(known.mac)}"
        return _unplugged(world, place, link, address, words) or Reached(
            None, words, "neighbour-wrong", wrong
        )
    twice = _twice(claims, right[0], words) if known.state not in _FIXED else None
    if twice is not None:
        return twice
    if claims and _home(right[0]) not in {_home(item) for item in claims}:
        if _proxies(world, right[0], address):
            return _proxied(world, right[0], words, address)
        reason = f"{show_mac(known.mac)} is {_name(right[0])}, but {show(address)} is {_name(claims[0])}"
        return Reached(None, words, "neighbour-wrong", reason)
    return Reached(next((item for item in right if item in claims), right[0]), words)


def _twice(claims: Sequence[Station], taken: Station, words: str) -> Reached | None:
    """Several that answer for one address: which of them gets a packet is chance."""
    homes = list(dict.fromkeys(_home(item) for item in claims))
    if len(homes) < 2:
        return None
    names = " and ".join(
        f"{_name(item)} ({show_mac(item.mac)})" for item in claims if _home(item) in homes[:2]
    )
    address = words.split(maxsplit=1)[0]
    reason = f"{address} is used twice on this link, by {names}"
    return Reached(taken, words, "address-duplicate", reason)


def _proxied(world: World, station: Station, words: str, address: bytes) -> Reached:
    owner = world.owner(address)
    whose = f", which is {_title(*owner)}" if owner is not None else ""
    reason = f"{_name(station)} answers for {show(address)}{whose}: proxy_arp is on at its {station.device}"
    return Reached(station, words, "proxy-arp", reason)


def _proxies(world: World, station: Station, address: bytes) -> bool:
    """Whether a station answers for what it would route by another device (arp_process, IPv4 only)."""
    state = _state(world, Place(station.node, station.space))
    on = "1" in {
        state.sysctls.get(f"net/ipv4/conf/{station.device}/proxy_arp"),
        state.sysctls.get("net.ipv4.conf.all.proxy_arp"),
    }
    if not on or len(address) != 4 or state.sysctls.get("net.ipv4.ip_forward") != "1":
        return False
    found = lookup.route(state, Query(address, iif=station.device))
    return found is not None and found.kind == "unicast" and found.device != station.device


def _nobody(world: World, there: Sequence[Station], address: bytes, words: str) -> Reached | None:
    """Somebody has the address and may not use it."""
    for station in there:
        held = _state(world, Place(station.node, station.space)).of(station.device)
        trouble = next((item.trouble for item in held if item.address == address and item.trouble), "")
        if trouble:
            why = (
                "somebody else on the link has it" if trouble == "dadfailed" else "it may not be the only one"
            )
            reason = f"{_name(station)} has {show(address)} and does not use it ({trouble}): {why}"
            return Reached(None, words, "address-unusable", reason)
    return None


def _unplugged(world: World, place: Place, link: LinkState, address: bytes, words: str) -> Reached | None:
    """The address is of a pod of this node whose veth is not a port of this bridge."""
    owner = world.owner(address)
    if owner is None or owner[0] != place.node or link.kind != "bridge":
        return None
    for item in _state(world, Place(*owner)).links.values():
        far = lookup.across(world, *owner, item.name)
        if far is None or far.space != place.space:
            continue
        port = _state(world, place).links[far.device]
        if port.master != link.name:
            reason = f"{port.name}, at whose other end is {_title(*owner)}, is no port of {link.name}"
            return Reached(None, words, "port-missing", reason)
    return None


def _open(world: World, place: Place, link: LinkState) -> bool:
    """Whether others than those that are known may be on the link."""
    return link.kind != "bridge" and lookup.across(world, *place, link.name) is None


def _matches(station: Station, known: NeighbourState | None) -> bool:
    return known is not None and station.mac == known.mac


def _yielded(
    world: World, there: Sequence[Station], claims: Sequence[Station], address: bytes, words: str
) -> Reached | None:
    """Somebody has the address, and gave it up for somebody else who has it too (RFC 4862 section 5.4)."""
    owner = world.owner(address)
    for station in there if claims and owner is not None else ():
        held = _state(world, Place(station.node, station.space)).of(station.device)
        lost = any(item.address == address and item.trouble == "dadfailed" for item in held)
        if lost and _home(station) == owner:
            other = f"{_name(claims[0])} ({show_mac(claims[0].mac)})"
            reason = (
                f"{show(address)} is used twice on this link:"
                f" {_name(station)} has given it up (dadfailed) for {other}"
            )
            return Reached(claims[0], words, "address-duplicate", reason)
    return None


def _silence(state: SpaceState, link: LinkState, address: bytes, words: str) -> Reached:
    asked = lookup.asked(state, link.name, address)
    reason = f"nobody on this link answers for {show(address)}"
    return Reached(None, f"{words} FAILED" if asked else words, "nobody-answers", reason)


def _home(station: Station) -> tuple[str, str]:
    return station.node, station.space


def _name(station: Station) -> str:
    return _title(station.node, station.space)


def _title(node: str, space: str) -> str:
    return f"pod {space}" if space != NODE else f"node {node}"


def _state(world: World, place: Place) -> SpaceState:
    part = world.nodes.get(place.node)
    found = part.actual.get(place.space) if part is not None else None
    return found if found is not None else SpaceState()
