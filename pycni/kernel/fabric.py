"""The fabric of this node in the kernel: read back what is ours, carry out differences.

Life: the network component compiles a ``FabricState``; ``read`` lists the kernel's side in the same type; ``apply``
makes the kernel agree and returns what could not be done, object by object. Between full reads the component
remembers what was applied and uses ``apply_tables`` with the few entries that changed.

Ours are: routes of protocol 112; VXLAN, IP-in-IP and WireGuard devices with our alias or with a name the desired
state uses, and everything permanent on them. A route on such a device that another program made (flannel, before a
takeover) is listed with kind ``adopted``, so that it differs from the desired one and is replaced in place. A foreign
route in the way of a desired one is taken over when it leads the same way, else it stays and is reported.

Everything happens in the network namespace the driver was made in. ``vtep_peers`` is the firewall's business
(``agent/firewall``): neither read nor applied here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from pycni.errors import KernelError
from pycni.kernel import netns, sysctl, tunnel_kinds
from pycni.kernel.entries import (
    clear_message,
    decode_fdb,
    decode_neighbour,
    decode_route,
    is_held_by_itself,
    named,
    remove_message,
    route_key,
    route_value,
    set_message,
)
from pycni.kernel.errors import Verdict, judge
from pycni.kernel.extension import Extension
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.served import Served
from pycni.kernel.tunnel import Lost, PutSysctl, find
from pycni.kernel.udp import Udp
from pycni.kernel.wireguard import Wireguard
from pycni.model.extension import ExtensionKey, ExtensionPeer
from pycni.model.fabric import FabricState, Link, UdpLink, WireguardLink
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
    route_text,
)
from pycni.model.udp import UdpKey, UdpPeer
from pycni.model.wireguard import WireguardKey, WireguardPeer
from pycni.reconcile.delta import Delta, diff
from pycni.reconcile.order import Action, Step, steps
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import Message

SERVED = ("wireguard", "udp", "extension")
"""Tables that rtnetlink has not (``kernel/served``)."""
_NOTHING: Delta[Any, Any] = Delta({}, {}, {})


class Failure(NamedTuple):
    """One entry the kernel refused. ``table`` is links, neighbours, fdb, routes or one of SERVED."""

    table: str
    key: Any
    error: KernelError


class Tables(NamedTuple):
    """Differences of the hot tables."""

    neighbours: Delta[NeighbourKey, Neighbour]
    fdb: Delta[FdbKey, FdbEntry]
    routes: Delta[RouteKey, Route]
    wireguard: Delta[WireguardKey, WireguardPeer] = _NOTHING
    udp: Delta[UdpKey, UdpPeer] = _NOTHING
    extension: Delta[ExtensionKey, ExtensionPeer] = _NOTHING


class FabricDriver:
    """StateDriver of ``FabricState``. One thread at a time."""

    def __init__(self, sock: NetlinkSocket | None = None, put_sysctl: PutSysctl | None = None) -> None:
        """``sock`` and ``put_sysctl`` are given by tests that bring their own kernel."""
        self._home = netns.current()
        try:
            self._sock = sock or NetlinkSocket()
        except BaseException:
            os.close(self._home)
            raise
        self._put_sysctl = put_sysctl or self._put_at_home
        self.wireguard = Wireguard(self._at_home)
        """Driver of WireGuard devices; it needs the secrets before any is wanted."""
        self.udp = Udp(self._at_home)
        """Driver of the forwarder's device; it needs the secrets before it is wanted."""
        self.extension = Extension(self._at_home)
        """Runs people's own commands; it needs a folder to remember in before any is wanted."""
        self._served: tuple[Served, ...] = (self.wireguard, self.udp, self.extension)
        self._makers: dict[type, Served] = {WireguardLink: self.wireguard, UdpLink: self.udp}
        self._indexes: dict[str, int] = {}
        self._ours: set[str] = set()
        """Names of our devices as last seen."""

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        self._sock.close()
        for served in self._served:
            served.close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    # reading

    def read(self, names: Collection[str] = ()) -> FabricState:
        """What is ours now; ``names`` are devices to take for ours whatever their alias.

        Raises KernelError when the kernel cannot be read; a part of the truth is never returned.
        """
        links = [rtlink.parse_link(msg) for msg in self._sock.dump(rtlink.dump_links(), "dump links")]
        by_index = {link.ifindex: link.name for link in links}
        self._indexes = {link.name: link.ifindex for link in links}
        marked = [link for link in links if link.name in names or link.alias == LINK_ALIAS]
        plain = [link for link in marked if link.kind in tunnel_kinds.KINDS]
        devices: dict[str, Link] = {
            link.name: tunnel_kinds.read(self._sock, link, by_index) for link in plain
        }
        ours, entries = [*plain], dict[str, Any]()
        for served in self._served:
            its = [link for link in marked if served.owns(link)]
            made, entries[served.table] = served.read(self._sock, its)
            devices |= made
            ours += its
        self._ours = {link.name for link in ours}
        indexes = {link.ifindex: link.name for link in ours}
        return FabricState(
            links=devices,
            routes=self._read_routes(by_index, indexes),
            neighbours=self._read_neighbours(indexes),
            fdb=self._read_fdb([link.ifindex for link in ours if link.vxlan], indexes),
            **entries,
        )

    def _read_routes(self, by_index: Mapping[int, str], ours: Mapping[int, str]) -> dict[RouteKey, Route]:
        found: dict[RouteKey, Route] = {}
        for family in Family:
            requests = [rtnl.dump_routes(family, protocol=ROUTE_PROTOCOL)]
            requests += [rtnl.dump_routes(family, oif=index) for index in ours]
            for number, request in enumerate(requests):
                for msg in self._dump(request, "dump routes"):
                    if number and rtnl.route_protocol(msg) == ROUTE_PROTOCOL:
                        continue  # the first dump had it
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

    def _read_fdb(self, vteps: Collection[int], ours: Mapping[int, str]) -> dict[FdbKey, FdbEntry]:
        found: dict[FdbKey, FdbEntry] = {}
        for index in vteps:
            for msg in self._dump(rtnl.dump_fdb(index), "dump FDB"):
                entry = decode_fdb(rtnl.parse_neighbour(msg), ours)
                if entry is not None:
                    found[entry[0]] = entry[1]
        return found

    def _dump(self, request: bytes, operation: str) -> list[Message]:
        """A dump; a filter that names a device or table which is gone lists nothing."""
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

        Devices first, then neighbours, FDB and routes; removals in the reverse order, devices that are not wanted
        last. Entries of a device that could not be made are left alone: the device is the failure.
        """
        failures: list[Failure] = []
        lost = self._apply_links(desired.links, actual.links, failures)
        broken = {failure.key for failure in failures}
        want, have = _without(desired, broken, broken), _without(actual, broken, broken)
        gone = {name for name, what in lost.items() if what is Lost.EVERYTHING}
        deaf = gone | {name for name, what in lost.items() if what is Lost.NEIGHBOURS}
        have = _without(have, gone, deaf)
        failures += self.apply_tables(
            Tables(
                diff(want.neighbours, have.neighbours),
                diff(want.fdb, have.fdb),
                diff(want.routes, have.routes),
                **{table: diff(getattr(want, table), getattr(have, table)) for table in SERVED},
            )
        )
        for name in actual.links.keys() - desired.links.keys():
            try:
                self._sock.request(rtlink.del_link(name=name), "delete link", name)
            except KernelError as exc:
                if judge("remove", exc.errno) is not Verdict.DONE:
                    failures.append(Failure("links", name, exc))
            self._indexes.pop(name, None)
        return failures

    def apply_tables(self, tables: Tables) -> list[Failure]:
        """Carry out differences of the hot tables in one stream of messages, the served tables around it.

        A peer is there before its route, and goes after it.
        """
        failures: list[Failure] = []
        deltas: list[tuple[Served, Delta[Any, Any]]] = [
            (served, getattr(tables, served.table)) for served in self._served
        ]
        for served, delta in deltas:
            if delta.add or delta.change:
                failed = served.put({**delta.add, **delta.change})
                failures += [_failure(served, delta, key, error) for key, error in failed.items()]
        failures += self._apply_routes(tables)
        for served, delta in deltas:
            if delta.remove:
                failed = served.remove(delta.remove)
                failures += [_failure(served, delta, key, error) for key, error in failed.items()]
        return failures

    def _apply_routes(self, tables: Tables) -> list[Failure]:
        """The tables that rtnetlink has."""
        failures: list[Failure] = []
        ready: list[tuple[Step, bytes]] = []
        for step in steps(
            [("neighbours", tables.neighbours), ("fdb", tables.fdb), ("routes", tables.routes)]
        ):
            try:
                ready.append((step, self._message(step)))
            except KernelError as exc:
                if step.action is not Action.REMOVE:  # an entry of a device that is gone went with it
                    failures.append(Failure(step.table, step.key, named(step, exc)))
        results = self._sock.batch([msg for _, msg in ready])
        taken: list[Step] = []
        held: list[Step] = []
        for (step, _), error in zip(ready, results, strict=True):
            if error is None:
                continue
            verdict = judge(step.action.value, error.errno)
            if verdict is Verdict.EXISTS and step.table == "routes":
                taken.append(step)
            elif error.errno == errno.EINVAL and is_held_by_itself(step):
                held.append(step)
            elif verdict is not Verdict.DONE:
                failures.append(Failure(step.table, step.key, named(step, error)))
        return failures + self._settle(taken) + self._exchange(held)

    def _exchange(self, held: list[Step]) -> list[Failure]:
        """Routes that cannot be changed while their own older self is there: out and in again, in one go."""
        adds = [step._replace(action=Action.ADD) for step in held]
        msgs = [msg for step in adds for msg in (clear_message(step.key), self._message(step))]
        results = self._sock.batch(msgs) if msgs else []
        return [
            Failure(step.table, step.key, named(step, error))
            for step, error in zip(held, results[1::2], strict=True)
            if error is not None
        ]

    def _settle(self, taken: list[Step]) -> list[Failure]:
        """Routes whose key is in use: replace what is ours or leads the same way, report what is somebody else's."""
        if not taken:
            return []
        holders: dict[RouteKey, list[rtnl.RouteInfo]] = {step.key: [] for step in taken}
        for family, table in {(step.key.family, step.key.table) for step in taken}:
            for msg in self._dump(rtnl.dump_routes(family, table=table), "dump routes"):
                info = rtnl.parse_route(msg)
                holders.get(route_key(info), []).append(info)
        failures: list[Failure] = []
        for step in taken:
            error = next(filter(None, (self._objection(step, info) for info in holders[step.key])), None)
            if error is None:
                [error] = self._sock.batch([self._message(step._replace(action=Action.CHANGE))])
            if error is not None:
                failures.append(Failure(step.table, step.key, named(step, error)))
        return failures

    def _objection(self, step: Step, info: rtnl.RouteInfo) -> KernelError | None:
        """Why the route that has the key of a desired one must not be replaced by it."""
        if info.protocol == ROUTE_PROTOCOL:
            return None
        names = {index: name for name, index in self._indexes.items()}
        there = route_value(info, names)
        if there.device in self._ours or there[:2] == step.value[:2]:
            return None
        words = route_text(step.key, there).replace(f" proto {ROUTE_PROTOCOL}", f" proto {info.protocol}")
        return KernelError(errno.EEXIST, "", "", f"in the way and not ours: {words}")

    def _apply_links(
        self, desired: Mapping[str, Link], actual: Mapping[str, Link], failures: list[Failure]
    ) -> dict[str, Lost]:
        """Devices as they should be; returns what each changed one has lost."""
        lost: dict[str, Lost] = {}
        for name, link in desired.items():
            have = actual.get(name)
            if have is not None and tunnel_kinds.same(link, have):
                continue
            try:
                lost[name] = tunnel_kinds.ensure(self._sock, self._makers, link, have, self._put_sysctl)
                self._indexes[name] = find(self._sock, name).ifindex
                self._ours.add(name)
            except KernelError as exc:
                failures.append(Failure("links", name, exc))
                self._indexes.pop(name, None)
        return lost

    def _message(self, step: Step) -> bytes:
        device = step.value.device if step.table == "routes" else step.key.device
        index = self._index(device) if device is not None else 0
        return remove_message(step, index) if step.action is Action.REMOVE else set_message(step, index)

    def _index(self, name: str) -> int:
        """Number of a device, remembered until a full read. Raises KernelError ENODEV naming it."""
        found = self._indexes.get(name)
        if found is None:
            found = find(self._sock, name).ifindex
            self._indexes[name] = found
        return found

    def _put_at_home(self, name: str, value: int) -> None:
        """Sysctls are those of the calling thread's namespace: go home for it when called from elsewhere."""
        self._at_home(lambda: sysctl.put(name, value))

    def _at_home(self, job: Callable[[], Any]) -> Any:
        return job() if netns.is_current(self._home) else netns.run_in(self._home, job)


def _without(state: FabricState, devices: Collection[str], neighbour_devices: Collection[str]) -> FabricState:
    """A state without the entries of some devices."""
    if not devices and not neighbour_devices:
        return state
    served: dict[str, Any] = {
        table: {key: value for key, value in getattr(state, table).items() if key.device not in devices}
        for table in SERVED
    }
    return FabricState(
        links=state.links,
        routes={key: route for key, route in state.routes.items() if route.device not in devices},
        neighbours={k: value for k, value in state.neighbours.items() if k.device not in neighbour_devices},
        fdb={key: value for key, value in state.fdb.items() if key.device not in devices},
        **served,
    )


def _failure(served: Served, delta: Delta[Any, Any], key: Any, error: KernelError) -> Failure:
    """A failure that names operation and entry."""
    action, table = next(
        (action, table)
        for action, table in (("add", delta.add), ("change", delta.change), ("remove", delta.remove))
        if key in table
    )
    words = served.text(key, table[key])
    return Failure(
        served.table, key, KernelError(error.errno, f"{action} {served.label}", words, error.detail)
    )
