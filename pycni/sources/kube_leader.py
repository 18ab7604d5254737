"""One of many agents at a time does something: leader election by a Lease in Kubernetes.

Life: ``Elector.run`` tries for the lead for ever; while it has it, ``lead`` runs, and is cancelled as soon as the lead
could not be renewed for ``renew_s`` (so well before others may take it, after ``duration_s``). Stopping gives the lead
back, so that a successor needs not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from pycni.errors import ConfigError, StoreError
from pycni.sources.kube_client import LEASE, KubeClient
from pycni.sources.kube_http import KubeError
from pycni.sources.sparing import Sparing
from pycni.wire.kube_election import Move, Record, decode_record, next_lease, next_move

log = logging.getLogger("pycni.kube")

GIVE_BACK_S = 2.0
"""For so long stopping may wait for the API."""


class Elector:
    """A candidate called ``identity`` for the Lease ``namespace/name``. Defaults are client-go's."""

    def __init__(
        self,
        client: KubeClient,
        name: str,
        identity: str,
        *,
        namespace: str = "kube-system",
        duration_s: float = 15.0,
        renew_s: float = 10.0,
        retry_s: float = 2.0,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._key = f"{namespace}/{name}"
        self._name, self._namespace = name, namespace
        self._identity = identity
        self._duration_s = duration_s
        self._renew_s = renew_s
        self._retry_s = retry_s
        self._rng = rng or random.Random()  # noqa: S311  # spreads candidates over time, guards nothing
        self._record: Record | None = None
        self._changed_at = 0.0
        self._wrote = False
        self._trouble = Sparing(log)
        self.leading = False
        """Whether we lead now."""
        self.holder = ""
        """Who led when we last looked."""

    async def run(self, lead: Callable[[], Awaitable[NoReturn]]) -> NoReturn:
        """Have ``lead`` run while we lead, for ever. What it raises ends this."""
        try:
            while True:
                if not await self._try():
                    await asyncio.sleep(self._retry_s * self._rng.uniform(1.0, 1.2))
                    continue
                log.info("leading: %s", self._key)
                self.leading = True
                try:
                    await self._lead(lead)
                finally:
                    self.leading = False
                log.warning("not leading any more: %s", self._key)
        finally:
            await self._give_back()

    async def _lead(self, lead: Callable[[], Awaitable[NoReturn]]) -> None:
        """Until the lead is lost."""
        task = asyncio.ensure_future(lead())
        try:
            renewed = time.monotonic()
            while (left_s := renewed + self._renew_s - time.monotonic()) > 0:
                done, _ = await asyncio.wait({task}, timeout=min(self._retry_s, left_s))
                if done:
                    await task
                if await self._try():
                    renewed = time.monotonic()
                elif self._record is not None and self._record.holder not in ("", self._identity):
                    return
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _try(self) -> bool:
        """One attempt to take or renew the lead; whether we have it."""
        try:
            async with asyncio.timeout(self._renew_s / 2):
                return await self._attempt()
        except TimeoutError:
            self._trouble.warn(f"Lease {self._key}: the API does not answer; trying again")
        except (StoreError, ConfigError) as exc:
            if isinstance(exc, KubeError) and exc.status == 409:
                return False  # somebody was quicker
            self._trouble.warn(f"Lease {self._key}: {exc}; trying again")
        return False

    async def _attempt(self) -> bool:
        raw = await self._client.get(LEASE, self._key)
        record = decode_record(raw) if raw is not None else None
        now = time.monotonic()
        if record != self._record:
            self._record, self._changed_at = record, now
        self.holder = record.holder if record is not None else ""
        move = next_move(record, self._identity, now - self._changed_at)
        if move is not Move.WAIT:
            await self._write(record, self._identity)
        self._trouble.over(f"Lease {self._key}: the Kubernetes API answers again")
        return move is not Move.WAIT

    async def _write(self, record: Record | None, identity: str) -> None:
        duration_s = max(round(self._duration_s), 1)
        self._wrote = True
        lease = next_lease(
            self._name, self._namespace, record, identity, duration_s=duration_s, now=time.time()
        )
        if record is None:
            raw = await self._client.create(LEASE, self._key, lease)
        else:
            raw = await self._client.update(LEASE, self._key, lease)
        self._record, self._changed_at = decode_record(raw), time.monotonic()
        self.holder = identity

    async def _give_back(self) -> None:
        """Best effort: without it others wait until the lease ends.

        The Lease is read anew: a renewal that was cut short may have reached the API, or reach it in between.
        """
        if not self._wrote:
            return
        with contextlib.suppress(StoreError, ConfigError, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_S):
                while not await self._given_back():
                    pass  # a renewal came in between

    async def _given_back(self) -> bool:
        raw = await self._client.get(LEASE, self._key)
        record = decode_record(raw) if raw is not None else None
        if record is None or record.holder != self._identity:
            return True
        try:
            await self._write(record, "")
        except KubeError as exc:
            if exc.status != 409:
                raise
            return False
        return True
