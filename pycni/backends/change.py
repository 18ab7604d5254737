"""Changing the backend of a network in which pods talk: the course of one node. Pure.

Each node decides alone, by the leases of all, in this order:

    net-conf names another type   its devices are made beside ours
    they are there                our lease offers the new type: we can send so, and accept it
    every peer offers it too      peers that have to agree on keys (WireGuard) do so now, one of each two beginning:
                                  where both begin at the same moment both give way, and try again seconds later only
    every peer has               our lease names the new type: from now on peers send to us so
    no peer is reached by the old our lease stops offering the old type: we send to nobody so any more
    no peer offers it             nobody can send to us so: its devices go, after a moment for packets under way

So nothing is asked of a node before it can do it, and nothing taken away that somebody may use; where both kinds can
live together no packet is lost, whatever the order in which nodes hear of each other. A peer that never offers (it runs
something else, it is dead and its lease is not) is waited for so long only; leases that name the old type keep it here,
with the net-conf it had, for as long as they are in force.

What counts of the leases is what was *carried* into the kernel: a route that is still there sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pycni.model.lease import Lease
from pycni.model.network import BackendConf

PATIENCE_S = 30.0
"""How long peers that are not equipped are waited for; meanwhile everything works the old way."""
GREETING = frozenset({"wireguard"})
"""Types whose peers agree on keys before the first packet."""
SETTLE_S = 0.3
"""From being equipped to greeting: who is greeted has to know us, or does not answer and is greeted again later."""
LOOK_S = 0.1
"""How often it is looked whether all have answered."""
LINGER_S = 2.0
"""From when nobody can send by a backend any more to the end of its devices: for packets under way."""


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """What the leases of all peers say about backends."""

    target: str = ""
    """The type asked about."""

    types: frozenset[str] = frozenset()
    """How peers want to be reached."""
    offers: frozenset[str] = frozenset()
    """What they are equipped for besides."""
    lacking: tuple[str, ...] = ()
    """Leases of peers that are not equipped for the target, sorted."""


def census(leases: Mapping[str, Lease], own: str, target: str) -> Census:
    """Look at all leases but our own. ``target``: the type to be equipped for."""
    types: set[str] = set()
    offers: set[str] = set()
    lacking = []
    for key, lease in leases.items():
        if key == own:
            continue
        attrs = lease.attrs
        types.add(attrs.way)
        offers.update(offer.backend_type for offer in attrs.offers)
        if target not in attrs.types:
            lacking.append(key)
    return Census(
        target=target, types=frozenset(types), offers=frozenset(offers), lacking=tuple(sorted(lacking))
    )


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is at one moment."""

    using: BackendConf
    """What its lease names."""
    others: tuple[BackendConf, ...] = ()
    """What it is equipped for, or is to be, besides; sorted by type."""
    offered: tuple[str, ...] = ()
    """Those of them its lease offers, sorted."""
    greeting: bool = False
    """Whether peers are greeted that have to be."""


