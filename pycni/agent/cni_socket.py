"""The agent's end of the shim's socket: claiming the path, and one connection from accept to reply.

Life of the path: a lock file beside it says which agent owns it (flock, so it ends with the process); the socket is
bound under another name, made private, listening, and only then renamed to its place. So a second agent is
refused, a dead one's socket is replaced, and no shim ever meets a path that is not served.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import time

from pycni.errors import CniError, ConfigError
from pycni.wire.cniframe import RequestReader

log = logging.getLogger("pycni.cni")

BACKLOG = 1024
PIECE = 1 << 18
MAX_FDS = 8
"""Descriptors accepted with one piece of a request; the shim sends one, the rest is closed."""
CONTROL_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
REPLY_TIMEOUT_S = 10
"""A shim that does not take its reply for so long is given up."""


class ListeningSocket:
    """The owned path with its listening socket. ``close`` gives both up."""

    def __init__(self, path: str) -> None:
        """Claim the path. Raises ConfigError when another agent serves it or something else is there."""
        self.path = path
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        self._lock = _lock(path)
        try:
            self.socket = self._listen()
        except BaseException:
            os.close(self._lock)
            raise

    def _listen(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise ConfigError("setting", "cni-socket", self.path, "exists and is not a socket")
        temporary = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(temporary)
            os.chmod(temporary, 0o600)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            os.rename(temporary, self.path)
        except OSError as exc:
            listener.close()
            raise ConfigError("setting", "cni-socket", self.path, f"cannot be served: {exc}") from exc
        self._inode = os.stat(self.path).st_ino
        return listener

    def accept(self) -> socket.socket | None:
        """The next connection, None when there is none."""
        try:
            return self.socket.accept()[0]
        except OSError as exc:
            if exc.errno not in {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR}:
                raise
            return None

    def withdraw(self) -> None:
        """Take the path away, so that nobody new connects; who is waiting can still be accepted."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def close(self) -> None:
        """Stop listening and let another agent have the path."""
        self.withdraw()
        self.socket.close()
        os.close(self._lock)


def _lock(path: str) -> int:
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigError("setting", "cni-socket", path, "another agent serves it") from None
    return fd


class Connection:
    """One shim's call while its request arrives. Owns the socket and every descriptor that came with it."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.socket = sock
        self.deadline = deadline
        """Monotonic time by which the request must be whole, or the refused rest of it be read."""
        self.arrived = time.perf_counter()
        """When the thread that reads last found something of the request, in the end its last byte."""
        self.refused = False
        """A reply has been sent before the request's end; what still comes is thrown away."""
        self.fds: list[int] = []
        self.reader = RequestReader()

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def check_peer(self, allowed: frozenset[int]) -> None:
        """CniError 5 when the process at the other end is none of the allowed users."""
        size = struct.calcsize("3i")
        _pid, uid, _gid = struct.unpack(
            "3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if uid not in allowed:
            raise CniError(CniError.IO_FAILURE, f"uid={uid} may not call the CNI plugin's agent")

    def receive(self) -> bool:
        """Read what is there. True when the request is whole; EOFError when the peer is gone; CniError 5."""
        self.arrived = time.perf_counter()
        while True:
            try:
                # socket.recv_fds drops its flags (CPython before 3.13), and these descriptors must not be inherited
                data, control, _flags, _address = self.socket.recvmsg(
                    PIECE, CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return False
            for level, kind, packed in control:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
                    self.fds += fds
            if not data:
                raise EOFError
            if not self.refused and self.reader.feed(data):
                return True

    def take_fd(self) -> int | None:
        """The namespace that came along, None when none did. It stays owned by the connection."""
        return self.fds[0] if self.fds else None

    def send(self, frame: bytes) -> bool:
        """Send the reply; False when the shim is gone or does not read."""
        self.socket.settimeout(REPLY_TIMEOUT_S)
        try:
            self.socket.sendall(frame)
        except OSError as exc:
            log.warning("reply of %d bytes to the CNI shim is lost: %s", len(frame), exc)
            return False
        return True

    def close(self) -> None:
        """Close everything."""
        self.socket.close()
        while self.fds:
            os.close(self.fds.pop())
