"""The verdicts of a benchmark run: each question one row with our figure, the peer's, their ratio and the target.

Life: ``conftest`` tells which file's benchmarks run (``open_screen``); they register rows and plots while they measure;
at the end all is printed as a table and written as ``bench/report.json`` and ``bench/report.html``. A row never fails a
test: timings are judged by people, with the noise in view.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.model import Row, Screen

SCREENS: dict[str, Screen] = {}
"""By name of the file, in the order they ran."""
_now = [""]


def open_screen(name: str, title: str) -> None:
    """What is registered from now on belongs to this file."""
    SCREENS.setdefault(name, Screen(name=name, title=title))
    _now[0] = name


def screen() -> Screen:
    """The one that is open; outside of pytest one without a name."""
    return SCREENS.setdefault(_now[0], Screen(name=_now[0], title=""))


def row(
    question: str,
    ours: str,
    peer: str = "",
    ratio: float | None = None,
    target: str = "",
    *,
    better: str = "",
    ratios: Sequence[float] = (),
) -> None:
    """Register one row.

    ``ratio``: ours / peer, or ours alone when there is no peer. ``target``: like ``<= 0.9``, or ``<= 5 ms``
    when ``ratio`` is such a figure and no ratio; "" reports only.
    ``better``: ``less`` or ``more``, where no target tells. ``ratios``: those of the single rounds, which tell the noise.
    """
    screen().rows.append(
        Row(
            question=question,
            ours=ours,
            peer=peer,
            ratio=ratio,
            target=target,
            better=better,
            noise=noise(ratios),
        )
    )


def plot(path: Path) -> None:
    """A plot of the rows registered just now, as an SVG file."""
    if path.stem not in screen().plots:
        screen().plots.append(path.stem)


def noise(ratios: Sequence[float]) -> float | None:
    """How far the median of rounds may be off, as a share of it: 1.57 IQR / sqrt(n) (McGill, Tukey, Larsen 1978)."""
    if len(ratios) < 4:
        return None
    low, middle, high = statistics.quantiles(ratios, n=4)
    return 1.57 * (high - low) / len(ratios) ** 0.5 / abs(middle) if middle else None


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
        (
            r.question,
            r.ours,
            r.peer,
            "" if r.ratio is None else f"{r.ratio:.2f} {r.unit}".strip(),
            r.target,
            r.met,
        )
        for found in SCREENS.values()
        for r in found.rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *body)
    ]
