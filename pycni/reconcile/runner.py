"""The reconcile loop every component runs, and the guard for tasks that must never end.

Life of a change: an event pokes the runner (any number of pokes are one); the runner clears the poke, then
runs one pass, which reads the whole state it depends on, so a poke during a pass is kept and causes another
one. Failure: the state is reported, the next try comes after a back-off or at once when poked (but never
closer than ``min_gap_s`` to the start of the last pass). Success: next pass at a poke or after ``resync_s``.

All times are the event loop's (``loop.time()``), so a test runs it on a loop with virtual time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

from pycni.errors import PycniError
from pycni.reconcile.backoff import Backoff

log = logging.getLogger("pycni.reconcile")

Pass = Callable[[], Awaitable[None]]


class Observer(Protocol):
    """Who is told how passes end: health and metrics."""

    def passed(self, component: str, seconds: float) -> None:
        """A pass succeeded."""

    def failed(self, component: str, error: Exception, failures: int) -> None:
        """A pass raised; ``failures`` in a row, this one included."""


class NoObserver:
    """Nobody."""

    def passed(self, component: str, seconds: float) -> None:
        """Ignore."""

    def failed(self, component: str, error: Exception, failures: int) -> None:
        """Ignore."""


class Runner:
    """Runs ``reconcile`` whenever poked, periodically, and again after failures. One pass at a time."""

    def __init__(
        self,
        name: str,
        reconcile: Pass,
        *,
        resync_s: float = 30.0,
        min_gap_s: float = 0.0,
        backoff: Backoff | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``min_gap_s`` is the least time between the starts of two passes."""
        self.name = name
        self._reconcile = reconcile
        self._resync_s = resync_s
        self._min_gap_s = min_gap_s
        self._backoff = backoff or Backoff()
        self._observer = observer or NoObserver()
        self._wake = asyncio.Event()
        self._wake.set()
        self._told = ""
        self.passes = 0
        """Passes started so far."""
        self.last_success: float | None = None
        """``loop.time()`` when the last pass succeeded."""

    def poke(self) -> None:
        """Ask for a pass soon. On the loop's thread only."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Loop until cancelled. Only cancellation and exceptions that are no ``Exception`` leave it."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            self._wake.clear()
            self.passes += 1
            try:
                await self._reconcile()
            except Exception as error:  # noqa: BLE001 - the loop outlives every failed pass; it is reported
                wait_s = self._failure(error)
            else:
                self._backoff.reset()
                self._told = ""
                self.last_success = loop.time()
                self._observer.passed(self.name, self.last_success - started)
                wait_s = self._resync_s
            await self._wait(wait_s)
            gap_s = started + self._min_gap_s - loop.time()
            if gap_s > 0:
                await asyncio.sleep(gap_s)

    def _failure(self, error: Exception) -> float:
        wait_s = self._backoff.next()
        failures, text = self._backoff.failures, describe(error)
        trace = error if not isinstance(error, PycniError | ExceptionGroup) else None
        # The same failure again is told at the 2nd, 4th, 8th ... time only.
        level = logging.ERROR if text != self._told or failures & (failures - 1) == 0 else logging.DEBUG
        self._told = text
        log.log(
            level,
            "%s: pass failed (%d in a row), next try in %.2f s: %s",
            self.name,
            failures,
            wait_s,
            text,
            exc_info=trace,
        )
        self._observer.failed(self.name, error, failures)
        return wait_s

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return


def on_loop(call: Callable[[], None]) -> Callable[[], None]:
    """The call, moved to the running loop's thread when it comes from another one."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def moved() -> None:
        if threading.get_ident() == thread:
            call()
        else:
            loop.call_soon_threadsafe(call)

    return moved


def describe(error: BaseException) -> str:
    """One line for a log or a health page: the errors inside a group, joined; at most five of them."""
    if isinstance(error, BaseExceptionGroup):
        parts = [describe(inner) for inner in error.exceptions[:5]]
        more = len(error.exceptions) - len(parts)
        return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
    return str(error) or type(error).__name__


class TaskEndedError(RuntimeError):
    """A task that must run for ever returned."""


async def eternal(name: str, task: Awaitable[object]) -> NoReturn:
    """Await a task that must never end: returning is an error, as failing is.

    Put it into a TaskGroup: either way the group is cancelled and the process can say why.
    """
    await task
    raise TaskEndedError(f"{name} ended although it must run for ever")
