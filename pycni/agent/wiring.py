"""Which parts the agent has and who knows whom; more in ``wiring_cni``, ``_proxy``, ``_policy``, ``_sources`` ...

Life: ``wire`` is called once, on the event loop, when health and metrics are up. It makes the parts bottom-up, pushes
what has to be taken down onto the context's exits (so the CNI server, made last, is stopped first) and returns the
tasks. Implementations are imported here and not at the top: the command line must not pay for them.

Network and proxy know each other by one function, the pod network; the CNI side and policies by the records of pods and
a gate. Each runs without the others, also in a process of its own with a state folder of its own; policies then know of
pods only what the cluster tells, so that a pod's first packets may come before its policies.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pycni.agent.components import COMPONENTS
from pycni.agent.httpd import AsyncHandler, PostHandler, Response, UnixHttpServer
from pycni.agent.observe import follow_kube, follow_kube_client, follow_leases
from pycni.agent.process import SERVING, Context, Tasks
from pycni.agent.settings import Settings
from pycni.agent.settings_file import password
from pycni.errors import ConfigError

if TYPE_CHECKING:
    from pycni.agent.cni_ports import EndpointGate
    from pycni.agent.network import NetworkComponent
    from pycni.agent.status import NodeReport
    from pycni.ipam.endpoints import EndpointStore
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.kube_leases import KubeLeaseSource
    from pycni.sources.leases import LeaseSource
    from pycni.store import Store

FOLLOWING = frozenset({"proxy", "policy", "bgp"})
"""Components that follow objects of Kubernetes."""


async def wire(context: Context) -> Tasks:
    """Make every part that is switched on. Errors: ``ConfigError`` for settings this node cannot have."""
    from pycni.agent import underlay, wiring_trace  # noqa: PLC0415
    from pycni.agent.status import NodeReport  # noqa: PLC0415
    from pycni.agent.traffic import TrafficRoutes  # noqa: PLC0415
    from pycni.store import Store  # noqa: PLC0415

    store = Store()
    report = NodeReport(context, store)
    tasks: dict[str, Coroutine[Any, Any, object]] = {}
    settings = context.settings
    for part in settings.components:
        context.health.expect(part)
    client = _kube_client(context) if _asks_kubernetes(settings) else None
    network: NetworkComponent | None = None
    listeners: list[Callable[[EndpointStore], None]] = []
    """Who wants the records of pods, once the CNI side has opened them."""
    gates: list[EndpointGate] = []
    """What has to hold before a pod's first packet."""
    if "network" in settings.components:
        context.health.expect(SERVING)
        # Refused here, before anything waits for etcd; the component looks again, with the network's families.
        await asyncio.to_thread(underlay.detect, settings)
        leases = _kube_leases(context, client) if settings.kube_subnet_mgr and client else _leases(context)
        network = report.network = _network(context, leases, store)
        # The fabric first: while the kernel takes its entries there is time for the rest.
        tasks |= {"network": network.run()}
    routes: dict[str, AsyncHandler] = network.routes() if network is not None else {}
    try:
        if FOLLOWING.intersection(settings.components):
            tasks |= await _following(context, store, client, network, listeners, gates, routes)
        short_cuts = "policy" in settings.components and settings.policy == "ebpf"
        traffic = TrafficRoutes(settings.node_name, store, routes, short_cuts=short_cuts)
        listeners.append(traffic.follow_pods)
        parts = wiring_trace.Parts(context, store, lambda: network, lambda: report.side)
        traces, posts = wiring_trace.make(context, parts, client)
        control = {**routes, **report.routes(routes), **traffic.routes(), **traces}
        await _serve_control(context, control, posts)
    except BaseException:
        _drop(tasks)
        raise
    if network is not None:
        tasks |= {"cni": _serve_cni(context, network, listeners, gates, report)}
    return tasks


