"""How network policies are doing: into health, metrics and the log.

Life: the component tells what it waits for, what it has programmed and what is not right beside; the runner how passes
end. All is said once, when it becomes so. ``/readyz`` is red as soon as something is not enforced as it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.policy.engine import PolicyEngine, SyncResult
from pycni.reconcile.runner import describe

log = logging.getLogger("pycni.policy")

PART = "policy"
SHOWN = 5
"""So many things are named in one line."""
SUSPECT = frozenset({NETWORK_POLICY, CLUSTER_NETWORK_POLICY, "file"})
"""What must not be unreadable."""


class PolicyReport:
    """Health part "policy" and ``pycni_policy_*``. Any thread may tell."""

    def __init__(self, health: Health | None, metrics: Registry, *, valid_s: float) -> None:
        """``valid_s``: after how long without a pass policies count as not kept."""
        self._health = health or Health()
        self._valid_s = valid_s
        self._waiting = "starting"
        self._failure = ""
        self._troubles: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._programmed = False
        self._health.expect(PART)
        self._seconds = metrics.histogram(
            "pycni_policy_pass_seconds", "Duration of passes that brought policies to the kernel.", ("full",)
        )
        self._failures = metrics.counter(
            "pycni_policy_pass_failures_total", "Passes over policies that failed."
        )
        self._operations = metrics.counter(
            "pycni_policy_operations_total", "Rows of policies written to the kernel."
        )
        self._repairs = metrics.counter(
            "pycni_policy_repairs_total",
            "Rows of policies a read-back found different from what had been programmed.",
        )
        self._admitted = metrics.histogram(
            "pycni_policy_admit_seconds", "From ADD asking for a pod's policies to their being in the kernel."
        )
        self._shut = metrics.counter(
            "pycni_policy_admitted_shut_total",
            "Pods that started shut because the kernel could not be told at once.",
        )

    @property
    def reason(self) -> str:
        """Why the kernel is not as the policies say; "" when it is."""
        return "; ".join(filter(None, (self._failure, self._waiting, *self._troubles.values())))

    @property
    def programmed(self) -> bool:
        """Whether a pass has succeeded."""
        return self._programmed

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said at the choice of data planes and harms no policy."""
        return tuple(filter(None, self._notes.values()))

    def waiting(self, reason: str) -> None:
        """What has to come before anything is programmed; "" when everything is there."""
        before, self._waiting = self._waiting, reason
        if reason and reason != before:
            log.info("policies wait: %s", reason)
            self._tell()

    def trouble(self, about: str, reason: str) -> None:
        """Something is not right, until it is called with ""."""
        before = self._troubles.get(about, "")
        if reason and reason != before:
            log.error("%s: %s", about, reason)
        elif before and not reason:
            log.info("%s: all well again", about)
        self._troubles[about] = f"{about}: {reason}" if reason else ""
        if reason != before:
            self._tell()

    def note(self, about: str, text: str) -> None:
        """Something worth knowing that takes nothing from the policies."""
        if text and text != self._notes.get(about):
            log.warning("policies: %s", text)
        self._notes[about] = text

    def refused(self, problems: Mapping[str, str], closed: Mapping[str, str]) -> None:
        """What the kernel refuses of policies, and the pods that are closed because of that."""
        text = ""
        if problems:
            shown = "; ".join(f"{name}: {why}" for name, why in list(problems.items())[:SHOWN])
            more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            pods = ", ".join(list(closed)[:SHOWN]) or "none"
            others = f" and {len(closed) - SHOWN} more" if len(closed) > SHOWN else ""
            text = f"{shown}{more}; closed pods: {pods}{others}"
        self.trouble("refused by the kernel", text)

    def admitted(self, seconds: float, *, shut: bool) -> None:
        """A pod's ADD may go on."""
        self._admitted.observe(seconds)
        if shut:
            self._shut.inc()

    def synced(self, result: SyncResult, sizes: Mapping[str, int]) -> None:
        """A pass has brought its changes to the kernel. ``sizes``: objects there are, by kind."""
        seconds = result.compile_s + result.apply_s
        self._seconds.observe(seconds, full=str(result.full).lower())
        self._operations.inc(result.operations)
        if not self._programmed:
            counts = ", ".join(f"{count} {kind}" for kind, count in sizes.items())
            log.info(
                "policies: programmed in %.3f s, %d rows changed; %s", seconds, result.operations, counts
            )
        elif result.full and result.operations and not result.rows:
            self._repairs.inc(result.operations)
            self._health.repaired(PART, result.operations, "rows in the kernel were not as programmed")
            log.warning("policies: %d rows were not as programmed and are set right", result.operations)
        else:
            log.debug("policies: %d rows, %.4f s", result.operations, seconds)
        self._programmed = True

    # --- the runner's observer -----------------------------------------------------------------------------------

    def passed(self, _component: str, _seconds: float) -> None:
        """Runner: a pass succeeded."""
        self._failure = ""
        self._tell()

    def failed(self, _component: str, error: Exception, failures: int) -> None:
        """Runner: a pass failed."""
        self._failures.inc()
        self._failure = f"{failures} passes failed, the last: {describe(error)}"
        self._tell()

    def _tell(self) -> None:
        reason = self.reason
        self._health.set(PART, not reason, reason, valid_for=self._valid_s)


class Unreadable:
    """Policies that make no sense, among all that does not."""

    def __init__(self, malformed: Callable[[], Mapping[str, str]]) -> None:
        """``malformed``: ``kind key`` or ``file name`` -> why it makes no sense."""
        self._malformed = malformed

    @property
    def text(self) -> str:
        """For health; "" when every policy can be read."""
        found = list(self._found().values())
        if not found:
            return ""
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return f"policies that cannot be read: {'; '.join(found[:SHOWN])}{more}"

    def problems(self, engine: PolicyEngine | None) -> dict[str, Sequence[str]]:
        """Lines by policy, those the kernel refuses too."""
        found: dict[str, Sequence[str]] = {}
        refused = engine.refusals.problems() if engine is not None else {}
        for name, why in (*self._found().items(), *refused.items()):
            key = name.partition(" (")[0]
            found[key] = (*found.get(key, ()), why)
        return found

    def _found(self) -> dict[str, str]:
        return {name: why for name, why in self._malformed().items() if name.partition(" ")[0] in SUSPECT}
