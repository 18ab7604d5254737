"""A process that serves and connects in many network namespaces: ``python -m tests.proxy.traffic``.

Life: a ``Traffic`` starts it and speaks JSON lines with it. It sits in one place of the process tree, so that programs
attached to a control group see the clients they should see and no others. A socket belongs to the namespace it was
made in, so one thread serves all of them by epoll.

Servers answer every line (TCP) or datagram (UDP) with ``<name> <address of the client>``. A connection ends as
``["answer", name, seen]``, ``["refused", "", ""]``, ``["silence", "", ""]`` or ``["error", <errno name>, ""]``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pycni.kernel import netns
from pycni.model.kube import UDP

ASK = b"who\n"
AGAIN_S = 2.0
FIRST_PORT = 33000
"""Clients' ports, each used once."""
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, no time: a reset instead of TIME_WAIT."""
IPV6_V6ONLY, SOCK = 26, {4: socket.AF_INET, 6: socket.AF_INET6}


class Listen(NamedTuple):
    """A server: ``name`` is what it answers."""

    netns: str
    name: str
    address: str
    port: int
    protocol: int


class Dial(NamedTuple):
    """A connection to make. ``source`` "" leaves the address to the kernel; ``timeout`` in seconds."""

    netns: str
    source: str
    address: str
    port: int
    protocol: int
    timeout: float


class Outcome(NamedTuple):
    """What became of a connection."""

    verdict: str
    """answer, refused, silence or error."""
    name: str = ""
    """Who answered; the name of the error."""
    seen: str = ""
    """The client's address as the server saw it."""


def _open(path: str, address: str, protocol: int, cache: dict[str, int]) -> socket.socket:
    """A socket in a namespace. The thread stays there: it belongs nowhere."""
    if path not in cache:
        cache[path] = netns.open_netns(path)
    netns.setns(cache[path], path)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == UDP else socket.SOCK_STREAM
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    return sock


