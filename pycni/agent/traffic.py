"""Counters of this node's pods, services and policies, and the names of its addresses: for ``pycnictl top``, ``flows``.

Life: ``TrafficRoutes`` is made by ``wiring``; records of pods come through ``follow_pods``. Answers are made when they
are asked for, on a worker thread; components answer for services and policies below the same paths. Nothing is kept
but the last reading of what takes long (``Paced``), so that who asks all the time costs a tenth of a processor at most.

    GET /rates                       raw counters with the monotonic time they were read at (Counted)
    GET /names?known=GENERATION      pods, services and nodes by address (Names); short when nothing has changed
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar
from urllib.parse import parse_qs

import msgspec

from pycni.agent.httpd import AsyncHandler, Response
from pycni.errors import KernelError, PycniError
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import linkcounts, netns
from pycni.kernel.linkcounts import LinkCount
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint
from pycni.model.family import show
from pycni.model.kube import ENDPOINT_SLICE, NODE, POD, EndpointSlice, KubeNode, Pod
from pycni.store import Snapshot, Store
from pycni.traffic.model import Counted, Names, PodCount, Policies, ServiceNames, Services
from pycni.wire import rtnl, typed

JSON = "application/json"
SHARE = 0.1
"""Of the time, spent on a reading that is asked for without end."""
_COMPLETED = frozenset({"Succeeded", "Failed"})

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Paced(Generic[T]):
    """A reading that is made again only when making it takes ``SHARE`` of the time at most. One thread at a time."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._last: T | None = None
        self._due = float("-inf")

    def __call__(self) -> T:
        """The last one, or a new one. Raises what reading raises."""
        began = self._clock()
        if self._last is None or began >= self._due:
            self._last = self._read()
            now = self._clock()
            self._due = now + (now - began) * (1 / SHARE - 1)
        return self._last


class TrafficRoutes:
    """One per agent, on its event loop."""

    def __init__(
        self, node: str, store: Store, others: Mapping[str, AsyncHandler], *, short_cuts: bool = False
    ) -> None:
        """``others``: what components answer; ``/rates/...`` and ``/names/...`` of it are put together here.

        ``short_cuts``: packets may go from pod to pod past the node's ends of their pairs (bpf_redirect_peer).
        """
        self._short_cuts = short_cuts
        self._node = node
        self._store = store
        self._others = others
        self._endpoints: EndpointStore | None = None
        self._changes = 0
        self._inside = Paced(self._read_inside)

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {"/rates": self._rates, "/names": self._names}

    def follow_pods(self, endpoints: EndpointStore) -> None:
        """The records of this node's pods are open."""
        self._endpoints = endpoints
        endpoints.subscribe(self._changed)

    def _changed(self, _before: Endpoint | None, _after: Endpoint | None) -> None:
        self._changes += 1

    # --- rates -----------------------------------------------------------------------------------------------

    async def _rates(self, _query: str) -> Response:
        troubles: dict[str, str] = {}
        services = await self._ask("/rates/services", Services, troubles) or Services()
        policies = await self._ask("/rates/policies", Policies, troubles) or Policies()
        try:
            at_ns, pods = await asyncio.to_thread(self._pods)
        except PycniError as error:
            at_ns, pods, troubles["pods"] = time.monotonic_ns(), (), str(error)
        found = Counted(
            node=self._node, at_ns=at_ns, pods=pods, services=services, policies=policies, troubles=troubles
        )
        return _answer(found)

    def _pods(self) -> tuple[int, tuple[PodCount, ...]]:
        endpoints = self._ready()
        legs = linkcounts.read()
        at_ns = time.monotonic_ns()
        found = [
            _as_pod(endpoint, leg)
            for endpoint in endpoints
            if not self._aside(endpoint) and (leg := legs.get(endpoint.host_ifname)) is not None
        ]
        if any(map(self._aside, endpoints)):
            found += self._inside()
        return at_ns, tuple(found)

    def _aside(self, endpoint: Endpoint) -> bool:
        """Whether not all of the pod's packets pass the node's end of a pair."""
        return self._short_cuts or endpoint.attachment in {AttachmentKind.MACVLAN, AttachmentKind.IPVLAN}

    def _ready(self) -> Sequence[Endpoint]:
        everything = self._endpoints.all() if self._endpoints is not None else ()
        return [endpoint for endpoint in everything if endpoint.state == "ready"]

    def _read_inside(self) -> list[PodCount]:
        """Pods whose packets pass the node by are counted where they are."""
        return [found for item in self._ready() if self._aside(item) and (found := _inside(item)) is not None]

    # --- names -----------------------------------------------------------------------------------------------

    async def _names(self, query: str) -> Response:
        known = {name: values[-1] for name, values in parse_qs(query).items()}.get("known", "")
        services, trouble = ServiceNames(), dict[str, str]()
        # Read before the objects: what changes meanwhile is told the next time.
        generation = f"{os.getpid()}.{self._store.snapshot().revision}.{self._changes}"
        handler = self._others.get("/names/services")
        if handler is not None:
            services = await self._ask("/names/services", ServiceNames, trouble) or services
            generation += f".{services.generation}"
        if known == generation:
            return _answer(Names(node=self._node, generation=generation, fresh=False))
        found = await asyncio.to_thread(self._everything, generation, services)
        return _answer(found)

    def _everything(self, generation: str, services: ServiceNames) -> Names:
        snapshot = self._store.snapshot()
        own = {
            str(address.ip): _name(endpoint) for endpoint in self._ready() for address in endpoint.addresses
        }
        return Names(
            node=self._node,
            generation=generation,
            addresses=tuple(_own_addresses()),
            pods=_pods_of(snapshot) | own,
            local=tuple(own),
            nodes=_nodes_of(snapshot),
            services=services,
        )

    async def _ask(self, path: str, kind: type[S], troubles: dict[str, str]) -> S | None:
        """What a component answers; None: there is none, or it cannot."""
        handler = self._others.get(path)
        if handler is None:
            return None
        answer = await handler("")
        if answer.status != 200:
            troubles[path.rpartition("/")[2]] = answer.body.strip()
            return None
        return typed.decode(answer.body, kind)


