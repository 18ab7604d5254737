"""Traces for other nodes: HTTP over TLS, one request a connection, each on a thread of its own.

Life: ``TraceListener`` listens from the agent's start to its end; a connection is counted, made secure, read, judged
(``trace_auth``), answered by ``trace_service`` and closed, with a deadline for all but a watch. Threads, because what
is done blocks, and because a handshake takes a millisecond that strangers must not take from the event loop.

Files are looked at before a connection: a certificate that was renewed serves the next one. What was loaded last stays
in force while a file is missing or makes no sense.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from pycni.agent.httpd import HEAD_LIMIT, Request, Response, body_length, encode, fields, parse
from pycni.agent.trace_auth import Caller, Guard
from pycni.agent.trace_service import JSON, LINES, TraceService, refusal
from pycni.agent.trace_watch import Running
from pycni.errors import ConfigError, PycniError
from pycni.tracing import speech

log = logging.getLogger("pycni.trace")

CONNECTIONS, PER_PEER = 32, 8
HANDSHAKE_S = REQUEST_S = 5.0
ANSWER_S = 20.0
"""For a client to take its answer, or one piece of a watch."""
LINGER_S = 0.5
QUIET_S = 10.0
"""The same is not logged again so soon."""
ROUTES = {speech.STATE, speech.OBJECTS, speech.COUNTERS}
POSTS = {speech.WATCH, speech.SEND}


class Files(NamedTuple):
    """PEM files."""

    certificate: str
    key: str
    authority: str


class Contexts:
    """The TLS context as the files are now. Any thread."""

    def __init__(self, files: Files, *, required: bool) -> None:
        """``required``: nobody is let in without a certificate. Raises ConfigError."""
        self._files, self._required = files, required
        self._lock = threading.Lock()
        self._stamp = self._stamps()
        try:
            self._context = self._make()
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError("settings", "trace-tls-cert", files.certificate, _said(exc)) from exc

    def current(self) -> ssl.SSLContext:
        """For the next connection."""
        with self._lock:
            stamp = self._stamps()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._context = self._make()
                    log.info("certificate and authority for traces are read again")
                except (OSError, ssl.SSLError) as exc:
                    log.warning("files for traces: %s; going on with those read before", _said(exc))
            return self._context

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.load_verify_locations(cafile=self._files.authority)
        context.verify_mode = ssl.CERT_REQUIRED if self._required else ssl.CERT_OPTIONAL
        # An encrypted key would make OpenSSL ask the terminal.
        context.load_cert_chain(self._files.certificate, self._files.key, password=lambda: b"")
        return context

    def _stamps(self) -> tuple[object, ...]:
        return tuple(map(_stamp, self._files))


class TraceListener:
    """``port`` 0 lets the kernel choose."""

    def __init__(
        self, address: tuple[str, int], contexts: Contexts, guard: Guard, service: TraceService
    ) -> None:
        self._address, self._contexts, self._guard, self._service = address, contexts, guard, service
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: dict[socket.socket, str] = {}
        self._over = False
        self._said: dict[str, float] = {}
        self.answers: Counter[str] = Counter()
        """By status, "tls" for handshakes that failed, "busy" for who was not heard."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._sock is not None, "not started"
        return int(self._sock.getsockname()[1])

    def start(self) -> None:
        """Listen. Raises OSError."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._sock = socket.create_server(
            (host, port), family=family, backlog=CONNECTIONS, dualstack_ipv6=both
        )
        threading.Thread(target=self._accept, args=(self._sock,), name="trace-listen", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut what is open."""
        with self._lock:
            self._over = True
            there = [*self._open, *([self._sock] if self._sock is not None else [])]
        for sock in there:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._sock is not None:
            self._sock.close()
        deadline = time.monotonic() + 1.0
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                if self._over:
                    return
                time.sleep(0.1)  # no descriptors or memory at the moment
                continue
            host = str(peer[0])
            with self._lock:
                there = list(self._open.values())
                full = self._over or len(there) >= CONNECTIONS or there.count(host) >= PER_PEER
                if not full:
                    self._open[sock] = host
            if full:
                sock.close()
                self._refuse("busy", host, f"more than {PER_PEER} connections, or {CONNECTIONS} in all")
                continue
            threading.Thread(target=self._serve, args=(sock, host), name="trace", daemon=True).start()

    def _serve(self, sock: socket.socket, host: str) -> None:
        """One connection. What goes wrong with it is its own affair."""
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = self._contexts.current()
            secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                del self._open[sock]  # wrapped, the socket itself is an empty shell
                self._open[secure] = host
            sock = secure
            try:
                secure.do_handshake()
            except (OSError, ValueError) as exc:
                self._refuse("tls", host, _said(exc))
                _linger(secure)
                return
            with contextlib.suppress(OSError):  # it went away, or did not take its answer
                self._converse(secure, host)
        except Exception:
            log.exception("a connection of %s", host)
        finally:
            with self._lock:
                self._open.pop(sock, None)
            sock.close()

    def _converse(self, sock: ssl.SSLSocket, host: str) -> None:
        request = self._request(sock, host)
        if isinstance(request, Response):
            self._answer(sock, encode(request), request.status)
            return
        asked, body = request
        try:
            self._do(sock, asked, body)
        except (PycniError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
                raise
            found = refusal(error)
            self._answer(sock, encode(found), found.status)

    def _request(self, sock: ssl.SSLSocket, host: str) -> Response | tuple[Request, bytes]:
        """What is asked, by somebody who may; else the answer to that."""
        deadline = time.monotonic() + REQUEST_S
        head, rest = _head(sock, deadline)
        if head is None:
            return Response(431 if rest else 408, body="a request's head is short and comes at once\n")
        named = fields(head)
        if named is None:
            return Response(400, body="header fields that are not understood\n")
        caller = self._guard.judge(sock.getpeercert(), named.get("authorization", ""))
        if caller.status != 200:
            self._refuse(f"{caller.status} {caller.name}", host, caller.reason)
            return _unwelcome(caller)
        request = parse(head, POSTS)
        if isinstance(request, bytes):
            return Response(
                405 if b" 405 " in request[:20] else 400, body="no request that is answered here\n"
            )
        if request.path not in ROUTES | POSTS:
            return Response(404, body=f"there are {', '.join(sorted(ROUTES | POSTS))}\n")
        log.debug("%s asks for %s", caller.name, request.path)
        if not request.posted:
            return request, b""
        length = body_length(head)
        if isinstance(length, Response):
            return length
        body = _exactly(sock, rest, length, deadline)
        return Response(408, body="the body comes too slowly\n") if body is None else (request, body)

    def _do(self, sock: ssl.SSLSocket, asked: Request, body: bytes) -> None:
        known = self._service.known()
        if asked.path == speech.WATCH:
            self._watch(sock, self._service.watch(known, body))
            return
        work: dict[str, Callable[[], bytes]] = {
            speech.STATE: lambda: self._service.state(known, asked.query),
            speech.OBJECTS: lambda: self._service.objects(known, asked.query),
            speech.COUNTERS: lambda: self._service.counters(known, asked.query),
            speech.SEND: lambda: self._service.send(known, body),
        }
        answer = Response(200, JSON, work[asked.path]().decode())
        self._answer(sock, encode(answer, head_only=asked.head_only), 200)

    def _watch(self, sock: ssl.SSLSocket, running: Running) -> None:
        try:
            endless = Response(200, LINES, stream=_nothing)
            self._answer(sock, encode(endless), 200)
            while (piece := running.step(sock.fileno())) is not None:
                if self._over:
                    return
                if piece:
                    sock.sendall(piece)
        finally:
            running.close()

    def _answer(self, sock: ssl.SSLSocket, data: bytes, status: int) -> None:
        self.answers[str(status)] += 1
        sock.settimeout(ANSWER_S)
        sock.sendall(data)
        if status >= 400:
            _linger(sock)

    def _refuse(self, what: str, host: str, reason: str) -> None:
        """One line; not again at once for the same."""
        self.answers[what.partition(" ")[0]] += what in {"tls", "busy"}
        now = time.monotonic()
        key = f"{what} {host}"
        with self._lock:
            if now - self._said.get(key, -QUIET_S) < QUIET_S:
                return
            if len(self._said) > 1000:
                self._said.clear()
            self._said[key] = now
        log.warning("trace refused to %s (%s): %s", host, what.strip(), reason)


def _linger(sock: socket.socket) -> None:
    """Closing with unread bytes makes the kernel throw the answer away: take a little of what still comes."""
    # Below TLS: after a handshake that failed there is none.
    bare = socket.socket
    with contextlib.suppress(OSError):
        bare.shutdown(sock, socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_S
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not bare.recv(sock, 65536):
                break


def _unwelcome(caller: Caller) -> Response:
    headers = (("WWW-Authenticate", "Bearer"),) if caller.status == 401 else ()
    return Response(caller.status, body=f"{caller.reason}\n", headers=headers)


async def _nothing() -> AsyncGenerator[str, None]:
    """Only that there is one counts: no length is announced."""
    yield ""


def _head(sock: ssl.SSLSocket, deadline: float) -> tuple[bytes | None, bytes]:
    """The request's head without its final empty line, and what came behind; (None, what came) for none."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > HEAD_LIMIT:
            return None, data
        more = _receive(sock, deadline)
        if not more:
            return None, b""
        data += more
    return (data[:end], data[end + 4 :]) if end <= HEAD_LIMIT else (None, data)


def _exactly(sock: ssl.SSLSocket, data: bytes, length: int, deadline: float) -> bytes | None:
    while len(data) < length:
        more = _receive(sock, deadline)
        if not more:
            return None
        data += more
    return data[:length]


def _receive(sock: ssl.SSLSocket, deadline: float) -> bytes:
    """Some bytes; none at the end or when it is too late. Raises OSError."""
    left = deadline - time.monotonic()
    if left <= 0:
        return b""
    sock.settimeout(left)
    try:
        return sock.recv(4096)
    except TimeoutError:
        return b""


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError as exc:
        return exc.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _said(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or exc.strerror or "TLS").lower().replace("_", " ")
    if isinstance(exc, TimeoutError):
        return "no handshake in time"
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
