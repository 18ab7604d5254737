"""Which rows a kernel refuses, and what is to be programmed instead, so that nothing they are about is open. Pure but
for the trials, which the caller makes.

Life: a transaction was refused for what is in it. ``find`` tries parts of it (the kernel checks and takes back) until
it knows single rows of the node's view that are refused by themselves: first those that stand alone, then policies,
then pods. ``Refusals`` says which pods depend on them, and gives the view's rows with these pods closed: everything to
and from them is dropped but what always passes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from pycni.errors import KernelError
from pycni.model.family import show
from pycni.model.policy import Direction
from pycni.policy.base import Compiler
from pycni.reconcile.ledger import Changes, Ledger, Table
from pycni.view.policies import PolicyView
from pycni.view.policy_rules import Match
from pycni.view.policy_stages import (
    ABSENT,
    CLOSED,
    GROUPS,
    MEMBERS,
    NAMES,
    OWN,
    PORTS,
    SECTIONS,
    SUBJECTS,
    Stages,
)

ViewRow: TypeAlias = tuple[str, Any, Any]
"""Table of the view, key, value."""
RowKey: TypeAlias = tuple[str, Any]
Trial: TypeAlias = Callable[[Changes], None]
"""Has the kernel check differences. Raises KernelError."""
_CIRCUMSTANCE = frozenset(
    {
        *(errno.EPERM, errno.EACCES, errno.EBADF, errno.EIO, errno.EBADMSG, errno.ENFILE, errno.EMFILE),
        *(errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOTCONN, errno.ENODEV, errno.ENXIO),
    }
)
"""Not about what was asked for, whatever it was."""


def about_content(error: KernelError) -> bool:
    """Whether the kernel refused what was in a transaction, so that the same again will be refused again."""
    return not error.transient and error.errno not in _CIRCUMSTANCE


class Refusals(NamedTuple):
    """Rows of the view that the kernel refuses, with what it said and what the rows were."""

    rows: Mapping[RowKey, tuple[Any, KernelError]] = {}

    def current(self, view: PolicyView) -> Refusals:
        """Those that are still in the view as they were."""
        return Refusals(
            {
                key: found
                for key, found in self.rows.items()
                if view.tables[key[0]].get(key[1], ABSENT) == found[0]
            }
        )

    def closed(self, view: PolicyView) -> dict[str, str]:
        """Pods that have to be closed (``namespace/name``), and why."""
        found: dict[str, str] = {}
        sections = self.lost(view)
        for (address, direction), subject in view.tables[SUBJECTS].items():
            why = self._why((SUBJECTS, (address, direction))) or self._reason(
                subject.stages, direction, sections
            )
            key = view.holder(address)
            if why and key is not None:
                found.setdefault(key, why)
        return found

    def problems(self) -> dict[str, str]:
        """By policy or pod's address: what the kernel said."""
        return {_name(*key): str(error) for key, (_, error) in self.rows.items()}

    def program(self, view: PolicyView, closed: Iterable[str]) -> list[ViewRow]:
        """What to program: the view's rows without these, these pods closed."""
        shut = {address for key in closed for address in view.addresses(key)}
        sections = self.lost(view)
        found: dict[RowKey, Any] = {}
        for table, key, value in rows_of(view):
            if (table, key) in self.rows or (table == SECTIONS and key in sections):
                continue
            if table == SUBJECTS and key[0] in shut:
                continue
            found[table, key] = value
        for address in shut:
            for direction in Direction:
                found[CLOSED, (address, direction)] = None
        return [(table, key, value) for (table, key), value in found.items()]

    def _why(self, key: RowKey) -> str:
        found = self.rows.get(key)
        return "" if found is None else str(found[1])

    def lost(self, view: PolicyView) -> dict[Any, str]:
        """NetworkPolicies that cannot be programmed in a direction, with the reason."""
        found = {}
        for key, section in view.tables[SECTIONS].items():
            why = self._why((SECTIONS, key)) or self._lacking(section)
            if why:
                found[key] = why
        return found

    def _reason(self, stages: Stages, direction: Direction, sections: Mapping[Any, str]) -> str:
        """Why a pod with these stages cannot be judged."""
        for key in stages.policies or ():
            if (key, direction) in sections:
                return f"NetworkPolicy {key}: {sections[key, direction]}"
        for part in (*stages.admin, *stages.baseline):
            why = self._lacking(rule.match for rule in part.rules)
            if why:
                return f"ClusterNetworkPolicy {part.name}: {why}"
        return ""

    def _lacking(self, matches: Iterable[Match]) -> str:
        """Why rules cannot be kept: somebody is missing among those they name."""
        groups = {key[0]: str(error) for (table, key), (_, error) in self.rows.items() if table == MEMBERS}
        names = {key[0]: str(error) for (table, key), (_, error) in self.rows.items() if table == PORTS}
        if not groups and not names:
            return ""
        for match in matches:
            for group in match.groups:
                if group.name in groups:
                    return groups[group.name]
            for name in match.ports.names if match.ports is not None else ():
                if name in names:
                    return names[name]
        return ""


