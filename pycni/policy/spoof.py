"""Pods held to their own addresses: the tables of ``spoof_rules`` and ``spoof_legs`` kept by the pods of this node.

Life: the agent makes one when it enforces policies, in the node's namespace, and gives it all pods on record before
CNI is served (``apply``): what is in the kernel is read back and only what differs is changed, in one transaction, so
a restart opens nothing. ``admit`` adds a pod before its device exists, so that its first packet is checked; ``gone``
takes it away when it is cut off. What somebody else took away comes back with the next call. All methods block, for
well under a millisecond unless they find damage, and may be called by any thread.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.policy.base import Denied, LocalPod
from pycni.policy.spoof_legs import on_legs
from pycni.policy.spoof_rules import CHAINS, SETS, TABLE_ROW, Layout, Row, device_of, lines, on_bridges, rows
from pycni.reconcile.delta import Delta, diff
from pycni.wire.nftmsg import NFPROTO_BRIDGE, NFPROTO_INET

log = logging.getLogger("pycni.policy")

_FAMILIES = {NFPROTO_BRIDGE: "bridge", NFPROTO_INET: "inet"}
_Tables = dict[str, dict[Any, Any]]


def missing() -> str:
    """What this kernel lacks for the guard, in one line; "" when nothing. Changes nothing."""
    try:
        table = NftTable(on_bridges().schema(), NFPROTO_BRIDGE)
    except KernelError as error:
        return f"no nf_tables in this kernel: {error}"
    try:
        found = table.probe(("iif in pods then accept",))
        return (
            f"no bridge family in this kernel's nf_tables (CONFIG_NF_TABLES_BRIDGE): {found}" if found else ""
        )
    finally:
        table.close()


class Guard:
    """The tables in the network namespace of the thread that makes this. Any thread."""

    def __init__(self) -> None:
        """Open sockets. Raises KernelError when the kernel has no nf_tables."""
        self._lock = threading.Lock()
        with ExitStack() as made:
            self._bridged = _Checks(on_bridges(), NFPROTO_BRIDGE, standing=True)
            made.callback(self._bridged.close)
            self._routed = _Checks(on_legs(), NFPROTO_INET, standing=False)
            made.pop_all()
        self._both = (self._bridged, self._routed)

    def apply(self, pods: Sequence[LocalPod]) -> int:
        """Check these pods and those admitted and not gone since, no others; says how many rows that changed.

        Raises KernelError; the next call makes up for what did not change then.
        """
        with self._lock:
            return sum(
                checks.apply([pod for pod in pods if self._of(pod) is checks]) for checks in self._both
            )

    def admit(self, pod: LocalPod) -> int:
        """Check a pod from its first packet on; its device need not exist yet. Raises KernelError as ``apply`` does."""
        with self._lock:
            return self._of(pod).admit(pod)

    def gone(self, ifname: str) -> int:
        """Forget a pod that is cut off, by its device; an unknown one is fine. Raises KernelError as ``apply`` does."""
        with self._lock:
            return sum(checks.gone(ifname) for checks in self._both)

    def denied(self) -> Sequence[Denied]:
        """What has been refused, by reason. Raises KernelError."""
        counts: dict[tuple[str, str], Counter[str]] = {}
        with self._lock:
            for item in [item for checks in self._both for item in checks.table.rule_counts()]:
                _, direction, reason = item.comment.split(" ", 2)
                counts.setdefault((reason, direction), Counter()).update(
                    packets=item.packets, bytes=item.bytes
                )
        return [Denied(*key, found["packets"], found["bytes"]) for key, found in counts.items()]

    def sides(self) -> Sequence[tuple[str, Sequence[str], Sequence[str]]]:
        """By table: name, what it is to hold, what it holds, as lines (``pycnictl dump``). Raises KernelError."""
        with self._lock:
            return [(checks.name, *checks.sides()) for checks in self._both]

    def devices(self) -> frozenset[str]:
        """Devices of pods that the kernel checks now. Raises KernelError."""
        with self._lock:
            return frozenset(device_of(key) for checks in self._both for key in checks.table.read()["pods"])

    @property
    def routed(self) -> bool:
        """Whether there are pods on links of their own, and a table for them."""
        return self._routed.there

    def remove(self) -> list[str]:
        """Take the tables out of the kernel: pods send what they like. Says what went. Raises KernelError."""
        with self._lock:
            return [checks.name for checks in self._both if checks.remove()]

    def close(self) -> None:
        """Close the sockets; the kernel goes on checking."""
        with self._lock:
            for checks in self._both:
                checks.close()

    def _of(self, pod: LocalPod) -> _Checks:
        return self._routed if pod.routed else self._bridged


class _Checks:
    """One of the tables. One thread at a time."""

    def __init__(self, layout: Layout, family: int, *, standing: bool) -> None:
        """``standing``: the table is there without pods too. Raises KernelError."""
        self.name = f"table {_FAMILIES[family]} {layout.table}"
        self.table = NftTable(layout.schema(), family)
        self.there = False
        """Whether the kernel should hold it."""
        self._standing = standing
        self._rows: dict[str, frozenset[Row]] = {}
        """By device: what the kernel should hold."""
        self._admitted: set[str] = set()
        """Devices that stay until they are gone, whoever does not list them."""
        self._known = False
        """Whether the kernel holds it, as far as we know."""

    def apply(self, pods: Sequence[LocalPod]) -> int:
        kept = {ifname: own for ifname, own in self._rows.items() if ifname in self._admitted}
        self._rows = kept | {pod.ifname: rows(pod) for pod in pods if pod.ifname not in kept}
        return self._whole()

    def admit(self, pod: LocalPod) -> int:
        self._admitted.add(pod.ifname)
        return self._change(pod.ifname, rows(pod))

    def gone(self, ifname: str) -> int:
        self._admitted.discard(ifname)
        return self._change(ifname, frozenset())

    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        there = self.table.read()
        standing = bool(self._rows) or self._standing
        generation = self.table.schema.generation if standing else None
        wanted = [row for own in self._rows.values() for row in own]
        found = [(name, key) for name in SETS for key in there[name]]
        return (
            lines(self.name, generation, wanted),
            lines(self.name, there[TABLE_ROW].get("generation"), found),
        )

    def remove(self) -> bool:
        self._known = self.there = False
        return self.table.remove()

    def close(self) -> None:
        self.table.close()

    def _change(self, ifname: str, wanted: frozenset[Row]) -> int:
        if not self._known and not self._rows:
            self._rows = _by_device(self.table.read())
        before = self._rows.get(ifname, frozenset())
        if wanted:
            self._rows[ifname] = wanted
        else:
            self._rows.pop(ifname, None)
        if not self._known or (wanted and not self.there):
            return self._whole()
        changes = _delta(wanted - before, before - wanted)
        if not changes:
            return 0
        try:
            self._commit(changes)
        except KernelError as error:
            if error.errno not in {errno.ENOENT, errno.EEXIST}:
                raise
            log.warning("%s is not as it was left: putting it back", self.name)
            return self._whole()
        return len(wanted ^ before)

    def _whole(self) -> int:
        """Bring the kernel to what it should hold, whatever it holds."""
        self._known = False
        if not self._rows and not self._standing:
            changed = int(self.table.remove())
            self.there, self._known = False, True
            return changed
        actual = self.table.read()
        desired: _Tables = {
            TABLE_ROW: {"generation": self.table.schema.generation},
            CHAINS: {},
            **{name: {} for name in SETS},
        }
        for own in self._rows.values():
            for name, key in own:
                desired[name][key] = None
        changes = {name: diff(table, actual[name]) for name, table in desired.items()}
        changes = {name: delta for name, delta in changes.items() if not delta.empty}
        if changes:
            self._commit(changes)
        self.there = self._known = True
        return sum(delta.size for delta in changes.values())

    def _commit(self, changes: Mapping[str, Delta[Any, Any]]) -> None:
        self._known = False
        self.table.apply(changes)
        self._known = True


def _by_device(tables: Mapping[str, Mapping[Any, Any]]) -> dict[str, frozenset[Row]]:
    found: dict[str, set[Row]] = {}
    for name in SETS:
        for key in tables[name]:
            found.setdefault(device_of(key), set()).add((name, key))
    return {device: frozenset(own) for device, own in found.items()}


def _delta(add: Iterable[Row], remove: Iterable[Row]) -> dict[str, Delta[Any, Any]]:
    """Rows that come and go, by set, in the sets' order."""
    parts: dict[str, tuple[dict[bytes, None], dict[bytes, None]]] = {name: ({}, {}) for name in SETS}
    for which, some in enumerate((add, remove)):
        for name, key in some:
            parts[name][which][key] = None
    return {name: Delta(come, {}, go) for name, (come, go) in parts.items() if come or go}
