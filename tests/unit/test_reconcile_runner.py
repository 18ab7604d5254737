"""The reconcile loop: no poke is lost, failures back off and are reported, success resets."""

import asyncio
import logging
import selectors

import pytest

from pycni.errors import KernelError
from pycni.reconcile.backoff import Backoff
from pycni.reconcile.runner import Runner, TaskEndedError, describe, eternal


class _SkippingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the loop's clock."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("the loop would sleep for ever")
        if not ready:
            self.now += max(timeout, 0)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.skipping = _SkippingSelector()
        super().__init__(self.skipping)

    def time(self):
        return self.skipping.now


def run(main):
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main())


class Script:
    """A pass that fails as told and notes when it ran."""

    def __init__(self, *, fail=0, takes_s=0.0):
        self.fail = fail
        self.takes_s = takes_s
        self.started = []
        self.during = None

    async def __call__(self):
        self.started.append(round(asyncio.get_running_loop().time(), 3))
        if self.during is not None:
            self.during()
            self.during = None
        await asyncio.sleep(self.takes_s)
        if self.fail:
            self.fail -= 1
            raise KernelError(16, "add route", "10.1.0.0/24")


class Notes:
    def __init__(self):
        self.lines = []

    def passed(self, component, seconds):
        self.lines.append(f"{component} ok")

    def failed(self, component, error, failures):
        self.lines.append(f"{component} {failures}: {error}")


def steady():
    return Backoff(0.1, 1.0, jitter=0)


async def during(runner, seconds, *pokes):
    loop = asyncio.get_running_loop()
    for at in pokes:
        loop.call_at(at, runner.poke)
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_pass_runs_at_once_then_every_resync_interval():
    async def main():
        script = Script()
        await during(Runner("x", script, resync_s=10), 25)
        return script.started

    assert run(main) == [0, 10, 20]


def test_a_poke_wakes_at_once_and_many_pokes_are_one_pass():
    async def main():
        script = Script()
        await during(Runner("x", script, resync_s=10), 9, 3.0, 3.0, 3.0)
        return script.started

    assert run(main) == [0, 3]


def test_a_poke_during_a_pass_causes_another_pass():
    async def main():
        script = Script(takes_s=1)
        runner = Runner("x", script, resync_s=10)
        script.during = runner.poke
        await during(runner, 5)
        return script.started

    assert run(main) == [0, 1]


def test_passes_keep_the_minimum_gap_between_their_starts():
    async def main():
        script = Script()
        await during(Runner("x", script, resync_s=10, min_gap_s=2), 9, 0.5, 0.7, 2.5, 2.6)
        return script.started

    assert run(main) == [0, 2, 4]


def test_failures_back_off_are_reported_and_success_resets(caplog):
    caplog.set_level(logging.ERROR, "pycni.reconcile")

    async def main():
        script, notes = Script(fail=6), Notes()
        runner = Runner("x", script, resync_s=100, backoff=steady(), observer=notes)
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(5)
        script.fail = 1
        runner.poke()
        await asyncio.sleep(1)
        task.cancel()
        return script.started, notes.lines

    started, notes = run(main)
    assert started == [0, 0.1, 0.3, 0.7, 1.5, 2.5, 3.5, 5.0, 5.1]
    assert notes[0] == "x 1: add route 10.1.0.0/24: EBUSY"
    assert notes[5:] == [
        "x 6: add route 10.1.0.0/24: EBUSY",
        "x ok",
        "x 1: add route 10.1.0.0/24: EBUSY",
        "x ok",
    ]
    assert "x: pass failed (1 in a row)" in caplog.text


def test_a_lasting_failure_is_told_ever_more_rarely_and_another_one_at_once(caplog):
    caplog.set_level(logging.ERROR, "pycni.reconcile")
    reasons = ["a"] * 9 + ["b"] + ["a"]

    async def fail():
        if reasons:
            raise KernelError(16, f"add route {reasons.pop(0)}")

    async def main():
        await during(Runner("x", fail, resync_s=100, backoff=steady()), 50)

    run(main)
    told = [record.getMessage().split("add route ")[1][0] for record in caplog.records]
    assert told == ["a", "a", "a", "a", "b", "a"]  # the 1st, 2nd, 4th, 8th, 10th and 11th


def test_a_poke_ends_the_back_off(caplog):
    caplog.set_level(logging.CRITICAL, "pycni.reconcile")

    async def main():
        script = Script(fail=1)
        runner = Runner("x", script, backoff=Backoff(60, 60, jitter=0))
        await during(runner, 9, 3.0)
        return script.started, runner.last_success

    assert run(main) == ([0, 3], 3)


def test_cancellation_ends_it_even_inside_a_pass():
    async def main():
        script = Script(takes_s=100)
        await during(Runner("x", script), 1)
        return script.started

    assert run(main) == [0]


def test_an_idle_loop_does_not_wake():
    async def main():
        script = Script()
        runner = Runner("x", script, resync_s=3600)
        await during(runner, 3599)
        return runner.passes

    assert run(main) == 1


def test_an_eternal_task_that_returns_is_an_error():
    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(eternal("watch", asyncio.sleep(1)))
            group.create_task(eternal("other", asyncio.sleep(3600)))

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    (error,) = caught.value.exceptions
    assert isinstance(error, TaskEndedError)
    assert str(error) == "watch ended although it must run for ever"


def test_backoff_grows_is_capped_jittered_and_reset():
    backoff = Backoff(1, 5, factor=2, jitter=0.5, chance=lambda: 0.5)
    assert [backoff.next() for _ in range(5)] == [0.75, 1.5, 3.0, 3.75, 3.75]
    assert backoff.failures == 5
    backoff.reset()
    assert (backoff.next(), backoff.failures) == (0.75, 1)


@pytest.mark.parametrize("values", [(0, 1), (2, 1), (-1, 1)])
def test_backoff_refuses_senseless_bounds(values):
    with pytest.raises(ValueError, match="initial_s"):
        Backoff(*values)


def test_grouped_errors_are_described_on_one_line():
    group = ExceptionGroup("apply", [KernelError(1, f"add route {i}") for i in range(7)])
    assert describe(group).startswith("add route 0: EPERM; add route 1: EPERM")
    assert describe(group).endswith("; and 2 more")
