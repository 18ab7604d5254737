"""From events and entries of connection tracking to flows. Pure.

Life: one ``Follower`` per node, fed with events as they come. It remembers when each connection it saw begin did so,
for its duration and to tell after a loss what is new in the table; never more than ``LIMIT`` of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.traffic import model
from pycni.traffic.model import ALLOWED, Flow
from pycni.wire import ctnetlink
from pycni.wire.ctnetlink import Count, Entry, Event

LIMIT = 1 << 18
"""Connections remembered: as many as a large node's table holds by default (nf_conntrack_max)."""
_NANO = 1_000_000_000
_EVENTS = {
    ctnetlink.GROUP_NEW: model.NEW,
    ctnetlink.GROUP_UPDATE: model.CHANGED,
    ctnetlink.GROUP_DESTROY: model.ENDED,
}
_OTHER_NAMES = {
    ctnetlink.ICMP: "ICMP",
    ctnetlink.ICMPV6: "ICMPv6",
    2: "IGMP",
    4: "IPIP",
    41: "IPv6",
    47: "GRE",
    50: "ESP",
    112: "VRRP",
}
CLOSED = frozenset({ctnetlink.TIME_WAIT, ctnetlink.CLOSE})


def protocol_name(number: int) -> str:
    """``TCP``, ``ICMP``; a number for the rare ones."""
    return PROTOCOL_NAMES.get(number) or _OTHER_NAMES.get(number) or str(number)


_ENDED = -1
"""In place of a beginning: it was told that this connection is over."""


def closed(event: Event) -> bool:
    """Whether a TCP connection has just been closed."""
    return event.kind == ctnetlink.GROUP_UPDATE and event.entry.state in CLOSED


class Follower:
    """Of one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._began: dict[int, int] = {}
        self._told: set[int] = set()
        """Found in the table: their events may still come."""

    def flow(self, event: Event) -> Flow | None:
        """What an event says; None: that was told already.

        A TCP connection ends for us when it is closed, not when the kernel forgets it.
        """
        entry, ident, kind = event.entry, event.entry.ident, _EVENTS[event.kind]
        if kind == model.NEW:
            if ident in self._told:
                self._told.discard(ident)
                return None
            self._remember(ident, event.time_ns)
            return self._flow(entry, kind, event.time_ns, 0)
        self._told.discard(ident)
        began = self._began.get(ident, 0)
        if began == _ENDED and kind == model.ENDED:
            del self._began[ident]
            return None
        if closed(event):
            self._remember(ident, _ENDED)
            kind = model.ENDED
        elif kind == model.ENDED:
            self._began.pop(ident, None)
        return self._flow(entry, kind, event.time_ns, entry.started_ns or max(began, 0))

    def begin(self, entries: Iterable[Entry]) -> None:
        """What is there already when following begins: it is not news after a loss."""
        for entry in entries:
            self._remember(entry.ident, _ENDED if entry.state in CLOSED else entry.started_ns)

    def present(self, entries: Iterable[Entry], now_ns: int) -> Iterator[Flow]:
        """The table as it is."""
        for entry in entries:
            yield self._flow(entry, model.PRESENT, now_ns, entry.started_ns)

    def resync(self, entries: Iterable[Entry], now_ns: int) -> Iterator[Flow]:
        """After a loss: what has begun unnoticed and is still there. What is gone is forgotten."""
        there: dict[int, int] = {}
        self._told = set()
        for entry in entries:
            known = self._began.get(entry.ident)
            if known is None:
                known = _ENDED if entry.state in CLOSED else entry.started_ns
                found = self._flow(entry, model.NEW, entry.started_ns or now_ns, 0)
                found.resynced = True
                self._told.add(entry.ident)
                yield found
            if len(there) < LIMIT:
                there[entry.ident] = known
        self._began = there

    def _remember(self, ident: int, time_ns: int) -> None:
        if len(self._began) >= LIMIT:
            del self._began[next(iter(self._began))]
        self._began[ident] = time_ns

    def _flow(self, entry: Entry, event: str, time_ns: int, began_ns: int) -> Flow:
        original, reply = entry.original, entry.reply
        icmp = entry.protocol in {ctnetlink.ICMP, ctnetlink.ICMPV6}
        found = Flow(
            time=time_ns / _NANO,
            node=self._node,
            event=event,
            verdict=ALLOWED,
            protocol=protocol_name(entry.protocol),
            source=show(original.source),
            source_port=0 if icmp else original.source_port,
            destination=show(original.target),
            port=0 if icmp else original.target_port,
            state=ctnetlink.TCP_STATES[entry.state] if 0 <= entry.state < len(ctnetlink.TCP_STATES) else "",
            answered=bool(entry.status & ctnetlink.SEEN_REPLY),
            ident=entry.ident,
        )
        if entry.target_translated:
            found.translated_destination = show(reply.source)
            found.translated_port = 0 if icmp else reply.source_port
        if entry.source_translated:
            found.translated_source = show(reply.target)
            found.translated_source_port = 0 if icmp else reply.target_port
        # The kernel counts nothing with nf_conntrack_acct off, and writes zeros for a connection that began then.
        if _counted(entry.sent) and entry.sent is not None:
            found.packets_out, found.bytes_out = entry.sent
            found.packets_back, found.bytes_back = entry.answered or Count(-1, -1)
        if began_ns > 0:
            found.duration_s = max(0.0, ((entry.stopped_ns or time_ns) - began_ns) / _NANO)
        return found


def _counted(count: Count | None) -> bool:
    return count is not None and count.packets > 0
