"""Round trips of a byte, and new connections, between a process at each end.

    python -m bench.trips serve PORT [CPU]          until it is killed; one client after another
    python -m bench.trips ask HOST PORT [CPU]       does what lines on stdin say, a line with a number for each:
        trips SECONDS       bytes there and back on one connection: the median, in microseconds
        connect SECONDS     connections one after another (connect, a byte there and back, reset): per second

A trip has one to two microseconds of Python in it, at both ends. sockperf has less of its own, but each of its runs
sleeps for two seconds, in which this does five. Both ends are on one processor where one is named: whether the
scheduler wakes a process here or on the other one decides about half of a trip, and it decides anew each time.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import time

WARM_UP_S = 0.05
PATIENCE_S = 10.0
_RESET = struct.pack("ii", 1, 0)


def serve(port: int) -> None:
    """On every address."""
    with socket.create_server(("0.0.0.0", port), backlog=1024) as listener:
        while True:
            with listener.accept()[0] as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                number = sock.fileno()
                try:
                    while data := os.read(number, 16):
                        os.write(number, data)
                except ConnectionError:
                    continue


def connected(host: str, port: int) -> socket.socket:
    """Blocking, with a reset at its end, so that no TIME_WAIT fills the tables."""
    sock = socket.create_connection((host, port), timeout=1)
    sock.settimeout(None)  # no poll(2) before each read
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return sock


def patiently(host: str, port: int) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            connected(host, port).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def trips(host: str, port: int, seconds: float) -> float:
    """Median microseconds."""
    read, write, clock = os.read, os.write, time.perf_counter_ns
    took: list[int] = []
    with connected(host, port) as sock:
        number = sock.fileno()
        for length in (WARM_UP_S, seconds):
            took.clear()
            end, before = clock() + int(length * 1e9), 0
            while before < end:
                before = clock()
                write(number, b"?")
                read(number, 16)
                took.append(clock() - before)
    return statistics.median(took) / 1e3


def connect(host: str, port: int, seconds: float) -> float:
    """Connections per second."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        with connected(host, port) as sock:
            sock.send(b"?")
            sock.recv(1)
        count += 1
    return count / (time.perf_counter() - began)


def ask(host: str, port: int) -> None:
    """Until stdin ends."""
    patiently(host, port)
    for line in sys.stdin:
        word, _, seconds = line.partition(" ")
        print({"trips": trips, "connect": connect}[word](host, port, float(seconds)), flush=True)


def main(words: list[str]) -> None:
    """Run one command."""
    command, *rest = words
    needed = 1 if command == "serve" else 2
    if rest[needed:]:
        os.sched_setaffinity(0, {int(rest[needed])})
    if command == "serve":
        serve(int(rest[0]))
    else:
        ask(rest[0], int(rest[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
