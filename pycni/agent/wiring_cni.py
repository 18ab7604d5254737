"""The CNI side of the agent, wired: records, addresses, pods, operations, server, and what looks after them.

Life: imported on a worker thread by ``wiring`` while the fabric is already being programmed; ``serve`` makes the parts
on the event loop, puts right what an earlier agent left half done, serves, and keeps pods as recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from pycni.agent.cni_addresses import lease_ranges
from pycni.agent.cni_ops import CniOps
from pycni.agent.cni_server import CniServer
from pycni.agent.collector import Collector
from pycni.agent.liveness import boot_id
from pycni.agent.observe import CniObserver, PassObserver, follow_collector, follow_pods
from pycni.agent.pods import PodKeeper, Pods
from pycni.agent.process import SERVING, Context
from pycni.agent.status_ipam import Attached
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.kernel.pod import PodDriver

if TYPE_CHECKING:
    from pycni.agent.cni_ports import EndpointGate
    from pycni.agent.network import NetworkComponent

log = logging.getLogger("pycni.agent")

PODS_VALID_S = 300.0
"""Pods' kernel state is looked at once a minute; after five without success that is red."""

STOP_SECONDS = 5.0
"""How long CNI calls under way may take when the agent stops."""


async def serve(
    context: Context,
    network: NetworkComponent,
    listeners: Sequence[Callable[[EndpointStore], None]] = (),
    gates: Sequence[EndpointGate] = (),
    attached: Callable[[Attached], None] = lambda _side: None,
) -> NoReturn:
    """Serve CNI calls for ever. ``listeners`` get the records of pods before the first call is served.

    ``gates`` let pods in. ``attached`` is told what to ask about pods once calls are served.

    Raises ConfigError when the socket cannot be had, OSError for the state folder.
    """
    settings, exits = context.settings, context.exits
    endpoints = EndpointStore(settings.state_dir)
    exits.callback(endpoints.close)
    for listener in listeners:
        listener(endpoints)
    pools = Pools(settings.ipam_data_dir, in_use=endpoints.in_use)
    exits.callback(pools.close)
    driver = PodDriver()
    exits.callback(driver.close)
    driver.start()
    observer = CniObserver(context.metrics)
    pods = Pods(driver, endpoints)
    ops = CniOps(
        ipam=pools,
        endpoints=endpoints,
        pods=pods,
        podnet=network.podnet,
        not_ready_reason=network.not_ready_reason,
        boot_id=boot_id(),
        gates=gates,
        on_error=observer.error,
    )
    await asyncio.to_thread(ops.resume)
    collector = Collector(pools=pools, endpoints=endpoints, remove=ops.remove, busy=ops.busy)
    collector.start()
    exits.push_async_callback(asyncio.to_thread, collector.stop)
    server = CniServer(settings.cni_socket, ops, workers=settings.workers, observe=observer.called)
    server.start()
    exits.push_async_callback(asyncio.to_thread, server.stop, STOP_SECONDS)
    context.health.set(SERVING, ok=True)
    attached(Attached(endpoints, collector, pods, network.podnet, ops.remove))
    passes = PassObserver(context.health, context.metrics, valid_s=PODS_VALID_S, parts=("pods",))

    def adopt() -> list[str]:
        repaired = ops.adopt()
        for line in repaired:
            context.health.repaired("pods", 1, line)
        return [*repaired, *pods.sweep(network.podnet())]

    keeper = PodKeeper(adopt, network.podnet, passes, need=pods.need)
    network.on_podnet = keeper.poke
    follow_pods(context.metrics, endpoints, pools, keeper, lambda: lease_ranges(network.podnet()))
    follow_collector(context.metrics, collector)
    await keeper.run()
