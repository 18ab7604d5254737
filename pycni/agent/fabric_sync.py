"""Carries the fabric's desired state into the kernel and remembers what is there.

Life: ``full`` reads everything that is ours, changes what differs and removes what is left over; ``part`` changes
only the entries one update touched, against what is remembered, so that one more lease costs three netlink messages.
In both, a new node's VXLAN is accepted before there is a route to it, and a gone one's refused after its route went.
After a failure nothing is remembered: the next pass reads again. A firewall that cannot be set up (a kernel without
nftables) does not keep the pods apart: the rest is done, and the failure is told.

Everything blocks and belongs to one worker thread, in the namespace it was opened in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from pycni.agent.firewall import Firewall, FirewallPlan
from pycni.agent.reverse_path import ReversePath
from pycni.backends.compiler import Touched
from pycni.backends.masq import TABLE
from pycni.errors import KernelError
from pycni.kernel import ethtool, sysctl
from pycni.kernel.extension import Extension
from pycni.kernel.fabric import FabricDriver, Failure, Tables
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.nft import Nft
from pycni.kernel.nft_elements import NftElements
from pycni.model.fabric import FabricState, Link
from pycni.model.family import Family
from pycni.model.udp import UdpSecrets
from pycni.model.wireguard import WireguardKey, WireguardSecrets
from pycni.reconcile.delta import Delta, diff, diff_keys
from pycni.wire import rtlink

log = logging.getLogger("pycni.network")


class Outcome(NamedTuple):
    """How one synchronisation went."""

    failures: list[Failure]
    changed: int
    """Entries that were not as they should be."""
    links_changed: bool
    names: Mapping[int, str] | None
    """Links by index, when they were listed."""


class FabricSync:
    """The kernel's side of the network component."""

    def __init__(self, state_dir: str = "") -> None:
        """Open sockets in the calling thread's namespace. Raises KernelError.

        ``state_dir``: where it is remembered which commands were run; without one none can be.
        """
        self._driver = FabricDriver()
        if state_dir:
            self._driver.extension.remember_in(state_dir)
        self.reverse_path = ReversePath()
        self._opened: tuple[Nft, NftElements, Firewall] | None = None
        self._tables: tuple[dict[Any, Any], ...] | None = None

    def close(self) -> None:
        """Close the sockets."""
        self._driver.close()
        if self._opened is not None:
            nft, elements, _ = self._opened
            elements.close()
            nft.close()

    @property
    def nft_port(self) -> int | None:
        """Of the socket by which peers come into the firewall's table and go; any thread."""
        return self._opened[1].port if self._opened is not None else None

    @property
    def _firewall(self) -> Firewall:
        """The firewall driver. Raises KernelError on a kernel without nftables."""
        if self._opened is None:
            nft = Nft()
            elements = NftElements()
            self._opened = nft, elements, Firewall(nft, elements)
        return self._opened[2]

    @property
    def known(self) -> bool:
        """Whether ``part`` may be used: what is in the kernel is remembered."""
        return self._tables is not None

    def devices(self, names: set[str]) -> Mapping[str, Link]:
        """The devices of the fabric that are ours or have one of these names."""
        return self._driver.read(names).links

    def look(self, desired: FabricState) -> FabricState:
        """What is there of it, and what else is ours. Raises KernelError."""
        peers = self._firewall.accepted() if self._opened is not None else frozenset[bytes]()
        return msgspec.structs.replace(self._driver.read(desired.links.keys()), vtep_peers=peers)

    def met(self) -> frozenset[WireguardKey]:
        """WireGuard peers that have agreed on a session with us. Raises KernelError."""
        return self._driver.wireguard.met()

    def take_secrets(self, secrets: WireguardSecrets | UdpSecrets) -> None:
        """What WireGuard devices, or the udp forwarder's, need; before any is wanted. A new key is in them at once."""
        if isinstance(secrets, UdpSecrets):
            self._driver.udp.secrets = secrets
        else:
            self._driver.wireguard.take(secrets)

    @property
    def extension(self) -> Extension:
        """What runs people's own commands; to be called on the worker."""
        return self._driver.extension

    @property
    def carried(self) -> Mapping[str, int]:
        """What the udp forwarder has counted, as of the last full look; any thread."""
        return self._driver.udp.counters

    def prepare(self, families: tuple[Family, ...], underlay: str, firewall: FirewallPlan | None) -> None:
        """What pods need before any peer is known: forwarding and, unless a table is there, masquerading."""
        forwarding(families, underlay)
        if firewall is not None and firewall.masquerade and not self._firewall.present():
            self._firewall.put(FirewallPlan(masquerade=firewall.masquerade), ())

    def full(self, desired: FabricState, firewall: FirewallPlan) -> Outcome:
        """Read, compare, make equal."""
        self._tables = None
        actual = self._driver.read(desired.links.keys())
        changed = sum(
            diff(getattr(desired, table), getattr(actual, table)).size for table in ("links", *Tables._fields)
        )
        failures: list[Failure] = []
        changed += self._admit(firewall, desired.vtep_peers, failures)
        failures += self._driver.apply(desired, actual) if changed else []
        self._guarded(lambda: self._firewall.dismiss(self._firewall.peers - desired.vtep_peers), failures)
        if not failures:
            self._tables = tuple(dict(getattr(desired, table)) for table in Tables._fields)
        return Outcome(failures, changed, dict(desired.links) != dict(actual.links), link_names())

    def part(self, desired: FabricState, touched: Touched, remotes: Mapping[bytes, int]) -> Outcome:
        """Change what was touched; only while ``known``."""
        assert self._tables is not None, "part before full"
        known = self._tables
        self._tables = None
        tables = Tables(
            *(
                diff_keys(getattr(desired, table), there, getattr(touched, table))
                for table, there in zip(Tables._fields, known, strict=True)
            )
        )
        failures: list[Failure] = []
        come = [remote for remote in touched.remotes if remote in remotes]
        self._guarded(lambda: self._firewall.admit(come), failures)
        failures += self._driver.apply_tables(tables)
        self._guarded(lambda: self._firewall.dismiss(touched.remotes.difference(come)), failures)
        if not failures:
            for table, there in zip(Tables._fields, known, strict=True):
                _patch(there, getattr(tables, table))
            self._tables = known
        return Outcome(failures, sum(delta.size for delta in tables), links_changed=False, names=None)

    def check_firewall(self, plan: FirewallPlan, peers: frozenset[bytes]) -> bool:
        """Repair the firewall table if somebody changed it; whether that was so."""
        if self._firewall.intact() and self._firewall.plan == plan:
            return False
        self._firewall.put(plan, peers)
        return True

    def switch_checksum(self, device: str, on: bool) -> bool:
        """``tx-checksum-ip-generic`` of a device; whether it was changed. Raises KernelError."""
        return ethtool.set_tx_checksum(device, on=on)

    def _admit(self, plan: FirewallPlan, peers: frozenset[bytes], failures: list[Failure]) -> int:
        """The firewall table in place with at least these peers; 1 when it had to be put."""

        def job() -> bool:
            if self._firewall.plan == plan and self._firewall.intact():
                self._firewall.admit(peers)
                return False
            self._firewall.put(plan, peers | self._firewall.peers)
            return True

        return int(self._guarded(job, failures) is not False)

    def _guarded(self, job: Callable[[], bool | None], failures: list[Failure]) -> bool | None:
        """Do something to the firewall; when that fails the fabric is set up all the same, and the pass fails."""
        try:
            return job()
        except KernelError as error:
            failures.append(Failure("firewall", TABLE, error))
            return None


