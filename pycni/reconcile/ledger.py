"""The tables one data plane should have, and what differs from what it was last given. Pure.

A table is a mapping from what the kernel indexes by to the rest, both plain values. Rows of tables named ``shared`` may
have several owners; such a row goes when its last owner goes.

Life: the rows of a service or policy are dropped as they were and put as they are now; ``take`` gives the differences
since the last ``take``, whole values compared, so that what was dropped and put again unchanged is no difference. The
cost follows the rows touched. ``against`` compares everything with what was read back from the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pycni.reconcile.delta import Delta, diff

Table: TypeAlias = dict[Hashable, Any]
Tables: TypeAlias = dict[str, Table]
"""Table name -> key -> value."""
Changes: TypeAlias = Sequence[tuple[str, Delta[Any, Any]]]
"""Differences in dependency order; tables without any are left out."""

_ABSENT: Final = object()


class Ledger:
    """Desired tables of one data plane; of a node."""

    def __init__(self, tables: Sequence[str], shared: frozenset[str]) -> None:
        """``tables`` in dependency order; rows of those in ``shared`` may be put several times."""
        self.tables: Tables = {name: {} for name in tables}
        self._counts: dict[str, dict[Hashable, int]] = {name: {} for name in tables if name in shared}
        self._before: dict[str, dict[Hashable, Any]] = {name: {} for name in tables}
        """Keys touched since the last take, with their values then."""

    def put(self, rows: Mapping[str, Mapping[Any, Any]], *, note: bool = True) -> None:
        """Add rows. Raises ValueError for a row that is there with another value (a mistake of the compiler's).

        Without ``note`` the next ``take`` does not tell of them: ``against`` comes before it.
        """
        for name, entries in rows.items():
            table, before, counts = self.tables[name], self._before[name], self._counts.get(name)
            for key, value in entries.items():
                held = table.get(key, _ABSENT)
                if note:
                    before.setdefault(key, held)
                if held is _ABSENT:
                    table[key] = value
                elif counts is None or held != value:
                    raise ValueError(f"table {name}: two rows for {key!r}: {held!r} and {value!r}")
                if counts is not None:
                    counts[key] = counts.get(key, 0) + 1

    def drop(self, rows: Mapping[str, Mapping[Any, Any]]) -> None:
        """Take away rows put earlier; a shared one goes with its last owner."""
        for name, entries in rows.items():
            table, before, counts = self.tables[name], self._before[name], self._counts.get(name)
            for key in entries:
                if counts is not None:
                    if counts[key] > 1:
                        counts[key] -= 1
                        continue
                    del counts[key]
                before.setdefault(key, table[key])
                del table[key]

    def take(self) -> Changes:
        """Differences since the last take, in dependency order; tables without any are left out."""
        found = []
        for name, before in self._before.items():
            if before:
                delta = _delta(before, self.tables[name])
                self._before[name] = {}
                if not delta.empty:
                    found.append((name, delta))
        return found

    def against(self, actual: Mapping[str, Table]) -> Changes:
        """Differences between everything desired and what the kernel has; counts as taken."""
        for name in self._before:
            self._before[name] = {}
        found = ((name, diff(table, actual.get(name, {}))) for name, table in self.tables.items())
        return [(name, delta) for name, delta in found if not delta.empty]


def _delta(before: Mapping[Hashable, Any], table: Table) -> Delta[Any, Any]:
    add: dict[Any, Any] = {}
    change: dict[Any, Any] = {}
    remove: dict[Any, Any] = {}
    for key, was in before.items():
        now = table.get(key, _ABSENT)
        if now is _ABSENT:
            if was is not _ABSENT:
                remove[key] = was
        elif was is _ABSENT:
            add[key] = now
        elif was != now:
            change[key] = now
    return Delta(add, change, remove)
