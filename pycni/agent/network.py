"""The network component: this node's part of the pod network, kept in the kernel.

Life: what it knows comes from four sides: the underlay interface (looked at again when the kernel announces a
change), the net-conf, our own lease, everybody's leases. ``network_pass`` turns that into the kernel's state whenever
something changed; events only mark what is to be looked at. A second task takes the lease and keeps what it publishes
true.

While etcd is away a restarted agent lives on the lease it remembers until that ends, and nothing in the kernel is
touched before the leases were listed. When the lease has become another node's, the addresses of our pods have too:
``run`` raises LeaseLostError and the process ends with it, as flannel's does; the next life takes another subnet.

Kernel work happens on one worker thread, in the network namespace of the thread that runs the loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from ipaddress import IPv4Network, IPv6Network
from typing import NoReturn, Protocol, TypeVar

import msgspec

from pycni.agent import memory
from pycni.agent.drift import Concern
from pycni.agent.fabric_sync import FabricSync
from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.network_course import CourseKeeper
from pycni.agent.network_pass import FindUnderlay, NetworkPass
from pycni.agent.network_report import NetworkReport
from pycni.agent.settings import Settings
from pycni.agent.underlay import detect
from pycni.agent.underlay_change import SteadyUnderlay
from pycni.agent.vtep_probe import VtepProber
from pycni.backends.change import LINGER_S, PATIENCE_S
from pycni.backends.masq import TABLE
from pycni.errors import KernelError
from pycni.kernel import probe_address
from pycni.kernel.monitor import Event, Lost, Monitor
from pycni.kernel.nft_watch import NftWatch
from pycni.model.fabric import FabricState
from pycni.model.lease import LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.podnet import PodNetwork
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, eternal, on_loop
from pycni.sources.leases import LeaseLostError
from pycni.store import Store
from pycni.wire.lease import HeldLease

log = logging.getLogger("pycni.network")
T = TypeVar("T")

RESYNC_S = 30.0
DRIFT_GAP_S = 0.5
"""Least time between repairs: how busy we get against somebody who keeps undoing them."""
FIREWALL_LOOK_S = 0.25
"""From a change of our nftables table, often our own, to looking at it."""
UNDERLAY_RETRY_S = 1.0


class Source(Protocol):
    """Where net-conf and leases come from (``sources.leases.LeaseSource``)."""

    waiting: str
    expected: str
    on_held: Callable[[HeldLease], None]

    async def netconf(self) -> NetConf:
        """The net-conf; waits for a valid one."""
        ...

    async def acquire(
        self,
        attrs: LeaseAttrs,
        previous: tuple[IPv4Network | None, IPv6Network | None],
        remembered: HeldLease | None,
    ) -> HeldLease:
        """Our lease; waits for it."""
        ...

    async def publish(self, attrs: LeaseAttrs) -> HeldLease:
        """Change what our lease says; waits until it is written."""
        ...

    async def run(self, store: Store) -> NoReturn:
        """Follow everything into the store and keep our lease."""
        ...


class NetworkComponent:
    """One per agent. ``podnet`` and ``not_ready_reason`` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        store: Store,
        *,
        report: NetworkReport | None = None,
        find_underlay: FindUnderlay = detect,
        readdressed: Callable[[], None] = lambda: None,
        resync_s: float = RESYNC_S,
        patience_s: float = PATIENCE_S,
        linger_s: float = LINGER_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives seconds since the epoch, by which leases end. ``patience_s``, ``linger_s``: backends.change.

        ``readdressed`` is called on the event loop when the underlay has lost an address.
        """
        self._settings = settings
        self._source = source
        self._store = store
        self._report = report or NetworkReport()
        self._find_underlay = find_underlay
        self._readdressed = readdressed
        self._resync_s = resync_s
        self._course = CourseKeeper(follow=settings.follow_backend, patience_s=patience_s, linger_s=linger_s)
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, "network")
        self._pass: NetworkPass | None = None
        self._runner = Runner(
            "network",
            self._reconcile,
            resync_s=resync_s,
            backoff=Backoff(0.1, 10.0),
            observer=self._report,
        )
        self._last_repair = float("-inf")
        self._repair: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._podnet: tuple[PodNetwork, float | None] | None = None
        self.on_podnet: Callable[[], None] = lambda: None
        """Called on the event loop when the pod network is another one."""
        self._report.not_ready = self.not_ready_reason
        self.probes = (
            VtepProber(settings.vtep_probe_port, self._switch_checksum, localise=self._localise)
            if settings.vtep_probe_port
            else None
        )
        """What is known of peers through the pod network; None when probing is off."""
        if self.probes is not None:
            self._report.watch(self.probes)

    # --- for the CNI side, any thread -----------------------------------------------------------------------

    def podnet(self) -> PodNetwork | None:
        """How pods are attached; None while they cannot be."""
        known = self._podnet
        return None if known is None or self._ended(known[1]) else known[0]

    def not_ready_reason(self) -> str:
        """Why pods cannot be attached; "" when they can."""
        known = self._podnet
        waiting = self._source.waiting
        if known is None:
            trouble = self._pass.trouble if self._pass is not None else ""
            return f"the network is not ready: {trouble or waiting or 'starting'}"
        if self._ended(known[1]):
            return f"this node's lease has ended and is not renewed: {waiting or 'no answer from etcd'}"
        return ""

    # --- for pycnictl, on the event loop -----------------------------------------------------------------------

    @property
    def known(self) -> NetworkPass | None:
        """What the passes know and did last; None before ``run``."""
        return self._pass

    @property
    def waiting(self) -> str:
        """What keeps net-conf and leases from being followed; "" when nothing does."""
        return self._source.waiting

    async def fabric(self) -> tuple[FabricState, FabricState] | None:
        """The fabric as wanted and as the kernel has it; None while nothing is wanted. Raises KernelError."""
        known = self._pass
        desired = known.desired if known is not None else None
        if known is None or desired is None:
            return None
        return desired, await self._work(lambda: known.look(desired))

    def routes(self) -> dict[str, AsyncHandler]:
        """What the agent's control socket answers."""
        return {"/wireguard": self._show_key, "/wireguard/rotate": self._rotate_key}

    async def _show_key(self, _query: str) -> Response:
        found = self._pass.keys.status if self._pass is not None else None
        if found is None:
            return Response(
                503, body="no WireGuard key is in use: the network is of another type, or not known yet\n"
            )
        return Response(200, "application/json", msgspec.json.encode(found).decode() + "\n")

    async def _rotate_key(self, query: str) -> Response:
        """Begin to change the key; the answer is as before."""
        answer = await self._show_key(query)
        if answer.status == 200:
            self._known().keys.ask()
            self._runner.poke()
        return answer

    def _ended(self, expires: float | None) -> bool:
        return expires is not None and expires <= self._clock()

    # --- tasks ----------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run for ever. Raises LeaseLostError; any other end is an error of the program or of the set-up."""
        try:
            async with AsyncExitStack() as exits:
                exits.callback(self._worker.shutdown)
                await self._start(exits)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(eternal("network reconcile", self._runner.run()))
                    tasks.create_task(eternal("leases", self._source.run(self._store)))
                    tasks.create_task(eternal("own lease", self._keep_lease()))
                    if self.probes is not None:
                        tasks.create_task(eternal("probe of peers", self.probes.run()))
        except* LeaseLostError:
            self._podnet = None
            memory.forget(self._settings.state_dir)
            raise
        raise AssertionError("unreachable: the tasks are eternal")

    async def _start(self, exits: AsyncExitStack) -> None:
        """Open what listens to the kernel, and remember an earlier life."""
        loop = asyncio.get_running_loop()
        sync = await self._work(lambda: FabricSync(self._settings.state_dir))
        exits.push_async_callback(self._work, sync.close)
        self._report.carried = lambda: sync.carried
        exits.push_async_callback(self._work, sync.extension.stop)
        self._pass = NetworkPass(
            self._settings,
            self._store,
            sync,
            self._work,
            self._report,
            find_underlay=SteadyUnderlay(self._find_underlay, on_loop(self._readdressed)),
            prober=self.probes,
            resync_s=self._resync_s,
            course=self._course,
        )
        self._memory = await self._work(lambda: memory.load(self._settings.state_dir))
        if self._memory is not None:
            held = self._memory.held
            self._pass.last_published = held.lease.attrs
            if not self._ended(held.expires):
                log.info("lease %s of an earlier life is used until it is confirmed", held.lease.key)
                self._pass.conf, self._pass.held = self._memory.conf, held
                self._course.resume(self._memory, held.lease.attrs)
                self._source.expected = held.lease.key
        monitor = Monitor(self._announced)
        exits.callback(monitor.close)
        try:
            watch = NftWatch([TABLE], lambda: sync.nft_port)
        except KernelError as error:
            log.warning("changes of nftables are found by the periodic look only: %s", error)
        else:
            exits.callback(watch.close)
            loop.add_reader(watch, self._ruleset_changed, watch)
            exits.callback(loop.remove_reader, watch)
        exits.callback(self._store.subscribe(on_loop(self._runner.poke)))
        exits.callback(self._cancel_timers)
        self._source.on_held = self._took

    async def _keep_lease(self) -> NoReturn:
        """Take our lease, then have it say what the plan wants peers to know."""
        known = self._known()
        known.conf = await self._source.netconf()
        self._course.start_with(known.conf)
        self._runner.poke()
        attrs = await self._next_attrs(None)
        previous = await self._work(lambda: memory.load_previous(self._settings.subnet_file))
        remembered = self._memory.held if self._memory is not None else None
        self._took(await self._source.acquire(attrs, previous, remembered))
        while True:
            attrs = await self._next_attrs(attrs)
            log.info("lease: publishing %s", attrs)
            self._took(await self._source.publish(attrs))

    async def _next_attrs(self, published: LeaseAttrs | None) -> LeaseAttrs:
        """What is to be published, once it differs from what was, by the newest net-conf."""
        known = self._known()
        while True:
            if known.settled and known.plan is not None and known.plan.attrs != published:
                return known.plan.attrs
            known.planned.clear()
            await known.planned.wait()

    async def _reconcile(self) -> None:
        """One pass."""
        known = self._known()
        try:
            await known()
        finally:
            held, before = known.held, self._podnet
            self._podnet = None if known.pods is None or held is None else (known.pods, held.expires)
            if self._podnet is not None and (before is None or before[0] != self._podnet[0]):
                self.on_podnet()
        if known.again_in:
            self._look_again_in(known.again_in)
        elif known.stale & Concern.UNDERLAY and self._retry is None:
            self._look_again_in(UNDERLAY_RETRY_S)

    def _look_again_in(self, seconds: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._retry = None
        self._runner.poke()

    def _known(self) -> NetworkPass:
        assert self._pass is not None, "before run"
        return self._pass

    def _work(self, job: Callable[[], T]) -> Awaitable[T]:
        """Run a blocking call on the worker."""
        return asyncio.get_running_loop().run_in_executor(self._worker, job)

    async def _switch_checksum(self, device: str, on: bool) -> bool:
        known = self._known()
        return await self._work(lambda: known.switch_checksum(device, on=on))

    async def _localise(self, addresses: Collection[bytes]) -> None:
        await self._work(lambda: probe_address.keep(addresses))

    # --- events ---------------------------------------------------------------------------------------------

    def _took(self, held: HeldLease) -> None:
        """The source has our lease: new, renewed, changed or found right."""
        known = self._known()
        if known.held != held or not known.acquired:
            known.held, known.acquired = held, True
            known.last_published = held.lease.attrs
            self._runner.poke()

    def _announced(self, events: list[Event | Lost]) -> None:
        """The kernel announced changes, our own among them."""
        known = self._known()
        concern = known.watchman.judge(events)
        if concern:
            known.stale |= concern
            self._repair_soon()

    def _repair_soon(self) -> None:
        """Poke now, or when the gap after the last repair is over."""
        loop = asyncio.get_running_loop()
        wait_s = self._last_repair + DRIFT_GAP_S - loop.time()
        if wait_s <= 0:
            self._last_repair = loop.time()
            self._runner.poke()
        elif self._repair is None:
            self._repair = loop.call_later(wait_s, self._repair_now)

    def _repair_now(self) -> None:
        self._repair = None
        self._repair_soon()

    def _ruleset_changed(self, watch: NftWatch) -> None:
        """Somebody, maybe we, changed our table: look at it a little later."""
        if watch.drain() and self._look is None:
            self._look = asyncio.get_running_loop().call_later(FIREWALL_LOOK_S, self._look_at_firewall)

    def _look_at_firewall(self) -> None:
        self._look = None
        self._known().stale |= Concern.FIREWALL
        self._runner.poke()

    def _cancel_timers(self) -> None:
        for timer in (self._repair, self._look, self._retry):
            if timer is not None:
                timer.cancel()
