"""Learned routes in the kernel, kept there by the agent: exabgp itself knows no kernel.

Life: ``apply`` makes the routes under protocol ``PROTOCOL`` those that are wanted, on a thread of its own; ``watch``
begins to listen to the kernel and says when something happened after which they may be missing. Everything is done in
the network namespace of the thread that made this object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pycni.errors import KernelError
from pycni.kernel.hops import Destination, HopRoutes, Refused
from pycni.kernel.monitor import Event, Lost, Monitor
from pycni.wire import rtnl
from pycni_bgp.model import Prefix

log = logging.getLogger("pycni.bgp")

PROTOCOL = 113
"""Of routes learned by BGP; 112 is the fabric's."""
CHANGED_S = 0.3
"""From a change in the kernel to telling of it: that goes on for a moment."""
SHOWN = 3
"""Refused routes that are named."""

Listen = Callable[[Callable[[Sequence[Event | Lost]], None]], Monitor]


class KernelRoutes:
    """On one event loop."""

    def __init__(
        self,
        make: Callable[[], HopRoutes] = lambda: HopRoutes(PROTOCOL),
        listen: Listen = Monitor,
    ) -> None:
        """``make`` and ``listen``: for a node that is not where the agent is."""
        self._make, self._listen = make, listen
        self._worker = ThreadPoolExecutor(1, "bgp")
        self._routes: HopRoutes | None = None
        self._monitor: Monitor | None = None
        self._waking: asyncio.TimerHandle | None = None
        self.refused = ""
        """What could not be made, and why; "" when all is there."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` when routes of ours may be missing, until ``close``."""

        def wake() -> None:
            self._waking = None
            changed()

        def deliver(events: Sequence[Event | Lost]) -> None:
            if self._waking is None and any(map(_matters, events)):
                self._waking = asyncio.get_running_loop().call_later(CHANGED_S, wake)

        self._monitor = self._listen(deliver)

    def close(self) -> None:
        """Stop listening; routes stay."""
        if self._monitor is not None:
            self._monitor.close()
        if self._waking is not None:
            self._waking.cancel()
        if self._routes is not None:
            self._routes.close()
        self._worker.shutdown()

    async def apply(self, wanted: Mapping[Prefix, tuple[bytes, ...]], *, keep: bool) -> None:
        """Make these routes; ``keep``: leave those that are there besides. ``refused`` says what could not be."""
        loop = asyncio.get_running_loop()
        try:
            refused = await loop.run_in_executor(self._worker, self._apply, wanted, keep)
        except KernelError as error:
            self.refused = str(error)
            return
        found = "; ".join(str(item.error) for item in refused[:SHOWN])
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        if found and found + more != self.refused:
            log.warning("learned routes: %s%s", found, more)
        self.refused = found + more

    def _apply(self, wanted: Mapping[Prefix, tuple[bytes, ...]], keep: bool) -> list[Refused]:
        if self._routes is None:
            self._routes = self._make()
        routes = {Destination(*destination): hops for destination, hops in wanted.items()}
        there = self._routes.read()
        return self._routes.apply({**there, **routes} if keep else routes)


def _matters(event: Event | Lost) -> bool:
    """Routes on an interface that goes down vanish without a word, so links and addresses count too."""
    if isinstance(event, Lost):
        return True
    if isinstance(event.info, rtnl.RouteInfo):
        return event.removed and event.info.protocol == PROTOCOL
    return not isinstance(event.info, rtnl.NeighbourInfo)
