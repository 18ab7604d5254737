"""What ``pycnictl services`` gets to know: the services as programmed, with what the kernel says of them.

Life: the agent's control socket asks ``answer`` on the proxy's worker thread; it reads the engine's frontends, the
drivers' counters once, and for a moderate number of frontends the state of every endpoint. The answer is JSON; its
shape is the structs below.

    GET /services                    all services
    GET /services?name=NS/NAME       one, or every service of that NAME without a namespace
    GET /services?namespace=NS       those of one namespace
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from pycni.agent.httpd import Response
from pycni.agent.status_dump import tables
from pycni.agent.status_model import Section
from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.model.service import Frontend, FrontendKey, Target
from pycni_proxy.base import Counters, TargetState
from pycni_proxy.engine import Engine, SyncResult

Frontends = Mapping[str, tuple[Frontend, ...]]

DETAILED = 512
"""Up to so many frontends their endpoints' state is asked from the kernel; above it is what was programmed."""


class Base(NamedTuple):
    """What holds for all services."""

    node: str
    notes: Sequence[str]
    """Why the data plane is not what was asked for."""
    trouble: str
    """Why the kernel is not as the services say; "" when it is."""
    others: Sequence[str]
    """Other service proxies on this node."""


class EndpointStatus(msgspec.Struct, frozen=True):
    """One endpoint of a frontend."""

    address: str
    port: int
    local: bool
    weight: int
    """0: draining."""
    active: int
    """Open connections; -1: this data plane does not count them."""
    inside_only: bool
    """For traffic from pods and this node only (externalTrafficPolicy Local)."""


class FrontendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual address."""

    kind: str
    address: str
    """"" for node ports."""
    protocol: str
    port: int
    port_name: str
    data_plane: str
    """"" when no data plane serves it."""
    scheduler: str
    affinity_s: int
    local_only: bool
    verdict: str
    """What a new connection meets without endpoints: reject, drop; "" with some."""
    endpoints: tuple[EndpointStatus, ...]
    connections: int
    """Since it was programmed; -1 (also below): not counted."""
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service."""

    namespace: str
    name: str
    frontends: tuple[FrontendStatus, ...]
    problems: tuple[str, ...]
    programmed: float
    """Seconds since the epoch; 0.0: never."""
    latency_s: float
    """From the change reaching this agent to the kernel having it; -1.0: not known."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    node: str
    data_planes: tuple[str, ...]
    notes: tuple[str, ...]
    trouble: str
    others: tuple[str, ...]
    services: tuple[ServiceStatus, ...]


class Programmed(NamedTuple):
    """When a service was last changed in the kernel, and how long that took from hearing of it."""

    at: float
    took_s: float


class History:
    """Last programming by service. One event loop writes, others may read."""

    def __init__(self) -> None:
        self._last: dict[str, Programmed] = {}

    def note(self, result: SyncResult, took_s: float, now: float) -> None:
        """A pass succeeded; ``now`` in seconds since the epoch."""
        entry = Programmed(now, took_s)
        for key, change in result.services.items():
            if change.after:
                self._last[key] = entry
            else:
                self._last.pop(key, None)

    def of(self, key: str) -> Programmed:
        """The last one of a service."""
        return self._last.get(key, Programmed(0.0, -1.0))


def answer(
    base: Base, engine: Engine | None, history: History, checks: Mapping[str, str], query: str
) -> Response:
    """The HTTP answer. ``checks``: problems of health-check ports by service. Raises KernelError."""
    asked = {name: values[-1] for name, values in parse_qs(query).items()}
    body = msgspec.json.encode(collect(base, engine, history, checks, asked))
    return Response(200, "application/json", body.decode() + "\n")


def collect(
    base: Base,
    engine: Engine | None,
    history: History,
    checks: Mapping[str, str],
    asked: Mapping[str, str],
) -> Status:
    """The status of the services asked for."""
    services: tuple[ServiceStatus, ...] = ()
    if engine is not None:
        frontends, problems = engine.frontends(), engine.problems
        keys = sorted(
            key for key in frontends.keys() | problems.keys() | checks.keys() if _is_asked(key, asked)
        )
        count = sum(len(frontends.get(key, ())) for key in keys)
        counted = counters(engine) if keys else {}
        services = tuple(
            ServiceStatus(
                namespace=key.partition("/")[0],
                name=key.partition("/")[2],
                frontends=tuple(
                    _frontend(engine, item, counted.get(item.key), detailed=count <= DETAILED)
                    for item in frontends.get(key, ())
                ),
                problems=(*problems.get(key, ()), *([checks[key]] if key in checks else [])),
                programmed=history.of(key).at,
                latency_s=history.of(key).took_s,
            )
            for key in keys
        )
    return Status(
        node=base.node,
        data_planes=tuple(plane.name for plane in engine.planes) if engine is not None else (),
        notes=tuple(base.notes),
        trouble=base.trouble,
        others=tuple(base.others),
        services=services,
    )


def dump(engine: Engine) -> Sequence[Section]:
    """Every data plane's tables as wanted and as the kernel has them. Raises KernelError."""
    return [
        tables(
            "services",
            plane.name,
            plane.compiler.text,
            engine.tables(plane.name),
            plane.driver.read(),
        )
        for plane in engine.planes
    ]


