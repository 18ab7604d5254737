"""From objects to kernel tables: the middle of the service proxy, whatever data planes it has.

Life of a change: ``sync`` is told which keys of the store changed; ``ServiceIndex`` says which services that touches;
each is resolved into frontends; ``Claims`` settles who has an address that several want; every frontend goes to the
first data plane that does not refuse it; the service's rows before and after go through that plane's ``Ledger``; what
differs is one batch for the plane's driver. A service whose frontends stay equal costs nothing further.

A full pass (the first one, the periodic one, one after a failure) resolves everything, reads back what is ours in the
kernel and applies the whole difference, so a restarted agent adopts what is there. Memory holds one copy of frontends
and tables: rows before a change are compiled again from the frontends before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pycni.errors import PycniError
from pycni.model.kube import SERVICE, EndpointSlice, Service
from pycni.model.service import Frontend, FrontendKey, HealthCheck, NodeFacts, Resolved
from pycni.reconcile.collection import no_collection
from pycni.reconcile.ledger import Ledger
from pycni.store import Objects
from pycni.view.services import ServiceIndex, resolve
from pycni_proxy.base import Changes, Dataplane, Remarking, Tables
from pycni_proxy.claims import Claims

_NOTHING = Resolved()
Resolve = Callable[[Service, Sequence[EndpointSlice], NodeFacts], Resolved]


class Change(NamedTuple):
    """What a pass changed of one service: its frontends as they were and as they are."""

    before: tuple[Frontend, ...]
    after: tuple[Frontend, ...]


class SyncResult(NamedTuple):
    """What a pass did."""

    services: Mapping[str, Change]
    """By service key; only services whose frontends changed."""
    operations: int
    """Rows added, changed and removed in the kernel."""
    looked_at: int
    """Services resolved."""
    full: bool
    resolve_s: float
    apply_s: float
    changed: Mapping[str, float]
    """Services in ``services`` with their last-change-trigger-time, when they have one."""


class _Plane(NamedTuple):
    name: str
    dataplane: Dataplane
    ledger: Ledger
    remark: Callable[[Frontend], str] | None
    """See ``base.Remarking``."""


class Engine:
    """Holds the desired state of all services of a node. One thread at a time."""

    def __init__(self, facts: NodeFacts, planes: Sequence[Dataplane], *, resolver: Resolve = resolve) -> None:
        """``planes``: the wanted one first; a later one serves the frontends that all before it refuse.

        Behind a partial data plane the next one serves the same frontends for what the partial one does not see.
        """
        if not planes:
            raise ValueError("no data plane")
        self.facts = facts
        self._resolve = resolver
        self._index = ServiceIndex()
        self._claims = Claims()
        self._resolved: dict[str, Resolved] = {}
        self._checks: dict[str, HealthCheck] = {}
        """Of the services that have one: asked for after every pass, whatever the number of services."""
        self._served: dict[str, tuple[Frontend, ...]] = {}
        self._planes = [
            _Plane(
                plane.name,
                plane,
                Ledger(plane.compiler.tables, plane.compiler.shared),
                plane.compiler.remark if isinstance(plane.compiler, Remarking) else None,
            )
            for plane in planes
        ]
        self._stale = True
        """The kernel is not known to be as desired: the next pass reads it back."""
        for plane in self._planes:
            plane.ledger.put(plane.dataplane.compiler.common())
        self._problems: dict[str, tuple[str, ...]] = {}

    # --- what there is ---------------------------------------------------------------------------------------

    def frontends(self) -> Mapping[str, tuple[Frontend, ...]]:
        """Frontends by service key, those that lost their address to another service left out. Do not change it."""
        return self._served

    def health_checks(self) -> Iterator[HealthCheck]:
        """The healthCheckNodePorts this node has to answer."""
        return iter(self._checks.values())

    @property
    def problems(self) -> Mapping[str, tuple[str, ...]]:
        """What cannot be honoured, by service key, one line each."""
        return self._problems

    def tables(self, plane: str) -> Tables:
        """Desired tables of a data plane. Do not change them."""
        return next(item.ledger.tables for item in self._planes if item.name == plane)

    @property
    def planes(self) -> tuple[Dataplane, ...]:
        """The data planes, the wanted one first."""
        return tuple(item.dataplane for item in self._planes)

    def plane_of(self, frontend: Frontend) -> Dataplane | None:
        """Who serves a frontend; None: nobody can."""
        homes = self._homes(frontend)
        return homes[0].dataplane if homes else None

    # --- passes ----------------------------------------------------------------------------------------------

    def sync(self, objects: Objects, changed: Mapping[str, set[str]] | None = None) -> SyncResult:
        """Bring the kernel to what the objects say. ``changed`` is a ``Tracker``'s; None: a full pass.

        Raises KernelError, or ExceptionGroup when several data planes fail; the next pass is a full one then.
        """
        full = changed is None or self._stale
        started = time.perf_counter()
        if full:
            objects = objects.frozen()
        keys = self._index.update(objects, None if full else changed)
        if full:
            keys = keys | self._resolved.keys()
        with no_collection(freeze=not self._served) if full else contextlib.nullcontext():
            services = self._take(objects, keys, full=full)
            resolved = time.perf_counter()
            operations = self._apply(full=full)
        return SyncResult(
            services=services,
            operations=operations,
            looked_at=len(keys),
            full=full,
            resolve_s=resolved - started,
            apply_s=time.perf_counter() - resolved,
            changed={
                key: self._resolved[key].changed
                for key in services
                if key in self._resolved and self._resolved[key].changed
            },
        )

    def _take(self, objects: Objects, keys: Iterable[str], *, full: bool) -> dict[str, Change]:
        """Resolve services anew, and put what changed into the ledgers."""
        services: Mapping[str, Service] = objects.of(SERVICE)
        affected: set[str] = set()
        for key in keys:
            service = services.get(key)
            was = self._resolved.get(key, _NOTHING)
            now = _NOTHING
            if service is not None:
                now = self._resolve(service, self._index.slices_of(key), self.facts)
            created = 0 if service is None else service.meta.created
            if was == now and created == self._claims.created(key, created):
                continue
            if now == _NOTHING:
                del self._resolved[key]
            else:
                self._resolved[key] = now
            if now.health_check is not None:
                self._checks[key] = now.health_check
            else:
                self._checks.pop(key, None)
            affected.add(key)
            affected |= self._claims.update(key, created, _keys(was), _keys(now))
        found = {}
        for key in affected:
            self._note_problems(key)
            before, after = self._served.get(key, ()), self._won(key)
            if before != after:
                found[key] = Change(before, after)
        self._record(found, full=full)
        return found

    def _record(self, changes: Mapping[str, Change], *, full: bool) -> None:
        """All removals before all additions: an address may move from one service to another."""
        for change in changes.values():
            for plane, frontends in self._divided(change.before):
                plane.ledger.drop(plane.dataplane.compiler.rows(frontends))
        for key, change in changes.items():
            for plane, frontends in self._divided(change.after):
                plane.ledger.put(plane.dataplane.compiler.rows(frontends), note=not full)
            if change.after:
                self._served[key] = change.after
            else:
                self._served.pop(key, None)

    def _won(self, key: str) -> tuple[Frontend, ...]:
        """The frontends of a service that are its own; the same object as resolved when all are."""
        frontends = self._resolved.get(key, _NOTHING).frontends
        if all(self._claims.owner(item.key) == key for item in frontends):
            return frontends
        return tuple(item for item in frontends if self._claims.owner(item.key) == key)

    def _divided(self, frontends: tuple[Frontend, ...]) -> list[tuple[_Plane, Sequence[Frontend]]]:
        """Frontends by the data planes that serve them."""
        if not frontends:
            return []
        first = self._planes[0]
        homes = [self._homes(item) for item in frontends]
        if all(home == [first] for home in homes):
            return [(first, frontends)]
        return [
            (plane, mine)
            for plane in self._planes
            if (mine := [item for item, home in zip(frontends, homes, strict=True) if plane in home])
        ]

    def _homes(self, frontend: Frontend) -> list[_Plane]:
        """Who serves a frontend: one data plane, and before it partial ones."""
        found = []
        for plane in self._planes:
            if not plane.dataplane.compiler.refusal(frontend):
                found.append(plane)
                if not plane.dataplane.partial:
                    break
        return found

    def _note_problems(self, key: str) -> None:
        resolved = self._resolved.get(key, _NOTHING)
        lines = list(resolved.problems)
        for frontend in resolved.frontends:
            owner = self._claims.owner(frontend.key)
            if owner != key:
                lines.append(f"{frontend.kind.label} {frontend.key} is service {owner}'s, which came first")
                continue
            homes = self._homes(frontend)
            home = homes[0] if homes else None
            for plane in self._planes:
                if plane is home:
                    break
                reason = plane.dataplane.compiler.refusal(frontend)
                then = f"served by {home.name}" if home is not None else "not served"
                lines.append(f"{frontend.kind.label} {frontend.key}: {plane.name} cannot: {reason}; {then}")
            lines += [
                f"{frontend.kind.label} {frontend.key}: {plane.name}: {remark}"
                for plane in homes
                if plane.remark is not None and (remark := plane.remark(frontend))
            ]
        if lines:
            self._problems[key] = tuple(lines)
        else:
            self._problems.pop(key, None)

    def _apply(self, *, full: bool) -> int:
        self._stale = True
        batches: list[tuple[_Plane, Changes]] = []
        for plane in self._planes:
            changes = plane.ledger.against(plane.dataplane.driver.read()) if full else plane.ledger.take()
            if changes:
                batches.append((plane, changes))
        # What only goes away goes last: a frontend that moves to another data plane is never without one.
        batches.sort(key=lambda item: not any(delta.add or delta.change for _, delta in item[1]))
        errors: list[Exception] = []
        for plane, changes in batches:
            try:
                plane.dataplane.driver.apply(changes)
            except* PycniError as group:
                errors += group.exceptions
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("services", errors)
        self._stale = False
        return sum(delta.size for _, changes in batches for _, delta in changes)


def _keys(resolved: Resolved) -> list[FrontendKey]:
    return [item.key for item in resolved.frontends]
