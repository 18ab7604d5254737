"""The view's graph: what there is, how it hangs together, what is not as wanted; and traces on it."""

from __future__ import annotations

import msgspec
import pytest

from pycni.model.space import NODE, NodePart, PodPlace
from pycni.trace.join import join
from pycni.trace.model import Flow, Hop
from pycni.ui.graph import graph
from pycni.ui.model import Graph, Peer, natural
from pycni.ui.path import Ways

from .ui_world import Objects, changed, objects, packed, part, world

FLOW = Flow(protocol=1, source=packed("10.244.1.2"), destination=packed("10.244.2.2"))


def item(found: Graph, name: str):
    return next(one for one in found.items if one.id == name)


def edge(found: Graph, name: str):
    return next(one for one in found.edges if one.id == name)


def ids(found: Graph, kind: str) -> list[str]:
    return [one.id for one in (*found.items, *found.edges) if one.kind == kind]


def wrong(found: Graph) -> set[str]:
    return {one.id for one in (*found.items, *found.edges) if one.state != "ok"}


def test_nodes_devices_pods_tunnels_services_and_peers_are_there() -> None:
    here = world(nodes=3, pods=2)
    peer = Peer(address="192.0.2.1", name="tor", sessions={"node1": "Established", "node2": "Established"})
    found = graph(here, objects(here), [peer])
    assert ids(found, "node") == ["node:node1", "node:node2", "node:node3"]
    assert ids(found, "uplink") == [f"dev:node{n}/eth0" for n in (1, 2, 3)]
    assert ids(found, "tunnel") == [f"dev:node{n}/flannel.1" for n in (1, 2, 3)] + [
        f"tunnel:{pair}/flannel.1" for pair in ("node1+node2", "node1+node3", "node2+node3")
    ]
    assert ids(found, "bridge") == [f"dev:node{n}/cni0" for n in (1, 2, 3)]
    assert len(ids(found, "pod")) == len(ids(found, "veth")) == 6
    assert ids(found, "service") == ["svc:shop/svc1"]
    assert len(ids(found, "backs")) == 6
    assert ids(found, "peer") == ["peer:192.0.2.1"]
    assert item(found, "underlay").label == "172.20.0.0/16 · MTU 1500"
    assert not wrong(found)


def test_every_id_is_there_once_and_every_edge_ends_at_items() -> None:
    here = world(nodes=4, pods=3)
    found = graph(here, objects(here, services=2))
    names = [one.id for one in (*found.items, *found.edges)]
    assert len(names) == len(set(names))
    known = {one.id for one in found.items}
    assert all({one.a, one.b} <= known for one in found.edges)


def test_counters_of_an_edge_name_the_device_and_which_way_is_forward() -> None:
    here = world()
    found = graph(here, Objects())
    assert (edge(found, "cable:node1/eth0").counter, edge(found, "cable:node1/eth0").forward) == (
        "node1/eth0",
        "rx",
    )
    veth = edge(found, "veth:shop/web-1-1")
    assert (veth.a, veth.b, veth.counter, veth.forward) == (
        "dev:node1/cni0",
        "pod:shop/web-1-1",
        "node1/veth1x1",
        "tx",
    )


@pytest.mark.parametrize(
    ("how", "begin"),
    [
        pytest.param({"bridge": ""}, "host:node1", id="routed pods hang at the node's routing"),
        pytest.param({"bridge": "cni0"}, "dev:node1/cni0", id="bridged ones at the bridge"),
    ],
)
def test_pods_hang_where_their_interface_leads(how: dict[str, str], begin: str) -> None:
    assert edge(graph(world(**how), Objects()), "veth:shop/web-1-1").a == begin


def test_a_pod_on_the_underlay_hangs_at_the_uplink() -> None:
    whole = part(1, 1, 0)
    place = PodPlace(name="a/x", node="node1", addresses=(packed("172.20.1.1"),))
    here = join([msgspec.structs.replace(whole, pods=(place,))])
    found = graph(here, Objects())
    assert (edge(found, "veth:a/x").a, edge(found, "veth:a/x").counter) == ("dev:node1/eth0", "")


def test_without_an_overlay_there_are_no_tunnels() -> None:
    found = graph(world(tunnel=""), Objects())
    assert not ids(found, "tunnel")
    assert not wrong(found)


