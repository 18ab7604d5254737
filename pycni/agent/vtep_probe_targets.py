"""Whom the probe asks, and from where: kept up to date with the peers' entries.

Life: the network pass tells of every peer that may have changed (``note``); the prober reads the same mappings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pycni.agent.network_plan import Plan
from pycni.agent.vtep_probe import Vtep, VtepProber
from pycni.backends.base import PeerEntries
from pycni.backends.extension import Extension
from pycni.backends.vxlan import device_name
from pycni.model.fabric import VxlanLink
from pycni.model.family import Address, Family
from pycni.model.lease import Lease
from pycni.view.fabric import PeerKey


class Targets:
    """One per network pass, on its event loop."""

    def __init__(self, prober: VtepProber, *, bgp: bool) -> None:
        """``bgp``: whether routes to peers may come by BGP."""
        self._prober = prober
        self._bgp = bgp
        self._addresses: dict[PeerKey, Address] = {}
        self._tunnelled: set[PeerKey] = set()
        """Peers that are reached by VXLAN."""

    def clear(self) -> None:
        """Everything is told anew."""
        self._addresses.clear()
        self._tunnelled.clear()

    def note(
        self,
        plan: Plan,
        peers: Mapping[PeerKey, PeerEntries],
        changed: Iterable[PeerKey],
        leases: Mapping[str, Lease],
    ) -> None:
        """These peers may have come, gone or changed."""
        for key in changed:
            self._tunnelled.discard(key)
            self._addresses.pop(key, None)
            entries, lease = peers.get(key), leases.get(key[0])
            subnet = lease.of(key[1]) if lease is not None else None
            if entries is None or lease is None or subnet is None or not self._reached(entries, lease):
                continue
            self._addresses[key] = subnet.network_address
            if entries.fdb:
                self._tunnelled.add(key)
        own = own_ends(plan) if self._addresses else {}
        self._prober.update(own, self._addresses, self._tunnelled)

    def _reached(self, entries: PeerEntries, lease: Lease) -> bool:
        """Whether there is a way to the peer of this node's making: else nobody says that there has to be one."""
        made = entries.routes or entries.fdb or entries.wireguard or entries.udp
        # The commands of an extension make the ways of all families at once.
        return bool(made) or self._bgp or lease.attrs.way == Extension.name


def own_ends(plan: Plan) -> dict[Family, Vtep]:
    """Our end of the pod network per family: the base address of our subnet, with the VXLAN device there may be."""
    if plan.site is None:
        return {}
    links = list(plan.backend.links(plan.site).values())
    taken = {address for link in links for address, _ in link.addresses}
    found: dict[Family, Vtep] = {}
    for family in plan.conf.families:
        subnet = plan.site.own.of(family)
        if subnet is None:
            continue
        vteps = (item for item in links if isinstance(item, VxlanLink))
        device = next((item.name for item in vteps if item.name == device_name(family, item.vni)), "")
        own = subnet.network_address
        found[family] = Vtep(device, own, lone=own.packed not in taken)
    return found
