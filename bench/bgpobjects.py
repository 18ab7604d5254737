"""From objects to a router's table: a whole BGP component with many Services, one of which comes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from typing import NamedTuple

from bench.bgpnet import NODE, ROUTERS, BareBird, Timers, Underlay, addresses, router_conf, until
from pycni.agent.settings import Given, resolve
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    SERVICE,
    EndpointSlice,
    Ingress,
    KubeNode,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.kube import (
    NODE as NODES,
)
from pycni.model.node import Underlay as NodeUnderlay
from pycni.store import Store
from pycni_bgp.component import BgpComponent
from tests.netns.bgp_nodes import make_engine

PEER = 11


class Times(NamedTuple):
    """Seconds."""

    all_of_them: float
    """From listed Services to the router; the session is up by then."""
    one_more: list[float]


def _service(number: int, address: str) -> tuple[str, Service, EndpointSlice]:
    name = f"s{number:05}"
    service = Service(
        meta=Meta(name=name, namespace="x"),
        type="LoadBalancer",
        cluster_ips=(str(ipaddress.IPv4Address("10.96.0.0") + number),),
        families=(Family.V4,),
        ingress=(Ingress(ip=address),),
        ports=(ServicePortSpec(port=80),),
        external_local=True,
    )
    piece = EndpointSlice(
        meta=Meta(name=f"{name}-1", namespace="x"),
        service=f"x/{name}",
        family=Family.V4,
        ports=(SlicePort(port=8080),),
        endpoints=(SliceEndpoint(address="10.1.1.3", node="a"),),
    )
    return f"x/{name}", service, piece


def _component(net: Underlay, kind: str, where: str, store: Store) -> BgpComponent:
    own = ipaddress.IPv4Interface(f"192.0.2.{NODE}/24")
    given = {"node-name": "a", "state-dir": str(net.folder), "advertise-loadbalancer-ip": "true"}
    return BgpComponent(
        resolve([[Given(name, (value,), "bench") for name, value in given.items()]], "a"),
        store,
        find_underlay=lambda _settings, _families: NodeUnderlay(
            name="eth0", mtu=1500, address=own, on_link=(own,)
        ),
        engine=make_engine(kind, where, net.folder / "bgp"),
    )


async def from_objects(kind: str, count: int, changes: int) -> Times:
    """So many Services at once, then one after the other comes and goes."""
    async with contextlib.AsyncExitStack() as stack:
        net = Underlay()
        stack.callback(net.close)
        where = net.switch.join(NODE)
        peer = BareBird(net.switch.join(PEER), net.folder, "peer", router_conf(PEER, (), Timers()))
        stack.callback(peer.end)
        store = Store()
        running = asyncio.create_task(_component(net, kind, where, store).run())
        stack.push_async_callback(_ended, running)
        wish = f"[{{remoteip: 192.0.2.{PEER}, remoteasn: {ROUTERS[PEER]}}}]"
        node = KubeNode(
            meta=Meta(name="a", annotations={"kube-router.io/peers": wish}),
            internal_ips=(f"192.0.2.{NODE}",),
        )
        for objects, listed in ((NODES, {"a": node}), (SERVICE, {}), (ENDPOINT_SLICE, {})):
            store.replace(objects, listed)
        await until(lambda: peer.up(bfd=False), wanted=True)
        return await _measured(store, peer, count, changes)


async def _ended(running: asyncio.Task[None]) -> None:
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _measured(store: Store, peer: BareBird, count: int, changes: int) -> Times:
    *listed, more = [
        _service(number, item.partition("/")[0])
        for number, item in enumerate(addresses("198.18.0.0", count + 1))
    ]
    began = time.perf_counter()
    store.replace(ENDPOINT_SLICE, {piece.meta.key: piece for _, _, piece in listed})
    store.replace(SERVICE, {key: service for key, service, _ in listed})
    await until(lambda: peer.imported("node"), count)
    whole = time.perf_counter() - began
    one_more: list[float] = []
    key, service, piece = more
    for _ in range(changes):
        await asyncio.sleep(0.1)  # what holds changes together is not to be measured twice
        began = time.perf_counter()
        store.put(ENDPOINT_SLICE, piece.meta.key, piece)
        store.put(SERVICE, key, service)
        await until(lambda: peer.imported("node"), count + 1)
        one_more.append(time.perf_counter() - began)
        store.delete(SERVICE, key)
        store.delete(ENDPOINT_SLICE, piece.meta.key)
        await until(lambda: peer.imported("node"), count)
    return Times(whole, one_more)
