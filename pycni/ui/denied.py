"""Packets that policies deny, as agents tell of them while somebody watches.

Life: the first browser has a thread per agent listen to its ``/drops``; when the last one goes their sockets are shut,
which ends the threads, and nothing is told to nobody. Agents tell of ten packets a second and rule at most: these
figures say where packets are denied now; how many in all is what policies count.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from pycni.cli_agent import Agent
from pycni.errors import PycniError

KEPT = 50
"""Packets."""
_CONNECT_S = 5.0


class Asked(Protocol):
    """The part of ``source.Source`` that is needed."""

    def agents(self) -> Sequence[Agent]:
        """Those that can be asked. Raises PycniError."""


class Denied:
    """See the module."""

    def __init__(self, source: Asked) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._listeners = 0
        self._sockets: dict[str, socket.socket] = {}
        self._counted: dict[str, int] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._number = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Have agents listened to meanwhile."""
        with self._lock:
            self._listeners += 1
        self.look()
        try:
            yield
        finally:
            with self._lock:
                self._listeners -= 1
                if not self._listeners:
                    for sock in self._sockets.values():
                        with contextlib.suppress(OSError):  # the agent has gone before
                            sock.shutdown(socket.SHUT_RDWR)

    def look(self) -> None:
        """Listen to agents that are new, or there again."""
        try:
            agents = self._source.agents()
        except PycniError:
            return  # the graph tells why
        for agent in agents:
            with self._lock:
                if not self._listeners or agent.node in self._sockets or agent.over_there:
                    continue
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self._sockets[agent.node] = sock
            threading.Thread(target=self._listen, args=(agent, sock), daemon=True).start()

    def counted(self) -> dict[str, int]:
        """Packets told of, by ``pod:NS/NAME``: the one whose policy denies them."""
        with self._lock:
            return dict(self._counted)

    def since(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """The latest packets after this number, and the number of the last."""
        with self._lock:
            return self._number, [row for row in self._recent if row["number"] > number]

    def _listen(self, agent: Agent, sock: socket.socket) -> None:
        """Until the agent ends or nobody wants to hear any more; what is no answer is nobody's here."""
        try:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                sock.settimeout(_CONNECT_S)
                sock.connect(agent.path)
                sock.sendall(b"GET /drops HTTP/1.1\r\nHost: localhost\r\n\r\n")
                sock.settimeout(None)
                with sock.makefile("rb") as file:
                    for line in _lines(file):
                        row: dict[str, Any] = msgspec.json.decode(line)
                        if "policy" in row:
                            with self._lock:
                                self._keep(row)
        finally:
            with self._lock:
                if self._sockets.get(agent.node) is sock:
                    del self._sockets[agent.node]
                sock.close()

    def _keep(self, row: Mapping[str, Any]) -> None:
        side = "destination_pod" if row.get("direction") == "ingress" else "source_pod"
        pod = f"pod:{row.get(side, '')}"
        self._counted[pod] = self._counted.get(pod, 0) + 1
        self._number += 1
        self._recent.append({**row, "number": self._number, "at": pod})


def _lines(file: Any) -> Iterator[bytes]:
    """The body's lines; none when the answer is not 200."""
    if file.readline().split(b" ")[1:2] != [b"200"]:
        return
    for line in file:
        if line in {b"\r\n", b"\n"}:
            break
    yield from file
