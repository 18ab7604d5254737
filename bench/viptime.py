"""Connections for benchmarks: a server that accepts and forgets, a client that times how long connecting takes.

python -m bench.viptime serve PORT                  until it is killed; "ready" on stdout
python -m bench.viptime connect HOST PORT COUNT     nanoseconds per connect(2), JSON; CPU seconds of the client
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

_RESET = struct.pack("ii", 1, 0)


def serve(port: int) -> None:
    """Accept and close at once, on every address."""
    with socket.create_server(("0.0.0.0", port), backlog=1024) as listener:
        print("ready", flush=True)
        while True:
            listener.accept()[0].close()


def connect(host: str, port: int, count: int) -> None:
    """One connection after another, each reset so that no TIME_WAIT fills the tables."""
    took = []
    started = time.perf_counter()
    for _ in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(5)
            before = time.perf_counter_ns()
            sock.connect((host, port))
            took.append(time.perf_counter_ns() - before)
    print(json.dumps({"ns": took, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
