"""What the policy component does beside passes: sweep the fast path, look after bridged packets, read counters.

Life: every ``SWEEP_S``, and at once when somebody asks for metrics, on the component's worker that owns the engine.
Counters are read only while somebody wants them, and no more often than ``readings.READ_S`` says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from pycni.errors import KernelError, PycniError
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.policy import metrics as readings
from pycni.policy.base import Denied
from pycni.policy.component_report import PolicyReport
from pycni.policy.engine import PolicyEngine
from pycni.policy.metrics import PolicyMetrics
from pycni.reconcile.runner import describe, on_loop
from pycni.store import Store

log = logging.getLogger("pycni.policy")

SWEEP_S = 5.0
"""How often the fast path forgets connections that have ended."""

Owned = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a job on the worker, the engine to itself."""


class Upkeep:
    """One per component. ``run`` is its life."""

    def __init__(
        self,
        store: Store,
        report: PolicyReport,
        metrics: PolicyMetrics,
        owned: Owned,
        *,
        engine: Callable[[], PolicyEngine | None],
        denied: Callable[[], Sequence[Denied]],
        see_bridged: Callable[[], bool],
    ) -> None:
        """``engine``: None before the first pass. ``denied``: packets the gate's own tables count."""
        self._store, self._report, self._metrics = store, report, metrics
        self._owned, self._engine, self._denied = owned, engine, denied
        self._see_bridged = see_bridged
        self._read_at = float("-inf")
        self._wanted = asyncio.Event()

    async def run(self) -> NoReturn:
        """Run for ever."""
        self._metrics.wanted = on_loop(self._wanted.set)
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._owned(self._sweep)
            now = asyncio.get_running_loop().time()
            if self._metrics.due and now - self._read_at >= readings.READ_S - 1:
                self._read_at = now
                await self._owned(self._read)

    def watch_bridges(self) -> None:
        """Somebody may switch off what shows bridged packets to the table, as ``sysctl --system`` can: nobody tells."""
        try:
            if self._see_bridged():
                log.warning("policies: bridged packets did not pass the filters: switched on again")
        except KernelError as error:
            self._report.trouble("bridged packets", str(error))
        else:
            self._report.trouble("bridged packets", "")

    def _sweep(self) -> None:
        engine = self._engine()
        if engine is not None:
            self.watch_bridges()
        if engine is None or engine.fast is None:
            return
        try:
            engine.fast.sweep()
        except KernelError as error:
            self._report.note("connections of the fast path", f"not swept: {error}")
        else:
            self._report.note("connections of the fast path", "")

    def _read(self) -> None:
        engine = self._engine()
        if engine is None:
            return
        objects = self._store.snapshot()
        policies = {kind: len(objects.of(kind)) for kind in (NETWORK_POLICY, CLUSTER_NETWORK_POLICY)}
        try:
            self._metrics.take(readings.read(engine, policies, self._denied))
        except PycniError as error:
            log.warning("counters of policies: %s", describe(error))
