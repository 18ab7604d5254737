"""IPv4-in-IPv4 devices in the kernel: read, made, given other ends in place.

The kernel changes everything on a living device (net/ipv4/ipip.c, ipip_changelink) except that its kind stays; routes
over it stay too. Only a device with a far end of its own is made again: it would send all packets there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl, find, mtu_of, need_kind, own_addresses, settle, shown
from pycni.model.fabric import IPIP, IpipLink
from pycni.wire import rtlink

log = logging.getLogger("pycni.kernel")


def read(sock: NetlinkSocket, link: rtlink.Link, names: Mapping[int, str]) -> IpipLink:
    """The device as a value. One with a far end of its own reads without a parent: unlike any wanted one."""
    assert link.ipip is not None
    return IpipLink(
        name=link.name,
        parent=names.get(link.ipip.parent, "") if not link.ipip.remote else "",
        local=link.ipip.local,
        mtu=mtu_of(link),
        addresses=tuple(sorted(own_addresses(sock, link.ifindex))),
    )


def ensure(sock: NetlinkSocket, desired: IpipLink, actual: IpipLink | None, put_sysctl: PutSysctl) -> Lost:
    """Make the device what it should be; returns what has to be replayed on it. Raises KernelError."""
    parent = find(sock, desired.parent)
    ends = rtlink.Ipip(parent.ifindex, desired.local)
    if actual is not None:
        link = find(sock, desired.name)
        if link.ipip is not None and link.ipip.remote:
            log.warning("%s is made again: far end is %s, wanted none", desired.name, shown(link.ipip.remote))
            sock.request(rtlink.del_link(name=desired.name), "delete link", desired.name)
            actual = None
        elif link.ipip != ends:
            what = f"{desired.name} local {shown(desired.local)} dev {desired.parent}"
            sock.request(rtlink.change_ipip(link.ifindex, ends, mtu=desired.mtu), "change link", what)
    if actual is None:
        sock.request(rtlink.new_ipip(desired.name, ends, mtu=desired.mtu), "create link", desired.name)
    link = find(sock, desired.name)
    need_kind(link, IPIP)
    settle(sock, desired, link, (), put_sysctl, what=f"{desired.name} mtu {desired.mtu}")
    return Lost.EVERYTHING if actual is None else Lost.NOTHING
