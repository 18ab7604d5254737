"""The verdicts of a benchmark run: each question one row with our figure, the peer's, their ratio and the target.

Rows are collected while the benchmarks run, printed as a table at the end and written to ``bench/report.json``.
A row never fails a test: timings are judged by people, with the noise in view.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import statistics
from collections.abc import Sequence
from pathlib import Path

REPORT = Path(__file__).parent / "report.json"
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}


@dataclasses.dataclass(frozen=True)
class Row:
    """``ratio`` is ours / peer, or ours alone when there is no peer; ``target`` like ``<= 0.9``; "" reports only."""

    question: str
    ours: str
    peer: str
    ratio: float | None
    target: str = ""

    @property
    def verdict(self) -> str:
        """``yes``, ``NO`` or ``-`` (nothing was promised)."""
        if not self.target or self.ratio is None:
            return "-"
        relation, bound = self.target.split()[:2]
        return "yes" if _COMPARE[relation](self.ratio, float(bound)) else "NO"


ROWS: list[Row] = []


def row(question: str, ours: str, peer: str = "", ratio: float | None = None, target: str = "") -> None:
    """Register one row."""
    ROWS.append(Row(question, ours, peer, ratio, target))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float]) -> str:
    """``p50 / p99 ms`` of durations in seconds."""
    return f"{statistics.median(values) * 1e3:.1f} / {quantile(values, 0.99) * 1e3:.1f} ms"


def table() -> list[str]:
    """The rows as lines of a text table."""
    head = ("question", "pycni", "peer", "ratio", "target", "met")
    body = [
        (r.question, r.ours, r.peer, "" if r.ratio is None else f"{r.ratio:.2f}", r.target, r.verdict)
        for r in ROWS
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *body)
    ]


def write() -> None:
    """Write ``bench/report.json``."""
    REPORT.write_text(
        json.dumps([{**dataclasses.asdict(r), "met": r.verdict} for r in ROWS], indent=1) + "\n"
    )
