"""Connections by pod and by service, from readings of the connection tracking table one after the other. Pure.

Life: one ``Tallier`` per node. Every reading is compared with the one before, entry by entry: what was not there is a
new connection, what counts more than it did adds to its pod and service. Closed connections stay in the table for a
while (TCP 10 to 120 s, others 30 s), so readings a few seconds apart miss none. The first reading only says where
counting begins. Memory: a number, or five where bytes are counted, per entry of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pycni.traffic.model import Tally
from pycni.wire.ctnetlink import TCP, Entry

_OPEN = frozenset(range(2, 7))
"""TCP states from syn-recv to last-ack: answered, and not only remembered."""
_NOTHING = (0, 0, 0, 0)

Find = Callable[[bytes, int, int], str]
"""From destination as sent, protocol, port to the service's name; "" when it is none."""


class _Sum:
    __slots__ = ("active", "bytes_back", "bytes_out", "new", "packets_back", "packets_out")

    def __init__(self) -> None:
        self.active = self.new = 0
        self.bytes_out = self.packets_out = self.bytes_back = self.packets_back = 0


class Tallier:
    """Of one node."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, int, int]] | None = None
        self._pods: dict[str, _Sum] = {}
        self._services: dict[str, _Sum] = {}
        self._accounting = False

    def read(
        self, entries: Iterable[Entry], pods: Mapping[bytes, str], service: Find, *, accounting: bool
    ) -> int:
        """Take a reading; returns the number of entries. ``pods``: names of this node's pods by packed address."""
        for found in (*self._pods.values(), *self._services.values()):
            found.active = 0
        self._accounting = accounting
        before, there, number = self._seen, dict[int, tuple[int, int, int, int]](), 0
        for entry in entries:
            number += 1
            now = _NOTHING
            if entry.sent is not None and entry.answered is not None:
                now = (*entry.sent, *entry.answered)
            there[entry.ident] = now
            whose = self._whose(entry, pods, service)
            if not whose:
                continue
            active = entry.protocol != TCP or entry.state in _OPEN
            was = now if before is None else before.get(entry.ident)
            for found in whose:
                found.active += active
                found.new += was is None
                if now is not was:
                    _add(found, was or _NOTHING, now)
        self._seen = there
        return number

    def _whose(self, entry: Entry, pods: Mapping[bytes, str], service: Find) -> list[_Sum]:
        original, reply = entry.original, entry.reply
        found = []
        opener, server = pods.get(original.source), pods.get(reply.source)
        if opener is not None:
            found.append(_of(self._pods, opener))
        if server is not None and server != opener:
            found.append(_of(self._pods, server))
        name = service(original.target, entry.protocol, original.target_port)
        if name:
            found.append(_of(self._services, name))
        return found

    def pods(self) -> dict[str, Tally]:
        """By name."""
        return {name: self._tally(found) for name, found in self._pods.items()}

    def services(self) -> dict[str, Tally]:
        """By name."""
        return {name: self._tally(found) for name, found in self._services.items()}

    def _tally(self, found: _Sum) -> Tally:
        if not self._accounting:
            return Tally(found.active, found.new)
        return Tally(
            found.active,
            found.new,
            found.bytes_out,
            found.packets_out,
            found.bytes_back,
            found.packets_back,
        )


def _of(sums: dict[str, _Sum], name: str) -> _Sum:
    found = sums.get(name)
    if found is None:
        found = sums[name] = _Sum()
    return found


def _add(found: _Sum, was: tuple[int, int, int, int], now: tuple[int, int, int, int]) -> None:
    # An identity that was used again counts from 0.
    base = was if now[0] >= was[0] and now[2] >= was[2] else _NOTHING
    found.packets_out += now[0] - base[0]
    found.bytes_out += now[1] - base[1]
    found.packets_back += now[2] - base[2]
    found.bytes_back += now[3] - base[3]


def finder(frontends: Mapping[tuple[bytes, int, int], str], own: frozenset[bytes]) -> Find:
    """A lookup in ``frontends`` by packed address, protocol, port; b"": node ports, at the node's ``own`` addresses."""

    def find(target: bytes, protocol: int, port: int) -> str:
        name = frontends.get((target, protocol, port))
        if name is None and target in own:
            name = frontends.get((b"", protocol, port))
        return name or ""

    return find
