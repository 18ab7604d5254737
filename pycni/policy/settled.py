"""How far the kernel is with what a folder of manifests says, for who changed something there and wants to go on.

Life: a pass asks ``seen`` before it takes what changed and says ``reached`` when that is in the kernel. The folder's
number comes into the store behind everything it counts, so a number that was seen has all of its change in the pass.

    GET /policies/settled?generation=N[&patience=S]     200 {"generation": M} once M >= N; 503 with why not after S
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec

from pycni.agent.httpd import AsyncHandler, Response
from pycni.sources.manifests import GENERATION, MANIFESTS
from pycni.store import Current

PATIENCE_S = 10.0
MOST_S = 60.0


class Settled:
    """One per agent, made on its event loop's thread."""

    def __init__(self, objects: Current, trouble: Callable[[], str] = lambda: "") -> None:
        """``trouble``: why the kernel is not as the policies say."""
        self._objects = objects
        self._trouble = trouble
        self._number = 0
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def number(self) -> int:
        """Of the last change that is in the kernel; 0 when nobody numbers changes."""
        return self._number

    def seen(self) -> int:
        """Of the last change that is in the store. Any thread."""
        number: int = self._objects.of(GENERATION).get(MANIFESTS, 0)
        return number

    def reached(self, number: int) -> None:
        """A pass that began after ``seen`` gave this number has succeeded. Any thread."""
        if number == self._number:
            return
        self._number = number
        for event, loop in list(self._waiting.items()):
            loop.call_soon_threadsafe(event.set)

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {"/policies/settled": self._answer}

    async def _answer(self, query: str) -> Response:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        wanted = asked.get("generation", "0")
        try:
            patience = float(asked.get("patience", PATIENCE_S))
        except ValueError:
            patience = -1.0
        if not wanted.isdecimal() or not 0 <= patience <= MOST_S:
            text = f"generation {wanted!r} or patience: expected numbers, of seconds 0..{MOST_S:g}\n"
            return Response(400, body=text)
        if not await self._wait(int(wanted), patience):
            why = self._trouble() or f"the store is at {self.seen()}, the kernel at {self._number}"
            return Response(503, body=f"change {wanted} is not in the kernel after {patience:g} s: {why}\n")
        return Response(200, "application/json", msgspec.json.encode({"generation": self._number}).decode())

    async def _wait(self, wanted: int, patience: float) -> bool:
        event = asyncio.Event()
        self._waiting[event] = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                while self._number < wanted:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return self._number >= wanted
        finally:
            del self._waiting[event]
        return True
