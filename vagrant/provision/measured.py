"""Who answers what ``bench.py`` measures: iperf3, sockperf and a greeter, in the node and in its first open pod.

Life: ``pods.py serve`` holds ``serving`` open as long as it runs. The greeter is one thread for all its listeners, so
that a connection to the node and one to the pod are served by the same code in the same process.
"""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.lab.stations import Inside

STREAM_PORT, TRIP_PORT, GREETER_PORT = 5201, 5202, 5203
LOOK_S = 0.5


class Place(NamedTuple):
    """Where servers are: a network namespace by name and path ("": the node's), and an address there."""

    namespace: str
    path: str
    address: str


@contextlib.contextmanager
def serving(places: Sequence[Place]) -> Iterator[None]:
    """All of them, until the end."""
    running = [
        subprocess.Popen(
            [*(["ip", "netns", "exec", place.namespace] if place.namespace else []), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for place in places
        for words in (
            ["iperf3", "-s", "-B", place.address, "-p", str(STREAM_PORT)],
            ["sockperf", "server", "--tcp", "-i", place.address, "-p", str(TRIP_PORT)],
        )
        if shutil.which(words[0])
    ]
    try:
        with greeting(places):
            yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def greeting(places: Sequence[Place]) -> Iterator[None]:
    """Accepts, sends a line, closes."""
    ending = threading.Event()
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(selectors.DefaultSelector())
        inside = stack.enter_context(Inside())
        for place in places:
            sock = stack.enter_context(inside(place.path, lambda place=place: _listener(place.address)))
            poll.register(sock, selectors.EVENT_READ)

        def turn() -> None:
            while not ending.is_set():
                for key, _ in poll.select(LOOK_S):
                    assert isinstance(key.fileobj, socket.socket)
                    _greet(key.fileobj)

        thread = threading.Thread(target=turn)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()


def _listener(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.create_server((address, GREETER_PORT), family=family, backlog=1024)
    sock.setblocking(False)
    return sock


def _greet(listener: socket.socket) -> None:
    # Somebody who has gone again is nobody's business here.
    with contextlib.suppress(OSError):
        sock, _ = listener.accept()
        with sock:
            sock.send(b"here\n")
