"""The view's layout: everything has a place, nothing is on anything else, and it is the same each time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.ui.graph import graph
from pycni.ui.layout import layout
from pycni.ui.model import Graph, Peer
from pycni.ui.places import Box, Laid

from .ui_world import objects, world

SOLID = ("uplink", "tunnel", "bridge", "host", "pod", "service", "peer")


def made(nodes: int, pods: int, services: int = 2, peers: int = 1) -> Graph:
    here = world(nodes, pods)
    outside = [Peer(address=f"192.0.2.{n}", name=f"tor{n}") for n in range(peers)]
    return graph(here, objects(here, services), outside)


def over(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.w
        and other.x < one.x + one.w
        and one.y < other.y + other.h
        and other.y < one.y + one.h
    )


def inside(one: Box, other: Box) -> bool:
    return (
        other.x <= one.x
        and one.x + one.w <= other.x + other.w + 0.01
        and one.y + one.h <= other.y + other.h + 0.01
    )


def check(found: Graph, laid: Laid) -> None:
    kinds = {item.id: item.kind for item in found.items}
    nodes = {name: box for name, box in laid.boxes.items() if kinds.get(name) == "node"}
    solid = {name: box for name, box in laid.boxes.items() if name not in nodes and name != "underlay"}
    for one, other in itertools.combinations(solid, 2):
        assert not over(solid[one], solid[other]), f"{one} is on {other}"
    for one, other in itertools.combinations(nodes, 2):
        assert not over(nodes[one], nodes[other]), f"{one} is on {other}"
    for item in found.items:
        assert item.id in laid.boxes or laid.inside[item.id] in laid.boxes, f"{item.id} has no place"
        if item.node and item.kind != "node" and item.id in laid.boxes:
            box, home = laid.boxes[item.id], nodes[f"node:{item.node}"]
            assert inside(box, home), f"{item.id} is not in its node"
    for box in laid.boxes.values():
        assert box.x >= 0
        assert box.x + box.w <= laid.width + 0.01
        assert box.y >= -1
        assert box.y + box.h <= laid.height + 0.01
    for edge in found.edges:
        path = laid.paths.get(edge.id)
        if path is None:
            assert {edge.a, edge.b} & laid.inside.keys(), f"{edge.id} has no line, and nothing hides it"
            continue
        assert len(path.points) == 4 or not path.curve
        assert len(path.points) >= 2


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(0, 9),
    pods=st.integers(0, 9),
    services=st.integers(0, 40),
    peers=st.integers(0, 8),
    width=st.integers(300, 3000),
    share=st.integers(0, 9),
)
def test_nothing_is_on_anything_else(
    nodes: int, pods: int, services: int, peers: int, width: int, share: int
) -> None:
    found = made(nodes, pods, services, peers)
    opened = [f"node{n}" for n in range(1, min(share, nodes) + 1)]
    check(found, layout(found, opened, width, 800))


def test_it_is_the_same_each_time() -> None:
    found = made(5, 4)
    assert layout(found) == layout(found)


def test_few_nodes_are_open_in_one_row_with_their_tunnels() -> None:
    laid = layout(made(3, 3))
    assert laid.open == ("node1", "node2", "node3")
    assert len(laid.rails) == 1
    assert laid.arcs


def test_many_nodes_are_closed_and_readable_on_a_usual_screen() -> None:
    found = made(30, 10)
    laid = layout(found, None, 1100, 760)
    assert laid.open == ()
    assert laid.boxes["pods:node7"]
    assert len(laid.rails) > 1
    assert min(1100 / laid.width, 760 / laid.height) > 0.6
    check(found, laid)


def test_a_node_that_is_opened_shows_its_pods_and_the_others_do_not() -> None:
    found = made(30, 10)
    laid = layout(found, ["node3"])
    assert {name for name in laid.boxes if name.startswith("pod:")} == {
        f"pod:shop/web-3-{n}" for n in range(1, 11)
    }
    assert laid.inside["pod:shop/web-4-1"] == "pods:node4"
    check(found, laid)


def test_all_pods_of_many_nodes_can_be_shown() -> None:
    found = made(30, 10)
    laid = layout(found, [f"node{n}" for n in range(1, 31)])
    assert sum(name.startswith("pod:") for name in laid.boxes) == 300
    check(found, laid)


def test_services_there_is_no_room_for_are_counted() -> None:
    found = made(3, 2, services=100)
    laid = layout(found)
    shown = sum(name.startswith("svc:") for name in laid.boxes)
    assert shown + laid.hidden_services == 100
    assert laid.hidden_services > 0
    assert "svc+" in laid.boxes


@pytest.mark.parametrize("tunnel", ["flannel.1", ""], ids=["overlay", "no overlay"])
def test_cables_go_from_the_rail_above_to_their_uplink(tunnel: str) -> None:
    here = world(12, 1, tunnel=tunnel)
    laid = layout(graph(here, objects(here)), (), 900, 900)
    for number in range(1, 13):
        begin, end = laid.paths[f"cable:node{number}/eth0"].points
        assert any(begin[1] == rail[2] for rail in laid.rails)
        box = laid.boxes[f"dev:node{number}/eth0"]
        assert end == (box.x + box.w / 2, box.y)
        assert begin[1] < end[1]
