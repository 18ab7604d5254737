"""Does what the kernel announces contradict what we want? Pure.

Life: ``kernel/monitor`` delivers every change of links, addresses, routes and neighbours of this namespace, our own
changes among them; ``Watchman.judge`` compares each with the desired state. What agrees with it is our own doing (or
as good), and costs a few dictionary look-ups; what contradicts it means that somebody changed something of ours, and
the next pass reads the kernel again. Nothing is decided by an event alone: a wrong guess costs one reading.

Not every loss is announced (the kernel drops IPv4 routes silently with their device), but the device's going is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from pycni.kernel.monitor import Event, Lost
from pycni.model.fabric import (
    IPIP,
    UDP,
    VXLAN,
    WIREGUARD,
    WIREGUARD_GO,
    FabricState,
    IpipLink,
    Link,
    UdpLink,
    VxlanLink,
    WireguardLink,
)
from pycni.model.family import Family
from pycni.model.node import Underlay
from pycni.model.tables import (
    LINK_ALIAS,
    ROUTE_PROTOCOL,
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    RouteKey,
)
from pycni.wire import rtlink, rtnl

_KINDS = frozenset({VXLAN, IPIP, WIREGUARD, WIREGUARD_GO})
_LEFT_TO_KERNEL = frozenset({2, 9})
"""rtm_protocol ``kernel`` and ``ra``."""
_IPV6_DEFAULT_METRIC = 1024


class Concern(enum.IntFlag):
    """What has to be looked at again."""

    NOTHING = 0
    FABRIC = 1
    """Devices and tables of ours."""
    UNDERLAY = 2
    """The external interface, its addresses and MTU."""
    FIREWALL = 4
    """The fabric's nftables table."""
    EVERYTHING = 7


class _Card(msgspec.Struct, frozen=True):
    """What of the underlay interface matters; another index means it was made anew."""

    ifindex: int
    mtu: int
    up: bool


