"""Nodes that are asked through their agents: everything ``local`` does here is done there, and told.

Life: ``RemoteNode`` is made by ``cluster`` for a node whose agent answers; a watch is a stream of lines that ends with
the connection, so nothing is left over there when this process goes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from pycni.closing import Closing
from pycni.errors import ConfigError, KernelError
from pycni.trace.model import Flow
from pycni.tracing import speech
from pycni.tracing.ask import AskError, Door
from pycni.tracing.eyes import Launched, Order, Report
from pycni.tracing.speech import Line, Send, Watch

BOOT_ID = "/proc/sys/kernel/random/boot_id"
TIRED_S = 0.01
SPARE_S = 20.0
"""A watch ends with its connection; its time is only for a client that neither goes nor stays."""


class RemoteNode:
    """See ``eyes.NodeEyes``."""

    def __init__(self, name: str, door: Door, ends: Sequence[str] = ()) -> None:
        """``ends``: what the trace is about; () for everything."""
        self.name = name
        self._door, self._ends = door, tuple(ends)
        self.apart = False
        """Whether its clock is another one than ours; known once it is watched."""

    def watch(self, order: Order) -> RemoteWatching:
        """See ``eyes.NodeEyes``. Raises AskError."""
        stream = self._door.lines(speech.WATCH, Watch(order=patient(order), ends=self._ends))
        try:
            self.apart, ahead = begun(stream.line(), self.name)
        except BaseException:
            stream.close()
            raise
        return RemoteWatching(self.name, stream, ahead)

    def send(self, space: str, flow: Flow, token: int, size: int = 0) -> Launched:
        """See ``eyes.NodeEyes``. Raises AskError, OSError."""
        try:
            raw = self._door.post(speech.SEND, Send(space=space, flow=flow, token=token, size=size))
        except AskError as error:
            if error.errno:
                raise OSError(error.errno, str(error)) from error
            raise
        found: Launched = speech.read(raw, Launched)
        return found


class Lines(Protocol):
    """Lines as they come."""

    @property
    def over(self) -> bool:
        """Whether there are no more."""

    def fileno(self) -> int:
        """To poll for reading."""

    def ready(self) -> Sequence[bytes]:
        """Those that are there; never waits. Raises PycniError."""

    def close(self) -> None:
        """Want no more."""


class RemoteWatching(Closing):
    """See ``eyes.Watching``."""

    def __init__(self, name: str, stream: Lines, ahead_ns: int) -> None:
        self._name, self._stream, self._ahead = name, stream, ahead_ns
        self._ended = False

    def filenos(self) -> Sequence[int]:
        """See ``eyes.Watching``."""
        return (self._stream.fileno(),)

    def drain(self) -> Report:
        """See ``eyes.Watching``. Raises AskError, KernelError."""
        lines = [_line(raw, self._name) for raw in self._stream.ready()]
        for item in lines:
            if item.trouble:
                raise KernelError(5, "watch", self._name, item.trouble)
            self._ended = self._ended or bool(item.end)
        if self._stream.over and not self._ended:
            raise AskError(f"{self._name} does not answer any more")
        if self._ended and not lines:
            time.sleep(TIRED_S)  # a connection that is over is readable for ever
        return Report(
            tuple(
                frame._replace(node=self._name, time_ns=frame.time_ns - self._ahead)
                for item in lines
                for frame in item.frames
            ),
            tuple(speech.moved(note, self._name, self._ahead) for item in lines for note in item.notes),
        )

    def close(self) -> None:
        """See ``eyes.Watching``."""
        self._stream.close()


def patient(order: Order) -> Order:
    """The order as it is given: the time until all nodes watch and the probe is sent counts over there, too."""
    return msgspec.structs.replace(order, seconds=order.seconds + SPARE_S)


def begun(raw: bytes, name: str) -> tuple[bool, int]:
    """From a watch's first line: whether that is another clock, and by how many nanoseconds it is ahead.

    Raises AskError.
    """
    first = _line(raw, name)
    if not first.ready:
        raise AskError(f"{name} does not begin to watch: {first.trouble or first.end}")
    apart = first.clock != clock()
    return apart, first.time_ns - time.time_ns() if apart else 0


def clock() -> str:
    """Which clock this machine goes by: that of its kernel's life."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _line(raw: bytes, name: str) -> Line:
    try:
        found: Line = speech.read(raw, Line)
    except ConfigError as exc:
        raise AskError(f"{name}: a line that cannot be read: {exc.reason}") from exc
    return found
