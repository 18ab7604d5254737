"""The last warnings and errors of this process, for ``pycnictl status`` and bug reports.

Life: a handler beside the one that writes the log; what repeats is counted, not kept again, and only the newest
``KEPT`` different lines stay. Any thread.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import NamedTuple

from pycni.agent.status_model import Complaint

NOT_READY = "not ready: %s"
"""``process`` says so whenever a part becomes red or green."""
KEPT = 50
WIDEST = 500
"""Characters of one line."""


class _Key(NamedTuple):
    area: str
    level: str
    text: str


class Recent(logging.Handler):
    """Keeps lines of level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.began = False
        """Whether the agent was ready once: what it waits for before that is no complaint."""
        self._lines: OrderedDict[_Key, tuple[float, float, int]] = OrderedDict()
        self.counts = {"warning": 0, "error": 0, "critical": 0}
        """How many there were of each level, for the metrics."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of one. Called with the handler's lock held."""
        if record.msg == NOT_READY and not self.began:
            return
        text = " ".join(record.getMessage().split())
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({record.exc_info[1]!r})"
        key = _Key(record.name.removeprefix("pycni."), record.levelname.lower(), text[:WIDEST])
        self.counts[key.level] = self.counts.get(key.level, 0) + 1
        first, _, count = self._lines.pop(key, (record.created, 0.0, 0))
        self._lines[key] = (first, record.created, count + 1)
        while len(self._lines) > KEPT:
            self._lines.popitem(last=False)

    def lines(self) -> tuple[Complaint, ...]:
        """The newest first."""
        self.acquire()
        try:
            held = list(self._lines.items())
        finally:
            self.release()
        return tuple(
            Complaint(first, last, count, key.level, key.area, key.text)
            for key, (first, last, count) in reversed(held)
        )


def listen(logger: str = "pycni") -> tuple[Recent, logging.Logger]:
    """A handler that has begun to listen; whoever asked for it takes it off the logger at the end."""
    recent, of = Recent(), logging.getLogger(logger)
    of.addHandler(recent)
    return recent, of
