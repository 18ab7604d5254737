"""Addresses at which an agent answers other agents, where no device of the pod network has them.

The base address of this node's subnet is nobody's with backends that make no device of their own (host-gw, bgp,
people's own commands): a local route makes packets to it the node's, so that a question to it takes the way pods'
packets take.
In the notation of ip-route(8): ``local 10.244.1.0 dev lo table local proto 115``.

Life: ``keep`` is told the addresses again and again; it adds what is missing and removes what is not wanted any more.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import FAMILIES, Family
from pycni.model.tables import PROBE_ROUTE_PROTOCOL
from pycni.wire import rtnl

TABLE_LOCAL = 255
LOOPBACK = 1
"""Number of ``lo`` in every network namespace (LOOPBACK_IFINDEX)."""


def keep(addresses: Collection[bytes]) -> None:
    """Have exactly these packed addresses, of both families. Blocking. Raises KernelError."""
    with NetlinkSocket() as sock:
        there = {destination for family in FAMILIES for destination in _there(sock, family)}
        for address in sorted(set(addresses) - there):
            try:
                sock.request(
                    rtnl.new_route(
                        address,
                        len(address) * 8,
                        oif=LOOPBACK,
                        protocol=PROBE_ROUTE_PROTOCOL,
                        table=TABLE_LOCAL,
                        kind=rtnl.RTN_LOCAL,
                        scope=rtnl.RT_SCOPE_HOST,
                    ),
                    "make an address answer",
                )
            except KernelError as error:
                if error.errno != errno.EEXIST:  # a device has the address: that will do
                    raise
        for address in sorted(there - set(addresses)):
            sock.request(
                rtnl.del_route(
                    address,
                    len(address) * 8,
                    protocol=PROBE_ROUTE_PROTOCOL,
                    table=TABLE_LOCAL,
                    kind=rtnl.RTN_LOCAL,
                ),
                "take an address away",
            )


def _there(sock: NetlinkSocket, family: Family) -> list[bytes]:
    request = rtnl.dump_routes(int(family), table=TABLE_LOCAL, protocol=PROBE_ROUTE_PROTOCOL)
    try:
        return [rtnl.parse_route(message).destination for message in sock.dump(request, "list routes")]
    except KernelError as error:
        if error.errno in {errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
            return []  # a kernel without this family
        raise
