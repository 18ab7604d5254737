"""Notices that somebody took an nftables table of ours away (``nft flush ruleset``, a firewall that is loaded anew).

The periodic look comes every few minutes only, because reading everything back is dear; services and policies must not
be gone that long. Life: every transaction on this node, our own too, is one wake-up; a little later the *names* of the
tables are listed, which costs a fraction of a millisecond; a table of ours that the last pass left there and that is
gone calls for a full pass at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from pycni.errors import KernelError
from pycni.kernel.nft_generation import NftGeneration
from pycni.kernel.nft_names import TableNames

log = logging.getLogger("pycni.agent")
T = TypeVar("T")

SETTLE_S = 0.1
"""From a transaction to looking at the tables: transactions come in bursts."""


class Work(Protocol):
    """Runs a blocking call on the worker thread."""

    def __call__(self, job: Callable[[], T]) -> Awaitable[T]:
        """Its result, or what it raises."""
        ...


class _Opening:
    """A watch that is opened on another thread and closed even when nobody waits for that any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: NftGeneration | None = None
        self._closed = False

    def open(self) -> NftGeneration:
        """The watch. Raises KernelError."""
        with self._lock:
            if self._closed:
                raise KernelError(errno.ECANCELED, "watch nftables' generation")
            self._watch = NftGeneration()
            return self._watch

    def close(self) -> None:
        """Now, or never opened."""
        with self._lock:
            self._closed = True
            if self._watch is not None:
                self._watch.close()


class TableGuard:
    """One per component, on its event loop."""

    def __init__(self, what: str, table: str, vanished: Callable[[], None]) -> None:
        """``what``: what the table has, for the log; ``vanished`` is called when it went."""
        self._what = what
        self._table = table
        self._vanished = vanished
        self._changed = asyncio.Event()
        self.expected = False
        """Whether the last pass left the table in the kernel."""

    async def run(self, exits: AsyncExitStack, work: Work) -> None:
        """Watch for ever; returns at once on a kernel without nftables."""
        opening = _Opening()
        exits.callback(opening.close)
        try:
            watch = await work(opening.open)
        except KernelError as error:
            log.debug("nftables is not watched: %s", error)
            return
        names = TableNames()
        exits.push_async_callback(work, names.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(watch, self._note, watch)
        exits.callback(loop.remove_reader, watch)
        while True:
            present = any(name == self._table for _, name in await work(names.read))
            if self.expected and not present:
                self.expected = False
                log.warning("%s: somebody removed the table %s; it is made anew", self._what, self._table)
                self._vanished()
            await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()

    def _note(self, watch: NftGeneration) -> None:
        if watch.drain():
            self._changed.set()
