"""The sockets by which one host of a lab probes and answers.

A socket belongs to the namespace it is created in, for good: ``Inside`` creates sockets in any namespace from a
helper thread of its own, after which any thread may use them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from pycni.kernel import netns
from pycni.lab import icmp
from pycni.model.family import Family

_IP_MTU_DISCOVER = {Family.V4: (socket.IPPROTO_IP, 10), Family.V6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE = 3  # DF set, cached path MTUs ignored (ip(7))
_IPV6_DONTFRAG = 62
_SOL_RAW = 255  # include/linux/socket.h
_ICMP_FILTER = 1
_ICMP6_FILTER = 1
_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20

T = TypeVar("T")


class Host(NamedTuple):
    """An end of checks."""

    name: str
    namespace: str
    """Path of its network namespace; "" for the one the probe itself is in."""
    addresses: Mapping[Family, str]
    mtu: int
    """The largest packet it has to carry, in bytes."""
    node: str = ""
    """The node whose kernel it is on."""


class Door(NamedTuple):
    """Where a host can be reached by checks of one family."""

    address: str
    mtu: int
    tcp_port: int
    udp_port: int


class Inside:
    """Runs functions inside namespaces, on a thread that does nothing else. A context manager."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netns")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._thread.shutdown()

    def __call__(self, namespace: str, function: Callable[[], T]) -> T:
        """The function's result; ``namespace`` is a path, "" for here. Raises what it raises, KernelError, OSError."""
        if not namespace:
            return function()
        fd = netns.open_netns(namespace)
        try:
            return self._thread.submit(netns.run_in, fd, function).result()
        finally:
            os.close(fd)


def icmp_socket(family: Family) -> socket.socket:
    """A raw socket for echoes and errors that never lets its packets be fragmented. Non-blocking."""
    protocol = icmp.ICMP if family is Family.V4 else icmp.ICMP6
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AddressFamily(family), socket.SOCK_RAW, protocol))
        sock.setsockopt(*_IP_MTU_DISCOVER[family], _PMTUDISC_PROBE)
        if family is Family.V4:
            blocked = ~sum(1 << kind for kind in icmp.WANTED[family]) & 0xFFFFFFFF
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", blocked))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            words = [0xFFFFFFFF] * 8
            for kind in icmp.WANTED[family]:
                words[kind // 32] &= ~(1 << kind % 32)
            sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.setblocking(False)
        stack.pop_all()
        return sock


class Station:
    """The sockets of one host and family: raw ICMP, UDP (client and server at once) and a TCP listener."""

    def __init__(self, host: Host, family: Family) -> None:
        """Open them. To be called inside the host's namespace. Raises OSError."""
        self.host = host
        self.family = family
        self.address = host.addresses[family]
        with contextlib.ExitStack() as stack:
            kind = socket.AddressFamily(family)
            self.icmp = stack.enter_context(icmp_socket(family))
            self.udp = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
            self.tcp = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
            self._prepare()
            self._close = stack.pop_all().close
        self.door = Door(self.address, host.mtu, self.tcp.getsockname()[1], self.udp.getsockname()[1])

    def _prepare(self) -> None:
        self.udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self.udp.bind((self.address, 0))
        self.tcp.bind((self.address, 0))
        self.tcp.listen(1024)
        for own in (self.udp, self.tcp):
            own.setblocking(False)

    def close(self) -> None:
        """Close the three sockets."""
        self._close()
