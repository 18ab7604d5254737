"""In which order the differences of several tables are carried out.

Tables are given in dependency order: an entry may refer to entries of tables before its own (a route needs its
neighbour, a neighbour its device). So additions and changes go forwards through the tables, then removals go
backwards: at no step does an entry exist without what it needs, and what replaces something is there before
the replaced one goes (make before break).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pycni.reconcile.delta import Delta


class Action(enum.Enum):
    """What is done to one entry."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class Step(NamedTuple):
    """One operation on one table. ``value`` is the desired value, for a removal the actual one."""

    action: Action
    table: str
    key: Any
    value: Any


def steps(deltas: Sequence[tuple[str, Delta[Any, Any]]]) -> Iterator[Step]:
    """All operations in a safe order. ``deltas`` are (table name, difference) in dependency order."""
    for table, delta in deltas:
        for key, value in delta.add.items():
            yield Step(Action.ADD, table, key, value)
        for key, value in delta.change.items():
            yield Step(Action.CHANGE, table, key, value)
    for table, delta in reversed(deltas):
        for key, value in delta.remove.items():
            yield Step(Action.REMOVE, table, key, value)
