"""The fabric of this node in the kernel: read back what is ours, carry out differences.

Life: the network component compiles a ``FabricState``; ``read`` lists the kernel's side in the same type; ``apply``
makes the kernel agree and returns what could not be done, object by object. Between full reads the component
remembers what was applied and uses ``apply_tables`` with the few entries that changed.

Ours are: routes of protocol 112; VXLAN devices with our alias or with a name the desired state uses, and everything
permanent on them. A route on such a device that another program made (flannel, before a takeover) is listed with
kind ``adopted``, so that it differs from the desired one and is replaced in place.

Everything happens in the network namespace the driver was made in.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from pycni.errors import KernelError
from pycni.kernel import vtep
from pycni.kernel.errors import Verdict, judge
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.fabric import FabricState, VxlanLink
from pycni.model.family import Family
from pycni.model.tables import (
    LINK_ALIAS,
    ROUTE_PROTOCOL,
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    Route,
    RouteKey,
    fdb_text,
    neighbour_text,
    route_text,
)
from pycni.reconcile.delta import Delta, diff
from pycni.reconcile.order import Action, Step, steps
from pycni.wire import rtlink, rtnl

IPV6_DEFAULT_METRIC = 1024
"""What the kernel makes of metric 0 for IPv6 (IP6_RT_PRIO_USER); read back as 0."""
_LEFT_TO_KERNEL = frozenset({2, 9})
"""Protocols ``kernel`` and ``ra``: made by the kernel itself, never ours."""
_ROUTE_KINDS = {rtnl.RTN_UNICAST: "unicast", rtnl.RTN_BLACKHOLE: "blackhole"}
_KIND_NUMBERS = {name: number for number, name in _ROUTE_KINDS.items()}


class Failure(NamedTuple):
    """One entry the kernel refused. ``table`` is links, neighbours, fdb or routes."""

    table: str
    key: Any
    error: KernelError


class Tables(NamedTuple):
    """Differences of the three hot tables."""

    neighbours: Delta[NeighbourKey, Neighbour]
    fdb: Delta[FdbKey, FdbEntry]
    routes: Delta[RouteKey, Route]


class FabricDriver:
    """StateDriver of ``FabricState``. One thread at a time."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket()
        self._indexes: dict[str, int] = {}

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    # reading

    def read(self, names: Collection[str] = ()) -> FabricState:
        """What is ours now; ``names`` are VXLAN devices to take for ours whatever their alias."""
        links = [rtlink.parse_link(msg) for msg in self._sock.dump(rtlink.dump_links(), "dump links")]
        by_index = {link.ifindex: link.name for link in links}
        self._indexes = {link.name: link.ifindex for link in links}
        ours = [link for link in links if link.vxlan and (link.name in names or link.alias == LINK_ALIAS)]
        indexes = {link.ifindex: link.name for link in ours}
        return FabricState(
            links={link.name: vtep.read(self._sock, link, by_index) for link in ours},
            routes=self._read_routes(by_index, indexes),
            neighbours=self._read_neighbours(indexes),
            fdb=self._read_fdb(indexes),
        )

    def _read_routes(self, by_index: Mapping[int, str], ours: Mapping[int, str]) -> dict[RouteKey, Route]:
        found: dict[RouteKey, Route] = {}
        for family in Family:
            requests = [rtnl.dump_routes(family, protocol=ROUTE_PROTOCOL)]
            requests += [rtnl.dump_routes(family, oif=index) for index in ours]
            for request in requests:
                for msg in self._dump(request, "dump routes"):
                    entry = decode_route(rtnl.parse_route(msg), by_index, ours)
                    if entry is not None:
                        found.setdefault(*entry)
        return found

    def _read_neighbours(self, ours: Mapping[int, str]) -> dict[NeighbourKey, Neighbour]:
        found: dict[NeighbourKey, Neighbour] = {}
        for index in ours:
            for family in Family:
                for msg in self._dump(rtnl.dump_neighbours(family, index), "dump neighbours"):
                    entry = decode_neighbour(rtnl.parse_neighbour(msg), ours)
                    if entry is not None:
                        found[entry[0]] = entry[1]
        return found

    def _read_fdb(self, ours: Mapping[int, str]) -> dict[FdbKey, FdbEntry]:
        found: dict[FdbKey, FdbEntry] = {}
        for index in ours:
            for msg in self._dump(rtnl.dump_fdb(index), "dump FDB"):
                entry = decode_fdb(rtnl.parse_neighbour(msg), ours)
                if entry is not None:
                    found[entry[0]] = entry[1]
        return found

    def _dump(self, request: bytes, operation: str) -> list[Any]:
        """A dump; a filter that names a device which is gone lists nothing."""
        try:
            return self._sock.dump(request, operation)
        except KernelError as exc:
            if exc.errno in {errno.ENODEV, errno.ENOENT}:
                return []
            raise

    # applying

    def apply(self, desired: FabricState, actual: FabricState) -> list[Failure]:
        """Make the kernel agree with ``desired``, given what is there (from ``read``). Nothing is raised for a
        single object: each failure is returned, and everything else was done.

        Devices first, then neighbours, FDB and routes; removals in the reverse order; devices we no longer want last.
        """
        failures: list[Failure] = []
        left = _without(actual, self._apply_links(desired.links, actual.links, failures))
        tables = Tables(
            diff(desired.neighbours, left.neighbours),
            diff(desired.fdb, left.fdb),
            diff(desired.routes, left.routes),
        )
        failures += self.apply_tables(tables)
        for name in actual.links.keys() - desired.links.keys():
            try:
                self._sock.request(rtlink.del_link(name=name), "delete link", name)
            except KernelError as exc:
                if judge("remove", exc.errno) is not Verdict.DONE:
                    failures.append(Failure("links", name, exc))
            self._indexes.pop(name, None)
        return failures

    def apply_tables(self, tables: Tables) -> list[Failure]:
        """Carry out differences of the hot tables in one stream of messages."""
        todo = list(
            steps([("neighbours", tables.neighbours), ("fdb", tables.fdb), ("routes", tables.routes)])
        )
        failures: list[Failure] = []
        ready: list[tuple[Step, bytes]] = []
        for step in todo:
            try:
                ready.append((step, self._message(step)))
            except KernelError as exc:
                if step.action is not Action.REMOVE:  # an entry of a device that is gone went with it
                    failures.append(Failure(step.table, step.key, exc))
        results = self._sock.batch([msg for _, msg in ready])
        taken: list[Step] = []
        for (step, _), error in zip(ready, results, strict=True):
            if error is None:
                continue
            verdict = judge(step.action.value, error.errno)
            if verdict is Verdict.EXISTS and step.table == "routes":
                taken.append(step)
            elif verdict is not Verdict.DONE:
                failures.append(Failure(step.table, step.key, _named(step, error)))
        return failures + self._replace_ours(taken)

    def _replace_ours(self, taken: list[Step]) -> list[Failure]:
        """Routes whose key is in use: replace what turns out to be ours, report what is somebody else's."""
        if not taken:
            return []
        mine = self.read(
            [name for name in self._indexes if name in {step.value.device for step in taken}]
        ).routes
        failures = []
        for step in taken:
            if step.key in mine:
                [error] = self._sock.batch([self._message(step._replace(action=Action.CHANGE))])
            else:
                error = KernelError(
                    errno.EEXIST, "", "", "a route that is not ours has this destination and metric"
                )
            if error is not None:
                failures.append(Failure(step.table, step.key, _named(step, error)))
        return failures

    def _apply_links(
        self, desired: Mapping[str, VxlanLink], actual: Mapping[str, VxlanLink], failures: list[Failure]
    ) -> dict[str, vtep.Lost]:
        """Devices as they should be; returns what each changed one has lost."""
        lost: dict[str, vtep.Lost] = {}
        for name, link in desired.items():
            have = actual.get(name)
            if have == link:
                continue
            try:
                lost[name] = vtep.ensure(self._sock, link, have)
                self._indexes[name] = self._index(name, fresh=True)
            except KernelError as exc:
                failures.append(Failure("links", name, exc))
                self._indexes.pop(name, None)
        return lost

    # messages

    def _message(self, step: Step) -> bytes:
        if step.table == "routes":
            return self._route_message(step.action, step.key, step.value)
        index = self._index(step.key.device)
        if step.table == "neighbours":
            if step.action is Action.REMOVE:
                return rtnl.del_neighbour(index, step.key.address)
            return rtnl.new_neighbour(index, step.key.address, step.value.mac)
        if step.action is Action.REMOVE:
            return rtnl.del_fdb(index, step.key.mac, step.value.remote)
        return rtnl.new_fdb(index, step.key.mac, step.value.remote)

    def _route_message(self, action: Action, key: RouteKey, route: Route) -> bytes:
        oif = self._index(route.device) if route.device is not None else 0
        if action is Action.REMOVE:
            return rtnl.del_route(
                key.destination,
                key.prefix_len,
                oif=oif,
                gateway=route.gateway or b"",
                protocol=0 if route.kind == "adopted" else ROUTE_PROTOCOL,
                metric=key.metric,
                table=key.table,
            )
        return rtnl.new_route(
            key.destination,
            key.prefix_len,
            oif=oif,
            gateway=route.gateway or b"",
            source=route.source or b"",
            protocol=ROUTE_PROTOCOL,
            metric=key.metric,
            table=key.table,
            onlink=route.onlink,
            kind=_KIND_NUMBERS[route.kind],
            replace=action is Action.CHANGE,
        )

    def _index(self, name: str, *, fresh: bool = False) -> int:
        """Number of a device, remembered until a full read. Raises KernelError ENODEV naming it."""
        found = None if fresh else self._indexes.get(name)
        if found is None:
            found = vtep.find(self._sock, name).ifindex
            self._indexes[name] = found
        return found

    def forget_indexes(self, names: Iterable[str]) -> None:
        """Devices that went away or came again: look their numbers up when next needed."""
        for name in names:
            self._indexes.pop(name, None)


