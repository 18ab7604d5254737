"""The control socket: an agent's requests in, answers out, without ever blocking.

Life: ``Control`` is opened before the program goes into the background, so that who started it can speak to it at once.
Only root, or who we are, is listened to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable

from pycni.wire import forwarder as wire

_CREDENTIALS = struct.Struct("=iII")
_BACKLOG = 16

Answer = Callable[[wire.Request], wire.State]


class Control:
    """The listening socket with its connections, driven by the loop's epoll."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.path = path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of one that was killed: the device is ours now
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._listener = socket.socket(socket.AF_UNIX, kind)
        folder, name = os.path.split(path)
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A state folder may be longer than the 108 bytes of sun_path.
            self._listener.bind(f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
        os.chmod(path, 0o600)
        self._listener.listen(_BACKLOG)
        self._file = os.stat(path).st_ino
        self._connections: dict[int, _Connection] = {}

    def register(self, poll: select.epoll) -> None:
        """Be woken for new connections."""
        poll.register(self._listener, select.EPOLLIN)

    @property
    def gone(self) -> bool:
        """Whether somebody removed the socket's file, or put another one there."""
        try:
            return os.stat(self.path).st_ino != self._file
        except OSError:
            return True

    def close(self) -> None:
        """Close everything and remove the file, if it is still ours."""
        if not self.gone:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        for connection in self._connections.values():
            connection.sock.close()
        self._listener.close()

    def handle(self, fd: int, events: int, poll: select.epoll, answer: Answer) -> bool:
        """Something happened on a descriptor; whether it is one of these."""
        if fd == self._listener.fileno():
            self._accept(poll)
            return True
        connection = self._connections.get(fd)
        if connection is None:
            return False
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                connection.read(answer)
            connection.write()
        except OSError:
            del self._connections[fd]
            connection.sock.close()
        else:
            wanted = select.EPOLLIN | (select.EPOLLOUT if connection.out else 0)
            poll.modify(fd, wanted)
        return True

    def _accept(self, poll: select.epoll) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(raw)[1] not in {0, os.geteuid()}:
                sock.close()
                return
            sock.setblocking(False)
            self._connections[sock.fileno()] = _Connection(sock)
            poll.register(sock, select.EPOLLIN)


class _Connection:
    """One agent's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = bytearray()
        self._in = bytearray()

    def read(self, answer: Answer) -> None:
        """Take what is there, answer whole lines. Raises OSError when the connection is over."""
        try:
            part = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        if not part or len(self._in) > wire.LINE_BYTES:
            raise ConnectionResetError
        self._in += part
        *lines, rest = self._in.split(b"\n")
        self._in = rest
        for line in lines:
            try:
                state = answer(wire.decode_request(bytes(line)))
            except wire.MalformedError as error:
                state = wire.State(error=f"malformed request: {error}", errno=errno.EINVAL)
            self.out += wire.encode(state)

    def write(self) -> None:
        """Send what the other side takes. Raises OSError when the connection is over."""
        while self.out:
            try:
                done = self.sock.send(self.out)
            except BlockingIOError:
                return
            del self.out[:done]
