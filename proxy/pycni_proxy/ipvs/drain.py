"""Real servers on their way out: weight 0 until their connections have ended or their time is up. Pure.

Life: the driver puts a removed target here after giving it weight 0; ``due`` tells, from what the kernel counts, which
are to be deleted; adding a target back takes it out. Forgotten at a restart: a real server that is read back with
weight 0 and is not wanted is drained again, with a new deadline.
"""

from __future__ import annotations

from collections.abc import Iterable

from pycni.wire.ipvs import DestInfo, DestKey, ServiceKey


class Drains:
    """Real servers being drained, by virtual server, with their deadlines (seconds of a monotonic clock)."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._deadlines: dict[ServiceKey, dict[DestKey, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._deadlines)

    def __contains__(self, item: tuple[ServiceKey, DestKey]) -> bool:
        return item[1] in self._deadlines.get(item[0], ())

    def add(self, service: ServiceKey, dest: DestKey, now: float) -> None:
        """Start draining; one that is being drained keeps its deadline."""
        self._deadlines.setdefault(service, {}).setdefault(dest, now + self._grace_s)

    def take(self, service: ServiceKey, dest: DestKey) -> bool:
        """It is wanted again, or gone; whether it was being drained."""
        held = self._deadlines.get(service)
        if held is None or held.pop(dest, None) is None:
            return False
        if not held:
            del self._deadlines[service]
        return True

    def forget(self, service: ServiceKey) -> None:
        """The whole virtual server is gone."""
        self._deadlines.pop(service, None)

    def services(self) -> list[ServiceKey]:
        """Virtual servers with something being drained."""
        return list(self._deadlines)

    def due(self, service: ServiceKey, found: Iterable[DestInfo], now: float) -> list[DestKey]:
        """Which to delete now. What the kernel no longer has is forgotten."""
        held = self._deadlines.get(service, {})
        known = {info.key: info for info in found}
        for dest in [dest for dest in held if dest not in known]:
            self.take(service, dest)
        return [
            dest
            for dest, deadline in held.items()
            if dest in known and (now >= deadline or not known[dest].active + known[dest].inactive)
        ]
