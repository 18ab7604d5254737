"""Policies inside one pod: the tables of ``inside_layout`` kept by rows, like the node's own.

Life: ADD makes an ``Inside`` before the pod has a device; ``shut`` puts the table there with the pod's addresses
closed; ``bring`` programs the part of the node's view that concerns them, in one transaction; ``guard`` closes the way
past the table once the device is there. Whoever changes the tables inside (CAP_NET_ADMIN) is heard of by ``watch``, and
the next ``bring`` reads them back and puts right what differs. A restarted agent reads back what it finds. The sockets
stay in the pod's namespace, so nothing here enters it but to open them. One thread at a time.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pycni.errors import KernelError
from pycni.kernel import netns
from pycni.kernel.nft_table import NftTable
from pycni.kernel.nft_watch import NftWatch
from pycni.model.endpoint import Owner
from pycni.model.policy import Direction
from pycni.policy.base import Denied
from pycni.policy.drops_nft import NftDrops
from pycni.policy.inside_layout import (
    CHAINS,
    SIGNATURE,
    TABLE_ROW,
    gate_schema,
    gate_table,
    mine,
    policy_schema,
    policy_sets,
    policy_table,
)
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.nft.layout import version_of
from pycni.reconcile.delta import diff
from pycni.reconcile.ledger import Ledger, Tables
from pycni.view.policies import PolicyView
from pycni.view.policy_part import Part, part
from pycni.view.policy_stages import ABSENT, CLOSED, RowDiff
from pycni.wire.nftmsg import NFPROTO_NETDEV

log = logging.getLogger("pycni.policy")

_LACKING = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOTSUP})
"""A kernel without hooks at egress (before 5.16) or without family netdev says one of these."""
MOST = 256
"""Rows taken in one by one; with more of them the part is taken anew."""


class Place(NamedTuple):
    """An attachment whose packets pass the node's tables by."""

    owner: Owner
    addresses: tuple[bytes, ...]
    mac: bytes
    link_local: bytes
    pod: str = ""
    """``namespace/name``; "" when the runtime did not tell."""

    @property
    def ifname(self) -> str:
        """Of the pod's interface."""
        return self.owner.ifname


def signature(key: bytes, owner: Owner) -> bytes:
    """What packets that have been judged carry to the gate; no part of it is zero."""
    text = "\0".join(owner).encode()
    raw = hashlib.blake2b(text, key=key, digest_size=SIGNATURE).digest()
    return bytes(byte or 1 for byte in raw)