def decode_route(
    info: rtnl.RouteInfo, by_index: Mapping[int, str], ours: Mapping[int, str]
) -> tuple[RouteKey, Route] | None:
    """A kernel route as table entry, None when it is not ours. ``ours`` are our VXLAN devices by index."""
    mine = info.protocol == ROUTE_PROTOCOL
    if not mine and (info.oif not in ours or info.protocol in _LEFT_TO_KERNEL):
        return None
    if info.flags & rtnl.RTM_F_CLONED or info.kind not in _ROUTE_KINDS:
        return None
    family = Family(info.family)
    metric = 0 if family is Family.V6 and info.metric == IPV6_DEFAULT_METRIC else info.metric
    blackhole = info.kind == rtnl.RTN_BLACKHOLE
    return (
        RouteKey(family, info.table, info.destination, info.prefix_len, metric),
        Route(
            info.gateway or None,
            None if blackhole else by_index.get(info.oif),
            bool(info.flags & rtnl.RTNH_F_ONLINK),
            info.source or None,
            _ROUTE_KINDS[info.kind] if mine else "adopted",
        ),
    )


def decode_neighbour(
    info: rtnl.NeighbourInfo, ours: Mapping[int, str]
) -> tuple[NeighbourKey, Neighbour] | None:
    """A permanent neighbour on one of our devices, else None."""
    if not info.state & rtnl.NUD_PERMANENT or info.ifindex not in ours or not info.destination:
        return None
    return NeighbourKey(ours[info.ifindex], info.destination), Neighbour(info.mac)