class Changer:
    """One node's way from one backend to another. ``step`` as often as anything changed."""

    def __init__(self, patience_s: float = PATIENCE_S, linger_s: float = LINGER_S) -> None:
        self._patience_s = patience_s
        self._linger_s = linger_s
        self.using: BackendConf | None = None
        """None while no lease names any."""
        self._others: dict[str, BackendConf] = {}
        self._equipped: set[str] = set()
        self._equipped_at: dict[str, float] = {}
        self._strangers: tuple[str, ...] | None = None
        self._carried: Census | None = None
        self._waiting: tuple[str, float] | None = None
        self._idle: dict[str, float] = {}
        self.wake_s = 0.0
        """Seconds from the last step until time alone changes something; 0: never."""
        self.lacking: tuple[str, ...] = ()
        """Leases that are waited for."""

    def resume(self, using: BackendConf, others: Iterable[BackendConf], equipped: Iterable[str]) -> None:
        """Go on where an earlier life of this node was: ``equipped`` is what its lease said."""
        self.using = using
        self._others = {conf.type: conf for conf in others if conf.type != using.type}
        self._equipped = {using.type, *(kind for kind in equipped if kind in self._others)}

    @property
    def changing(self) -> bool:
        """Whether there is more than one backend: only then the leases have to be looked at."""
        return bool(self._others)

    def carried(
        self, found: Census, equipped: Iterable[str], now: float, strangers: tuple[str, ...] | None
    ) -> None:
        """These leases are in the kernel now, and the devices of these types in place.

        ``strangers``: leases of peers that have not answered a greeting; None when that was not looked at.
        """
        self._carried = found
        self._equipped = set(equipped)
        self._equipped_at = {kind: self._equipped_at.get(kind, now) for kind in self._equipped}
        self._strangers = strangers

    def step(
        self, target: BackendConf, seen: Census | None, now: float, *, bound: bool = True, follow: bool = True
    ) -> Course:
        """Where this node is now. ``target``: the net-conf's newest word.

        ``seen``: the leases as they are, asked about the target; None before they were listed. ``bound``: whether
        a lease may name what we use. ``follow``: whether the target may be taken. ``now`` in seconds, of any clock.
        """
        self.wake_s = 0.0
        self.lacking = ()
        if self.using is None or not bound:
            self.using, self._others, self._equipped, self._equipped_at = target, {}, set(), {}
        elif target.type == self.using.type:
            self._waiting = None
            if follow:
                self.using = target
        else:
            self._others[target.type] = target
            if follow and self._may_switch(target.type, now):
                self._others[self.using.type] = self.using
                self.using = self._others.pop(target.type)
                self._waiting = None
        if seen is not None:
            self._drop(target.type, seen, now)
        greeting = self._greeting(target.type, now)
        sending = self._carried.types if self._carried is not None else frozenset(self._others)
        return Course(
            using=self.using,
            others=tuple(self._others[kind] for kind in sorted(self._others)),
            offered=tuple(
                kind
                for kind in sorted(self._others)
                if kind in self._equipped and (kind == target.type or kind in sending)
            ),
            greeting=greeting,
        )

    def _greeting(self, target: str, now: float) -> bool:
        """Whether it is time to greet, or the time after it."""
        assert self.using is not None, "step has set it"
        if not self._others or self.using.type in GREETING:
            return bool(self._others)
        if target not in GREETING or target not in self._equipped_at:
            return False
        left_s = self._equipped_at[target] + SETTLE_S - now
        if left_s > 0:
            self._wake(left_s)
        return left_s <= 0

    def _may_switch(self, kind: str, now: float) -> bool:
        """Whether peers may be asked to send to us in the new way."""
        if kind not in self._equipped or self._carried is None or self._carried.target != kind:
            return False
        if self._waiting is None or self._waiting[0] != kind:
            self._waiting = (kind, now)
        left_s = self._waiting[1] + self._patience_s - now
        self.lacking = self._carried.lacking
        met = True
        if kind in GREETING and not self.lacking:
            self.lacking = self._strangers or ()
            met = self._strangers is not None
            self._wake(LOOK_S)
        if left_s <= 0 or (met and not self.lacking):
            self.lacking = ()
            return True
        self._wake(left_s)
        return False

    def _drop(self, target: str, seen: Census, now: float) -> None:
        """Give up what nobody can use any more."""
        for kind in [*self._others]:
            if kind == target or kind in seen.types or kind in seen.offers:
                self._idle.pop(kind, None)
                continue
            left_s = self._idle.setdefault(kind, now) + self._linger_s - now
            if left_s > 0:
                self._wake(left_s)
                continue
            del self._others[kind], self._idle[kind]
            self._equipped.discard(kind)
            self._equipped_at.pop(kind, None)

    def _wake(self, seconds: float) -> None:
        self.wake_s = min(self.wake_s or seconds, seconds)
