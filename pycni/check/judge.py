"""What an answer means: right, or wrong and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pycni.check.model import Answer, Case, Failure, Result, Test


def judge(case: Case, answer: Answer | None) -> str:
    """Why a case went wrong; "" when it did not."""
    want = case.expect
    if answer is None:
        return f"{case.source.name} did not tell what came of it"
    if want.denied:
        return "" if answer.why else "it got through, though policies deny it"
    if answer.why:
        return answer.why
    if want.addresses and tuple(sorted(answer.who)) != want.addresses:
        found = " ".join(answer.who) or "nothing"
        return f"the name stands for {found}, not for {' '.join(want.addresses)}"
    wrong = [name for name in answer.who if want.who and name not in want.who]
    if wrong:
        return f"answered by {' '.join(wrong)}, not by {' or '.join(want.who)}"
    if want.same and len(answer.who) > 1:
        return f"answered by {' and '.join(answer.who)} in spite of session affinity"
    strange = [address for address in answer.seen if want.seen and address not in want.seen]
    if strange:
        return f"seen as {' '.join(strange)} and not as {' or '.join(want.seen)}: not masqueraded"
    return ""


def failed(test: Test, answers: Mapping[int, Answer]) -> list[tuple[Case, str]]:
    """The cases that went wrong, and why."""
    found = [(case, judge(case, answers.get(case.task.number))) for case in test.cases]
    return [(case, reason) for case, reason in found if reason]


def result(test: Test, answers: Mapping[int, Answer], failures: tuple[Failure, ...]) -> Result:
    """A line of the table."""
    status = "skipped" if test.skipped else "failed" if failures else "ok"
    own = [answers[case.task.number] for case in test.cases if case.task.number in answers]
    silent = {case.task.number for case in test.cases if case.expect.denied}
    return Result(
        name=test.name,
        about=test.about,
        status=status,
        tried=len(test.cases),
        slowest_ms=max((item.ms for item in own if item.number not in silent), default=0.0),
        failures=failures,
        note=test.skipped,
    )
