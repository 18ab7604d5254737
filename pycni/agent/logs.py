"""Log lines: what happened, to which object, why; as text with key=value pairs behind it, or as JSON objects.

Fields come by ``extra={...}`` of the logging call. A line that repeats is held back after a few times a minute and
counted; the count is told with the next one that passes, so a fault that lasts neither fills the disk nor is
forgotten.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TextIO

SAME_LINE = 5
"""How often the same text passes a minute."""

SAME_TEMPLATE = 300
"""How often lines of one logging call, with whatever arguments, pass a minute."""

WINDOW_SECONDS = 60.0
_REMEMBERED = 2000

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "suppressed"}


def fields(record: logging.LogRecord) -> dict[str, object]:
    """What the logging call added by ``extra``, and how many lines like it were held back."""
    found = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    suppressed = getattr(record, "suppressed", 0)
    if suppressed:
        found["suppressed"] = suppressed
    return found


def _when(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


def _area(record: logging.LogRecord) -> str:
    return record.name.removeprefix("pycni.")


def _one_line(text: str) -> str:
    """Foreign text must not begin new log lines or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class TextFormatter(logging.Formatter):
    """``2026-11-21T04:12:33.123Z INFO network: message key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it the traceback of an unexpected exception."""
        line = f"{_when(record)} {record.levelname} {_area(record)}: {_one_line(record.getMessage())}"
        for key, value in fields(record).items():
            text = str(value)
            plain = text.isprintable() and text and not any(char in text for char in ' "=')
            line += f" {key}={text if plain else json.dumps(text)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, area, message, then the call's fields, then ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "area": _area(record),
            "message": record.getMessage(),
        }
        line.update((key, value) for key, value in fields(record).items() if key not in line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RepeatFilter(logging.Filter):
    """Holds lines back that repeat too often. ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str], list[float]] = {}
        """(logger, level, text) -> [window's start, passed, held back]."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes."""
        if record.levelno <= logging.DEBUG:
            return True
        text = record.getMessage()
        # The template is judged first so that a held-back line counts in one place only.
        checks = [(str(record.msg), SAME_TEMPLATE)] if record.args else []
        suppressed = 0
        for key, limit in [*checks, (text, SAME_LINE)]:
            passes, held_back = self._count((record.name, record.levelno, key), limit)
            if not passes:
                return False
            suppressed += held_back
        if suppressed:
            record.suppressed = suppressed
        return True

    def _count(self, key: tuple[str, int, str], limit: int) -> tuple[bool, int]:
        """Whether one more passes, and how many were held back in the window that has ended."""
        now = self._clock()
        window = self._seen.get(key)
        if window is None or now - window[0] >= WINDOW_SECONDS:
            held_back = int(window[2]) if window is not None else 0
            self._seen.pop(key, None)
            while len(self._seen) >= _REMEMBERED:
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = [now, 1, 0]
            return True, held_back
        if window[1] < limit:
            window[1] += 1
            return True, 0
        window[2] += 1
        return False, 0


def configure(level: str, form: str, stream: TextIO | None = None) -> logging.Handler:
    """Send everything of ``level`` ("info") and above to stderr as ``form`` ("text" or "json")."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(_LEVELS[level], logging.INFO))
    logging.getLogger("pycni").setLevel(_LEVELS[level])
    # A log stream that is gone (closed pipe) must not produce tracebacks on itself.
    logging.raiseExceptions = False
    return handler