def forwarding(families: tuple[Family, ...], underlay: str) -> None:
    """Let the kernel route. Raises KernelError.

    With IPv6 forwarding the kernel stops listening to routers (and drops the default route they gave) on interfaces
    with accept_ra 1; 2 means "listen although forwarding" (Documentation/networking/ip-sysctl.rst).
    """
    if Family.V4 in families:
        sysctl.put("net.ipv4.ip_forward", 1)
    if Family.V6 in families:
        accept_ra = f"net/ipv6/conf/{underlay}/accept_ra"
        if sysctl.get("net.ipv6.conf.all.forwarding") != "1" and sysctl.get(accept_ra) == "1":
            sysctl.put(accept_ra, 2)
        sysctl.put("net.ipv6.conf.all.forwarding", 1)


def link_names() -> dict[int, str]:
    """Links of this namespace by index."""
    with NetlinkSocket() as sock:
        links = [rtlink.parse_link(msg) for msg in sock.dump(rtlink.dump_links(), "dump links")]
    return {link.ifindex: link.name for link in links}


def raise_for(failures: list[Failure]) -> None:
    """Raise an ExceptionGroup of KernelErrors for what could not be done."""
    if failures:
        errors: list[KernelError] = [failure.error for failure in failures]
        raise ExceptionGroup(f"{len(errors)} entries of the fabric could not be set", errors)


def _patch(table: dict[Any, Any], delta: Delta[Any, Any]) -> None:
    for key in delta.remove:
        del table[key]
    table.update(delta.change)
    table.update(delta.add)
