"""One watch of an agent for somebody who traces: lines of JSON until it is over, within bounds.

Life: ``open_watch`` takes one of few places and opens what has to be open; ``lines`` gives the first line at once and
one for every report; ``close`` leaves nothing behind, whoever ends it. Blocking; each watch has one thread at a time.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator

import msgspec

from pycni.errors import PycniError
from pycni.tracing.eyes import NodeEyes, Report, Watching
from pycni.tracing.remote import clock
from pycni.tracing.speech import Line, Watch, line

WATCHES = 4
"""At the same time, per agent."""
LONGEST_S = 300.0
FRAMES = 20000
BYTES = 8 << 20
"""Of frames in one watch."""
TICK_S = 0.2
"""How soon a watch that sees nothing finds out that nobody wants it any more."""


class RefusedError(PycniError):
    """Not done, and why. ``status``: as in HTTP."""

    def __init__(self, status: int, text: str, errno: int = 0) -> None:
        self.status = status
        self.errno = errno
        """The kernel's, where it is the kernel that refuses."""
        super().__init__(text)


class Places:
    """Who may watch at the same time."""

    def __init__(self, count: int = WATCHES) -> None:
        self._count = count
        self._free = threading.BoundedSemaphore(count)
        self.open = 0

    def take(self) -> None:
        """Raises RefusedError when all are taken."""
        if not self._free.acquire(blocking=False):
            raise RefusedError(429, f"{self._count} watches are open already: try again")
        self.open += 1

    def give_back(self) -> None:
        """Once per ``take``."""
        self.open -= 1
        self._free.release()


class Running:
    """A watch that is open."""

    def __init__(self, places: Places, node: NodeEyes, asked: Watch, keep: int = 0) -> None:
        """``keep``: bytes of each frame that are told, the others are zeros; 0: all of them.

        Raises RefusedError, KernelError, OSError.
        """
        self._keep = keep
        self._lock = threading.Lock()
        self._closed = False
        self._places = places
        seconds = min(max(asked.order.seconds, 0.0), LONGEST_S)
        places.take()
        try:
            self._watching: Watching = node.watch(msgspec.structs.replace(asked.order, seconds=seconds))
        except BaseException:
            places.give_back()
            raise
        self.begun = False
        """Whether anybody has asked for a line."""
        self._name = node.name
        self._end = time.monotonic() + seconds
        self._lines: Iterator[bytes] | None = None

    def step(self, gone: int = -1) -> bytes | None:
        """The next line; b"" when there was none for a while, None at the end. ``gone``: ends it when readable."""
        with self._lock:
            self.begun = True
            if self._closed:
                return None
            if self._lines is None:
                self._lines = self._all(gone)
            return next(self._lines, None)

    def close(self) -> None:
        """Harmless twice. Waits for a ``step`` under way, shortly."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._watching.close()
                finally:
                    self._places.give_back()

    def _all(self, gone: int) -> Iterator[bytes]:
        yield _encoded(Line(ready=True, node=self._name, clock=clock(), time_ns=time.time_ns()))
        poll = select.poll()
        for fd in {*self._watching.filenos(), *([gone] if gone >= 0 else [])}:
            poll.register(fd, select.POLLIN)
        frames = size = 0
        while (left := self._end - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(min(left, TICK_S) * 1000)]
            if gone in ready:
                return
            if not ready:
                yield b""
                continue
            try:
                report = self._watching.drain()
            except (PycniError, OSError) as error:
                yield _encoded(Line(end="error", trouble=str(error)))
                return
            if report.frames or report.notes:
                yield line(self._masked(report))
            frames += len(report.frames) + len(report.notes)
            size += sum(len(frame.data) for frame in report.frames)
            if frames > FRAMES or size > BYTES:
                yield _encoded(Line(end=f"more than {FRAMES} frames or {BYTES} bytes"))
                return
        yield _encoded(Line(end="time"))

    def _masked(self, report: Report) -> Report:
        if not self._keep:
            return report
        frames = (
            frame._replace(data=frame.data[: self._keep] + bytes(max(len(frame.data) - self._keep, 0)))
            for frame in report.frames
        )
        return report._replace(frames=tuple(frames))


def _encoded(value: Line) -> bytes:
    return msgspec.json.encode(value) + b"\n"
