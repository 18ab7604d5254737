"""The proxy component: this node's services, kept in the kernel.

Life: the store's tracker says which Services, EndpointSlices and Nodes changed; a pass gives them to the engine, which
brings the difference to the data planes; after it connections to endpoints that went are forgotten, health-check ports
follow, and metrics and ``pycnictl services`` know. Nothing is programmed before all three kinds have been listed, so an
agent that starts beside an unreachable API leaves the kernel as it is. Every ``proxy-sync-period`` the kernel is read
back and compared; so it is after a failure, and when what is known of this node (``facts``) changed.

After the first pass that succeeded, what another data plane left here is removed: the new one serves by then. When the
agent stops, everything stays in the kernel.

Kernel work happens on one worker thread in the network namespace of the thread that runs the loop. The engine is
touched by that thread alone while a pass runs, and read by the loop between passes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import NoReturn, TypeVar

from pycni.agent import status_dump
from pycni.agent.health import Health
from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.metrics import Registry
from pycni.agent.service_facts import differences, node_facts
from pycni.agent.settings import Settings
from pycni.agent.tableguard import TableGuard
from pycni.agent.underlay import detect
from pycni.errors import PycniError
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel.monitor import Event, Lost, Monitor
from pycni.model.family import Family
from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE, KubeNode
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.model.service import NodeFacts
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, describe, eternal, on_loop
from pycni.store import Store
from pycni.wire import rtnl
from pycni_proxy import component_work, conntrack, planes, status
from pycni_proxy.engine import Engine, SyncResult
from pycni_proxy.healthcheck import HealthChecks
from pycni_proxy.metrics import ProxyMetrics
from pycni_proxy.metrics_services import READ_S, ServiceMetrics
from pycni_proxy.report import ProxyReport
from pycni_proxy.surroundings import Surroundings
from pycni_proxy.traffic import ServiceTraffic

log = logging.getLogger("pycni.proxy")
T = TypeVar("T")

KINDS = (SERVICE, ENDPOINT_SLICE, NODE)
"""Listed before anything is programmed."""
PODNET_LOOK_S = 0.1
"""How often to look for the pod network while it is waited for."""
TABLE = "pycni_proxy"
"""What nftables has of services."""
VIRTUAL = "pycni-ipvs0"
"""Device of virtual addresses."""
SETTLE_S = 0.2
"""From a change of addresses to looking at them."""

FindUnderlay = Callable[[Settings, Sequence[Family]], Underlay]


class ProxyComponent:
    """One per agent. ``run`` is its life; ``routes`` answers ``pycnictl``. On one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        health: Health | None = None,
        metrics: Registry | None = None,
        podnet: Callable[[], PodNetwork | None] | None = None,
        find_underlay: FindUnderlay = detect,
        load: planes.Load = planes.load,
        backoff: Backoff | None = None,
    ) -> None:
        """``podnet``: the pod network once it is known; None when no network component runs in this process."""
        self._settings = settings
        self._store = store
        self._podnet = podnet
        self._find_underlay = find_underlay
        self._load = load
        registry = metrics or Registry()
        self._resync_s = float(settings.proxy_sync_period)
        self.report = ProxyReport(health, valid_s=self._resync_s * 2 + 60)
        self._metrics = ProxyMetrics(registry)
        self._counters = ServiceMetrics(registry, self._frontends, settings.service_metrics_limit)
        self._surroundings = Surroundings(settings, self.report, self._own_node)
        self._checks = HealthChecks(self.report.well)
        self._worker = ThreadPoolExecutor(1, "proxy")
        self._tracker = store.track(*KINDS)
        self._objects = store.current()
        self._runner = Runner(
            "proxy",
            self._reconcile,
            resync_s=self._resync_s,
            min_gap_s=settings.proxy_min_sync_period / 1000,
            backoff=backoff or Backoff(0.1, 30.0),
            observer=self.report,
        )
        self._guard = TableGuard("services", TABLE, self._look_at_everything)
        self._engine: Engine | None = None
        self._choice: planes.Choice | None = None
        self._pods: PodNetwork | None = None
        self._underlay: Underlay | None = None
        self._addresses_changed = True
        self._full_at = float("-inf")
        self._poked_at: float | None = None
        self._endpoints: EndpointStore | None = None
        self._swept = self._cleared = self._followed = False
        self._applied = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.history = status.History()
        """When each service was last programmed."""
        self._traffic = ServiceTraffic(lambda: self._engine, self._work)

    # --- tasks -----------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run for ever."""
        async with AsyncExitStack() as exits:
            exits.callback(self._worker.shutdown)
            exits.push_async_callback(self._close)
            monitor = Monitor(self._announced)
            exits.callback(monitor.close)
            exits.callback(self._cancel_timers)
            exits.callback(self._store.subscribe(on_loop(self._poke)))
            self._counters.wanted = on_loop(self._applied.set)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(eternal("services", self._runner.run()))
                tasks.create_task(eternal("services' upkeep", self._keep()))
                tasks.create_task(eternal("services' surroundings", self._surroundings.run()))
                tasks.create_task(self._guard.run(exits, self._work))
        raise AssertionError("unreachable: the tasks are eternal")

    def routes(self) -> dict[str, AsyncHandler]:
        """What the agent's control socket answers about services."""
        return {"/services": self._answer, "/dump/services": self._dump, **self._traffic.routes()}

    def follow_pods(self, endpoints: EndpointStore) -> None:
        """The pods of this node, once the agent has their records; for data planes that serve pods one by one."""
        self._endpoints, self._followed = endpoints, False
        self._runner.poke()

    async def _close(self) -> None:
        await self._checks.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await self._work(partial(component_work.close, engine))

    # --- a pass ----------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """One pass. Raises KernelError, ConfigError or a group; the next one reads the kernel back."""
        now = asyncio.get_running_loop().time()
        full = now - self._full_at >= self._resync_s
        if full:
            self._addresses_changed = True
        reason = await self._prepare()
        self.report.waiting(reason)
        engine = self._engine
        if reason or engine is None:
            self._poked_at = None
            return
        full = full or self._full_at == float("-inf")
        poked, self._poked_at = self._poked_at, None
        changed = self._tracker.take()
        if not full and not changed.keys() - {NODE}:
            return
        self._metrics.taken(changed, engine.facts.families)
        try:
            result = await self._work(partial(engine.sync, self._objects, None if full else changed))
        except BaseException:
            self._tracker.put_back(changed)
            self._full_at = float("-inf")
            self._poked_at = poked
            self._metrics.failed()
            raise
        if full:
            self._full_at = now
        await self._after(engine, result, poked)

    async def _prepare(self) -> str:
        """Have an engine that knows this node as it is; says what is still waited for."""
        missing = [kind for kind in KINDS if kind not in self._objects.listed]
        if missing:
            return f"no listing of {', '.join(missing)} yet"
        if self._podnet is not None:
            self._pods = self._podnet() or self._pods
            if self._pods is None and not self._settings.cluster_cidr:
                self._later("podnet", PODNET_LOOK_S, self._runner.poke)
                return "the pod network is not known yet"
        if self._addresses_changed:
            self._addresses_changed = False
            self._underlay = await self._work(self._look_at_underlay)
        facts = node_facts(self._settings, self._own_node(), self._underlay, self._pods)
        if self._engine is None or facts != self._engine.facts:
            await self._make(facts)
        if self._engine is not None and self._endpoints is not None and not self._followed:
            await self._work(partial(component_work.follow_pods, self._engine, self._endpoints))
            self._followed = True
        return ""

    async def _make(self, facts: NodeFacts) -> None:
        """New data planes for new facts; the kernel keeps what is there and is compared by the next pass."""
        if self._engine is not None:
            log.info("services: everything is looked at again: %s", differences(self._engine.facts, facts))
        old, self._engine = self._engine, None
        self._full_at = float("-inf")
        if old is not None:
            await self._work(partial(component_work.close, old))
        chosen = self._choice
        if chosen is None:
            chosen = await self._work(partial(planes.choose, self._settings.proxy_mode, self._load))
            self._choice = chosen
            self._say(chosen.notes)
        choice, made = await self._work(partial(planes.make_chosen, chosen, facts, self._load))
        self._choice = choice
        self._say(choice.notes[len(chosen.notes) :])
        self._followed = False
        self._engine = await self._work(partial(Engine, facts, made))

    @staticmethod
    def _say(notes: Sequence[str]) -> None:
        for note in notes:
            log.warning("services: %s", note)

    async def _after(self, engine: Engine, result: SyncResult, poked: float | None) -> None:
        """What follows from services that are programmed."""
        took = result.resolve_s + result.apply_s
        if poked is not None:
            took = asyncio.get_running_loop().time() - poked
        await self._forget_connections(engine, result)
        self._applied.set()
        self.history.note(result, took, time.time())
        self._traffic.programmed()
        self._metrics.passed(result, result.resolve_s + result.apply_s, first=not self._cleared)
        names = self._choice.names if self._choice is not None else ()
        self._guard.expected = "nftables" in names
        self.report.programmed(result, names, len(engine.frontends()))
        self.report.problems(engine.problems)
        families = engine.facts.families
        await self._checks.update(
            engine.health_checks(), ["0.0.0.0" if family is Family.V4 else "::" for family in families]
        )
        await self._surroundings.programmed(self._work)
        if not self._cleared:
            await self._clear(names)

    async def _forget_connections(self, engine: Engine, result: SyncResult) -> None:
        """Let UDP clients of endpoints that went find another one."""
        if self._swept:
            watched = conntrack.relevant(result.services.values())
        else:
            watched = conntrack.everything(item for items in engine.frontends().values() for item in items)
        try:
            looked, gone = await self._work(partial(component_work.forget_connections, watched, engine.facts))
        except PycniError as error:
            self._swept = False
            self.report.trouble("UDP connections", describe(error))
            return
        if gone:
            log.info("UDP connections: %d of %d led to endpoints that are gone", gone, looked)
        self._swept = True
        self.report.trouble("UDP connections", "")

    async def _clear(self, names: Sequence[str]) -> None:
        """Remove what another data plane left: this one serves."""
        started = time.monotonic()
        gone, failed = await self._work(partial(planes.leftovers, names, self._load))
        if gone:
            seconds = time.monotonic() - started
            log.info(
                "services: %s has taken over before anything was removed; removed in %.3f s: %s",
                " and ".join(names),
                seconds,
                "; ".join(gone),
            )
        self.report.trouble("what another data plane left", "; ".join(failed))
        self._cleared = not failed

    # --- beside passes ---------------------------------------------------------------------------------------

    async def _keep(self) -> NoReturn:
        """The drivers' periodic work, and reading counters while somebody wants them."""
        while True:
            waits = [await self._poll()]
            if self._counters.due:
                await self._read_counters()
                waits.append(READ_S)
            timeout = min((wait for wait in waits if wait is not None), default=None)
            try:
                async with asyncio.timeout(timeout):
                    await self._applied.wait()
            except TimeoutError:
                continue
            self._applied.clear()

    async def _poll(self) -> float | None:
        engine = self._engine
        if engine is None:
            return None
        try:
            wait = await self._work(partial(component_work.poll, engine))
        except PycniError as error:
            self.report.trouble("upkeep of services", describe(error))
            return READ_S
        self.report.trouble("upkeep of services", "")
        return wait

    async def _read_counters(self) -> None:
        engine = self._engine
        if engine is None:
            return
        try:
            self._counters.take(await self._work(partial(status.counters, engine)))
        except PycniError as error:
            log.warning("counters of services: %s", describe(error))

    async def _answer(self, query: str) -> Response:
        """``/services``: see ``status``."""
        engine = self._engine
        notes = self._choice.notes if self._choice is not None else ()
        problems = self._checks.problems
        base = status.Base(self._settings.node_name, notes, self.report.reason, self._surroundings.others)
        return await self._work(partial(status.answer, base, engine, self.history, problems, query))

    async def _dump(self, _query: str) -> Response:
        """``/dump/services``: what is wanted of every data plane, and what it has."""
        engine = self._engine
        if engine is None:
            return Response(503, body=f"services are not programmed yet: {self.report.reason}\n")
        return await self._work(partial(status_dump.answer, partial(status.dump, engine)))

    def _frontends(self) -> status.Frontends:
        return self._engine.frontends() if self._engine is not None else {}

    def _own_node(self) -> KubeNode | None:
        found: KubeNode | None = self._objects.of(NODE).get(self._settings.node_name)
        return found

    def _look_at_underlay(self) -> Underlay | None:
        try:
            found = self._find_underlay(self._settings, ())
        except PycniError as error:
            log.info("services: no external interface: %s", error)
            return None
        return found

    # --- events ----------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        if self._poked_at is None:
            self._poked_at = asyncio.get_running_loop().time()
        self._runner.poke()

    def _look_at_everything(self) -> None:
        """The next pass reads the kernel back, and comes at once."""
        self._full_at = float("-inf")
        self._runner.poke()

    def _announced(self, events: list[Event | Lost]) -> None:
        """The kernel announced changes: addresses count, but for the virtual ones a data plane puts on its device."""
        try:
            own = socket.if_nametoindex(VIRTUAL)
        except OSError:
            own = 0
        for item in events:
            if isinstance(item, Lost) or (
                isinstance(item.info, rtnl.AddressInfo) and item.info.ifindex != own
            ):
                self._addresses_changed = True
                self._later("addresses", SETTLE_S, self._runner.poke)
                return

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Once, unless it is already to come."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(name)
        if timer is None or timer.cancelled() or timer.when() <= loop.time():
            self._timers[name] = loop.call_later(seconds, call)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _work(self, job: Callable[[], T]) -> Awaitable[T]:
        """Run a blocking call on the worker."""
        return asyncio.get_running_loop().run_in_executor(self._worker, job)
