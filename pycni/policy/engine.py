"""From objects to the kernel's tables: the middle of network policies, whatever data plane.

Life of a change: ``sync`` is told which keys of the store changed; the node's view says which of its rows that changes;
each of them is compiled as it was and as it is, and what differs is one transaction. A full pass (the first one, one
after a failure) makes the view anew, reads back what is ours in the kernel and applies the whole difference, so that a
restarted agent adopts what is there: nothing is flushed and there is no moment without policies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pycni.policy.base import Dataplane
from pycni.reconcile.collection import no_collection
from pycni.reconcile.ledger import Ledger, Tables
from pycni.store import Objects
from pycni.view.policies import PolicyView
from pycni.view.policy_stages import ABSENT, RowDiff


class SyncResult(NamedTuple):
    """What a pass did."""

    rows: int
    """Rows of the view that differed."""
    operations: int
    """Rows added, changed and removed in the kernel."""
    full: bool
    compile_s: float
    apply_s: float


class PolicyEngine:
    """Holds what one node enforces. One thread at a time."""

    def __init__(self, node: str, plane: Dataplane) -> None:
        self.plane = plane
        self.view = PolicyView(node)
        self._ledger = Ledger(plane.compiler.tables, plane.compiler.shared)
        self._ledger.put(plane.compiler.common())
        self._stale = True
        """The kernel is not known to be as desired: the next pass reads it back."""

    @property
    def tables(self) -> Tables:
        """Desired tables. Do not change them."""
        return self._ledger.tables

    def sync(self, objects: Objects, changed: Mapping[str, set[str]] | None = None) -> SyncResult:
        """Bring the kernel to what the objects say. ``changed`` is a ``Tracker``'s; None: a full pass.

        Raises KernelError; the next pass is a full one then.
        """
        full = changed is None or self._stale
        with no_collection() if full else contextlib.nullcontext():
            started = time.perf_counter()
            return self._pass(self.view.update(objects, None if full else changed), started, full=full)

    def admit(self, namespace: str, addresses: Iterable[bytes]) -> SyncResult:
        """Close the addresses of a pod that is about to run before its object is known, as far as needed.

        Raises KernelError.
        """
        started = time.perf_counter()
        return self._pass(self.view.admit(namespace, addresses), started, full=self._stale)

    def gone(self, addresses: Iterable[bytes]) -> SyncResult:
        """Take ``admit`` back. Raises KernelError."""
        started = time.perf_counter()
        return self._pass(self.view.gone(addresses), started, full=self._stale)

    def _pass(self, rows: list[RowDiff], started: float, *, full: bool) -> SyncResult:
        compiler, driver = self.plane.compiler, self.plane.driver
        for row in rows:
            if row.before is not ABSENT:
                self._ledger.drop(compiler.rows(row.table, row.key, row.before))
        for row in rows:
            if row.after is not ABSENT:
                self._ledger.put(compiler.rows(row.table, row.key, row.after), note=not full)
        compiled = time.perf_counter()
        self._stale = True
        changes = self._ledger.against(driver.read()) if full else self._ledger.take()
        if changes:
            driver.apply(changes)
        self._stale = False
        return SyncResult(
            len(rows),
            sum(delta.size for _, delta in changes),
            full,
            compiled - started,
            time.perf_counter() - compiled,
        )
