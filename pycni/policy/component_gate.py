"""Pods are let in: the part of the policy component that CNI calls meet (``agent/cni_ports.EndpointGate``).

Life of an ADD: before the pod has a device its policies are programmed by the calling thread, together with the few
changes that are pending. When that cannot be done at once (not everything is listed yet, a long pass is under way, the
kernel refuses) the pod's addresses are shut in a table of their own, and opened by the next pass that succeeds: the ADD
goes on, and the pod heals by itself. Error 11 would be as safe, but would have the runtime tear pods down and make them
anew for as long as the API is away. Only when the pod cannot even be shut does the ADD fail.

Any thread; the engine is touched with the component's lock held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from pycni.errors import CniError, KernelError
from pycni.kernel import bpf_places, conntrack
from pycni.model.endpoint import Endpoint
from pycni.model.kube import POD
from pycni.policy import spoof
from pycni.policy.base import Denied
from pycni.policy.component_report import SHOWN, PolicyReport
from pycni.policy.engine import PolicyEngine, SyncResult
from pycni.policy.insides import Insides, is_inside
from pycni.policy.pods import Attachment, LocalPods, Overlay, addresses_of, local_pod_of
from pycni.policy.settled import Settled
from pycni.policy.shut import TABLE as SHUT_TABLE
from pycni.policy.shut import Shut
from pycni.store import Tracker

log = logging.getLogger("pycni.policy")

ADD_WAIT_S = 0.25
"""How long an ADD waits for a pass that is under way, before its pod starts shut."""
ADD_CHANGES = 64
"""With at most so many changed objects pending an ADD programs them along with its pod."""


class Gate:
    """One per component."""

    def __init__(  # noqa: PLR0917 - the parts of its component
        self,
        lock: threading.Lock,
        pods: LocalPods,
        tracker: Tracker,
        objects: Overlay,
        report: PolicyReport,
        changed: Callable[[], None],
        *,
        settled: Settled,
        spoof_check: bool,
        insides: Insides,
        without_admin: bool = False,
        make_shut: Callable[[], Shut] = Shut,
    ) -> None:
        """``lock``: who holds it has the engine. ``changed``: have a pass soon; on any thread.

        ``insides``: pods whose policies are enforced inside them; ``without_admin``: none that could undo them.
        """
        self._make_shut = make_shut
        self._lock = lock
        self._pods = pods
        self._tracker = tracker
        self.settled = settled
        self._objects = objects
        self._report = report
        self._changed = changed
        self.engine: PolicyEngine | None = None
        self.followed = False
        """All records of pods are known."""
        self._shut_lock = threading.Lock()
        self._shut: Shut | None = None
        self.insides = insides
        self._without_admin = without_admin
        self._guard_lock = threading.Lock()
        self._guard: spoof.Guard | None = None
        self._spoof_check = spoof_check
        self._guard_due = True

    def close(self) -> None:
        """Release sockets; the kernel keeps everything."""
        with self._shut_lock:
            if self._shut is not None:
                self._shut.close()
        with self._guard_lock:
            if self._guard is not None:
                self._guard.close()
        self.insides.close()

    # --- cni_ports.EndpointGate --------------------------------------------------------------------------------------

    def admit(self, endpoint: Endpoint, netns_fd: int | None = None) -> None:
        """Have a pod's policies in the kernel, or the pod shut. Raises KernelError when neither can be had."""
        began = time.perf_counter()
        self._pods.put(endpoint)
        addresses = addresses_of(endpoint)
        if not addresses:
            return
        if is_inside(endpoint):
            self._refuse_admin(endpoint)
            if netns_fd is not None:
                self.insides.admit(endpoint, netns_fd)
        guard = self._checking()
        if guard is not None:
            guard.admit(local_pod_of(endpoint))
        if not (endpoint.pod_namespace or is_inside(endpoint)):
            return
        programmed = self._admit_now() and self.insides.open(endpoint.owner)
        if not programmed:
            with self._shut_lock:
                self._shut_table().add(addresses)
            log.info("%s starts shut, until its policies are in the kernel", endpoint.owner)
            self._changed()
        self._report.admitted(time.perf_counter() - began, shut=not programmed)

    def _refuse_admin(self, endpoint: Endpoint) -> None:
        """Refuse a pod that could undo its policies, where that is asked for. Raises CniError."""
        if not (self._without_admin and endpoint.pod_namespace):
            return
        key = f"{endpoint.pod_namespace}/{endpoint.pod_name}"
        pod = self._objects.of(POD).get(key)
        if pod is None or (endpoint.pod_uid and pod.meta.uid and endpoint.pod_uid != pod.meta.uid):
            raise CniError(
                CniError.TRY_AGAIN_LATER, f"pod {key} is not known here yet: policy-net-admin=refuse"
            )
        if pod.net_admin:
            reason = "policy-net-admin=refuse: on the underlay it could undo its policies"
            raise CniError(
                CniError.INVALID_NETWORK_CONFIG, f"pod {key} may change its network (CAP_NET_ADMIN)", reason
            )

    def attached(self, endpoint: Endpoint) -> None:
        """The pod has its devices. Raises KernelError."""
        if is_inside(endpoint):
            self.insides.attached(endpoint)

    def gone(self, endpoint: Endpoint) -> None:
        """Forget a pod that is cut off; the next pass clears its rows away."""
        known = self._pods.remove(endpoint.owner)
        self.insides.gone(endpoint.owner)
        if known:
            self._forget_connections(endpoint)
        guard = self._checking() if known and endpoint.host_ifname else None
        if guard is not None:
            try:
                guard.gone(endpoint.host_ifname)
            except KernelError as error:
                log.warning("%s: its check of senders stays for now: %s", endpoint.owner, error)
                self._guard_due = True
        if known:
            self._changed()

    def _forget_connections(self, endpoint: Endpoint) -> None:
        """What was allowed to this pod is not to be inherited by the next one with its addresses."""
        addresses = addresses_of(endpoint)
        try:
            if bpf_places.existing("policy"):
                from pycni.policy.ebpf import fastpath  # noqa: PLC0415 - only where there are programs

                fastpath.forget(addresses)
            forgotten = conntrack.forget_host(addresses)
        except KernelError as error:
            log.warning("%s: its connections stay tracked: %s", endpoint.owner, error)
        else:
            log.debug("%s: %d connections forgotten", endpoint.owner, forgotten)

    def _admit_now(self) -> bool:
        if not self._report.programmed or not self._lock.acquire(timeout=ADD_WAIT_S):
            return False
        try:
            engine = self.engine
            if engine is None or engine.stale or engine.refusals.rows:
                return False
            holders = self.take_in(engine, full=False, most=ADD_CHANGES)[1]
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

    # --- for passes --------------------------------------------------------------------------------------------------

    def take_in(
        self, engine: PolicyEngine, *, full: bool, again: bool = False, most: int | None = None
    ) -> tuple[SyncResult | None, dict[bytes, Attachment] | None]:
        """Bring what changed to the kernel, with the lock held. Raises KernelError.

        Returns what was done and who had which address then. ``most``: nothing is done for more changes than that.
        """
        number = self.settled.seen()
        engine.programmed = self.insides.note
        changed, moved = self._tracker.take(), self._pods.take()
        holders = self._pods.holders()
        try:
            count = sum(map(len, changed.values())) + len(moved.keys)
            if most is not None and count > most:
                self._tracker.put_back(changed)
                self._pods.put_back(moved)
                return None, None
            keys = moved.keys.union(*map(engine.view.claimants, moved.addresses))
            due = full or again or engine.stale or bool(engine.aside)
            if not (due or changed or keys or moved.addresses):
                self._bring_inside(engine, holders)
                self.settled.reached(number)
                return None, holders
            if keys:
                changed[POD] = changed.get(POD, set()) | keys
            waiting = {address: item.namespace for address, item in holders.items() if item.namespace}
            result = engine.sync(self._objects, None if full else changed, waiting, again=again)
            self._bring_inside(engine, holders)
            self.settled.reached(number)
            return result, holders
        except BaseException:
            self._tracker.put_back(changed)
            self._pods.put_back(moved)
            raise

    def _bring_inside(self, engine: PolicyEngine, holders: Mapping[bytes, Attachment]) -> None:
        """Bring policies into the pods that are to enforce them; what fails there is told and tried again."""
        rows = self.insides.bring(engine.view, holders)
        if rows:
            log.debug("policies: %d rows inside pods", rows)
        self._report.trouble("policies inside pods", self.insides.problems)
        self._report.note("packet sockets", self.insides.lacks)
        known = self._objects.of(POD)
        mighty = sorted(key for key in self.insides.pods() if key in known and known[key].net_admin)
        text = ", ".join(mighty[:SHOWN]) + (f" and {len(mighty) - SHOWN} more" if len(mighty) > SHOWN else "")
        self._report.note(
            "CAP_NET_ADMIN", text and f"these pods could undo their policies (CAP_NET_ADMIN): {text}"
        )

    def programmed(self, holders: dict[bytes, Attachment] | None, *, full: bool) -> None:
        """A pass has succeeded that knew these holders. Raises KernelError."""
        if full and self._shut is not None:
            self._shut.repair()
        if full:
            self._guard_due = True
        if holders is not None:
            self._open(holders)

    @property
    def due(self) -> bool:
        """Whether ``look_after`` has anything to do."""
        return self._guard_due and self.followed

    def doubt_senders(self) -> None:
        """Somebody took away what checks pods' own addresses."""
        self._guard_due = True

    def look_after(self) -> bool:
        """Bring the check of pods' own addresses to the records there are; whether there is one. On the worker."""
        guard = self._checking()
        self._guard_due = False
        if guard is None:
            self._forget_check()
            return False
        try:
            rows = guard.apply([pod for pod in self._pods.pods() if pod.addresses])
        except KernelError as error:
            self._guard_due = True
            self._report.trouble("check of pods' own addresses", str(error))
            return False
        self._report.trouble("check of pods' own addresses", "")
        if rows:
            log.info("policies: %d rows of the check of pods' own addresses set right", rows)
        return True

    @property
    def checks_routed(self) -> bool:
        """Whether there is a check for pods on links of their own: there is while there are such pods."""
        return self._guard is not None and self._guard.routed

    def _forget_check(self) -> None:
        """Take away what an earlier agent left that checked senders: this one does not."""
        try:
            guard = spoof.Guard()
            try:
                gone = guard.remove()
            finally:
                guard.close()
        except KernelError as error:
            log.debug("no check of senders to take away: %s", error)
            return
        if gone:
            log.info("policies: senders are not checked any more: removed %s", ", ".join(gone))

    def held(self) -> frozenset[bytes]:
        """Addresses that are shut. Raises KernelError."""
        with self._shut_lock:
            return frozenset() if self._shut is None else self._shut.held()

    def sides(self) -> Sequence[tuple[str, Sequence[str], Sequence[str]]]:
        """Tables of its own: name, what each is to hold, what it holds (``pycnictl dump``). Raises KernelError."""
        found = [] if self._guard is None else [*self._guard.sides()]
        with self._shut_lock:
            return [*found, (f"table inet {SHUT_TABLE}", *self._shut_table().sides())]

    def denied(self) -> Sequence[Denied]:
        """What pods were refused to send with others' addresses. Raises KernelError."""
        senders = () if self._guard is None else self._guard.denied()
        return [*senders, *self.insides.denied()]

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
            self._shut = self._make_shut()
        return self._shut

    def _checking(self) -> spoof.Guard | None:
        """The check of pods' own addresses. Raises KernelError."""
        with self._guard_lock:
            if self._spoof_check and self._guard is None:
                lacks = spoof.missing()
                if lacks:
                    self._spoof_check = False
                    self._report.note("spoof check", f"pods are not held to their own addresses: {lacks}")
                else:
                    self._guard = spoof.Guard()
            return self._guard
