"""Who is being worked on: one lock per container, none global, and which attachments have something under way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pycni.model.endpoint import Owner


class OwnerLocks:
    """Locks by container id, kept only while somebody holds or wants them. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._busy: dict[Owner, int] = {}

    @contextlib.contextmanager
    def hold(self, owner: Owner) -> Iterator[None]:
        """Run alone among the calls on one container; the owner is busy from before until after."""
        key = owner.container_id
        with self._guard:
            lock, users = self._locks.get(key) or (threading.Lock(), 0)
            self._locks[key] = (lock, users + 1)
        self.begin(owner)
        try:
            with lock:
                yield
        finally:
            self.end(owner)
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)

    def begin(self, owner: Owner) -> None:
        """Something goes on for the owner that holds no lock (the end of a removal)."""
        with self._guard:
            self._busy[owner] = self._busy.get(owner, 0) + 1

    def end(self, owner: Owner) -> None:
        """It has ended."""
        with self._guard:
            left = self._busy[owner] - 1
            if left:
                self._busy[owner] = left
            else:
                del self._busy[owner]

    def busy(self) -> frozenset[Owner]:
        """Owners with anything under way."""
        with self._guard:
            return frozenset(self._busy)
