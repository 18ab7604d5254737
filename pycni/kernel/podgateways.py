"""Gateway addresses on bridges nobody uses any more.

Life: a bridge outlives its pods, and keeps the gateway address of the node's subnet. When the node has another
subnet, the old one may be another node's: the route the address brings with it is then in the way of the route to
that node (IPv6: its VTEP's address would be reached by the bridge, which the kernel refuses). ADD corrects a bridge
it uses; ``sweep`` takes care of the bridges no pod is on. A bridge with a pod keeps what the pod needs.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Network
from pycni.model.tables import LINK_ALIAS, ROUTE_PROTOCOL
from pycni.wire import podlink, rtlink, rtnl
from pycni.wire.netlink import parse_attrs


class Swept(NamedTuple):
    """What became of the gateways of earlier subnets."""

    removed: list[str]
    """In words."""
    waiting: bool
    """Whether some are left that pods may still need."""


def sweep(sock: NetlinkSocket, networks: Collection[Network], subnets: Collection[Network]) -> Swept:
    """Remove gateways of ours inside ``networks`` and outside ``subnets`` from bridges of ours without ports.

    Addresses are known as ours by their protocol (kernel 5.18 and later keep it). Raises KernelError.
    """
    links = [rtlink.parse_link(msg) for msg in sock.dump(rtlink.dump_links(), "list links")]
    used = {link.master for link in links}
    bridges = {
        link.ifindex: link.name for link in links if link.kind == "bridge" and link.alias == LINK_ALIAS
    }
    removed, waiting = [], False
    for msg in sock.dump(rtnl.dump_addresses(), "list addresses") if bridges else ():
        info = rtnl.parse_address(msg)
        if info.ifindex not in bridges or not _is_ours(msg.payload) or not info.address:
            continue
        address = (IPv4Address if len(info.address) == 4 else IPv6Address)(info.address)
        if _within(address, subnets) or not _within(address, networks):
            continue
        if info.ifindex in used:
            waiting = True
            continue
        shown, name = f"{address}/{info.prefix_len}", bridges[info.ifindex]
        sock.request(rtnl.del_address(info.ifindex, info.address, info.prefix_len), "remove gateway", shown)
        removed.append(f"{shown} of an earlier subnet removed from {name}, which no pod uses")
    return Swept(removed, waiting)


def sweep_here(networks: Collection[Network], subnets: Collection[Network]) -> Swept:
    """``sweep`` in the calling thread's namespace. Raises KernelError."""
    with NetlinkSocket() as sock:
        return sweep(sock, networks, subnets)


def _is_ours(payload: bytes) -> bool:
    return parse_attrs(payload, 8).get(podlink.IFA_PROTO, b"\0")[0] == ROUTE_PROTOCOL


def _within(address: IPv4Address | IPv6Address, nets: Collection[Network]) -> bool:
    return any(address.version == net.version and address in net for net in nets)
