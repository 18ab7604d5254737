"""The pods' side of the kernel: changed by CNI calls, kept as it was made in between.

Life: CNI calls attach and detach pods through ``Pods``. ``PodKeeper`` runs beside them: once the node's subnet is
known it has every recorded attachment taken over from an earlier agent and repaired (bridges, routes, nft rows), at
once when the kernel tells of a change of our nft tables or that a pod's route went, and from time to time. A repair
compares all attachments on record with all in the kernel, so it needs a moment without an ADD or DEL in the middle of
both: it waits for one, and calls that come meanwhile wait for it, some ten milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from pycni.agent.cni_ports import Endpoints, Interface
from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.attach.tables import PODS, SPOOF
from pycni.errors import PycniError
from pycni.kernel import podgateways, podmtu
from pycni.kernel.nft_watch import NftWatch
from pycni.kernel.pod import PodDriver
from pycni.kernel.podroutewatch import RouteWatch
from pycni.model.endpoint import Owner
from pycni.model.podnet import PodNetwork
from pycni.reconcile.runner import Observer, Runner

log = logging.getLogger("pycni.pods")

RESYNC_S = 60.0
MIN_GAP_S = 2.0
"""Least time between two repairs: our own changes of the tables are announced too."""

QUIET_WAIT_S = 2.0
"""How long a repair waits for a moment without calls; they go on meanwhile."""

PODNET_POLL_S = 0.2

SETTLE_S = 0.1
"""From a route's going to asking whose it was: a pod that is detached right now is none any more then."""


class NotQuietError(PycniError):
    """Calls were under way all the time; the repair comes later."""

    transient = True


class Pods:
    """``cni_ports.PodDriver`` around the kernel's driver. Any thread."""

    def __init__(self, driver: PodDriver, endpoints: Endpoints) -> None:
        self._driver = driver
        self._endpoints = endpoints
        self._quiet = threading.Condition()
        self._calls = 0
        self._sweep_after_removal: PodNetwork | None = None

    def attach(self, plan: AttachPlan, netns_fd: int) -> AttachedLinks:
        """See ``cni_ports.PodDriver``."""
        with self._call():
            return self._driver.attach(plan, netns_fd)

    def detach(
        self,
        owner: Owner,
        netns_fd: int | None,
        addresses: Iterable[Interface],  # noqa: ARG002 - see below
        on_gone: Callable[[], None] | None,
    ) -> bool:
        """See ``cni_ports.PodDriver``. The kernel's driver knows the addresses itself."""

        def done(error: PycniError | None) -> None:
            if error is not None:
                # The pod is cut off and its link is gone; the next repair clears the rows away.
                log.error("%s: rows are left: %s", owner, error)
            try:
                self._gone()
            except PycniError as exc:
                log.warning("gateways of an earlier subnet: %s; looked at again later", exc)
            if on_gone is not None:
                on_gone()

        with self._call():
            return self._driver.detach(owner, netns_fd, done)

    def hurry(self) -> None:
        """See ``cni_ports.PodDriver``."""
        self._driver.hurry()

    def check(self, plan: AttachPlan, netns_fd: int) -> Sequence[str]:
        """See ``cni_ports.PodDriver``."""
        return self._driver.check(plan, netns_fd)

    def tables(self, plans: Iterable[AttachPlan]) -> tuple[list[str], list[str]]:
        """The nft tables of pods, as they are to be for these plans and as they are. Raises KernelError."""
        return self._driver.tables(plans)

    def need(self, gone: Collection[bytes | int]) -> bool:
        """Whether an attached pod needs a route that went."""
        return self._driver.need(gone)

    def resync(self, plans: Iterable[AttachPlan]) -> list[str]:
        """Take over and repair attachments that are still on record. Raises NotQuietError, KernelError."""
        with self._quiet:
            if not self._quiet.wait_for(lambda: not self._calls, QUIET_WAIT_S):
                raise NotQuietError(f"CNI calls were under way for {QUIET_WAIT_S:g} s without a pause")
            # A DEL marks its endpoint before it comes to us: what it has removed must not be put back.
            here = [plan for plan in plans if self._ready(plan.owner)]
            for line in podmtu.follow(self._places(here)):
                log.info("%s", line)
            return self._driver.resync(here)

    def sweep(self, podnet: PodNetwork | None) -> list[str]:
        """Remove what an earlier subnet of this node left on bridges no pod uses. Raises NotQuietError, KernelError."""
        if podnet is None:
            return []
        with self._quiet:
            if not self._quiet.wait_for(lambda: not self._calls, QUIET_WAIT_S):
                raise NotQuietError(f"CNI calls were under way for {QUIET_WAIT_S:g} s without a pause")
            removed, waiting = podgateways.sweep_here(podnet.networks, podnet.subnets)
        self._sweep_after_removal = podnet if waiting else None
        return removed

    def _gone(self) -> None:
        """A pod's link is gone: the last one of an earlier subnet may have been it."""
        podnet = self._sweep_after_removal
        if podnet is not None:
            for line in podgateways.sweep_here(podnet.networks, podnet.subnets).removed:
                log.info("%s", line)

    def _places(self, plans: Iterable[AttachPlan]) -> list[podmtu.PodAt]:
        """Where the pods of these plans are."""
        found = ((plan, self._endpoints.get(plan.owner)) for plan in plans)
        return [
            podmtu.PodAt(plan, endpoint.netns, endpoint.netns_inode)
            for plan, endpoint in found
            if endpoint is not None and endpoint.netns
        ]

    def _ready(self, owner: Owner) -> bool:
        endpoint = self._endpoints.get(owner)
        return endpoint is not None and endpoint.state == "ready"

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._quiet:
            self._calls += 1
        try:
            yield
        finally:
            with self._quiet:
                self._calls -= 1
                self._quiet.notify_all()


