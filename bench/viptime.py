"""Connections and datagrams for benchmarks: a server that forgets them, a client that times what each of them takes.

    python -m bench.viptime serve PORT
        until it is killed; "ready" on stdout
    python -m bench.viptime connections|datagrams HOST PORT DIRECT PORT COUNT [CGROUP]
        nanoseconds each, to a virtual and to a direct address, and seconds for all of each, JSON

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


def pair(
    block: Block, through: tuple[str, int], direct: tuple[str, int], count: int, cgroup: str
) -> dict[str, Any]:
    """Both ways in turns."""
    pin(CLIENT_CPU)
    turn, done = socket.socketpair()
    child = os.fork()
    if not child:
        turn.close()
        plain: list[int] = []
        spent = 0.0
        while done.recv(1):
            spent += block(*direct, plain)
            done.send(b"!")
        with done.makefile("w") as answer:
            json.dump({"ns": plain, "seconds": spent}, answer)
        os._exit(0)
    done.close()
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
    took: list[int] = []
    seconds = 0.0
    for _ in range(count // BLOCK):
        seconds += block(*through, took)
        turn.send(b"?")
        turn.recv(1)
    turn.shutdown(socket.SHUT_WR)
    with turn.makefile() as answer:
        other = json.load(answer)
    turn.close()
    os.waitpid(child, 0)
    return {"through": {"ns": took, "seconds": seconds}, "direct": other}


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1] == "serve":
        serve(int(words[0]))
    else:
        group = words[5] if len(words) > 5 else ""
        through, direct = (words[0], int(words[1])), (words[2], int(words[3]))
        print(json.dumps(pair(WAYS[sys.argv[1]], through, direct, int(words[4]), group)))
