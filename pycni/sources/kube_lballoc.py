"""LB IPAM: addresses for Services of type LoadBalancer, written into their status by one agent of the cluster.

Life: ``LbAllocator.run`` stands for election (Lease ``pycni-lballoc``); the leader computes ``ipam.pools.allocate``
over all services whenever one changes and every ``period_s``, and patches those whose status differs. A patch names
the version it changes, so what somebody else wrote meanwhile is looked at first. Nothing is given out while services
are not being followed: what is not seen could be taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from pycni.errors import ConfigError, StoreError
from pycni.ipam.pools import DEFAULT_CLASSES, Allocation, allocate, is_ours
from pycni.model.family import Network
from pycni.model.kube import SERVICE, Ingress, Service
from pycni.reconcile.backoff import Backoff
from pycni.sources.kube_client import KubeClient
from pycni.sources.kube_http import KubeError
from pycni.sources.kube_leader import Elector
from pycni.sources.sparing import Sparing
from pycni.store import Store
from pycni.wire import typed
from pycni.wire.kube import decode_object

log = logging.getLogger("pycni.lballoc")
LEASE_NAME = "pycni-lballoc"
GAP_S = 0.1
"""Pause after a change: several services are often made together."""
AT_ONCE = 8
"""Patches under way at a time."""


class LbAllocator:
    """``following`` says whether the store is being kept up to date right now. One event loop."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        pools: Sequence[Network],
        elector: Elector,
        *,
        classes: Collection[str] = DEFAULT_CLASSES,
        following: Callable[[], bool],
        period_s: float = 60.0,
    ) -> None:
        self.elector = elector
        self.problems: tuple[str, ...] = ()
        """Who cannot get what and why. Of the leader only."""
        self.patched = 0
        """Services whose status was written."""
        self._client = client
        self._store = store
        self._tracker = store.track(SERVICE)
        self._pools = tuple(pools)
        self._classes = frozenset(classes)
        self._following = following
        self._period_s = period_s
        self._ahead: dict[str, tuple[Service, Service]] = {}
        """Services of which we know more than the store: what it has, and what the API answered to our patch."""
        self._trouble = Sparing(log)

    async def run(self) -> NoReturn:
        """Stand for election and give out addresses, for ever."""
        await self.elector.run(self._lead)
        raise AssertionError("an elector runs for ever")

    async def _lead(self) -> NoReturn:
        """While we lead: allocate after every change and every period."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        unsubscribe = self._store.subscribe(lambda: _poke(loop, changed))
        backoff = Backoff(min(1.0, self._period_s), self._period_s)
        self._ahead.clear()
        try:
            wait_s = 0.0
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        await changed.wait()
                        await asyncio.sleep(GAP_S)
                except TimeoutError:
                    due = True
                else:
                    due = bool(self._tracker.take())
                changed.clear()
                if due:
                    failed = await self.sync()
                    if not failed:
                        backoff.reset()
                    wait_s = backoff.next() if failed else self._period_s
        finally:
            unsubscribe()
            self.problems = ()

    async def sync(self) -> int:
        """One pass. Returns how many services could not be brought up to date."""
        snapshot = self._store.snapshot()
        if SERVICE not in snapshot.listed or not self._following():
            return 1
        services = self._newest(snapshot.of(SERVICE))
        allocation = allocate(services, self._pools, self._classes)
        self._tell(allocation)
        stale = [
            (key, ingress) for key, ingress in allocation.ingress.items() if services[key].ingress != ingress
        ]
        failed = 0
        for start in range(0, len(stale), AT_ONCE):
            batch = [self._patch(services[key], ingress) for key, ingress in stale[start : start + AT_ONCE]]
            failed += (await asyncio.gather(*batch)).count(False)
        return failed

    def _newest(self, held: Mapping[str, Service]) -> dict[str, Service]:
        """The store's services, with what we have written and it has not yet heard of."""
        self._ahead = {key: pair for key, pair in self._ahead.items() if held.get(key) is pair[0]}
        return {**held, **{key: newer for key, (_, newer) in self._ahead.items()}}

    async def _patch(self, service: Service, ingress: tuple[Ingress, ...]) -> bool:
        """Have a service's status say this; whether that is settled."""
        key = service.meta.key
        try:
            raw = await self._client.get(SERVICE, key)
            if raw is None:
                return True  # gone, and soon from the store too
            now = _read(raw)
            if (
                now.meta.uid != service.meta.uid
                or now.ingress != service.ingress
                or not is_ours(now, self._classes)
            ):
                return False  # the store is behind; its next change brings us here again
            entries = [{"ip": entry.ip, **({"ipMode": "Proxy"} if entry.proxy else {})} for entry in ingress]
            patch = {
                "metadata": {"resourceVersion": _version(raw)},
                "status": {"loadBalancer": {"ingress": entries or None}},
            }
            newer = _read(await self._client.patch(SERVICE, key, patch, "status"))
        except (StoreError, ConfigError) as exc:
            if not (isinstance(exc, KubeError) and exc.status == 409):
                self._trouble.warn(f"service {key}: {exc}; trying again")
            return False
        self._trouble.over("the status of services can be written again")
        self.patched += 1
        log.info("service %s: %s", key, ", ".join(entry.ip for entry in ingress) or "no address any more")
        held = self._store.snapshot().of(SERVICE).get(key)
        if held is not None and held.ingress == service.ingress:
            self._ahead[key] = (held, newer)
        return True

    def _tell(self, allocation: Allocation) -> None:
        """Say once what cannot be done."""
        for line in allocation.problems:
            if line not in self.problems:
                log.warning("%s", line)
        self.problems = allocation.problems


class _OnlyVersion(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _WithVersion(msgspec.Struct):
    metadata: _OnlyVersion


def _version(raw: bytes) -> str:
    return typed.decode(raw, _WithVersion).metadata.resource_version


def _read(raw: bytes) -> Service:
    """A service's JSON. Raises ConfigError."""
    kind, found = decode_object(raw)
    if not isinstance(found, Service):
        raise ConfigError("Service", "kind", kind, "expected a Service")
    return found


def _poke(loop: asyncio.AbstractEventLoop, event: Any) -> None:
    """Wake the loop from whatever thread the store was written on."""
    loop.call_soon_threadsafe(event.set)
