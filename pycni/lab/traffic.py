"""A steady stream of pings between two addresses, to see whether something interrupts traffic.

Life: ``Traffic`` opens a raw socket inside the source's namespace, sends an echo every ``interval`` from a thread of
its own and notes which come back; ``stop`` waits for stragglers and returns the count. Nothing is sent twice: every
echo that does not come back is a lost packet.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from functools import partial
from ipaddress import ip_address
from types import TracebackType
from typing import NamedTuple, Self

from pycni.lab import icmp
from pycni.lab.stations import Inside, icmp_socket
from pycni.model.family import Family

STRAGGLERS_S = 2.0
"""On a busy machine an answer may take a while, which is not to be lost."""


class TrafficReport(NamedTuple):
    """What became of the stream."""

    sent: int
    lost: int
    longest_gap: float
    """Longest time without an answer, in seconds."""
    worst_rtt: float
    """Seconds."""


class Traffic:
    """Pings ``address`` from inside ``namespace`` (a path) every ``interval`` seconds. A context manager."""

    def __init__(self, namespace: str, address: str, interval: float = 0.005, size: int = 64) -> None:
        """``size``: bytes of payload."""
        self._family = Family.of(ip_address(address))
        self._address = address
        self._interval = interval
        self._payload = bytes(size)
        self._sent: list[float] = []
        self._answered: dict[int, float] = {}
        self._ident = time.monotonic_ns() >> 10 & 0xFFFF
        self._stopping = threading.Event()
        with Inside() as inside:
            self._sock: socket.socket = inside(namespace, partial(icmp_socket, self._family))
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        """Start sending."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sending; see ``report``."""
        self._stopping.set()
        self._thread.join()
        self._sock.close()

    def wait_answered(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until ``count`` more answers have come; whether they did."""
        goal = len(self._answered) + count
        deadline = time.monotonic() + timeout
        while len(self._answered) < goal:
            if time.monotonic() > deadline:
                return False
            time.sleep(self._interval)
        return True

    def report(self) -> TrafficReport:
        """The outcome; final after the block has been left."""
        sent, answered = list(self._sent), dict(self._answered)
        arrivals = sorted(answered.values())
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        rtts = [arrival - sent[number] for number, arrival in answered.items()]
        return TrafficReport(
            len(sent), len(sent) - len(answered), max(gaps, default=0.0), max(rtts, default=0.0)
        )

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        due = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= due:
                self._send(now)
                due = max(due + self._interval, now - self._interval)
            if poller.poll(max(0.0, (due - time.monotonic()) * 1000)):
                self._receive()
        deadline = time.monotonic() + STRAGGLERS_S
        while len(self._answered) < len(self._sent) and (left := deadline - time.monotonic()) > 0:
            if poller.poll(left * 1000):
                self._receive()

    def _send(self, now: float) -> None:
        number = len(self._sent)
        self._sent.append(now)
        # What cannot be sent is counted as lost, which is what it is.
        with contextlib.suppress(OSError):
            request = icmp.echo_request(self._family, self._ident, number & 0xFFFF, self._payload)
            self._sock.sendto(request, (self._address, 0))

    def _receive(self) -> None:
        try:
            packet, sender = self._sock.recvfrom(65535)
        except OSError:
            return
        found = icmp.parse(self._family, packet, sender[0])
        if isinstance(found, icmp.Echo) and found.ident == self._ident:
            latest = len(self._sent) - 1
            number = latest - ((latest - found.sequence) & 0xFFFF)
            self._answered.setdefault(number, time.monotonic())
