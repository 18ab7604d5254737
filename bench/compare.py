"""Puts two runs side by side, and watches over the ratios that were accepted.

    python -m bench.compare OLD.json NEW.json     every row of both
    python -m bench.compare --check [REPORT]      rows that fell behind the accepted ratios by more than their noise
    python -m bench.compare --accept [REPORT]     from now on these ratios are the accepted ones

Life: ``--accept`` writes the ratios (never times: those are a machine's) of a full run into ``bench/accepted.json``, which is
in the repository, and its figures for people into ``bench/FIGURES.md``; ``--check`` holds a later run against the ratios. A
row that another run lacks is told, but is no fall.

Exit codes: 0 nothing fell, 1 something did, 2 a wrong command line or file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench import figures
from bench.model import Report, ReportError, Row, decode

FOLDER = Path(__file__).parent
ACCEPTED = FOLDER / "accepted.json"
FIGURES = FOLDER / "FIGURES.md"
LEAST_NOISE = 0.10
"""Runs differ by so much on a quiet machine, whatever the rounds of one run say of themselves."""
UNKNOWN_NOISE = 0.2
"""Of a row with too few rounds to tell it."""
QUICK_NOISE = 0.5
"""The same for quick runs."""


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """An accepted ratio."""

    ratio: float
    better: str
    noise: float


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """One row in two runs."""

    key: str
    before: float | None
    after: float | None
    word: str
    """fell, rose, same, new, gone, differs (nobody can tell which is better)."""
    noise: float


def kept(report: Report) -> dict[str, Kept]:
    """What can be watched: rows with a ratio to a peer, of which it is known what is better."""
    return {
        key: Kept(ratio=row.ratio, better=row.direction, noise=_noise(row))
        for key, row in report.rows().items()
        if row.ratio is not None and row.peer and not row.unit and row.direction
    }


def check(accepted: Mapping[str, Kept], report: Report) -> list[Change]:
    """Every accepted row, judged by this run. A row without a ratio any more is ``gone``."""
    rows = report.rows()
    least = QUICK_NOISE if report.quick else LEAST_NOISE
    return [_judge(key, item, rows.get(key), least) for key, item in sorted(accepted.items())]


def _judge(key: str, item: Kept, row: Row | None, least: float) -> Change:
    after = row.ratio if row is not None else None
    noise = least + item.noise + (_noise(row) if row is not None else 0.0)
    if after is None or row is None:
        return Change(key=key, before=item.ratio, after=None, word="gone", noise=noise)
    return Change(
        key=key,
        before=item.ratio,
        after=after,
        word=_word(item.better, item.ratio, after, noise),
        noise=noise,
    )


def _noise(row: Row) -> float:
    return UNKNOWN_NOISE if row.noise is None else row.noise


def _word(better: str, before: float, after: float, noise: float) -> str:
    up, down = after > before * (1 + noise), after * (1 + noise) < before
    if not (up or down):
        return "same"
    if not better:
        return "differs"
    return "rose" if up == (better == "more") else "fell"


def between(old: Report, new: Report) -> list[Change]:
    """Every row of two runs."""
    rows, later = old.rows(), new.rows()
    least = QUICK_NOISE if old.quick or new.quick else LEAST_NOISE
    found = []
    for key in [*rows, *(key for key in later if key not in rows)]:
        one, two = rows.get(key), later.get(key)
        before, after = one.ratio if one is not None else None, two.ratio if two is not None else None
        noise = least + sum(_noise(item) for item in (one, two) if item is not None)
        if one is None or two is None:
            word = "new" if one is None else "gone"
        elif before is None or after is None:
            word = "same" if before is after else "differs"
        else:
            word = _word(two.direction, before, after, noise)
        found.append(Change(key=key, before=before, after=after, word=word, noise=noise))
    return found


def table(changes: Sequence[Change]) -> list[str]:
    """As lines of text, what fell first."""
    order = ("fell", "gone", "differs", "rose", "new", "same")
    head = ("row", "before", "after", "noise", "")
    body = [
        (item.key, _number(item.before), _number(item.after), f"±{item.noise * 100:.0f} %", item.word)
        for item in sorted(changes, key=lambda item: order.index(item.word))
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Compare benchmark reports.")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="against the accepted ratios")
    way.add_argument("--accept", action="store_true", help="accept these ratios")
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT.json")
    args = parser.parse_args(argv)
    try:
        return _run(args.check, args.accept, args.reports)
    except (ReportError, OSError, msgspec.DecodeError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2


def _run(watch: bool, accept: bool, paths: list[Path]) -> int:
    if watch or accept:
        paths = paths or [FOLDER / "report.json"]
    if len(paths) != (1 if watch or accept else 2):
        raise ReportError("expected one report with --check or --accept, else two")
    reports = [decode(path.read_bytes(), str(path)) for path in paths]
    if accept:
        return _accept(reports[0])
    if watch:
        found = msgspec.json.decode(ACCEPTED.read_bytes(), type=dict[str, Kept])
        changes = check(found, reports[0])
    else:
        changes = between(*reports)
    print(*table(changes), sep="\n")
    counts = ", ".join(
        f"{sum(item.word == word for item in changes)} {word}"
        for word in dict.fromkeys(item.word for item in changes)
    )
    print(f"\n{len(changes)} rows: {counts}")
    return 1 if any(item.word == "fell" for item in changes) else 0


def _accept(report: Report) -> int:
    if report.quick:
        raise ReportError("a quick run is too noisy to be accepted")
    old = msgspec.json.decode(ACCEPTED.read_bytes(), type=dict[str, Kept]) if ACCEPTED.exists() else {}
    ran = {f"{screen.name}: " for screen in report.screens}
    stay = {key: item for key, item in old.items() if not any(key.startswith(name) for name in ran)}
    found = {**stay, **kept(report)}
    ACCEPTED.write_bytes(
        msgspec.json.format(msgspec.json.encode(dict(sorted(found.items()))), indent=1) + b"\n"
    )
    FIGURES.write_text(figures.page(report, FIGURES.read_text() if FIGURES.exists() else ""))
    print(f"{len(found)} ratios accepted, {len(stay)} of them from earlier runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
