"""The smallest HTTP/1.1 server that probes and scrapers need (RFC 9112): GET and HEAD, one request a connection.

On TCP for probes and scrapers, on a Unix socket for pycnictl. Everything is bounded: the head's size, the time to
send it and to take the answer, the number of connections. On the Unix socket an answer may go on as a stream of lines,
until it ends or the client goes; and what is to do something is sent there by POST, to routes of its own. A standard
one would be ``http.server``, which costs 40 ms to import and a thread per connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

log = logging.getLogger("pycni.http")

HEAD_LIMIT = 8192
"""Bytes of request line and headers."""

BODY_LIMIT = 65536
"""Bytes of what is posted."""

REQUEST_SECONDS = 5.0
CONNECTIONS = 64

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Response(NamedTuple):
    """An answer; ``body`` is sent as UTF-8."""

    status: int
    content_type: str = "text/plain; charset=utf-8"
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """Further ones; names and values without line ends."""
    stream: Callable[[], AsyncGenerator[str, None]] | None = None
    """What follows ``body``, piece by piece; the end of the connection is its end. Closed when the client goes."""


Handler = Callable[[str], Response]
"""From the query string (without ``?``) to the answer. Runs on the loop: it must not block."""

AsyncHandler = Callable[[str], Awaitable[Response]]
"""The same for answers that have to be waited for."""

EVERYWHERE = ("::", "0.0.0.0")
"""asyncio's sockets of IPv6 take nothing of IPv4."""

PostHandler = Callable[[str, bytes], Awaitable[Response]]
"""From the query string and what was posted."""

ANY = "*"
"""Route for every path that has none of its own."""


_BROKEN = Response(500, body="see the log\n")


class Request(NamedTuple):
    """What is asked for, as far as it counts here."""

    path: str
    query: str
    head_only: bool
    posted: bool = False


def respond(head: bytes, routes: Mapping[str, Handler]) -> bytes:
    """The bytes to send for a request's head (without its final empty line). Pure but for the handler."""
    request = parse(head)
    if isinstance(request, bytes):
        return request
    handler = routes.get(request.path) or routes.get(ANY)
    if handler is None:
        return _unknown(request, routes)
    try:
        found = handler(request.query)
    except Exception:
        log.exception("answering %s failed", request.path)
        found = _BROKEN
    return encode(found, head_only=request.head_only)


class Answer(NamedTuple):
    """The bytes to send, and what may follow them."""

    head: bytes
    stream: Callable[[], AsyncGenerator[str, None]] | None = None


async def respond_later(head: bytes, routes: Mapping[str, AsyncHandler]) -> Answer:
    """As ``respond``, with handlers that are waited for."""
    request = parse(head)
    if isinstance(request, bytes):
        return Answer(request)
    handler = routes.get(request.path) or routes.get(ANY)
    if handler is None:
        return Answer(_unknown(request, routes))
    return await _answered(request, handler)


async def _answered(request: Request, handler: AsyncHandler) -> Answer:
    try:
        found = await handler(request.query)
    except Exception:
        log.exception("answering %s failed", request.path)
        found = _BROKEN
    return Answer(encode(found, head_only=request.head_only), None if request.head_only else found.stream)


def _unknown(request: Request, routes: Mapping[str, object]) -> bytes:
    found = Response(404, body=f"there are {', '.join(routes)}\n")
    return encode(found, head_only=request.head_only)


def parse(head: bytes, posts: Container[str] = ()) -> Request | bytes:
    """The request, or the answer to what is none. ``posts``: paths that things are posted to."""
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    if len(parts) != 3 or not all(parts) or not parts[2].startswith(b"HTTP/"):
        return encode(Response(400, body="not an HTTP request\n"))
    method, target, version = (part.decode("latin-1") for part in parts)
    if not version.startswith("HTTP/1."):
        return encode(Response(505, body=f"{version} is not spoken here\n"))
    path, _, query = target.partition("?")
    if path in posts:
        if method != "POST":
            return encode(Response(405, body="only POST\n", headers=(("Allow", "POST"),)))
        return Request(path, query, head_only=False, posted=True)
    if method not in ("GET", "HEAD"):
        return encode(Response(405, body="only GET and HEAD\n"), allow=True)
    return Request(path, query, method == "HEAD")


def fields(head: bytes) -> Mapping[str, str] | None:
    """Header fields by lower-case name; None when they are malformed or one is there twice."""
    found: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        if not line:
            continue
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name.strip() != name or name.lower() in found:
            return None
        found[name.lower()] = value.strip()
    return found


