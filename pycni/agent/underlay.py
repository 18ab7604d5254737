"""Which interface carries the traffic between nodes, with which address and MTU.

Life: ``read`` takes links and addresses from the kernel of the calling thread's namespace; ``detect`` picks the
interface as flanneld does (``iface`` by name or address, then ``iface-regex`` on addresses and names, else
``iface-can-reach`` or the default route) and the address per family, and says precisely why when it cannot.
Blocking: a few milliseconds of netlink; call it on a worker thread.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import NamedTuple

from pycni.agent.settings import Settings
from pycni.errors import ConfigError, KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import FAMILIES, Address, Family
from pycni.model.node import Underlay
from pycni.wire import rtlink, rtnl

Interface = IPv4Interface | IPv6Interface

_SECONDARY_OR_TEMPORARY = 0x01
_DEPRECATED = 0x20
_UNUSABLE = rtnl.IFA_F_TENTATIVE | rtnl.IFA_F_DADFAILED
_MIN_MTU = 576
"""What every IPv4 host has to take (RFC 791); less than that is no interface to build a fabric on."""


class Card(NamedTuple):
    """An interface with its addresses, best first (see ``_rank``)."""

    link: rtlink.Link
    addresses: tuple[Interface, ...]

    def of(self, family: Family) -> Interface | None:
        """The best address of a family."""
        return next((item for item in self.addresses if Family.of(item.ip) is family), None)


class _Pick(NamedTuple):
    card: Card
    address: Address | None
    """The address that was asked for, when it was an address."""


def detect(settings: Settings, families: Sequence[Family] = ()) -> Underlay:
    """The external interface in the calling thread's namespace.

    ``families``: those the network has; each must have an address on the interface. Empty: not known yet, one
    address of any family will do. Errors: ``ConfigError`` naming the setting and what is there instead;
    ``KernelError``.
    """
    with NetlinkSocket() as sock:
        cards = read(sock)
        pick = _configured(settings, cards) or _by_route(settings, cards, families, sock)
    return _underlay(pick, families)


def read(sock: NetlinkSocket) -> tuple[Card, ...]:
    """Every interface of the socket's namespace with its usable addresses."""
    found: dict[int, list[rtnl.AddressInfo]] = {}
    for reply in sock.dump(rtnl.dump_addresses(), "list addresses"):
        info = rtnl.parse_address(reply)
        if info.address and not info.flags & _UNUSABLE:
            found.setdefault(info.ifindex, []).append(info)
    links = [rtlink.parse_link(reply) for reply in sock.dump(rtlink.dump_links(), "list links")]
    return tuple(
        Card(link, tuple(_interface(info) for info in sorted(found.get(link.ifindex, ()), key=_rank)))
        for link in links
    )


def _interface(info: rtnl.AddressInfo) -> Interface:
    return ip_interface((info.address, info.prefix_len))


def _rank(info: rtnl.AddressInfo) -> tuple[bool, bool, bool]:
    """Global before link-local, lasting before deprecated, primary before temporary; else the kernel's order."""
    return (
        info.scope != rtnl.RT_SCOPE_UNIVERSE,
        bool(info.flags & _DEPRECATED),
        bool(info.flags & _SECONDARY_OR_TEMPORARY),
    )


def _configured(settings: Settings, cards: Sequence[Card]) -> _Pick | None:
    """The first of iface and iface-regex that matches; None when neither is set."""
    if not settings.iface and not settings.iface_regex:
        return None
    for wanted in settings.iface:
        pick = _named(wanted, cards)
        if pick is not None:
            return pick
    for pattern in settings.iface_regex:
        pick = _matching(pattern, cards)
        if pick is not None:
            return pick
    there = ", ".join(card.link.name for card in cards)
    field = "iface" if settings.iface else "iface-regex"
    value = settings.iface or settings.iface_regex
    raise ConfigError(
        "settings", field, ",".join(value), f"matches no interface of this node (there are {there})"
    )


def _named(wanted: str, cards: Iterable[Card]) -> _Pick | None:
    try:
        address = ip_address(wanted)
    except ValueError:
        return next((_Pick(card, None) for card in cards if card.link.name == wanted), None)
    for card in cards:
        if any(own.ip == address for own in card.addresses):
            return _Pick(card, address)
    return None


