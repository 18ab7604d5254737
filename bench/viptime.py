"""Connections and datagrams for benchmarks: a server that forgets them, a client that times what each of them takes.

    python -m bench.viptime serve PORT
        until it is killed; "ready" on stdout
    python -m bench.viptime client [CGROUP]
        per line "connections|datagrams HOST PORT DIRECT PORT COUNT" on stdin one of JSON: nanoseconds each, to a virtual and
        to a direct address, and seconds for all of each

The two ways take turns, a block each, in two processes: what goes through the virtual address is a member of ``CGROUP``
(whose programs translate), what goes directly is not and passes no program. The client has one processor, the server the
other, so that who wakes whom where is the same for all. Datagrams go to a socket nobody reads: over veths the sender's
processor carries each of them all the way into it, so what a send takes is the processor time of the whole path.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RESET = struct.pack("ii", 1, 0)
_DATAGRAM = bytes(64)
BLOCK = 50
CLIENT_CPU, SERVER_CPU = 0, 1


def serve(port: int) -> None:
    """Accept and close at once, and leave datagrams unread, on every address."""
    pin(SERVER_CPU)
    with (
        socket.create_server(("0.0.0.0", port), backlog=1024) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unread,
    ):
        unread.bind(("0.0.0.0", port))
        print("ready", flush=True)
        while True:
            listener.accept()[0].close()


def pin(cpu: int) -> None:
    """Stay on one processor, where there are two."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {cpu})


Block = Callable[[str, int, list[int]], float]
"""Goes to an address and a port, notes nanoseconds, tells the seconds of all."""


def connections(host: str, port: int, took: list[int]) -> float:
    """One connection after another, each reset so that no TIME_WAIT fills the tables; seconds for all."""
    started = time.perf_counter()
    for _ in range(BLOCK):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(5)
            before = time.perf_counter_ns()
            sock.connect((host, port))
            took.append(time.perf_counter_ns() - before)
    return time.perf_counter() - started


def datagrams(host: str, port: int, took: list[int]) -> float:
    """One after another from one socket, which connection tracking knows by the first of them; one figure for all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        sock.send(_DATAGRAM)
        started = time.perf_counter_ns()
        for _ in range(BLOCK):
            sock.send(_DATAGRAM)
        spent = time.perf_counter_ns() - started
    took.append(spent // BLOCK)
    return spent / 1e9


WAYS: dict[str, Block] = {"connections": connections, "datagrams": datagrams}


Way = dict[str, Any]
"""``ns``: a list; ``seconds``: of all."""


class Plain:
    """A second process, which goes directly."""

    def __init__(self) -> None:
        """Forks. Nothing else may be open yet that the child should not have."""
        mine, its = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            mine.close()
            with its.makefile("r") as asked, its.makefile("w") as told:
                for line in asked:
                    print(json.dumps(one_block(*line.split())), file=told, flush=True)
            os._exit(0)
        its.close()
        self._asks, self._hears = mine.makefile("w"), mine.makefile("r")
        mine.close()

    def block(self, what: str, host: str, port: str) -> Way:
        """One block in the other process, while this one waits."""
        print(what, host, port, file=self._asks, flush=True)
        found: Way = json.loads(self._hears.readline())
        return found

    def close(self) -> None:
        """Ends it."""
        self._asks.close()
        self._hears.close()
        os.waitpid(self._pid, 0)


def one_block(what: str, host: str, port: str) -> Way:
    """In this process."""
    took: list[int] = []
    spent = WAYS[what](host, int(port), took)
    return {"ns": took, "seconds": spent}


def client(cgroup: str) -> None:
    """Both ways in turns, as the lines of stdin say, until it ends."""
    pin(CLIENT_CPU)
    plain = Plain()
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
    for line in sys.stdin:
        what, host, port, direct, direct_port, count = line.split()
        found: dict[str, Way] = {way: {"ns": [], "seconds": 0.0} for way in ("through", "direct")}
        for _ in range(int(count) // BLOCK):
            blocks = one_block(what, host, port), plain.block(what, direct, direct_port)
            for total, one in zip(found.values(), blocks, strict=True):
                total["ns"] += one["ns"]
                total["seconds"] += one["seconds"]
        print(json.dumps(found), flush=True)
    plain.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        client("".join(sys.argv[2:]))
