"""The policy component: what policies say of this node's pods, kept in the kernel.

Life: the store's tracker says which policies, pods, namespaces and nodes changed, ``LocalPods`` which attachments; a
pass gives them to the engine, which brings the difference to the kernel. Nothing is programmed before all kinds have
been listed and the records of this node's pods are known: until then an earlier agent's policies stay enforced. Every
``policy-sync-period`` the kernel is read back and compared; so it is after a failure, and when the table vanished. What
the kernel refuses closes the pods it is about, makes health red and is tried again.

A fast path of an earlier agent stands aside, or goes, before the first change; it is taken over, or made, after that.

When the agent stops, everything stays in the kernel. Kernel work happens on one worker thread and on threads of CNI
calls (``component_gate``), one at a time, in the network namespace of the thread that runs the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NoReturn, TypeVar

from pycni.agent import underlay
from pycni.agent.health import Health
from pycni.agent.httpd import AsyncHandler
from pycni.agent.metrics import Registry
from pycni.agent.settings import Settings
from pycni.agent.tableguard import SETTLE_S, TableGuard
from pycni.errors import KernelError, PycniError
from pycni.ipam.endpoints import EndpointStore
from pycni.policy import nft
from pycni.policy.base import Dataplane
from pycni.policy.component_fast import Exits, FastMaker
from pycni.policy.component_gate import Gate
from pycni.policy.component_report import PART, PolicyReport, Unreadable
from pycni.policy.component_upkeep import Upkeep
from pycni.policy.engine import PolicyEngine
from pycni.policy.insides import Insides
from pycni.policy.metrics import PolicyMetrics
from pycni.policy.nft.layout import TABLE
from pycni.policy.pods import LocalPods, Overlay
from pycni.policy.report import Routes
from pycni.policy.settled import Settled
from pycni.policy.shut import Shut
from pycni.policy.spoof_legs import TABLE as ROUTED
from pycni.policy.spoof_rules import TABLE as SENDERS
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, eternal, on_loop
from pycni.store import Store
from pycni.view.policies import KINDS

log = logging.getLogger("pycni.policy")
T = TypeVar("T")

FAST_S = 60.0
"""Between two attempts to have a fast path."""
LOOK_S = 0.5
INSIDE_S = 2.0
"""To another attempt to bring policies into pods."""


class PolicyComponent:
    """One per agent. ``run`` is its life, on one event loop; ``gate`` lets pods in, on any thread."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        health: Health | None = None,
        metrics: Registry | None = None,
        recorded: bool = False,
        exits: Exits | None = None,
        malformed: Callable[[], Mapping[str, str]] = dict,
        make: Callable[[], Dataplane] = nft.make,
        see_bridged: Callable[[], bool] = nft.see_bridged,
        make_shut: Callable[[], Shut] = Shut,
        load: Callable[[str], Any] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """``recorded``: the records of this node's pods will come (``follow_pods``) and are waited for.

        ``exits``: None: the external interface is found by the settings. ``malformed``: ``kind key`` or ``file name``
        -> why it makes no sense. ``load`` imports a module by its name.
        """
        self._settings = settings
        self._store = store
        self._waits = recorded
        self._unreadable = Unreadable(malformed)
        self._make = make
        self._resync_s = float(settings.policy_sync_period)
        health, registry = health or Health(), metrics or Registry()
        self.report = PolicyReport(health, registry, valid_s=self._resync_s * 2 + 60)
        health.ask(PART, lambda: self._unreadable.text)
        self._metrics = PolicyMetrics(registry, settings.policy_metrics_limit)
        self._worker = ThreadPoolExecutor(1, "policy")
        self._objects = store.current()
        self._pods = LocalPods(settings.node_name)
        self._lock = threading.Lock()
        """Who holds it has the engine and the data planes."""
        self._engine: PolicyEngine | None = None
        self._fast = FastMaker(settings, self.report, exits or self._own_exits, load)
        self._exits = exits or self._own_exits
        self._runner = Runner(
            "policy",
            self._reconcile,
            resync_s=self._resync_s,
            backoff=backoff or Backoff(0.1, 30.0),
            observer=self.report,
        )
        self._poke: Callable[[], None] = self._runner.poke
        self.gate = self._new_gate(make_shut, spoof_check=recorded and settings.policy_spoof_check)
        self._upkeep = Upkeep(
            store,
            self.report,
            self._metrics,
            self._owned,
            engine=lambda: self._engine,
            denied=self.gate.denied,
            see_bridged=see_bridged,
        )
        self._guard = TableGuard("policies", TABLE, self._look_at_everything)
        self._senders = TableGuard("check of pods' own addresses", SENDERS, self._look_at_senders)
        self._routed = TableGuard("check of routed pods' own addresses", ROUTED, self._look_at_senders)
        self._routes = self._new_routes()
        self._full_at = float("-inf")
        self._again_at, self._fast_at = float("inf"), float("-inf")
        self._again = Backoff(1.0, 300.0)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def _new_gate(self, make_shut: Callable[[], Shut], *, spoof_check: bool) -> Gate:
        settings = self._settings
        return Gate(
            self._lock,
            self._pods,
            self._store.track(*KINDS),
            Overlay(self._objects, self._pods),
            self.report,
            self._changed,
            settled=Settled(self._objects, lambda: self.report.reason),
            spoof_check=spoof_check,
            insides=Insides(settings.state_dir, senders=settings.policy_spoof_check),
            without_admin=settings.policy_net_admin == "refuse",
            make_shut=make_shut,
        )

    def _new_routes(self) -> Routes:
        return Routes(
            self._settings.node_name,
            lambda: self._engine,
            lambda: Overlay(self._store.snapshot(), self._pods),
            self._owned,
            trouble=lambda: "; ".join(filter(None, (self.report.reason, self._unreadable.text))),
            notes=lambda: self.report.notes,
            problems=lambda: self._unreadable.problems(self._engine),
            readers=(self.gate.insides.drops,),
            refused=self.gate.denied,
            shut=self.gate.held,
            beside=self.gate.sides,
        )

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run for ever."""
        async with AsyncExitStack() as exits:
            exits.callback(self._worker.shutdown)
            exits.push_async_callback(self._work, self._close)
            exits.callback(self._routes.close)
            exits.callback(self._cancel_timers)
            self._poke = on_loop(self._runner.poke)
            exits.callback(self._store.subscribe(self._poke))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(eternal("policies", self._runner.run()))
                tasks.create_task(eternal("policies' upkeep", self._upkeep.run()))
                tasks.create_task(self._guard.run(exits, self._work))
                tasks.create_task(self._senders.run(exits, self._work))
                tasks.create_task(self._routed.run(exits, self._work))
                tasks.create_task(eternal("policies inside pods", self._watch_insides()))
        raise AssertionError("unreachable: the tasks are eternal")

    def routes(self) -> dict[str, AsyncHandler]:
        """What the agent's control socket answers about policies."""
        return self._routes.routes() | self.gate.settled.routes()

    def follow_pods(self, endpoints: EndpointStore) -> None:
        """The records of this node's pods, once the agent has them."""
        self.gate.insides.follow(endpoints.all())
        self._pods.follow(endpoints, self._changed)
        self._waits = False
        self.gate.followed = True
        self._changed()

    def _changed(self) -> None:
        """Have a pass soon. On any thread."""
        self._poke()

    def _close(self) -> None:
        with self._lock:
            engine, self._engine = self._engine, None
            self.gate.engine = None
            if engine is not None:
                if engine.fast is not None:
                    engine.fast.close()
                engine.plane.driver.close()
        self.gate.close()

    # --- a pass ------------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """One pass. Raises PycniError; the next one reads the kernel back."""
        if self.gate.due:
            self._senders.expected = await self._work(self.gate.look_after)
        self._routed.expected = self.gate.checks_routed
        reason = self._missing()
        self.report.waiting(reason)
        if reason:
            return
        now = asyncio.get_running_loop().time()
        full = now - self._full_at >= self._resync_s
        again = now >= self._again_at
        if now >= self._fast_at and self._lacks_fast() and self._exits() is not None:
            self._fast_at = now + FAST_S
            await self._work(self._make_fast)
        try:
            await self._work(partial(self._pass, full=full, again=again))
        except BaseException:
            self._full_at = float("-inf")
            raise
        if full:
            self._full_at = now
        self._guard.expected = True
        self._plan(now, again=again)

    def _missing(self) -> str:
        """What has to come first."""
        missing = [kind for kind in KINDS if kind not in self._objects.listed]
        if missing:
            return f"no listing of {', '.join(missing)} yet"
        return "the records of this node's pods are not read yet" if self._waits else ""

    def _pass(self, *, full: bool, again: bool) -> None:
        """On the worker. Raises KernelError."""
        with self._lock:
            engine = self._engine
            if engine is None:
                engine = self._begin()
            elif full:
                self._upkeep.watch_bridges()
            result, holders = self.gate.take_in(engine, full=full, again=again)
            if result is not None:
                sizes = {kind: len(self._store.snapshot().of(kind)) for kind in KINDS[:3]} if full else {}
                self.report.synced(result, sizes)
                self._metrics.synced(result)
                self.report.refused(engine.refusals.problems(), engine.closed)
                self._serve_pods(engine)
        self.gate.programmed(holders, full=full)

    def _lacks_fast(self) -> bool:
        """Whether a fast path should be made."""
        engine = self._engine
        if engine is None or not self._fast.wanted:
            return False
        return engine.fast is None or not self._fast.fits()

    def _begin(self) -> PolicyEngine:
        """The engine, with nftables judging alone. Raises KernelError."""
        gone = self._fast.begin()
        if gone:
            log.info("policies: removed of an earlier fast path: %s", "; ".join(gone))
        engine = self._engine = self.gate.engine = PolicyEngine(self._settings.node_name, self._make())
        return engine

    def _make_fast(self) -> None:
        """Have a fast path that serves the interfaces there are. On the worker."""
        engine = self._engine
        if engine is None:
            return
        with self._lock:
            old, engine.fast = engine.fast, None
            if old is not None:
                old.aside()
                old.close()
        fast = self._fast.make()
        with self._lock:
            if fast is not None:
                engine.take_fast(fast)
            elif not self._fast.wanted:
                self._fast.leftovers()

    def _serve_pods(self, engine: PolicyEngine) -> None:
        """Have the fast path at the pods there are; what it cannot serve the data plane below judges."""
        if engine.fast is None:
            return
        try:
            engine.fast.pods(self._pods.pods())
        except KernelError as error:
            self.report.note("fast path at pods", f"{engine.fast.name} does not serve all pods: {error}")
        else:
            self.report.note("fast path at pods", "")

    def _plan(self, now: float, *, again: bool) -> None:
        """When to come again without being called."""
        engine = self._engine
        if engine is None:
            return
        if not engine.refusals.rows:
            self._again.reset()
            self._again_at = float("inf")
        elif again or self._again_at == float("inf"):
            self._again_at = now + self._again.next()
        if self._again_at != float("inf"):
            self._later("refused", self._again_at - now)
        if self._lacks_fast():
            self._later("fast", LOOK_S if self._exits() is None else max(self._fast_at - now, 0.0))
        elif engine.aside:
            self._later("aside", FAST_S / 2)
        if self.gate.insides.problems:
            self._later("inside", INSIDE_S)

    # --- beside passes -----------------------------------------------------------------------------------------------

    async def _watch_insides(self) -> NoReturn:
        """Have a pass when somebody changes our tables inside a pod."""
        loop, insides = asyncio.get_running_loop(), self.gate.insides
        changed = asyncio.Event()
        watched = insides.fileno()
        while True:
            loop.add_reader(watched, changed.set)
            try:
                await changed.wait()
            finally:
                loop.remove_reader(watched)
            # Changes come in bursts, and taking note of them waits for a pass that is under way.
            await asyncio.sleep(SETTLE_S)
            changed.clear()
            if await self._work(insides.noticed):
                self._runner.poke()

    def _own_exits(self) -> Sequence[str] | None:
        try:
            return (underlay.detect(self._settings).name,)
        except PycniError as error:
            log.debug("policies: no external interface: %s", error)
            return ()

    # --- events ------------------------------------------------------------------------------------------------------

    def _look_at_senders(self) -> None:
        """The next pass puts back what holds pods to their own addresses, and comes at once."""
        self.gate.doubt_senders()
        self._runner.poke()

    def _look_at_everything(self) -> None:
        """The next pass reads the kernel back, and comes at once."""
        self._full_at = float("-inf")
        self._runner.poke()

    def _later(self, name: str, seconds: float) -> None:
        """Another pass then."""
        held = self._timers.get(name)
        if held is not None:
            held.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, self._runner.poke)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _work(self, job: Callable[[], T]) -> Awaitable[T]:
        """Run a blocking call on the worker."""
        return asyncio.get_running_loop().run_in_executor(self._worker, job)

    def _owned(self, job: Callable[[], T]) -> Awaitable[T]:
        """The same, with the engine to itself."""

        def alone() -> T:
            with self._lock:
                return job()

        return self._work(alone)
