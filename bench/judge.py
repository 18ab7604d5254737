"""Joins a run with the targets of the issues: which were met, which missed, which not measured. Pure."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import NamedTuple

from bench.model import Report, Row, Screen
from bench.targets import TARGETS, Target

MET, MISSED, TOLD, NOT_MEASURED = "yes", "NO", "told", ""
SUITE = "suite"
"""The screen about the run itself."""


class Judged(NamedTuple):
    """A target and what this run says of it."""

    target: Target
    rows: tuple[Row, ...]
    """Those that answer it, the one furthest from its bound first."""
    word: str
    """MET, MISSED, TOLD or NOT_MEASURED."""

    @property
    def missing(self) -> int:
        """How many of the rows missed."""
        return sum(row.met == "NO" for row in self.rows)


def judge(report: Report) -> list[Judged]:
    """All targets, in their table's order."""
    rows = {screen.name: screen.rows for screen in report.screens}
    return [_one(target, rows.get(target.file, [])) for target in TARGETS]


def summary(report: Report) -> str:
    """One line about all of them."""
    words = [item.word for item in judge(report)]
    return (
        f"targets: {words.count(MET)} met, {words.count(MISSED)} missed, "
        f"{words.count(NOT_MEASURED)} not measured in this run; {words.count(TOLD)} figures asked for and told"
    )


def suite(took_s: float, *, quick: bool) -> Screen:
    """How long all files took."""
    question, target = (
        ("a quick run of the whole suite, minutes", "<= 6")
        if quick
        else ("the whole suite, minutes", "<= 40")
    )
    told = Row(question=question, ours=f"{took_s / 60:.1f} min", ratio=took_s / 60, target=target)
    return Screen(name=SUITE, title="How long does the whole suite take?", rows=[told], took_s=took_s)


def _one(target: Target, rows: list[Row]) -> Judged:
    found = [row for row in rows if fnmatchcase(row.question, target.question)]
    if target.only_told:
        return Judged(target, tuple(found), TOLD if found else NOT_MEASURED)
    found = sorted((row for row in found if row.met in {"yes", "NO"}), key=_beyond, reverse=True)
    if not found:
        return Judged(target, (), NOT_MEASURED)
    return Judged(target, tuple(found), MISSED if any(row.met == "NO" for row in found) else MET)


def _beyond(row: Row) -> float:
    """How many times its bound a row is; above one it missed."""
    relation, text = row.target.split()[:2]
    ratio, bound = row.ratio or 0.0, float(text)
    above, below = (ratio, bound) if relation[0] == "<" else (bound, ratio)
    return above / below if below else above * math.inf if above else 0.0
