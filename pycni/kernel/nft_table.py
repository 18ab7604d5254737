"""A table of nf_tables kept by rows: read back once, then changed in one transaction each, never listed.

Life: ``read`` finds the table of an earlier life by its generation and gives its rows; ``apply`` carries out
differences; ``settle`` removes what packets under way may still have needed then. When the table is missing or of
another generation, ``read`` gives nothing, and the first ``apply`` replaces it in the transaction that fills the new
one; memories that packets wrote are carried over. All methods block.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pycni.errors import KernelError
from pycni.kernel.netlink import DUMP_TRIES
from pycni.kernel.nft_elements import NftSocket
from pycni.reconcile.delta import Delta
from pycni.wire.netlink import MalformedError
from pycni.wire.nftmsg import (
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_NETDEV,
    RuleCount,
    add_table,
    decode_chain,
    decode_rule,
    decode_rule_count,
    decode_table_comment,
    delete_table,
    get_chains,
    get_rules,
    get_table,
)
from pycni.wire.nftrange import decode_ranges
from pycni.wire.nftset import (
    Count,
    Remembered,
    SetSpec,
    Value,
    decode_counts,
    decode_elements,
    decode_remembered,
    get_element,
    get_elements,
)
from pycni.wire.nfttable import Retired, RowChange, Schema, Steps, build, change, steps

_GENERATION = "generation"
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_NETDEV: "netdev", NFPROTO_BRIDGE: "bridge"}
GRACE_S = 0.5
"""More than a packet is under way in a processor that has to wait for its machine."""
_Raw = TypeVar("_Raw")
_Decoded = TypeVar("_Decoded")
_Item = TypeVar("_Item")


class NftTable:
    """One table in the namespace this was made in. One thread at a time."""

    def __init__(self, schema: Schema, family: int = NFPROTO_INET) -> None:
        """Open a socket. Raises KernelError when the kernel has no nf_tables."""
        self.schema = schema
        self._family = family
        self._retired = Retired(schema, GRACE_S)
        try:
            self._sock = NftSocket(family)
        except OSError as exc:
            raise KernelError(
                exc.errno or errno.EIO, "open nftables", detail="is it in this kernel?"
            ) from exc

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def generation(self) -> str | None:
        """The comment of the table in the kernel; None when there is no table."""
        try:
            (reply, *_) = self._sock.request(get_table(self.schema.table), "get table", self._name())
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return decode_table_comment(reply.payload)

    def read(self) -> dict[str, dict[Any, Any]]:
        """The rows in the kernel by row table; none when the table is of another generation. Raises KernelError.

        Rows that ``settle`` is going to remove are left out.
        """
        schema = self.schema
        tables: dict[str, dict[Any, Any]] = {
            name: {} for name in (schema.table_row, schema.chains, *schema.sets)
        }
        if self.generation() != schema.generation:
            return tables
        chains = self._chains()
        for name, rules in schema.fixed_chains.items():
            if chains.pop(name, None) != rules:
                return tables
        tables[schema.chains].update(chains)
        try:
            for name, spec in schema.sets.items():
                tables[name].update(self.elements(spec))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return {name: {} for name in tables}
        tables[schema.table_row][_GENERATION] = schema.generation
        self._retired.without(tables)
        return tables

    def apply(self, changes: Mapping[str, Delta[Any, Any]], *, check: bool = False) -> None:
        """Carry out differences by row table, in dependency order. Raises KernelError.

        It is one transaction, but for what ``wire/nfttable.steps`` says. ``check``: only find out whether the kernel
        would take all of it.
        """
        new = self.schema.table_row in changes
        rows = [
            RowChange(name, delta.remove, delta.add, delta.change)
            for name, delta in changes.items()
            if name != self.schema.table_row
        ]
        building = [*build(self.schema, self._memories())] if new else []
        if new and not check:
            self._retired.forget()
        planned, retired = (
            Steps([rows], []) if check or new else steps(self.schema, self._retired.wanted(rows))
        )
        for number, step in enumerate(planned):
            messages = [*building, *change(self.schema, step)]
            try:
                self._sock.commit(messages, "change table", self._name(), check=check)
            except KernelError:
                if number == 1:
                    # Nothing leads to what came first: it goes again.
                    back = [RowChange(item.name, tuple(item.add)) for item in planned[0]]
                    self._sock.commit([*change(self.schema, back)], "take back", self._name())
                raise
        self._retired.take(retired, time.monotonic())

    def settle(self) -> float | None:
        """Remove what nothing leads to any more; seconds until there is more of it. Raises KernelError."""
        rows = self._retired.due(time.monotonic())
        if rows:
            self._sock.commit([*change(self.schema, rows)], "change table", self._name())
        return self._retired.wait_s(time.monotonic())

    def elements(self, spec: SetSpec) -> dict[bytes, Value]:
        """All elements of a set. Raises KernelError (ENOENT: no such set)."""
        if spec.interval:
            return _checked(decode_ranges, spec, self._dump(get_elements(self.schema.table, spec), spec.name))
        return self._each_once(spec, lambda reply: _checked(decode_elements, spec, reply))

    def element(self, spec: SetSpec, key: bytes) -> Value:
        """The value of one element. Raises KernelError (ENOENT: it is not there)."""
        about = f"{self._name()} {spec.name}"
        (reply, *_) = self._sock.request(get_element(self.schema.table, spec, key), "get element", about)
        return dict(_checked(decode_elements, spec, reply.payload))[key]

    def counts(self, spec: SetSpec) -> dict[bytes, Count]:
        """The counters of a set's elements. Raises KernelError."""
        return self._each_once(spec, decode_counts)

    def memory(self, spec: SetSpec) -> list[Remembered]:
        """What packets wrote into a map; nothing when there is no such map. Raises KernelError."""
        try:
            replies = self._dump(get_elements(self.schema.table, spec), spec.name)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        return [item for reply in replies for item in decode_remembered(reply)]

    def remove(self) -> bool:
        """Delete the table; returns whether there was one. Raises KernelError."""
        there = self.generation() is not None
        self._retired.forget()
        if there:
            messages = [add_table(self.schema.table), delete_table(self.schema.table)]
            self._sock.commit(messages, "delete table", self._name())
        return there

    def rules(self, chain: str) -> tuple[str, ...]:
        """The words of a chain's rules; none when there is no such chain. Raises KernelError."""
        try:
            found = self._dump(get_rules(self.schema.table, chain), f"chain {chain}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return ()
            raise
        return tuple(decode_rule(reply).comment for reply in found)

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

    def probe(self, rules: Sequence[str]) -> str:
        """Why the kernel would not take the table with a chain of such rules; "" when it would. Changes nothing."""
        chain = RowChange(self.schema.chains, (), {"probe": tuple(rules)})
        messages = [*build(self.schema, {}), *change(self.schema, [chain])]
        try:
            self._sock.commit(messages, "try table", self._name(), check=True)
        except KernelError as error:
            return str(error)
        return ""

    def _memories(self) -> dict[str, list[Remembered]]:
        """What packets wrote, as far as the kernel still has it."""
        return {spec.name: self.memory(spec) for spec in self.schema.kept}

    def _chains(self) -> dict[str, tuple[str, ...]]:
        """All chains of the table with their rules' comments."""
        name = self.schema.table
        rules: dict[str, list[str]] = {}
        for reply in self._dump(get_chains(), "chains"):
            table, chain = decode_chain(reply)
            if table == name:
                rules[chain] = []
        for reply in self._dump(get_rules(name), "rules"):
            found = decode_rule(reply)
            rules.setdefault(found.chain, []).append(found.comment)
        return {chain: tuple(comments) for chain, comments in rules.items()}

    def _dump(self, message: bytes, what: str) -> list[bytes]:
        found = self._sock.dump(message, "list", f"{self._name()} {what}")
        return [reply.payload for reply in found]

    def _each_once(
        self, spec: SetSpec, decode: Callable[[bytes], list[tuple[bytes, _Item]]]
    ) -> dict[bytes, _Item]:
        """A hash set's elements, read again while one comes twice.

        The kernel counts its way through the hash table from one part of a dump to the next, and does not say so
        when the table was made larger in between, some milliseconds after many elements came (nft_rhash_walk): for
        each element that comes twice another one is missed. Raises KernelError; EINTR when that goes on.
        """
        for _ in range(DUMP_TRIES):
            parts = [decode(reply) for reply in self._dump(get_elements(self.schema.table, spec), spec.name)]
            found = {key: item for part in parts for key, item in part}
            if len(found) == sum(map(len, parts)):
                return found
        raise KernelError(errno.EINTR, "list", f"{self._name()} {spec.name}", "elements keep coming twice")

    def _name(self) -> str:
        return f"{_FAMILIES[self._family]} {self.schema.table}"


def _checked(decode: Callable[[SetSpec, _Raw], _Decoded], spec: SetSpec, payload: _Raw) -> _Decoded:
    try:
        return decode(spec, payload)
    except MalformedError as exc:
        raise KernelError(errno.EBADMSG, "read elements", spec.name, str(exc)) from exc
