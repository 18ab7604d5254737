"""The figures of accepted runs as a page for people, ``bench/FIGURES.md``. Pure.

Life: ``compare --accept`` joins a run with the page as it was: sections of files that ran are replaced, others stay, with
the date of theirs. README tells what the figures mean, and why targets were missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.model import Report, Row, Screen

_HEAD = ("question", "pycni", "peer", "ratio", "target", "met")
_ABOUT = """# Figures

Written by `make bench-accept`; [README.md](README.md) tells how to read them, and why targets were missed. Only ratios compare
between machines.
"""


def page(report: Report, before: str = "") -> str:
    """The page after this run. ``before``: the page until now."""
    sections = _sections(before)
    sections.update((screen.name, _section(screen, report)) for screen in report.screens if screen.rows)
    return "\n".join((_ABOUT, *sections.values()))


def _sections(text: str) -> dict[str, str]:
    """By their headings."""
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}


def _section(screen: Screen, report: Report) -> str:
    machine = report.machine
    where = (
        f"{machine.processor}, {machine.cores} cores, kernel {machine.kernel}, load before {machine.load:.2f}"
    )
    lines = _table(_HEAD, map(_cells, screen.rows))
    return (
        f"## {screen.name}\n\n{screen.title} ({report.began[:10]}; {where}; {screen.took_s:.0f} s)\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _cells(row: Row) -> Sequence[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    if row.noise is not None:
        ratio += f" ±{row.noise * 100:.0f} %"
    met = {"yes": "yes", "NO": "**no**", "-": ""}[row.met] + (", within noise" if row.within_noise else "")
    return (row.question, row.ours, row.peer, ratio, row.target, met)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(head), f"|{'---|' * len(head)}", *map(line, body)]
