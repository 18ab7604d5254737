"""How the proxy component is doing: into health, the log and the answers to load balancers.

Life: the component tells what it waits for, what it made and what cannot be honoured; the runner how passes end. All
is said once, when it becomes so. ``/readyz`` is red as soon as something is not in the kernel; load balancers are told
so (``well``) only when it stays that way for ``STALL_S``, because they take all traffic away from this node then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from pycni.agent.health import Health
from pycni.reconcile.runner import describe
from pycni_proxy.engine import SyncResult

log = logging.getLogger("pycni.proxy")

PART = "proxy"
STALL_S = 30.0
"""So long programming may fail before load balancers hear of it; kube-proxy's is twice its sync period, 60 s."""


class ProxyReport:
    """Health part "proxy". ``clock``: monotonic seconds; any thread may ask, one tells."""

    def __init__(
        self,
        health: Health | None = None,
        *,
        valid_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``valid_s``: after how long without a pass the proxy is not well any more."""
        self._health = health or Health()
        self._valid_s = valid_s
        self._clock = clock
        self._waiting = "starting"
        self._failing_since: float | None = None
        self._failure = ""
        self._programmed = False
        self._problems: Mapping[str, Sequence[str]] = {}
        self._troubles: dict[str, str] = {}
        self._health.expect(PART)

    @property
    def reason(self) -> str:
        """Why the kernel is not as the services say; "" when it is."""
        return "; ".join(filter(None, (self._failure, self._waiting, *self._troubles.values())))

    def well(self) -> bool:
        """Whether load balancers should send traffic here: programmed once, and failing for a short while at most."""
        if not self._programmed:
            return False
        return self._failing_since is None or self._clock() - self._failing_since < STALL_S

    def waiting(self, reason: str) -> None:
        """What has to come before services are programmed; "" when everything is there."""
        if reason and reason != self._waiting:
            log.info("services wait: %s", reason)
        self._waiting = reason

    def trouble(self, about: str, reason: str) -> None:
        """Something beside the passes is not right, until it is called with ""."""
        before = self._troubles.get(about, "")
        if reason and reason != before:
            log.error("%s: %s", about, reason)
        elif before and not reason:
            log.info("%s: all well again", about)
        self._troubles[about] = reason
        if reason != before:
            self._tell()

    def programmed(self, result: SyncResult, planes: Sequence[str], services: int) -> None:
        """A pass has brought its changes to the kernel."""
        seconds = result.resolve_s + result.apply_s
        if not self._programmed:
            log.info(
                "services: %d programmed by %s in %.3f s, %d rows changed",
                services,
                " and ".join(planes),
                seconds,
                result.operations,
            )
        elif result.full and result.operations and not result.services:
            self._health.repaired(PART, result.operations, "rows in the kernel were not as programmed")
            log.warning("services: %d rows were not as programmed and are set right", result.operations)
        else:
            log.debug(
                "services: %d of %d changed, %d rows, %.4f s",
                len(result.services),
                services,
                result.operations,
                seconds,
            )
        self._programmed = True

    def problems(self, problems: Mapping[str, Sequence[str]]) -> None:
        """What cannot be honoured, by service; only news is logged."""
        for key, lines in problems.items():
            before = self._problems.get(key, ())
            for line in lines:
                if line not in before:
                    log.warning("service %s: %s", key, line)
        for key in self._problems.keys() - problems.keys():
            log.info("service %s: nothing refused any more", key)
        self._problems = {key: tuple(lines) for key, lines in problems.items()}

    # --- the runner's observer -------------------------------------------------------------------------------

    def passed(self, _component: str, _seconds: float) -> None:
        """Runner: a pass succeeded."""
        self._failing_since, self._failure = None, ""
        self._tell()

    def failed(self, _component: str, error: Exception, failures: int) -> None:
        """Runner: a pass failed."""
        if self._failing_since is None:
            self._failing_since = self._clock()
        self._failure = describe(error)
        self._health.set(PART, ok=False, reason=f"{failures} passes failed, the last: {self._failure}")

    def _tell(self) -> None:
        reason = self.reason
        self._health.set(PART, not reason, reason, valid_for=self._valid_s)
