"""How far a check has come: a table that fills on a terminal, nothing where nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pycni.check.course import Show
from pycni.check.model import Result, Test
from pycni.check.report import SIGNS, said

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_STYLES = {"ok": "green", "failed": "bold red", "skipped": "dim"}


class Quiet:
    """See ``course.Show``: says nothing."""

    def doing(self, what: str) -> None:
        """See ``course.Show``."""

    def planned(self, tests: Sequence[Test]) -> None:
        """See ``course.Show``."""

    def done(self, found: Result) -> None:
        """See ``course.Show``."""


class Filling:
    """See ``course.Show``: the table as it fills."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._what = ""
        self._tests: list[Test] = []
        self._done: dict[str, Result] = {}

    def doing(self, what: str) -> None:
        """See ``course.Show``."""
        self._what = what
        self._draw()

    def planned(self, tests: Sequence[Test]) -> None:
        """See ``course.Show``."""
        self._tests = list(tests)
        self._draw()

    def done(self, found: Result) -> None:
        """See ``course.Show``."""
        self._done[found.name] = found
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.spinner import Spinner  # noqa: PLC0415  # 80 ms that pipes and scripts need not pay
        from rich.table import Table  # noqa: PLC0415

        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="ellipsis", no_wrap=True)
        for test in self._tests:
            found = self._done.get(test.name)
            if found is None:
                grid.add_row("·", test.name, f"[dim]{test.about}[/dim]")
            else:
                style = _STYLES[found.status]
                grid.add_row(f"[{style}]{SIGNS[found.status]}[/{style}]", test.name, said(found))
        grid.add_row(Spinner("dots"), self._what, "")
        return grid


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Where progress goes: to standard error, where somebody looks."""
    if quiet or not sys.stderr.isatty():
        yield Quiet()
        return
    from rich.console import Console  # noqa: PLC0415  # see above
    from rich.live import Live  # noqa: PLC0415

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=8) as live:
        yield Filling(live)
