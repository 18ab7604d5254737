"""Places for a graph: boxes and the lines between them. Pure, and the same for the same graph.

    BGP peers
    ═════════ underlay ═════════════    Services
      │ uplink        │ uplink            card
    ┌ node ─────┐   ┌ node ─────┐         card
    │  routing  │   │ closed:   │
    │  bridge   │   │  12 pods  │
    │  pod pod  │   └───────────┘
    └───────────┘

Of all ways to arrange the nodes in rows and their pods in columns the one is taken that can be shown largest in the
room there is. Units are CSS pixels at scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycni.ui.model import UNDERLAY, Edge, Graph, Item
from pycni.ui.places import Box, Laid, Path

POD_W, POD_H, GUTTER, ROW_GAP = 132.0, 42.0, 18.0, 14.0
POD_WIDEST = 190.0
CHIP_H, CHIP_GAP = 36.0, 12.0
PAD = 14.0
HEAD, CLOSED_HEAD, BAR_H, BAR_GAP, POD_TOP = 46.0, 62.0, 26.0, 24.0, 30.0
NODE_GAP, BAND, FLAT_BAND = 34.0, 118.0, 58.0
CARD_W, CARD_H, CARD_GAP = 196.0, 44.0, 12.0
RAIL_H = 12.0
PEER_LEFT = 300.0
ARCS = 6
"""Of at most so many nodes in one row the tunnels are drawn all the time."""
OPEN_NODES, OPEN_PODS = 8, 40
"""Up to so many of both everything is shown at first."""
LARGEST = 1.2
"""Nothing gets larger than this by itself."""
ONE_ROW = 1.35
"""How much smaller it may be shown for the nodes to be in one row."""
SERVICE_COLUMNS = 2
LOOSE = (1.7, 1.5, 1.35, 1.2, 1.1)
"""How height that is left over is used: the first of these that fits."""


class _Plan(NamedTuple):
    """One way to arrange."""

    columns: int
    pod_columns: int
    loose: float = 1.0
    """By how much gaps from above to below are larger than they have to be."""


class _Node(NamedTuple):
    """A node and what is on it."""

    item: Item
    uplinks: Sequence[Item]
    tunnels: Sequence[Item]
    bridges: Sequence[Item]
    host: Item | None
    pods: Sequence[Item]
    open: bool

    @property
    def chips(self) -> Sequence[Item]:
        """On its upper edge, from the left."""
        return (*self.tunnels, *self.uplinks)


def opened(graph: Graph) -> tuple[str, ...]:
    """Nodes whose pods are shown at first: all, when there are few."""
    names = [item.name for item in graph.items if item.kind == "node"]
    pods = sum(item.kind == "pod" for item in graph.items)
    return tuple(names) if len(names) <= OPEN_NODES and pods <= OPEN_PODS else ()


def layout(
    graph: Graph, open_nodes: Sequence[str] | None = None, width: float = 1100, height: float = 760
) -> Laid:
    """Places for everything in a room of this size. ``open_nodes``: whose pods are shown; None: as is best."""
    wanted = set(opened(graph) if open_nodes is None else open_nodes)
    nodes = _nodes(graph, wanted)
    services = [item for item in graph.items if item.kind == "service"]
    peers = [item for item in graph.items if item.kind == "peer"]
    plans = [
        _Plan(columns, pod_columns)
        for columns in range(1, max(len(nodes), 1) + 1)
        for pod_columns in range(1, 9)
    ]
    drawings = (_Drawing(nodes, services, peers, plan) for plan in plans)
    best = max(drawings, key=lambda drawing: _score(drawing, width, height))
    for loose in LOOSE:
        looser = _Drawing(nodes, services, peers, best.plan._replace(loose=loose))
        if _score(looser, width, height)[0] >= _score(best, width, height)[0]:
            return looser.draw(graph.edges)
    return best.draw(graph.edges)


def _score(drawing: _Drawing, width: float, height: float) -> tuple[float, float]:
    """How large it can be shown, one row with its tunnels rather than several; of equals the one that wastes less."""
    size = drawing.size()
    scale = min(width / size[0], height / size[1], LARGEST)
    return round(scale * (ONE_ROW if drawing.arcs else 1), 3), -size[0] * size[1]


def _nodes(graph: Graph, wanted: set[str]) -> list[_Node]:
    on: dict[str, dict[str, list[Item]]] = {}
    for item in graph.items:
        if item.node:
            on.setdefault(item.node, {}).setdefault(item.kind, []).append(item)
    found = []
    for item in graph.items:
        if item.kind == "node":
            mine = on.get(item.name, {})
            hosts = mine.get("host", [])
            found.append(
                _Node(
                    item,
                    mine.get("uplink", []),
                    mine.get("tunnel", []),
                    mine.get("bridge", []),
                    hosts[0] if hosts else None,
                    mine.get("pod", []),
                    item.name in wanted,
                )
            )
    return found


def _chip_width(item: Item) -> float:
    return max(len(item.name) * 6.9, len(item.label) * 6.0, 40.0) + 14


class _Drawing:
    """One arrangement."""

    def __init__(
        self, nodes: Sequence[_Node], services: Sequence[Item], peers: Sequence[Item], plan: _Plan
    ) -> None:
        self._nodes, self._services, self._peers, self.plan = nodes, services, peers, plan
        self._gap, self._pod_top, self._row_gap = (gap * plan.loose for gap in (BAR_GAP, POD_TOP, ROW_GAP))
        self._rows = [nodes[at : at + plan.columns] for at in range(0, len(nodes), plan.columns)]
        self._cell = max([self._width(node) for node in nodes] or [200.0])
        self._left = 30.0 if len(self._rows) > 1 else 0.0
        self.arcs = len(self._rows) <= 1 and len(nodes) <= ARCS
        self._boxes: dict[str, Box] = {}
        self._paths: dict[str, Path] = {}
        self._inside: dict[str, str] = {}

    # sizes

    def size(self) -> tuple[float, float]:
        """Width and height of everything."""
        services = 40.0 + min(len(self._services), self._services_per_column()) * (CARD_H + CARD_GAP)
        height = max(self._nodes_height(), services if self._services else 0.0)
        return self._nodes_width() + self._services_width(), height

    def _nodes_height(self) -> float:
        return self._top() + max(sum(self._row_height(row) for row in self._rows), RAIL_H)

    def _band(self) -> float:
        return self.plan.loose * (
            BAND if self.arcs and any(node.tunnels for node in self._nodes) else FLAT_BAND
        )

    def _top(self) -> float:
        return self._peers_height() + 34.0

    def _nodes_width(self) -> float:
        columns = min(self.plan.columns, max(len(self._nodes), 1))
        return self._left + columns * self._cell + (columns - 1) * NODE_GAP

    def _peers_per_row(self) -> int:
        return max(int((self._nodes_width() - PEER_LEFT + CARD_GAP) // (CARD_W + CARD_GAP)), 1)

    def _peers_height(self) -> float:
        rows = -(-len(self._peers) // self._peers_per_row())
        return rows * (CARD_H + CARD_GAP)

    def _services_width(self) -> float:
        return 46.0 + self._service_columns() * (CARD_W + CARD_GAP) if self._services else 0.0

    def _service_columns(self) -> int:
        return min(SERVICE_COLUMNS, -(-len(self._services) // self._services_per_column()))

    def _services_per_column(self) -> int:
        return max(int((self._nodes_height() - 40.0) // (CARD_H + CARD_GAP)), 3)

    def _width(self, node: _Node) -> float:
        chips = sum(_chip_width(item) + CHIP_GAP for item in node.chips) + 2 * PAD
        head = max(len(node.item.name) * 8.4 + 24, len(node.item.label) * 6.4) + PAD
        if not node.open:
            return max(chips, head + PAD, 184.0)
        columns = self._columns(node)
        # The head stands beside the chips, whose lines go down.
        return max(head + chips, columns * POD_W + columns * GUTTER + 2 * PAD)

    def _columns(self, node: _Node) -> int:
        return max(min(self.plan.pod_columns, len(node.pods)), 1)

    def _height(self, node: _Node) -> float:
        if not node.open:
            return CLOSED_HEAD + CHIP_H / 2 + BAR_H + 2 * PAD
        bridge = self._gap + BAR_H if node.bridges else 0.0
        rows = -(-len(node.pods) // self._columns(node))
        pods = self._pod_top + rows * POD_H + (rows - 1) * self._row_gap if rows else 0.0
        return HEAD + CHIP_H / 2 - 6 + BAR_H + bridge + pods + PAD

    def _row_height(self, row: Sequence[_Node]) -> float:
        return self._band() + max([self._height(node) for node in row] or [0.0]) + 22.0

    # places

    def draw(self, edges: Sequence[Edge]) -> Laid:
        """Everything."""
        width, height = self.size()
        rails = self._place_rows()
        self._place_peers(rails)
        hidden = self._place_services()
        for edge in edges:
            self._route(edge)
        return Laid(
            width=width,
            height=height,
            boxes=self._boxes,
            paths=self._paths,
            inside=self._inside,
            rails=tuple(rails),
            open=tuple(node.item.name for node in self._nodes if node.open),
            arcs=self.arcs,
            hidden_services=hidden,
        )

    def _place_rows(self) -> list[tuple[float, float, float]]:
        y = self._top()
        rails = []
        right = self._nodes_width()
        for row in self._rows:
            rails.append((0.0, right, y))
            x = self._left
            for node in row:
                self._place_node(node, x, y + self._band())
                x += self._cell + NODE_GAP
            y += self._row_height(row)
        if not rails:
            rails.append((0.0, right, y))
        first = rails[0]
        self._boxes[UNDERLAY] = Box(first[0], first[2] - RAIL_H / 2, first[1] - first[0], RAIL_H)
        return rails

    def _place_node(self, node: _Node, x: float, y: float) -> None:
        self._boxes[node.item.id] = Box(x, y, self._cell, self._height(node))
        at = x + self._cell - PAD
        for item in reversed(node.chips):
            wide = _chip_width(item)
            self._boxes[item.id] = Box(at - wide, y - CHIP_H / 2, wide, CHIP_H)
            at -= wide + CHIP_GAP
        left, wide = x + PAD, self._cell - 2 * PAD
        if not node.open:
            stand_in = f"pods:{node.item.name}"
            self._boxes[stand_in] = Box(left, y + CLOSED_HEAD + CHIP_H / 2 - 8, wide, BAR_H + PAD)
            hidden = (*([node.host] if node.host is not None else []), *node.bridges, *node.pods)
            self._inside.update((item.id, stand_in) for item in hidden)
            return
        down = y + HEAD + CHIP_H / 2 - 6
        if node.host is not None:
            self._boxes[node.host.id] = Box(left, down, wide, BAR_H)
        down += BAR_H + (self._gap if node.bridges else 0.0)
        share = wide / max(len(node.bridges), 1)
        for number, item in enumerate(node.bridges):
            self._boxes[item.id] = Box(
                left + number * share, down, share - (8 if len(node.bridges) > 1 else 0), BAR_H
            )
        down += (BAR_H if node.bridges else 0.0) + self._pod_top
        columns = self._columns(node)
        broad = min((wide - columns * GUTTER) / columns, POD_WIDEST)
        start = left + (wide - columns * (broad + GUTTER)) / 2 + GUTTER
        for number, item in enumerate(node.pods):
            row, column = divmod(number, columns)
            self._boxes[item.id] = Box(
                start + column * (broad + GUTTER), down + row * (POD_H + self._row_gap), broad, POD_H
            )

    def _place_peers(self, rails: Sequence[tuple[float, float, float]]) -> None:
        per_row = self._peers_per_row()
        for number, item in enumerate(self._peers):
            row, column = divmod(number, per_row)
            x = min(PEER_LEFT, max(rails[0][1] - CARD_W, 0.0)) + column * (CARD_W + CARD_GAP)
            self._boxes[item.id] = Box(x, row * (CARD_H + CARD_GAP), CARD_W, CARD_H)

    def _place_services(self) -> int:
        """How many have no place."""
        per_column = self._services_per_column()
        left = self._nodes_width() + 46.0
        room = per_column * SERVICE_COLUMNS
        shown = self._services if len(self._services) <= room else self._services[: room - 1]
        for number, item in enumerate(shown):
            column, row = divmod(number, per_column)
            self._boxes[item.id] = Box(
                left + column * (CARD_W + CARD_GAP), 30.0 + row * (CARD_H + CARD_GAP), CARD_W, CARD_H
            )
        rest = self._services[len(shown) :]
        if rest:
            column, row = divmod(len(shown), per_column)
            self._boxes["svc+"] = Box(
                left + column * (CARD_W + CARD_GAP), 30.0 + row * (CARD_H + CARD_GAP), CARD_W, CARD_H
            )
            self._inside.update((item.id, "svc+") for item in rest)
        return len(rest)

    # lines

    def _route(self, edge: Edge) -> None:
        if edge.kind == "backs":
            self._paths.update(self._backs(edge))
            return
        a, b = self._boxes.get(edge.a), self._boxes.get(edge.b)
        if a is None or b is None:
            return
        if edge.kind == "cable":
            x = b.x + b.w / 2
            rail = self._rail_above(b)
            self._paths[edge.id] = Path(((x, rail), (x, b.y)))
        elif edge.kind == "session":
            x = a.x + a.w / 2
            self._paths[edge.id] = Path(((x, a.y + a.h), (x, self._top())))
        elif edge.kind == "inner":
            chip, bar = (a, b) if a.y < b.y else (b, a)
            x = chip.x + chip.w / 2 if chip.h > BAR_H else bar.x + bar.w / 2
            points = ((x, chip.y + chip.h), (x, bar.y))
            self._paths[edge.id] = Path(points if chip is a else points[::-1])
        elif edge.kind == "carry":
            low = a.y + a.h + 8
            begin, end = a.x + a.w / 2 + 14, b.x + b.w / 2 - 14
            self._paths[edge.id] = Path(((begin, a.y + a.h), (begin, low), (end, low), (end, b.y + b.h)))
        elif edge.kind == "tunnel":
            self._paths[edge.id] = self._arc(a, b)
        elif edge.kind == "veth":
            self._paths[edge.id] = self._veth(a, b)

    def _rail_above(self, box: Box) -> float:
        y = self._top()
        for row in self._rows:
            bottom = y + self._row_height(row)
            if box.y < bottom:
                return y
            y = bottom
        return self._top()

    def _arc(self, a: Box, b: Box) -> Path:
        if abs(a.y - b.y) < 1:
            far = abs(b.x - a.x) / (self._cell + NODE_GAP)
            lift = (34.0 + min(far - 1, 4) * 24.0) * self.plan.loose
        else:
            lift = 46.0
        begin, end = a.x + a.w / 2, b.x + b.w / 2
        bend = min(abs(end - begin) * 0.28, 120.0) * (1 if end > begin else -1)
        return Path(
            ((begin, a.y), (begin + bend, a.y - lift), (end - bend, b.y - lift), (end, b.y)), curve=True
        )

    def _veth(self, a: Box, b: Box) -> Path:
        """Pods of the first row hang straight down; the others' lines go down between the columns."""
        if b.y - (a.y + a.h) <= self._pod_top + 1 or a.h > BAR_H:
            x = b.x + b.w / 2
            return Path(((x, a.y + a.h), (x, b.y)))
        row = round((b.y - a.y - a.h - self._pod_top) / (POD_H + self._row_gap))
        x = b.x - GUTTER + 4 + min(row * 3, GUTTER - 6)
        middle = b.y + b.h / 2
        return Path(((x, a.y + a.h), (x, middle), (b.x, middle)))

    def _backs(self, edge: Edge) -> dict[str, Path]:
        a = self._boxes.get(self._inside.get(edge.a, edge.a))
        b = self._boxes.get(self._inside.get(edge.b, edge.b))
        if a is None or b is None:
            return {}
        begin, end = (a.x, a.y + a.h / 2), (b.x + b.w, b.y + b.h / 2)
        bend = max((begin[0] - end[0]) * 0.4, 30.0)
        return {edge.id: Path((begin, (begin[0] - bend, begin[1]), (end[0] + bend, end[1]), end), curve=True)}
