"""Difference of two tables, by whole values: the middle of compile -> diff -> apply.

A table is a mapping from what the kernel indexes by to the rest. A key on both sides with another value is a
change, never silently equal: a peer's new MAC under its old subnet is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Delta(NamedTuple, Generic[K, V]):
    """What turns an actual table into the desired one. The three parts share no key."""

    add: dict[K, V]
    """Keys the actual table lacks, with their desired values."""
    change: dict[K, V]
    """Keys present with another value, with their desired values."""
    remove: dict[K, V]
    """Keys that are not desired, with their actual values."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.add or self.change or self.remove)

    @property
    def size(self) -> int:
        """Number of single operations."""
        return len(self.add) + len(self.change) + len(self.remove)


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """Compare two whole tables. Order of the parts is the order of the tables given."""
    add: dict[K, V] = {}
    change: dict[K, V] = {}
    for key, value in desired.items():
        if key not in actual:
            add[key] = value
        elif actual[key] != value:
            change[key] = value
    if len(actual) + len(add) == len(desired):
        return Delta(add, change, {})
    return Delta(add, change, {key: value for key, value in actual.items() if key not in desired})


def diff_keys(desired: Mapping[K, V], actual: Mapping[K, V], keys: Iterable[K]) -> Delta[K, V]:
    """Compare only some keys: what ``diff`` gives, restricted to ``keys``.

    The cost follows the number of keys, so one more lease among thousands costs as much as among few.
    """
    add: dict[K, V] = {}
    change: dict[K, V] = {}
    remove: dict[K, V] = {}
    for key in keys:
        if key in desired:
            value = desired[key]
            if key not in actual:
                add[key] = value
            elif actual[key] != value:
                change[key] = value
        elif key in actual:
            remove[key] = actual[key]
    return Delta(add, change, remove)


def patched(actual: Mapping[K, V], delta: Delta[K, V]) -> dict[K, V]:
    """The table after the delta was carried out; ``patched(a, diff(d, a)) == d`` for all tables."""
    table = {key: value for key, value in actual.items() if key not in delta.remove}
    table.update(delta.change)
    table.update(delta.add)
    return table
