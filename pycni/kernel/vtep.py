"""VXLAN devices in the kernel: read, made, changed in place or made again.

What the kernel cannot change on a living device (VNI, port, parent, addresses of the underlay) means delete and
create; its entries go with it, so the caller replays them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl, find, mtu_of, need_kind, own_addresses, settle, shown
from pycni.model.fabric import VXLAN, VxlanLink
from pycni.model.family import show_mac
from pycni.model.tables import LINK_ALIAS
from pycni.wire import rtlink
from pycni.wire.netlink import attr

log = logging.getLogger("pycni.kernel")


def read(sock: NetlinkSocket, link: rtlink.Link, names: Mapping[int, str]) -> VxlanLink:
    """The device as a value. If it is down or not marked as ours its MTU reads 0: unlike any wanted one."""
    assert link.vxlan is not None
    return VxlanLink(
        name=link.name,
        vni=link.vxlan.vni,
        port=link.vxlan.port,
        parent=names.get(link.vxlan.parent, ""),
        local=link.vxlan.local,
        mac=link.mac,
        mtu=mtu_of(link),
        learning=link.vxlan.learning,
        gbp=link.vxlan.gbp,
        addresses=tuple(sorted(own_addresses(sock, link.ifindex))),
    )


def incompatible(desired: VxlanLink, actual: VxlanLink) -> str:
    """Why a living device cannot become the desired one ("" when it can): names the field and both values."""
    for field, want, have in (
        ("VNI", desired.vni, actual.vni),
        ("underlay device", desired.parent, actual.parent),
        ("local address", shown(desired.local), shown(actual.local)),
        ("UDP port", desired.port, actual.port),
        ("learning", desired.learning, actual.learning),
        ("GBP", desired.gbp, actual.gbp),
    ):
        if want != have:
            return f"{field} is {have}, wanted {want}"
    return ""


def ensure(sock: NetlinkSocket, desired: VxlanLink, actual: VxlanLink | None, put_sysctl: PutSysctl) -> Lost:
    """Make the device what it should be; returns what has to be replayed on it. Raises KernelError."""
    reason = incompatible(desired, actual) if actual is not None else ""
    if reason:
        log.warning("%s is made again: %s", desired.name, reason)
        sock.request(rtlink.del_link(name=desired.name), "delete link", desired.name)
        actual = None
    if actual is None:
        _create(sock, desired)
    link = find(sock, desired.name)
    need_kind(link, VXLAN)
    attrs = [attr(rtlink.IFLA_ADDRESS, desired.mac)] if link.mac != desired.mac else []
    what = f"{desired.name} address {show_mac(desired.mac)} mtu {desired.mtu}"
    settle(sock, desired, link, attrs, put_sysctl, what=what)
    if actual is None:
        return Lost.EVERYTHING
    return Lost.NOTHING if link.mac == desired.mac else Lost.NEIGHBOURS


def _create(sock: NetlinkSocket, desired: VxlanLink) -> None:
    parent = find(sock, desired.parent)
    vxlan = rtlink.Vxlan(
        desired.vni, parent.ifindex, desired.local, desired.port, desired.learning, desired.gbp
    )
    message = rtlink.new_vxlan(desired.name, vxlan, mac=desired.mac, mtu=desired.mtu, alias=LINK_ALIAS)
    sock.request(message, "create link", desired.name)
