"""The sockets of one pod and family by which policies are probed: servers, a raw one for SCTP, a tap."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pycni.kernel import sockfilter
from pycni.lab import policy_wire as wire
from pycni.model.family import Family
from pycni.model.kube import TCP, UDP

DEVICE = "eth0"
_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20
_IPV6_V6ONLY = 26
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


class Target(NamedTuple):
    """A pod to probe from and to."""

    name: str
    """As it greets."""
    namespace: str
    """Path of its network namespace."""
    addresses: Mapping[Family, str]


class PolicyStation:
    """The sockets of one pod and family."""

    def __init__(self, target: Target, family: Family, ports: Collection[tuple[int, int]]) -> None:
        """Open them. To be called inside the pod's namespace. Raises OSError."""
        self.target, self.family = target, family
        self.servers: list[tuple[int, socket.socket]] = []
        with contextlib.ExitStack() as stack:
            self.sctp = stack.enter_context(_raw(family))
            self.tap = stack.enter_context(_tap(family, ports))
            for protocol, port in ports:
                if protocol in _KINDS and (server := _server(family, protocol, port)) is not None:
                    self.servers.append((protocol, stack.enter_context(server)))
            self.close = stack.pop_all().close


def greet_streams(server: socket.socket, greeting: bytes) -> None:
    """Tell everybody who has connected who is here."""
    with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
        while True:
            fd, _peer = server._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - no object per connection
            with contextlib.suppress(OSError):  # reset meanwhile: the client's to tell
                os.write(fd, greeting)
            os.close(fd)


def answer_datagrams(server: socket.socket, greeting: bytes) -> None:
    """Tell everybody who has sent something who is here."""
    with contextlib.suppress(BlockingIOError):
        while True:
            _data, sender = server.recvfrom(256)
            # An answer that cannot be sent does not arrive, which the client's end will tell.
            with contextlib.suppress(OSError):
                server.sendto(greeting, sender)


def _server(family: Family, protocol: int, port: int) -> socket.socket | None:
    """A listener, None when somebody else has the port."""
    sock = socket.socket(socket.AddressFamily(family), _KINDS[protocol] | socket.SOCK_NONBLOCK)
    try:
        if family is Family.V6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY, 1)
        if protocol == TCP:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind(("", port))
        if protocol == TCP:
            sock.listen(1024)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            return None
        raise
    return sock


def _raw(family: Family) -> socket.socket:
    sock = socket.socket(
        socket.AddressFamily(family), socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_SCTP
    )
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    return sock


def _tap(family: Family, ports: Collection[tuple[int, int]]) -> socket.socket:
    """Sees first packets that come in by any device, before anything in the pod can drop them."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    # Bound to no protocol until the filter is there.
    sock = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        sockfilter.attach(sock, wire.first_packets(family, {port for _protocol, port in ports}))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((DEVICE, wire.ETHERTYPES[family]))
    except BaseException:
        sock.close()
        raise
    return sock
