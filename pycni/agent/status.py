"""How this node is doing, for ``pycnictl status`` and the commands beside it, over the agent's control socket.

Life: ``NodeReport`` is made by ``wiring`` when the parts are; the CNI side adds itself (``attached``) once it serves.
Every answer is put together when it is asked for, from what the parts know then.

    GET /status                      node, parts, lease, peers, last errors, repairs (Status)
    GET /settings                    the settings in force, secrets hidden
    GET /metrics                     as on the port for scrapers, which may be off
    GET /ipam, /ipam/check, /ipam/release       see ``status_ipam``
    GET /dump?part=NAME              see ``status_dump``
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from typing import TYPE_CHECKING, Any

from pycni import __version__
from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.metrics import CONTENT_TYPE, resident_bytes, seconds_since_process_start
from pycni.agent.metrics_host import follow_host
from pycni.agent.metrics_node import devices, follow_agent, follow_network
from pycni.agent.process import Context
from pycni.agent.settings import TABLE, Settings
from pycni.agent.status_dump import Dumper
from pycni.agent.status_ipam import Attached, IpamRoutes
from pycni.agent.status_log import listen
from pycni.agent.status_model import (
    LeaseStatus,
    NetworkStatus,
    PartStatus,
    PeerStatus,
    RepairStatus,
    Status,
    encode,
)
from pycni.model.family import Family
from pycni.model.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pycni.agent.network import NetworkComponent
    from pycni.agent.network_pass import NetworkPass
    from pycni.store import Store
    from pycni.view.fabric import PeerKey

JSON = "application/json"


class NodeReport:
    """One per agent, on its event loop."""

    def __init__(self, context: Context, store: Store) -> None:
        self._context = context
        self._store = store
        self.network: NetworkComponent | None = None
        self._attached: Attached | None = None
        self._recent, logger = listen()
        context.exits.callback(logger.removeHandler, self._recent)
        context.health.subscribe(self._begin)
        follow_agent(context.metrics, context.settings, context.health, self._recent)
        if "network" in context.settings.components:
            follow_network(context.metrics, lambda: self.network, store)
        follow_host(context.metrics, self._devices)

    def attached(self, side: Attached) -> None:
        """The CNI side has begun."""
        self._attached = side

    @property
    def side(self) -> Attached | None:
        """The CNI side, once it serves."""
        return self._attached

    def routes(self, others: Mapping[str, AsyncHandler]) -> dict[str, AsyncHandler]:
        """What the control socket answers. ``others``: what the components answer; their dumps are put together."""
        node = self._context.settings.node_name
        ipam = IpamRoutes(node, lambda: self._attached)
        dumper = Dumper(node, lambda: self.network, lambda: self._attached, others)
        own: dict[str, AsyncHandler] = {
            "/status": self._status,
            "/settings": self._settings,
            "/metrics": self._metrics,
        }
        return own | ipam.routes() | dumper.routes()

    def _devices(self) -> Collection[str]:
        return devices(self.network, self._attached.endpoints.all() if self._attached is not None else ())

    def _begin(self) -> None:
        if not self._recent.began and self._context.health.ready:
            self._recent.began = True

    async def _status(self, _query: str) -> Response:
        return Response(200, JSON, encode(self.status()))

    async def _settings(self, _query: str) -> Response:
        return Response(200, JSON, encode(shown(self._context.settings)))

    async def _metrics(self, _query: str) -> Response:
        return Response(200, CONTENT_TYPE, self._context.metrics.expose())

    def status(self) -> Status:
        """Everything at this moment."""
        health, settings = self._context.health, self._context.settings
        parts, now = health.parts(), time.monotonic()
        pods = {"ready": 0, "pending": 0, "dying": 0}
        for endpoint in self._attached.endpoints.all() if self._attached is not None else ():
            pods[endpoint.state] += 1
        return Status(
            node=settings.node_name,
            version=__version__,
            kernel=os.uname().release,
            pid=os.getpid(),
            up_s=round(seconds_since_process_start(), 2),
            memory_bytes=int(resident_bytes()),
            ready=all(part.ok for part in parts.values()),
            components=settings.components,
            parts=tuple(
                PartStatus(name, part.ok, part.reason, round(max(now - part.since, 0.0), 3))
                for name, part in parts.items()
            ),
            pods=pods,
            network=self._network(),
            errors=self._recent.lines(),
            repairs=tuple(RepairStatus(*item) for item in reversed(health.repairs)),
            repaired=dict(health.repaired_entries),
        )

    def _network(self) -> NetworkStatus | None:
        network = self.network
        known = network.known if network is not None else None
        if network is None or known is None:
            return None
        leases: Mapping[str, Lease] = self._store.snapshot().of("lease")
        conf, plan, pods = known.newest_conf, known.plan, known.pods
        probes = network.probes
        return NetworkStatus(
            backend=conf.backend.type if conf is not None else "",
            subnets=tuple(str(net) for net in pods.subnets) if pods is not None else (),
            networks=tuple(str(net) for family in conf.families if (net := conf.of(family)) is not None)
            if conf is not None
            else (),
            underlay=plan.node.underlay.name if plan is not None else "",
            underlay_mtu=plan.node.underlay.mtu if plan is not None else 0,
            mtu=pods.mtu if pods is not None else 0,
            lease=_own(known),
            leases=len(leases),
            waiting=network.waiting,
            probed=probes is not None,
            peers=peers(
                known, leases, probes.peers if probes is not None else {}, asyncio.get_running_loop().time()
            ),
        )


def shown(settings: Settings) -> dict[str, Any]:
    """Settings by name as one would write them; secrets are only said to be there."""
    found: dict[str, Any] = {}
    for row in TABLE:
        value = getattr(settings, row.field)
        if row.secret:
            value = "(hidden)" if value else ""
        found[row.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _own(known: NetworkPass) -> LeaseStatus | None:
    held = known.held
    if held is None:
        return None
    lease = held.lease
    return LeaseStatus(
        key=lease.key,
        subnets=tuple(str(net) for net in (lease.subnet, lease.subnet6) if net is not None),
        public=tuple(
            str(address) for family in Family if (address := lease.attrs.public(family)) is not None
        ),
        backend=lease.attrs.way,
        expires_in_s=None if held.expires is None else round(held.expires - time.time(), 1),
        confirmed=known.acquired,
    )


def peers(
    known: NetworkPass, leases: Mapping[str, Lease], probed: Mapping[PeerKey, Any], now: float
) -> tuple[PeerStatus, ...]:
    """A row per peer and family, by address of the subnet. ``now``: the loop's time, by which probes are dated."""
    compiler = known.compiler
    if compiler is None:
        return ()
    keys = [*compiler.peers, *(key for key in compiler.refusals if key not in compiler.peers)]
    rows = [
        (key, lease, subnet)
        for key in keys
        if (lease := leases.get(key[0])) is not None and (subnet := lease.of(key[1])) is not None
    ]
    rows.sort(key=lambda row: (row[2].version, int(row[2].network_address)))
    found = []
    for key, lease, subnet in rows:
        probe, refusal = probed.get(key), compiler.refusals.get(key)
        public: ipaddress.IPv4Address | ipaddress.IPv6Address | None
        public = lease.attrs.public(key[1]) or lease.attrs.public_ip or lease.attrs.public_ipv6
        found.append(
            PeerStatus(
                lease=key[0],
                family=key[1].label,
                subnet=str(subnet),
                public=str(public) if public is not None else "",
                backend=lease.attrs.way,
                reachable=probe.reachable if probe is not None else None,
                latency_ms=None if probe is None or probe.rtt_s is None else round(probe.rtt_s * 1000, 3),
                asked_s=None if probe is None else round(now - probe.asked, 1),
                answered_s=None
                if probe is None or probe.answered is None
                else round(now - probe.answered, 1),
                refused=refusal.reason if refusal is not None else "",
            )
        )
    return tuple(found)
