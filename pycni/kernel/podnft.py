"""The pods' nft tables: elements added with ADD, removed with DEL, repaired from the recorded attachments.

Life of an element: compiled from a plan (``attach/tables``), added in one transaction with the pod's veth as comment,
removed when the pod is cut off. What is in the kernel is read once, when the tables are first used, so that a
restarted agent knows the ports taken and nothing is ever flushed; after that this process is the only writer.
When somebody else flushes the ruleset, the next change or ``resync`` puts everything back.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence

from pycni.attach.plan import AttachPlan
from pycni.attach.tables import (
    PODS,
    SPOOF,
    Constants,
    Element,
    add_text,
    clash,
    constants,
    delete_text,
    elements,
    mapped_port,
    parse_constants,
    parse_elements,
    pods_skeleton,
    spoof_skeleton,
)
from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.kernel.nft import Nft

log = logging.getLogger("pycni.attach")

Table = tuple[str, str]
Rows = tuple[Element, ...]
Port = tuple[str, str]
"""IP version and ``protocol . port``."""
_SKELETONS = {PODS: pods_skeleton, SPOOF: spoof_skeleton}


class PodTables:
    """Rows of all pods in the nft tables. Any thread; one transaction at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nft: Nft | None = None
        self._rows: dict[str, Rows] = {}
        """Rows by the pod's veth."""
        self._taken: dict[Port, dict[Element, str]] = {}
        """Rows that map a port of the node, with their veths."""
        self._constants = Constants()
        self._present: set[Table] = set()
        """Tables known to exist."""

    def close(self) -> None:
        """Free the nft context."""
        with self._lock:
            if self._nft is not None:
                self._nft.close()
                self._nft = None

    def claim(self, plan: AttachPlan) -> Rows:
        """Add a pod's rows; returns them. Raises KernelError: EADDRINUSE when another pod has one of the ports."""
        if not plan.has_tables:
            return ()
        rows = elements(plan)
        with self._lock:
            nft = self._open()
            self._refuse_clashes(plan.host, rows)
            known = self._constants.union(constants(plan))
            old = self._rows.get(plan.host, ())
            change = [delete_text(self._own(plan.host, set(old) - set(rows)))]
            change.append(add_text((row for row in rows if row not in old), plan.host))
            tables = {row.table for row in rows}
            if known != self._constants and PODS in self._present:
                change.insert(0, known.text())
            whole = {**self._rows, plan.host: rows}
            if tables <= self._present:
                try:
                    nft.run("\n".join(change))
                except KernelError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    log.warning("nft tables of pods are gone: putting them back with all elements")
                    nft.run(self._whole(tables, known, whole))
            else:
                nft.run(self._whole(tables, known, whole))
            self._present |= tables
            self._drop(plan.host)
            self._rows[plan.host] = rows
            self._take(plan.host, rows)
            self._constants = known
        return rows

    def release(self, host: str) -> Rows:
        """Remove the rows of a pod and return them; none is success. Raises KernelError."""
        with self._lock:
            try:
                nft = self._open()
            except KernelError as error:
                if error.errno == errno.EPROTONOSUPPORT:
                    return ()
                raise
            rows = self._rows.get(host, ())
            if rows:
                self._delete(nft, self._own(host, rows))
                self._drop(host)
        return rows

    def resync(self, plans: Iterable[AttachPlan], alive: Collection[str]) -> list[str]:
        """Make the tables hold exactly the rows of these pods; returns what was missing or too much, in words.

        Rows of pods that are not among the plans go unless their veth is in ``alive`` (it is not for the tables
        to decide that a recorded attachment is lost).
        """
        with self._lock:
            nft = self._open()
            wanted = {plan.host: elements(plan) for plan in plans if plan.has_tables}
            found = self._read(nft)
            kept = {row: host for row, host in found.items() if host in alive and host not in wanted}
            for row, host in kept.items():
                wanted[host] = (*wanted.get(host, ()), row)
            known = Constants()
            for plan in plans:
                known = known.union(constants(plan))
            if kept:
                known = known.union(self._constants)
            target = {row: host for host, rows in wanted.items() for row in rows}
            lost = [row for row in target if row not in found]
            stale = [row for row in found if row not in target]
            self._delete(nft, stale)
            tables = {row.table for row in target}
            if lost or known != self._constants:
                nft.run(self._whole(tables, known, wanted))
            self._present |= tables
            self._set_rows(wanted)
            self._constants = known
        return [f"missing {row.text()}" for row in lost] + [f"left over {row.text()}" for row in stale]

    def differences(self, plan: AttachPlan) -> list[str]:
        """Rows of the plan that the kernel does not have, in words."""
        if not plan.has_tables:
            return []
        with self._lock:
            found = self._read(self._open())
        return [f"nft element {row.text()} is missing" for row in elements(plan) if row not in found]

    def sides(self, plans: Iterable[AttachPlan]) -> tuple[list[str], list[str]]:
        """Elements the tables are to hold for these pods, and those they hold, as lines. Raises KernelError."""
        wanted = {_line(row) for plan in plans if plan.has_tables for row in elements(plan)}
        with self._lock:
            try:
                found = self._read(self._open())
            except KernelError as error:
                if error.errno == errno.EPROTONOSUPPORT and not wanted:
                    return [], []
                raise
        return sorted(wanted), sorted(map(_line, found))

    def _open(self) -> Nft:
        """The context; with its first use what the kernel holds is learnt.

        Raises KernelError: EPROTONOSUPPORT on a kernel without nftables (libnftables would end the process).
        """
        if self._nft is None:
            try:
                NetlinkSocket(NETLINK_NETFILTER).close()
            except OSError as exc:
                raise KernelError(
                    exc.errno or errno.EIO, "open nftables", "", "is it in this kernel?"
                ) from exc
            nft = Nft()
            try:
                rows: dict[str, list[Element]] = {}
                for row, host in self._read(nft).items():
                    rows.setdefault(host, []).append(row)
            except BaseException:
                nft.close()
                raise
            self._nft = nft
            self._set_rows({host: tuple(own) for host, own in rows.items()})
        return self._nft

    def _read(self, nft: Nft) -> dict[Element, str]:
        """All elements of pods in the kernel with their veths; notes which tables exist and the constants."""
        found: dict[Element, str] = {}
        self._present = set()
        for table in _SKELETONS:
            try:
                listing = nft.query(f"list table {' '.join(table)}")
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            self._present.add(table)
            found |= parse_elements(table, listing)
            if table == PODS:
                self._constants = parse_constants(listing)
        return found

    def _set_rows(self, rows: Mapping[str, Rows]) -> None:
        """Replace what is known of all pods."""
        self._rows = dict(rows)
        self._taken = {}
        for host, own in rows.items():
            self._take(host, own)

    def _take(self, host: str, rows: Rows) -> None:
        for row in rows:
            port = mapped_port(row)
            if port is not None:
                self._taken.setdefault(port, {})[row] = host

    def _drop(self, host: str) -> None:
        for row in self._rows.pop(host, ()):
            port = mapped_port(row)
            taken = self._taken.get(port, {}) if port is not None else {}
            if taken.get(row) == host:
                del taken[row]

    def _refuse_clashes(self, host: str, rows: Rows) -> None:
        for row in rows:
            port = mapped_port(row)
            for other, owner in self._taken.get(port, {}).items() if port is not None else ():
                if owner != host and clash(row, other):
                    reason = f"{other.key} leads to {other.data} ({owner}) already"
                    raise KernelError(errno.EADDRINUSE, "map host port", f"{row.key} to {row.data}", reason)

    def _own(self, host: str, rows: Iterable[Element]) -> list[Element]:
        """The rows no other pod has too (only ports whose replies need the node can be shared)."""
        return [
            row
            for row in rows
            if not row.set.startswith("reply_")
            or not any(row in theirs for owner, theirs in self._rows.items() if owner != host)
        ]

    def _whole(self, tables: Collection[Table], known: Constants, rows: dict[str, Rows]) -> str:
        """Tables with everything in them; what is there already stays."""
        parts = [_SKELETONS[table]() for table in tables]
        if PODS in tables:
            parts.append(known.text())
        parts += [add_text((row for row in own if row.table in tables), host) for host, own in rows.items()]
        return "\n".join(parts)

    def _delete(self, nft: Nft, rows: Sequence[Element]) -> None:
        """Delete elements; those that are gone are fine, and so are gone tables."""
        if not rows:
            return
        try:
            nft.run(delete_text(rows))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            if len(rows) > 1:
                for row in rows:
                    self._delete(nft, (row,))


def _line(row: Element) -> str:
    """As ``nft add`` takes it."""
    return f"element {row.table[0]} {row.text()}"
