"""Shared by all benchmarks: the verdict table at the end."""

from __future__ import annotations

from typing import Any

from bench import rows


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if rows.ROWS:
        terminalreporter.section("verdicts")
        for line in rows.table():
            terminalreporter.write_line(line)
        rows.write()
