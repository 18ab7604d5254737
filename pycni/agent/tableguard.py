"""Notices that somebody took our nftables table away (``nft flush ruleset``, a firewall that is loaded anew).

The periodic look comes every few minutes only, because reading everything back is dear; services must not be gone that
long. Life: every transaction on this node, our own too, is one wake-up; a little later the *names* of the tables are
listed, which costs a fraction of a millisecond; a table of ours that the last pass left there and that is gone calls
for a full pass at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from pycni.errors import KernelError
from pycni.kernel import nft_names
from pycni.kernel.nft_generation import NftGeneration

log = logging.getLogger("pycni.proxy")
T = TypeVar("T")

TABLE = "pycni_proxy"
SETTLE_S = 0.1
"""From a transaction to looking at the tables: transactions come in bursts."""


class Work(Protocol):
    """Runs a blocking call on the worker thread."""

    def __call__(self, job: Callable[[], T]) -> Awaitable[T]:
        """Its result, or what it raises."""
        ...


class TableGuard:
    """One per component, on its event loop."""

    def __init__(self, vanished: Callable[[], None]) -> None:
        self._vanished = vanished
        self._changed = asyncio.Event()
        self.expected = False
        """Whether the last pass left the table in the kernel."""

    async def run(self, exits: AsyncExitStack, work: Work) -> None:
        """Watch for ever; returns at once on a kernel without nftables."""
        try:
            watch = await work(NftGeneration)
        except KernelError as error:
            log.debug("nftables is not watched: %s", error)
            return
        exits.callback(watch.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(watch, self._note, watch)
        exits.callback(loop.remove_reader, watch)
        while True:
            present = any(name == TABLE for _, name in await work(nft_names.tables))
            if self.expected and not present:
                self.expected = False
                log.warning("services: somebody removed the table %s; it is made anew", TABLE)
                self._vanished()
            await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()

    def _note(self, watch: NftGeneration) -> None:
        if watch.drain():
            self._changed.set()