def _matching(pattern: str, cards: Sequence[Card]) -> _Pick | None:
    """Like flannel: an interface one of whose addresses matches comes before one whose name does."""
    compiled = re.compile(pattern)
    outside = [card for card in cards if not card.link.flags & rtlink.IFF_LOOPBACK]
    for card in outside:
        for own in card.addresses:
            if compiled.search(str(own.ip)):
                return _Pick(card, own.ip)
    return next((_Pick(card, None) for card in outside if compiled.search(card.link.name)), None)


def _by_route(
    settings: Settings, cards: Sequence[Card], families: Sequence[Family], sock: NetlinkSocket
) -> _Pick:
    """The interface the kernel routes by: to iface-can-reach, or by default."""
    by_index = {card.link.ifindex: card for card in cards}
    target = settings.iface_can_reach
    if target is not None:
        route = _lookup(sock, target)
        card = by_index.get(route.oif)
        if card is None or card.link.flags & rtlink.IFF_LOOPBACK:
            raise ConfigError("settings", "iface-can-reach", str(target), "is an address of this node itself")
        return _Pick(card, ip_address(route.source) if route.source else None)
    found = {family: _default(sock, family) for family in families or FAMILIES}
    indexes = [index for index in found.values() if index]
    missing = [family.label for family, index in found.items() if not index]
    if not indexes or (families and missing):
        raise ConfigError(
            "kernel",
            "default route",
            "none",
            f"no {' or '.join(missing)} default route: name the interface by iface",
        )
    if families and len(set(indexes)) > 1:
        names = " and ".join(by_index[index].link.name for index in indexes)
        raise ConfigError(
            "kernel",
            "default route",
            names,
            "the families' default routes differ: name the interface by iface",
        )
    return _Pick(by_index[indexes[0]], None)


def _lookup(sock: NetlinkSocket, target: Address) -> rtnl.RouteInfo:
    """The route a packet to ``target`` takes (RTM_GETROUTE)."""
    try:
        replies = sock.request(rtnl.get_route(target.packed), "look up route", f"to {target}")
    except KernelError as exc:
        raise ConfigError("settings", "iface-can-reach", str(target), f"no route to it ({exc})") from exc
    return rtnl.parse_route(replies[0])


def _default(sock: NetlinkSocket, family: Family) -> int:
    """Index of the interface of a family's default route with the lowest metric; 0 without one."""
    message = rtnl.dump_routes(int(family), table=rtnl.RT_TABLE_MAIN)
    try:
        routes = [rtnl.parse_route(reply) for reply in sock.dump(message, "list routes", family.label)]
    except KernelError as exc:
        if exc.errno == errno.ENOENT:  # a namespace without any route has no table yet
            return 0
        raise
    defaults = [
        route
        for route in routes
        if route.prefix_len == 0
        and not any(route.destination)
        and route.kind == rtnl.RTN_UNICAST
        and route.table == rtnl.RT_TABLE_MAIN
    ]
    if not defaults:
        return 0
    best = min(defaults, key=lambda route: route.metric)
    # Several next hops: any address outside will do to let the kernel choose one of them.
    outside = ip_address("192.0.2.1" if family is Family.V4 else "2001:db8::1")
    return best.oif or _lookup(sock, outside).oif


def _underlay(pick: _Pick, families: Sequence[Family]) -> Underlay:
    card, link = pick.card, pick.card.link
    if link.mtu < _MIN_MTU:
        raise ConfigError(f"interface {link.name}", "mtu", link.mtu, f"at least {_MIN_MTU} are needed")
    chosen = {family: card.of(family) for family in FAMILIES}
    if pick.address is not None:
        family = Family.of(pick.address)
        chosen[family] = next((own for own in card.addresses if own.ip == pick.address), chosen[family])
    missing = [family.label for family in families if chosen[family] is None]
    if missing or not card.addresses:
        there = ", ".join(map(str, card.addresses)) or "none"
        wanted = f"no {' and no '.join(missing)} address" if missing else "no usable address"
        raise ConfigError(f"interface {link.name}", "addresses", there, wanted)
    v4, v6 = chosen[Family.V4], chosen[Family.V6]
    assert v4 is None or isinstance(v4, IPv4Interface)
    assert v6 is None or isinstance(v6, IPv6Interface)
    return Underlay(name=link.name, mtu=link.mtu, address=v4, address6=v6, on_link=card.addresses)
