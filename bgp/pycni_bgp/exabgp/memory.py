"""What the relay remembers of sessions and routes, so that an agent that comes back is told everything. Pure.

Life: every event of exabgp is taken in and becomes what an agent that listens is told (``Message``s, JSON); ``replay``
is all of it for one that has just come. A neighbour that went without saying so, and had asked for it, has its routes
kept until it is back and has told everything, or its time is over (the helper's part of RFC 4724, section 4.2). That
it has told everything is not believed too early.

    {"peer": "192.0.2.2", "state": "up", "since": 1795260930.2, "reason": "", "router_id": "192.0.2.2", "told": [..]}
    {"peer": "192.0.2.2", "routes": {"203.0.113.0/24": ["192.0.2.2", {"origin": "igp", ..}], "203.0.114.0/24": null}}
    {"synced": true}                                                                         after a replay

Times are seconds, of any clock that only goes forward but for ``since``, which is the wall's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pycni_bgp.exabgp.speech import FAMILIES, Changed, Event, Finished, Opened, Said

Message = Mapping[str, Any]
AT_ONCE = 500
"""Routes in one message."""
LEAST_S = 3.0
"""As ``engine.LEAST_S``: the relay imports only what it must."""
STALE_S = 360.0
"""How long a neighbour that is back may take to tell everything."""


class _Peer:
    def __init__(self) -> None:
        self.state, self.since, self.reason, self.router_id = "down", 0.0, "", ""
        self.restart_s = 0
        self.told: set[str] = set()
        self.routes: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.stale: set[str] = set()
        self.up_at = float("-inf")
        self.deadline = float("inf")
        """Of all that is stale."""


class Memory:
    """One thread."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}

    def take(self, event: Event, now: float, wall: float) -> Iterator[Message]:
        """Take in an event; says what changed."""
        peer = self._peers.setdefault(event.peer, _Peer())
        if isinstance(event, Opened):
            peer.router_id, peer.restart_s = event.router_id, event.restart_s
        elif isinstance(event, Changed):
            yield from self._changed(event, peer, now, wall)
        elif isinstance(event, Said):
            yield from _told(event, peer)
        elif isinstance(event, Finished):
            peer.told.add(event.family)
            yield self._about(event.peer, peer)
            yield from _forget_untold(event.peer, peer, now)

    def tick(self, now: float) -> Iterator[Message]:
        """Forget what was kept for long enough."""
        for name, peer in self._peers.items():
            if now >= peer.deadline:
                peer.deadline = float("inf")
                yield from _forget(name, peer, set(peer.stale))
            elif peer.stale and peer.told:
                yield from _forget_untold(name, peer, now)

    def replay(self) -> Iterator[Message]:
        """Everything."""
        for name, peer in self._peers.items():
            yield self._about(name, peer)
            items = list(peer.routes.items())
            for start in range(0, len(items), AT_ONCE):
                yield {"peer": name, "routes": dict(items[start : start + AT_ONCE])}
        yield {"synced": True}

    def _changed(self, event: Changed, peer: _Peer, now: float, wall: float) -> Iterator[Message]:
        if event.state == peer.state:
            return
        was, peer.state, peer.since = peer.state, event.state, wall
        if event.state == "down":
            peer.reason = event.reason
        yield self._about(event.peer, peer)
        if event.state == "up":
            peer.up_at, peer.deadline = now, now + STALE_S
        elif event.state == "down" and was == "up":
            peer.told = set()
            if peer.restart_s and "notification" not in event.reason:
                peer.stale = set(peer.routes)
                peer.deadline = now + peer.restart_s
            else:
                yield from _forget(event.peer, peer, set(peer.routes))

    @staticmethod
    def _about(name: str, peer: _Peer) -> Message:
        return {
            "peer": name,
            "state": peer.state,
            "since": peer.since,
            "reason": peer.reason,
            "router_id": peer.router_id,
            "told": sorted(peer.told),
        }


def _told(event: Said, peer: _Peer) -> Iterator[Message]:
    changed: dict[str, Any] = {}
    for prefix in event.withdraw:
        peer.stale.discard(prefix)
        if peer.routes.pop(prefix, None) is not None:
            changed[prefix] = None
    for prefix, hop in event.announce:
        peer.stale.discard(prefix)
        peer.routes[prefix] = changed[prefix] = (hop, event.attributes)
    if changed:
        yield {"peer": event.peer, "routes": changed}


def _forget_untold(name: str, peer: _Peer, now: float) -> Iterator[Message]:
    """What a neighbour has not told again, once it may be believed that it has told everything."""
    if now >= peer.up_at + LEAST_S:
        yield from _forget(name, peer, {item for item in peer.stale if _family(item) in peer.told})


def _forget(name: str, peer: _Peer, prefixes: set[str]) -> Iterator[Message]:
    peer.stale -= prefixes
    gone = {prefix: None for prefix in sorted(prefixes) if peer.routes.pop(prefix, None) is not None}
    if gone:
        yield {"peer": name, "routes": gone}


def _family(prefix: str) -> str:
    return FAMILIES[":" in prefix]
