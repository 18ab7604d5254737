"""Which connections between pods get through, by real packets, many at once and fast enough for thousands of tables.

Life: a ``PolicyProber`` opens in every pod's namespace, once, servers on the ports asked about, a raw socket for SCTP
and a tap that sees what comes in by the pod's device whatever becomes of it there. ``run`` lets every shot go at the
same time, each connection with a port of the client no earlier one had, and listens until what is expected to get
through has been answered and nothing has come for a while. One thread and one epoll serve both ends of everything.

TCP: the server greets with its pod's name. UDP: a datagram comes back with the name before it. SCTP: kernels need not
have it, so an INIT is sent and answered by INIT ACK (RFC 9260 section 3.3.2) from raw sockets. A port on which somebody
else in the pod listens already is left to him: the lab's servers greet in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pycni.closing import Closing
from pycni.lab import policy_wire as wire
from pycni.lab.policy_station import PolicyStation, Target, answer_datagrams, greet_streams
from pycni.lab.stations import Inside
from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES, TCP, UDP

QUIET_S = 0.02
"""How long nothing may have come before the rest counts as denied, where it is known what to expect."""
BLIND_QUIET_S = 0.15
"""The same where it is not."""
PATIENCE_S = 5.0
"""For what is expected to get through."""
RESEND_S = 0.25
_PORTS = range(10000, 32000)
"""Clients' ports for UDP and SCTP: outside of those that kernels give out."""
_LINGER_RESET = struct.pack("=ii", 1, 0)


class Shot(NamedTuple):
    """One connection to try, by the names of two pods."""

    source: str
    target: str
    family: Family
    protocol: int
    port: int
    """Of the pod."""
    address: str = ""
    """Of a Service that leads there; "": the pod's own."""
    at: int = 0
    """Port of the Service."""

    def __str__(self) -> str:
        """``x/a -> y/b 80/TCP IPv4``."""
        via = f" by {self.address} {self.at}" if self.address else ""
        what = f"{self.port}/{PROTOCOL_NAMES[self.protocol]} {self.family.label}"
        return f"{self.source} -> {self.target} {what}{via}"


class Outcome(NamedTuple):
    """What became of a shot."""

    arrived: bool
    """The pod's device saw its first packet."""
    answered: bool
    """The client was told the right pod's name."""
    trouble: str = ""
    """What else happened: refused, answered by somebody else, an error."""

    @property
    def allowed(self) -> bool:
        """Whether it got through. A closed port refuses what policies allow."""
        return self.answered or (self.arrived and self.trouble == REFUSED)

    @property
    def sound(self) -> bool:
        """Whether it got through or did not, with nothing in between."""
        return self.allowed if self.arrived or self.answered else not self.trouble


REFUSED = "refused"
_DENIED = Outcome(arrived=False, answered=False)


class _Shooting:
    """One under way."""

    __slots__ = ("again", "answered", "arrived", "shot", "sock", "trouble")

    def __init__(self, shot: Shot) -> None:
        self.shot = shot
        self.arrived = self.answered = False
        self.trouble = ""
        self.sock: socket.socket | None = None
        """Of TCP, until it is over."""
        self.again: Callable[[], object] | None = None


