"""What is around the services of a node: load balancers that ask, other proxies, a switch of connection tracking.

Life: started with the component. ``/healthz`` and ``/livez`` answer at kube-proxy's port: load balancers of Services
with externalTrafficPolicy Cluster ask there whether to use this node. ``/healthz`` fails when programming stalls and
when the Node object is being deleted (KEP-3836), so that connections can drain; ``/livez`` ignores the latter, because
restarting an agent does not help a node that goes. Another service proxy on the node is named once in the log and in
``pycnictl services``; nothing of it is touched.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from pycni.agent.httpd import HttpServer, Response
from pycni.agent.settings import Settings
from pycni.errors import KernelError
from pycni.kernel import sysctl
from pycni.model.kube import KubeNode
from pycni_proxy import detect
from pycni_proxy.report import ProxyReport

log = logging.getLogger("pycni.proxy")
T = TypeVar("T")

LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
LOOK_S = 60.0
"""How often to look for other proxies."""


class Work(Protocol):
    """Runs a blocking call on the worker thread."""

    def __call__(self, job: Callable[[], T]) -> Awaitable[T]:
        """Its result, or what it raises."""
        ...


class Surroundings:
    """One per component, on its event loop."""

    def __init__(self, settings: Settings, report: ProxyReport, node: Callable[[], KubeNode | None]) -> None:
        self._settings = settings
        self._report = report
        self._node = node
        self._server: HttpServer | None = None
        self._looked = float("-inf")
        self._liberal = not settings.conntrack_tcp_be_liberal
        self._work: Work | None = None
        self.others: tuple[str, ...] = ()
        """Other service proxies, one line each."""

    async def start(self, exits: AsyncExitStack, work: Work) -> None:
        """Begin; ``exits`` takes down what is opened."""
        self._work = work
        exits.push_async_callback(self._stop)
        await self.look()

    async def look(self) -> None:
        """Look for other proxies now and then, and have the health port; cheap when there is nothing to do."""
        if self._work is None:
            return
        if not self._liberal:
            await self._be_liberal(self._work)
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        found = tuple(await self._work(detect.others))
        for line in found:
            if line not in self.others:
                log.warning("another service proxy is on this node: %s; it is left alone", line)
        for line in self.others:
            if line not in found:
                log.info("gone: %s", line)
        self.others = found
        await self._listen()

    async def _be_liberal(self, work: Work) -> None:
        try:
            await work(lambda: sysctl.put(LIBERAL, 1))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return  # it comes with connection tracking, which comes with the first rule that needs it
            self._report.trouble("conntrack-tcp-be-liberal", str(error))
        else:
            self._report.trouble("conntrack-tcp-be-liberal", "")
        self._liberal = True

    async def _listen(self) -> None:
        port = self._settings.proxy_healthz_port
        if not port or self._server is not None:
            return
        server = HttpServer(
            str(self._settings.healthz_ip), port, {"/healthz": self._healthz, "/livez": self._livez}
        )
        try:
            await server.start()
        except OSError as exc:
            named = f" ({'; '.join(self.others)})" if self.others else ""
            self._report.trouble(
                "proxy health port", f"cannot listen on port {port}: {exc.strerror or exc}{named}"
            )
            return
        self._server = server
        self._report.trouble("proxy health port", "")

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def _healthz(self, _query: str) -> Response:
        node = self._node()
        eligible = node is None or not node.meta.deleting
        return self._respond(ok=self._report.well() and eligible, eligible=eligible)

    def _livez(self, _query: str) -> Response:
        return self._respond(ok=self._report.well(), eligible=None)

    def _respond(self, *, ok: bool, eligible: bool | None) -> Response:
        body: dict[str, object] = {"healthy": self._report.well(), "reason": self._report.reason}
        if eligible is not None:
            body["nodeEligible"] = eligible
        return Response(200 if ok else 503, "application/json", json.dumps(body) + "\n")