def _answer(value: msgspec.Struct) -> Response:
    return Response(200, JSON, msgspec.json.encode(value).decode() + "\n")


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.pod_namespace}/{endpoint.pod_name}" if endpoint.pod_name else endpoint.container_id


def _as_pod(endpoint: Endpoint, leg: LinkCount) -> PodCount:
    """The node's end of a pair, seen from the other one."""
    return PodCount(
        _name(endpoint),
        endpoint.ifname,
        leg.bytes_out,
        leg.packets_out,
        leg.bytes_in,
        leg.packets_in,
        leg.drops_in + leg.drops_out,
    )


def _inside(endpoint: Endpoint) -> PodCount | None:
    """None: the pod's namespace or its interface is gone."""
    try:
        fd = netns.open_netns(endpoint.netns)
        try:
            if endpoint.netns_inode and netns.inode(fd) != endpoint.netns_inode:
                return None
            found = netns.run_in(fd, linkcounts.read).get(endpoint.ifname)
        finally:
            os.close(fd)
    except KernelError:
        return None
    if found is None:
        return None
    drops = found.drops_in + found.drops_out
    return PodCount(
        _name(endpoint),
        endpoint.ifname,
        found.bytes_in,
        found.packets_in,
        found.bytes_out,
        found.packets_out,
        drops,
    )


def _own_addresses() -> list[str]:
    with NetlinkSocket() as sock:
        found = (rtnl.parse_address(msg) for msg in sock.dump(rtnl.dump_addresses()))
        return [show(info.address) for info in found]


def _pods_of(snapshot: Snapshot) -> dict[str, str]:
    """Of the whole cluster, as far as this agent follows it."""
    found: dict[str, str] = {}
    slices: Mapping[str, EndpointSlice] = snapshot.of(ENDPOINT_SLICE)
    for item in slices.values():
        for endpoint in item.endpoints:
            if endpoint.pod:
                found[endpoint.address] = endpoint.pod
    pods: Mapping[str, Pod] = snapshot.of(POD)
    for key, pod in pods.items():
        if not pod.host_network and pod.phase not in _COMPLETED:
            found.update(dict.fromkeys(pod.ips, key))
    return found


def _nodes_of(snapshot: Snapshot) -> dict[str, str]:
    nodes: Mapping[str, KubeNode] = snapshot.of(NODE)
    return {
        address: key for key, node in nodes.items() for address in (*node.internal_ips, *node.external_ips)
    }
