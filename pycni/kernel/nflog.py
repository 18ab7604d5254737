"""Hearing of packets that rules log to an nfnetlink_log group: one socket, never blocking, bounded.

Life: made where somebody wants to know (``pycnictl drops``) and closed when nobody does any more, because a group has
one listener in a network namespace. The kernel throws away what does not fit the socket's buffer and says so once
(ENOBUFS); the group's sequence numbers tell how many those were.
"""

from __future__ import annotations

import errno
import os
import socket

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER
from pycni.wire import nflog
from pycni.wire.netlink import NLMSG_ERROR, MalformedError, parse_error, split

COPY_BYTES = 128
"""Of each packet: the IPv6 header, some extension headers and the ports."""
BUFFER_BYTES = 1 << 20
DATAGRAMS_PER_READ = 256
_KERNEL_BUFFER = 4096
_RCVBUFFORCE = 33
_RECEIVE_BYTES = 1 << 16
_TIMEOUT_S = 5.0


class NflogSocket:
    """One group in the network namespace of the thread that makes this. Give it to an event loop's ``add_reader``."""

    def __init__(self, group: int, *, buffer: int = BUFFER_BYTES) -> None:
        """Join the group. Raises KernelError: no nfnetlink_log in this kernel, or somebody else has the group."""
        self._group = group
        self._lost = 0
        self._next = -1
        self._overrun = False
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        except OSError as exc:
            raise _error(exc, group) from exc
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, buffer)
            self._sock.bind((0, 0))
            self._sock.settimeout(_TIMEOUT_S)
            for request in (
                nflog.bind(group),
                nflog.copy(group, COPY_BYTES),
                nflog.settings(group, _KERNEL_BUFFER),
            ):
                self._ask(request)
            self._sock.setblocking(False)
        except OSError as exc:
            self._sock.close()
            raise _error(exc, group) from exc
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """File descriptor, for the event loop."""
        return self._sock.fileno()

    @property
    def lost(self) -> int:
        """Packets the kernel could not tell of for want of room; while their number is not known yet they are one."""
        return self._lost + self._overrun

    def read(self) -> list[nflog.Packet]:
        """What has come, at most ``DATAGRAMS_PER_READ`` datagrams at a time. Raises KernelError."""
        found: list[nflog.Packet] = []
        for _ in range(DATAGRAMS_PER_READ):
            try:
                datagram = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise _error(exc, self._group) from exc
                self._overrun = True
                continue
            found += self._take(datagram)
        return found

    def close(self) -> None:
        """Leave the group."""
        self._sock.close()

    def _take(self, datagram: bytes) -> list[nflog.Packet]:
        try:
            packets = list(nflog.decode(datagram))
        except MalformedError as exc:
            raise KernelError(errno.EBADMSG, "read packet log", f"group {self._group}", str(exc)) from exc
        for packet in packets:
            if packet.sequence < 0:
                continue
            # Sequence numbers begin at 0 with the group and wrap at 32 bits.
            missed = (packet.sequence - max(self._next, 0)) & 0xFFFFFFFF
            self._lost += missed
            self._next = (packet.sequence + 1) & 0xFFFFFFFF
            # The error comes first, then what was queued before it, then the gap.
            self._overrun = self._overrun and not missed
        return packets

    def _ask(self, request: bytes) -> None:
        """Send a request and wait for its acknowledgement; packets that come before it are dropped."""
        self._sock.send(request)
        while True:
            for reply in split(self._sock.recv(_RECEIVE_BYTES)):
                if reply.kind == NLMSG_ERROR:
                    code, _ = parse_error(reply)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return


_HINTS = {
    errno.EPERM: "another program listens to this group, or CAP_NET_ADMIN is missing",
    errno.EINVAL: "no nfnetlink_log in this kernel",
    errno.EPROTONOSUPPORT: "no nfnetlink in this kernel",
}


def _error(exc: OSError, group: int) -> KernelError:
    code = exc.errno or errno.EIO
    return KernelError(code, "listen to packet log", f"group {group}", _HINTS.get(code, exc.strerror or ""))
