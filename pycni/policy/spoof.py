"""Pods held to their own addresses: the nftables table of ``spoof_rules`` kept by the pods of this node.

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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.policy.base import Denied, LocalPod
from pycni.policy.spoof_rules import CHAINS, SETS, TABLE, TABLE_ROW, Row, device_of, generation, rows, schema
from pycni.reconcile.delta import Delta, diff
from pycni.wire.nftmsg import NFPROTO_BRIDGE

log = logging.getLogger("pycni.policy")

_Tables = dict[str, dict[Any, Any]]


def missing() -> str:
    """What this kernel lacks for the guard, in one line; "" when nothing. Changes nothing."""
    try:
        guard = Guard()
    except KernelError as error:
        return f"no nf_tables in this kernel: {error}"
    try:
        found = guard._table.probe(("iif in pods then accept",))  # noqa: SLF001
        return (
            f"no bridge family in this kernel's nf_tables (CONFIG_NF_TABLES_BRIDGE): {found}" if found else ""
        )
    finally:
        guard.close()


class Guard:
    """The table in the network namespace of the thread that makes this. Any thread."""

    def __init__(self) -> None:
        """Open a socket. Raises KernelError when the kernel has no nf_tables."""
        self._table = NftTable(schema(), NFPROTO_BRIDGE)
        self._lock = threading.Lock()
        self._rows: dict[str, frozenset[Row]] = {}
        """By device: what the kernel should hold."""
        self._admitted: set[str] = set()
        """Devices that stay until they are gone, whoever does not list them."""
        self._known = False
        """Whether the kernel holds it, as far as we know."""

    def apply(self, pods: Sequence[LocalPod]) -> int:
        """Check these pods and those admitted and not gone since, no others; says how many rows that changed.

        Raises KernelError; nothing changed then, and the next call makes up for it.
        """
        with self._lock:
            kept = {ifname: own for ifname, own in self._rows.items() if ifname in self._admitted}
            self._rows = kept | {pod.ifname: rows(pod) for pod in pods if pod.ifname not in kept}
            return self._whole()

    def admit(self, pod: LocalPod) -> int:
        """Check a pod from its first packet on; its device need not exist yet. Raises KernelError as ``apply`` does."""
        with self._lock:
            self._admitted.add(pod.ifname)
            return self._change(pod.ifname, rows(pod))

    def gone(self, ifname: str) -> int:
        """Forget a pod that is cut off, by its device; an unknown one is fine. Raises KernelError as ``apply`` does."""
        with self._lock:
            self._admitted.discard(ifname)
            return self._change(ifname, frozenset())

    def denied(self) -> Sequence[Denied]:
        """What has been refused, by reason. Raises KernelError."""
        with self._lock:
            found = [(item.comment.split(" ", 2), item) for item in self._table.rule_counts()]
        return [Denied(words[2], words[1], item.packets, item.bytes) for words, item in found]

    def devices(self) -> frozenset[str]:
        """Devices of pods that the kernel checks now. Raises KernelError."""
        with self._lock:
            return frozenset(map(device_of, self._table.read()["pods"]))

    def remove(self) -> list[str]:
        """Take the table out of the kernel: pods send what they like. Says what went. Raises KernelError."""
        with self._lock:
            self._known = False
            return [f"table bridge {TABLE}"] if self._table.remove() else []

    def close(self) -> None:
        """Close the socket; the kernel goes on checking."""
        with self._lock:
            self._table.close()

    def _change(self, ifname: str, wanted: frozenset[Row]) -> int:
        if not self._known and not self._rows:
            self._rows = _by_device(self._table.read())
        before = self._rows.get(ifname, frozenset())
        if wanted:
            self._rows[ifname] = wanted
        else:
            self._rows.pop(ifname, None)
        if not self._known:
            return self._whole()
        changes = _delta(wanted - before, before - wanted)
        if not changes:
            return 0
        try:
            self._commit(changes)
        except KernelError as error:
            if error.errno not in {errno.ENOENT, errno.EEXIST}:
                raise
            log.warning("table bridge %s is not as it was left: putting it back", TABLE)
            return self._whole()
        return len(wanted ^ before)

    def _whole(self) -> int:
        """Bring the kernel to what it should hold, whatever it holds."""
        self._known = False
        actual = self._table.read()
        desired: _Tables = {
            TABLE_ROW: {"generation": generation()},
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
        self._known = True
        return sum(delta.size for delta in changes.values())

    def _commit(self, changes: Mapping[str, Delta[Any, Any]]) -> None:
        self._known = False
        self._table.apply(changes)
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