async def _following(  # noqa: PLR0917 - the last three collect
    context: Context,
    store: Store,
    client: KubeClient | None,
    network: NetworkComponent | None,
    listeners: list[Callable[[EndpointStore], None]],
    gates: list[EndpointGate],
    routes: dict[str, AsyncHandler],
) -> Tasks:
    """The components that follow objects of Kubernetes; ``routes`` gets what they answer pycnictl."""
    from pycni.agent import wiring_bgp, wiring_policy, wiring_proxy, wiring_sources  # noqa: PLC0415

    components = context.settings.components
    needs = wiring_sources.Needs()
    tasks: dict[str, Coroutine[Any, Any, object]] = {}
    podnet = network.podnet if network is not None else None
    try:
        if "proxy" in components:
            made, answers = await wiring_proxy.make(context, store, needs, podnet, listeners)
            tasks |= made
            routes |= answers
        if "policy" in components:
            made, answers = await wiring_policy.make(context, store, needs, podnet, listeners, gates)
            tasks |= made
            routes |= answers
        if "bgp" in components:
            made, answers = await wiring_bgp.make(context, store, needs, podnet)
            tasks |= made
            routes |= answers
    except BaseException:
        _drop(tasks)
        raise
    sources, following = wiring_sources.make(context, store, client, needs)
    needs.sources = sources
    if "proxy" in components and client is not None and sources.kube is not None:
        tasks |= wiring_proxy.balancer(context, store, client, sources.kube)
    return {**following, **tasks}


def _drop(tasks: Mapping[str, Coroutine[Any, Any, object]]) -> None:
    """Nobody will run these."""
    for task in tasks.values():
        task.close()


async def _serve_control(
    context: Context, routes: dict[str, AsyncHandler], posts: dict[str, PostHandler]
) -> None:
    """Answer pycnictl on the control socket. Raises ConfigError when it cannot be had."""

    async def readyz(query: str) -> Response:
        return context.health.readyz(query)

    path = context.settings.control_socket
    server = UnixHttpServer(path, {**routes, "/readyz": readyz}, posts)
    try:
        await server.start()
    except OSError as exc:
        raise ConfigError("settings", "control-socket", path, exc.strerror or str(exc)) from exc
    context.exits.push_async_callback(server.stop)


def _asks_kubernetes(settings: Settings) -> bool:
    """Whether anything is read from the Kubernetes API."""
    from pycni.agent.wiring_bgp import follows_objects  # noqa: PLC0415

    if settings.trace_listen and "token" in settings.trace_auth:
        return True
    parts = FOLLOWING.intersection(settings.components)
    if parts == {"bgp"} and not follows_objects(settings):
        parts = frozenset()
    return bool(parts and not settings.manifest_dir) or (
        "network" in settings.components and settings.kube_subnet_mgr
    )


def _kube_client(context: Context) -> KubeClient:
    """The one connection to the Kubernetes API. Raises ConfigError."""
    from pycni.sources import kube_config  # noqa: PLC0415
    from pycni.sources.kube_auth import Access  # noqa: PLC0415
    from pycni.sources.kube_client import KubeClient  # noqa: PLC0415

    settings = context.settings
    client = KubeClient(Access(kube_config.find(settings.kubeconfig, settings.kube_api_url)))
    context.exits.push_async_callback(client.close)
    follow_kube_client(context.metrics, client)
    return client


def _kube_leases(context: Context, client: KubeClient) -> KubeLeaseSource:
    from pycni.sources.kube_leases import KubeLeaseSource  # noqa: PLC0415

    settings = context.settings
    source = KubeLeaseSource(
        client,
        settings.node_name,
        settings.net_config_path,
        prefix=settings.kube_annotation_prefix,
        set_condition=settings.set_node_network_unavailable,
    )
    follow_kube(context.metrics, "pycni_kube_nodes", {"Node": source.follower})
    return source


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


def _network(context: Context, source: LeaseSource | KubeLeaseSource, store: Store) -> NetworkComponent:
    from pycni.agent.network_report import NetworkReport  # noqa: PLC0415

    report = NetworkReport(context.health, context.metrics)
    made: NetworkComponent = implementation("network")(
        context.settings, source, store, report=report, readdressed=source.readdressed
    )
    # What etcd is waited for changes between passes, and a lease ends by itself.
    context.health.ask("network", made.not_ready_reason)
    return made


async def _serve_cni(
    context: Context,
    network: NetworkComponent,
    listeners: Sequence[Callable[[EndpointStore], None]],
    gates: Sequence[EndpointGate],
    report: NodeReport,
) -> NoReturn:
    module = await asyncio.to_thread(importlib.import_module, "pycni.agent.wiring_cni")
    await module.serve(context, network, listeners, gates, report.attached)
    raise AssertionError("serving is eternal")


def implementation(name: str) -> Any:
    """The class the components' table names."""
    module, _, attribute = COMPONENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
