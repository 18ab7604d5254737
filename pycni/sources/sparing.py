"""Saying that something goes wrong again and again without flooding the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Sparing:
    """A logger for one recurring trouble.

    The first message is said at once, another one after ``change_s`` at the earliest (messages that alternate are
    one trouble), the same one again every ``period_s``; a graver level is never held back.
    """

    def __init__(
        self,
        logger: logging.Logger,
        period_s: float = 60.0,
        change_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._period_s = period_s
        self._change_s = change_s
        self._clock = clock
        self._said = ""
        self._level = 0
        self._since = self._last = 0.0

    def warn(self, message: str, level: int = logging.WARNING) -> None:
        """Log ``message`` unless that was done a short while ago."""
        now = self._clock()
        if not self._said:
            self._since = now
            self._logger.log(level, "%s", message)
        else:
            pause_s = self._period_s if message == self._said else self._change_s
            if level <= self._level and now - self._last < pause_s:
                return
            self._logger.log(level, "%s (trouble for %.0f s)", message, now - self._since)
        self._said, self._level, self._last = message, level, now

    def over(self, message: str) -> None:
        """Log that the trouble is over, if there was any."""
        if self._said:
            self._logger.info("%s, after %.1f s", message, self._clock() - self._since)
            self._said, self._level = "", 0
