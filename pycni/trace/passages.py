"""Where on its way a packet meets hooks of a kernel: XDP, traffic control, netfilter's. Pure.

Life: made from the hops of one way, to find what lies between two places a probe was, or was not, seen at. The order
is the kernel's (net/core/dev.c: XDP, then packet sockets, then traffic control and netdev's ingress; then netfilter's
hooks; traffic control and netdev's egress before packet sockets see what leaves).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pycni.model.space import SpaceState, World
from pycni.trace.model import Flow, Hop


class Passage(NamedTuple):
    """A hook a packet passes."""

    node: str
    space: str
    hook: str
    """xdp, ingress, prerouting, input, forward, output, postrouting, egress; the bridge's with ``bridge `` before."""
    iif: str
    oif: str
    flow: Flow
    """As it is there, the packet around it where it is encapsulated."""
    before: int
    """Index of the hop it comes before."""
    size: int
    """Bytes around it."""


def passages(world: World, hops: Sequence[Hop]) -> list[Passage]:
    """All of one way, in their order."""
    return list(_Way(world, hops).all())


class _Way:
    def __init__(self, world: World, hops: Sequence[Hop]) -> None:
        self._world, self._hops = world, hops
        self._iif = ""

    def all(self) -> Iterator[Passage]:
        """See ``passages``."""
        place = ("", "")
        for index, hop in enumerate(self._hops):
            if (hop.node, hop.space) != place and hop.action != "received":
                self._iif = ""
            place = hop.node, hop.space
            yield from self._at(index, hop)

    def _at(self, index: int, hop: Hop) -> Iterator[Passage]:
        match hop.component, hop.action:
            case ("interface" | "underlay", "received") | ("overlay", "decapsulated"):
                # What is around a packet ends where it is taken out.
                yield self._make(index, hop, "xdp", hop.interface)
                self._iif = hop.interface
                yield self._make(index + 1, hop, "ingress", hop.interface)
                yield self._make(index + 1, hop, "prerouting", hop.interface)
                if hop.outer is not None:
                    yield self._make(index + 1, hop, "input", hop.interface)
            case ("bridge", "received"):
                yield from self._into_bridge(index, hop)
            case ("bridge", "forwarded"):
                yield from self._out_of_bridge(index, hop)
            case ("routing", "forwarded"):
                yield from self._sent(index, hop)
            case ("underlay", "forwarded") if hop.outer is not None or self._index_of_routing(index) is None:
                for hook in ("output", "postrouting", "egress"):
                    yield self._make(index, hop, hook, "", hop.interface)
            case ("socket", _):
                if hop.action != "sent" and self._iif:
                    yield self._make(index, hop, "input", self._iif)

    def _index_of_routing(self, index: int) -> int | None:
        """Of the routing that has led to this hop by the same device."""
        hop = self._hops[index]
        for at in range(index - 1, -1, -1):
            if (self._hops[at].component, self._hops[at].interface) == ("routing", hop.interface):
                return at
            if self._hops[at].action == "received":
                return None
        return None

    def _into_bridge(self, index: int, hop: Hop) -> Iterator[Passage]:
        port = hop.interface
        yield self._make(index, hop, "xdp", port)
        yield self._make(index + 1, hop, "ingress", port)
        yield self._make(index + 1, hop, "bridge prerouting", port)
        following = self._hops[index + 1] if index + 1 < len(self._hops) else None
        self._iif = self._bridge_of(hop)
        if following is not None and following.component == "bridge":
            self._iif = port
            return
        yield self._make(index + 1, hop, "bridge input", port)
        yield self._make(index + 1, hop, "prerouting", self._iif)

    def _out_of_bridge(self, index: int, hop: Hop) -> Iterator[Passage]:
        """By a port: from another one, or from the bridge's own IP."""
        port, bridge = hop.interface, self._bridge_of(hop)
        before = self._hops[index - 1] if index else None
        if before is not None and before.component == "bridge" and before.action == "received":
            yield self._make(index, hop, "bridge forward", before.interface, port)
            for hook in ("prerouting", "forward", "postrouting") if self._seen_by_ip(hop) else ():
                yield self._make(index, hop, hook, bridge, bridge)
        else:
            yield self._make(index, hop, "bridge output", "", port)
        yield self._make(index, hop, "bridge postrouting", "", port)
        yield self._make(index, hop, "egress", "", port)

    def _sent(self, index: int, hop: Hop) -> Iterator[Passage]:
        device = hop.interface
        if self._iif:
            yield self._make(index, hop, "forward", self._iif, device)
        else:
            yield self._make(index, hop, "output", "", device)
        yield self._make(index, hop, "postrouting", "", device)
        yield self._make(index, hop, "egress", "", device)

    def _make(self, index: int, hop: Hop, hook: str, iif: str, oif: str = "") -> Passage:
        return Passage(
            hop.node,
            hop.space,
            hook,
            iif,
            oif,
            hop.outer or hop.flow,
            index,
            hop.overhead if hop.outer else 0,
        )

    def _state(self, hop: Hop) -> SpaceState:
        part = self._world.nodes.get(hop.node)
        return part.actual.get(hop.space, SpaceState()) if part is not None else SpaceState()

    def _bridge_of(self, hop: Hop) -> str:
        link = self._state(hop).links.get(hop.interface)
        return link.master if link is not None else ""

    def _seen_by_ip(self, hop: Hop) -> bool:
        name = "iptables" if len(hop.flow.source) == 4 else "ip6tables"
        return self._state(hop).sysctls.get(f"net.bridge.bridge-nf-call-{name}", "0") == "1"


def between(found: Iterable[Passage], seen: int, lost: int) -> list[Passage]:
    """Those a packet passes after one hop and up to another."""
    return [item for item in found if seen < item.before <= lost]
