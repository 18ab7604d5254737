"""What is around the services of a node: load balancers that ask, other proxies, switches of connection tracking.

Life: started with the component. ``/healthz`` and ``/livez`` answer at kube-proxy's port: load balancers of Services
with externalTrafficPolicy Cluster ask there whether to use this node. ``/healthz`` fails when programming stalls and
when the Node object is being deleted (KEP-3836), so that connections can drain; ``/livez`` ignores the latter, because
restarting an agent does not help a node that goes. Another service proxy on the node is named once in the log and in
``pycnictl services``; nothing of it is touched.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol, TypeVar

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
ACCOUNTING = "net.netfilter.nf_conntrack_acct"
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
        self._liberal = not settings.conntrack_tcp_be_liberal
        self._accounting = not settings.conntrack_accounting
        self.others: tuple[str, ...] = ()
        """Other service proxies, one line each."""

    async def run(self) -> NoReturn:
        """Listen, and look for other proxies, for ever; on a thread of its own, so that no change waits for it."""
        try:
            while True:
                self._compare(tuple(await asyncio.to_thread(detect.others)))
                await self._listen()
                await asyncio.sleep(LOOK_S)
        finally:
            await self._stop()

    def _compare(self, found: tuple[str, ...]) -> None:
        for line in found:
            if line not in self.others:
                log.warning("another service proxy is on this node: %s; it is left alone", line)
        for line in self.others:
            if line not in found:
                log.info("gone: %s", line)
        self.others = found

    async def programmed(self, work: Work) -> None:
        """Services are in the kernel, and with them connection tracking."""
        if not self._liberal:
            await self._be_liberal(work)
        if not self._accounting:
            await self._account(work)

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

    async def _account(self, work: Work) -> None:
        try:
            await work(lambda: sysctl.put(ACCOUNTING, 1))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return
            # Nobody's packets depend on it: no trouble, only less to see.
            log.warning("conntrack-accounting: bytes of services are not counted: %s", error)
        self._accounting = True

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
