"""The nftables data plane's hand in the kernel: rows to transactions, counters and targets back.

Life: see ``pycni.kernel.nft_table``, which does the work for any table kept by rows; this module knows which.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.model.family import Family
from pycni.model.service import FrontendKey, NodeFacts, Target
from pycni.wire.nftset import Value
from pycni_proxy.base import Changes, Counters, Tables, TargetState
from pycni_proxy.nft.layout import (
    TABLE,
    TARGETS,
    VERDICT_MAP,
    VERSIONS,
    frontend_bytes,
    frontend_key,
    id_place,
    index,
    named_by,
    row_sets,
    shard_of,
    target_parts,
)
from pycni_proxy.nft.rules import target_rule
from pycni_proxy.nft.schema import schema

_TRIED = (
    "mark",
    "node goto refuse",
    "recall 4 0 vip 1",
    "forget 4 0 vip",
    "learn 4 0 port source-port 2 0 1",
    "dnat 4 0 vip turn 2 0",
)
"""Rules with every instruction that only services need."""


class NftDriver:
    """See ``base.Driver``. One thread at a time."""

    def __init__(self, facts: NodeFacts) -> None:
        """Open a socket in the calling thread's network namespace. Raises KernelError."""
        self._facts = facts
        self._table = NftTable(schema(facts))

    def read(self) -> Tables:
        """See ``base.Driver``. A table of another generation counts as none: it is replaced."""
        return self._table.read()

    def apply(self, changes: Changes) -> None:
        """See ``base.Driver``. What nothing leads to any more goes later, by ``poll``."""
        self._table.apply(dict(changes))

    def counters(self) -> Mapping[FrontendKey, Counters]:
        """See ``base.Driver``: connections; an entry starts anew when its frontend's chain changes."""
        found: dict[FrontendKey, Counters] = {}
        for family in self._facts.families:
            version = VERSIONS[family]
            for raw, count in self._table.counts(row_sets(version)[f"services{version}"]).items():
                found[frontend_key(raw)] = Counters(count.packets)
        return found

    def targets(self, key: FrontendKey) -> Sequence[TargetState]:
        """See ``base.Driver``. Connections are not counted per target."""
        version, where = VERSIONS[key.family], frontend_bytes(key)
        sets = row_sets(version)
        targets = sets[TARGETS[version][shard_of(where)]]
        try:
            named = _data(self._table.element(sets[f"services{version}"], where))
            verdict = self._table.element(VERDICT_MAP, named_by(named))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return ()
            raise
        found: set[tuple[bytes, int]] = set()
        for rule in self._rules_behind(str(verdict)):
            chosen = target_rule(rule)
            for number in () if chosen is None else range(chosen.offset, chosen.offset + chosen.size):
                place = index(number)
                if chosen is not None and chosen.by_id:
                    place = id_place(_data(self._table.element(sets[f"ids{version}"], place + where)))
                found.add(target_parts(_data(self._table.element(targets, place + where))))
        local = self._table.elements(sets[f"hairpin{version}"])
        return [
            TargetState(Target(address, port, address + address in local), 1, -1)
            for address, port in sorted(found)
        ]

    def _rules_behind(self, chain: str) -> list[str]:
        """The rules of a chain and of those it leads to."""
        found, chains = [], [chain]
        for name in chains:
            for rule in self._table.rules(name):
                found.append(rule)
                words = rule.split()
                if len(words) > 1 and words[-2] == "goto" and words[-1] not in chains:
                    chains.append(words[-1])
        return found

    def poll(self) -> float | None:
        """See ``base.Driver``: rows that led to removed targets. (Connections to those live in conntrack.)"""
        return self._table.settle()

    def remove(self) -> list[str]:
        """See ``base.Driver``."""
        return [f"table inet {TABLE}"] if self._table.remove() else []

    def close(self) -> None:
        """See ``base.Driver``."""
        self._table.close()


def probe() -> str:
    """Why the table cannot be made in this kernel; "" when it can. Changes nothing."""
    facts = NodeFacts(name="", families=(Family.V4,))
    try:
        table = NftTable(schema(facts))
    except KernelError as error:
        return f"no nf_tables in this kernel: {error}"
    try:
        return table.probe(_TRIED)
    finally:
        table.close()


def _data(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""