class Watchman:
    """Judges events against the state it was last told."""

    def __init__(self) -> None:
        self._desired = FabricState()
        self._underlay = ""
        self._card: _Card | None = None
        self._names: dict[int, str] = {}
        self._in_place: set[str] = set()
        self.last = ""
        """The last contradiction, in words, for the log."""

    def expect(
        self,
        desired: FabricState,
        underlay: Underlay | None,
        names: Mapping[int, str] | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """What is wanted from now on.

        ``names``: the links by index, when they were just listed. ``in_place``: the devices were just found as
        wanted. A device that is still being made shows half-made states, which mean nothing until it was right once.
        """
        if desired is not self._desired and desired.links != self._desired.links:
            self._in_place.clear()
        if in_place:
            self._in_place.update(desired.links)
        self._desired = desired
        if underlay is None or underlay.name != self._underlay:
            self._underlay = underlay.name if underlay is not None else ""
            self._card = None
        if names is not None:
            self._names = dict(names)

    def judge(self, events: Iterable[Event | Lost]) -> Concern:
        """What all these events together give reason to look at."""
        concern = Concern.NOTHING
        for event in events:
            concern |= self._judge(event)
        return concern

    def _judge(self, event: Event | Lost) -> Concern:
        if isinstance(event, Lost):
            return self._say("the kernel had to drop announcements", Concern.FABRIC | Concern.UNDERLAY)
        info = event.info
        if isinstance(info, rtnl.NeighbourInfo):
            return self._neighbour(event.removed, info)
        if isinstance(info, rtnl.RouteInfo):
            return self._route(event.removed, info)
        if isinstance(info, rtnl.AddressInfo):
            return self._address(event.removed, info)
        return self._link(event.removed, info)

    def _link(self, removed: bool, link: rtlink.Link) -> Concern:
        if removed:
            self._names.pop(link.ifindex, None)
        else:
            self._names[link.ifindex] = link.name
        wanted = self._desired.links.get(link.name)
        if wanted is not None:
            return self._own_link(removed, link, wanted)
        if link.name == self._underlay:
            return self._underlay_link(removed, link)
        if not removed and link.kind in _KINDS and link.alias == LINK_ALIAS:
            return self._say(f"{link.name}: a device of ours that is not wanted", Concern.FABRIC)
        return Concern.NOTHING

    def _own_link(self, removed: bool, link: rtlink.Link, wanted: Link) -> Concern:
        wrong = "deleted" if removed else _deviation(wanted, link)
        if not wrong:
            self._in_place.add(link.name)
            return Concern.NOTHING
        being_made = not removed and link.name not in self._in_place
        self._in_place.discard(link.name)
        return Concern.NOTHING if being_made else self._say(f"{link.name}: {wrong}", Concern.FABRIC)

    def _underlay_link(self, removed: bool, link: rtlink.Link) -> Concern:
        card = None if removed else _Card(link.ifindex, link.mtu, link.up)
        before, self._card = self._card, card
        if before == card:
            return Concern.NOTHING
        changed = (
            "deleted" if removed else f"index {link.ifindex}, mtu {link.mtu}, {'up' if link.up else 'down'}"
        )
        return self._say(f"underlay {link.name}: {changed}", Concern.UNDERLAY | Concern.FABRIC)

    def _address(self, removed: bool, info: rtnl.AddressInfo) -> Concern:
        name = self._names.get(info.ifindex, "")
        if name and name == self._underlay:
            return self._say(f"underlay {name}: its addresses changed", Concern.UNDERLAY)
        wanted = self._desired.links.get(name)
        if wanted is None or (info.scope == rtnl.RT_SCOPE_LINK and len(info.address) == 16):
            return Concern.NOTHING
        if removed == ((info.address, info.prefix_len) in wanted.addresses):
            return self._say(f"{name}: its addresses changed", Concern.FABRIC)
        return Concern.NOTHING

    def _route(self, removed: bool, info: rtnl.RouteInfo) -> Concern:
        if info.flags & rtnl.RTM_F_CLONED:
            return Concern.NOTHING
        metric = 0 if info.family == Family.V6 and info.metric == _IPV6_DEFAULT_METRIC else info.metric
        key = RouteKey(Family(info.family), info.table, info.destination, info.prefix_len, metric)
        wanted = self._desired.routes.get(key)
        device = self._names.get(info.oif, "")
        if wanted is None:
            mine = info.protocol == ROUTE_PROTOCOL or (
                device in self._desired.links and info.protocol not in _LEFT_TO_KERNEL
            )
            if removed or not mine:
                return Concern.NOTHING
            return self._say(f"a route that is not wanted appeared on {device or info.oif}", Concern.FABRIC)
        same = (
            info.protocol == ROUTE_PROTOCOL
            and device == (wanted.device or "")
            and (info.gateway or None) == wanted.gateway
            and bool(info.flags & rtnl.RTNH_F_ONLINK) == wanted.onlink
        )
        if same and not removed:
            return Concern.NOTHING
        return self._say(
            f"a route on {device or info.oif} was {'deleted' if removed else 'changed'}", Concern.FABRIC
        )

    def _neighbour(self, removed: bool, info: rtnl.NeighbourInfo) -> Concern:
        device = self._names.get(info.ifindex, "")
        if device not in self._desired.links:
            return Concern.NOTHING
        permanent = bool(info.state & rtnl.NUD_PERMANENT)
        wanted: FdbEntry | Neighbour | None
        found: FdbEntry | Neighbour
        if info.family == rtnl.AF_BRIDGE:
            if not info.flags & rtnl.NTF_SELF or not any(info.mac):
                return Concern.NOTHING
            what, wanted = "forwarding entry", self._desired.fdb.get(FdbKey(device, info.mac))
            found = FdbEntry(info.destination)
        else:
            what, wanted = "neighbour", self._desired.neighbours.get(NeighbourKey(device, info.destination))
            found = Neighbour(info.mac)
        wrong = permanent and not removed
        if wanted is not None:
            wrong = removed or not permanent or found != wanted
        return self._say(f"a {what} of {device} was changed", Concern.FABRIC) if wrong else Concern.NOTHING

    def _say(self, what: str, concern: Concern) -> Concern:
        self.last = what
        return concern


def _deviation(wanted: Link, link: rtlink.Link) -> str:
    """How an announced device differs from the wanted one; "" when it does not."""
    if isinstance(wanted, VxlanLink) and (link.vxlan is None or link.vxlan.vni != wanted.vni):
        return "replaced by another device"
    if isinstance(wanted, IpipLink) and (link.ipip is None or link.ipip.local != wanted.local):
        return "replaced by another device"
    if isinstance(wanted, WireguardLink) and link.kind not in {WIREGUARD, WIREGUARD_GO}:
        return "replaced by another device"
    if isinstance(wanted, UdpLink) and link.kind != UDP:
        return "replaced by another device"
    if not link.up:
        return "taken down"
    if isinstance(wanted, UdpLink) and not link.flags & rtlink.IFF_LOWER_UP:
        return "its forwarder is gone"
    if isinstance(wanted, VxlanLink) and link.mac != wanted.mac:
        return "its MAC was changed"
    if link.mtu != wanted.mtu:
        return "its MTU was changed"
    return ""
