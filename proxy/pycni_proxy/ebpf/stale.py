"""Connected UDP sockets that were led to a target which is gone: ended, so that their owners open new ones.

A TCP connection to a dead endpoint fails by itself, and an unconnected UDP socket moves on with its next datagram. A
connected UDP socket would go on sending into nothing for as long as its owner lives: there is no connection tracking
entry to remove, the socket itself holds the address. Its next call fails with ECONNABORTED instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable

from pycni.errors import KernelError
from pycni.kernel import netns, sockdiag
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.kube import UDP
from pycni.model.service import Target
from pycni_proxy.ebpf import layout

log = logging.getLogger("pycni.proxy.ebpf")

Leads = Callable[[int, bytes], bool]
"""(socket's cookie, packed target) -> whether the socket may stay."""


def end_sockets(paths: Iterable[str], gone: Collection[bytes], stays: Leads) -> int:
    """End sockets towards targets in ``gone`` (packed, nameless) here and in the namespaces of files; how many.

    Where sockets cannot be looked at or ended, that is logged and they stay: the pod is going, or the kernel has no
    such diagnosis (CONFIG_INET_UDP_DIAG, CONFIG_INET_DIAG_DESTROY).
    """
    ended = 0
    for path in ("", *paths):
        try:
            with _diagnosis(path) as sock:
                ended += _end_in(sock, gone, stays)
        except KernelError as error:
            where = path or "this node"
            level = logging.INFO if path else logging.WARNING
            log.log(level, "UDP sockets of %s to endpoints that are gone may stay open: %s", where, error)
    return ended


def _diagnosis(path: str) -> NetlinkSocket:
    if not path:
        return NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)
    fd = netns.open_netns(path)
    try:
        return netns.socket_in(fd, sockdiag.NETLINK_SOCK_DIAG)
    finally:
        os.close(fd)


def _end_in(sock: NetlinkSocket, gone: Collection[bytes], stays: Leads) -> int:
    ended = 0
    for item in sockdiag.connected(sock, UDP):
        target = layout.pack_target(Target(item.peer, item.port, local=False))
        if target in gone and not stays(item.cookie, target):
            ended += sockdiag.destroy(sock, item)
    return ended
