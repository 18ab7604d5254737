"""Shared by all benchmarks: each file is a screen of the report; the table and the report at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import html, judge, machine, peers, rows, size
from bench.model import Report, encode

FOLDER = Path(__file__).parent
_BEGAN = [0.0, 0.0]


def pytest_addoption(parser: pytest.Parser) -> None:
    peers.add_options(parser)
    parser.addoption(
        "--report",
        default=str(FOLDER / "report"),
        metavar="PATH",
        help="write PATH.json and PATH.html (default: bench/report)",
    )


def pytest_sessionstart() -> None:
    _BEGAN[:] = [time.time(), machine.describe().load]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    module = item.getparent(pytest.Module)
    title = (module.obj.__doc__ or "").strip().split("\n\n")[0] if module is not None else ""
    rows.open_screen(item.path.stem.removeprefix("test_"), " ".join(title.split()))
    began = time.monotonic()
    try:
        return (yield)
    finally:
        rows.screen().took_s += time.monotonic() - began


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        rows.screen().failed.append(report.nodeid.rpartition("::")[2])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not any(screen.rows for screen in rows.SCREENS.values()):
        return
    took_s = time.time() - _BEGAN[0]
    if {path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py")} <= rows.SCREENS.keys():
        rows.SCREENS[judge.SUITE] = judge.suite(took_s, quick=size.QUICK)
    terminalreporter.section("verdicts")
    for line in rows.table():
        terminalreporter.write_line(line)
    where = machine.describe()
    where.load = _BEGAN[1]
    report = Report(
        machine=where,
        began=datetime.fromtimestamp(_BEGAN[0], UTC).isoformat(timespec="seconds"),
        took_s=took_s,
        quick=size.QUICK,
        commit=machine.commit(),
        screens=list(rows.SCREENS.values()),
    )
    terminalreporter.write_line(judge.summary(report))
    base = Path(config.getoption("--report"))
    plots = {path.stem: path.read_text() for path in (FOLDER / "plots").glob("*.svg")}
    base.with_suffix(".json").write_bytes(encode(report))
    base.with_suffix(".html").write_text(html.page(report, plots))
    terminalreporter.write_line(f"written: {base}.json, {base}.html (for a browser)")