def test_overlay_devices_nothing_leads_over_are_somebody_elses() -> None:
    here = world(nodes=1)
    links = dict(here.nodes["node1"].actual[NODE].links)
    links["tunl0"] = msgspec.structs.replace(links["flannel.1"], name="tunl0", kind="ipip")
    found = graph(changed(here, "node1", links=links), Objects())
    assert "dev:node1/tunl0" not in {one.id for one in found.items}


BROKEN = {
    "a forwarding entry gone": (
        lambda here: changed(here, "node1", fdb=here.nodes["node1"].actual[NODE].fdb[1:]),
        {"node:node1", "tunnel:node1+node2/flannel.1"},
        "forwarding entry 02:00:00:00:00:02 to 172.20.0.2 on flannel.1 is missing",
    ),
    "a neighbour gone": (
        lambda here: changed(here, "node1", neighbours=here.nodes["node1"].actual[NODE].neighbours[:1]),
        {"node:node1", "tunnel:node1+node3/flannel.1"},
        "neighbour 10.244.3.0 on flannel.1 is missing",
    ),
    "a wrong MAC": (
        lambda here: changed(
            here,
            "node2",
            neighbours=tuple(
                msgspec.structs.replace(one, mac=b"\2\0\0\0\0\x63")
                for one in here.nodes["node2"].actual[NODE].neighbours[:1]
            )
            + here.nodes["node2"].actual[NODE].neighbours[1:],
        ),
        {"node:node2", "tunnel:node1+node2/flannel.1"},
        "neighbour 10.244.1.0 on flannel.1 has the MAC 02:00:00:00:00:63, not 02:00:00:00:00:01",
    ),
    "a route gone": (
        lambda here: changed(here, "node3", routes=here.nodes["node3"].actual[NODE].routes[1:]),
        {"node:node3", "tunnel:node1+node3/flannel.1"},
        "route 10.244.1.0/24 via 10.244.1.0 dev flannel.1 is missing",
    ),
    "a veth down": (
        lambda here: changed(here, "node1", links=_with(here, "node1", "veth1x1", up=False)),
        {"veth:shop/web-1-1"},
        "veth1x1: is down",
    ),
    "a port isolated": (
        lambda here: changed(here, "node1", links=_with(here, "node1", "veth1x2", isolated=True)),
        {"veth:shop/web-1-2"},
        "veth1x2: its port of cni0 is isolated",
    ),
    "a port pulled out": (
        lambda here: changed(here, "node1", links=_with(here, "node1", "veth1x2", master="")),
        {"veth:shop/web-1-2"},
        "veth1x2: is no port of cni0",
    ),
    "an uplink of another MTU": (
        lambda here: changed(here, "node1", links=_with(here, "node1", "eth0", mtu=9000)),
        {"underlay"},
        "the nodes' uplinks have different MTUs",
    ),
}


def _with(here, node: str, device: str, **fields: object):
    links = dict(here.nodes[node].actual[NODE].links)
    return {**links, device: msgspec.structs.replace(links[device], **fields)}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_as_wanted_is_marked_where_it_is(name: str) -> None:
    damage, where, words = BROKEN[name]
    found = graph(damage(world()), Objects())
    assert wrong(found) == where
    assert any(words in one.note for one in (*found.items, *found.edges))


def test_an_agent_that_is_dead_warns_and_a_silent_node_is_there_all_the_same() -> None:
    here = world(nodes=2)
    dead = msgspec.structs.replace(here.nodes["node1"], agent="the agent is not running")
    here = msgspec.structs.replace(
        here, nodes={**here.nodes, "node1": dead}, silent={"node9": "does not answer"}
    )
    found = graph(here, Objects())
    assert (item(found, "node:node1").state, item(found, "node:node1").note) == (
        "warn",
        "the agent is not running",
    )
    assert (item(found, "node:node9").state, item(found, "node:node9").note) == ("bad", "does not answer")


def test_of_a_node_that_is_silent_only_that_is_told() -> None:
    here = world(nodes=2)
    name = "node2"
    nothing = msgspec.structs.replace(here.nodes[name], actual={}, wanted={})
    here = msgspec.structs.replace(
        here, nodes={**here.nodes, name: nothing}, silent={name: "does not answer"}
    )
    found = graph(here, Objects())
    assert wrong(found) == {"node:node2"}
    assert item(found, "node:node2").note == "does not answer"


