"""Lines of several sources in the order of time. Pure.

Life: what comes is held for a moment, because another source may bring something earlier; the caller says what time
it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Has a time in seconds since the epoch."""

    time: float


T = TypeVar("T", bound=Timed)


class Merge(Generic[T]):
    """Holds an item for ``hold_s`` seconds, and ``limit`` items at most."""

    def __init__(self, hold_s: float, limit: int) -> None:
        self._hold_s = hold_s
        self._limit = limit
        self._heap: list[tuple[float, int, T]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T) -> None:
        """Something has come."""
        self._number += 1
        heapq.heappush(self._heap, (item.time, self._number, item))

    def due(self, now: float) -> Iterator[T]:
        """What has been held long enough at ``now``, seconds since the epoch, and what is too much."""
        heap = self._heap
        while heap and (heap[0][0] <= now - self._hold_s or len(heap) > self._limit):
            yield heapq.heappop(heap)[2]

    def rest(self) -> Iterator[T]:
        """Everything."""
        while self._heap:
            yield heapq.heappop(self._heap)[2]
