"""What lease sources have in common: trying until the store has carried something out, saying what is waited for."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pycni.errors import StoreError
from pycni.reconcile.backoff import Backoff
from pycni.sources.leases_own import LeaseLostError
from pycni.sources.sparing import Sparing

log = logging.getLogger("pycni.leases")
T = TypeVar("T")


class Insisting:
    """Base of a lease source. ``retry_s`` is the longest pause between attempts, at most five seconds."""

    def __init__(
        self,
        back: str,
        retry_s: float,
        rng: random.Random | None,
        retried: tuple[type[Exception], ...] = (StoreError,),
    ) -> None:
        """``back`` is logged when the store answers again; ``retried`` are the errors that make another attempt."""
        self.waiting = ""
        """What is being waited for, "" when nothing is."""
        self._back = back
        self._retry_s = retry_s
        self._rng = rng or random.Random()  # noqa: S311  # spreads nodes, guards nothing
        self._retried = retried
        self._trouble = Sparing(log)

    async def _insist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt until it is answered."""
        backoff = Backoff(
            min(0.1, self._retry_s), min(5.0, self._retry_s), jitter=0.5, chance=self._rng.random
        )
        while True:
            try:
                return await attempt()
            except self._retried as exc:
                self._wait_for(f"{what}: {exc}")
                await asyncio.sleep(backoff.next())

    def _wait_for(self, what: str) -> None:
        self.waiting = what
        self._trouble.warn(f"waiting: {what}")

    def _over(self) -> None:
        self._trouble.over(self._back)
        self.waiting = ""


def lost_lease(group: BaseExceptionGroup[BaseException]) -> LeaseLostError:
    """The LeaseLostError in what ended a source's tasks. Raises the group itself when there is none."""
    exc: BaseException | None = group.subgroup(LeaseLostError)
    if exc is None:
        raise group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    assert isinstance(exc, LeaseLostError)
    return exc