class _Call:
    """A connection under way."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.again = math.inf
        """When a datagram is sent once more, as resolvers do."""
        self.outcome: Outcome | None = None
        self.held = False


class Loop:
    """Servers and clients of one process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._spaces: dict[str, int] = {}
        self._held: dict[int, socket.socket] = {}
        self._numbers = 0
        self._ports = itertools.count(FIRST_PORT)
        self._served: dict[int, socket.socket] = {}

    def run(self) -> None:
        """Answer requests until standard input ends."""
        stdin = sys.stdin.buffer.raw  # type: ignore[attr-defined]
        pending = b""
        self._epoll.register(stdin.fileno(), select.EPOLLIN)
        while True:
            for fd, _mask in self._epoll.poll():
                if fd != stdin.fileno():
                    self._handle(fd)
                    continue
                data = stdin.read(1 << 20)
                if not data:
                    return
                pending += data
                while b"\n" in pending:
                    line, pending = pending.split(b"\n", 1)
                    print(json.dumps(self._request(json.loads(line))), flush=True)

    def _request(self, request: dict[str, Any]) -> Any:
        if request["do"] == "listen":
            for item in request["items"]:
                self._listen(Listen(*item))
            return "ok"
        if request["do"] == "dial":
            return self._dial([Dial(*item) for item in request["items"]], hold=request["hold"])
        if request["do"] == "ask":
            return [self._ask(number, request["timeout"]) for number in request["items"]]
        for number in request["items"]:
            self._held.pop(number).close()
        return "ok"

    def _handle(self, fd: int) -> None:
        handler = self._handlers.get(fd)
        if handler is not None:
            handler()

    # servers

    def _listen(self, item: Listen) -> None:
        sock = _open(item.netns, item.address, item.protocol, self._spaces)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((item.address, item.port))
        if item.protocol == UDP:
            self._watch(sock, lambda: self._on_datagram(sock, item.name))
        else:
            sock.listen(256)
            self._watch(sock, lambda: self._on_accept(sock, item.name))

    def _watch(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        self._handlers[sock.fileno()] = handler
        self._served[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    @staticmethod
    def _on_datagram(sock: socket.socket, name: str) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                _, client = sock.recvfrom(2048)
                sock.sendto(f"{name} {client[0]}\n".encode(), client)

    def _on_accept(self, sock: socket.socket, name: str) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                peer, client = sock.accept()
                peer.setblocking(False)
                self._watch(peer, lambda p=peer, c=client: self._on_line(p, f"{name} {c[0]}\n".encode()))  # type: ignore[misc]

    def _on_line(self, peer: socket.socket, answer: bytes) -> None:
        try:
            if peer.recv(2048):
                peer.sendall(answer)
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # the client resets the connection when it has its answer
        fd = peer.fileno()
        del self._handlers[fd], self._served[fd]
        peer.close()

    # clients

    def _dial(self, items: list[Dial], *, hold: bool) -> list[Any]:
        """All connections at once; results in the order asked."""
        calls = [self._start(item) for item in items]
        waiting = {call.sock.fileno(): call for call in calls if call.outcome is None}
        for fd in waiting:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
        while waiting:
            now = time.monotonic()
            left = min(min(call.deadline, call.again) for call in waiting.values()) - now
            for fd, mask in self._epoll.poll(max(left, 0.001)):
                if fd in waiting:
                    self._progress(waiting[fd], mask)
                else:
                    self._handle(fd)
            now = time.monotonic()
            for fd, call in list(waiting.items()):
                if call.outcome is None and call.deadline <= now:
                    call.outcome = Outcome("silence")
                elif call.outcome is None and call.again <= now:
                    call.again = now + AGAIN_S
                    with contextlib.suppress(OSError):  # told by the poll
                        call.sock.send(ASK)
                if call.outcome is not None:
                    del waiting[fd]
                    self._epoll.unregister(fd)
        return [self._result(call, hold=hold) for call in calls]

    def _start(self, item: Dial) -> _Call:
        sock = _open(item.netns, item.address, item.protocol, self._spaces)
        call = _Call(sock, time.monotonic() + item.timeout)
        if item.protocol != UDP:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        try:
            # A port used before would meet connection tracking's or IPVS's memory of it.
            sock.bind((item.source or ("::" if ":" in item.address else ""), next(self._ports)))
            code = sock.connect_ex((item.address, item.port))
            if code not in {0, errno.EINPROGRESS}:
                call.outcome = _failure(code)
            elif item.protocol == UDP:
                # The kernel tells a program of its own that a packet was not let out, dropped or rejected alike;
                # what comes after tells which.
                with contextlib.suppress(PermissionError):
                    sock.send(ASK)
                call.again = time.monotonic() + AGAIN_S
        except OSError as exc:
            call.outcome = _failure(exc.errno or 0)
        return call

    def _progress(self, call: _Call, mask: int) -> None:
        code = call.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            call.outcome = _failure(code)
        elif mask & select.EPOLLIN:
            try:
                call.outcome = _answer(call.sock.recv(2048))
            except OSError as exc:
                call.outcome = _failure(exc.errno or 0)
        elif mask & select.EPOLLOUT:
            if call.sock.type == socket.SOCK_STREAM:
                call.sock.send(ASK)
            self._epoll.modify(call.sock.fileno(), select.EPOLLIN)

    def _result(self, call: _Call, *, hold: bool) -> Any:
        assert call.outcome is not None
        if not hold or call.outcome.verdict != "answer":
            call.sock.close()
            return [*call.outcome, 0]
        self._numbers += 1
        self._held[self._numbers] = call.sock
        return [*call.outcome, self._numbers]

    def _ask(self, number: int, timeout: float) -> Any:
        """Another question over a connection that was kept."""
        sock = self._held[number]
        try:
            sock.send(ASK)
            deadline = time.monotonic() + timeout
            # The server is in this process too: it has to have its turn.
            while (left := deadline - time.monotonic()) > 0:
                for fd, _ in self._epoll.poll(min(left, 0.01)):
                    self._handle(fd)
                with contextlib.suppress(BlockingIOError):
                    return [*_answer(sock.recv(2048)), number]
            return ["silence", "", "", number]
        except OSError as exc:
            return [*_failure(exc.errno or 0), number]


def _answer(data: bytes) -> Outcome:
    if not data:
        return Outcome("error", "closed")
    name, _, seen = data.decode().strip().partition(" ")
    return Outcome("answer", name, seen)


def _failure(code: int) -> Outcome:
    if code == errno.ECONNREFUSED:
        return Outcome("refused")
    return Outcome("error", errno.errorcode.get(code, str(code)))


class Traffic:
    """The process seen from a test. A context manager; ``enter`` may move it into a control group first."""

    def __init__(self, cgroup: str = "") -> None:
        """``cgroup``: folder of the control group to live in."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proxy.traffic"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if cgroup:
            try:
                with open(f"{cgroup}/cgroup.procs", "w") as file:
                    file.write(str(self._process.pid))
            except OSError:
                self.close()
                raise

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def listen(self, items: list[Listen]) -> None:
        """Start servers."""
        self._call({"do": "listen", "items": items})

    def dial(self, items: list[Dial]) -> list[Outcome]:
        """Make connections, all at once."""
        return [Outcome(*item[:3]) for item in self._call({"do": "dial", "items": items, "hold": False})]

    def hold(self, items: list[Dial]) -> list[tuple[Outcome, int]]:
        """Make connections and keep those that were answered; the number is for ``ask`` and ``drop``."""
        found = self._call({"do": "dial", "items": items, "hold": True})
        return [(Outcome(*item[:3]), item[3]) for item in found]

    def ask(self, numbers: list[int], timeout: float = 2.0) -> list[Outcome]:
        """Another question over kept connections."""
        found = self._call({"do": "ask", "items": numbers, "timeout": timeout})
        return [Outcome(*item[:3]) for item in found]

    def drop(self, numbers: list[int]) -> None:
        """Close kept connections."""
        self._call({"do": "drop", "items": numbers})

    def _call(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the traffic process has died")
        return json.loads(line)


@contextlib.contextmanager
def serving_all(items: list[Listen]) -> Iterator[Traffic]:
    """The process with these servers."""
    made = Traffic()
    try:
        made.listen(items)
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    Loop().run()
    os._exit(0)
