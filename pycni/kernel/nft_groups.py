"""A table of nf_tables kept by rows, with sets that come and go: what ``nft_table`` does, and those sets too.

Life: as in ``nft_table``. Sets are made before, and go after, the chains that look them up, in the same transaction.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.reconcile.delta import Delta
from pycni.wire.netlink import MalformedError
from pycni.wire.nftgroup import Kinds, add_groups, decode_ranges, decode_set_name, get_sets, remove_groups
from pycni.wire.nftmsg import RuleCount, decode_rule_count, get_rules
from pycni.wire.nftset import decode_elements, get_elements
from pycni.wire.nfttable import RowChange, Schema, build, change

_FIRST_NUMBER = 1 << 16
"""Numbers of sets inside one transaction, behind those of the schema."""


class NftGroupTable(NftTable):
    """One table in the namespace this was made in. One thread at a time."""

    def __init__(self, schema: Schema, kinds: Kinds, groups: str, elements: str) -> None:
        """``groups`` and ``elements``: names of the row tables of such sets and their elements.

        Raises KernelError when the kernel has no nf_tables.
        """
        super().__init__(schema)
        self._kinds = kinds
        self._groups = groups
        self._elements = elements

    def read(self) -> dict[str, dict[Any, Any]]:
        """See ``NftTable.read``; a group's row has the value None, as has an element's."""
        tables = super().read()
        groups: dict[str, None] = {}
        elements: dict[tuple[str, bytes], None] = {}
        tables[self._groups], tables[self._elements] = groups, elements
        if not tables[self.schema.table_row]:
            return tables
        fixed = {spec.name for spec in self.schema.sets.values()}
        for reply in self._dump(get_sets(self.schema.table), "sets"):
            name = decode_set_name(reply)
            if name not in fixed:
                groups[name] = None
        for name in groups:
            elements.update(dict.fromkeys((name, key) for key in self._keys(name)))
        return tables

    def apply(self, changes: Mapping[str, Delta[Any, Any]]) -> None:
        """See ``NftTable.apply``."""
        nothing: Delta[Any, Any] = Delta({}, {}, {})
        groups, elements = changes.get(self._groups, nothing), changes.get(self._elements, nothing)
        rows = [
            RowChange(
                name, [*delta.remove, *delta.change], {**delta.change, **delta.add}, frozenset(delta.change)
            )
            for name, delta in changes.items()
            if name not in {self.schema.table_row, self._groups, self._elements}
        ]
        table = self.schema.table
        messages = [*build(self.schema, {})] if self.schema.table_row in changes else []
        messages += add_groups(table, self._kinds, groups.add, elements.add, _FIRST_NUMBER)
        messages += change(self.schema, rows)
        messages += remove_groups(table, self._kinds, list(groups.remove), elements.remove)
        self._sock.commit(messages, "change table", self._name())

    def rule_counts(self) -> list[RuleCount]:
        """All rules of the table that count, with what they have counted. Raises KernelError."""
        try:
            replies = self._dump(get_rules(self.schema.table), "rules")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found = (decode_rule_count(reply) for reply in replies)
        return [item for item in found if item is not None]

    def _keys(self, name: str) -> list[bytes]:
        try:
            spec = self._kinds(name)
        except ValueError:
            # Somebody else's: a row that nobody desires, so that it goes.
            return []
        replies = self._dump(get_elements(self.schema.table, spec), name)
        if not spec.interval:
            return [key for reply in replies for key in decode_elements(spec, reply)]
        try:
            return decode_ranges(spec, replies)
        except MalformedError as exc:
            raise KernelError(errno.EBADMSG, "read elements", name, str(exc)) from exc
