"""The BGP component: this node's routes, told to neighbours and learned from them.

Life: the store's tracker says which Services, EndpointSlices, Nodes and leases changed; a pass makes a plan of them and
hands it to the engine when it differs from the last one. Nothing is announced before all kinds have been listed, so an
agent that starts beside an unreachable API leaves a running engine as it is. Sessions are looked at every few seconds,
for metrics and for ``pycnictl bgp``. A session that is down is the neighbour's state, not a fault of this node; an
engine that does not run, or refuses its plan, is. That an operator had the node drained is remembered in a file beside
the engine's, until it is taken back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from pycni.agent.health import Health
from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.metrics import Registry
from pycni.agent.service_facts import node_facts
from pycni.agent.settings import Settings
from pycni.agent.status_dump import answer
from pycni.agent.underlay import detect
from pycni.errors import ConfigError, PycniError
from pycni.kernel.hops import Destination, HopRoutes
from pycni.model.family import FAMILIES, Family, show
from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE, KubeNode
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.model.service import NodeFacts
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, describe, eternal, on_loop
from pycni.store import Store
from pycni_bgp import engines, machine
from pycni_bgp.configured import bgp_settings
from pycni_bgp.drain import BY_HAND
from pycni_bgp.dumped import Hops, There, sections
from pycni_bgp.engine import BgpError, Engine, Session
from pycni_bgp.files import Drained
from pycni_bgp.metrics import BgpMetrics
from pycni_bgp.model import Prefix
from pycni_bgp.status import Seen, drained, status
from pycni_bgp.view import Draft, Place, View

log = logging.getLogger("pycni.bgp")

PART = "bgp"
LEASE = "lease"
RESYNC_S = 60.0
LOOK_S = 3.0
"""Between two looks at sessions."""
PROTOCOL_NAMES = {12: "bird"}
"""As ip-route(8) shows them; others are numbers."""
DRAIN_S = 10.0
"""How long an operator waits for a drain."""
TROUBLED_S = 0.2
"""The same while the engine is not as it should be, and for the pod network while it is waited for."""

FindUnderlay = Callable[[Settings, Sequence[Family]], Underlay]


class BgpComponent:
    """One per agent. ``run`` is its life; ``routes`` answers ``pycnictl``. On one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        health: Health | None = None,
        metrics: Registry | None = None,
        podnet: Callable[[], PodNetwork | None] | None = None,
        objects: bool = True,
        find_underlay: FindUnderlay = detect,
        engine: Engine | None = None,
    ) -> None:
        """``podnet``: the pod network once it is known; None when no network component runs in this process.

        ``objects``: whether Services and Nodes come from anywhere; without them the leases are all there is. Raises
        ConfigError when the engine is missing, or the peers' passwords cannot be read.
        """
        self._settings = settings
        self._store = store
        self._podnet = podnet
        self._find_underlay = find_underlay
        self._health = health or Health()
        self._health.expect(PART)
        self._metrics = BgpMetrics(metrics or Registry())
        if engine is None:
            reason = engines.missing(settings.bgp_engine)
            if reason:
                raise ConfigError("settings", "bgp-engine", settings.bgp_engine, reason)
            engine = engines.make(settings.bgp_engine, settings.bgp_dir)
        engine.leaving = self._leaving
        self.engine = engine
        self._kinds = ((SERVICE, ENDPOINT_SLICE, NODE) if objects else ()) + ((LEASE,) if podnet else ())
        self._tracker = store.track(*self._kinds)
        self._objects = store.current()
        self._view = View(bgp_settings(settings))
        self._facts: NodeFacts | None = None
        self._draft: Draft | None = None
        self._carried: Draft | None = None
        """The last one the engine has taken."""
        self._taken = asyncio.Event()
        self._drained = Drained(settings.bgp_dir)
        self._said: tuple[str, ...] = ()
        self._sessions: Sequence[Session] = ()
        self._trouble = ""
        """The engine's, as health was told last."""
        self._runner = Runner(
            PART,
            self._reconcile,
            resync_s=RESYNC_S,
            min_gap_s=0.05,
            backoff=Backoff(0.2, 10.0),
            observer=self,
        )

    async def run(self) -> NoReturn:
        """Run for ever."""
        unsubscribe = self._store.subscribe(on_loop(self._runner.poke))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(eternal("BGP", self._runner.run()))
                tasks.create_task(eternal("BGP engine", self.engine.run()))
                tasks.create_task(eternal("BGP sessions", self._look()))
        finally:
            unsubscribe()
        raise AssertionError("unreachable: the tasks are eternal")

    def routes(self) -> dict[str, AsyncHandler]:
        """What the agent's control socket answers about BGP."""
        return {
            "/bgp": self._answer,
            "/bgp/drain": lambda _query: self._drain(on=True),
            "/bgp/undrain": lambda _query: self._drain(on=False),
            "/dump/bgp": self._dump,
        }

    # --- a pass ----------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """One pass. Raises ConfigError and BgpError."""
        reason = self._waiting()
        if reason:
            self._health.set(PART, ok=False, reason=reason)
            asyncio.get_running_loop().call_later(TROUBLED_S, self._runner.poke)
            return
        underlay = await asyncio.to_thread(self._find_underlay, self._settings, ())
        pods = self._podnet() if self._podnet is not None else None
        facts = node_facts(
            self._settings, self._objects.of(NODE).get(self._settings.node_name), underlay, pods
        )
        changed = self._tracker.take()
        try:
            snapshot = self._store.snapshot()
            self._view.update(snapshot, None if facts != self._facts else changed, facts)
            self._facts = facts
            own = (underlay.of(family) for family in FAMILIES)
            place = Place(
                name=self._settings.node_name,
                addresses=tuple(item.ip.packed for item in own if item is not None),
                subnets=pods.subnets if pods is not None else (),
                router_id=self._settings.router_id.packed if self._settings.router_id else b"",
                port=self._settings.bgp_port,
                uplink=underlay.name,
                drained=self._drained.on,
            )
            draft = self._draft = self._view.plan(snapshot, snapshot.of(LEASE), place)
            self._say(draft.problems)
            await self.engine.put(draft.plan)
            self._carried = draft
            self._taken.set()
        except BaseException:
            self._tracker.put_back(changed)
            raise
        self._metrics.planned(draft)

    def _waiting(self) -> str:
        """What has to come before anything is announced; "" when all is there."""
        missing_kinds = [kind for kind in self._kinds if kind not in self._objects.listed]
        if missing_kinds:
            return f"no listing of {', '.join(missing_kinds)} yet"
        if self._podnet is not None and self._podnet() is None:
            return "the pod network is not known yet"
        return ""

    def _say(self, problems: tuple[str, ...]) -> None:
        for line in problems:
            if line not in self._said:
                log.warning("%s", line)
        self._said = problems

    def passed(self, _component: str, _seconds: float) -> None:
        """Runner: a pass succeeded."""
        if not self._waiting():
            trouble = self._trouble = self.engine.trouble
            self._health.set(PART, not trouble, trouble, valid_for=RESYNC_S * 3)

    def failed(self, _component: str, error: Exception, _failures: int) -> None:
        """Runner: a pass failed."""
        self._health.set(PART, ok=False, reason=describe(error))

    # --- sessions --------------------------------------------------------------------------------------------

    async def _look(self) -> NoReturn:
        """Keep metrics, health and the log true."""
        while True:
            await asyncio.sleep(TROUBLED_S if self._trouble else LOOK_S)
            before = {item.address: item for item in self._sessions}
            try:
                self._sessions = await self.engine.sessions()
            except BgpError:
                self._sessions = ()
            if self.engine.trouble != self._trouble:
                self._runner.poke()
            for item in self._sessions:
                was = before.get(item.address)
                if was is not None and was.up != item.up:
                    words = f": {item.error}" if item.error and not item.up else ""
                    log.info("session with %s: %s%s", show(item.address), item.state, words)
            self._metrics.looked(self._sessions)

    # --- leaving ---------------------------------------------------------------------------------------------

    def _leaving(self) -> bool:
        """Whether neighbours are to forget this node when the agent stops."""
        wish = self._settings.bgp_at_stop
        if wish != "auto":
            return wish == "withdraw"
        node: KubeNode | None = self._objects.of(NODE).get(self._settings.node_name)
        return (node is not None and node.meta.deleting) or machine.stopping()

    async def _drain(self, *, on: bool) -> Response:
        try:
            await asyncio.to_thread(self._drained.set, on=on)
        except ConfigError as error:
            return Response(500, body=f"{error}\n")
        self._runner.poke()
        try:
            async with asyncio.timeout(DRAIN_S):
                while (draft := self._carried) is None or (BY_HAND in draft.drained) is not on:
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            return Response(503, body=f"noted, but not done yet: {self._health.reason()}\n")
        return Response(200, body=drained(draft))

    async def _dump(self, _query: str) -> Response:
        """What is wanted of sessions, announcements and learned routes, and what there is."""
        draft, engine = self._carried, self.engine
        if draft is None:
            return Response(503, body=f"{self._waiting() or 'the engine has taken no plan yet'}\n")
        try:
            sessions, wanted = await engine.sessions(), await engine.wanted()
            learned, kernel = await asyncio.to_thread(self._routes, wanted)
        except PycniError as error:
            return Response(503, body=f"{error}\n")
        protocol = PROTOCOL_NAMES.get(engine.protocol, str(engine.protocol))
        there = There(sessions, engine.told(), learned, kernel, protocol)
        return answer(lambda: sections(draft.plan, there, [engine.trouble] if engine.trouble else []))

    def _routes(self, wanted: Hops | None) -> tuple[Hops, Hops]:
        """What is to be in the kernel, and what is. Blocking. Raises KernelError."""
        if wanted is None:
            return {}, {}
        routes = HopRoutes(self.engine.protocol)
        try:
            there = {Prefix(*item): hops for item, hops in routes.read().items()}
            found = routes.reached({Destination(*item): hops for item, hops in wanted.items()})
        finally:
            routes.close()
        learned = {Prefix(*item): hops for item, hops in found.items()}
        if self.engine.told() is None:
            # An engine that keeps the kernel's routes itself merges equal paths; which, it does not say.
            merged = {
                item: there[item] for item, hops in learned.items() if {*hops} <= {*there.get(item, ())}
            }
            learned |= merged
        return learned, there

    async def _answer(self, _query: str) -> Response:
        draft = self._draft
        if draft is None:
            return Response(503, body=f"{self._waiting() or 'starting'}\n")
        engine = self.engine
        seen = Seen(engine.name, engine.trouble)
        try:
            seen = seen._replace(
                sessions=await engine.sessions(),
                learned=await engine.learned(),
                adjacencies=await engine.adjacencies(),
            )
        except BgpError as error:
            seen = seen._replace(trouble=seen.trouble or str(error))
        body = msgspec.json.encode(status(draft, seen))
        return Response(200, "application/json", body.decode() + "\n")
