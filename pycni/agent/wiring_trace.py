"""Traces, wired: what the control socket answers of them, and the listener for other nodes where it is switched on.

Life: ``make`` is called by ``wiring`` on the event loop, before the control socket is served. Nothing is read before
somebody asks.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pycni.agent.httpd import AsyncHandler, PostHandler, Response
from pycni.agent.process import Context
from pycni.errors import ConfigError

if TYPE_CHECKING:
    from pycni.agent.metrics import Registry
    from pycni.agent.network import NetworkComponent
    from pycni.agent.status_ipam import Attached
    from pycni.agent.trace_auth import Reviewer
    from pycni.agent.trace_service import TraceService
    from pycni.agent.trace_state import Known
    from pycni.model.lease import Lease
    from pycni.model.node import Underlay
    from pycni.sources.kube_client import KubeClient
    from pycni.store import Store
    from pycni.tracing.speech import Means, Peer, Peers

log = logging.getLogger("pycni.agent")
REVIEW_S = 10.0


class Parts:
    """What is known of this node, put together when somebody asks. On the event loop."""

    def __init__(
        self,
        context: Context,
        store: Store,
        network: Callable[[], NetworkComponent | None],
        attached: Callable[[], Attached | None],
    ) -> None:
        self._context, self._store = context, store
        self._network, self._attached = network, attached

    def known(self) -> Known:
        """For ``TraceService``."""
        from pycni.agent.trace_state import Known  # noqa: PLC0415

        network, side = self._network(), self._attached()
        passes = network.known if network is not None else None
        return Known(
            settings=self._context.settings,
            objects=self._store.snapshot(),
            reason=self._context.health.reason(),
            plan=passes.plan if passes is not None else None,
            desired=passes.desired if passes is not None else None,
            podnet=network.podnet() if network is not None else None,
            endpoints=tuple(side.endpoints.all()) if side is not None else (),
            detect=self._detect,
        )

    def peers(self) -> Peers:
        """All other nodes, by lease, and how they are asked."""
        from pycni.tracing.speech import Peers  # noqa: PLC0415

        settings, network = self._context.settings, self._network()
        held = network.known.held if network is not None and network.known is not None else None
        own = held.lease.key if held is not None else settings.node_name
        leases: dict[str, Lease] = dict(self._store.snapshot().of("lease"))
        found = [_peer(key, lease) for key, lease in sorted(leases.items()) if key != own]
        return Peers(node=settings.node_name, peers=tuple(found), means=self._means())

    def _means(self) -> Means | None:
        from pycni.tracing.speech import Means  # noqa: PLC0415

        settings = self._context.settings
        if not settings.trace_listen:
            return None
        token = ""
        if "token" in settings.trace_auth:
            from pycni.sources import kube_config  # noqa: PLC0415

            token = kube_config.find(settings.kubeconfig, settings.kube_api_url).token_file
        return Means(
            port=host_port(settings.trace_listen)[1],
            certificate=settings.trace_tls_cert if "cert" in settings.trace_auth else "",
            key=settings.trace_tls_key if "cert" in settings.trace_auth else "",
            authority=settings.trace_tls_ca,
            server_name=settings.trace_server_name,
            token_file=token,
        )

    def _detect(self) -> Underlay | None:
        from pycni.agent import underlay  # noqa: PLC0415
        from pycni.errors import PycniError  # noqa: PLC0415

        try:
            return underlay.detect(self._context.settings)
        except PycniError as error:
            log.info("trace: no external interface: %s", error)
            return None


ROUTES = ("/trace/state", "/trace/objects", "/trace/counters", "/trace/peers")
POSTS = ("/trace/watch", "/trace/send")


class Lazily:
    """The service, made when it is first asked: what it imports is nothing for the start."""

    def __init__(self, context: Context, parts: Parts) -> None:
        self._context, self._parts = context, parts
        self._service: TraceService | None = None

    def made(self) -> TraceService:
        """The one there is. On the event loop."""
        from pycni.agent.trace_service import TraceService  # noqa: PLC0415

        if self._service is None:
            self._service = TraceService(self._parts.known, self._parts.peers)
            self._context.exits.callback(self._service.close)
        return self._service

    def route(self, path: str) -> AsyncHandler:
        """A route of the service."""

        async def answer(query: str) -> Response:
            await self._imported()
            return await self.made().routes()[path](query)

        return answer

    def post(self, path: str) -> PostHandler:
        """What is posted to it."""

        async def answer(query: str, body: bytes) -> Response:
            await self._imported()
            return await self.made().posts()[path](query, body)

        return answer

    async def _imported(self) -> None:
        if self._service is None:
            await asyncio.to_thread(importlib.import_module, "pycni.agent.trace_service")


def make(
    context: Context, parts: Parts, client: KubeClient | None
) -> tuple[dict[str, AsyncHandler], dict[str, PostHandler]]:
    """What the control socket answers and takes. Raises ConfigError when the listener cannot be had."""
    lazily = Lazily(context, parts)
    if context.settings.trace_listen:
        _listen(context, lazily.made(), client)
    return {path: lazily.route(path) for path in ROUTES}, {path: lazily.post(path) for path in POSTS}


def _listen(context: Context, service: TraceService, client: KubeClient | None) -> None:
    from pycni.agent.trace_auth import Guard  # noqa: PLC0415
    from pycni.agent.trace_listen import Contexts, Files, TraceListener  # noqa: PLC0415

    settings = context.settings
    review = _reviewer(client) if "token" in settings.trace_auth and client is not None else None
    guard = Guard(settings.trace_auth, settings.trace_allowed_names, review)
    files = Files(settings.trace_tls_cert, settings.trace_tls_key, settings.trace_tls_ca)
    contexts = Contexts(files, required=guard.needs_certificate)
    listener = TraceListener(host_port(settings.trace_listen), contexts, guard, service)
    try:
        listener.start()
    except OSError as exc:
        raise ConfigError(
            "settings", "trace-listen", settings.trace_listen, exc.strerror or str(exc)
        ) from exc
    context.exits.push_async_callback(asyncio.to_thread, listener.stop)
    follow_traces(context.metrics, lambda: listener.answers, lambda: service.watches)
    log.info(
        "traces for other nodes are served at %s (%s)", settings.trace_listen, ", ".join(settings.trace_auth)
    )


def follow_traces(
    metrics: Registry, answers: Callable[[], Mapping[str, int]], watches: Callable[[], int]
) -> None:
    """What other nodes ask."""
    metrics.callback(
        "pycni_trace_answers_total",
        "Answers to traces of other nodes, by HTTP status; tls: no handshake, busy: too many connections.",
        lambda: [((what,), float(count)) for what, count in dict(answers()).items()],
        labels=("status",),
        kind="counter",
    )
    metrics.callback("pycni_trace_watches", "Watches for traces that are open.", lambda: float(watches()))


def _reviewer(client: KubeClient) -> Reviewer:
    """Asks on the event loop, for a thread."""
    from pycni.agent.trace_auth import Review  # noqa: PLC0415
    from pycni.sources.kube_http import KubeError  # noqa: PLC0415
    from pycni.sources.kube_review import TokenReviewer  # noqa: PLC0415

    reviewer, loop = TokenReviewer(client, "/trace"), asyncio.get_running_loop()

    def review(token: str) -> Review:
        task = asyncio.run_coroutine_threadsafe(reviewer.review(token), loop)
        try:
            return Review(*task.result(REVIEW_S))
        except TimeoutError:
            task.cancel()
            raise KubeError(f"no answer within {REVIEW_S:g} s") from None

    return review


def _peer(key: str, lease: Lease) -> Peer:
    from pycni.tracing.speech import Peer  # noqa: PLC0415

    attrs = lease.attrs
    addresses = tuple(str(item) for item in (attrs.public_ip, attrs.public_ipv6) if item is not None)
    return Peer(
        name=addresses[0] if addresses else key,
        addresses=addresses,
        subnets=tuple(str(net) for net in (lease.subnet, lease.subnet6) if net is not None),
    )


def host_port(text: str) -> tuple[str, int]:
    """Of a setting that is known to be right."""
    host, _, port = text.rpartition(":")
    return str(ip_address(host.strip("[]"))), int(port)
