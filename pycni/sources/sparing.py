"""Saying that something goes wrong again and again without flooding the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Sparing:
    """A logger for one recurring trouble: says a new message at once, the same one again every ``period_s``."""

    def __init__(
        self, logger: logging.Logger, period_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._period_s = period_s
        self._clock = clock
        self._said = ""
        self._since = 0.0
        self._again = 0.0

    def warn(self, message: str, level: int = logging.WARNING) -> None:
        """Log ``message`` unless it was logged within the period."""
        now = self._clock()
        if message == self._said:
            if now < self._again:
                return
            self._logger.log(level, "%s (for %.0f s now)", message, now - self._since)
        else:
            self._logger.log(level, "%s", message)
            self._said, self._since = message, now
        self._again = now + self._period_s

    def over(self, message: str) -> None:
        """Log that the trouble is over, if there was any."""
        if self._said:
            self._logger.info("%s, after %.1f s", message, self._clock() - self._since)
            self._said = ""
