"""A table of nf_tables that is kept by rows: what a driver must know of it, and its changes as messages. Pure.

Life: a component describes its table once (``Schema``); ``build`` makes the messages that put an empty one in place,
``change`` those that carry out differences of rows. Rows are elements of sets (key and value as ``nftset`` has
them; ranges as ``nftrange`` has them) and chains (name -> rules, each in words of the component's own, which the kernel
keeps as comments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pycni.wire.nftmsg import Hook, add_chain, add_rule, add_table, delete_chain, delete_table, flush_chain
from pycni.wire.nftrange import add_range_rows, delete_range_rows
from pycni.wire.nftset import (
    Remembered,
    SetSpec,
    add_elements,
    add_remembered,
    add_set,
    delete_elements,
)


class Schema(NamedTuple):
    """One ``inet`` table."""

    table: str
    generation: str
    """The table's comment: a table with another one is replaced as a whole."""
    table_row: str
    """Name of the row table with the one row "generation": the table itself."""
    chains: str
    """Name of the row table of chains."""
    sets: Mapping[str, SetSpec]
    """Row tables that are sets, in dependency order; chains come before, elements may lead to them."""
    kept: tuple[SetSpec, ...]
    """Maps that packets write to: what they hold outlives a replacement of the table."""
    fixed: tuple[bytes, ...]
    """Messages that make everything that is no row."""
    fixed_chains: Mapping[str, tuple[str, ...]]
    """The chains among it with their rules."""
    instructions: Callable[[str], bytes]
    """A rule's words as expressions (``nftexpr``)."""
    entries: frozenset[str] = frozenset()
    """Sets by which packets come to all other rows, if there are such."""
    met_late: Callable[[str, Any], bool] = lambda _name, _key: True
    """With ``entries``: whether packets come to a row (row table, key) by them alone, so that it may go after them."""


class RowChange(NamedTuple):
    """What changes in one row table."""

    name: str
    remove: Iterable[Any] = ()
    """Keys that go."""
    add: Mapping[Any, Any] = {}
    """Rows that come."""
    change: Mapping[Any, Any] = {}
    """Rows that get another value."""


class Steps(NamedTuple):
    """Changes in the order in which packets under way can bear them."""

    transactions: list[list[RowChange]]
    retired: list[RowChange]
    """What is to go later (``Retired``)."""


def steps(schema: Schema, rows: Sequence[RowChange]) -> Steps:
    """Changes as transactions that a packet under way may meet in any state.

    A transaction becomes valid at once, but not for a packet that is being worked on: each of its look-ups sees what
    is valid then (``nft_genmask_cur``), while chains are seen as they were when it began (``nft_do_chain``). So what is
    led to has to be there before, and to stay until after: first new chains, and with ``entries`` all new rows but
    those; then the entries and what changes; what goes does so when no packet can be under way there any more.
    (Without ``entries`` removals are in the second step.)
    """
    first, second, last = [], [], []
    for item in rows:
        early = item.name == schema.chains or bool(schema.entries and item.name not in schema.entries)
        late: dict[Any, None] = {}
        if schema.entries and item.name not in schema.entries:
            late = dict.fromkeys(key for key in item.remove if schema.met_late(item.name, key))
        if early and item.add:
            first.append(RowChange(item.name, add=item.add))
        if late:
            last.append(RowChange(item.name, tuple(late)))
        now = tuple(key for key in item.remove if key not in late) if late else item.remove
        rest = RowChange(item.name, now, {} if early else item.add, item.change)
        if rest.remove or rest.add or rest.change:
            second.append(rest)
    # Rows that nothing leads to, or that nothing led to, need no order.
    entered = any(item.name in schema.entries for item in second)
    if schema.entries and not entered:
        return Steps([list(rows)], [])
    return Steps([step for step in (first, second) if step], last)


