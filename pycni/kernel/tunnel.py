"""What devices of the fabric have in common in the kernel: found, brought up, given their addresses.

``kernel/vtep`` and the ``kernel/tunnel_*`` modules know one kind each; ``kernel/tunnel_kinds`` chooses among them.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Sequence

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.fabric import Link
from pycni.model.family import show
from pycni.model.tables import LINK_ALIAS
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import attr_u32

PutSysctl = Callable[[str, int], object]
"""Sets a switch of the namespace the device is in; raises KernelError (ENOENT: no such switch)."""


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


def mtu_of(link: rtlink.Link) -> int:
    """The MTU, 0 for a device that is down or not marked as ours: unlike any wanted one."""
    return link.mtu if link.up and link.alias == LINK_ALIAS else 0


def need_kind(link: rtlink.Link, kind: str) -> None:
    """Raise KernelError for a device of another kind under a name that is ours to use."""
    if link.kind != kind:
        raise KernelError(errno.EEXIST, "create link", link.name, f"a {link.kind or 'device'} has this name")


def settle(
    sock: NetlinkSocket,
    desired: Link,
    link: rtlink.Link,
    attrs: Sequence[bytes],
    put_sysctl: PutSysctl,
    *,
    what: str,
) -> None:
    """MTU, alias, state and addresses in place, with ``attrs`` of the kind's own. Raises KernelError.

    ``what`` is the device as the log names it. The kernel's own link-local address is not wanted.
    """
    attrs = [*attrs]
    if link.mtu != desired.mtu:
        attrs.append(attr_u32(rtlink.IFLA_MTU, desired.mtu))
    if link.alias != LINK_ALIAS:
        attrs.append(rtlink.link_alias(LINK_ALIAS))
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
    _addresses(sock, desired, link.ifindex, put_sysctl)


def own_addresses(sock: NetlinkSocket, index: int) -> set[tuple[bytes, int]]:
    """Addresses of a device without IPv6's link-local ones."""
    listed = map(rtnl.parse_address, sock.dump(rtnl.dump_addresses(index), "dump addresses"))
    return {
        (info.address, info.prefix_len)
        for info in listed
        if info.ifindex == index and (info.scope != rtnl.RT_SCOPE_LINK or len(info.address) == 4)
    }


def shown(packed: bytes) -> str:
    """An address of the underlay that may not be set."""
    return show(packed) if packed else "none"


def _addresses(sock: NetlinkSocket, desired: Link, index: int, put_sysctl: PutSysctl) -> None:
    have = own_addresses(sock, index)
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
