"""A whole check, from an empty ground to a table.

Life: the ground is asked what is there and brings the check's pods; the tests of each phase are tried all at once,
failures tried again in a trace while things are as they were; and whatever happens, what was brought is taken away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from pycni.check import cause, objects, plan
from pycni.check.ground import Ground
from pycni.check.judge import failed, result
from pycni.check.model import ALLOW, DENY, OPEN, Answer, Case, Failure, Outcome, Result, Scene, Test
from pycni.errors import PycniError
from pycni.trace.model import Trace

TRACES = 8
"""At most so many are made of failures: the first ones tell the most."""
PER_TEST = 2
START, STARTED = "pods-start", "pods are made, get their network and start"
"""Not among the plan's: without it there are no others."""


class Show(Protocol):
    """Where progress goes."""

    def doing(self, what: str) -> None:
        """What is going on now."""

    def planned(self, tests: Sequence[Test]) -> None:
        """What will be tried."""

    def done(self, found: Result) -> None:
        """One test is through."""


class Wanted:
    """What was asked for."""

    def __init__(self, patterns: Sequence[str] = (), *, keep: bool = False, restart: bool = False) -> None:
        """``patterns``: of tests' names; none: all. ``keep``: leave the pods. ``restart``: an agent, at the end."""
        self.patterns, self.keep, self.restart = patterns, keep, restart


class NothingError(PycniError):
    """No test has such a name."""

    usage = True


def check(ground: Ground, wanted: Wanted, show: Show) -> Outcome:
    """Check, and leave nothing behind. Raises PycniError where nothing can be checked."""
    started = time.monotonic()
    site = ground.site()
    if not plan.chosen(plan.tests(plan.sketch()), wanted.patterns):
        names = ", ".join(wanted.patterns)
        raise NothingError(f"--test {names}: no such test; pycnictl check --list shows them")
    notes: list[str] = []
    if site.left_out:
        notes.append(f"{site.left_out} more nodes are not tried (--nodes)")
    try:
        show.doing(f"pods in {site.name}")
        began = time.monotonic()
        try:
            scene = ground.bring()
        except PycniError as error:
            found = [_not_started(str(error))]
        else:
            found = _phases(ground, scene, wanted, show, (time.monotonic() - began) * 1000)
            if wanted.restart and site.restarts:
                show.doing("restarting an agent")
                found.append(ground.restart(scene))
                show.done(found[-1])
    finally:
        if not wanted.keep:
            show.doing("removing the pods")
            notes += ground.clear()
    return Outcome(
        site=site.name, results=tuple(found), seconds=time.monotonic() - started, notes=tuple(notes)
    )


def _not_started(why: str) -> Result:
    failure = Failure(case="pods with servers", reason=why)
    return Result(name=START, about=STARTED, status="failed", tried=1, failures=(failure,))


def _phases(ground: Ground, scene: Scene, wanted: Wanted, show: Show, took_ms: float) -> list[Result]:
    """All tests, in the order of the plan. ``took_ms``: until the pods were there."""
    tests = plan.chosen(plan.tests(scene), wanted.patterns)
    show.planned(tests)
    tracer = _Tracer(ground)
    pods = len(scene.pods)
    note = f"{pods} pods in {took_ms / 1000:.1f} s"
    found = [Result(name=START, about=STARTED, status="ok", tried=pods, slowest_ms=took_ms, note=note)]
    for phase, what in ((OPEN, "ways"), (DENY, "policies that deny"), (ALLOW, "policies that allow")):
        mine = [test for test in tests if test.phase == phase]
        cases = [case for test in mine for case in test.cases]
        if cases:
            show.doing(f"{what}: {len(cases)} tries")
            if phase != OPEN:
                _police(ground, scene, phase)
            answers = ground.ask(cases)
        for test in mine:
            found.append(_concluded(test, answers if cases else {}, tracer, show))
            show.done(found[-1])
    return found


def _police(ground: Ground, scene: Scene, phase: int) -> None:
    """The policies a phase is about, with those before."""
    ground.police(objects.denying(scene.site))
    if phase == ALLOW:
        ground.police(objects.allowing(scene.site))


def _concluded(test: Test, answers: dict[int, Answer], tracer: _Tracer, show: Show) -> Result:
    wrong = failed(test, answers)
    if wrong:
        show.doing(f"{test.name}: tracing what failed")
        tracer.next_test()
    return result(test, answers, tuple(tracer.why(case, reason) for case, reason in wrong))


class _Tracer:
    """Finds out why: one trace for all cases of a pair, and not more than tell something new."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._left, self._for_test = TRACES, 0
        self._known: dict[tuple[str, str, bool], Trace | str | None] = {}

    def next_test(self) -> None:
        """Failures of another test follow."""
        self._for_test = min(self._left, PER_TEST)

    def why(self, case: Case, reason: str) -> Failure:
        """The failure with its cause, where one is found."""
        pair = (case.source.name, case.task.host, case.expect.denied)
        if pair not in self._known:
            asked = cause.question(case)
            if asked is None or not self._for_test:
                return cause.explained(case, reason, None)
            self._left, self._for_test = self._left - 1, self._for_test - 1
            self._known[pair] = self._traced(asked)
        found = self._known[pair]
        if isinstance(found, str):
            return Failure(case=case.words, reason=reason, cause=found)
        return cause.explained(case, reason, found)

    def _traced(self, asked: cause.Question) -> Trace | str | None:
        """The trace; or why there is none."""
        try:
            return self._ground.trace(*asked)
        except (PycniError, OSError) as error:
            return f"no trace of it: {error}"
