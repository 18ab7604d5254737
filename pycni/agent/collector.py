"""Clears away what outlived its pod: most runtimes never send the CNI verb GC, and a DEL can get lost.

Life: a thread of its own sweeps once per interval: endpoints and reservations are listed, the node is looked at
(``agent/liveness``), ``ipam/collect`` judges, and what was found gone twice is removed here. An endpoint is handed
to ``remove``, so that links, rules and addresses go the way DEL takes them; a reservation without endpoint is discarded
from its pool. An address of a running endpoint whose reservation file vanished is reserved again.

Races with CNI calls: an owner is ``busy`` from before its ADD or DEL touches anything until after its endpoint is
stored or removed. ``remove`` must take the owner's lock and do nothing when the store no longer has that very endpoint.
Discarding and restoring ask again while the pool is locked, so an ADD or DEL comes before or after, never between.

Only pools this agent has used are swept: a directory of another plugin's network beside them is never touched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

from pycni.agent.liveness import Observer
from pycni.errors import IpamError, PycniError
from pycni.ipam import collect
from pycni.ipam.audit import Finding, Row, audit, rows
from pycni.ipam.collect import Held, Misses, View
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools, Reservation
from pycni.model.endpoint import Endpoint, Owner

log = logging.getLogger("pycni.collector")


class Collector:
    """The periodic sweep. The counters are plain attributes for ``agent/metrics`` to read."""

    def __init__(
        self,
        *,
        pools: Pools,
        endpoints: EndpointStore,
        remove: Callable[[Endpoint], object],
        busy: Callable[[], Collection[Owner]],
        observer: Observer | None = None,
        interval_s: float = 60.0,
        first_s: float = 10.0,
        endpoint_grace_s: float = 30.0,
        reservation_grace_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first_s``: from `start` to the first sweep; the graces: between the first miss and the removal."""
        self._pools = pools
        self._endpoints = endpoints
        self._remove = remove
        self._busy = busy
        self._observer = observer or Observer()
        self._interval_s = interval_s
        self._first_s = first_s
        self._endpoint_grace_s = endpoint_grace_s
        self._reservation_grace_s = reservation_grace_s
        self._clock = clock
        self._misses: Misses = {}
        self._sweeping = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.sweeps = 0
        """Sweeps completed."""
        self.failures = 0
        """Removals and whole sweeps that raised; each is tried again in the next sweep."""
        self.endpoints_removed = 0
        self.reservations_removed = 0
        self.reservations_restored = 0
        self.suspects = 0
        """Subjects found gone by the last sweep, removed or waiting for their second miss."""
        self.last_success: float | None = None
        """When the last sweep without failure ended, on the collector's clock."""
        self.last_duration_s = 0.0

    def start(self) -> None:
        """Begin to sweep in a thread."""
        if self._thread is not None:
            raise RuntimeError("the collector has been started already")
        self._thread = threading.Thread(target=self._run, name="pycni-collector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the sweep under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sweep(self) -> collect.Sweep:
        """Look once and act. Raises what looking raised; what a removal raised is logged and counted."""
        with self._sweeping:
            began = self._clock()
            failures = self.failures
            held, endpoints = self._listed()
            view = self._observer.view(held, endpoints)
            decided = collect.sweep(
                held,
                endpoints,
                view,
                busy=self._busy(),
                misses=self._misses,
                now=self._clock(),
                endpoint_grace_s=self._endpoint_grace_s,
                reservation_grace_s=self._reservation_grace_s,
            )
            self._misses = decided.misses
            self._act(decided)
            self.sweeps += 1
            self.suspects = len(decided.misses)
            self.last_duration_s = self._clock() - began
            if self.failures == failures:
                self.last_success = self._clock()
            return decided

    def audit(self) -> tuple[Finding, ...]:
        """Everything irregular now, for ``pycnictl ipam check``; looks at every namespace, changes nothing."""
        held, endpoints = self._listed()
        view: View = self._observer.view(held, endpoints, deep=True)
        return audit(held, endpoints, view, busy=self._busy())

    def rows(self) -> tuple[Row, ...]:
        """Every reservation with its pod, for ``pycnictl ipam show``."""
        return rows(*self._listed())

    def release(self, found: Finding) -> bool:
        """Free what a finding of `audit` named, for ``pycnictl ipam release``; False when it is not so any more.

        Only leaks and unverified reservations; the operator's word replaces the second look, not the others: an
        endpoint that is found alive, or is being worked on, stays.
        """
        present = {self._key(finding) for finding in self.audit()}
        if self._key(found) not in present:
            return False
        owner = Owner(found.network, found.container_id, found.ifname)
        if found.kind == "leaked-endpoint":
            endpoint = self._endpoints.get(owner)
            return endpoint is not None and self._remove_endpoint(endpoint, "released by an operator")
        if found.kind in ("leaked-reservation", "unverified-reservation"):
            matching = [h for h in self._listed()[0] if h.owner == owner and str(h.address) == found.address]
            return sum(self._discard(held, "released by an operator") for held in matching) > 0
        return False

    @staticmethod
    def _key(finding: Finding) -> tuple[str, ...]:
        return (
            finding.kind,
            finding.network,
            finding.address,
            finding.container_id,
            finding.ifname,
            finding.data_dir,
        )

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._stop.wait(wait_s):
            try:
                self.sweep()
            except Exception:
                self.failures += 1
                log.exception("a sweep failed; the next one is in %g s", self._interval_s)
            wait_s = self._interval_s

    def _listed(self) -> tuple[list[Held], tuple[Endpoint, ...]]:
        """Every reservation of every pool in use, and every endpoint.

        A pool that cannot be read is left out with its endpoints, is counted as a failure and stops no other.
        """
        endpoints = self._endpoints.all()
        for endpoint in endpoints:
            if endpoint.data_dir:
                self._pools(endpoint.data_dir, endpoint.network)
        held: list[Held] = []
        unread: set[tuple[str, str]] = set()
        for pool in self._pools.all():
            try:
                held += [Held(pool.data_dir, found.address, found.owner) for found in pool.reservations()]
            except IpamError as exc:
                self.failures += 1
                unread.add((pool.data_dir, pool.network))
                log.error("network %s: its reservations are not looked at: %s", pool.network, exc)  # noqa: TRY400
        # Listed once more, after the reservations: an attachment made meanwhile must not lack its endpoint.
        present = self._endpoints.all()
        return held, tuple(one for one in present if (one.data_dir, one.network) not in unread)

    def _act(self, decided: collect.Sweep) -> None:
        for endpoint, why in decided.endpoints:
            self._attempt(partial(self._remove_endpoint, endpoint, why), endpoint.owner)
        for held, why in decided.reservations:
            self._attempt(partial(self._discard, held, why), held.owner)
        for endpoint, address in decided.lost:
            lost = Held(endpoint.data_dir, address, endpoint.owner)
            self._attempt(partial(self._restore, lost, endpoint), endpoint.owner)

    def _attempt(self, action: Callable[[], object], owner: Owner) -> None:
        """One failing removal does not stop the others."""
        try:
            action()
        except (PycniError, OSError) as exc:
            self.failures += 1
            log.error("%s: cannot be collected now, will be tried again: %s", _show(owner), exc)  # noqa: TRY400
        except Exception:
            self.failures += 1
            log.exception("%s: cannot be collected now, will be tried again", _show(owner))

    def _remove_endpoint(self, endpoint: Endpoint, why: str) -> bool:
        owner = endpoint.owner
        if self._endpoints.get(owner) != endpoint or owner in self._busy():
            return False
        addresses = ", ".join(str(interface.ip) for interface in endpoint.addresses) or "no address"
        log.warning("%s: removing its endpoint (%s): %s", _show(owner), addresses, why)
        self._remove(endpoint)
        self.endpoints_removed += 1
        return True

    def _discard(self, held: Held, why: str) -> bool:
        def claimed() -> bool:
            return held.owner in self._busy() or self._endpoints.get(held.owner) is not None

        reservation = Reservation(held.address, held.owner)
        if not self._pools(held.data_dir, held.owner.network).discard(reservation, unless=claimed):
            return False
        self.reservations_removed += 1
        log.warning("%s: discarded the reservation of %s: %s", _show(held.owner), held.address, why)
        return True

    def _restore(self, held: Held, endpoint: Endpoint) -> bool:
        def changed() -> bool:
            return held.owner in self._busy() or self._endpoints.get(held.owner) != endpoint

        reservation = Reservation(held.address, held.owner)
        if not self._pools(held.data_dir, held.owner.network).restore(reservation, unless=changed):
            return False
        self.reservations_restored += 1
        log.warning(
            "%s: reserved %s again: a running pod has it, but its file in %s was gone",
            _show(held.owner),
            held.address,
            held.data_dir,
        )
        return True


def _show(owner: Owner) -> str:
    if not owner.container_id:
        return f"network {owner.network}, unknown container"
    return f"network {owner.network}, container {owner.container_id}, interface {owner.ifname or '(any)'}"
