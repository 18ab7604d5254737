"""What is denied inside pods, live: the packet logs of their namespaces as one source (``base.DropReader``).

Life: made while somebody listens; pods that come meanwhile are heard too, pods that go are not waited for. A pod whose
log some other program has (one listener per group and namespace) is left out.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Sequence

from pycni.errors import KernelError
from pycni.model.endpoint import Owner
from pycni.policy.base import Drop
from pycni.policy.drops_nft import NftDrops

log = logging.getLogger("pycni.policy")


class InsideDrops:
    """Any thread."""

    def __init__(self, closed: Callable[[InsideDrops], None]) -> None:
        """``closed`` is called when nobody listens any more."""
        self._closed = closed
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._logs: dict[Owner, NftDrops] = {}
        self._by_fd: dict[int, Owner] = {}
        self._lost = 0
        """By logs that are closed."""

    def add(self, owner: Owner, listen: Callable[[], NftDrops]) -> None:
        """A pod; ``listen`` opens its log."""
        try:
            reader = listen()
        except KernelError as error:
            log.info("%s: what is denied inside is not told: %s", owner, error)
            return
        with self._lock:
            self._logs[owner] = reader
            self._by_fd[reader.fileno()] = owner
            self._epoll.register(reader.fileno(), select.EPOLLIN)

    def remove(self, owner: Owner) -> None:
        """A pod that went."""
        with self._lock:
            reader = self._logs.pop(owner, None)
            if reader is not None:
                self._lost += reader.lost
                del self._by_fd[reader.fileno()]
                self._epoll.unregister(reader.fileno())
                reader.close()

    def fileno(self) -> int:
        """See ``base.DropReader``."""
        return self._epoll.fileno()

    def read(self) -> Sequence[Drop]:
        """See ``base.DropReader``."""
        found: list[Drop] = []
        with self._lock:
            for fd, _ in self._epoll.poll(0):
                found += self._logs[self._by_fd[fd]].read()
        return found

    @property
    def lost(self) -> int:
        """See ``base.DropReader``."""
        with self._lock:
            return self._lost + sum(reader.lost for reader in self._logs.values())

    def close(self) -> None:
        """See ``base.DropReader``."""
        self._closed(self)
        with self._lock:
            for reader in self._logs.values():
                reader.close()
            self._logs.clear()
            self._epoll.close()
