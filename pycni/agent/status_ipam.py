"""The addresses of this node's pods, for ``pycnictl ipam``: who has which, what is irregular, taking one back.

Life: answered from the collector's journal and the records of pods, on threads, once the CNI side serves; until then
the answer is 503. Only what is found gone is released; with ``force`` also what nobody can say anything about, and an
address of a container that runs, which then loses its network as by DEL.

    GET /ipam                        every reservation (IpamStatus)
    GET /ipam/check                  what is irregular (IpamStatus)
    GET /ipam/release?address=&network=&force=1      one back (Released); 400: refused, and why
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import msgspec

from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.status_model import IpamStatus, Released, Reserved, encode
from pycni.errors import PycniError
from pycni.model.endpoint import Endpoint, Owner

if TYPE_CHECKING:
    from pycni.agent.collector import Collector
    from pycni.agent.pods import Pods
    from pycni.ipam.audit import Finding, Row
    from pycni.ipam.endpoints import EndpointStore
    from pycni.model.podnet import PodNetwork

JSON = "application/json"
NOT_YET = "the CNI side of this agent does not serve yet"
LEAKED = frozenset({"leaked-endpoint", "leaked-reservation"})


class Attached(NamedTuple):
    """The CNI side of the agent, as far as it is asked about."""

    endpoints: EndpointStore
    collector: Collector
    pods: Pods
    podnet: Callable[[], PodNetwork | None]
    remove: Callable[[Endpoint], None]
    """Remove an attachment as DEL would; raises CniError."""


class IpamRoutes:
    """One per agent."""

    def __init__(self, node: str, attached: Callable[[], Attached | None]) -> None:
        self._node = node
        self._attached = attached

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {"/ipam": self._show, "/ipam/check": self._check, "/ipam/release": self._release}

    async def _show(self, _query: str) -> Response:
        side = self._attached()
        if side is None:
            return Response(503, body=f"{NOT_YET}\n")
        rows = await asyncio.to_thread(side.collector.rows)
        return Response(200, JSON, encode(IpamStatus(node=self._node, rows=tuple(map(_of_row, rows)))))

    async def _check(self, _query: str) -> Response:
        side = self._attached()
        if side is None:
            return Response(503, body=f"{NOT_YET}\n")
        found = await asyncio.to_thread(side.collector.audit)
        return Response(200, JSON, encode(IpamStatus(node=self._node, rows=tuple(map(_of_finding, found)))))

    async def _release(self, query: str) -> Response:
        side = self._attached()
        if side is None:
            return Response(503, body=f"{NOT_YET}\n")
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        try:
            done = await asyncio.to_thread(
                release, side, asked.get("address", ""), asked.get("network", ""), force="force" in asked
            )
        except RefusedError as error:
            return Response(400, body=f"{error}\n")
        except PycniError as error:
            return Response(503, body=f"{error}\n")
        return Response(200, JSON, encode(msgspec.structs.replace(done, node=self._node)))


class RefusedError(PycniError):
    """Not released, and why."""


def release(side: Attached, address: str, network: str, *, force: bool) -> Released:
    """Free one address. Raises RefusedError, CniError, IpamError."""
    rows = [
        row
        for row in side.collector.rows()
        if row.address == address and (not network or row.network == network)
    ]
    findings = [
        item
        for item in side.collector.audit()
        if address in item.address.split(", ") and (not network or item.network == network)
    ]
    if not rows and not any(item.kind in LEAKED for item in findings):
        where = f" in network {network}" if network else ""
        raise RefusedError(f"{address or 'no address'} is not reserved{where}")
    networks = sorted({row.network for row in rows} | {item.network for item in findings})
    if len(networks) > 1:
        raise RefusedError(f"{address} is reserved in networks {', '.join(networks)}: say which")
    for finding in findings:
        if finding.kind in LEAKED or (force and finding.kind == "unverified-reservation"):
            if side.collector.release(finding):
                return _done(finding, address, f"{finding.kind}: {finding.why}")
            raise RefusedError(f"{address}: it has changed meanwhile, look again")
    for finding in findings:
        if finding.kind == "unverified-reservation":
            raise RefusedError(f"{address}: {finding.why}: it may be in use; --force releases it")
    return _forced(side, rows[0], address, force=force)


def _forced(side: Attached, row: Row, address: str, *, force: bool) -> Released:
    """An address of a container that is there."""
    endpoint = side.endpoints.get(Owner(row.network, row.container_id, row.ifname))
    pod = f"pod {row.pod_namespace}/{row.pod_name}" if row.pod_name else f"container {row.container_id}"
    if endpoint is None:
        raise RefusedError(f"{address}: {pod} is being attached or removed right now: look again")
    if not force:
        raise RefusedError(f"{address}: {pod} runs and has it; --force takes its network away")
    side.remove(endpoint)
    if side.endpoints.get(endpoint.owner) == endpoint:
        raise RefusedError(f"{address}: it has changed meanwhile, look again")
    return _done(row, address, f"{pod} has lost its network")


def _done(what: Row | Finding, address: str, how: str) -> Released:
    return Released(node="", address=address, network=what.network, container_id=what.container_id, how=how)


def _of_row(row: Row) -> Reserved:
    return Reserved(**msgspec.structs.asdict(row))


def _of_finding(found: Finding) -> Reserved:
    return Reserved(**msgspec.structs.asdict(found))
