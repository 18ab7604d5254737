"""Puts what nodes know of themselves together into a world: ends of veth pairs find each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pycni.model.space import NODE, LinkState, NodePart, PodPlace, SpaceState, World


def join(parts: Iterable[NodePart], silent: Mapping[str, str] | None = None) -> World:
    """The world of these nodes. ``silent``: nodes that do not answer, with the reason."""
    nodes = {part.name: connect(part) for part in parts}
    pods: dict[str, PodPlace] = {pod.name: pod for part in nodes.values() for pod in part.pods}
    return World(nodes=nodes, pods=pods, silent=dict(silent or {}))


def connect(part: NodePart) -> NodePart:
    """A node whose veth devices know where their other ends are."""
    way_out = (NODE, part.underlay)
    return msgspec.structs.replace(
        part, actual=_paired(part.actual, way_out), wanted=_paired(part.wanted, way_out)
    )


def _paired(spaces: Mapping[str, SpaceState], way_out: tuple[str, str]) -> dict[str, SpaceState]:
    """``way_out``: space and name of the underlay's interface, whose other end, if it has one, is not the node's."""
    ends: dict[tuple[int, int], list[tuple[str, LinkState]]] = {}
    for name, state in spaces.items():
        for link in state.links.values():
            if link.kind == "veth" and (name, link.name) != way_out:
                ends.setdefault((link.index, link.peer_index), []).append((name, link))
    found = {}
    for name, state in spaces.items():
        links = {
            link.name: link
            if (name, link.name) == way_out
            else _with_peer(name, link, ends.get((link.peer_index, link.index), ()))
            for link in state.links.values()
        }
        found[name] = msgspec.structs.replace(state, links=links)
    return found


def _with_peer(space: str, link: LinkState, ends: Iterable[tuple[str, LinkState]]) -> LinkState:
    """Indexes are small numbers that repeat between namespaces: only a pair that names each other counts."""
    if link.kind != "veth":
        return link
    others = [(name, end) for name, end in ends if (name, end.name) != (space, link.name)]
    if len(others) != 1:
        return link
    [(name, end)] = others
    return msgspec.structs.replace(link, peer_space=name, peer=end.name)
