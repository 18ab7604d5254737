"""From objects to the kernel's tables: the middle of network policies, whatever data plane.

Life of a change: ``sync`` is told which keys of the store changed; the node's view says which of its rows that changes;
each of them is compiled as it was and as it is, and what differs is one transaction. A full pass (the first one, one
after a failure) makes the view anew, reads back what is ours in the kernel and applies the whole difference, so that a
restarted agent adopts what is there: nothing is flushed and there is no moment without policies.

A fast path, where there is one, gets the same rows. It stands aside while the data plane and then its own maps change,
so what is new in that moment is judged by the data plane, whose change is one transaction. What the fast path cannot be
brought to leaves it aside, with a reason, and nothing unjudged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.policy.base import Dataplane, FastPath
from pycni.reconcile.collection import no_collection
from pycni.reconcile.ledger import Ledger, Tables
from pycni.view.policies import Objects, PolicyView
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

    def __init__(self, node: str, plane: Dataplane, fast: FastPath | None = None) -> None:
        self.plane = plane
        self.fast = fast
        self.aside = ""
        """Why the fast path stands aside; tried again by the next pass."""
        self.view = PolicyView(node)
        self._ledger = Ledger(plane.compiler.tables, plane.compiler.shared)
        self._ledger.put(plane.compiler.common())
        self._stale = True
        """The kernel is not known to be as desired: the next pass reads it back."""

    @property
    def tables(self) -> Tables:
        """Desired tables. Do not change them."""
        return self._ledger.tables

    @property
    def stale(self) -> bool:
        """Whether the next pass is a full one, whatever it is told."""
        return self._stale

    def sync(
        self,
        objects: Objects,
        changed: Mapping[str, set[str]] | None = None,
        waiting: dict[bytes, str] | None = None,
    ) -> SyncResult:
        """Bring the kernel to what the objects say. ``changed`` is a ``Tracker``'s; None: a full pass.

        ``waiting``: addresses given to pods of this node, with the namespaces: closed, as far as policies of the
        namespace may isolate them, while no object has them; None: as it was.
        Raises KernelError; the next pass is a full one then.
        """
        full = changed is None or self._stale
        if waiting is not None:
            self.view.waiting = waiting
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
        if self.fast is not None and (changes or rows):
            self.fast.aside()
        if changes:
            driver.apply(changes)
        self._stale = False
        if self.fast is not None and (changes or rows or self.aside):
            self._hasten(self.fast, rows, full=full)
        return SyncResult(
            len(rows),
            sum(delta.size for _, delta in changes),
            full,
            compiled - started,
            time.perf_counter() - compiled,
        )

    def _hasten(self, fast: FastPath, rows: list[RowDiff], *, full: bool) -> None:
        full = full or bool(self.aside)
        self.aside = ""
        try:
            fast.update(self._all_rows() if full else rows, full=full)
            fast.apply()
        except KernelError as error:
            self.aside = str(error)

    def _all_rows(self) -> list[RowDiff]:
        tables = self.view.tables
        return [RowDiff(name, key, ABSENT, value) for name in tables for key, value in tables[name].items()]
