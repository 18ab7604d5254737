"""Which service has a virtual address and port when several want it. Pure.

Life: ``Claims.update`` is told what one service wants now; of all that want the same address, protocol and port the
oldest one has it (of equally old ones that with the smaller key), the others wait and get it when it is let go. The
same services in any order of updates give the same owners. Only contested addresses cost more than one entry.
"""

from __future__ import annotations

from collections.abc import Collection

from pycni.model.service import FrontendKey


class Claims:
    """Owners of virtual addresses by service key (``namespace/name``)."""

    def __init__(self) -> None:
        self._owner: dict[FrontendKey, str] = {}
        self._rivals: dict[FrontendKey, set[str]] = {}
        """Everybody who wants a contested address, its owner too."""
        self._created: dict[str, int] = {}

    def owner(self, key: FrontendKey) -> str:
        """Who has it; "" when nobody wants it."""
        return self._owner.get(key, "")

    def created(self, service: str, default: int) -> int:
        """The age a service was last given with; ``default`` when it wants nothing."""
        return self._created.get(service, default)

    def update(
        self, service: str, created: int, was: Collection[FrontendKey], now: Collection[FrontendKey]
    ) -> set[str]:
        """Replace what a service wants (``was``, as told before) by ``now``. ``created`` is in seconds since the epoch.

        Returns the other services that have lost or gained an address by it.
        """
        before, after = set(was), set(now)
        touched: set[str] = set()
        for key in before - after:
            touched |= self._release(service, key)
        moved = self._created.get(service, created) != created
        if after:
            self._created[service] = created
        else:
            self._created.pop(service, None)
        for key in after - before:
            touched |= self._claim(service, key)
        if moved:
            for key in after & before & self._rivals.keys():
                touched |= self._settle(key)
        return touched - {service}

    def _release(self, service: str, key: FrontendKey) -> set[str]:
        rivals = self._rivals.get(key)
        if rivals is None:
            del self._owner[key]
            return set()
        rivals.discard(service)
        touched = self._settle(key)
        if len(rivals) == 1:
            del self._rivals[key]
        return touched

    def _claim(self, service: str, key: FrontendKey) -> set[str]:
        holder = self._owner.setdefault(key, service)
        if holder == service:
            return set()
        self._rivals.setdefault(key, {holder}).add(service)
        return self._settle(key)

    def _settle(self, key: FrontendKey) -> set[str]:
        """Give a contested address to whom it belongs; the old and the new owner when they differ."""
        winner = min(self._rivals[key], key=lambda name: (self._created[name], name))
        held, self._owner[key] = self._owner[key], winner
        return {held, winner} if winner != held else set()
