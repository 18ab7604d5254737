"""The CNI server: takes calls from the shim over a Unix socket and has them run on threads.

Life of a call: the ``cni-io`` thread accepts the connection, checks that the peer is root, and collects the request
frame with its descriptors; STATUS and VERSION go to their own threads, everything else to the workers, so a
readiness probe never queues behind ADDs; the thread that ran the call sends the reply and closes everything that
came with it. Threads, not asyncio: a call is a handful of blocking system calls, and namespaces belong to threads.

The interpreter's switch interval is shortened while the server runs: with several busy threads it is the time a
readiness probe waits for each turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from pycni.agent.cni_pool import STUCK_S, Pool, go_first
from pycni.agent.cni_socket import Connection, ListeningSocket
from pycni.errors import CniError
from pycni.wire.cni import NEWEST, answer_version, encode_error
from pycni.wire.cniframe import encode_reply

log = logging.getLogger("pycni.cni")

FRAME_TIMEOUT_S = 10.0
"""A shim has everything at hand before it connects: a request not whole after so long never will be."""
SWITCH_INTERVAL_S = 0.0005
QUICK = frozenset({"STATUS", "VERSION"})
QUICK_THREADS = 2

Observer = Callable[[str, int, float], None]
"""Told of each call: operation, exit code, seconds from the request's arrival to its reply."""


class Handler(Protocol):
    """What runs a call."""

    def handle(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> tuple[int, bytes]:
        """Exit code and what the plugin prints. ``netns_fd`` is open during the call only."""


class CniServer:
    """Serves one path. ``start`` and ``stop`` are called once each, by any thread."""

    def __init__(
        self,
        socket_path: str,
        ops: Handler,
        *,
        workers: int = 4,
        frame_timeout_s: float = FRAME_TIMEOUT_S,
        observe: Observer = lambda _operation, _code, _seconds: None,
    ) -> None:
        self._path = socket_path
        self._ops = ops
        self._frame_timeout_s = frame_timeout_s
        self._observe = observe
        self._workers = Pool("cni-worker", workers)
        self._quick = Pool("cni-quick", QUICK_THREADS, urgent=True)
        self._allowed = frozenset({0, os.geteuid()})
        self._stopping = False
        self._selector: selectors.BaseSelector | None = None
        self._arriving: set[Connection] = set()
        self._switch_interval = sys.getswitchinterval()

    def start(self) -> None:
        """Claim the path and serve. Raises ConfigError when it cannot be had."""
        self._listener = ListeningSocket(self._path)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener.socket, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._workers.start()
        self._quick.start()
        self._thread = threading.Thread(target=self._serve, name="cni-io", daemon=True)
        self._thread.start()
        log.info("CNI calls are served at %s", self._path)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Take no new calls, finish those under way (``timeout_s`` seconds at most), give up the path."""
        if self._selector is None:
            return
        self._listener.withdraw()
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for pool in (self._quick, self._workers):
            if not pool.stop(timeout_s):
                log.error(
                    "%s: CNI calls are still under way after %.0f s, leaving them", pool.name, timeout_s
                )
        self._selector.close()
        self._selector = None
        os.close(self._wake)
        self._listener.close()
        sys.setswitchinterval(self._switch_interval)
        log.info("CNI calls are no longer served at %s", self._path)

    def _serve(self) -> None:
        assert self._selector is not None, "started"
        go_first()
        while not self._stopping or self._arriving:
            waiting = self._workers.waiting or self._quick.waiting
            for key, _ in self._selector.select(self._pause(waiting)):
                if key.fileobj is self._listener.socket:
                    self._accept()
                elif isinstance(key.fileobj, Connection):
                    self._receive(key.fileobj)
                else:
                    self._accept()  # stopping: those who connected in time are still served
                    self._selector.unregister(self._listener.socket)
                    self._selector.unregister(self._wake)
            now = time.monotonic()
            self._workers.relieve(now)
            self._quick.relieve(now)
            for connection in [item for item in self._arriving if item.deadline <= now]:
                self._give_up(connection)

    def _pause(self, waiting: bool) -> float | None:
        """Seconds until something is due."""
        due = [item.deadline - time.monotonic() for item in self._arriving]
        if waiting:
            due.append(STUCK_S)
        return max(0.0, min(due)) if due else None

    def _accept(self) -> None:
        """Take every waiting connection; most have their whole request there already."""
        assert self._selector is not None, "started"
        while True:
            try:
                sock = self._listener.accept()
            except OSError:
                log.exception("%s: cannot accept a CNI call", self._path)
                time.sleep(STUCK_S)  # out of descriptors or memory: let calls under way end
                return
            if sock is None:
                return
            connection = Connection(sock, time.monotonic() + self._frame_timeout_s)
            self._arriving.add(connection)
            self._selector.register(connection, selectors.EVENT_READ)
            try:
                connection.check_peer(self._allowed)
            except CniError as err:
                self._refuse(connection, err)
            else:
                self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            whole = connection.receive()
        except CniError as err:
            self._refuse(connection, err)
        except (EOFError, OSError) as exc:
            if not connection.refused:
                log.warning("a CNI shim went away before its request was whole: %s", exc or "end of file")
            self._forget(connection)
            connection.close()
        else:
            if whole:
                self._dispatch(connection)

    def _dispatch(self, connection: Connection) -> None:
        self._forget(connection)
        environment, stdin = connection.reader.result()
        pool = self._quick if environment.get("CNI_COMMAND") in QUICK else self._workers
        pool.submit(lambda: self._run(connection, environment, stdin))

    def _run(self, connection: Connection, environment: Mapping[str, str], stdin: bytes) -> None:
        """One call, on a pool's thread. Whatever happens, the shim gets an answer and everything is closed."""
        operation = environment.get("CNI_COMMAND", "")
        try:
            try:
                code, output = self._ops.handle(environment, stdin, connection.take_fd())
            except Exception as exc:
                log.exception("CNI %s: unexpected error", operation)
                err = CniError(CniError.INTERNAL, f"internal error: {type(exc).__name__}", str(exc))
                code, output = 1, encode_error(err, answer_version(stdin))
            connection.send(encode_reply(code, output))
        finally:
            connection.close()
        with contextlib.suppress(Exception):  # whoever counts calls must not stop them
            self._observe(operation, code, time.perf_counter() - connection.arrived)

    def _refuse(self, connection: Connection, err: CniError) -> None:
        """Answer what is no proper request, and read it to its end: closing early would lose the answer."""
        log.warning("CNI call refused: %s", err)
        connection.refused = True
        connection.send(encode_reply(1, encode_error(err, NEWEST)))
        connection.socket.setblocking(False)
        self._receive(connection)

    def _give_up(self, connection: Connection) -> None:
        if not connection.refused:
            log.warning("a CNI shim did not send its request within %.0f s", self._frame_timeout_s)
            err = CniError(CniError.IO_FAILURE, "the request did not arrive in time")
            connection.send(encode_reply(1, encode_error(err, NEWEST)))
        self._forget(connection)
        connection.close()

    def _forget(self, connection: Connection) -> None:
        assert self._selector is not None, "started"
        self._arriving.discard(connection)
        self._selector.unregister(connection)