def decode_fdb(info: rtnl.NeighbourInfo, ours: Mapping[int, str]) -> tuple[FdbKey, FdbEntry] | None:
    """A permanent forwarding entry on one of our devices, else None (learned ones are the kernel's)."""
    permanent = info.state & rtnl.NUD_PERMANENT and info.flags & rtnl.NTF_SELF
    if not permanent or info.ifindex not in ours or not info.destination:
        return None
    return FdbKey(ours[info.ifindex], info.mac), FdbEntry(info.destination)


def _without(state: FabricState, lost: Mapping[str, vtep.Lost]) -> FabricState:
    """What is left of a state after the kernel has dropped entries of some devices."""
    gone = {name for name, what in lost.items() if what is vtep.Lost.EVERYTHING}
    deaf = gone | {name for name, what in lost.items() if what is vtep.Lost.NEIGHBOURS}
    if not deaf:
        return state
    return FabricState(
        links=state.links,
        routes={key: route for key, route in state.routes.items() if route.device not in gone},
        neighbours={key: value for key, value in state.neighbours.items() if key.device not in deaf},
        fdb={key: value for key, value in state.fdb.items() if key.device not in gone},
    )


def _named(step: Step, error: KernelError) -> KernelError:
    """The error with operation and object in the notation of ip(8)."""
    if step.table == "routes":
        noun, obj = "route", route_text(step.key, step.value)
    elif step.table == "neighbours":
        noun, obj = "neighbour", neighbour_text(step.key, step.value)
    else:
        noun, obj = "FDB entry", fdb_text(step.key, step.value)
    return KernelError(error.errno, f"{step.action.value} {noun}", obj, error.detail)
