"""Counters and addresses of services for ``pycnictl top`` and ``flows``.

Life: asked over the agent's control socket; read on the proxy's worker thread, frontends of a service added up. What a
data plane does not count is -1: nftables and eBPF count connections, IPVS bytes and packets too.

    GET /rates/services              pycni.traffic.model.Services
    GET /names/services              pycni.traffic.model.ServiceNames
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.traffic import JSON, Paced
from pycni.errors import PycniError
from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.model.service import Frontend
from pycni.traffic.model import EARLY, ServiceCount, ServiceName, ServiceNames, Services
from pycni_proxy.engine import Engine
from pycni_proxy.status import counters

T = TypeVar("T")


class Work(Protocol):
    """Runs a blocking call on the thread that owns the engine."""

    def __call__(self, job: Callable[[], T], /) -> Awaitable[T]:
        """What the call returns."""


class ServiceTraffic:
    """One per component, on its event loop."""

    def __init__(self, engine: Callable[[], Engine | None], work: Work) -> None:
        self._engine = engine
        self._work = work
        self._passes = 0
        self._counted = Paced(self._count)

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {"/rates/services": self._rates, "/names/services": self._names}

    def programmed(self) -> None:
        """A pass has changed services."""
        self._passes += 1

    async def _rates(self, _query: str) -> Response:
        try:
            return _answer(await self._work(self._counted))
        except PycniError as error:
            return Response(503, body=f"{error}\n")

    def _count(self) -> Services:
        engine = self._engine()
        if engine is None:
            return Services(at_ns=time.monotonic_ns())
        counted = counters(engine)
        at_ns = time.monotonic_ns()
        rows = []
        for key, frontends in engine.frontends().items():
            found = [item for frontend in frontends if (item := counted.get(frontend.key)) is not None]
            if found:
                connections, packets_in, packets_out, bytes_in, bytes_out = (
                    _sum(column) for column in zip(*found, strict=True)
                )
                rows.append(ServiceCount(key, connections, bytes_in, packets_in, bytes_out, packets_out))
        return Services(at_ns=at_ns, planes=_planes(engine), rows=tuple(rows))

    async def _names(self, _query: str) -> Response:
        return _answer(await self._work(partial(self._named, self._passes)))

    def _named(self, passes: int) -> ServiceNames:
        engine = self._engine()
        if engine is None:
            return ServiceNames(generation="none")
        planes, served = _planes(engine), engine.frontends()
        return ServiceNames(
            generation=f"{id(engine):x}.{passes}",
            planes=planes,
            frontends=tuple(_frontends(served)),
            endpoints=tuple(_endpoints(served)) if set(EARLY).intersection(planes) else (),
        )


def _planes(engine: Engine) -> tuple[str, ...]:
    return tuple(plane.name for plane in engine.planes)


def _sum(column: tuple[int, ...]) -> int:
    """-1 when none is known."""
    known = [value for value in column if value >= 0]
    return sum(known) if known else -1


def _frontends(served: Mapping[str, tuple[Frontend, ...]]) -> Iterator[ServiceName]:
    for service, frontends in served.items():
        for item in frontends:
            key = item.key
            address = show(key.address) if key.address else ""
            protocol = PROTOCOL_NAMES.get(key.protocol, str(key.protocol))
            yield ServiceName(address, protocol, key.port, service)


def _endpoints(served: Mapping[str, tuple[Frontend, ...]]) -> Iterator[ServiceName]:
    for service, frontends in served.items():
        ends = {
            (target.address, item.key.protocol, target.port)
            for item in frontends
            for pool in item.pools
            for target in pool.targets
        }
        for address, number, port in sorted(ends):
            yield ServiceName(show(address), PROTOCOL_NAMES.get(number, str(number)), port, service)


def _answer(value: msgspec.Struct) -> Response:
    return Response(200, JSON, msgspec.json.encode(value).decode() + "\n")
