"""Changing WireGuard keys while packets flow: this node's own, and those of its peers.

What happens when a node changes its key, so that no packet is lost between two agents of ours:

    this node                                             every peer
    makes the following key, publishes its public half
    its lease says so: the device has the new key         sees the lease, and waits DELAY_S
      what it sends waits in WireGuard for a session        goes on by the old key; its packets are still received
                                                          replaces the peer's key, and says hello
      answers: a new session; what waited is sent           what it sends meanwhile waits for the session

So a peer must not be faster than the node itself: that is what the delay is for. WireGuard lets 128 packets per peer
wait and drops the oldest of more. Two ends that change their keys at the same moment lose packets: a node waits until
its peers have been calm for a while, and nodes whose keys were made together reach the same age at different times.

Life: ``NetworkPass`` has one ``KeyRotation``; it is asked in every pass of a wireguard network. On one event loop, but
for ``take``, which blocks and belongs to the worker.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping

import msgspec

from pycni.agent import wireguard_key
from pycni.agent.wireguard_key import Keys
from pycni.backends.wireguard import published_key
from pycni.model.lease import Lease
from pycni.model.wireguard import Secret, key_text

log = logging.getLogger("pycni.network")

CALM_S = 0.3
"""From the last peer's change of key to our own; longer than DELAY_S."""
SPREAD = 0.1
"""Part of the period by which nodes differ."""
DELAY_S = 0.1
"""From seeing a peer's new key to going by it: longer than the peer's agent needs once its lease is written."""


class KeyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``pycnictl wireguard`` shows of a node; keys as wg(8) writes them."""

    node: str
    key: str
    made: float
    """Seconds since the epoch."""
    following: str = ""
    """The key that is being published."""
    period_s: float = 0.0
    """Age at which the key is changed; 0: never by itself."""


class KeyRotation:
    """Own key and peers' keys, with what is under way. ``clock``: seconds since the epoch."""

    def __init__(
        self, state_dir: str, node: str, period_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._state_dir = state_dir
        self._node = node
        self._period_s = period_s
        # Anything that differs from node to node and stays.
        self._due_s = period_s * (1 + SPREAD * (zlib.crc32(node.encode()) / 2**32))
        self._clock = clock
        self._keys: Keys | None = None
        self._asked = self._begin = False
        self._calm_at = float("-inf")
        self._passed: Mapping[str, Lease] = {}
        self._since: dict[str, float] = {}
        """Peers that are held back, with when they were seen to have another key."""

    # our own

    def ask(self) -> None:
        """Have the key changed, by the next pass or as soon as peers are calm."""
        self._asked = True

    def inputs(self, published: bytes, now: float) -> object:
        """What ``take`` depends on: when it differs, call it again. ``now``: of the clock ``held_back`` gets."""
        keys = self._keys
        if keys is not None and self._period_s and not keys.following:
            # A clock that was set back must not stop rotation for ever.
            age = abs(self._clock() - keys.made)
            self._asked = self._asked or age >= self._due_s
        self._begin = self._asked and now >= self._calm_at
        return published, self._begin

    def take(self, psk: Secret | None, published: bytes) -> Keys:
        """The keys to go by from now on; begins a rotation when one is due. Raises ConfigError."""
        if self._begin:
            following = wireguard_key.begin(self._state_dir)
            log.info("WireGuard key %s is to follow", key_text(following))
            self._asked = self._begin = False
        self._keys = wireguard_key.keys(self._state_dir, psk, published)
        return self._keys

    @property
    def status(self) -> KeyStatus | None:
        """For people; None in networks without WireGuard."""
        keys = self._keys
        if keys is None:
            return None
        return KeyStatus(
            node=self._node,
            key=key_text(keys.secrets.public_key),
            made=keys.made,
            following=key_text(keys.following) if keys.following else "",
            period_s=self._period_s,
        )

    # peers'

    def held_back(self, leases: Mapping[str, Lease], now: float) -> tuple[Mapping[str, Lease], float]:
        """The leases to go by now, and in how many seconds to ask again (0: no need). ``now``: any steady clock.

        A lease that says another key than it did is as it was until DELAY_S after it was seen to.
        """
        waiting: dict[str, Lease] = {}
        soonest = 0.0
        for key, lease in leases.items():
            before = self._passed.get(key)
            if before is None or before is lease or before == lease:
                continue
            old = published_key(before.attrs)
            if not old or published_key(lease.attrs) in {old, b""}:
                continue
            left = self._since.setdefault(key, now) + DELAY_S - now
            self._calm_at = now + CALM_S
            if left > 0:
                waiting[key] = before
                soonest = min(soonest or left, left)
        if self._asked and now < self._calm_at:
            soonest = min(soonest or CALM_S, self._calm_at - now)
        self._since = {key: self._since[key] for key in waiting}
        self._passed = {**leases, **waiting} if waiting else leases
        return self._passed, soonest
