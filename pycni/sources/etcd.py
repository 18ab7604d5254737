"""A thin asyncio client of etcd's v3 API over gRPC: the requests pycni makes, and nothing kept about keys.

Life of a request: take the connection in use or dial one (``etcd_dial``), authenticate when a user is configured,
call with a deadline. A failure is raised as one StoreError saying what was asked of which endpoint; whoever asked
tries again. What points to the endpoint (it is gone, does not answer, has no leader) also drops the connection,
and the next request is made to the next endpoint. Requests are never repeated here, except after a stale
authentication token, which etcd refuses before doing anything.

Watching is in ``etcd_watch`` (the protocol) and ``etcd_follow`` (the loop).
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from pycni.errors import StoreError
from pycni.sources.etcd_config import EtcdConfig
from pycni.sources.etcd_dial import Connection, Dialer
from pycni.sources.etcd_pb import rpc_pb2 as rpc

log = logging.getLogger("pycni.etcd")
R = TypeVar("R", bound=Message)
Code = grpc.StatusCode

# What is not worth trying again without a change by somebody (rights, request, version).
_PERMANENT = frozenset(
    {
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.INVALID_ARGUMENT,
        Code.UNIMPLEMENTED,
        Code.FAILED_PRECONDITION,
    }
)
# What says something about the endpoint and not about the request.
_ENDPOINT = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL})
# etcd's texts (api/v3rpc/rpctypes) for a token it does not know (any more).
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
_NO_AUTH = "authentication is not enabled"


class EtcdClient:
    """A client for one cluster. Use as ``async with``; one event loop; many requests at a time.

    ``dials`` counts the connections made, ``endpoint`` is the URL in use ("" when none is).
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self.dials = 0
        self._dialer = Dialer(config)
        self._connection: Connection | None = None
        self._dialling = asyncio.Lock()
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._heard = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """The URL in use."""
        return self._connection.endpoint.url if self._connection is not None else ""

    async def close(self) -> None:
        """End every call and connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- requests --------------------------------------------------------------------------------------------

    async def range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Read keys, linearizable unless the request says otherwise."""
        return await self._call("/etcdserverpb.KV/Range", request, rpc.RangeResponse)

    async def get(self, key: str) -> rpc.KeyValue | None:
        """One key, None when it does not exist."""
        response = await self.range(rpc.RangeRequest(key=key.encode()))
        return response.kvs[0] if response.kvs else None

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write a key unconditionally. Returns the revision."""
        request = rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        response = await self._call("/etcdserverpb.KV/Put", request, rpc.PutResponse)
        return response.header.revision

    async def delete(self, key: str, range_end: bytes = b"") -> int:
        """Delete a key or a range. Returns how many there were."""
        request = rpc.DeleteRangeRequest(key=key.encode(), range_end=range_end)
        response = await self._call("/etcdserverpb.KV/DeleteRange", request, rpc.DeleteRangeResponse)
        return response.deleted

    async def txn(self, request: rpc.TxnRequest) -> rpc.TxnResponse:
        """Do one set of operations or the other, depending on comparisons, atomically."""
        return await self._call("/etcdserverpb.KV/Txn", request, rpc.TxnResponse)

    async def compact(self, revision: int) -> None:
        """Forget history before ``revision``."""
        request = rpc.CompactionRequest(revision=revision, physical=True)
        await self._call("/etcdserverpb.KV/Compact", request, rpc.CompactionResponse)

    async def lease_grant(self, ttl_s: int) -> tuple[int, int]:
        """Make an etcd lease. Returns its id and the seconds it really has (etcd has a minimum)."""
        request = rpc.LeaseGrantRequest(TTL=ttl_s)
        response = await self._call("/etcdserverpb.Lease/LeaseGrant", request, rpc.LeaseGrantResponse)
        if response.error:
            raise StoreError(f"etcd {self.endpoint}: LeaseGrant: {response.error}")
        return response.ID, response.TTL

    async def lease_revoke(self, lease: int) -> None:
        """End an etcd lease now; keys that hang on it are deleted."""
        await self._call(
            "/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), rpc.LeaseRevokeResponse
        )

    async def lease_time_to_live(self, lease: int) -> tuple[int, int]:
        """Seconds left (-1: it is gone) and seconds granted."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease)
        response = await self._call(
            "/etcdserverpb.Lease/LeaseTimeToLive", request, rpc.LeaseTimeToLiveResponse
        )
        return response.TTL, response.grantedTTL

    async def lease_keepalive(self, lease: int) -> int:
        """Refresh an etcd lease once. Returns the seconds it has again, 0 when it is gone."""
        stream, _ = await self._stream("/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveResponse)
        try:
            async with asyncio.timeout(self.config.call_timeout_s):
                await stream.write(rpc.LeaseKeepAliveRequest(ID=lease))
                response = await stream.read()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, TimeoutError) as exc:
            raise StoreError(f"etcd {self.endpoint}: LeaseKeepAlive: {exc}") from exc
        finally:
            stream.cancel()
        return 0 if response is grpc.aio.EOF else int(response.TTL)

    async def status(self) -> rpc.StatusResponse:
        """The member in use: version, leader (compare with header.member_id)."""
        return await self._call("/etcdserverpb.Maintenance/Status", rpc.StatusRequest(), rpc.StatusResponse)

    # --- for etcd_follow -------------------------------------------------------------------------------------

    async def open_watch(self) -> tuple[Any, Connection]:
        """A watch stream, ended by the server when it has no leader (else it would just fall silent)."""
        return await self._stream("/etcdserverpb.Watch/Watch", rpc.WatchResponse, (("hasleader", "true"),))

    def heard(self) -> None:
        """Note that the endpoint in use is alive (a stream has brought something)."""
        self._heard = asyncio.get_running_loop().time()

    def redial(self) -> None:
        """Give the connection in use up at once, with all calls under way: the address it goes out by is gone.

        Nothing else would tell before the calls' time is over: packets to us go nowhere.
        """
        if self._connection is not None:
            log.info("etcd: dialling %s anew", self._connection.endpoint.url)
            self.drop(self._connection, elsewhere=False, grace_s=0.0)

    def drop(self, connection: Connection, *, elsewhere: bool = True, grace_s: float | None = None) -> None:
        """Give a connection up; the next request dials, beginning behind its endpoint if ``elsewhere``.

        Calls under way on it end by themselves or are cut after ``grace_s``, by default one call's time.
        """
        if self._connection is not connection:
            return
        self._connection = None
        self.forget_token()
        if elsewhere:
            self._dialer.avoid(connection.endpoint)
        grace_s = self.config.call_timeout_s if grace_s is None else grace_s
        task = asyncio.get_running_loop().create_task(connection.close(grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def forget_token(self) -> None:
        """Authenticate again at the next request."""
        self._token = ""

    # --- inside ----------------------------------------------------------------------------------------------

    async def _call(self, path: str, request: Message, answer: type[R]) -> R:
        """One request, one answer. Raises StoreError."""
        name = path.rpartition("/")[2]
        connection = await self._connected()
        for fresh in (False, True):
            metadata = await self._credentials(connection)
            try:
                response: R = await self._unary(connection, path, request, answer, metadata)
            except grpc.aio.AioRpcError as exc:
                if not fresh and self.config.username and _stale_token(exc):
                    self.forget_token()
                    continue
                raise self._failed(connection, name, exc) from exc
            self.heard()
            return response
        raise AssertionError("unreachable")

    async def _unary(
        self, connection: Connection, path: str, request: Message, answer: type[R], metadata: tuple[Any, ...]
    ) -> R:
        """One call. A channel closed under it reports a cancellation, which is not ours: that is a failed call."""
        call = _method(connection, path, answer)
        try:
            response: R = await call(request, timeout=self.config.call_timeout_s, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _closed(connection, path) from None
        except grpc.aio.BaseError as exc:
            raise _closed(connection, path) from exc
        return response

    async def _stream(
        self, path: str, answer: type[Message], more: tuple[tuple[str, str], ...] = ()
    ) -> tuple[Any, Connection]:
        """A bidirectional stream, and the connection it runs on."""
        connection = await self._connected()
        metadata = (*await self._credentials(connection), *more)
        try:
            return _method(connection, path, answer, stream=True)(metadata=metadata), connection
        except grpc.aio.BaseError as exc:
            raise _closed(connection, path) from exc

    async def _connected(self) -> Connection:
        """The connection in use, or a new one."""
        if self._connection is None:
            async with self._dialling:
                if self._connection is None:
                    self._connection = await self._dialer.dial()
                    self.dials += 1
                    self.heard()
                    log.info("etcd: connected to %s", self._connection.endpoint.url)
        return self._connection

    async def _credentials(self, connection: Connection) -> tuple[tuple[str, str], ...]:
        """Metadata that says who we are; a client certificate says it without."""
        if not self.config.username:
            return ()
        if not self._token:
            async with self._authenticating:
                if not self._token:
                    self._token = await self._authenticate(connection)
        return (("token", self._token),) if self._token != _NO_AUTH else ()

    async def _authenticate(self, connection: Connection) -> str:
        request = rpc.AuthenticateRequest(name=self.config.username, password=self.config.password)
        path = "/etcdserverpb.Auth/Authenticate"
        try:
            response = await self._unary(connection, path, request, rpc.AuthenticateResponse, ())
        except grpc.aio.AioRpcError as exc:
            if exc.code() is Code.FAILED_PRECONDITION and _NO_AUTH in (exc.details() or ""):
                log.warning("etcd %s: user %s given, but authentication is not enabled there",
                            connection.endpoint.url, self.config.username)  # fmt: skip
                return _NO_AUTH
            raise self._failed(connection, f"Authenticate as {self.config.username}", exc) from exc
        return response.token

    def _failed(self, connection: Connection, name: str, exc: grpc.aio.AioRpcError) -> StoreError:
        """The error to raise for a failed call; drops the connection when the endpoint is to blame."""
        code = exc.code()
        if code in _ENDPOINT:
            # A restored etcd does not refuse an old token: it waits until its history is as long as the token's.
            self.forget_token()
            silence_s = asyncio.get_running_loop().time() - self._heard
            # A slow answer among quick ones is the request's own fault: stay.
            if code is not Code.DEADLINE_EXCEEDED or silence_s > self.config.dial_timeout_s:
                self.drop(connection)
        text = f"etcd {connection.endpoint.url}: {name}: {exc.details() or code.name} ({code.name})"
        return StoreError(text, transient=code not in _PERMANENT)


def _method(connection: Connection, path: str, answer: type[Message], *, stream: bool = False) -> Any:
    """The callable of a method on a connection."""
    call = connection.calls.get(path)
    if call is None:
        make = connection.channel.stream_stream if stream else connection.channel.unary_unary
        call = make(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        connection.calls[path] = call
    return call


def _closed(connection: Connection, path: str) -> StoreError:
    """The connection was given up, by another request perhaps, before or during this one."""
    return StoreError(f"etcd {connection.endpoint.url}: connection closed during {path.rpartition('/')[2]}")


def _stale_token(exc: grpc.aio.AioRpcError) -> bool:
    details = exc.details() or ""
    return any(text in details for text in _STALE_TOKEN)
