"""A check for people and for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pycni.check.model import Failure, Outcome, Result, Test

SIGNS = {"ok": "✓", "failed": "✗", "skipped": "-"}
COLOURS = {"ok": "\033[32m", "failed": "\033[31m", "skipped": "\033[2m"}
OFF = "\033[0m"
LISTED = 6
"""Failures shown of a test."""


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The object ``--json`` prints."""
    return {
        "ok": outcome.ok,
        "where": outcome.site,
        "passed": sum(item.status == "ok" for item in outcome.results),
        "failed": sum(item.status == "failed" for item in outcome.results),
        "skipped": sum(item.status == "skipped" for item in outcome.results),
        "seconds": round(outcome.seconds, 2),
        "tests": [msgspec.to_builtins(item) for item in outcome.results],
        "notes": list(outcome.notes),
    }


def as_text(outcome: Outcome, *, colour: bool) -> str:
    """The table, what failed and why, the sum."""
    lines = list(table(outcome.results, colour=colour))
    for item in outcome.results:
        if item.failures:
            lines += [
                "",
                f"{item.name}: {len(item.failures)} of {item.tried} failed",
                *_failures(item.failures),
            ]
    counts = {status: sum(item.status == status for item in outcome.results) for status in SIGNS}
    verdict = "everything works" if outcome.ok else f"{counts['failed']} FAILED"
    if not outcome.ok and not counts["failed"]:
        verdict = "nothing was tried"
    tried = sum(item.tried for item in outcome.results)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    total = f"{outcome.site}: {counts['ok']} tests ok{skipped}, {tried} tries in {outcome.seconds:.1f} s: {verdict}"
    return "\n".join([*lines, "", *outcome.notes, total])


def table(results: Sequence[Result], *, colour: bool) -> Iterator[str]:
    """A line per test."""
    wide = max((len(item.name) for item in results), default=0)
    for item in results:
        sign = f"{COLOURS[item.status]}{SIGNS[item.status]}{OFF}" if colour else SIGNS[item.status]
        yield f"{sign} {item.name:<{wide}}  {said(item)}"


def said(item: Result) -> str:
    """What is told of a test behind its name."""
    if item.status == "skipped":
        return f"skipped: {item.note}"
    figures = item.note or (f"{item.tried} tries" if item.tried != 1 else "1 try")
    slowest = f", slowest {item.slowest_ms:.1f} ms" if item.slowest_ms and not item.note else ""
    if item.failures:
        return f"{len(item.failures)} of {item.tried} FAILED: {item.about}"
    return f"{item.about} ({figures}{slowest})"


def listing(tests: Sequence[Test]) -> str:
    """What ``--list`` prints."""
    wide = max((len(item.name) for item in tests), default=0)
    return "\n".join(f"{item.name:<{wide}}  {item.about}" for item in tests)


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    """The first ones, each cause once."""
    told: set[str] = set()
    for item in failures[:LISTED]:
        yield f"  {item.case}: {item.reason}"
        if item.cause and item.cause not in told:
            told.add(item.cause)
            where = f"{item.kind} at {item.node}: " if item.kind and item.node else ""
            yield f"    likely: {where}{item.cause}"
            if item.command:
                yield f"    look further{f' on {item.node}' if item.node else ''}: {item.command}"
    if len(failures) > LISTED:
        yield f"  ... and {len(failures) - LISTED} more (--json lists all)"
