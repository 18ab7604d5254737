"""The fabric's nftables table in the kernel: put in place whole, kept up to date by element, looked after.

Life: ``put`` replaces the table in one transaction and notes how the kernel lists it; ``admit`` and ``dismiss`` add
and remove nodes that VXLAN is accepted from; ``intact`` lists the table again and tells whether anybody changed
it. All methods block and belong to one worker thread at a time.

On a kernel whose nftables lacks the family inet there is nothing to put: that is said once, in full, and pods are
served without, because waiting would not give the kernel one.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from pycni.backends.masq import (
    SETS,
    TABLE,
    Masquerade,
    VxlanGuard,
    delete_text,
    peers_text,
    table_text,
)
from pycni.errors import KernelError
from pycni.kernel.nft import Nft
from pycni.kernel.nft_elements import NftElements
from pycni.model.family import Family

log = logging.getLogger("pycni.network")

FEW = 100
"""Up to so many peers are added and removed without libnftables."""


class FirewallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the table is to hold besides the peers. Nothing in it: no table."""

    masquerade: tuple[Masquerade, ...] = ()
    guard: VxlanGuard | None = None

    @property
    def empty(self) -> bool:
        """Whether no table is needed."""
        return not self.masquerade and self.guard is None


class Firewall:
    """Driver of the table ``inet pycni_fabric``."""

    def __init__(self, nft: Nft, elements: NftElements) -> None:
        self._nft = nft
        self._fast = elements
        self.plan: FirewallPlan | None = None
        """What is in place; None when that is not known."""
        self.peers: frozenset[bytes] = frozenset()
        self.lacking = False
        """Whether the kernel has been found unable to hold the table."""
        self._listed: list[dict[str, Any]] = []

    def present(self) -> bool:
        """Whether there is a table, ours or of an earlier life."""
        return self._nft.exists("inet", TABLE)

    def put(self, plan: FirewallPlan, peers: Collection[bytes]) -> None:
        """Replace the table by this one, whatever is there. Raises KernelError; nothing has changed then."""
        self.plan = None
        accepted = frozenset(peers) if plan.guard is not None else frozenset()
        try:
            self._nft.run(delete_text() if plan.empty else table_text(plan.masquerade, plan.guard, accepted))
        except KernelError as error:
            if error.errno != errno.EOPNOTSUPP or self._nft.knows("inet"):
                raise
            self._do_without(plan)
        else:
            self._listed = [] if plan.empty else self._skeleton()[0]
        self.plan, self.peers = plan, accepted

    def admit(self, peers: Iterable[bytes]) -> None:
        """Accept VXLAN from these nodes too. Raises KernelError; the state is unknown then."""
        self._elements("add", frozenset(peers) - self.peers)

    def dismiss(self, peers: Iterable[bytes]) -> None:
        """Accept VXLAN from these nodes no more. Raises KernelError; the state is unknown then."""
        self._elements("delete", frozenset(peers) & self.peers)

    def accepted(self) -> frozenset[bytes]:
        """Nodes the kernel's table accepts VXLAN from. Raises KernelError."""
        if self.lacking:
            return self.peers
        try:
            return self._skeleton()[1]
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return frozenset()
            raise

    def intact(self) -> bool:
        """Whether the table is as it was put, with the peers admitted since. Raises KernelError."""
        if self.plan is None:
            return False
        if self.lacking:
            return True
        if self.plan.empty:
            return not self.present()
        try:
            skeleton, peers = self._skeleton()
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return skeleton == self._listed and peers == self.peers

    def _elements(self, action: str, peers: frozenset[bytes]) -> None:
        if self.plan is None or self.plan.guard is None or not peers:
            return
        plan, self.plan = self.plan, None
        if self.lacking:
            pass
        elif len(peers) > FEW:
            self._nft.run(peers_text(action, peers))
        else:
            change = self._fast.add if action == "add" else self._fast.delete
            for family, name in SETS.items():
                some = [peer for peer in peers if Family.of_packed(peer) is family]
                if some:
                    change(TABLE, name, some)
        self.peers = self.peers | peers if action == "add" else self.peers - peers
        self.plan = plan

    def _do_without(self, plan: FirewallPlan) -> None:
        if not self.lacking and not plan.empty:
            log.warning(
                "this kernel's nftables has no family inet (NF_TABLES_INET), so there is no table inet %s: "
                "pods keep their addresses towards other networks, VXLAN is accepted from any sender",
                TABLE,
            )
        self.lacking = True

    def _skeleton(self) -> tuple[list[dict[str, Any]], frozenset[bytes]]:
        """The table as listed, without handles and elements; and the elements of the peer sets."""
        peers: set[bytes] = set()
        objects = []
        for item in self._nft.listing(f"list table inet {TABLE}"):
            ((kind, body),) = item.items()
            kept = {key: value for key, value in body.items() if key != "handle"}
            if kind == "set" and body["name"] in SETS.values():
                peers.update(ipaddress.ip_address(text).packed for text in kept.pop("elem", ()))
            objects.append({kind: kept})
        return objects, frozenset(peers)
