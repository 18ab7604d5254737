"""Asking an agent over a connection somebody else opens: its control socket, TLS, a way into a lab's guest.

Life: every question dials, sends one request (HTTP/1.1, the connection ends with its answer) and reads, all within a
time; a stream stays open until it is closed. No answer is trusted to be short or well-formed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pycni.closing import Closing
from pycni.errors import PycniError
from pycni.wire import typed

CONNECT_S = 1.5
"""A node that is switched off costs that much, all of them at the same time."""
ANSWER_S = 8.0
LONGEST = 64 << 20
HEAD = 65536
Dial = Callable[[float], socket.socket]
"""A connected socket; the argument: how long it may take, seconds. Raises OSError."""


class AskError(PycniError):
    """Somebody does not answer (``status`` 0), or says no."""

    def __init__(self, text: str, status: int = 0, code: int = 0) -> None:
        self.status = status
        self.errno = code
        """The kernel's over there, where it is the kernel that says no."""
        super().__init__(text)


class Door:
    """One agent that can be asked. ``name``: for messages."""

    def __init__(self, name: str, dial: Dial, token: str = "") -> None:
        self.name = name
        self._dial, self._token = dial, token

    def __repr__(self) -> str:
        return f"Door({self.name!r})"

    def get(self, target: str) -> bytes:
        """Body of the answer. Raises AskError."""
        with self._asked("GET", target, None) as stream:
            return stream.whole()

    def post(self, target: str, value: Any) -> bytes:
        """The same, having posted JSON. Raises AskError."""
        with self._asked("POST", target, msgspec.json.encode(value)) as stream:
            return stream.whole()

    def follow(self, target: str) -> Stream:
        """An answer to a question that goes on; the caller closes it. Raises AskError."""
        return self._asked("GET", target, None)

    def lines(self, target: str, value: Any) -> Stream:
        """An answer that goes on; the caller closes it. Raises AskError."""
        return self._asked("POST", target, msgspec.json.encode(value))

    def _asked(self, method: str, target: str, body: bytes | None) -> Stream:
        end = time.monotonic() + ANSWER_S
        try:
            sock = self._dial(CONNECT_S)
        except OSError as exc:
            raise AskError(f"{self.name} does not answer: {said(exc)}") from exc
        stream = Stream(self.name, sock, end)
        try:
            named = [f"{method} {target} HTTP/1.1", "Host: pycni", "Connection: close"]
            if self._token:
                named.append(f"Authorization: Bearer {self._token}")
            if body is not None:
                named += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
            sock.settimeout(ANSWER_S)
            # Who refuses us (the certificate, in TLS 1.3) may hang up before; why is told to who reads.
            with contextlib.suppress(OSError):
                sock.sendall("\r\n".join([*named, "", ""]).encode() + (body or b""))
            stream.begin()
        except BaseException:
            stream.close()
            raise
        return stream


