"""Health-check node ports: what load balancers ask to learn whether this node has endpoints of a service.

Life: after every pass ``HealthChecks.update`` is told which ports this node has to answer (Services with
externalTrafficPolicy Local). Ports that stay keep their listener while their answer changes; a port that cannot be had
is a problem of its service, tried again with every update. Answers are as kube-proxy's (pkg/proxy/healthcheck): 200
when there are local endpoints and the proxy is well, else 503, the figures in the body and the number of endpoints in
the header ``X-Load-Balancing-Endpoint-Weight`` (kubernetes#118999).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from pycni.agent.httpd import ANY, HttpServer, Response
from pycni.model.service import HealthCheck

log = logging.getLogger("pycni.proxy")


def answer(check: HealthCheck, *, proxy_healthy: bool) -> Response:
    """What a load balancer gets. Pure."""
    body = {
        "service": {"namespace": check.namespace, "name": check.service},
        "localEndpoints": check.local,
        "serviceProxyHealthy": proxy_healthy,
    }
    return Response(
        200 if check.local > 0 and proxy_healthy else 503,
        "application/json",
        json.dumps(body, indent=1) + "\n",
        (
            ("X-Content-Type-Options", "nosniff"),
            ("X-Load-Balancing-Endpoint-Weight", str(check.local)),
        ),
    )


class HealthChecks:
    """All ports of this node. On one event loop."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        """``healthy``: whether the proxy programs the kernel; asked for every answer."""
        self._healthy = healthy
        self._checks: dict[int, HealthCheck] = {}
        self._servers: dict[int, HttpServer] = {}
        self._addresses: tuple[str, ...] = ()
        self.problems: Mapping[str, str] = {}
        """What cannot be answered, by service key."""

    @property
    def ports(self) -> Sequence[int]:
        """Ports that are answered."""
        return sorted(self._servers)

    async def update(self, checks: Iterable[HealthCheck], addresses: Sequence[str]) -> None:
        """Answer exactly these, at these addresses (``0.0.0.0``, ``::``). Never raises for a port in use."""
        problems: dict[str, str] = {}
        wanted: dict[int, HealthCheck] = {}
        for check in sorted(checks):
            other = wanted.setdefault(check.port, check)
            if other is not check:
                key = f"{check.namespace}/{check.service}"
                problems[key] = f"healthCheckNodePort {check.port} is {other.namespace}/{other.service}'s"
        if tuple(addresses) != self._addresses:
            await self.close()
            self._addresses = tuple(addresses)
        for port in [port for port in self._servers if port not in wanted]:
            await self._servers.pop(port).stop()
            log.info("health check port %d is closed", port)
        self._checks = wanted
        for port, check in wanted.items():
            if port not in self._servers:
                reason = await self._open(port)
                if reason:
                    problems[f"{check.namespace}/{check.service}"] = reason
        for key, reason in problems.items():
            if self.problems.get(key) != reason:
                log.error("service %s: %s", key, reason)
        self.problems = problems

    async def close(self) -> None:
        """Close every port."""
        for port in list(self._servers):
            await self._servers.pop(port).stop()

    async def _open(self, port: int) -> str:
        server = HttpServer(self._addresses, port, {ANY: partial(self._answer, port)})
        try:
            await server.start()
        except OSError as exc:
            return f"cannot answer at healthCheckNodePort {port}: {exc.strerror or exc}"
        self._servers[port] = server
        log.info("health check port %d is open", port)
        return ""

    def _answer(self, port: int, _query: str) -> Response:
        return answer(self._checks[port], proxy_healthy=self._healthy())
