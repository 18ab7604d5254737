"""mixed: several backends on one node, while the network changes from one to another.

A lease says how its node wants to be reached, so each peer is sent to in the way of its lease; our own lease names the
primary backend, whose MTU pods get. What else a node is equipped for its lease offers beside it (``Offer``): it may
send so, and accepts it. A peer that may send in one of these ways has what it takes to be accepted: its WireGuard key,
its place in other tables that judge senders, its address among those VXLAN comes from.

Peers that agree on keys first are greeted: of each two the one with the smaller key keeps the session alive, by which
it also begins it.

Each backend works with the net-conf it was told, all in the same network. Devices have different names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pycni.backends.base import Backend, PeerEntries, Refusal, Site
from pycni.backends.table import backend
from pycni.errors import ConfigError
from pycni.model.fabric import Link, VxlanLink
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs, Offer
from pycni.model.network import BackendConf, NetConf
from pycni.model.node import Node
from pycni.model.wireguard import WireguardKey, WireguardPeer

SENDING = frozenset({"routes", "neighbours", "fdb", "extension", "remote"})
"""Entries by which we send, as people's own commands do; all others also say whom we accept."""
GREET_S = 10
"""WireGuard's persistent keepalive while a session is needed that nothing else may keep alive."""


class Mixed:
    """A primary backend and others. A value: equal ones are interchangeable."""

    def __init__(
        self,
        primary: Backend,
        others: Iterable[BackendConf] = (),
        offered: Iterable[str] = (),
        *,
        greet: bool = False,
    ) -> None:
        """``others`` are of other types than the primary. ``offered``: those of them that our lease names.

        ``greet``: whether peers are greeted that have to be.
        """
        self.name = primary.name
        self.primary = primary
        self.others = {conf.type: conf for conf in others}
        self.offered = tuple(sorted(set(offered)))
        self.greet = greet
        self._made: tuple[Site, _Ways] | None = None

    def __eq__(self, other: object) -> bool:
        """Whether it gives the same for the same."""
        return isinstance(other, Mixed) and self._value == other._value

    def __hash__(self) -> int:
        """Of the types alone."""
        return hash((self.name, self.offered, *self.others))

    def overhead(self, family: Family, conf: NetConf | None = None) -> int:
        """The primary's."""
        return self.primary.overhead(family, conf)

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """The primary's attributes, with what is offered. Raises ConfigError as the backends do."""
        attrs = self.primary.published(node, conf)
        offers = []
        for name in self.offered:
            told = backend(name).published(node, msgspec.structs.replace(conf, backend=self.others[name]))
            offers.append(
                Offer(
                    backend_type=name,
                    backend_data=told.backend_data,
                    backend_v6_data=told.backend_v6_data,
                )
            )
            # An underlay address that only this backend needs hurts no other.
            attrs = msgspec.structs.replace(
                attrs,
                public_ip=attrs.public_ip or told.public_ip,
                public_ipv6=attrs.public_ipv6 or told.public_ipv6,
            )
        return msgspec.structs.replace(attrs, offers=tuple(offers))

    def links(self, site: Site) -> Mapping[str, Link]:
        """The devices of all. Raises ConfigError when the primary's cannot be made; others are left out then."""
        found = dict(self.primary.links(site))
        for devices in self._ways(site).links.values():
            found |= {name: link for name, link in devices.items() if name not in found}
        return found

    def devices(self, site: Site) -> Mapping[str, frozenset[str]]:
        """Names of the devices by type of backend, of those that can be had here."""
        others = {name: frozenset(links) for name, links in self._ways(site).links.items()}
        return {self.name: frozenset(self.primary.links(site))} | others

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """What the lease's own backend needs, and whatever else the peer may send by is accepted."""
        ways, kind = self._ways(site), lease.attrs.way
        if kind in ways.broken:
            return Refusal(f"its backend is {kind!r}, which this node cannot have: {ways.broken[kind]}")
        entries = (
            backend(kind).peer(lease, family, ways.sites[kind])
            if kind in ways.sites
            else self.primary.peer(lease, family, site)
        )
        if isinstance(entries, Refusal):
            return entries
        for offer in lease.attrs.offers:
            entries = self._accepting(entries, lease, family, offer.backend_type, site)
        if self.greet:
            entries = entries._replace(
                wireguard=tuple((key, _greeted(key, peer, site)) for key, peer in entries.wireguard)
            )
        if ways.guarded:
            # VXLAN may come from a peer that we send to by something else.
            public = lease.attrs.public(family)
            entries = entries._replace(remote=public.packed if public is not None else entries.remote)
        return entries

    def _accepting(
        self, entries: PeerEntries, lease: Lease, family: Family, kind: str, site: Site
    ) -> PeerEntries:
        """The entries with what it takes to accept the peer's packets in another way."""
        ways = self._ways(site)
        attrs = lease.attrs.by(kind)
        how = self.primary if kind == self.name else backend(kind) if kind in ways.sites else None
        if how is None or attrs is None or kind == lease.attrs.way:
            return entries
        found = how.peer(msgspec.structs.replace(lease, attrs=attrs), family, ways.sites.get(kind, site))
        if isinstance(found, Refusal):
            return entries
        more: dict[str, Any] = {
            table: (*getattr(entries, table), *getattr(found, table))
            for table in PeerEntries._fields
            if table not in SENDING
        }
        return entries._replace(**more)

    def _ways(self, site: Site) -> _Ways:
        """What follows from the site; asked for once per peer."""
        if self._made is None or self._made[0] is not site:
            self._made = (site, _Ways(self, site))
        return self._made[1]

    @property
    def _value(self) -> object:
        return self.primary, self.others, self.offered, self.greet


class _Ways:
    """The other backends at one site."""

    def __init__(self, mixed: Mixed, site: Site) -> None:
        self.sites: dict[str, Site] = {}
        """By type, with the net-conf of that type."""
        self.links: dict[str, Mapping[str, Link]] = {}
        self.broken: dict[str, str] = {}
        """Types this node cannot have, with the reason."""
        for name, conf in mixed.others.items():
            here = msgspec.structs.replace(site, conf=msgspec.structs.replace(site.conf, backend=conf))
            try:
                self.links[name] = backend(name).links(here)
            except ConfigError as error:
                self.broken[name] = str(error)
            else:
                self.sites[name] = here
        mine = mixed.primary.links(site).values()
        everything = (
            link for links in (mine, *(item.values() for item in self.links.values())) for link in links
        )
        self.guarded = any(isinstance(link, VxlanLink) for link in everything)
        """Whether VXLAN is accepted here, from peers alone."""


def _greeted(key: WireguardKey, peer: WireguardPeer, site: Site) -> WireguardPeer:
    """A peer that we begin a session with when it is ours to begin."""
    ours = site.node.wireguard_key < key.public_key and not peer.keepalive_s
    return peer._replace(keepalive_s=GREET_S) if ours else peer