class Retired:
    """Rows that nothing leads to any more, kept in the kernel for packets that are under way to them."""

    def __init__(self, schema: Schema, grace_s: float) -> None:
        """``grace_s``: seconds a packet may be under way."""
        self._schema, self._grace_s = schema, grace_s
        self._due: dict[str, dict[Any, float]] = {}

    def take(self, rows: Iterable[RowChange], now: float) -> None:
        """Rows that are to go; ``now``: seconds on a clock that does not jump."""
        for item in rows:
            self._due.setdefault(item.name, {}).update(dict.fromkeys(item.remove, now + self._grace_s))

    def wanted(self, rows: Iterable[RowChange]) -> list[RowChange]:
        """Changes to be made, with those rows that come again changed in place: the kernel has them still."""
        found = []
        for item in rows:
            again = {key: value for key, value in item.add.items() if key in self._due.get(item.name, ())}
            for key in again:
                del self._due[item.name][key]
            add = {key: value for key, value in item.add.items() if key not in again} if again else item.add
            found.append(RowChange(item.name, item.remove, add, {**item.change, **again}))
        return found

    def due(self, now: float) -> list[RowChange]:
        """Removals whose time has come, in dependency order; they are forgotten here."""
        found = []
        for name in (self._schema.chains, *self._schema.sets):
            keys = [key for key, due in self._due.get(name, {}).items() if due <= now]
            for key in keys:
                del self._due[name][key]
            if keys:
                found.append(RowChange(name, tuple(keys)))
        return found

    def wait_s(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is kept."""
        times = [due for keys in self._due.values() for due in keys.values()]
        return max(0.0, min(times) - now) if times else None

    def without(self, tables: Mapping[str, dict[Any, Any]]) -> None:
        """Leave what is kept out of what was read; what is not there any more is kept no longer."""
        for name, keys in self._due.items():
            there = tables[name]
            self._due[name] = {key: due for key, due in keys.items() if key in there}
            for key in self._due[name]:
                del there[key]

    def forget(self) -> None:
        """The table was replaced or removed."""
        self._due.clear()


def fixed_messages(
    table: str,
    sets: Iterable[SetSpec],
    chains: Mapping[str, Sequence[str]],
    hooks: Mapping[str, Hook],
    instructions: Callable[[str], bytes],
) -> Iterator[bytes]:
    """Messages for sets, then chains (some hooked), then their rules: for ``Schema.fixed``."""
    for number, spec in enumerate(sets, 1):
        yield add_set(table, spec, number)
    for name in chains:
        yield add_chain(table, name, hooks.get(name))
    for name, rules in chains.items():
        for rule in rules:
            yield add_rule(table, name, instructions(rule), rule)


def build(schema: Schema, memories: Mapping[str, Sequence[Remembered]]) -> Iterator[bytes]:
    """Messages that replace the table, there or not, by an empty one that remembers ``memories`` (map -> elements)."""
    yield add_table(schema.table)
    yield delete_table(schema.table)
    yield add_table(schema.table, schema.generation)
    yield from schema.fixed
    for spec in schema.kept:
        yield from add_remembered(schema.table, spec, memories.get(spec.name, ()))


def change(schema: Schema, changes: Sequence[RowChange]) -> Iterator[bytes]:
    """Messages for changes given in dependency order: removals the other way round, then additions."""
    for item in reversed(changes):
        if item.name == schema.chains:
            yield from _remove_chains(schema.table, item)
        else:
            yield from _delete(schema.table, schema.sets[item.name], [*item.remove, *item.change])
    for item in changes:
        if item.name == schema.chains:
            yield from _add_chains(schema, item)
        else:
            yield from _add(schema.table, schema.sets[item.name], {**item.change, **item.add})


def _delete(table: str, spec: SetSpec, keys: Iterable[bytes]) -> Iterator[bytes]:
    return delete_range_rows(table, spec, keys) if spec.interval else delete_elements(table, spec, keys)


def _add(table: str, spec: SetSpec, rows: Mapping[bytes, Any]) -> Iterator[bytes]:
    return add_range_rows(table, spec, rows) if spec.interval else add_elements(table, spec, rows)


def _remove_chains(table: str, item: RowChange) -> Iterator[bytes]:
    """Rules first, as chains may lead to each other. A chain that only changes stays, elements lead to it."""
    for name in (*item.remove, *item.change):
        yield flush_chain(table, name)
    for name in item.remove:
        yield delete_chain(table, name)


def _add_chains(schema: Schema, item: RowChange) -> Iterator[bytes]:
    for name in item.add:
        yield add_chain(schema.table, name)
    for name, rules in {**item.change, **item.add}.items():
        for rule in rules:
            yield add_rule(schema.table, name, schema.instructions(rule), rule)