class PolicyProber(Closing):
    """Probes between a fixed set of pods. A context manager; one thread."""

    def __init__(self, targets: Sequence[Target], ports: Collection[tuple[int, int]]) -> None:
        """``ports``: (protocol, port) that shots are about. Raises OSError, KernelError."""
        self._targets = {target.name: target for target in targets}
        self._ports = itertools.cycle(_PORTS)
        self._handlers: dict[int, Callable[[], None]] = {}
        self._stations: dict[tuple[str, Family], PolicyStation] = {}
        self._numbers: dict[int, _Shooting] = {}
        self._last = itertools.count(1)
        self._expected: dict[tuple[str, bytes, int, int], _Shooting] = {}
        """By pod, client's address, protocol and port: what its tap may see."""
        self._heard = 0.0
        with contextlib.ExitStack() as stack:
            self._inside = stack.enter_context(Inside())
            self._epoll = stack.enter_context(select.epoll())
            for target in targets:
                for family in target.addresses:
                    station = self._inside(target.namespace, partial(PolicyStation, target, family, ports))
                    stack.callback(station.close)
                    self._stations[target.name, family] = station
                    self._watch_station(station)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every socket."""
        self._stack.close()

    def run(
        self,
        shots: Iterable[Shot],
        expected: Mapping[Shot, bool] | None = None,
        *,
        quiet: float | None = None,
        patience: float = PATIENCE_S,
    ) -> dict[Shot, Outcome]:
        """Let them all go. ``expected``: which will get through, so that nobody waits for the others in vain.

        ``quiet``: seconds without a packet after which the rest counts as denied. ``patience``: seconds for those that
        are expected to get through.
        """
        quiet = (BLIND_QUIET_S if expected is None else QUIET_S) if quiet is None else quiet
        self._turn(0.0)  # what earlier runs left behind
        flying = [_Shooting(shot) for shot in shots]
        try:
            with contextlib.ExitStack() as stack:
                self._shoot(flying, stack)
                wanted = [item for item in flying if expected is not None and expected[item.shot]]
                self._listen(wanted, quiet, patience)
        finally:
            for item in flying:
                self._close(item)
            self._numbers.clear()
            self._expected.clear()
        return {item.shot: _outcome(item) for item in flying}

    # --- shooting ------------------------------------------------------------------------------------------------

    def _shoot(self, flying: Sequence[_Shooting], stack: contextlib.ExitStack) -> None:
        port = next(self._ports)
        groups: dict[tuple[str, Family, bool], list[_Shooting]] = {}
        for item in flying:
            shot = item.shot
            groups.setdefault((shot.source, shot.family, bool(shot.address)), []).append(item)
            client = self._stations[shot.source, shot.family].target.addresses[shot.family]
            source = socket.inet_pton(socket.AddressFamily(shot.family), client)
            self._expected[shot.target, source, shot.protocol, shot.port] = item
        for (source_name, family, translated), group in groups.items():
            # Of two connections from one port, one translated, the kernel would change a port.
            local = port if not translated else next(self._ports)
            station = self._stations[source_name, family]
            streams = [item for item in group if item.shot.protocol == TCP]
            *sockets, datagrams = self._inside(
                station.target.namespace, partial(_clients, socket.AddressFamily(family), len(streams))
            )
            stack.enter_context(datagrams)
            datagrams.bind((station.target.addresses[family], local))
            asked: dict[tuple[str, int], _Shooting] = {}
            self._watch(datagrams, partial(_on_answers, datagrams, asked))
            stack.callback(self._handlers.pop, datagrams.fileno(), None)
            for item, sock in zip(streams, sockets, strict=True):
                item.sock = sock
            for item in group:
                shot = item.shot
                address = shot.address or self._targets[shot.target].addresses[shot.family]
                end = (address, shot.at if shot.address else shot.port)
                if shot.protocol == TCP:
                    self._connect(item, end)
                elif shot.protocol == UDP:
                    asked[end] = item
                    item.again = partial(datagrams.sendto, b"?\n", end)
                    self._send(item)
                else:
                    number = next(self._last)
                    self._numbers[number] = item
                    packet = wire.sctp_init(local, end[1], number)
                    item.again = partial(station.sctp.sendto, packet, (address, 0))
                    self._send(item)
        self._heard = time.monotonic()

    def _connect(self, item: _Shooting, end: tuple[str, int]) -> None:
        assert item.sock is not None, "opened for it"
        item.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        error = item.sock.connect_ex(end)
        if error not in {0, errno.EINPROGRESS}:
            item.trouble = os.strerror(error)
            return
        self._watch(item.sock, partial(self._on_stream, item))

    @staticmethod
    def _send(item: _Shooting) -> None:
        assert item.again is not None, "TCP sends again by itself"
        try:
            item.again()
        except (BlockingIOError, PermissionError):
            pass  # sent again later; a policy inside the sender's pod denies with EPERM
        except OSError as exc:
            item.trouble = exc.strerror or str(exc)

    def _listen(self, wanted: Sequence[_Shooting], quiet: float, patience: float) -> None:
        started = time.monotonic()
        resend = started + RESEND_S
        waiting = list(wanted)
        while True:
            now = time.monotonic()
            waiting = [item for item in waiting if not item.answered and not item.trouble]
            if not waiting or now - started > patience:
                left = self._heard + quiet - now
                if left <= 0 or now - started > patience + 1:
                    return
            else:
                left = RESEND_S
                if now >= resend:
                    resend = now + RESEND_S
                    for item in waiting:
                        if item.again is not None:
                            self._send(item)
            self._turn(left)

    # --- events --------------------------------------------------------------------------------------------------

    def _turn(self, patience: float) -> None:
        events = self._epoll.poll(patience, 1024)
        if not events:
            return
        handlers = self._handlers
        for fd, _mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                handler()
        self._heard = time.monotonic()

    def _watch(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _watch_station(self, station: PolicyStation) -> None:
        self._watch(station.tap, partial(self._on_tap, station))
        self._watch(station.sctp, partial(self._on_sctp, station))
        greeting = f"{station.target.name}\n".encode()
        for protocol, server in station.servers:
            handler = greet_streams if protocol == TCP else answer_datagrams
            self._watch(server, partial(handler, server, greeting))

    def _on_tap(self, station: PolicyStation) -> None:
        expected, name, parse = self._expected, station.target.name, wire.HEADS[station.family]
        with contextlib.suppress(BlockingIOError):
            while True:
                source, protocol, port = parse(station.tap.recv(wire.SNAP))
                item = expected.get((name, source, protocol, port))
                if item is not None:
                    item.arrived = True

    def _on_sctp(self, station: PolicyStation) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, sender = station.sctp.recvfrom(wire.SNAP)
                found = wire.parse_sctp(packet, station.family)
                if found is None:
                    continue
                if found.kind == wire.INIT:
                    # An answer that cannot be sent does not arrive, which the client's end will tell.
                    with contextlib.suppress(OSError):
                        station.sctp.sendto(wire.sctp_init_ack(found), (sender[0], 0))
                elif (item := self._numbers.get(found.tag)) is not None:
                    item.answered = True

    def _on_stream(self, item: _Shooting) -> None:
        assert item.sock is not None, "watched while it is there"
        try:
            data = item.sock.recv(256)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            item.trouble = REFUSED
        except OSError as exc:
            item.trouble = exc.strerror or str(exc)
        else:
            _settle(item, data.partition(b"\n")[0])
        self._close(item)

    def _close(self, item: _Shooting) -> None:
        if item.sock is not None:
            self._handlers.pop(item.sock.fileno(), None)
            item.sock.close()
            item.sock = None


def _clients(family: socket.AddressFamily, streams: int) -> list[socket.socket]:
    """Sockets for that many connections, and one for datagrams."""
    kinds = [socket.SOCK_STREAM] * streams + [socket.SOCK_DGRAM]
    return [socket.socket(family, kind | socket.SOCK_NONBLOCK) for kind in kinds]


def _settle(item: _Shooting, greeting: bytes) -> None:
    """The lab's servers name the client too."""
    name = greeting.split(b" ")[0].decode(errors="replace")
    if name == item.shot.target:
        item.answered = True
    else:
        item.trouble = f"answered by {name or 'nobody'}"


def _outcome(item: _Shooting) -> Outcome:
    if not item.arrived and not item.answered and not item.trouble:
        return _DENIED
    return Outcome(item.arrived, item.answered, item.trouble)


def _on_answers(datagrams: socket.socket, asked: Mapping[tuple[str, int], _Shooting]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, sender = datagrams.recvfrom(256)
            item = asked.get(sender[:2])
            if item is not None:
                _settle(item, data.partition(b"\n")[0])
