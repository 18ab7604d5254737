r"""The servers inside a node's lab pods: one process listens on every declared port of every pod on its node.

Life: ``lab apply`` writes ``serve.json`` into the node's folder (``ServeConfig``) and starts this process on the node
when nobody answers; the process opens and closes sockets in the pods' namespaces until they are what the file says,
and writes the file's number into ``serve.done.json`` (``ServeState``) with what could not be opened. It knows nothing
of agents and survives them; ``lab down`` ends it like every daemon of the lab.

The protocol: TCP and SCTP: ``<pod> <client address>\n`` is sent when the connection opens; it is closed when the
client closes its half or sends a line, unless that line is ``hold``: then every further line is answered by the same
line again. UDP: each datagram is answered by the line, from the address it was sent to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab.stations import Inside
from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES, SCTP, TCP, UDP
from pycni.sources import inotify
from pycni.wire import typed

CONFIG, STATE, LOCK = "serve.json", "serve.done.json", "serve.lock"
LOOK_S = 1.0
"""Between looks at the configuration where inotify tells of changes."""
BLIND_LOOK_S = 0.05
HOLD = b"hold"
_LONGEST = 4096
"""Bytes of a line."""
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM, SCTP: socket.SOCK_STREAM}


class ServedPod(msgspec.Struct, frozen=True, kw_only=True):
    """One pod to be served."""

    name: str
    id: str
    """Another id is another pod, whatever its name."""
    namespace: str
    """Name of its network namespace on the node's kernel."""
    ports: tuple[tuple[int, int], ...] = ()
    """(protocol, port)."""
    families: tuple[int, ...] = (int(Family.V4),)


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``serve.json``."""

    number: int
    """Of this configuration: any that is not the last one."""
    pods: tuple[ServedPod, ...] = ()


class ServeState(msgspec.Struct, frozen=True, kw_only=True):
    """``serve.done.json``."""

    number: int
    pid: int
    problems: tuple[str, ...] = ()
    """Listeners that could not be opened, one line each."""


class _Stream:
    """An accepted connection."""

    __slots__ = ("held", "line", "received", "sock")

    def __init__(self, sock: socket.socket, line: bytes) -> None:
        self.sock = sock
        self.line = line
        self.received = b""
        self.held = False


class PodServer:
    """All listeners of a node. One thread, and a helper that visits namespaces. A context manager."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], object]] = {}
        self._pods: dict[ServedPod, set[socket.socket]] = {}
        """Listeners and connections of each pod."""
        self._inside = Inside()
        self._problems: dict[ServedPod, list[str]] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close everything."""
        self.set(())
        self._inside.__exit__(None, None, None)
        self._epoll.close()

    def set(self, pods: tuple[ServedPod, ...]) -> None:
        """Serve exactly these pods; those served already keep their connections."""
        for pod in [pod for pod in self._pods if pod not in pods]:
            for sock in self._pods.pop(pod):
                self._drop(sock)
            del self._problems[pod]
        for pod in pods:
            # What failed altogether is tried again: the namespace may be there by now.
            if not self._pods.get(pod):
                self._pods[pod], self._problems[pod] = set(), []
                self._open(pod)

    def problems(self) -> tuple[str, ...]:
        """What could not be opened, one line each."""
        return tuple(line for lines in self._problems.values() for line in lines)

    def watch(self, fd: int, handler: Callable[[], object]) -> None:
        """Have a handler called when a descriptor can be read."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def turn(self, timeout: float) -> None:
        """Wait for something to happen and handle it."""
        for fd, _mask in self._epoll.poll(timeout, 256):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

    def _open(self, pod: ServedPod) -> None:
        wanted = [(protocol, port, Family(family)) for protocol, port in pod.ports for family in pod.families]

        def listeners() -> list[tuple[int, Family, socket.socket]]:
            return [
                (protocol, family, sock)
                for protocol, port, family in wanted
                if (sock := self._listener(pod, protocol, port, family)) is not None
            ]

        try:
            opened = self._inside(kernel_netns.path(pod.namespace), listeners) if wanted else []
        except (OSError, PycniError) as exc:
            self._problems[pod].append(f"{pod.name}: {exc}")
            return
        for protocol, family, sock in opened:
            self._pods[pod].add(sock)
            handler = self._on_datagram if protocol == UDP else self._on_accept
            self.watch(sock.fileno(), partial(handler, pod, family, sock))

    def _listener(self, pod: ServedPod, protocol: int, port: int, family: Family) -> socket.socket | None:
        sock = None
        try:
            sock = socket.socket(socket.AddressFamily(family), _KINDS[protocol], protocol)
            return _prepared(sock, protocol, port, family)
        except OSError as exc:
            if sock is not None:
                sock.close()
            label = PROTOCOL_NAMES[protocol]
            self._problems[pod].append(
                f"{pod.name}: cannot listen on {label} {port} ({family.label}): {exc.strerror}"
            )
            return None

    def _on_datagram(self, pod: ServedPod, family: Family, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                _data, ancillary, _flags, sender = sock.recvmsg(65535, 128)
                # An answer that cannot be sent is one that does not arrive: the client's to notice.
                with contextlib.suppress(OSError):
                    sock.sendmsg([_line(pod, sender)], _from_there(family, ancillary), 0, sender)

    def _on_accept(self, pod: ServedPod, _family: Family, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                sock, peer = listener.accept()
                sock.setblocking(False)
                stream = _Stream(sock, _line(pod, peer))
                self._pods[pod].add(sock)
                self.watch(sock.fileno(), partial(self._on_stream, pod, stream))
                self._say(pod, stream)

    def _on_stream(self, pod: ServedPod, stream: _Stream) -> None:
        try:
            data = stream.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset by the client
        *lines, stream.received = (stream.received + data).split(b"\n")
        if not data or len(stream.received) > _LONGEST:
            self._end(pod, stream)
            return
        for line in lines:
            if stream.held:
                self._say(pod, stream)
            elif line.strip() == HOLD:
                stream.held = True
            else:
                self._end(pod, stream)
                return

    def _say(self, pod: ServedPod, stream: _Stream) -> None:
        """A client that does not read its few bytes is let go."""
        try:
            stream.sock.send(stream.line)
        except OSError:
            self._end(pod, stream)

    def _end(self, pod: ServedPod, stream: _Stream) -> None:
        if stream.sock in self._pods.get(pod, ()):
            self._pods[pod].discard(stream.sock)
            self._drop(stream.sock)

    def _drop(self, sock: socket.socket) -> None:
        self._handlers.pop(sock.fileno(), None)
        sock.close()


def _prepared(sock: socket.socket, protocol: int, port: int, family: Family) -> socket.socket:
    if family is Family.V6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setblocking(False)
    if protocol == UDP:
        # The answer has to come from the address that was asked, which need not be the pod's own.
        option = (socket.IPPROTO_IP, _IP_PKTINFO)
        sock.setsockopt(*(option if family is Family.V4 else (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO)), 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    if protocol != UDP:
        sock.listen(1024)
    return sock


def _from_there(family: Family, ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """What makes an answer leave from the address its question was sent to."""
    for level, kind, data in ancillary:
        if family is Family.V4 and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return [(level, kind, struct.pack("=I4s4s", 0, data[8:12], b"\0\0\0\0"))]
        if family is Family.V6 and (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return [(level, kind, struct.pack("=16sI", data[:16], 0))]
    return []


def _line(pod: ServedPod, peer: tuple[Any, ...]) -> bytes:
    return f"{pod.name} {peer[0]}\n".encode()


def serve(folder: Path) -> None:
    """Do what the folder's configuration says until the folder is gone."""
    soft_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_hard[1], soft_hard[1]))
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((folder / LOCK).open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another one is at work
        server = stack.enter_context(PodServer())
        patience = BLIND_LOOK_S
        if inotify.reports(str(folder)):
            watch = stack.enter_context(contextlib.closing(inotify.Watch(str(folder))))
            server.watch(watch.fd, watch.read)
            patience = LOOK_S
        last, stamp = 0, None
        while folder.is_dir():
            now = _stamp(folder / CONFIG)
            if now is not None and now != stamp:
                stamp = now
                last = _obey(folder, server, last)
            server.turn(patience)


def _obey(folder: Path, server: PodServer, last: int) -> int:
    try:
        config = typed.decode((folder / CONFIG).read_bytes(), ServeConfig)
    except (FileNotFoundError, msgspec.MsgspecError) as exc:
        print(f"{time.strftime('%X')} {folder / CONFIG}: {exc}", flush=True)
        return last
    if config.number != last:
        server.set(config.pods)
        state = ServeState(number=config.number, pid=os.getpid(), problems=server.problems())
        temporary = folder / f".{STATE}"
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.rename(folder / STATE)
    return config.number


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
