"""What the pod network leaves in a network namespace, and its removal: for ``pycnictl cleanup``, with no agent running.

Ours is what carries our mark: links with the alias ``pycni``, routes of protocol 112, 115 and, to subnets, 114,
nftables tables by name. Pods' own interfaces (alias ``pycni:...``) are counted and stay, with the routes to them: they
go with their pods. Files are not touched, so addresses remain reserved for the pods that have them.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from pycni.attach.tables import PODS, SPOOF
from pycni.backends.masq import TABLE
from pycni.errors import KernelError
from pycni.kernel import nft_names
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.nft import Nft
from pycni.model.family import FAMILIES, show
from pycni.model.tables import LINK_ALIAS, POD_ROUTE_PROTOCOL, PROBE_ROUTE_PROTOCOL, ROUTE_PROTOCOL
from pycni.wire import rtlink, rtnl

TABLES = (("inet", TABLE), PODS, SPOOF)


class Removed(NamedTuple):
    """What a clean-up did."""

    gone: tuple[str, ...]
    """One line each."""
    pods: int
    """Interfaces of pods that are still there."""


def remove_network() -> Removed:
    """Take the pod network out of the calling thread's namespace. Harmless without any. Raises KernelError."""
    gone: list[str] = []
    present = set(nft_names.tables())
    doomed = [table for table in TABLES if table in present]
    if doomed:
        nft = Nft()
        try:
            for family, name in doomed:
                nft.run(f"delete table {family} {name}")
                gone.append(f"nftables table {family} {name}")
        finally:
            nft.close()
    with NetlinkSocket() as sock:
        gone += _routes(sock)
        links = [rtlink.parse_link(reply) for reply in sock.dump(rtlink.dump_links(), "list links")]
        for link in links:
            if link.alias == LINK_ALIAS and _deleted(sock, rtlink.del_link(link.ifindex), link.name):
                gone.append(f"link {link.name}")
    return Removed(tuple(gone), sum(link.alias.startswith(f"{LINK_ALIAS}:") for link in links))


def _routes(sock: NetlinkSocket) -> list[str]:
    gone = []
    for family in FAMILIES:
        try:
            replies = [
                reply
                for protocol in (ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL, PROBE_ROUTE_PROTOCOL)
                for reply in sock.dump(rtnl.dump_routes(int(family), protocol=protocol), "list routes")
            ]
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                continue
            raise
        for reply in replies:
            route = rtnl.parse_route(reply)
            if route.protocol == POD_ROUTE_PROTOCOL and route.kind != rtnl.RTN_UNREACHABLE:
                continue  # the way to a pod, which stays
            text = f"route {show(route.destination)}/{route.prefix_len}"
            message = rtnl.del_route(
                route.destination,
                route.prefix_len,
                table=route.table,
                protocol=route.protocol,
                kind=route.kind,
            )
            if _deleted(sock, message, text):
                gone.append(text)
    return gone


def _deleted(sock: NetlinkSocket, message: bytes, obj: str) -> bool:
    """Whether it went; what has gone by itself meanwhile is no error."""
    try:
        sock.request(message, "remove", obj)
    except KernelError as exc:
        if exc.errno in (errno.ENODEV, errno.ESRCH, errno.ENOENT):
            return False
        raise
    return True