def test_pods_whose_inside_nobody_has_looked_at_are_not_called_broken() -> None:
    whole = part(1, 1, 2)
    unread = msgspec.structs.replace(whole, actual={NODE: whole.actual[NODE]}, wanted={})
    assert not wrong(graph(join([unread]), Objects()))


def test_a_service_without_a_ready_endpoint_warns() -> None:
    here = world()
    found = graph(here, objects(here, ready=False))
    assert (item(found, "svc:shop/svc1").state, item(found, "svc:shop/svc1").note) == (
        "warn",
        "no endpoint is ready",
    )


def test_sessions_with_a_peer_are_told_by_node() -> None:
    peer = Peer(address="192.0.2.1", name="tor", sessions={"node1": "Established", "node2": "Active"})
    found = item(graph(world(), Objects(), [peer]), "peer:192.0.2.1")
    assert (found.state, found.note, found.label) == ("warn", "node2: Active", "BGP with 1 of 2 nodes")
    assert ("session of node2", "Active") in found.facts


def test_pods_know_the_policies_about_them() -> None:
    here = world()
    assert ("policies", "shop/closed") in item(graph(here, objects(here)), "pod:shop/web-1-1").facts


def test_names_are_sorted_as_people_count() -> None:
    assert natural(["node10", "node2", "a", "node1"]) == ["a", "node1", "node2", "node10"]


# --- traces on the graph ----------------------------------------------------------------------------------------------


def hop(node: str, component: str, interface: str = "", space: str = NODE, detail: str = "") -> Hop:
    return Hop(
        node=node,
        space=space,
        component=component,
        interface=interface,
        action="forwarded",
        detail=detail,
        flow=FLOW,
    )


OVERLAY = (
    hop("node1", "socket", space="shop/web-1-1"),
    hop("node1", "bridge", "veth1x1"),
    hop("node1", "service", detail="shop/svc1:http"),
    hop("node1", "routing", "flannel.1"),
    hop("node1", "overlay", "flannel.1"),
    hop("node1", "underlay", "eth0"),
    hop("node2", "overlay", "flannel.1"),
    hop("node2", "routing", "cni0"),
    hop("node2", "bridge", "veth2x1"),
    hop("node2", "socket", space="shop/web-2-1"),
)


def test_a_trace_goes_along_edges_from_pod_to_pod() -> None:
    here = world()
    ways = Ways(graph(here, objects(here)))
    steps = list(ways.steps(OVERLAY))
    assert [step.item for step in steps] == [
        "pod:shop/web-1-1", "dev:node1/cni0", "host:node1", "host:node1", "dev:node1/flannel.1", "dev:node1/eth0",
        "dev:node2/flannel.1", "host:node2", "dev:node2/cni0", "pod:shop/web-2-1",
    ]  # fmt: skip
    assert [pair for step in steps for pair in step.edges] == [
        ("veth:shop/web-1-1", True),
        ("inner:node1/cni0", True),
        ("inner:node1/flannel.1", False),
        ("carry:node1/flannel.1", False),
        ("cable:node1/eth0", True),
        ("cable:node2/eth0", False),
        ("carry:node2/flannel.1", True),
        ("inner:node2/flannel.1", True),
        ("inner:node2/cni0", False),
        ("veth:shop/web-2-1", False),
    ]
    assert steps[2].also == "svc:shop/svc1"
    assert steps[6].also == "tunnel:node1+node2/flannel.1"


def test_hops_back_are_counted_on_and_unknown_places_have_none() -> None:
    ways = Ways(graph(world(nodes=1), Objects()))
    steps = list(ways.steps([hop("node1", "routing"), hop("elsewhere", "socket", space="a/b")], 7))
    assert [(step.hop, step.item, step.edges) for step in steps] == [(7, "host:node1", ()), (8, "", ())]


def test_without_an_overlay_a_trace_goes_by_the_underlay() -> None:
    ways = Ways(graph(world(tunnel=""), Objects()))
    steps = list(ways.steps([hop("node1", "routing", "eth0"), hop("node2", "routing", "cni0")]))
    assert [name for name, _ in steps[1].edges] == [
        "inner:node1/eth0", "cable:node1/eth0", "cable:node2/eth0", "inner:node2/eth0",
    ]  # fmt: skip


def test_a_node_part_that_knows_nothing_is_drawn() -> None:
    found = graph(join([NodePart(name="empty")]), Objects())
    assert {one.id for one in found.items} == {"underlay", "node:empty", "host:empty"}
