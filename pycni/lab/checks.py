"""What a prober tries: a check, how it stands while it is under way, and what its answer says."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pycni.model.family import Family


class Check(NamedTuple):
    """One thing to try. ``source`` and ``target`` are names of hosts."""

    source: str
    target: str
    family: Family
    kind: str


class Pending:
    """A check under way."""

    __slots__ = ("check", "deadline", "expected", "number", "overdue", "received", "resend", "send", "sock")

    def __init__(self, check: Check, number: int, expected: bytes) -> None:
        self.check = check
        self.number = number
        self.expected = expected
        """What has to come back."""
        self.send: Callable[[], object] | None = None
        self.sock: socket.socket | None = None
        self.received = b""
        self.overdue = False
        self.deadline = 0.0
        self.resend = 0.0


def drain(sock: socket.socket) -> Iterable[tuple[bytes, Any]]:
    """Everything a datagram socket holds."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recvfrom(65535)


def difference(sent: bytes, received: bytes) -> str:
    """Empty when equal, else where they differ."""
    if sent == received:
        return ""
    if len(sent) != len(received):
        return f"{len(received)} bytes came back of {len(sent)}"
    position = next(index for index, (a, b) in enumerate(zip(sent, received, strict=True)) if a != b)
    return f"answer differs from what was sent at byte {position} of {len(sent)}"
