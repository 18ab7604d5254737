"""Leases and network configuration in etcd, as flannel keeps them: the source of the network component.

Life of a lease: ``netconf`` waits for the cluster's configuration; ``acquire`` gets this node its subnets; ``run``
follows everybody's records into the store (``leases_follow``), renews our own in time and takes it back when it
vanishes (``leases_own``); ``publish`` changes what peers are told. Everything waits and tries again while etcd is
away; nothing leaves the store meanwhile.

An agent that starts while etcd is away goes on with the ``HeldLease`` it remembers (``on_held`` says when to write
it down, ``wire.lease.encode_held`` how) while ``acquire`` keeps trying; that normally returns the same lease.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import NoReturn

from pycni.errors import ConfigError, StoreError
from pycni.model.lease import LeaseAttrs
from pycni.model.network import NetConf
from pycni.reconcile.backoff import Backoff
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_follow import Follower
from pycni.sources.insisting import Insisting, lost_lease
from pycni.sources.leases_follow import RecordFollower
from pycni.sources.leases_own import LeaseLostError, OwnRecord, now
from pycni.store import Store
from pycni.view.subnets import OutOfSubnetsError
from pycni.wire.lease import HeldLease

__all__ = ["HeldLease", "LeaseLostError", "LeaseSource"]
log = logging.getLogger("pycni.leases")

DAY_S = 86400
"""Life of a lease between renewals, flannel's."""
RESTORE_GAP_S = 0.05
"""Least time between two restorations of a record that somebody keeps deleting."""
SLICE_S = 60.0
"""Longest sleep of the renewal timer, so that a machine that slept notices soon."""


