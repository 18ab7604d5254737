"""From leases to the kernel's tables: a backend's entries of all peers, put together.

Life: ``FabricCompiler`` belongs to one ``Site`` (another own lease, underlay or net-conf means a new compiler).
``update`` takes all leases; only peers whose lease or verdict changed are compiled again and only their
entries are exchanged in the tables, whose keys it returns, so that one more lease among thousands costs as much
as among few. ``compile_fabric`` is the same from nothing; the result never depends on the way there.

Two leases with one VTEP MAC or one public key (cloned machines) would fight over one forwarding entry or WireGuard
peer: the one with the smaller key has it, the other one is refused with the reason. The families of one lease may
share a WireGuard peer; it has the networks of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pycni.backends.base import Backend, PeerEntries, Refusal, Site
from pycni.model.extension import ExtensionKey, ExtensionPeer
from pycni.model.fabric import FabricState
from pycni.model.family import show_mac
from pycni.model.lease import Lease
from pycni.model.tables import (
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    Route,
    RouteKey,
)
from pycni.model.udp import UdpKey, UdpPeer
from pycni.model.wireguard import WireguardKey, WireguardPeer, key_text
from pycni.view.fabric import FabricView, PeerKey

Claim = FdbKey | WireguardKey
"""What only one lease can have."""

_PLAIN = ("routes", "neighbours", "fdb", "udp", "extension")
"""Tables whose entries have one peer each; of the same name in PeerEntries, FabricState and Touched."""


class Touched(msgspec.Struct):
    """Keys of table entries that one update set or withdrew."""

    routes: set[RouteKey] = msgspec.field(default_factory=set)
    neighbours: set[NeighbourKey] = msgspec.field(default_factory=set)
    fdb: set[FdbKey] = msgspec.field(default_factory=set)
    wireguard: set[WireguardKey] = msgspec.field(default_factory=set)
    udp: set[UdpKey] = msgspec.field(default_factory=set)
    extension: set[ExtensionKey] = msgspec.field(default_factory=set)
    remotes: set[bytes] = msgspec.field(default_factory=set)
    """Underlay addresses that came into use or went out of it."""
    peers: set[PeerKey] = msgspec.field(default_factory=set)
    """Peers whose entries or refusal may have changed."""

    @property
    def empty(self) -> bool:
        """Whether the kernel needs nothing."""
        return not (self.wireguard or self.remotes or any(getattr(self, table) for table in _PLAIN))


class FabricCompiler:
    """Desired state of one site, kept up to date with the leases."""

    def __init__(self, backend: Backend, site: Site) -> None:
        """Raises ConfigError when the backend's devices cannot be made on this underlay."""
        self._backend = backend
        self._site = site
        self._view = FabricView(site.own, site.conf)
        self._answers: dict[PeerKey, PeerEntries | Refusal] = {}
        self._claims: dict[Claim, set[PeerKey]] = {}
        self._in_force: dict[PeerKey, PeerEntries] = {}
        self._refused: dict[PeerKey, Refusal] = {}
        self._links = dict(backend.links(site))
        self._routes: dict[RouteKey, Route] = {}
        self._neighbours: dict[NeighbourKey, Neighbour] = {}
        self._fdb: dict[FdbKey, FdbEntry] = {}
        self._udp: dict[UdpKey, UdpPeer] = {}
        self._extension: dict[ExtensionKey, ExtensionPeer] = {}
        self._wireguard: dict[WireguardKey, WireguardPeer] = {}
        self._parts: dict[WireguardKey, dict[PeerKey, WireguardPeer]] = {}
        self._remotes: Counter[bytes] = Counter()
        self.tables = FabricState(
            links=self._links,
            routes=self._routes,
            neighbours=self._neighbours,
            fdb=self._fdb,
            wireguard=self._wireguard,
            udp=self._udp,
            extension=self._extension,
        )
        """Desired devices and tables, always as the last update left them (``vtep_peers`` is not filled in)."""

    def update(self, leases: Mapping[str, Lease]) -> Touched:
        """Take the leases as they are now; returns what of the tables is to be looked at."""
        affected = self._view.update(leases)
        for key in tuple(affected):
            self._withdraw_claims(key, affected)
            lease = self._view.peers.get(key)
            if lease is None:
                self._answers.pop(key, None)
                continue
            answer = self._backend.peer(lease, key[1], self._site)
            self._answers[key] = answer
            if isinstance(answer, PeerEntries):
                for claim in _claimed(answer):
                    claims = self._claims.setdefault(claim, set())
                    affected |= claims
                    claims.add(key)
        return self._exchange(affected)

    @property
    def state(self) -> FabricState:
        """The desired state with the peers. It shares its tables with the compiler: valid until the next update."""
        return msgspec.structs.replace(self.tables, vtep_peers=frozenset(self._remotes))

    @property
    def remotes(self) -> Mapping[bytes, int]:
        """Underlay addresses of peers, with the number of leases that name each."""
        return self._remotes

    @property
    def peers(self) -> Mapping[PeerKey, PeerEntries]:
        """The peers that have entries."""
        return self._in_force

    @property
    def refusals(self) -> Mapping[PeerKey, Refusal]:
        """Every lease with a subnet that has no entries, with the reason."""
        return self._refused

    def _withdraw_claims(self, key: PeerKey, affected: set[PeerKey]) -> None:
        """Forget what a peer claimed; others that claim it are affected."""
        answer = self._answers.get(key)
        if isinstance(answer, PeerEntries):
            for claim in _claimed(answer):
                claims = self._claims[claim]
                claims.discard(key)
                affected |= claims
                if not claims:
                    del self._claims[claim]

    def _exchange(self, affected: Iterable[PeerKey]) -> Touched:
        """Put the answers of affected peers into the tables in place of what is there of them."""
        touched = Touched()
        tables: list[tuple[str, dict[Any, Any], set[Any]]] = [
            (name, getattr(self.tables, name), getattr(touched, name)) for name in _PLAIN
        ]
        moved = {key: (self._in_force.pop(key, None), self._winning(key)) for key in affected}
        for old, _ in moved.values():
            for name, table, keys in tables if old is not None else ():
                for entry_key, _ in getattr(old, name):
                    table.pop(entry_key, None)
                    keys.add(entry_key)
            self._count(old, -1, touched.remotes)
        self._exchange_wireguard(moved, touched.wireguard)
        for key, (_, new) in moved.items():
            for name, table, keys in tables if new is not None else ():
                for entry_key, value in getattr(new, name):
                    table[entry_key] = value
                    keys.add(entry_key)
            self._count(new, 1, touched.remotes)
            if new is not None:
                self._in_force[key] = new
            refusal = self._refusal(key)
            if refusal is None:
                self._refused.pop(key, None)
            else:
                self._refused[key] = refusal
            touched.peers.add(key)
        return touched

    def _exchange_wireguard(
        self,
        moved: Mapping[PeerKey, tuple[PeerEntries | None, PeerEntries | None]],
        touched: set[WireguardKey],
    ) -> None:
        """WireGuard peers, put together from the families of a lease."""
        for key, (old, _) in moved.items():
            for name, _ in old.wireguard if old is not None else ():
                self._parts[name].pop(key)
                touched.add(name)
        for key, (_, new) in moved.items():
            for name, part in new.wireguard if new is not None else ():
                self._parts.setdefault(name, {})[key] = part
                touched.add(name)
        for name in touched:
            parts = self._parts[name]
            if not parts:
                del self._parts[name]
                self._wireguard.pop(name, None)
                continue
            first = parts[min(parts)]
            allowed = sorted(net for part in parts.values() for net in part.allowed)
            self._wireguard[name] = first._replace(allowed=tuple(allowed))

    def _winner(self, claim: Claim) -> str:
        """Key of the lease that has what several may claim."""
        return min(self._claims[claim])[0]

    def _winning(self, key: PeerKey) -> PeerEntries | None:
        answer = self._answers.get(key)
        if not isinstance(answer, PeerEntries):
            return None
        return answer if all(self._winner(claim) == key[0] for claim in _claimed(answer)) else None

    def _refusal(self, key: PeerKey) -> Refusal | None:
        """Why a lease has no entries; None when it has, or is gone."""
        if key in self._in_force:
            return None
        if key in self._view.skipped:
            return Refusal(self._view.skipped[key])
        answer = self._answers.get(key)
        if not isinstance(answer, PeerEntries):
            return answer
        rivals = ((claim, self._winner(claim)) for claim in _claimed(answer))
        claim, first = next((claim, first) for claim, first in rivals if first != key[0])
        what = (
            f"VtepMAC {show_mac(claim.mac)}"
            if isinstance(claim, FdbKey)
            else f"PublicKey {key_text(claim.public_key)}"
        )
        return Refusal(f"its {what} is announced by lease {first} too")

    def _count(self, entries: PeerEntries | None, step: int, touched: set[bytes]) -> None:
        """Several leases may name one underlay address; it counts while any does."""
        if entries is None or entries.remote is None:
            return
        self._remotes[entries.remote] += step
        if not self._remotes[entries.remote]:
            del self._remotes[entries.remote]
        touched.add(entries.remote)


def _claimed(entries: PeerEntries) -> Iterator[Claim]:
    for fdb_key, _ in entries.fdb:
        yield fdb_key
    for peer_key, _ in entries.wireguard:
        yield peer_key


def compile_fabric(backend: Backend, leases: Mapping[str, Lease], site: Site) -> FabricState:
    """Desired state for these leases. Raises ConfigError as ``Backend.links`` does."""
    compiler = FabricCompiler(backend, site)
    compiler.update(leases)
    return compiler.state
