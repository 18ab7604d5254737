"""Sends real packets between hosts of a lab and tells which checks failed, and why.

Life of a run: every host has, inside its namespace, a raw ICMP socket, a UDP socket that is client and server at
once, and a TCP listener, on ports of the kernel's choice (``stations``); one thread serves all of them by epoll, with
a bounded number of checks under way. The loop itself never leaves its own namespace. Where hosts are on different
kernels each has a prober of its own: ``doors`` tells the others where its hosts are reached, ``meet`` takes in theirs,
``run`` tries the checks that start here, and ``serve`` answers the others' until they are through.

A check succeeds when what was sent comes back byte for byte. UDP and ICMP are sent again while their time lasts,
because one lost packet is no broken path; an ICMP error ends a check at once and is its reason.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

from pycni.closing import Closing
from pycni.errors import PycniError
from pycni.lab import icmp
from pycni.lab.checks import Check, Pending, difference, drain
from pycni.lab.stations import Door, Host, Inside, Station
from pycni.model.family import Family

KINDS = ("ping", "mtu", "tcp", "udp")
"""A small echo; an echo of exactly the MTU that may not be fragmented; a TCP and a UDP exchange."""
DEFAULT_TIMEOUT_S = 2.0
RESEND_S = 0.25
LOOK_S = 0.01
"""Seconds between looks at the clocks of all checks under way."""
WINDOW = 384
"""Checks under way at once: bounded by what socket buffers and the backlog of a CPU hold."""
OVERDUE = 4000
"""Checks beside those that wait in silence for their time to run out, so that a broken lab is told about soon."""
PING_BYTES = 84
"""IP length of a small echo."""
TCP_BYTES = 3000
UDP_BYTES = 1000

_MAGIC = b"pycn"
_HEAD = struct.Struct("!4sBxxxI")
_ASK, _ANSWER = 0, 1
_EINPROGRESS = 115
_LINGER_RESET = struct.pack("=ii", 1, 0)


class Doors(NamedTuple):
    """Where the hosts of one kernel are reached. Both lists are of (host, family, what)."""

    open: list[tuple[str, Family, Door]]
    broken: list[tuple[str, Family, str]]
    """Why a host cannot be reached at all."""


class Prober(Closing):
    """Checks between a fixed set of hosts. A context manager: it owns sockets in every host's namespace."""

    def __init__(self, hosts: Sequence[Host], timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """``timeout``: seconds until an unanswered check has failed."""
        self.timeout = timeout
        seed = os.urandom(65536)
        self._ident = int.from_bytes(seed[:2], "big")
        self._blob = seed
        self._stations: dict[tuple[str, Family], Station] = {}
        self._doors: dict[tuple[str, Family], Door] = {}
        self._broken: dict[tuple[str, Family], str] = {}
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._pending: dict[int, Pending] = {}
        self._served: set[socket.socket] = set()
        self._echoes: dict[tuple[str, Family, int], int] = {}
        self._datagrams: dict[tuple[str, Family, bytes], int] = {}
        self._reasons: dict[Check, str] = {}
        self._numbers = 0
        self._overdue = 0
        self._next_look = 0.0
        self._called = False
        with contextlib.ExitStack() as stack:
            self._inside = stack.enter_context(Inside())
            self._epoll = stack.enter_context(select.epoll())
            stack.callback(self._close_streams)
            self._stack = stack
            for host in hosts:
                for family in host.addresses:
                    self._open(host, family)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every socket."""
        self._stack.close()

    def doors(self) -> Doors:
        """Where this prober's hosts are reached."""
        return Doors(
            [(*key, station.door) for key, station in self._stations.items()],
            [(*key, reason) for key, reason in self._broken.items()],
        )

    def meet(self, others: Doors) -> None:
        """Take in the hosts of another prober."""
        self._doors.update({(name, family): door for name, family, door in others.open})
        self._broken.update({(name, family): reason for name, family, reason in others.broken})

    def serve(self, until: int) -> None:
        """Answer other probers until this file descriptor can be read."""
        self._called = False
        self._handlers[until] = self._on_call
        self._epoll.register(until, select.EPOLLIN)
        try:
            while not self._called:
                self._turn(-1)
        finally:
            self._epoll.unregister(until)
            del self._handlers[until]

    def run(self, checks: Iterable[Check]) -> dict[Check, str]:
        """Try all checks, whose sources are hosts of this prober.

        The value is "" for success, else why it failed, in words.
        """
        self._reasons = {}
        asked = tuple(checks)
        groups: dict[tuple[str, Family], list[Check]] = {}
        for check in asked:
            broken = self._broken.get((check.source, check.family)) or self._broken.get(
                (check.target, check.family)
            )
            if broken:
                self._reasons[check] = broken
            else:
                groups.setdefault((check.source, check.family), []).append(check)
        waiting = deque(groups.items())
        ready: deque[Pending] = deque()
        while waiting or ready or self._pending:
            while waiting and len(ready) < WINDOW:
                (source, family), group = waiting.popleft()
                ready.extend(self._prepare(self._stations[source, family], group))
            while ready and len(self._pending) - min(self._overdue, OVERDUE) < WINDOW:
                self._start(ready.popleft())
            self._turn(self._patience(time.monotonic()))
        return {check: self._reasons[check] for check in asked}

    # opening and closing

    def _open(self, host: Host, family: Family) -> None:
        """A host without its namespace or address is a finding, not an error of the probe."""
        try:
            station = self._inside(host.namespace, partial(Station, host, family))
        except (OSError, PycniError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            self._broken[host.name, family] = f"{host.name} {host.addresses[family]} is not usable: {reason}"
            return
        self._stack.callback(station.close)
        self._stations[host.name, family] = station
        self._doors[host.name, family] = station.door
        self._watch(station.icmp, partial(self._on_icmp, station))
        self._watch(station.udp, partial(self._on_udp, station))
        self._watch(station.tcp, partial(self._on_accept, station))

    def _close_streams(self) -> None:
        for sock in self._served:
            sock.close()
        for pending in self._pending.values():
            if pending.sock is not None:
                pending.sock.close()

    def _watch(self, sock: socket.socket, handler: Callable[[int], None], mask: int = select.EPOLLIN) -> None:
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), mask)

    def _forget(self, sock: socket.socket) -> None:
        self._handlers.pop(sock.fileno(), None)
        self._served.discard(sock)
        sock.close()

    # starting

    def _prepare(self, station: Station, group: list[Check]) -> list[Pending]:
        """Pending checks of one source, with their TCP sockets opened in one visit to its namespace."""
        family = socket.AddressFamily(station.family)
        streams = sum(check.kind == "tcp" for check in group)
        sockets: list[socket.socket] = []
        if streams:
            sockets = self._inside(
                station.host.namespace,
                lambda: [socket.socket(family, socket.SOCK_STREAM) for _ in range(streams)],
            )
        result = []
        for check in group:
            self._numbers += 1
            target = self._doors[check.target, check.family]
            if check.kind == "tcp":
                pending = Pending(check, self._numbers, self._blob[:TCP_BYTES])
                pending.sock = sockets.pop()
                pending.sock.setblocking(False)
                # Reset instead of TIME_WAIT: nothing of a run stays in the namespaces.
                pending.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            elif check.kind == "udp":
                pending = self._datagram(check, station, target)
            else:
                pending = self._echo(check, station, target)
            result.append(pending)
        return result

    def _datagram(self, check: Check, station: Station, target: Door) -> Pending:
        pending = Pending(check, self._numbers, self._blob[: UDP_BYTES - _HEAD.size])
        message = _HEAD.pack(_MAGIC, _ASK, pending.number) + pending.expected
        self._datagrams[check.source, check.family, ip_address(target.address).packed] = pending.number
        pending.send = partial(station.udp.sendto, message, (target.address, target.udp_port))
        return pending

    def _echo(self, check: Check, station: Station, target: Door) -> Pending:
        size = PING_BYTES if check.kind == "ping" else min(station.host.mtu, target.mtu)
        pending = Pending(
            check, self._numbers, self._blob[: size - icmp.IP_HEADER[check.family] - icmp.HEADER]
        )
        sequence = pending.number & 0xFFFF
        self._echoes[check.source, check.family, sequence] = pending.number
        request = icmp.echo_request(check.family, self._ident, sequence, pending.expected)
        pending.send = partial(station.icmp.sendto, request, (target.address, 0))
        return pending

    def _start(self, pending: Pending) -> None:
        now = time.monotonic()
        pending.deadline = now + self.timeout
        pending.resend = now + RESEND_S
        self._pending[pending.number] = pending
        if pending.sock is None:
            self._send(pending)
            return
        target = self._doors[pending.check.target, pending.check.family]
        self._watch(pending.sock, partial(self._on_stream, pending), select.EPOLLOUT | select.EPOLLIN)
        error = pending.sock.connect_ex((target.address, target.tcp_port))
        if error not in {0, _EINPROGRESS}:
            self._finish(pending, os.strerror(error))

    def _send(self, pending: Pending) -> None:
        assert pending.send is not None, "TCP checks are not sent again"
        try:
            pending.send()
        except BlockingIOError:
            pass  # full send buffer: the resend timer comes back to it
        except OSError as exc:
            self._finish(pending, f"cannot send: {exc.strerror}")

    # the loop

    def _turn(self, patience: float) -> None:
        """Wait for something to happen (seconds; -1: as long as it takes), handle it, then look at the clocks."""
        before = time.monotonic()
        for fd, mask in self._epoll.poll(patience, 256):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        if before >= self._next_look:
            self._next_look = before + LOOK_S
            self._look(before)

    def _look(self, before: float) -> None:
        """Give up or send again. Only what was late before the last events were read is late."""
        for item in list(self._pending.values()):
            if item.deadline <= before:
                self._finish(item, f"no answer within {self.timeout:g} s")
                continue
            if item.resend <= before:
                if not item.overdue:
                    item.overdue = True
                    self._overdue += 1
                item.resend = before + RESEND_S
                if item.send is not None:
                    self._send(item)
            elif not item.overdue:
                break  # checks are in the order of their start: the rest is younger

    def _patience(self, now: float) -> float:
        """Seconds to wait for events: nothing younger than the oldest check is due before it or its resend."""
        oldest = next(iter(self._pending.values()), None)
        if oldest is None:
            return 0.0
        return max(LOOK_S, min(oldest.deadline - now, oldest.resend - now, RESEND_S))

    def _finish(self, pending: Pending, reason: str) -> None:
        if self._pending.pop(pending.number, None) is None:
            return
        self._overdue -= pending.overdue
        self._reasons[pending.check] = reason
        if pending.sock is not None:
            self._forget(pending.sock)

    # events

    def _on_call(self, _mask: int) -> None:
        self._called = True

    def _on_icmp(self, station: Station, _mask: int) -> None:
        for packet, sender in drain(station.icmp):
            found = icmp.parse(station.family, packet, sender[0])
            if isinstance(found, icmp.Echo) and found.ident == self._ident:
                number = self._echoes.get((station.host.name, station.family, found.sequence))
                if (pending := self._pending.get(number or 0)) is not None:
                    self._finish(pending, difference(pending.expected, found.payload))
            elif isinstance(found, icmp.Refusal):
                self._refused(station, found)

    def _refused(self, station: Station, refusal: icmp.Refusal) -> None:
        key = (station.host.name, station.family)
        number = None
        if refusal.protocol in {icmp.ICMP, icmp.ICMP6} and refusal.first == self._ident:
            number = self._echoes.get((*key, refusal.second))
        elif refusal.protocol == icmp.UDP and refusal.first == station.door.udp_port:
            number = self._datagrams.get((*key, refusal.destination))
        if (pending := self._pending.get(number or 0)) is not None:
            self._finish(pending, refusal.text)

    def _on_udp(self, station: Station, _mask: int) -> None:
        for message, sender in drain(station.udp):
            if len(message) < _HEAD.size or not message.startswith(_MAGIC):
                continue
            _magic, role, number = _HEAD.unpack_from(message)
            body = message[_HEAD.size :]
            if role == _ASK:
                # An answer lost to a full buffer or a missing route shows at the asker.
                with contextlib.suppress(OSError):
                    station.udp.sendto(_HEAD.pack(_MAGIC, _ANSWER, number) + body, sender)
            elif (pending := self._pending.get(number)) is not None:
                self._finish(pending, difference(pending.expected, body))

    def _on_accept(self, station: Station, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _peer = station.tcp.accept()
                sock.setblocking(False)
                self._served.add(sock)
                self._watch(sock, partial(self._on_served, sock))

    def _on_served(self, sock: socket.socket, _mask: int) -> None:
        """The server's end: what comes in goes back."""
        try:
            data = sock.recv(65536)
            if data:
                sock.sendall(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # the client resets the connection when it has its answer
        self._forget(sock)

    def _on_stream(self, pending: Pending, mask: int) -> None:
        """The client's end: connected, then answered."""
        sock = pending.sock
        assert sock is not None, "only TCP checks have a socket"
        try:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._finish(pending, os.strerror(error))
            elif mask & select.EPOLLIN:
                self._on_stream_data(pending, sock.recv(65536))
            elif mask & select.EPOLLOUT:
                self._epoll.modify(sock.fileno(), select.EPOLLIN)
                sock.sendall(pending.expected)
        except BlockingIOError:
            pass
        except OSError as exc:
            self._finish(pending, exc.strerror or str(exc))

    def _on_stream_data(self, pending: Pending, data: bytes) -> None:
        pending.received += data
        if not data:
            came = len(pending.received)
            self._finish(pending, f"connection closed after {came} of {len(pending.expected)} bytes")
        elif len(pending.received) >= len(pending.expected):
            self._finish(pending, difference(pending.expected, pending.received))
