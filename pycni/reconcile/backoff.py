"""How long to wait before the next try: growing, capped, jittered, forgotten on success."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays between failed tries of one thing. Never gives up: the last delay repeats."""

    def __init__(
        self,
        initial_s: float = 0.1,
        maximum_s: float = 30.0,
        *,
        factor: float = 2.0,
        jitter: float = 0.2,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``jitter`` is the part of a delay taken off at random (0.2: 80 to 100 %), so nodes do not march in step.

        ``chance`` gives numbers in [0, 1).
        """
        if not 0 < initial_s <= maximum_s or factor < 1 or not 0 <= jitter < 1:
            raise ValueError(f"backoff {initial_s=} {maximum_s=} {factor=} {jitter=}")
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._factor = factor
        self._jitter = jitter
        self._chance = chance
        self._next_s = initial_s
        self.failures = 0
        """Failures since the last success."""

    def next(self) -> float:
        """Count one failure; seconds to wait before the next try."""
        delay_s = self._next_s * (1 - self._jitter * self._chance())
        self._next_s = min(self._next_s * self._factor, self._maximum_s)
        self.failures += 1
        return delay_s

    def reset(self) -> None:
        """Start over after a success."""
        self._next_s = self._initial_s
        self.failures = 0
