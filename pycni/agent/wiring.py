"""Which parts the agent has and who knows whom: the only place that sees all of them.

Life: ``wire`` is called once, on the event loop, when health and metrics are up. It makes the parts bottom-up, pushes
what has to be taken down onto the context's exits (so the CNI server, made last, is stopped first) and returns the
tasks. Implementations are imported here and not at the top: the command line must not pay for them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING, Any

from pycni.agent.components import COMPONENTS
from pycni.agent.observe import CniObserver, PassObserver, follow_collector, follow_leases, follow_pods
from pycni.agent.process import Context, Tasks
from pycni.agent.settings_file import password

if TYPE_CHECKING:
    from pycni.agent.network import NetworkComponent
    from pycni.sources.leases import LeaseSource
    from pycni.store import Store

log = logging.getLogger("pycni.agent")

PODS_VALID_S = 300.0
"""Pods' kernel state is looked at once a minute; after five without success that is red."""

STOP_SECONDS = 5.0
"""How long CNI calls under way may take when the agent stops."""


async def wire(context: Context) -> Tasks:
    """Make every part that is switched on. Errors: ``ConfigError`` for settings this node cannot have."""
    from pycni.agent import underlay  # noqa: PLC0415
    from pycni.store import Store  # noqa: PLC0415

    context.health.expect("cni")
    # Refused here, before anything waits for etcd; the network component looks again, with the network's families.
    await asyncio.to_thread(underlay.detect, context.settings)
    network = _network(context, _leases(context), Store())
    return {"network": network.run(), **await _cni(context, network)}


def _leases(context: Context) -> LeaseSource:
    from pycni.sources.etcd import EtcdClient  # noqa: PLC0415
    from pycni.sources.etcd_config import EtcdConfig  # noqa: PLC0415
    from pycni.sources.leases import LeaseSource  # noqa: PLC0415

    settings = context.settings
    config = EtcdConfig(
        endpoints=settings.etcd_endpoints,
        cafile=settings.etcd_cafile,
        certfile=settings.etcd_certfile,
        keyfile=settings.etcd_keyfile,
        username=settings.etcd_username,
        password=password(settings),
    )
    config.check()
    config.files()
    client = EtcdClient(config)
    context.exits.push_async_callback(client.close)
    source = LeaseSource(
        client, settings.etcd_prefix, ttl_s=settings.etcd_lease_ttl, margin_s=settings.renew_margin_seconds
    )
    follow_leases(context.metrics, source, client)
    return source


def _network(context: Context, source: LeaseSource, store: Store) -> NetworkComponent:
    from pycni.agent.network_report import NetworkReport  # noqa: PLC0415

    made: NetworkComponent = _implementation("network")(
        context.settings, source, store, report=NetworkReport(context.health, context.metrics)
    )
    return made


async def _cni(context: Context, network: NetworkComponent) -> Tasks:
    """The CNI server with everything it stands on, serving when this returns."""
    from pycni.agent.cni_ops import CniOps  # noqa: PLC0415
    from pycni.agent.cni_server import CniServer  # noqa: PLC0415
    from pycni.agent.collector import Collector  # noqa: PLC0415
    from pycni.agent.liveness import boot_id  # noqa: PLC0415
    from pycni.agent.pods import PodKeeper, Pods  # noqa: PLC0415
    from pycni.ipam.endpoints import EndpointStore  # noqa: PLC0415
    from pycni.ipam.pool import Pools  # noqa: PLC0415
    from pycni.kernel.pod import PodDriver  # noqa: PLC0415

    settings, exits = context.settings, context.exits
    endpoints = EndpointStore(settings.state_dir)
    exits.callback(endpoints.close)
    pools = Pools(settings.ipam_data_dir, in_use=endpoints.in_use)
    exits.callback(pools.close)
    driver = PodDriver()
    exits.callback(driver.close)
    driver.start()
    observer = CniObserver(context.metrics)
    ops = CniOps(
        ipam=pools,
        endpoints=endpoints,
        pods=Pods(driver, endpoints),
        podnet=network.podnet,
        not_ready_reason=network.not_ready_reason,
        boot_id=boot_id(),
        on_error=observer.error,
    )
    await asyncio.to_thread(ops.resume)
    collector = Collector(pools=pools, endpoints=endpoints, remove=ops.remove, busy=ops.busy)
    collector.start()
    exits.push_async_callback(asyncio.to_thread, collector.stop)
    server = CniServer(settings.cni_socket, ops, workers=settings.workers, observe=observer.called)
    server.start()
    exits.push_async_callback(asyncio.to_thread, server.stop, STOP_SECONDS)
    context.health.set("cni", ok=True)
    passes = PassObserver(context.health, context.metrics, valid_s=PODS_VALID_S)
    keeper = PodKeeper(ops.adopt, network.podnet, passes)
    follow_pods(context.metrics, endpoints, pools, keeper)
    follow_collector(context.metrics, collector)
    return {"pods": keeper.run()}


def _implementation(name: str) -> Any:
    """The class the components' table names."""
    module, _, attribute = COMPONENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
