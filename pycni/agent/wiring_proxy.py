"""The services' side of the agent, wired: where Services come from, the proxy component, the control socket.

Life: ``make`` is called by ``wiring`` on the event loop. The component is known by its dotted name only: it is another
package, and the core does not import it. What may be read from where: a folder of manifests, else the Kubernetes API.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pycni.agent.components import COMPONENTS
from pycni.agent.httpd import AsyncHandler, Response, UnixHttpServer
from pycni.agent.observe import follow_kube
from pycni.agent.process import Context, Tasks
from pycni.errors import ConfigError
from pycni.model.kube import ENDPOINT_SLICE, SERVICE

if TYPE_CHECKING:
    from pycni.ipam.endpoints import EndpointStore
    from pycni.model.podnet import PodNetwork
    from pycni.sources.kube import KubeSource
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.kube_lballoc import LbAllocator
    from pycni.store import Store

log = logging.getLogger("pycni.agent")

NOT_HEADLESS = "!service.kubernetes.io/headless"
"""Slices of headless Services are nobody's here; kube-proxy asks the API not to send them either."""


async def make(
    context: Context,
    store: Store,
    client: KubeClient | None,
    podnet: Callable[[], PodNetwork | None] | None,
    listeners: list[Callable[[EndpointStore], None]],
) -> Tasks:
    """The tasks. ``listeners`` gets who wants to know this node's pods.

    Raises ConfigError for a control socket that cannot be had.
    """
    module, _, attribute = COMPONENTS["proxy"].partition(":")
    kind = getattr(await asyncio.to_thread(importlib.import_module, module), attribute)
    component = kind(context.settings, store, health=context.health, metrics=context.metrics, podnet=podnet)
    listeners.append(component.follow_pods)
    await _serve_control(context, component.routes())
    return {**_sources(context, store, client), "proxy": component.run()}


def _sources(
    context: Context, store: Store, client: KubeClient | None
) -> dict[str, Coroutine[Any, Any, object]]:
    settings = context.settings
    if settings.manifest_dir:
        from pycni.sources.manifests import ManifestSource  # noqa: PLC0415

        return {"manifests": ManifestSource(settings.manifest_dir, derive_slices=True).run(store)}
    assert client is not None, "services come from the API, so there is a client"
    from pycni.sources.kube import KubeSource, Selection, own_node  # noqa: PLC0415

    source = KubeSource(
        client, [SERVICE, Selection(ENDPOINT_SLICE, labels=NOT_HEADLESS), own_node(settings.node_name)]
    )
    follow_kube(context.metrics, "pycni_kube", source.followers)

    def trouble() -> str:
        # Once everything was listed, an API that is away harms nothing: no reason to call the node unready.
        listed = store.snapshot().listed
        return "" if listed.issuperset(source.followers) else source.waiting

    context.health.set("kubernetes", ok=True)
    context.health.ask("kubernetes", trouble)
    log.info("services come from %s", client.server)
    tasks: dict[str, Coroutine[Any, Any, object]] = {"kubernetes": source.run(store)}
    if settings.run_loadbalancer:
        tasks["loadbalancer"] = _balancer(context, store, client, source).run()
    return tasks


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


async def _serve_control(context: Context, routes: dict[str, AsyncHandler]) -> None:
    """Answer pycnictl on the control socket."""

    async def readyz(query: str) -> Response:
        return context.health.readyz(query)

    path = context.settings.control_socket
    server = UnixHttpServer(path, {**routes, "/readyz": readyz})
    try:
        await server.start()
    except OSError as exc:
        raise ConfigError("settings", "control-socket", path, exc.strerror or str(exc)) from exc
    context.exits.push_async_callback(server.stop)
