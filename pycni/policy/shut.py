"""Addresses that are shut at once and whatever policies say, on a socket and in a table of their own.

For pods that must not send or receive while their policies are not in the kernel: they came before all policies had
been listed, while a long transaction was under way, or the kernel refuses their rows. What passes nevertheless is what
always does: established connections, neighbour discovery, and what the node itself sends (docs/policy.md, step 1).

    table inet pycni_shut:  two base chains just before those of ``inet pycni_policy``, sets closed_<direction><family>

Life: the table is there only while something is shut, so that it costs no packet anything. It outlives the agent; the
next one reads it back and opens what it has programmed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.model.family import show
from pycni.policy.nft.layout import HOOKS, NEIGHBOURS, SIDES, VERSIONS, denial, version_of
from pycni.policy.nft.rules import instructions
from pycni.reconcile.delta import Delta
from pycni.wire.nftmsg import Hook
from pycni.wire.nftset import IPV4, IPV6, SetSpec
from pycni.wire.nfttable import Schema, fixed_messages

log = logging.getLogger("pycni.policy")

TABLE = "pycni_shut"
GENERATION = "pycni shut 1"
REASON = "pods without their policies yet"
"""As denials name it."""
_ROW, _CHAINS = "table", "chains"
Rows = Mapping[str, set[bytes]]
"""Addresses by the name of the set that has them; {}: there is no table."""


class Shut:
    """The table of the namespace this was made in. Any thread; each call is one transaction or none."""

    def __init__(self) -> None:
        """Open a socket. Raises KernelError."""
        self._table = NftTable(_schema())
        self._lock = threading.Lock()
        self._wanted: set[bytes] = set()
        self._actual: Rows | None = None
        """None: not known. An empty one: there is no table."""

    def held(self) -> frozenset[bytes]:
        """Addresses that are shut, also by an earlier agent. Raises KernelError."""
        with self._lock:
            if self._actual is None:
                self._wanted.update(*self._read().values())
            return frozenset(self._wanted)

    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        """What the table is to hold and what it holds, line by line (``pycnictl dump``). Raises KernelError."""
        with self._lock:
            tables = self._table.read()
            unknown = self._actual is None
            wanted = (
                {key for name in self._table.schema.sets for key in tables[name]} if unknown else self._wanted
            )
        rows = [(name, item) for name, items in _rows(wanted).items() for item in items]
        there = [(name, item) for name in self._table.schema.sets for item in tables[name]]
        return _lines(rows, bool(wanted)), _lines(there, bool(tables[_ROW]))

    def add(self, addresses: Iterable[bytes]) -> None:
        """Shut addresses; they are when this returns. Raises KernelError."""
        with self._lock:
            self._wanted.update(addresses)
            self._bring()

    def discard(self, addresses: Iterable[bytes]) -> None:
        """Open addresses. Raises KernelError; they may still be shut then."""
        with self._lock:
            self._wanted.difference_update(addresses)
            self._bring()

    def repair(self) -> None:
        """Look at the kernel again. Raises KernelError."""
        with self._lock:
            self._actual = None
            self._bring()

    def remove(self) -> list[str]:
        """Open all; says what went. Raises KernelError."""
        with self._lock:
            self._wanted.clear()
            self._actual = None
            return [f"table inet {TABLE}"] if self._table.remove() else []

    def close(self) -> None:
        """Release the socket; the kernel keeps what is shut."""
        with self._lock:
            self._table.close()

    def _read(self) -> Rows:
        tables = self._table.read()
        return {name: set(tables[name]) for name in self._table.schema.sets} if tables[_ROW] else {}

    def _bring(self) -> None:
        """Have the kernel hold what is wanted. What somebody else took away meanwhile is put back."""
        before, self._actual = self._actual, None
        if before is not None:
            try:
                self._change(before)
            except KernelError as error:
                log.info("%s is looked at again: %s", TABLE, error)
                before = None
        if before is None:
            self._change(self._read())
        self._actual = _rows(self._wanted)

    def _change(self, before: Rows) -> None:
        wanted = _rows(self._wanted)
        if not wanted:
            self._table.remove()
        elif wanted != before:
            nothing: dict[str, str] = {}
            changes: dict[str, Delta[Any, Any]] = {}
            if not before:
                changes[_ROW] = Delta({"generation": GENERATION}, nothing, nothing)
            self._table.apply({**changes, **_changes(wanted, before)})


def _lines(rows: Iterable[tuple[str, bytes]], there: bool) -> list[str]:
    names = [f"element inet {TABLE} {name} {{ {show(item)} }}" for name, item in rows]
    return [f'table inet {TABLE} comment "{GENERATION}"', *sorted(names)] if there else []


def _rows(addresses: Iterable[bytes]) -> Rows:
    """What the sets hold for these; {} for none."""
    found: dict[str, set[bytes]] = {}
    for item in addresses:
        for side in SIDES.values():
            found.setdefault(f"closed_{side}{version_of(item)}", set()).add(item)
    every = [f"closed_{side}{version}" for side in SIDES.values() for version in VERSIONS]
    return {name: found.get(name, set()) for name in every} if found else {}


def _changes(wanted: Rows, before: Rows) -> dict[str, Delta[bytes, None]]:
    found = {}
    for name, rows in wanted.items():
        there = before.get(name, set())
        if rows != there:
            found[name] = Delta(dict.fromkeys(rows - there), {}, dict.fromkeys(there - rows))
    return found


def _schema() -> Schema:
    kinds = {4: IPV4, 6: IPV6}
    names = {f"closed_{side}{version}": kinds[version] for side in SIDES.values() for version in VERSIONS}
    sets = {name: SetSpec(name, (kind,)) for name, kind in names.items()}
    chains = _chains()
    hooks = {name: Hook(hook.kind, hook.number, hook.priority - 2) for name, hook in HOOKS.items()}
    fixed = fixed_messages(TABLE, sets.values(), chains, hooks, instructions)
    return Schema(TABLE, GENERATION, _ROW, _CHAINS, sets, (), tuple(fixed), chains, instructions)


def _chains() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for side in SIDES.values():
        found[f"deny-{side}"] = denial(side, [REASON])
        for version in VERSIONS:
            found[f"{side}{version}"] = (f"closed {version} {side} goto deny-{side}",)
        neighbours = [f"neighbours {first} {last} accept" for first, last in NEIGHBOURS]
        enter = [f"family {version} goto {side}{version}" for version in VERSIONS]
        found[side] = ("established accept", *neighbours, "local accept", *enter)
    return found
