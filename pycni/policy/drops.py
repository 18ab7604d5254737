"""Live denials from all sources in the kernel to whoever listens.

Life: the first listener opens the sources (``base.DropReader``), the last one that goes closes them, so nothing is told
to nobody and a group of the kernel's packet log is free for other programs meanwhile. What a source delivers goes into
every listener's queue. A queue is bounded: a listener that does not keep up is told how many it missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pycni.errors import PycniError
from pycni.policy.base import Drop, DropReader

log = logging.getLogger("pycni.policy")
T = TypeVar("T")

QUEUE = 1024
"""Drops that wait for one listener."""

Open = Callable[[], Sequence[DropReader]]
"""Opens all sources; in the node's network namespace. Raises KernelError."""


class Work(Protocol):
    """Runs a blocking call on the thread that owns the engine, in the node's network namespace."""

    def __call__(self, job: Callable[[], T], /) -> Awaitable[T]:
        """What the call returns."""


class News(NamedTuple):
    """What a listener gets."""

    drops: Sequence[Drop]
    lost: int = 0
    """How many more there were since the last news: not told by the kernel, or too many for this listener."""
    trouble: str = ""
    """A source that cannot be read any more."""


class _Listener:
    def __init__(self) -> None:
        self.queue: deque[Drop] = deque()
        self.lost = 0
        self.troubles: list[str] = []
        self.woken = asyncio.Event()

    def put(self, drops: Sequence[Drop], lost: int) -> None:
        room = max(0, QUEUE - len(self.queue))
        self.queue.extend(drops[:room])
        self.lost += lost + max(0, len(drops) - room)
        self.woken.set()


class DropHub:
    """One per agent, on its event loop."""

    def __init__(self, opened: Open, work: Work) -> None:
        self._open = opened
        self._work = work
        self._readers: dict[DropReader, int] = {}
        """With what each had lost when last looked at."""
        self._listeners: set[_Listener] = set()
        self._opening = asyncio.Lock()

    async def listen(self) -> AsyncGenerator[News, None]:
        """News for one listener, for ever; at once one without anything, when it is being listened.

        Raises KernelError when no source can be opened.
        """
        listener = _Listener()
        async with self._opening:
            self._listeners.add(listener)
            if len(self._listeners) == 1:
                try:
                    await self._start()
                except BaseException:
                    self._listeners.discard(listener)
                    raise
        try:
            yield News(())
            while True:
                await listener.woken.wait()
                listener.woken.clear()
                for trouble in listener.troubles:
                    yield News((), 0, trouble)
                listener.troubles.clear()
                drops, lost = list(listener.queue), listener.lost
                listener.queue.clear()
                listener.lost = 0
                if drops or lost:
                    yield News(drops, lost)
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self.close()

    def close(self) -> None:
        """Close the sources; whoever listens hears nothing more."""
        loop = asyncio.get_running_loop()
        readers, self._readers = self._readers, {}
        for reader in readers:
            loop.remove_reader(reader.fileno())
            reader.close()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for reader in await self._work(self._open):
            self._readers[reader] = reader.lost
            loop.add_reader(reader.fileno(), partial(self._readable, reader))

    def _readable(self, reader: DropReader) -> None:
        try:
            drops, told = reader.read(), reader.lost
        except PycniError as error:
            log.warning("drops: %s", error)
            asyncio.get_running_loop().remove_reader(reader.fileno())
            reader.close()
            del self._readers[reader]
            for listener in self._listeners:
                listener.troubles.append(str(error))
                listener.woken.set()
            return
        lost, self._readers[reader] = told - self._readers[reader], told
        if drops or lost:
            for listener in self._listeners:
                listener.put(drops, lost)
