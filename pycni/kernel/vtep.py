"""VXLAN devices in the kernel: read, made, changed in place or made again.

What the kernel cannot change on a living device (VNI, port, parent, addresses of the underlay) means delete and
create; its entries go with it, so the caller replays them.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable, Mapping

import msgspec

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.fabric import VxlanLink
from pycni.model.family import show, show_mac
from pycni.model.tables import LINK_ALIAS
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import attr, attr_u32

log = logging.getLogger("pycni.kernel")

PutSysctl = Callable[[str, int], object]
"""Sets a switch of the namespace the device is in; raises KernelError (ENOENT: no such switch)."""

_LINK_LOCAL_SCOPE = rtnl.RT_SCOPE_LINK


class Lost(enum.Enum):
    """Which entries of a device the kernel dropped while it was made what it should be."""

    NOTHING = "nothing"
    NEIGHBOURS = "neighbours"
    """The MAC was changed (net/core/neighbour.c, neigh_changeaddr)."""
    EVERYTHING = "everything"
    """The device is new."""


def find(sock: NetlinkSocket, name: str) -> rtlink.Link:
    """One link by name. Raises KernelError (ENODEV)."""
    [reply] = sock.request(rtlink.get_link(name=name), "find link", name)
    return rtlink.parse_link(reply)


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
        mtu=link.mtu if link.up and link.alias == LINK_ALIAS else 0,
        learning=link.vxlan.learning,
        gbp=link.vxlan.gbp,
        addresses=tuple(sorted(_own_addresses(sock, link.ifindex))),
    )


def same(desired: VxlanLink, actual: VxlanLink) -> bool:
    """Whether nothing is to be done; the order of addresses is no difference."""
    return msgspec.structs.replace(desired, addresses=tuple(sorted(desired.addresses))) == actual


def incompatible(desired: VxlanLink, actual: VxlanLink) -> str:
    """Why a living device cannot become the desired one ("" when it can): names the field and both values."""
    for field, want, have in (
        ("VNI", desired.vni, actual.vni),
        ("underlay device", desired.parent, actual.parent),
        ("local address", _address(desired.local), _address(actual.local)),
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
    if link.kind != "vxlan":
        raise KernelError(
            errno.EEXIST, "create link", desired.name, f"a {link.kind or 'device'} has this name"
        )
    _change(sock, desired, link, put_sysctl)
    _addresses(sock, desired, link.ifindex, put_sysctl)
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


def _change(sock: NetlinkSocket, desired: VxlanLink, link: rtlink.Link, put_sysctl: PutSysctl) -> None:
    """MAC, MTU, alias and state in place. The kernel's own link-local address is not wanted on a VTEP."""
    attrs = []
    if link.mac != desired.mac:
        attrs.append(attr(rtlink.IFLA_ADDRESS, desired.mac))
    if link.mtu != desired.mtu:
        attrs.append(attr_u32(rtlink.IFLA_MTU, desired.mtu))
    if link.alias != LINK_ALIAS:
        attrs.append(rtlink.link_alias(LINK_ALIAS))
    what = f"{desired.name} address {show_mac(desired.mac)} mtu {desired.mtu}"
    if not link.up:
        # In a message of its own: the kernel brings a link up before it looks at IFLA_AF_SPEC.
        quiet = rtlink.set_link(link.ifindex, rtlink.addr_gen_mode(rtlink.ADDR_GEN_MODE_NONE))
        try:
            sock.request(quiet, "set addrgenmode", what)
            put_sysctl(f"net/ipv6/conf/{desired.name}/accept_ra", 0)
        except KernelError as exc:
            if exc.errno not in {errno.EAFNOSUPPORT, errno.ENOENT}:  # IPv6 is off on this host
                raise
    if attrs or not link.up:
        sock.request(rtlink.set_link(link.ifindex, *attrs, up=True), "set link", what)


def _addresses(sock: NetlinkSocket, desired: VxlanLink, index: int, put_sysctl: PutSysctl) -> None:
    have = _own_addresses(sock, index)
    for address, prefix_len in desired.addresses:
        if (address, prefix_len) not in have:
            if len(address) == 16:  # hosts that switch IPv6 off by default mean other interfaces
                put_sysctl(f"net/ipv6/conf/{desired.name}/disable_ipv6", 0)
            flags = rtnl.IFA_F_NODAD if len(address) == 16 else 0
            what = f"{show(address)}/{prefix_len} dev {desired.name}"
            sock.request(rtnl.new_address(index, address, prefix_len, flags=flags), "add address", what)
    for address, prefix_len in have - set(desired.addresses):
        what = f"{show(address)}/{prefix_len} dev {desired.name}"
        sock.request(rtnl.del_address(index, address, prefix_len), "remove address", what)


def _own_addresses(sock: NetlinkSocket, index: int) -> set[tuple[bytes, int]]:
    """Addresses of a device without IPv6's link-local ones."""
    listed = map(rtnl.parse_address, sock.dump(rtnl.dump_addresses(index), "dump addresses"))
    return {
        (info.address, info.prefix_len)
        for info in listed
        if info.ifindex == index and (info.scope != _LINK_LOCAL_SCOPE or len(info.address) == 4)
    }


def _address(packed: bytes) -> str:
    return show(packed) if packed else "none"