class PodKeeper:
    """Has the kernel's side of pods taken over and repaired."""

    def __init__(
        self,
        adopt: Callable[[], Sequence[str]],
        podnet: Callable[[], PodNetwork | None],
        observer: Observer,
        *,
        need: Callable[[Collection[bytes | int]], bool] = lambda _gone: False,
        resync_s: float = RESYNC_S,
    ) -> None:
        """``adopt`` repairs and says what; ``podnet`` None: not known yet, nothing is judged.

        ``need``: whether routes that went are some pod's.
        """
        self._adopt = adopt
        self._need = need
        self._podnet = podnet
        self._runner = Runner("pods", self._pass, resync_s=resync_s, min_gap_s=MIN_GAP_S, observer=observer)
        self.repairs = 0
        """Things put back so far."""

    async def run(self) -> NoReturn:
        """For ever."""
        loop = asyncio.get_running_loop()
        with ExitStack() as exits:
            watch = NftWatch([PODS[1], SPOOF[1]])
            exits.callback(watch.close)
            routes = RouteWatch()
            exits.callback(routes.close)

            def changed() -> None:
                if watch.drain():
                    self._runner.poke()

            def went() -> None:
                loop.call_later(SETTLE_S, self._judge, routes.drain())

            for source, react in ((watch, changed), (routes, went)):
                loop.add_reader(source, react)
                exits.callback(loop.remove_reader, source)
            while self._podnet() is None:  # noqa: ASYNC110 - it is read from threads and has no event
                await asyncio.sleep(PODNET_POLL_S)
            await self._runner.run()

    def poke(self) -> None:
        """The pod network has changed: look at all pods now. To be called on the event loop."""
        self._runner.poke()

    def _judge(self, gone: Collection[bytes | int]) -> None:
        if self._need(gone):
            log.info("routes to pods went: looking at all of them")
            self._runner.poke()

    async def _pass(self) -> None:
        if self._podnet() is None:
            return
        try:
            repaired = await asyncio.to_thread(self._adopt)
        except NotQuietError as exc:
            log.debug("%s", exc)
            asyncio.get_running_loop().call_later(MIN_GAP_S, self._runner.poke)
            return
        self.repairs += len(repaired)
        for line in repaired:
            log.warning("repaired: %s", line)
