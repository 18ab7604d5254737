"""One HTTP/1.1 connection to the Kubernetes API: h11 for the protocol, asyncio streams for the bytes.

Life: ``Connection.dial`` opens it, ``send`` puts out a request and reads the answer's head, ``read`` its body piece by
piece; when the body is at its end and both sides keep the connection, ``reusable`` is true and the next ``send`` may
follow. Whatever goes wrong is a ``KubeError``; the connection is dead then. The kernel notices a dead peer by
keep-alive probes and unacknowledged data, so a silent watch needs no traffic of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import h11

from pycni.errors import StoreError
from pycni.sources.kube_auth import Access, Stamp

CHUNK = 256 << 10
HEAD_LIMIT = 64 << 10
DEAD_PEER_MS = 30_000
"""How long sent bytes or probes may stay unanswered."""


class KubeError(StoreError):
    """The API cannot be used now, or says no. ``status`` is the HTTP status, 0 when there was no answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after_s: float = 0.0,
        unsent: bool = False,
    ) -> None:
        self.status = status
        self.reason = reason
        """Reason of the Status object: ``Expired``, ``NotFound``, ``Conflict`` ..."""
        self.retry_after_s = retry_after_s
        """Seconds the server wants to be left alone; 0.0: it did not say."""
        self.unsent = unsent
        """The connection was closed before any answer: an idle one that the server had given up."""
        super().__init__(message, transient=status not in {400, 401, 403, 404, 405, 409, 415, 422})

    @property
    def gone(self) -> bool:
        """The version asked for has been forgotten."""
        return self.status == 410 or self.reason in {"Expired", "Gone"}


class Head(NamedTuple):
    """Status line and the headers that matter."""

    status: int
    retry_after_s: float


class Connection:
    """Used by one request at a time."""

    def __init__(
        self, access: Access, stamp: Stamp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.stamp = stamp
        """Of the credentials it was made with."""
        self._server = access.server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._used = False

    @classmethod
    async def dial(cls, access: Access, timeout_s: float) -> Connection:
        """Open a connection. Raises StoreError."""
        context, stamp = await access.tls()
        server = access.server
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(
                    server.host,
                    server.port,
                    ssl=context,
                    server_hostname=access.server_name if context is not None else None,
                    limit=CHUNK,
                    happy_eyeballs_delay=0.25,
                )
        except TimeoutError:
            raise KubeError(f"{server}: no connection within {timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as exc:
            raise KubeError(f"{server}: its certificate is not accepted: {exc.verify_message}") from None
        except (OSError, ValueError) as exc:
            raise KubeError(f"{server}: {_said(exc)}") from None
        _watch_peer(writer)
        return cls(access, stamp, reader, writer)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent; starts the next cycle when the last answer was read to its end."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return (
            self._http.our_state is h11.IDLE
            and self._http.their_state is h11.IDLE
            and not self._reader.at_eof()
            and not self._writer.is_closing()
        )

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, timeout_s: float
    ) -> Head:
        """Send a request and read the answer's head; ``target`` is without the server's prefix. Raises KubeError."""
        fresh, self._used = not self._used, True
        lines = [(b"Host", self._server.authority.encode()), (b"User-Agent", b"pycni"), *headers]
        if body:
            lines.append((b"Content-Length", str(len(body)).encode()))
        try:
            request = h11.Request(method=method, target=self._server.prefix + target, headers=lines)
            out = (self._http.send(request) or b"") + (
                self._http.send(h11.Data(data=body)) or b"" if body else b""
            )
            out += self._http.send(h11.EndOfMessage()) or b""
            async with asyncio.timeout(timeout_s):
                self._writer.write(out)
                await self._writer.drain()
                event = await self._next()
                while isinstance(event, h11.InformationalResponse):
                    event = await self._next()
        except TimeoutError:
            raise KubeError(f"{method} {target}: no answer within {timeout_s:g} s") from None
        except (OSError, h11.ProtocolError) as exc:
            raise KubeError(f"{method} {target}: {_said(exc)}", unsent=not fresh) from None
        if not isinstance(event, h11.Response):
            raise KubeError(f"{method} {target}: the connection was closed", unsent=not fresh)
        return Head(event.status_code, _retry_after(event.headers))

    async def read(self, timeout_s: float) -> bytes | None:
        """The next bytes of the body, None at its end. ``timeout_s``: longest silence. Raises KubeError."""
        try:
            async with asyncio.timeout(timeout_s):
                event = await self._next()
        except TimeoutError:
            raise KubeError(f"{self._server}: nothing heard for {timeout_s:g} s") from None
        except (OSError, h11.ProtocolError) as exc:
            raise KubeError(f"{self._server}: the answer was cut off: {_said(exc)}") from None
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise KubeError(f"{self._server}: the answer was cut off")

    def abort(self) -> None:
        """Drop the connection without good-bye."""
        if (transport := self._writer.transport) is not None:
            transport.abort()

    async def close(self) -> None:
        """Close and wait for it, shortly."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        self.abort()

    async def _next(self) -> object:
        """The next event of the protocol."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(CHUNK))
        return event


def _watch_peer(writer: asyncio.StreamWriter) -> None:
    """Have the kernel find out when the other end is gone."""
    sock = writer.get_extra_info("socket")
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS),
    ):
        with contextlib.suppress(OSError):  # a closed socket shows itself at its first use
            sock.setsockopt(level, option, value)


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds of Retry-After; the form with a date is not what the API sends."""
    for name, value in headers:
        if name == b"retry-after" and value.isdigit():
            return float(value[:6])
    return 0.0


def _said(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
