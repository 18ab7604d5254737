"""Frames with a certain token, as they pass the interfaces of many namespaces, with the kernel's time stamps.

Life: ``Capture`` opens one packet socket (packet(7)) per namespace, for all of its interfaces and both directions, with
a filter in the kernel; ``read`` collects what has passed until told to stop. Closing it leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pycni.closing import Closing
from pycni.errors import KernelError

ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_PACKET_OUTGOING = 4
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_ROOM = 1 << 20
_LONGEST = 65535
_TIMESPEC = struct.Struct("@ll")

Instruction = tuple[int, int, int, int]
Choose = Callable[[tuple[str, str]], Sequence[Instruction]]
"""The program for a node's space."""
T = TypeVar("T")


class Enter(Protocol):
    """Runs a function in a namespace."""

    def __call__(self, function: Callable[[], T], /) -> T:
        """What the function returns. Raises what it raises."""


class Frame(NamedTuple):
    """One frame at one interface."""

    node: str
    space: str
    interface: str
    outgoing: bool
    time_ns: int
    """Nanoseconds since the epoch."""
    data: bytes
    ethernet: bool
    """Whether it begins with an Ethernet header."""


class Capture(Closing):
    """Packet sockets in many namespaces. Use it in a ``with``."""

    def __init__(
        self,
        spaces: Mapping[tuple[str, str], Enter],
        program: Sequence[Instruction] | Choose,
        room: int = _ROOM,
    ) -> None:
        """``spaces``: by node and space; ``program``: for all of them, or for each; ``room``: bytes of each buffer.

        Raises KernelError naming the one that cannot be listened to.
        """
        self._sockets: dict[int, tuple[socket.socket, str, str]] = {}
        try:
            for (node, space), enter in spaces.items():
                try:
                    code = program((node, space)) if callable(program) else program
                    sock = enter(partial(_open, code, room))
                except OSError as exc:
                    what = f"{node} {space}".strip()
                    raise KernelError(exc.errno or errno.EIO, "open packet socket", what) from exc
                self._sockets[sock.fileno()] = sock, node, space
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets."""
        for sock, _, _ in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def filenos(self) -> tuple[int, ...]:
        """To poll for reading."""
        return tuple(self._sockets)

    def drain(self) -> list[Frame]:
        """What has come in, of one socket after the other; never waits. Raises KernelError."""
        return [frame for fd in self._sockets for frame in self._drain(fd)]

    def read(
        self, done: Callable[[Sequence[Frame]], bool], patience_s: float, limit: int = 10000
    ) -> list[Frame]:
        """Frames in the order of their time stamps: until ``done`` says so, the time is over, or there are too many."""
        found: list[Frame] = []
        poll = select.poll()
        for fd in self._sockets:
            poll.register(fd, select.POLLIN)
        end = time.monotonic() + patience_s
        while len(found) < limit:
            left = end - time.monotonic()
            for fd, _ in poll.poll(max(left, 0) * 1000):
                found += self._drain(fd)
            if left <= 0 or done(found):
                break
        return sorted(found, key=lambda frame: frame.time_ns)

    def _drain(self, fd: int) -> list[Frame]:
        sock, node, space = self._sockets[fd]
        found: list[Frame] = []
        while True:
            try:
                data, ancillary, _, (interface, _, way, hardware, _) = sock.recvmsg(_LONGEST, 64)
            except BlockingIOError:
                return found
            except OSError as exc:
                if exc.errno != errno.ENETDOWN:  # an interface went; the socket goes on
                    raise KernelError(exc.errno or errno.EIO, "read packets", f"{node} {space}") from exc
                continue
            stamp = next(
                (_time(value) for level, kind, value in ancillary if kind == _SO_TIMESTAMPNS), time.time_ns()
            )
            ethernet = hardware in {_ARPHRD_ETHER, _ARPHRD_LOOPBACK}
            found.append(Frame(node, space, interface, way == _PACKET_OUTGOING, stamp, data, ethernet))


def _time(value: bytes) -> int:
    seconds, nanoseconds = _TIMESPEC.unpack_from(value)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _open(program: Sequence[Instruction], room: int) -> socket.socket:
    """A socket in the calling thread's namespace. It hears a few frames before its filter is in place."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))
    try:
        code = b"".join(struct.pack("@HBBI", *step) for step in program)
        buffer = ctypes.create_string_buffer(code)
        fprog = struct.pack("@HP", len(program), ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except BaseException:
        sock.close()
        raise
    return sock