class Inside:
    """The tables of one attachment."""

    def __init__(self, place: Place, fd: int, key: bytes, *, senders: bool) -> None:
        """``fd``: the pod's namespace; the caller keeps it. ``senders``: hold it to its own addresses.

        Raises KernelError.
        """
        self.place = place
        self._compiler = NftCompiler()
        sign = signature(key, place.owner) if senders else b""
        schema = policy_schema(place.ifname, sign, senders=senders)
        self._order = (TABLE_ROW, CHAINS, *policy_sets())
        self._part: Part | None = None
        self._pending: list[RowDiff] | None = None
        """Rows of the view to take in; None: the part is to be taken anew."""
        self._ledger: Ledger | None = None
        self._stale = True
        """The kernel is not known to be as the ledger says."""
        self._lacks_gate = ""
        self.repairs = 0
        """How often what somebody had changed was put right."""
        self._opened: list[NftTable | NftWatch] = []
        self._home = os.dup(fd)
        self._gate: NftTable | None = None
        try:
            self._table = self._open(fd, lambda: NftTable(schema))
            if senders:
                gate = gate_schema(place.ifname, sign)
                self._gate = self._open(fd, lambda: NftTable(gate, NFPROTO_NETDEV))
            names = [policy_table(place.ifname), gate_table(place.ifname)]
            self.watch = self._open(fd, lambda: NftWatch(names))
        except BaseException:
            self.close()
            raise

    def _open(self, fd: int, make: Any) -> Any:
        made = netns.run_in(fd, make)
        self._opened.append(made)
        return made

    def close(self) -> None:
        """Release sockets; the pod's kernel side goes on enforcing."""
        for item in self._opened:
            item.close()
        self._opened.clear()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    def drops(self) -> NftDrops:
        """What is denied in the pod, live. The caller closes it. Raises KernelError."""
        return netns.run_in(self._home, NftDrops)

    def remove(self) -> None:
        """Take the tables out of the pod. Raises KernelError."""
        self._ledger, self._stale = None, True
        self._table.remove()
        if self._gate is not None:
            self._gate.remove()

    @property
    def pending(self) -> bool:
        """Whether ``bring`` has anything to do."""
        return self._stale or self._part is None or self._pending is None or bool(self._pending)

    @property
    def lacks(self) -> str:
        """Why packet sockets are not held back; "" when they are."""
        return self._lacks_gate

    def note(self, rows: Sequence[RowDiff], *, full: bool) -> None:
        """Rows of the view that changed; ``full``: anything may have."""
        if full or self._part is None or self._pending is None:
            self._pending = None
            return
        if any(self._part.outdated(row) for row in rows):
            self._pending = None
            return
        self._pending += (row for row in rows if self._part.takes(row))
        if len(self._pending) > MOST:
            self._pending = None

    def doubt(self) -> bool:
        """Hear of changes in the pod's tables; whether there were any, our own too."""
        if self.watch.drain():
            self._stale = True
            return True
        return False

    def distrust(self) -> None:
        """Read everything back with the next ``bring``."""
        self._stale = True

    def replace(self, place: Place) -> None:
        """Other addresses or another MAC; the owner is the same."""
        if place != self.place:
            self.place = place
            self._pending, self._stale = None, True

    # --- the kernel -----------------------------------------------------------------------------------------------

    def shut(self) -> None:
        """Have the table there and nothing pass that has to be judged. Raises KernelError."""
        rows = {
            (CLOSED, (address, direction)): None
            for address in self.place.addresses
            for direction in Direction
        }
        self._part = self._pending = None
        self._whole(rows)

    def bring(self, view: PolicyView) -> int:
        """Have the table as the view says; how many rows that changed. Raises KernelError."""
        if self._part is None or self._pending is None or self._ledger is None or self._stale:
            self._part = part(view, self.place.addresses)
            self._pending = []
            return self._whole(self._part.rows)
        rows, self._pending = self._pending, []
        compile_ = self._compiler.rows
        for row in rows:
            if row.before is not ABSENT:
                self._ledger.drop(compile_(row.table, row.key, row.before))
        for row in rows:
            if row.after is not ABSENT:
                self._ledger.put(compile_(row.table, row.key, row.after))
        changes = dict(self._ledger.take())
        self._stale = True
        if changes:
            self._table.apply(changes)
        self._stale = False
        return sum(delta.size for delta in changes.values())

    def guard(self) -> None:
        """Have the gate at the pod's interface, which has to be there. Raises KernelError."""
        gate = self._gate
        if gate is None or self._lacks_gate:
            return
        place = self.place
        own = {item: None for item in place.addresses if len(item) == 4}
        desired: dict[str, dict[Any, Any]] = {
            TABLE_ROW: {"generation": gate.schema.generation},
            CHAINS: {},
            "macs": {place.mac + bytes(2): None},
            "own4": own,
        }
        actual = gate.read()
        changes = {name: diff(rows, actual[name]) for name, rows in desired.items()}
        changes = {name: delta for name, delta in changes.items() if not delta.empty}
        if not changes:
            return
        try:
            gate.apply(changes)
        except KernelError as error:
            if error.errno not in _LACKING:
                raise
            self._lacks_gate = f"this kernel has no nf_tables hook at egress of a device: {error}"

    def denied(self) -> list[Denied]:
        """What has been denied, by policy and direction. Raises KernelError."""
        tables = [self._table] + ([self._gate] if self._gate is not None else [])
        found = [item for table in tables for item in table.rule_counts()]
        return [
            Denied(words[2], words[1], item.packets, item.bytes)
            for item in found
            if (words := item.comment.split(" ", 2))
        ]

    def _whole(self, rows: Mapping[tuple[str, Any], Any]) -> int:
        before, known = self._ledger, not self._stale
        ledger = self._compiled(rows)
        actual: Tables = before.tables if before is not None and known else self._table.read()
        self._ledger, self._stale = None, True
        changes = dict(ledger.against(actual))
        if before is not None and not known:
            # Read back where it should have been as the ledger before said.
            meddled = sum(delta.size for _, delta in before.against(actual))
            if meddled:
                self.repairs += 1
                log.warning(
                    "%s: %d rows of its policies were changed inside the pod", self.place.owner, meddled
                )
        if changes:
            self._table.apply(changes)
        self._ledger, self._stale = ledger, False
        return sum(delta.size for delta in changes.values())

    def _compiled(self, rows: Mapping[tuple[str, Any], Any]) -> Ledger:
        ledger = Ledger(self._order, self._compiler.shared)
        place = self.place
        fixed: Tables = {
            TABLE_ROW: {"generation": self._table.schema.generation},
            "link6": {place.link_local: None} if place.link_local else {},
            "macs": {place.mac + bytes(2): None} if place.mac else {},
        }
        for address in place.addresses:
            fixed.setdefault(mine(version_of(address)), {})[address] = None
        ledger.put(fixed, note=False)
        for (table, key), value in rows.items():
            ledger.put(self._compiler.rows(table, key, value), note=False)
        return ledger
