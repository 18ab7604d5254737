"""A run of the benchmarks as a value: what was asked, what came out, on which machine; as JSON. Pure.

Life: ``rows`` fills ``Screen``s while benchmarks run; a ``Report`` of them is written as ``report.json`` and drawn by
``html``; ``compare`` puts two reports, or a report and the accepted ratios, side by side.
"""

from __future__ import annotations

import operator

import msgspec

FORMAT = 1
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class Row(msgspec.Struct, kw_only=True):
    """One question with its answer."""

    question: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    """Ours / peer; or ours alone, where the target has a unit or there is no peer."""
    target: str = ""
    """Like ``<= 0.9``, or ``<= 5 ms`` where ours alone is promised; "" reports only."""
    better: str = ""
    """``less`` or ``more``; "": the target tells, or nothing does."""
    noise: float | None = None
    """How far the ratio may be off, as a share of it; None: not known."""

    @property
    def met(self) -> str:
        """``yes``, ``NO`` or ``-`` (nothing was promised)."""
        if not self.target or self.ratio is None:
            return "-"
        relation, bound = self.target.split()[:2]
        return "yes" if _COMPARE[relation](self.ratio, float(bound)) else "NO"

    @property
    def unit(self) -> str:
        """Of ``ratio`` where it is none, from the target."""
        return "".join(self.target.split()[2:3])

    @property
    def within_noise(self) -> bool:
        """Whether the target lies as near to the ratio as that may be off, so that another run may judge otherwise."""
        if not self.target or self.ratio is None or self.noise is None:
            return False
        return abs(self.ratio - float(self.target.split()[1])) <= self.noise * abs(self.ratio)

    @property
    def direction(self) -> str:
        """``less`` or ``more`` is better; "": nobody can tell."""
        if self.better or not self.target:
            return self.better
        return "less" if self.target[0] == "<" else "more"


class Screen(msgspec.Struct, kw_only=True):
    """One file of benchmarks."""

    name: str
    title: str
    """What it asks."""
    rows: list[Row] = []
    plots: list[str] = []
    """Names of SVG files in ``bench/plots``."""
    took_s: float = 0.0
    failed: list[str] = []
    """Benchmarks that broke: their rows are missing."""


class Machine(msgspec.Struct, kw_only=True):
    """Where it was measured."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    system: str
    python: str
    tools: dict[str, str] = {}
    """Versions of peers and measuring tools."""
    load: float = 0.0
    """Of the last minute, as the run began: more than a few tenths means that others were at work."""


class Report(msgspec.Struct, kw_only=True):
    """One run."""

    format: int = FORMAT
    machine: Machine
    began: str
    """ISO 8601, UTC."""
    took_s: float
    quick: bool = False
    commit: str = ""
    screens: list[Screen] = []

    def rows(self) -> dict[str, Row]:
        """All rows by ``file: question``."""
        return {f"{screen.name}: {row.question}": row for screen in self.screens for row in screen.rows}


class ReportError(Exception):
    """A file is no report."""


def encode(report: Report) -> bytes:
    """As JSON for people."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode(raw: bytes, name: str) -> Report:
    """Raises ReportError naming the file."""
    try:
        return msgspec.json.decode(raw, type=Report)
    except msgspec.DecodeError as error:
        raise ReportError(f"{name}: no report of benchmarks: {error}") from error
