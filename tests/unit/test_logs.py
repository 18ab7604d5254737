"""Log lines: their shape and their number."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from pycni.agent.logs import (
    SAME_LINE,
    SAME_TEMPLATE,
    WINDOW_SECONDS,
    JsonFormatter,
    RepeatFilter,
    TextFormatter,
)


def record(message, *args, level=logging.INFO, exc_info=None, **extra):
    made = logging.getLogger("pycni.network").makeRecord(
        "pycni.network", level, __file__, 1, message, args, exc_info, extra=extra
    )
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (record("lease %s is ours", "10.1.2.0-24"), "network: lease 10.1.2.0-24 is ours"),
        (record("up", mtu=1450, peer="a b"), 'network: up mtu=1450 peer="a b"'),
        (record("evil %s", "x\ny\x1b[0m"), r"network: evil x\ny\x1b[0m"),
        (record("up", note="a\nb"), r'network: up note="a\nb"'),
    ],
    ids=["plain", "fields", "foreign-text", "foreign-field"],
)
def test_text_line(made, line):
    assert TextFormatter().format(made) == "2023-11-14T22:13:20.250Z INFO " + line


def test_json_line():
    assert json.loads(JsonFormatter().format(record("x %s", "y\n", mtu=1, peer=frozenset()))) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "area": "network",
        "message": "x y\n",
        "mtu": 1,
        "peer": "frozenset()",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_unexpected_exception_keeps_its_traceback(formatter):
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        line = formatter.format(record("broke", exc_info=sys.exc_info()))
    assert "ZeroDivisionError: division by zero" in line
    assert "test_logs.py" in line


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_repeating_line_is_held_back_and_counted():
    clock = Clock()
    repeat = RepeatFilter(clock)
    assert sum(repeat.filter(record("etcd is away")) for _ in range(100)) == SAME_LINE
    assert repeat.filter(record("another"))
    clock.now += WINDOW_SECONDS
    last = record("etcd is away")
    assert repeat.filter(last)
    assert TextFormatter().format(last).endswith(f"etcd is away suppressed={100 - SAME_LINE}")


def test_one_call_with_ever_new_arguments_is_held_back_too():
    clock = Clock()
    repeat = RepeatFilter(clock)
    assert sum(repeat.filter(record("peer %s", n)) for n in range(1000)) == SAME_TEMPLATE
    clock.now += WINDOW_SECONDS
    last = record("peer %s", "z")
    assert repeat.filter(last)
    assert last.suppressed == 1000 - SAME_TEMPLATE


def test_debug_lines_are_never_held_back():
    repeat = RepeatFilter(Clock())
    assert all(repeat.filter(record("x", level=logging.DEBUG)) for _ in range(100))


def test_memory_of_the_filter_is_bounded():
    repeat = RepeatFilter(Clock())
    for n in range(5000):
        repeat.filter(record(f"line {n}"))
    assert len(repeat._seen) <= 2000
