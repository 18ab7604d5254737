"""Tells when routes to pods, or the gateway addresses they send by, are taken away: a wake-up, not the truth.

The kernel announces every route and address that goes; a filter lets pass removed routes of protocol 114 and removed
addresses. Pods that are deleted are announced too (IPv4 routes that go with their device are not): whether
something is missing is for the receiver to find out. A host end that is set down by hand takes its IPv4 routes along in
silence; that is found by the periodic look.

    nlmsghdr (16 bytes, type at 4) | rtmsg: family, dst len, src len, tos, table, protocol, scope, type, flags:32
                                                        (include/uapi/linux/rtnetlink.h)
"""

from __future__ import annotations

import errno
import socket
import struct

from pycni.attach.routed import GATEWAYS
from pycni.errors import KernelError
from pycni.kernel.netlink import SOL_NETLINK
from pycni.kernel.sockfilter import (
    ACCEPT,
    DROP,
    JUMP_EQUAL,
    LOAD_BYTE,
    LOAD_HALF,
    as_loaded,
    attach,
)
from pycni.model.tables import POD_ROUTE_PROTOCOL
from pycni.wire import rtnl
from pycni.wire.netlink import MalformedError, split

_GROUPS = (5, 7, 9, 11)
"""RTNLGRP_ IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_ADD_MEMBERSHIP = 1
_REMOVED = [
    (LOAD_HALF, 0, 0, 4),
    (JUMP_EQUAL, 3, 0, as_loaded("H", rtnl.RTM_DELADDR)),
    (JUMP_EQUAL, 0, 3, as_loaded("H", rtnl.RTM_DELROUTE)),
    (LOAD_BYTE, 0, 0, 21),
    (JUMP_EQUAL, 0, 1, POD_ROUTE_PROTOCOL),
    ACCEPT,
    DROP,
]
_GATEWAYS = frozenset(gateway.packed for gateway in GATEWAYS.values())


class RouteWatch:
    """A non-blocking socket in the namespace it was made in; give it to an event loop's ``add_reader``."""

    def __init__(self) -> None:
        """Raises KernelError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_NETLINK, kind, 0)
        try:
            attach(self._sock, _REMOVED)
            self._sock.bind((0, 0))
            for group in _GROUPS:
                self._sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as exc:
            self._sock.close()
            raise KernelError(exc.errno or errno.EIO, "watch routes to pods") from exc

    def fileno(self) -> int:
        """File descriptor, for the event loop."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def drain(self) -> set[bytes | int]:
        """What went since the last call: routes by destination, gateways' addresses by the index of the device.

        ``b""`` among them: some announcements were lost.
        """
        found: set[bytes | int] = set()
        while True:
            try:
                found |= removed(self._sock.recv(1 << 16))
            except BlockingIOError:
                return found
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise KernelError(exc.errno or errno.EIO, "watch routes to pods") from exc
                found.add(b"")


def removed(datagram: bytes) -> set[bytes | int]:
    """What one datagram says has gone."""
    found: set[bytes | int] = set()
    try:
        for msg in split(datagram):
            if msg.kind == rtnl.RTM_DELROUTE:
                found.add(rtnl.parse_route(msg).destination)
            elif msg.kind == rtnl.RTM_DELADDR:
                info = rtnl.parse_address(msg)
                if info.address in _GATEWAYS:
                    found.add(info.ifindex)
    except (MalformedError, struct.error):
        found.add(b"")
    return found
