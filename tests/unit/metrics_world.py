"""A registry with every metric an agent can have, made by the parts themselves; nothing is ever asked of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

from pycni.agent import observe, process, wiring_proxy
from pycni.agent.health import Health
from pycni.agent.metrics import Registry, add_process_metrics
from pycni.agent.network_report import NetworkReport
from pycni.agent.notify import Notifier
from pycni.agent.process import Context
from pycni.agent.status import NodeReport
from pycni.agent.vtep_probe import VtepProber
from pycni.policy.component_report import PolicyReport
from pycni.policy.metrics import PolicyMetrics
from pycni.store import Store
from pycni_bgp.metrics import BgpMetrics
from pycni_proxy.metrics import ProxyMetrics
from pycni_proxy.metrics_services import ServiceMetrics

NOBODY = cast("Any", SimpleNamespace())


def everything() -> Registry:
    """The registry; made on an event loop that is over when this returns."""
    return asyncio.run(_everything())


async def _everything() -> Registry:
    registry, health = Registry(), Health()
    settings = SimpleNamespace(
        node_name="node1",
        components=("network", "proxy", "policy", "bgp"),
        loadbalancer_ip_range=(),
        loadbalancer_default_class=True,
    )
    async with AsyncExitStack() as exits:
        context = Context(cast("Any", settings), health, registry, exits)
        add_process_metrics(registry)
        health.register(registry)
        process._Announcer(context, Notifier({}))
        task = asyncio.create_task(process._sample_lag(registry))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        NodeReport(context, Store())
        report = NetworkReport(health, registry)
        report.watch(VtepProber(8473, NOBODY))
        observe.PassObserver(health, registry, valid_s=1.0, parts=("pods",))
        observe.CniObserver(registry)
        observe.follow_leases(registry, NOBODY, NOBODY)
        observe.follow_kube_client(registry, NOBODY)
        for prefix in ("pycni_kube", "pycni_kube_nodes"):
            observe.follow_kube(registry, prefix, {})
        observe.follow_pods(registry, NOBODY, NOBODY, NOBODY, tuple)
        observe.follow_collector(registry, NOBODY)
        PolicyReport(health, registry, valid_s=1.0)
        PolicyMetrics(registry, 10)
        ProxyMetrics(registry)
        ServiceMetrics(registry, dict, 10)
        wiring_proxy._balancer(context, Store(), NOBODY, NOBODY)
        BgpMetrics(registry)
    return registry
