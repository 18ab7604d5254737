"""From objects to the kernel's tables: the middle of network policies, whatever data plane.

Life of a change: ``sync`` is told which keys of the store changed; the node's view says which of its rows that changes;
each of them is compiled as it was and as it is, and what differs is one transaction. A full pass (the first one, one
after a failure) makes the view anew, reads back what is ours in the kernel and applies the whole difference, so that a
restarted agent adopts what is there: nothing is flushed and there is no moment without policies.

A fast path, where there is one, gets the same rows. It stands aside while the data plane and then its own maps change,
so what is new in that moment is judged by the data plane, whose change is one transaction. What the fast path cannot be
brought to leaves it aside, with a reason, and nothing unjudged.

What the kernel refuses for what it is (``refusals``) is left out and the pods that depend on it are closed; while there
is any such thing each pass looks at everything.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.policy.base import Dataplane, FastPath
from pycni.policy.refusals import Refusals, ViewRow, about_content, compiled, find, rows_of
from pycni.reconcile.collection import no_collection
from pycni.reconcile.ledger import Changes, Ledger, Tables
from pycni.view.policies import Objects, PolicyView
from pycni.view.policy_stages import ABSENT, RowDiff

log = logging.getLogger("pycni.policy")

ATTEMPTS = 4
"""Searches for what the kernel refuses in one pass: what is found once may have hidden more."""


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
        self.refusals = Refusals()
        """What the kernel refuses of the view; programmed is the rest."""
        self.closed: Mapping[str, str] = {}
        """Pods that are closed because of that, and why."""
        self._stale = True
        """The kernel is not known to be as desired: the next pass reads it back."""
        self._first = True
        """No full pass has been made yet: what it makes of a hundred thousand pods stays."""
        self.programmed: Callable[[Sequence[RowDiff], bool], None] = lambda _rows, _full: None
        """Told of rows of the view that have been programmed; the second: they are all there are."""

    @property
    def tables(self) -> Tables:
        """Desired tables. Do not change them."""
        return self._ledger.tables

    @property
    def stale(self) -> bool:
        """Whether the next pass is a full one, whatever it is told."""
        return self._stale

    def take_fast(self, fast: FastPath) -> None:
        """Have another fast path, that stands aside, from the next pass on. The one before has to be closed."""
        self.fast, self.aside = fast, "new"

    def sync(
        self,
        objects: Objects,
        changed: Mapping[str, set[str]] | None = None,
        waiting: dict[bytes, str] | None = None,
        *,
        again: bool = False,
    ) -> SyncResult:
        """Bring the kernel to what the objects say. ``changed`` is a ``Tracker``'s; None: a full pass.

        ``waiting``: addresses given to pods of this node, with the namespaces: closed, as far as policies of the
        namespace may isolate them, while no object has them; None: as it was. ``again``: try also what the kernel has
        refused before. What it refuses is in ``refusals`` afterwards; pods that depend on it are ``closed``.
        Raises KernelError when nothing could be done; the next pass is a full one then.
        """
        full = changed is None or self._stale
        if waiting is not None:
            self.view.waiting = waiting
        with no_collection(freeze=self._first) if full else contextlib.nullcontext():
            started = time.perf_counter()
            rows = self.view.update(objects, None if full else changed)
            self._first = False
            return self._pass(rows, started, full=full, again=again and bool(self.refusals.rows))

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

    def _pass(self, rows: list[RowDiff], started: float, *, full: bool, again: bool = False) -> SyncResult:
        if again or self.refusals.rows:
            return self._carefully(len(rows), started, again=again)
        compiler, driver = self.plane.compiler, self.plane.driver
        for row in rows:
            if row.before is not ABSENT:
                self._ledger.drop(compiler.rows(row.table, row.key, row.before))
        for row in rows:
            if row.after is not ABSENT:
                self._ledger.put(compiler.rows(row.table, row.key, row.after), note=not full)
        compiled_at = time.perf_counter()
        self._stale = True
        changes = self._ledger.against(driver.read()) if full else self._ledger.take()
        if changes or rows:
            self._stand_aside()
        if changes:
            try:
                driver.apply(changes)
            except KernelError as error:
                if not about_content(error):
                    raise
                log.warning("policies: %s: looking for what is refused", error)
                return self._carefully(len(rows), started, again=True)
        self._stale = False
        self.programmed(rows, full)
        if full or changes or rows or self.aside:
            everything = full or bool(self.aside)
            self._hasten(_new(rows_of(self.view)) if everything else rows, full=everything)
        return SyncResult(
            len(rows), _size(changes), full, compiled_at - started, time.perf_counter() - compiled_at
        )

    def _carefully(self, rows: int, started: float, *, again: bool) -> SyncResult:
        """Program everything but what the kernel refuses, pods that depend on that closed. Always a full pass.

        ``again``: also what was refused before.
        """
        compiler, driver, view = self.plane.compiler, self.plane.driver, self.view
        self._stale = True
        self._stand_aside()
        actual = driver.read()
        refusals = Refusals() if again else self.refusals.current(view)
        for _ in range(ATTEMPTS):
            closed = refusals.closed(view)
            program = refusals.program(view, closed) if refusals.rows else list(rows_of(view))
            ledger = compiled(compiler, program)
            compiled_at = time.perf_counter()
            changes = ledger.against(actual)
            try:
                driver.apply(changes)
                break
            except KernelError as error:
                if not about_content(error):
                    raise
                last = error
            refusals = find(view, compiler, actual, driver.check, refusals)
        else:
            raise last
        self.refusals, self.closed, self._ledger, self._stale = refusals, closed, ledger, False
        self.programmed((), True)
        self._hasten(_new(program), full=True)
        return SyncResult(
            rows, _size(changes), True, compiled_at - started, time.perf_counter() - compiled_at
        )

    def _stand_aside(self) -> None:
        """Have the data plane judge alone. A fast path that cannot even do that is taken away."""
        if self.fast is None:
            return
        try:
            self.fast.aside()
        except KernelError as error:
            log.error("policies: %s is given up: %s", self.fast.name, error)  # noqa: TRY400
            fast, self.fast = self.fast, None
            self.aside = ""
            fast.remove()
            fast.close()

    def _hasten(self, rows: Iterable[RowDiff], *, full: bool) -> None:
        if self.fast is None:
            return
        self.aside = ""
        try:
            self.fast.update(list(rows), full=full)
            self.fast.apply()
        except KernelError as error:
            self.aside = str(error)


def _new(rows: Iterable[ViewRow]) -> Iterator[RowDiff]:
    return (RowDiff(table, key, ABSENT, value) for table, key, value in rows)


def _size(changes: Changes) -> int:
    return sum(delta.size for _, delta in changes)
