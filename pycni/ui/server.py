"""The web server behind ``pycnictl ui``: a few static files, and JSON for who has the token.

Life of a request: its Host has to be one this server is reached by (a page of somebody else's that makes its name lead
here is turned away), its path one of a fixed table; below ``/api/`` it has to carry the token, which is new at each
start and travels in a header only: the browser has it from the URL's fragment, which is sent to nobody. Cookies are not
used, so no other page can borrow a visitor's rights; a trace sends a packet, so it wants POST and this page's origin.

    GET  /api/topology?open=NODE,..&width=&height=    the graph with places
    GET  /api/counters                                interfaces' counters, denied packets
    GET  /api/events                                  server-sent events: counters, topology, denied, trouble
    GET  /api/policy?pod=NS/NAME                      what holds for a pod
    GET  /api/explain?source=&destination=&port=&protocol=
    POST /api/trace {"source", "target", "protocol", "predict"}
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from pycni.errors import PycniError
from pycni.tracing.course import Asked
from pycni.ui.files import HEADERS, static_files
from pycni.ui.watch import Watch
from pycni.wire import typed

log = logging.getLogger("pycni.ui")

BODY_LIMIT = 4096
CONNECTIONS, STREAMS = 48, 12
REQUEST_S = 15.0
BEAT_S = 1.0
"""Between two server-sent events."""
JSON = "application/json"
BROKEN = "the server failed; its output tells more"


class Refused(Exception):  # noqa: N818 - an answer, not an error of the program
    """A request that gets no more than a status and a reason."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        self.status, self.reason = status, reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(reason)


class TraceOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/trace``."""

    source: str
    target: str
    protocol: str = ""
    predict: bool = False


class UiServer(ThreadingHTTPServer):
    """Serves one watch. ``url`` is what to give to a browser."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, watch: Watch, address: str = "127.0.0.1", port: int = 0) -> None:
        """``port`` 0: the kernel chooses. Raises OSError, ValueError (no IP address)."""
        self.watch = watch
        self.token = secrets.token_urlsafe(32)
        self.files = static_files()
        self._address = ip_address(address)
        self.address_family = socket.AF_INET6 if self._address.version == 6 else socket.AF_INET
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self.streams = threading.BoundedSemaphore(STREAMS)
        self.ended = threading.Event()
        super().__init__((address, port), Handler)

    @property
    def port(self) -> int:
        """It listens on this one."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """With the token, which the browser keeps to itself."""
        host = "127.0.0.1" if self._address.is_unspecified else str(self._address)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}/#token={self.token}"

    def reached_by(self, host: str) -> bool:
        """Whether a Host header names this server: its own address, or localhost where it listens to that.

        Names of others are what DNS rebinding works with. A server of all addresses is reached by addresses, too.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path or parts.query:
            return False
        if name == "localhost":
            return self._address.is_loopback or self._address.is_unspecified
        try:
            asked = ip_address(name)
        except ValueError:
            return False
        return asked == self._address or self._address.is_unspecified

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, as long as there are not too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error; what else there is, ``_serve`` has told."""
        log.debug("connection of %s broke off: %s", client_address, request)

    def stop(self) -> None:
        """End all streams and listen no more."""
        self.ended.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: UiServer
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_S

    def version_string(self) -> str:
        """Not which Python."""
        return "pycni"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Nothing about requests is kept."""

    # methods

    def do_GET(self) -> None:
        """Files and JSON."""
        self._serve("GET")

    def do_HEAD(self) -> None:
        """Files' headers."""
        self._serve("HEAD")

    def do_POST(self) -> None:
        """A trace."""
        self._serve("POST")

    def do_other(self) -> None:
        """Everything else."""
        self._serve(self.command)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_other  # noqa: N815

    def _serve(self, method: str) -> None:
        try:
            self._route(method)
        except Refused as refused:
            self._error(refused.status, refused.reason, refused.headers)
        except PycniError as error:
            status = getattr(error, "status", 0) or (400 if getattr(error, "usage", False) else 503)
            self._error(status, str(error))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self._error(503, str(error))
        except Exception:
            if self.server.ended.is_set():
                return  # the program ends meanwhile
            log.exception("answering failed")
            self._error(500, BROKEN)

    def _route(self, method: str) -> None:
        self._check_host()
        parts = urlsplit(self.path)
        if not parts.path.startswith("/api/"):
            if method not in {"GET", "HEAD"}:
                raise Refused(405, "only GET and HEAD", Allow="GET, HEAD")
            file = self.server.files.get(parts.path)
            if file is None:
                raise Refused(404, "there is no such page")
            self._send(200, file.content_type, file.body, head_only=method == "HEAD")
            return
        self._check_token()
        wanted = "POST" if parts.path == "/api/trace" else "GET"
        answer = _ANSWERS.get(parts.path)
        if answer is None:
            raise Refused(404, "there is no such question")
        if method != wanted:
            raise Refused(405, f"only {wanted}", Allow=wanted)
        asked = {name: values[-1] for name, values in parse_qs(parts.query, max_num_fields=16).items()}
        answer(self, asked)

    # checks

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.reached_by(hosts[0]):
            raise Refused(421, "this server is not known by that name")

    def _check_token(self) -> None:
        kind, _, told = (self.headers.get("Authorization") or "").partition(" ")
        right = hmac.compare_digest(told.strip().encode(), self.server.token.encode())
        if kind.lower() != "bearer" or not right:
            raise Refused(401, "the token is missing or wrong", WWW_Authenticate="Bearer")

    def _check_origin(self) -> None:
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise Refused(403, "this is not asked from here")
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Refused(403, "this is not asked from here")

    def _body(self) -> bytes:
        if self.headers.get_content_type() != JSON:
            raise Refused(415, f"expected {JSON}")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "how long is it?")
        if int(length) > BODY_LIMIT:
            raise Refused(413, f"more than {BODY_LIMIT} bytes")
        return self.rfile.read(int(length))

    # answers

    def topology(self, asked: Mapping[str, str]) -> None:
        """``/api/topology``."""
        names = asked.get("open")
        size = [_number(asked, "width", 1100), _number(asked, "height", 760)]
        nodes = None if names is None else [name for name in names.split(",") if name and name != "-"]
        self._json(self.server.watch.topology(nodes, *size))

    def counters(self, _asked: Mapping[str, str]) -> None:
        """``/api/counters``."""
        self._json(self.server.watch.counters())

    def policy(self, asked: Mapping[str, str]) -> None:
        """``/api/policy``."""
        self._json(self.server.watch.policy(_given(asked, "pod")))

    def explain(self, asked: Mapping[str, str]) -> None:
        """``/api/explain``."""
        names = ("source", "destination", "port", "protocol")
        _given(asked, "source"), _given(asked, "destination")
        self._json(self.server.watch.explain({name: asked[name] for name in names if asked.get(name)}))

    def trace(self, _asked: Mapping[str, str]) -> None:
        """``/api/trace``."""
        self._check_origin()
        try:
            order = typed.decode(self._body(), TraceOrder)
        except msgspec.DecodeError as error:
            raise Refused(400, f"the question cannot be read: {error}") from error
        found = self.server.watch.trace(Asked(order.source, order.target, order.protocol, order.predict))
        self._json(found)

    def events(self, _asked: Mapping[str, str]) -> None:
        """``/api/events``."""
        if not self.server.streams.acquire(blocking=False):
            raise Refused(503, "too many views are open")
        try:
            self.close_connection = True
            self._head(200, "text/event-stream", {"Connection": "close"})
            with self.server.watch.denied.listening():
                self._stream()
        finally:
            self.server.streams.release()

    def _stream(self) -> None:
        watch, version, number = self.server.watch, "", 0
        while not self.server.ended.is_set():
            began = time.monotonic()
            try:
                self._event("counters", watch.counters())
                seen = watch.seen()
                if seen.version != version:
                    version = seen.version
                    self._event("topology", {"version": version})
                number, rows = watch.denied.since(number)
                if rows:
                    self._event("denied", rows)
                watch.denied.look()
            except (ConnectionError, TimeoutError):
                raise
            except (PycniError, OSError) as error:
                self._event("trouble", {"error": str(error)})
            except Exception:
                if self.server.ended.is_set():
                    return
                log.exception("looking failed")
                self._event("trouble", {"error": BROKEN})
                return  # the page asks again
            self.server.ended.wait(max(BEAT_S - (time.monotonic() - began), 0.1))

    def _event(self, name: str, value: object) -> None:
        self.wfile.write(b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value)))

    # sending

    def _json(self, value: object) -> None:
        self._send(200, JSON, msgspec.json.encode(value))

    def _error(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        # What may be left of the request's body is not taken for the next request.
        self.close_connection = True
        body = json.dumps({"error": reason}).encode()
        self._send(
            status, JSON, body, {"Connection": "close", **(headers or {})}, head_only=self.command == "HEAD"
        )

    def _send(
        self,
        status: int,
        content_type: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        head_only: bool = False,
    ) -> None:
        self._head(status, content_type, {"Content-Length": str(len(body)), **(headers or {})})
        if not head_only:
            self.wfile.write(body)

    def _head(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses by itself: malformed requests, which get a whole answer all the same."""
        self.close_connection = True
        self.request_version = self.protocol_version
        body = json.dumps({"error": message or explain or "refused"}).encode()
        self._send(code, JSON, body, {"Connection": "close"}, head_only=self.command == "HEAD")


Answer = Callable[[Handler, Mapping[str, str]], None]
_ANSWERS: Mapping[str, Answer] = {
    "/api/topology": Handler.topology,
    "/api/counters": Handler.counters,
    "/api/events": Handler.events,
    "/api/policy": Handler.policy,
    "/api/explain": Handler.explain,
    "/api/trace": Handler.trace,
}


def _given(asked: Mapping[str, str], name: str) -> str:
    if not asked.get(name):
        raise Refused(400, f"{name}: which?")
    return asked[name]


def _number(asked: Mapping[str, str], name: str, usual: float) -> float:
    try:
        found = float(asked.get(name, usual))
    except ValueError:
        raise Refused(400, f"{name}: expected a number") from None
    if not 200 <= found <= 20000:
        raise Refused(400, f"{name}: expected 200 to 20000")
    return found