class Stream(Closing):
    """An answer as it comes."""

    def __init__(self, name: str, sock: socket.socket, end: float) -> None:
        self._name, self._sock, self._end = name, sock, end
        self._data = b""
        self._length: int | None = None
        self.over = False
        """Nothing more comes."""

    def close(self) -> None:
        """Harmless twice."""
        self._sock.close()

    def fileno(self) -> int:
        """To poll for reading."""
        return self._sock.fileno()

    def begin(self) -> None:
        """Read the head. Raises AskError for every answer but 200."""
        while (cut := self._data.find(b"\r\n\r\n")) < 0:
            if self.over or len(self._data) > HEAD:
                raise AskError(f"{self._name} gives no HTTP answer")
            self._more()
        head, self._data = self._data[:cut], self._data[cut + 4 :]
        found = _head(head)
        if found is None:
            raise AskError(f"{self._name} gives no HTTP answer")
        self._length = found.length
        if found.status != 200:
            raise _refused(self._name, found.status, self.whole())

    def whole(self) -> bytes:
        """All that comes. Raises AskError."""
        while not self.over and (self._length is None or len(self._data) < self._length):
            if len(self._data) > LONGEST:
                raise AskError(f"{self._name}: an answer of more than {LONGEST} bytes")
            self._more()
        if self._length is not None and len(self._data) < self._length:
            raise AskError(f"{self._name}: the answer was cut off")
        return self._data if self._length is None else self._data[: self._length]

    def line(self) -> bytes:
        """The next line, waited for. Raises AskError."""
        while (cut := self._data.find(b"\n")) < 0:
            if self.over:
                raise AskError(f"{self._name}: the answer was cut off")
            self._more()
        found, self._data = self._data[:cut], self._data[cut + 1 :]
        return found

    def ready(self) -> Sequence[bytes]:
        """The lines that are there by now; never waits. ``over`` tells when there are no more. Raises AskError."""
        self._sock.setblocking(False)
        while not self.over and len(self._data) < LONGEST:
            try:
                more = self._sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as exc:
                raise AskError(f"{self._name} does not answer any more: {said(exc)}") from exc
            self.over = not more
            self._data += more
        *found, self._data = self._data.split(b"\n")
        return found

    def _more(self) -> None:
        left = self._end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            more = self._sock.recv(65536)
        except TimeoutError:
            raise AskError(f"{self._name} does not answer within {ANSWER_S:g} s") from None
        except OSError as exc:
            raise AskError(f"{self._name} does not answer: {said(exc)}") from exc
        self.over = not more
        self._data += more


class _Head(NamedTuple):
    status: int
    length: int | None


def _head(raw: bytes) -> _Head | None:
    first, *rest = raw.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        return None
    length = None
    for item in rest:
        name, _, value = item.partition(":")
        if name.lower() == "content-length" and value.strip().isdecimal():
            length = int(value)
    return _Head(int(words[1]), length)


def _refused(name: str, status: int, body: bytes) -> AskError:
    text = body.decode(errors="replace").strip()[:500]
    try:
        found: Mapping[str, Any] = typed.decode(body, dict[str, Any])
        text, code = str(found.get("error", text)), found.get("errno", 0)
    except msgspec.DecodeError:
        code = 0
    return AskError(f"{name} answers {status}: {text}", status, code if isinstance(code, int) else 0)


def said(exc: OSError) -> str:
    """An error for people."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        alert = (exc.reason or "").lower().replace("_", " ")
        return f"TLS: {alert}" if alert else f"TLS: {exc}"
    if isinstance(exc, TimeoutError):
        return f"no connection within {CONNECT_S:g} s"
    return exc.strerror or str(exc)


# --- ways there -----------------------------------------------------------------------------------------------------


def unix(path: str) -> Dial:
    """By a Unix socket of this machine."""

    def dial(timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    return dial


def _plain(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


class Secure(NamedTuple):
    """How the agents of a cluster are met."""

    context: ssl.SSLContext
    port: int
    server_name: str = ""
    """In their certificates; "": they have the address they are reached at."""
    make: Callable[[int], socket.socket] = _plain
    """A TCP socket of a family (in another namespace, for a lab)."""

    def dial(self, addresses: Sequence[str]) -> Dial:
        """To the first address that takes a connection."""

        def dial(timeout_s: float) -> socket.socket:
            end = time.monotonic() + timeout_s
            last: OSError = OSError(errno.EDESTADDRREQ, "it has no address")
            for address in addresses:
                sock = self.make(socket.AF_INET6 if ":" in address else socket.AF_INET)
                try:
                    sock.settimeout(max(end - time.monotonic(), 0.01))
                    sock.connect((address, self.port))
                    return self.context.wrap_socket(sock, server_hostname=self.server_name or address)
                except OSError as exc:
                    sock.close()
                    last = exc
                    if isinstance(exc, ssl.SSLError):
                        break  # it is there, and does not want us, or we it
                except BaseException:
                    sock.close()
                    raise
            raise last

        return dial


def context(authority: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """TLS as a client: the authority's certificates are accepted, no others. Raises OSError (also ssl.SSLError)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    made.load_verify_locations(cafile=authority)
    if certificate:
        made.load_cert_chain(certificate, key, password=lambda: b"")
    return made
