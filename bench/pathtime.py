"""Connections for benchmarks of the path between two pods.

    python -m bench.pathtime serve PORT [echo]
        until it is killed; "ready" on stdout. One byte back for one byte, then closed; with ``echo`` until closed
    python -m bench.pathtime client HOST PORT ECHO_PORT
        does what lines on stdin say, a line of JSON for each:
        connect SECONDS    connections one after another (connect, a byte there and back, reset), connect(2) timed
        ping SECONDS       bytes there and back on one connection
        {"us": median microseconds, "rate": per second}

Client and server have a processor each, where there are two, so that who wakes whom where is the same for all.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

from bench.viptime import CLIENT_CPU, SERVER_CPU, pin

_RESET = bytes((1, 0, 0, 0, 0, 0, 0, 0))


def serve(port: int, *, echo: bool) -> None:
    """On every address, one connection at a time."""
    pin(SERVER_CPU)
    with socket.create_server(("0.0.0.0", port), backlog=1024) as listener:
        print("ready", flush=True)
        while True:
            with listener.accept()[0] as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    sock.sendall(sock.recv(1))
                    while echo and (data := sock.recv(1)):
                        sock.sendall(data)
                except OSError:
                    continue


def connections(host: str, port: int, seconds: float) -> tuple[list[int], float]:
    """One after another, each reset so that no TIME_WAIT fills the tables. Nanoseconds, and seconds for all."""
    took: list[int] = []
    started = time.perf_counter()
    end = started + seconds
    while time.perf_counter() < end:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(5)
            before = time.perf_counter_ns()
            sock.connect((host, port))
            took.append(time.perf_counter_ns() - before)
            sock.send(b"?")
            sock.recv(1)
    return took, time.perf_counter() - started


def pings(sock: socket.socket, seconds: float) -> tuple[list[int], float]:
    """Nanoseconds, and seconds for all."""
    took: list[int] = []
    started = time.perf_counter()
    end = started + seconds
    while time.perf_counter() < end:
        before = time.perf_counter_ns()
        sock.send(b"?")
        sock.recv(1)
        took.append(time.perf_counter_ns() - before)
    return took, time.perf_counter() - started


def client(host: str, port: int, echo_port: int) -> None:
    """Until stdin ends."""
    pin(CLIENT_CPU)
    with socket.create_connection((host, echo_port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in sys.stdin:
            word, _, seconds = line.partition(" ")
            if word == "connect":
                took, spent = connections(host, port, float(seconds))
            else:
                took, spent = pings(sock, float(seconds))
            print(json.dumps({"us": statistics.median(took) / 1e3, "rate": len(took) / spent}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), echo=sys.argv[3:] == ["echo"])
    else:
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
