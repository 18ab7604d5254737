"""The policy component: what policies say of this node's pods, kept in the kernel.

Life: the store's tracker says which policies, pods, namespaces and nodes changed, ``LocalPods`` which attachments; a
pass gives them to the engine, which brings the difference to the kernel. Nothing is programmed before all kinds have
been listed and the records of this node's pods are known: until then an earlier agent's policies stay enforced. Every
``policy-sync-period`` the kernel is read back and compared; so it is after a failure, and when the table vanished.

An ADD (``admit``) has its pod's policies programmed by the calling thread before the pod has a device. When that cannot
be done at once (not everything listed yet, a long pass under way, the kernel refuses) the pod's addresses are shut in a
table of their own and opened by the next pass that succeeds: the ADD goes on, and the pod heals by itself.
Error 11 would be as safe, but would have the runtime tear pods down and make them anew for as long as the API is away.

When the agent stops, everything stays in the kernel.

Kernel work happens on one worker thread, and on threads of CNI calls, one at a time (``_lock``), in the network
namespace of the thread that runs the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import NoReturn, TypeVar

from pycni.agent.health import Health
from pycni.agent.httpd import AsyncHandler
from pycni.agent.metrics import Registry
from pycni.agent.settings import Settings
from pycni.agent.tableguard import TableGuard
from pycni.errors import KernelError
from pycni.ipam.endpoints import EndpointStore
from pycni.model.endpoint import Endpoint
from pycni.model.kube import POD
from pycni.policy import nft
from pycni.policy.base import Dataplane
from pycni.policy.component_report import PolicyReport
from pycni.policy.engine import PolicyEngine, SyncResult
from pycni.policy.nft.layout import TABLE
from pycni.policy.pods import Attachment, LocalPods, Overlay, addresses_of
from pycni.policy.settled import Settled
from pycni.policy.shut import Shut
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, eternal, on_loop
from pycni.store import Store
from pycni.view.policies import KINDS

log = logging.getLogger("pycni.policy")
T = TypeVar("T")

ADD_WAIT_S = 0.1
"""How long an ADD waits for a pass that is under way, before its pod starts shut."""
ADD_CHANGES = 64
"""With at most so many changed objects pending an ADD programs them along with its pod."""


class PolicyComponent:
    """One per agent. ``run`` is its life, on one event loop; ``admit`` and ``gone`` (``cni_ports``) on any thread."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        health: Health | None = None,
        metrics: Registry | None = None,
        recorded: bool = False,
        make: Callable[[], Dataplane] = nft.make,
        backoff: Backoff | None = None,
    ) -> None:
        """``recorded``: the records of this node's pods will come (``follow_pods``) and are waited for."""
        self._settings = settings
        self._store = store
        self._recorded = recorded
        self._make = make
        self._resync_s = float(settings.policy_sync_period)
        self.report = PolicyReport(health, metrics or Registry(), valid_s=self._resync_s * 2 + 60)
        self._worker = ThreadPoolExecutor(1, "policy")
        self._tracker = store.track(*KINDS)
        self._objects = store.current()
        self._settled = Settled(self._objects, lambda: self.report.reason)
        self._pods = LocalPods(settings.node_name)
        self._overlay = Overlay(self._objects, self._pods)
        self._runner = Runner(
            "policy",
            self._reconcile,
            resync_s=self._resync_s,
            backoff=backoff or Backoff(0.1, 30.0),
            observer=self.report,
        )
        self._guard = TableGuard("policies", TABLE, self._look_at_everything)
        self._lock = threading.Lock()
        """Who holds it has the engine and the data planes."""
        self._engine: PolicyEngine | None = None
        self._shut_lock = threading.Lock()
        self._shut: Shut | None = None
        self._full_at = float("-inf")
        self._poke: Callable[[], None] = self._runner.poke

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run for ever."""
        async with AsyncExitStack() as exits:
            exits.callback(self._worker.shutdown)
            exits.push_async_callback(self._work, self._close)
            self._poke = on_loop(self._runner.poke)
            exits.callback(self._store.subscribe(self._poke))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(eternal("policies", self._runner.run()))
                tasks.create_task(self._guard.run(exits, self._work))
        raise AssertionError("unreachable: the tasks are eternal")

    def routes(self) -> dict[str, AsyncHandler]:
        """What the agent's control socket answers about policies."""
        return self._settled.routes()

    def follow_pods(self, endpoints: EndpointStore) -> None:
        """The records of this node's pods, once the agent has them."""
        self._pods.follow(endpoints, self._changed)
        self._recorded = False
        self._changed()

    def _changed(self) -> None:
        """On any thread."""
        self._poke()

    def _close(self) -> None:
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.plane.driver.close()
        with self._shut_lock:
            if self._shut is not None:
                self._shut.close()

    # --- pods that come and go (cni_ports.EndpointGate) --------------------------------------------------------------

    def admit(self, endpoint: Endpoint) -> None:
        """Have a pod's policies in the kernel, or the pod shut. Raises KernelError when neither can be had."""
        began = time.perf_counter()
        self._pods.put(endpoint)
        addresses = addresses_of(endpoint)
        if not addresses or not endpoint.pod_namespace:
            return
        programmed = self._admit_now()
        if not programmed:
            with self._shut_lock:
                self._shut_table().add(addresses)
            log.info("%s starts shut, until its policies are in the kernel", endpoint.owner)
            self._changed()
        self.report.admitted(time.perf_counter() - began, shut=not programmed)

    def attached(self, endpoint: Endpoint) -> None:
        """The pod has its device."""

    def gone(self, endpoint: Endpoint) -> None:
        """Forget a pod that is cut off; the next pass clears its rows away."""
        if self._pods.remove(endpoint.owner):
            self._changed()

    def _admit_now(self) -> bool:
        if not self.report.programmed or not self._lock.acquire(timeout=ADD_WAIT_S):
            return False
        try:
            engine = self._engine
            if engine is None or engine.stale:
                return False
            holders = self._take_in(engine, full=False, most=ADD_CHANGES)[1]
        except KernelError as error:
            log.warning("policies of a new pod: %s", error)
            return False
        finally:
            self._lock.release()
        if holders is None:
            return False
        try:
            self._open(holders)
        except KernelError as error:
            log.warning("what was shut stays so for now: %s", error)
            self._changed()
        return True

    # --- a pass ------------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        """One pass. Raises KernelError; the next one reads the kernel back."""
        reason = self._missing()
        self.report.waiting(reason)
        if reason:
            return
        now = asyncio.get_running_loop().time()
        full = now - self._full_at >= self._resync_s
        try:
            await self._work(partial(self._pass, full=full))
        except BaseException:
            self._full_at = float("-inf")
            raise
        if full:
            self._full_at = now
        self._guard.expected = True

    def _missing(self) -> str:
        """What has to come first."""
        missing = [kind for kind in KINDS if kind not in self._objects.listed]
        if missing:
            return f"no listing of {', '.join(missing)} yet"
        return "the records of this node's pods are not read yet" if self._recorded else ""

    def _pass(self, *, full: bool) -> None:
        """On the worker. Raises KernelError."""
        with self._lock:
            if self._engine is None:
                self._engine = PolicyEngine(self._settings.node_name, self._make())
            result, holders = self._take_in(self._engine, full=full)
            if result is not None:
                sizes = {kind: len(self._store.snapshot().of(kind)) for kind in KINDS[:3]} if full else {}
                self.report.synced(result, sizes)
        if full and self._shut is not None:
            self._shut.repair()
        if holders is not None:
            self._open(holders)

    def _take_in(
        self, engine: PolicyEngine, *, full: bool, most: int | None = None
    ) -> tuple[SyncResult | None, dict[bytes, Attachment] | None]:
        """Bring what changed to the kernel, with the lock held. Raises KernelError.

        Returns what was done and who had which address then. ``most``: nothing is done for more changes than that.
        """
        number = self._settled.seen()
        changed, moved = self._tracker.take(), self._pods.take()
        holders = self._pods.holders()
        try:
            count = sum(map(len, changed.values())) + len(moved.keys)
            if most is not None and count > most:
                self._tracker.put_back(changed)
                self._pods.put_back(moved)
                return None, None
            keys = moved.keys.union(*map(engine.view.claimants, moved.addresses))
            if not (full or engine.stale or changed or keys or moved.addresses):
                self._settled.reached(number)
                return None, holders
            if keys:
                changed[POD] = changed.get(POD, set()) | keys
            waiting = {address: item.namespace for address, item in holders.items() if item.namespace}
            result = engine.sync(self._overlay, None if full else changed, waiting)
            self._settled.reached(number)
            return result, holders
        except BaseException:
            self._tracker.put_back(changed)
            self._pods.put_back(moved)
            raise

    def _open(self, holders: dict[bytes, Attachment]) -> None:
        """Open what is shut and has been programmed by a pass that knew these holders. Raises KernelError."""
        with self._shut_lock:
            held = self._shut_table().held()
            if not held:
                return
            now = self._pods.holders()
            self._shut_table().discard(
                [item for item in held if item not in now or now[item] is holders.get(item)]
            )

    def _shut_table(self) -> Shut:
        if self._shut is None:
            self._shut = Shut()
        return self._shut

    # --- events ------------------------------------------------------------------------------------------------------

    def _look_at_everything(self) -> None:
        """The next pass reads the kernel back, and comes at once."""
        self._full_at = float("-inf")
        self._runner.poke()

    def _work(self, job: Callable[[], T]) -> Awaitable[T]:
        """Run a blocking call on the worker."""
        return asyncio.get_running_loop().run_in_executor(self._worker, job)