def body_length(head: bytes) -> int | Response:
    """Bytes that follow the head of a POST, or why they are not taken."""
    named = fields(head)
    if named is None or "transfer-encoding" in named:
        return Response(400, body="header fields that are not understood\n")
    text = named.get("content-length")
    if text is None:
        return Response(411, body="Content-Length is missing\n")
    if not (text.isascii() and text.isdigit()):
        return Response(400, body="Content-Length is no number\n")
    if len(text) > 10 or int(text) > BODY_LIMIT:
        return Response(413, body=f"more than {BODY_LIMIT} bytes\n")
    return int(text)


def encode(response: Response, *, head_only: bool = False, allow: bool = False) -> bytes:
    """An answer as bytes; the connection is always closed after it."""
    body = response.body.encode()
    head = (
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        + (f"Content-Length: {len(body)}\r\n" if response.stream is None else "")
        + "Cache-Control: no-store\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in response.headers)
        + ("Allow: GET, HEAD\r\n" if allow else "")
        + "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1", "replace") + (b"" if head_only else body)


class HttpServer:
    """Serves ``routes``. ``port`` 0 in the constructor lets the kernel choose."""

    def __init__(self, address: str | Sequence[str], port: int, routes: Mapping[str, Handler]) -> None:
        """``address``: one or several, all with the same port; ``::`` means every address of both families."""
        self._address = EVERYWHERE if address == "::" else address
        self._asked_port = port
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen. Errors: OSError (address in use, not ours)."""
        self._server = await asyncio.start_server(
            self._accepted, self._address, self._asked_port, limit=HEAD_LIMIT
        )

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                # Read first also when busy: closing with unread bytes makes the kernel throw the answer away.
                answer = await self._answer(reader)
                if len(self._connections) > CONNECTIONS:
                    answer = Answer(encode(Response(503, body="busy\n")))
                writer.write(answer.head)
                await writer.drain()
            if answer.stream is not None:
                await _pour(answer.stream(), reader, writer)
        except TimeoutError:
            log.debug("connection of %s cut after %s s", writer.get_extra_info("peername"), REQUEST_SECONDS)
        except ConnectionError as exc:
            log.debug("connection of %s: %s", writer.get_extra_info("peername"), exc)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        early = Answer(encode(Response(400, body="the request ends early\n")))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            return early if exc.partial else Answer(b"")
        except asyncio.LimitOverrunError:
            return Answer(encode(Response(431, body=f"more than {HEAD_LIMIT} bytes of headers\n")))
        try:
            return await self._respond(head, reader)
        except asyncio.IncompleteReadError:
            return early

    async def _respond(self, head: bytes, _reader: asyncio.StreamReader) -> Answer:
        return Answer(respond(head, self._routes))


async def _pour(
    pieces: AsyncGenerator[str, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send what comes until it ends or the client has hung up, which only reading tells while nothing comes."""

    async def send() -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                writer.write(piece.encode())
                await writer.drain()

    async def listen() -> None:
        while await reader.read(HEAD_LIMIT):
            pass

    tasks = [asyncio.create_task(send()), asyncio.create_task(listen())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for found in results:
        if isinstance(found, Exception) and not isinstance(found, ConnectionError):
            log.error("a stream broke off", exc_info=found)


class UnixHttpServer(HttpServer):
    """The same on a Unix socket that only its owner may connect to; handlers are waited for."""

    def __init__(
        self, path: str, routes: Mapping[str, AsyncHandler], posts: Mapping[str, PostHandler] | None = None
    ) -> None:
        super().__init__("", 0, {})
        self._path = path
        self._later = routes
        self._posts = posts or {}

    async def start(self) -> None:
        """Listen, in place of a socket nobody listens at any more. Errors: OSError."""
        folder = os.path.dirname(self._path)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _clear(self._path)
            # The mode is in force from the first moment: bind(2) applies the umask to it.
            before = os.umask(0o177)
            try:
                sock.bind(self._path)
            finally:
                os.umask(before)
            self._server = await asyncio.start_unix_server(self._accepted, sock=sock, limit=HEAD_LIMIT)
        except BaseException:
            sock.close()
            raise

    async def stop(self) -> None:
        """Stop listening and take the socket away."""
        if self._server is None:
            return
        await super().stop()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return

    async def _respond(self, head: bytes, reader: asyncio.StreamReader) -> Answer:
        request = parse(head, self._posts)
        if isinstance(request, bytes):
            return Answer(request)
        if not request.posted:
            return await respond_later(head, self._later)
        length = body_length(head)
        if isinstance(length, Response):
            return Answer(encode(length))
        body = await reader.readexactly(length)
        handler = self._posts[request.path]

        async def answer(query: str) -> Response:
            return await handler(query, body)

        return await _answered(request, answer)


def _clear(path: str) -> None:
    """Remove a dead socket. Raises OSError: somebody listens there, or it is something else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is no socket", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there", path)
