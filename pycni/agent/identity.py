"""The MAC addresses of this node's VTEPs: chosen here, given at creation, stable ever after.

Peers reach a VTEP by the MAC in its lease. A device made without one gets a random MAC, or another one from udev
later, and peers keep sending to the old one. So, in this order: what the device that is there has (a restarted
agent, or flannel's device taken over), what our last lease told the peers, and else a MAC derived from the node,
the same after a reboot or a deleted state folder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping

from pycni.backends.vxlan import device_name, vtep_mac
from pycni.model.fabric import Link, VxlanLink
from pycni.model.family import Family, show_mac
from pycni.model.lease import LeaseAttrs

log = logging.getLogger("pycni.network")

MACHINE_ID = "/etc/machine-id"


def machine_id(file: str = MACHINE_ID) -> str:
    """This installation's id (machine-id(5)); "" when there is none, as in some containers."""
    try:
        with open(file, encoding="ascii", errors="replace") as found:
            return found.read().strip()
    except FileNotFoundError:
        return ""


def derived_mac(node: str, machine: str, vni: int, family: Family) -> bytes:
    """A locally administered unicast MAC (IEEE 802, bits 0 and 1 of the first byte) that only this node has."""
    words = "\0".join(["pycni vtep", node, machine, str(vni), family.label])
    digest = hashlib.sha256(words.encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def choose_macs(
    node: str,
    machine: str,
    vni: int,
    families: Iterable[Family],
    *,
    links: Mapping[str, Link],
    published: LeaseAttrs | None,
) -> dict[str, bytes]:
    """MACs by device name. ``links``: the devices there are; ``published``: what our last lease said."""
    chosen = {}
    for family in families:
        name = device_name(family, vni)
        link = links.get(name)
        earlier = vtep_mac(published.data(family), vni) if published is not None else None
        if isinstance(link, VxlanLink) and link.vni == vni and any(link.mac) and not link.mac[0] & 1:
            mac, why = link.mac, "of the device that is there"
        elif isinstance(earlier, bytes):
            mac, why = earlier, "of our last lease"
        else:
            mac, why = derived_mac(node, machine, vni, family), "derived from node name and machine id"
        log.info("%s: MAC %s, %s", name, show_mac(mac), why)
        chosen[name] = mac
    return chosen