class LeaseSource(Insisting):
    """flannel's etcd records below ``prefix``. Times are in seconds; one event loop.

    ``margin_s``: how long before its end a lease is renewed. ``retry_s``: the longest pause between attempts to
    write our record. ``poll_s``: how often a missing net-conf is asked for. ``grace_s``: see ``leases_follow``.
    """

    def __init__(
        self,
        client: EtcdClient,
        prefix: str = "/coreos.com/network",
        *,
        ttl_s: int = DAY_S,
        margin_s: float = 3600.0,
        retry_s: float = 60.0,
        poll_s: float = 1.0,
        grace_s: float = 60.0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < margin_s < ttl_s:
            reason = f"expected more than 0 and less than the lease's life of {ttl_s} s"
            raise ConfigError("lease settings", "renew margin", margin_s, reason)
        super().__init__("etcd answers again", retry_s, rng)
        self.prefix = prefix.rstrip("/")
        self.on_held: Callable[[HeldLease], None] = lambda _held: None
        """Called whenever what we hold has changed (acquired, renewed, published): time to remember it."""
        self.renewals = 0
        self._client = client
        self._margin_s = margin_s
        self._poll_s = poll_s
        self._records = RecordFollower(client, self.prefix, grace_s=grace_s)
        self._records.on_watched = self._seen
        self._records.was_missing = lambda: self._own.was_missing
        self._own = OwnRecord(client, self._records.folder, ttl_s=ttl_s, rng=self._rng, clock=clock)
        self._lock = asyncio.Lock()
        self._attrs: LeaseAttrs | None = None
        self._known: HeldLease | None = None
        self._news = asyncio.Event()

    # --- state for health and metrics ------------------------------------------------------------------------

    @property
    def held(self) -> HeldLease | None:
        """The lease of this node, as far as we know."""
        return self._own.held

    @property
    def expected(self) -> str:
        """Name of the record that an earlier life of this node left in etcd. Set it before ``run``."""
        return self._records.expected

    @expected.setter
    def expected(self, name: str) -> None:
        self._records.expected = name

    @property
    def connected(self) -> bool:
        """Whether the leases are being followed right now."""
        return self._records.leases.connected

    @property
    def followers(self) -> tuple[Follower, Follower]:
        """The watches of leases and of net-conf with their counters (reconnects, relists, events, ...)."""
        return self._records.leases, self._records.config

    @property
    def malformed(self) -> dict[str, str]:
        """Records that cannot be read: name -> why."""
        return self._records.malformed

    # --- what the network component calls --------------------------------------------------------------------

    async def netconf(self) -> NetConf:
        """The network configuration; waits until there is a valid one."""
        key = f"{self.prefix}/config"
        while True:
            found = await self._insist(f"reading {key}", lambda: self._client.get(key))
            conf = self._records.decode_conf(found.value) if found is not None else None
            if conf is not None:
                self._over()
                return conf
            why = "is not valid" if found is not None else "does not exist"
            self._wait_for(f"net-conf: etcd key {key} {why}")
            await asyncio.sleep(self._poll_s * self._rng.uniform(0.8, 1.2))

    async def acquire(
        self,
        attrs: LeaseAttrs,
        previous: tuple[IPv4Network | None, IPv6Network | None] = (None, None),
        remembered: HeldLease | None = None,
    ) -> HeldLease:
        """Get this node its subnets (the ladder is in ``view/subnets``); waits until it succeeds.

        ``previous``: what subnet.env names. ``remembered``: the lease of an earlier life, by which our record is
        recognised after the node's address has changed.
        """
        races = Backoff(0.01, 1.0, jitter=0.9, chance=self._rng.random)
        full = Backoff(self._poll_s, max(self._retry_s, self._poll_s), jitter=0.5, chance=self._rng.random)
        async with self._lock:
            while True:
                conf = await self.netconf()
                attempt = functools.partial(self._own.acquire, conf, attrs, previous, remembered)
                try:
                    held = await self._insist("acquiring a lease", attempt)
                except OutOfSubnetsError as exc:
                    self._wait_for(str(exc))
                    await asyncio.sleep(full.next())
                    continue
                if held is not None:
                    break
                await asyncio.sleep(races.next())
            self._over()
            self._attrs = attrs
            self._news.set()  # the renewal timer has to be set anew
            return self._took(held)

    async def publish(self, attrs: LeaseAttrs) -> HeldLease:
        """Change what our record tells peers; its life is not prolonged. Waits until it is written.

        Raises LeaseLostError when the record is another node's meanwhile.
        """
        async with self._lock:
            self._attrs = attrs
            attempt = functools.partial(self._own.settle, attrs, renew=False)
            held = await self._insist("publishing the lease", attempt)
            self._over()
            return self._took(held)

    def readdressed(self) -> None:
        """This node's address has changed: connections made from the old one are dead."""
        self._client.redial()

    async def run(self, store: Store) -> NoReturn:
        """Follow all records into the store and keep our own, for ever. May start before ``acquire``.

        Raises LeaseLostError when our subnet has become another node's: acquire anew, then run again.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._records.run(store), name="follow etcd")
                tasks.create_task(self._keep(), name="keep lease")
        except BaseExceptionGroup as group:
            lost = lost_lease(group)
            self._own.held = None
            raise lost from None
        raise AssertionError("the tasks are eternal")

    # --- our own record --------------------------------------------------------------------------------------

    async def _keep(self) -> NoReturn:
        """Renew our record in time and look after it whenever somebody else has touched it."""
        failing = Backoff(min(0.5, self._retry_s), self._retry_s, jitter=0.5, chance=self._rng.random)
        # Two agents with one address would correct each other for ever: each correction waits longer.
        fighting = Backoff(min(0.2, self._retry_s), self._retry_s, jitter=0.5, chance=self._rng.random)
        quiet_after = 0.0
        while True:
            await self._wait_for_work()
            written, restored = self._own.written, self._own.restored
            while not await self._look_after():
                await self._pause(failing.next())
            failing.reset()
            if self._own.restored > restored:
                await asyncio.sleep(RESTORE_GAP_S)
            elif self._own.written > written:
                if now() > quiet_after:
                    fighting.reset()
                await self._hold_back(fighting.next())
                quiet_after = now() + self._retry_s

    async def _hold_back(self, seconds: float) -> None:
        """Correct nothing for a while, unless our record vanishes. Raises LeaseLostError when it is another node's."""
        until, touched = now() + seconds, False
        while (left_s := until - now()) > 0:
            await self._pause(left_s)
            if not self._news.is_set():
                break
            self._news.clear()
            touched = True
            try:
                async with self._lock:
                    if self._attrs is None or not await self._own.exists(self._attrs):
                        break
            except StoreError as exc:
                self._trouble.warn(f"looking at our lease: {exc}; trying again")
                break
        if touched:
            self._news.set()

    async def _look_after(self) -> bool:
        """One attempt to have our record right and alive. Returns whether it succeeded; raises LeaseLostError."""
        async with self._lock:
            self._news.clear()
            held, attrs = self._own.held, self._attrs
            if held is None or attrs is None:
                return True
            renew = self._left_s() <= 0
            doing = "renewing" if renew else "checking"
            try:
                self._took(await self._own.settle(attrs, renew=renew))
            except StoreError as exc:
                self._trouble.warn(f"lease {held.lease.key}: {doing}: {exc}; trying again")
                return False
        self._over()
        if renew:
            self.renewals += 1
            log.info("lease %s: renewed", held.lease.key)
        return True

    async def _wait_for_work(self) -> None:
        """Until our record needs a look: it was touched, or is due for renewal."""
        while (left_s := self._left_s()) > 0:
            await self._pause(min(left_s, SLICE_S))
            if self._news.is_set():
                return

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not beyond news about our record."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def _left_s(self) -> float:
        """Seconds until our record is due for renewal."""
        return (
            SLICE_S
            if self._own.ends is None or self._own.held is None
            else self._own.ends - self._margin_s - now()
        )

    def _took(self, held: HeldLease) -> HeldLease:
        """Our record was written or found right."""
        self._records.watched = held.lease.key
        if held != self._known:
            self._known = held
            self.on_held(held)
        return held

    def _seen(self, revision: int | None) -> None:
        """Something was seen under our own key (None: nothing is there): look unless it is our own write."""
        if self._own.held is not None and (revision is None or revision > self._own.revision):
            self._news.set()