def rows_of(view: PolicyView) -> Iterator[ViewRow]:
    """All rows of a view."""
    for table, rows in view.tables.items():
        for key, value in rows.items():
            yield table, key, value


def compiled(compiler: Compiler, rows: Iterable[ViewRow]) -> Ledger:
    """The kernel's tables for rows of the view."""
    ledger = Ledger(compiler.tables, compiler.shared)
    ledger.put(compiler.common(), note=False)
    for row in rows:
        ledger.put(compiler.rows(*row), note=False)
    return ledger


def find(
    view: PolicyView, compiler: Compiler, actual: Mapping[str, Table], trial: Trial, known: Refusals
) -> Refusals:
    """All refused rows, those known included. Raises KernelError when no single row is to blame."""
    return _Search(compiler, actual, trial, known).run(view)


class _Search:
    def __init__(
        self, compiler: Compiler, actual: Mapping[str, Table], trial: Trial, known: Refusals
    ) -> None:
        self._compiler = compiler
        self._actual = actual
        self._trial = trial
        self._bad = dict(known.rows)
        self._base: list[ViewRow] = []

    def run(self, view: PolicyView) -> Refusals:
        error = self._refuses([])
        if error is not None:
            raise error
        tables = view.tables
        for names in ((GROUPS, NAMES, OWN, CLOSED, MEMBERS, PORTS), (SECTIONS,)):
            rows = [(name, key, value) for name in names for key, value in tables[name].items()]
            rows = [row for row in rows if row[:2] not in self._bad]
            self._halve(rows)
            self._base += (row for row in rows if row[:2] not in self._bad)
        lost = Refusals(self._bad).lost(view)
        subjects = [
            (SUBJECTS, key, value)
            for key, value in tables[SUBJECTS].items()
            if (SUBJECTS, key) not in self._bad
            and not any((policy, key[1]) in lost for policy in value.stages.policies or ())
        ]
        # Equal ones side by side: when what they share is refused, that is seen soon.
        subjects.sort(key=lambda row: (len(row[1][0]), row[1][1], repr(row[2].stages)))
        self._halve(subjects)
        return Refusals(self._bad)

    def _halve(self, rows: Sequence[ViewRow]) -> KernelError | None:
        """Find the refused ones among some rows; returns what the kernel says of all of them together."""
        if not rows:
            return None
        error = self._refuses(rows)
        if error is None:
            return None
        if len(rows) == 1:
            self._blame(rows, error)
            return error
        if _alike(rows) and self._refuses(rows[:1]) and self._refuses(rows[-1:]):
            self._blame(rows, error)
            return error
        middle = len(rows) // 2
        halves = [self._halve(part) for part in (rows[:middle], rows[middle:])]
        if not any(halves):
            raise error
        return error

    def _blame(self, rows: Iterable[ViewRow], error: KernelError) -> None:
        self._bad.update({(table, key): (value, error) for table, key, value in rows})

    def _refuses(self, rows: Sequence[ViewRow]) -> KernelError | None:
        changes = compiled(self._compiler, (*self._base, *rows)).against(self._actual)
        try:
            self._trial(changes)
        except KernelError as error:
            if not about_content(error):
                raise
            return error
        return None


def _alike(rows: Sequence[ViewRow]) -> bool:
    """Whether these are pods that share all their policies."""
    first, last = rows[0], rows[-1]
    return (
        first[0] == SUBJECTS
        and len(rows) > 2
        and (first[1][1], len(first[1][0])) == (last[1][1], len(last[1][0]))
        and first[2].stages == last[2].stages
    )


def _name(table: str, key: Any) -> str:
    if table == SECTIONS:
        return f"NetworkPolicy {key[0]} ({key[1].name.lower()})"
    if table in {SUBJECTS, CLOSED}:
        return f"{show(key[0])} ({key[1].name.lower()})"
    if table in {MEMBERS, PORTS}:
        return f"{show(key[1])} in {key[0]}"
    return f"{table} {show(key) if isinstance(key, bytes) else key}"
