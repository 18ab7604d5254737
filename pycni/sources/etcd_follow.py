"""Keeping up with a range of etcd keys for ever: the loop around ``etcd_watch``.

Each ``Follower`` has its own stream. The consumer's two callbacks run on the event loop, in order: ``on_listing``
with everything there is, then ``on_changes`` with what happened since, and ``on_listing`` again whenever
continuity was lost. A stream that says nothing is asked for progress; one that stays silent is a half-open link or
a frozen server, and is given up within ``silence_s`` (asking for progress needs etcd 3.4). While etcd is away
nothing is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from pycni.errors import StoreError
from pycni.reconcile.backoff import Backoff
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_pb import rpc_pb2 as rpc
from pycni.sources.etcd_watch import Changed, Listed, Opened, Phase, Refused, Relist, WatchState
from pycni.sources.sparing import Sparing

log = logging.getLogger("pycni.etcd")
GOODBYE_S = 0.5
# etcd's texts (api/v3rpc/rpctypes) for a read at a revision it has forgotten or has not reached.
_NO_SUCH_REVISION = ("required revision has been compacted", "required revision is a future revision")
PROGRESS = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


class Follower:
    """Follows ``key`` .. ``range_end``. The plain attributes are for metrics and health."""

    def __init__(
        self,
        client: EtcdClient,
        key: str,
        range_end: bytes = b"",
        *,
        on_listing: Callable[[Listed], None],
        on_changes: Callable[[Changed], None],
        progress_s: float = 2.0,
        silence_s: float = 5.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._state = WatchState(key, range_end)
        self._on_listing = on_listing
        self._on_changes = on_changes
        self._progress_s = progress_s
        self._silence_s = silence_s
        self._backoff = backoff or Backoff(0.1, 5.0, jitter=0.5)
        self._trouble = Sparing(log)
        self._relist_asked = asyncio.Event()
        self.name = key
        self.connected = False
        """Whether the watch is open and has been heard of within ``silence_s``."""
        self.reconnects = 0
        """Streams opened after the first."""
        self.relists = 0
        """Listings after the first."""
        self.events = 0
        self.last_message = 0.0
        """loop.time() of the last message of the stream or listing; 0 before the first."""

    def relist(self) -> None:
        """List again soon, though nothing is wrong."""
        self._relist_asked.set()

    async def run(self) -> NoReturn:
        """Follow for ever. Only what the callbacks raise ends it."""
        opened = listed = False
        while True:
            try:
                if self._state.phase is Phase.LIST:
                    self.relists += listed
                    await self._list()
                    listed = True
                elif self._state.phase is Phase.CHECK:
                    await self._check()
                else:
                    self.reconnects += opened
                    opened = True
                    await self._watch()
                    continue
            except StoreError as exc:
                level = logging.WARNING if exc.transient else logging.ERROR
                self._trouble.warn(f"following {self.name}: {exc}; trying again", level)
                await asyncio.sleep(self._backoff.next())

    async def _list(self) -> None:
        response = await self._client.range(self._state.list_request())
        self._relist_asked.clear()
        listing = self._state.listed(response)
        self._heard()
        self._on_listing(listing)

    async def _check(self) -> None:
        """Before resuming: is this still the store we know?"""
        request = self._state.check_request()
        if request is None:
            self._state.relist()
            return
        try:
            response = await self._client.range(request)
        except StoreError as exc:
            if any(text in str(exc) for text in _NO_SUCH_REVISION):
                log.warning("following %s: %s; listing again", self.name, exc)
                self._state.relist()
                return
            raise
        if not self._state.checked(response):
            log.warning("following %s: etcd does not know what it said before; listing again", self.name)

    async def _watch(self) -> None:
        """One stream from opening to its end. Returns when a listing is due, raises StoreError otherwise."""
        stream, connection = await self._client.open_watch()
        asked = asyncio.create_task(self._relist_asked.wait())
        writing = asyncio.create_task(stream.write(self._state.create_request()))
        reading = asyncio.create_task(stream.read())
        try:
            silent_since = asyncio.get_running_loop().time()
            while not asked.done():
                await asyncio.wait(
                    {reading, asked}, timeout=self._progress_s, return_when=asyncio.FIRST_COMPLETED
                )
                if reading.done():
                    if self._received(_answer(reading)):
                        return
                    silent_since = self.last_message
                    reading = asyncio.create_task(stream.read())
                elif asyncio.get_running_loop().time() - silent_since > self._silence_s:
                    self._client.drop(connection)
                    raise StoreError(f"etcd {connection.endpoint.url}: silent for {self._silence_s:g} s")
                elif writing.done() and not writing.cancelled() and writing.exception() is None:
                    writing = asyncio.create_task(stream.write(PROGRESS))
            self._state.relist()
        except grpc.aio.BaseError as exc:
            raise StoreError(f"etcd {connection.endpoint.url}: watch ended: {exc}") from exc
        except grpc.aio.AioRpcError as exc:
            self._client.drop(connection)
            text = f"{exc.details() or ''} ({exc.code().name})".strip()
            raise StoreError(f"etcd {connection.endpoint.url}: watch ended: {text}") from exc
        finally:
            self.connected = False
            self._state.lost()
            asked.cancel()
            await _ended(stream, reading, writing)

    def _received(self, response: Any) -> bool:
        """Take one answer. Returns whether a listing is due; raises StoreError when the stream is no good."""
        if response is grpc.aio.EOF:
            raise StoreError("watch ended by the server")
        self._heard()
        self._client.heard()
        outcome = self._state.received(response)
        match outcome:
            case Opened():
                self.connected = True
                self._backoff.reset()
                self._trouble.over(f"following {self.name} again")
            case Changed(changes):
                self.events += len(changes)
                self._on_changes(outcome)
            case Relist(reason):
                log.warning("following %s: %s; listing again", self.name, reason)
                return True
            case Refused(reason):
                self._client.forget_token()
                raise StoreError(f"watch refused: {reason}", transient=False)
        return False

    def _heard(self) -> None:
        self.last_message = asyncio.get_running_loop().time()


def _answer(reading: asyncio.Task[Any]) -> Any:
    """The message read. A stream whose channel was closed reports a cancellation: that is its end."""
    if reading.cancelled():
        return grpc.aio.EOF
    return reading.result()


async def _ended(stream: Any, *tasks: asyncio.Task[Any]) -> None:
    """End a stream and wait until gRPC has let go of it: what is still under way then outlives the event loop."""
    stream.cancel()
    await asyncio.wait({*tasks, asyncio.create_task(stream.code())}, timeout=GOODBYE_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
