"""One TCP connection that is always busy, to see whether something interrupts it. Two programs for two pods.

    python -m pycni.lab.stream serve ADDRESS           prints its port, sends back what one client sends, ends with it
    python -m pycni.lab.stream send ADDRESS PORT       sends a block every 20 ms and waits for each to come back

For each line on its standard input the sender prints what has become of the connection since the last one, as JSON
(``StreamReport``); at the end of its input it ends. Blocks are larger than any MTU in use, so that full-sized packets
go both ways.
"""

from __future__ import annotations

import select
import socket
import sys
import time

import msgspec

BLOCK = 4096
INTERVAL_S = 0.02
PATIENCE_S = 20.0
"""For a connection to open."""


class StreamReport(msgspec.Struct, kw_only=True):
    """What became of a connection since the last report."""

    sent: int = 0
    """Blocks."""
    answered: int = 0
    longest_gap_s: float = 0.0
    """Longest time without a block that came back, the one that still lasts counted too."""
    error: str = ""
    """Why the connection is at its end, "" while it is not."""


def serve(address: str) -> int:
    """Send back whatever one client sends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(1)
        print(listener.getsockname()[1], flush=True)
        listener.settimeout(PATIENCE_S)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return 1
    with connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        except OSError:
            return 1
    return 0


class Sender:
    """The sending end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._sock = sock
        self._unsent = b""
        self._got = 0
        self._report = StreamReport()
        self._last = time.monotonic()

    def run(self) -> int:
        """Until standard input ends."""
        due = time.monotonic()
        poller = select.poll()
        poller.register(sys.stdin, select.POLLIN)
        poller.register(self._sock, select.POLLIN)
        while True:
            now = time.monotonic()
            if now >= due and not self._report.error:
                self._send()
                due = max(due + INTERVAL_S, now)
            wait_s = max(0.0, due - time.monotonic()) if not self._report.error else 1.0
            for fd, _ in poller.poll(wait_s * 1000):
                if fd == self._sock.fileno():
                    self._receive()
                    if self._report.error:
                        poller.unregister(self._sock)
                elif not self._command():
                    return 0

    def _command(self) -> bool:
        """A line on standard input: report. False at its end."""
        if not sys.stdin.buffer.readline():
            return False
        self._gap(time.monotonic())
        print(msgspec.json.encode(self._report).decode(), flush=True)
        self._report = StreamReport(error=self._report.error)
        return True

    def _send(self) -> None:
        """One more block, unless the one before is not all on its way yet: that stands still and shows as a gap."""
        if not self._unsent:
            self._unsent = bytes(BLOCK)
            self._report.sent += 1
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as exc:
            self._report.error = exc.strerror or str(exc)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as exc:
            self._report.error = exc.strerror or str(exc)
            return
        if not data:
            self._report.error = "the other end has closed it"
            return
        self._got += len(data)
        if self._got >= BLOCK:
            now = time.monotonic()
            self._report.answered += self._got // BLOCK
            self._got %= BLOCK
            self._gap(now)
            self._last = now

    def _gap(self, now: float) -> None:
        self._report.longest_gap_s = max(self._report.longest_gap_s, now - self._last)


def main(argv: list[str]) -> int:
    """The program."""
    if argv[0] == "serve":
        return serve(argv[1])
    with socket.create_connection((argv[1], int(argv[2])), PATIENCE_S) as sock:
        print(flush=True)  # it is open
        return Sender(sock).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
