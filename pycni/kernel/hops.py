"""Routes by one or several gateways, kept under a protocol number of their own: what a routing protocol learned.

Life: ``read`` lists what has the number; ``apply`` makes the kernel agree with what is wanted, by the difference from
what was read or applied last, and returns what was refused. A gateway that is on no network of this node is replaced
by the one the kernel reaches it by, as routers do (recursive next hops); when that changes, ``apply`` sees it, as every
gateway is asked for again each time. Nobody else's route is touched: an equal one of another protocol is "in the way".

Everything happens in the network namespace of the thread the driver was made on.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import FAMILIES, Family, show
from pycni.wire import rtnl

METRICS = {Family.V4: 32, Family.V6: 2048}
"""Less wanted than routes without one, which have 0 and 1024: what this node knows by itself goes first."""


class Destination(NamedTuple):
    """A prefix."""

    address: bytes
    length: int

    def __str__(self) -> str:
        return f"{show(self.address)}/{self.length}"


Routes = Mapping[Destination, tuple[bytes, ...]]
"""Gateways, sorted."""


class Refused(NamedTuple):
    """A route that could not be made."""

    destination: Destination
    error: KernelError


class HopRoutes:
    """One thread at a time; close it."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._sock = NetlinkSocket()
        self._there: dict[Destination, tuple[bytes, ...]] | None = None

    def close(self) -> None:
        """Close the socket; routes stay."""
        self._sock.close()

    def read(self) -> Routes:
        """What is there. Raises KernelError."""
        found: dict[Destination, tuple[bytes, ...]] = {}
        for family in FAMILIES:
            for msg in self._sock.dump(rtnl.dump_routes(int(family), protocol=self._protocol), "dump routes"):
                info = rtnl.parse_route(msg)
                if info.protocol == self._protocol and info.metric == METRICS[family]:
                    found[Destination(info.destination, info.prefix_len)] = tuple(
                        sorted(info.hops or (info.gateway,))
                    )
        self._there = found
        return found

    def reached(self, wanted: Routes) -> Routes:
        """The same with the gateways by which the kernel reaches them; without what there is no way to. KernelError."""
        wanted = {item: hops for item, hops in wanted.items() if item.address not in hops}
        ways = self._ways({hop for hops in wanted.values() for hop in hops})
        found = {
            item: tuple(sorted({way[0] for hop in hops if (way := ways[hop]) is not None}))
            for item, hops in wanted.items()
        }
        return {item: hops for item, hops in found.items() if hops}

    def apply(self, wanted: Routes) -> list[Refused]:
        """Make these routes and no others. Raises KernelError when nothing can be done."""
        there = dict(self.read() if self._there is None else self._there)
        # A neighbour that tells of its own address is next door anyhow; IPv6 finds no gateway behind a gateway.
        wanted = {item: hops for item, hops in wanted.items() if item.address not in hops}
        ways = self._ways({hop for hops in wanted.values() for hop in hops})
        changes: list[tuple[Destination, tuple[bytes, ...], bytes]] = []
        refused = []
        for destination, hops in wanted.items():
            found = sorted({way for hop in hops if (way := ways[hop]) is not None})
            gateways = tuple(gateway for gateway, _ in found)
            if not found:
                text = f"{destination} via {', '.join(map(show, hops))}"
                refused.append(Refused(destination, KernelError(errno.ENETUNREACH, "add route", text)))
            elif there.get(destination) != gateways:
                changes.append(
                    (destination, gateways, self._message(destination, found, destination in there))
                )
        lost = {one.destination for one in refused}
        changes += [(item, (), self._removal(item)) for item in there if item not in wanted or item in lost]
        errors = self._sock.batch([msg for _, _, msg in changes], "change route")
        for (destination, gateways, _), result in zip(changes, errors, strict=True):
            if result is not None and (gateways or result.errno != errno.ESRCH):
                text = f"{destination} via {', '.join(map(show, gateways))}" if gateways else str(destination)
                named = KernelError(result.errno, "change route", text, result.detail)
                refused.append(Refused(destination, named))
            elif gateways:
                there[destination] = gateways
            else:
                there.pop(destination, None)
        self._there = there
        return refused

    def _message(self, destination: Destination, hops: list[tuple[bytes, int]], replace: bool) -> bytes:
        """In the place of our own only: of somebody else's equal route the kernel says EEXIST."""
        protocol, (gateway, oif) = self._protocol, hops[0]
        metric = _metric(destination)
        if len(hops) > 1:
            return rtnl.new_route(*destination, hops=hops, protocol=protocol, metric=metric, replace=replace)
        return rtnl.new_route(
            *destination, oif=oif, gateway=gateway, protocol=protocol, metric=metric, replace=replace
        )

    def _removal(self, destination: Destination) -> bytes:
        return rtnl.del_route(*destination, protocol=self._protocol, metric=_metric(destination))

    def _ways(self, hops: set[bytes]) -> dict[bytes, tuple[bytes, int] | None]:
        """The gateway next to this node, and its device, for each; None: there is no way, or only one of our own."""
        found: dict[bytes, tuple[bytes, int] | None] = {}
        for hop in hops:
            try:
                info = rtnl.parse_route(self._sock.request(rtnl.get_route(hop), "get route", show(hop))[0])
            except KernelError as error:
                if error.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}:
                    raise
                found[hop] = None
                continue
            unusable = info.kind != rtnl.RTN_UNICAST or not info.oif or info.protocol == self._protocol
            found[hop] = None if unusable else (info.gateway or hop, info.oif)
        return found


def _metric(destination: Destination) -> int:
    return METRICS[Family.of_packed(destination.address)]
