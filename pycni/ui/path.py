"""A trace's hops on the graph: at which thing each happens, and the edges that lead there. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from pycni.model.space import NODE
from pycni.trace.model import Hop
from pycni.ui.model import UNDERLAY, Edge, Graph, Item

_PHYSICAL = frozenset({"cable", "inner", "carry", "veth"})


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One hop's place."""

    hop: int
    """Its index in the trace: those there first, then those back."""
    item: str
    edges: tuple[tuple[str, bool], ...] = ()
    """From the hop before, in order; True: from ``b`` to ``a``."""
    also: str = ""
    """The Service that translates here, or the tunnel the packet has come out of."""


class Ways:
    """The edges packets pass, by their ends."""

    def __init__(self, graph: Graph) -> None:
        self._items: dict[str, Item] = {item.id: item for item in graph.items}
        self._next: dict[str, list[tuple[Edge, str, bool]]] = {}
        self._tunnels: dict[frozenset[str], str] = {}
        self._bridge: dict[str, str] = {}
        """Where a veth's end is plugged in, by ``NODE/DEVICE``."""
        for edge in graph.edges:
            if edge.kind in _PHYSICAL:
                self._next.setdefault(edge.a, []).append((edge, edge.b, False))
                self._next.setdefault(edge.b, []).append((edge, edge.a, True))
            if edge.kind == "tunnel":
                self._tunnels[frozenset((edge.a, edge.b))] = edge.id
            if edge.kind == "veth" and edge.counter:
                self._bridge[edge.counter] = edge.a

    def steps(self, hops: Sequence[Hop], start: int = 0) -> Iterator[Step]:
        """Where these hops are. ``start``: the index of the first."""
        before = entered = ""
        for number, hop in enumerate(hops, start):
            item = self.item(hop)
            edges = self.between(before, item) if before and item else ()
            also = self._service(hop)
            if hop.component == "overlay" and item:
                also = self._tunnels.get(frozenset((entered, item)), "")
                entered = item
            yield Step(hop=number, item=item, edges=edges, also=also)
            before = item or before

    def item(self, hop: Hop) -> str:
        """The thing a hop happens at; "" when it is not on the graph."""
        node = hop.node
        if hop.space != NODE:
            return self._known(f"pod:{hop.space}")
        device = f"dev:{node}/{hop.interface}"
        if hop.component in {"overlay", "underlay", "neighbour"} and device in self._items:
            return device
        if hop.component in {"bridge", "guard", "interface"}:
            port = self._bridge.get(f"{node}/{hop.interface}", "")
            if port or device in self._items:
                return port or device
        host = f"host:{node}"
        if host in self._items:
            return host
        return self._known(f"node:{node}") or self._known(UNDERLAY)

    def _known(self, name: str) -> str:
        return name if name in self._items else ""

    def _service(self, hop: Hop) -> str:
        if hop.component != "service":
            return ""
        key = hop.detail.partition(" ")[0].partition(":")[0]
        return self._known(f"svc:{key}")

    def between(self, begin: str, end: str) -> tuple[tuple[str, bool], ...]:
        """The shortest way by edges packets pass; () when there is none."""
        came: dict[str, tuple[str, Edge, bool]] = {}
        todo = deque([begin])
        seen = {begin}
        while todo and end not in seen:
            here = todo.popleft()
            for edge, there, turned in self._next.get(here, ()):
                if there not in seen:
                    seen.add(there)
                    came[there] = (here, edge, turned)
                    todo.append(there)
        found: list[tuple[str, bool]] = []
        while end in came:
            end, edge, turned = came[end]
            found.append((edge.id, turned))
        return tuple(reversed(found))