def counters(engine: Engine) -> dict[FrontendKey, Counters]:
    """The counters of all data planes, added where several serve the same frontend. Raises KernelError."""
    found: dict[FrontendKey, Counters] = {}
    for plane in engine.planes:
        for key, item in plane.driver.counters().items():
            known = found.get(key)
            found[key] = item if known is None else Counters(*map(_plus, known, item))
    return found


def _plus(first: int, second: int) -> int:
    return max(first, second) if min(first, second) < 0 else first + second


def _is_asked(key: str, asked: Mapping[str, str]) -> bool:
    namespace, _, name = key.partition("/")
    wanted = asked.get("name", "")
    if wanted and wanted not in (key, name):
        return False
    return asked.get("namespace", namespace) == namespace


def _frontend(engine: Engine, item: Frontend, counted: Counters | None, *, detailed: bool) -> FrontendStatus:
    plane = engine.plane_of(item)
    counted = counted or Counters(-1)
    live: Mapping[Target, TargetState] = {}
    if detailed and plane is not None:
        live = {state.target: state for state in plane.driver.targets(item.key)}
    endpoints = tuple(_endpoints(item, live))
    empty = not item.pool.targets
    return FrontendStatus(
        kind=item.kind.label,
        address=show(item.key.address) if item.key.address else "",
        protocol=PROTOCOL_NAMES.get(item.key.protocol, str(item.key.protocol)),
        port=item.key.port,
        port_name=item.name.port,
        data_plane=plane.name if plane is not None else "",
        scheduler=item.options.scheduler,
        affinity_s=item.options.affinity_s,
        local_only=item.local_only,
        verdict=item.pool.empty.name.lower() if empty else "",
        endpoints=endpoints,
        connections=counted.connections,
        packets_in=counted.packets_in,
        packets_out=counted.packets_out,
        bytes_in=counted.bytes_in,
        bytes_out=counted.bytes_out,
    )


def _endpoints(item: Frontend, live: Mapping[Target, TargetState]) -> Iterator[EndpointStatus]:
    """Every endpoint once, in order; those the kernel still has though they are gone (draining) at the end."""
    weights: dict[Target, int] = {}
    for pool in item.pools:
        weights.update(dict.fromkeys(pool.draining, 0))
    outside = set(item.pool.targets) | set(item.pool.draining)
    for pool in item.pools:
        weights.update(dict.fromkeys(pool.targets, 1))
    known = {(target.address, target.port) for target in weights}
    shown = sorted(weights) + sorted(target for target in live if (target.address, target.port) not in known)
    states = {(state.target.address, state.target.port): state for state in live.values()}
    for target in shown:
        state = states.get((target.address, target.port))
        yield EndpointStatus(
            show(target.address),
            target.port,
            target.local,
            state.weight if state is not None else weights.get(target, 0),
            state.active if state is not None else -1,
            target in weights and target not in outside,
        )
