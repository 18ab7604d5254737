"""The services' side of the agent, wired: what the proxy component needs, and who gives out load balancers' addresses.

Life: ``make`` is called by ``wiring`` on the event loop. The component is known by its dotted name only: it is another
package, and the core does not import it.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pycni.agent.components import COMPONENTS
from pycni.agent.httpd import AsyncHandler
from pycni.agent.process import Context, Tasks
from pycni.model.kube import ENDPOINT_SLICE, SERVICE

if TYPE_CHECKING:
    from pycni.agent.wiring_sources import Needs
    from pycni.ipam.endpoints import EndpointStore
    from pycni.model.podnet import PodNetwork
    from pycni.sources.kube import KubeSource
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.kube_lballoc import LbAllocator
    from pycni.store import Store

NOT_HEADLESS = "!service.kubernetes.io/headless"
"""Slices of headless Services are nobody's here; kube-proxy asks the API not to send them either."""


async def make(
    context: Context,
    store: Store,
    needs: Needs,
    podnet: Callable[[], PodNetwork | None] | None,
    listeners: list[Callable[[EndpointStore], None]],
) -> tuple[Tasks, dict[str, AsyncHandler]]:
    """The tasks, and what the control socket answers. ``listeners`` gets who wants to know this node's pods."""
    from pycni.sources.kube import Selection, own_node  # noqa: PLC0415

    settings = context.settings
    needs.add(
        Selection(SERVICE), Selection(ENDPOINT_SLICE, labels=NOT_HEADLESS), own_node(settings.node_name)
    )
    needs.derive_slices = True
    module, _, attribute = COMPONENTS["proxy"].partition(":")
    kind = getattr(await asyncio.to_thread(importlib.import_module, module), attribute)
    component = kind(settings, store, health=context.health, metrics=context.metrics, podnet=podnet)
    listeners.append(component.follow_pods)
    return {"proxy": component.run()}, component.routes()


def balancer(context: Context, store: Store, client: KubeClient, source: KubeSource) -> Tasks:
    """Giving out addresses for services, where that is wanted."""
    if not context.settings.run_loadbalancer:
        return {}
    return {"loadbalancer": _balancer(context, store, client, source).run()}


def _balancer(context: Context, store: Store, client: KubeClient, source: KubeSource) -> LbAllocator:
    """Addresses for services of type LoadBalancer, given out by one agent of the cluster."""
    from pycni.ipam.pools import DEFAULT_CLASSES  # noqa: PLC0415
    from pycni.sources.kube_lballoc import LEASE_NAME, LbAllocator  # noqa: PLC0415
    from pycni.sources.kube_leader import Elector  # noqa: PLC0415

    settings, metrics = context.settings, context.metrics
    elector = Elector(client, LEASE_NAME, settings.node_name)
    found = LbAllocator(
        client,
        store,
        settings.loadbalancer_ip_range,
        elector,
        classes=DEFAULT_CLASSES if settings.loadbalancer_default_class else DEFAULT_CLASSES - {""},
        following=lambda: source.followers[SERVICE].connected,
    )
    metrics.callback(
        "pycni_loadbalancer_leading",
        "1 on the node that gives out addresses of services.",
        lambda: float(elector.leading),
    )
    metrics.callback(
        "pycni_loadbalancer_patched_total",
        "Services whose status this agent wrote.",
        lambda: float(found.patched),
        kind="counter",
    )
    metrics.callback(
        "pycni_loadbalancer_problems",
        "Services that cannot get the address they want; on the leader.",
        lambda: float(len(found.problems)),
    )
    return found
