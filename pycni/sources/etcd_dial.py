"""Finding an etcd endpoint that answers, and the gRPC channel to it.

One channel per endpoint and one in use at a time: which endpoint is used, when the next one is tried and what that
costs is decided here and not by gRPC's name resolution. Endpoints are tried in turn with a short head start each
and the first that completes its handshake wins, so a dead one costs ``dial_stagger_s``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from pycni.errors import StoreError
from pycni.sources.etcd_config import Endpoint, EtcdConfig

KEEPALIVE_S = 10
"""HTTP/2 pings while calls are open. etcd hangs up on clients that ping more often than every 5 s
(--grpc-keepalive-min-time); watches notice silence sooner by asking for progress (sources/etcd_follow)."""
PING_TIMEOUT_MS = 3000


def options(config: EtcdConfig) -> list[tuple[str, int]]:
    """Channel arguments (grpc/impl/channel_arg_names.h)."""
    return [
        (
            "grpc.enable_http_proxy",
            0,
        ),  # a proxy from the environment is for the web, not for the cluster's store
        ("grpc.max_receive_message_length", -1),  # a listing comes in one message
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", int(config.dial_timeout_s * 1000)),  # also the limit of one connect
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),
    ]


class Connection:
    """A channel that was ready once, and the endpoint it leads to."""

    def __init__(self, endpoint: Endpoint, channel: Any) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.calls: dict[str, Any] = {}
        """Multicallables by method path."""

    async def close(self, grace_s: float | None = None) -> None:
        """Close the channel; calls under way may go on for ``grace_s``."""
        await self.channel.close(grace_s)


class Dialer:
    """Makes connections. ``next_endpoint`` is where the next search begins."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self.endpoints = config.check()
        self.next_endpoint = 0
        self._credentials = None
        if any(endpoint.tls for endpoint in self.endpoints):
            ca, cert, key = config.files()
            self._credentials = grpc.ssl_channel_credentials(ca, key, cert)

    def avoid(self, endpoint: Endpoint) -> None:
        """Begin the next search behind this endpoint."""
        self.next_endpoint = (self.endpoints.index(endpoint) + 1) % len(self.endpoints)

    async def dial(self) -> Connection:
        """The first endpoint that answers. Raises StoreError saying what is wrong with each."""
        order = self.endpoints[self.next_endpoint :] + self.endpoints[: self.next_endpoint]
        tasks: list[asyncio.Task[Connection]] = []
        winner: Connection | None = None
        try:
            async with asyncio.timeout(self.config.dial_timeout_s):
                winner = await self._race(order, tasks)
        except TimeoutError:
            failures = [_failure(endpoint, task) for endpoint, task in zip(order, tasks, strict=False)]
            raise StoreError("etcd: no endpoint answers: " + "; ".join(failures)) from None
        finally:
            await _discard(tasks, winner)
        self.next_endpoint = self.endpoints.index(winner.endpoint)
        return winner

    async def _race(self, order: Sequence[Endpoint], tasks: list[asyncio.Task[Connection]]) -> Connection:
        """Start the attempts one after the other; return the first success, or fail when all have failed."""
        for endpoint in order:
            tasks.append(asyncio.create_task(self._ready(endpoint), name=f"dial {endpoint.url}"))
            winner = await _first(tasks, self.config.dial_stagger_s)
            if winner is not None:
                return winner
        while any(not task.done() for task in tasks):
            winner = await _first(tasks, None)
            if winner is not None:
                return winner
        failures = [_failure(endpoint, task) for endpoint, task in zip(order, tasks, strict=True)]
        raise StoreError("etcd: no endpoint answers: " + "; ".join(failures))

    async def _ready(self, endpoint: Endpoint) -> Connection:
        """A ready channel to one endpoint. Raises StoreError at its first failure."""
        if endpoint.tls:
            channel = grpc.aio.secure_channel(endpoint.target, self._credentials, options(self.config))
        else:
            channel = grpc.aio.insecure_channel(endpoint.target, options(self.config))
        ready = False
        try:
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise StoreError(await _why(channel))
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
            ready = True
        finally:
            if not ready:
                await channel.close()
        return Connection(endpoint, channel)


async def _first(tasks: list[asyncio.Task[Connection]], limit_s: float | None) -> Connection | None:
    """A connection made within the limit; returns early when every started attempt has failed."""
    loop = asyncio.get_running_loop()
    deadline = None if limit_s is None else loop.time() + limit_s
    while True:
        for task in tasks:
            if task.done() and task.exception() is None:
                return task.result()
        pending = [task for task in tasks if not task.done()]
        left = None if deadline is None else deadline - loop.time()
        if not pending or (left is not None and left <= 0):
            return None
        done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if done and limit_s is not None and all(task.exception() is not None for task in done):
            return None  # it failed at once: no need to wait for the rest of its head start


async def _discard(tasks: list[asyncio.Task[Connection]], winner: Connection | None) -> None:
    """End the attempts that were not chosen, and close connections that came too late."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Connection) and outcome is not winner:
            await outcome.close()


async def _why(channel: Any) -> str:
    """Why a failed channel failed: gRPC tells only a call."""
    call = channel.unary_unary("/etcdserverpb.Maintenance/Status")
    try:
        await call(b"", timeout=0.5)
    except grpc.aio.AioRpcError as exc:
        return str(exc.details() or exc.code().name)
    return "the connection failed"


def _failure(endpoint: Endpoint, task: asyncio.Task[Connection]) -> str:
    """One endpoint's trouble in words."""
    if not task.done() or task.cancelled():
        return f"{endpoint.url}: no answer"
    exc = task.exception()
    return f"{endpoint.url}: {exc}" if exc is not None else f"{endpoint.url}: ready"
