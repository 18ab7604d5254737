"""Packets through a made-up world of two nodes with three pods: where they go, and what each damage does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from pycni.model.family import Family
from pycni.model.space import (
    NODE,
    AddressState,
    FdbState,
    LinkState,
    NeighbourState,
    NodePart,
    PodPlace,
    RouteState,
    RuleState,
    SpaceState,
    World,
)
from pycni.trace import lookup
from pycni.trace.join import join
from pycni.trace.lookup import Query
from pycni.trace.model import ICMP, TCP, Flow
from pycni.trace.walk import answer, walk
from pycni.trace.ways import Judged, Path, Turn

VIP = ip_address("10.96.0.10").packed


def packed(text: str) -> bytes:
    return ip_address(text).packed


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def to(net: str, device: str, via: str = "", **more: Any) -> RouteState:
    host, _, length = net.partition("/")
    gateway = packed(via) if via else b""
    return RouteState(
        table=254, destination=packed(host), prefix_len=int(length), device=device, gateway=gateway, **more
    )


def local(address: str) -> RouteState:
    return RouteState(table=255, destination=packed(address), prefix_len=32, kind="local", device="lo")


def pod_space(node: int, number: int) -> SpaceState:
    address = f"10.5.{node}.{number}"
    link = LinkState(
        name="eth0", kind="veth", mac=mac(16 * node + number), mtu=1450, index=2, peer_index=10 + number
    )
    return SpaceState(
        links={"eth0": link},
        addresses=(AddressState("eth0", packed(address), 24),),
        routes=(local(address), to(f"10.5.{node}.0/24", "eth0"), to("0.0.0.0/0", "eth0", f"10.5.{node}.1")),
        listening=(("tcp", bytes(4), 80),),
    )


def node_space(node: int, pods: tuple[int, ...]) -> SpaceState:
    other = 3 - node
    links = {
        "eth0": LinkState(name="eth0", mac=mac(node), mtu=1500, index=2),
        "cni0": LinkState(name="cni0", kind="bridge", mac=mac(100 + node), mtu=1450, index=3),
        "flannel.1": LinkState(
            name="flannel.1", kind="vxlan", mac=mac(200 + node), mtu=1450, index=4, vni=1, port=8472,
            local=packed(f"192.0.2.{node}"),
        ),
    }  # fmt: skip
    for number in pods:
        name = f"veth{number}"
        links[name] = LinkState(
            name=name, kind="veth", mtu=1450, index=10 + number, peer_index=2, master="cni0"
        )
    return SpaceState(
        links=links,
        addresses=(
            AddressState("eth0", packed(f"192.0.2.{node}"), 24),
            AddressState("cni0", packed(f"10.5.{node}.1"), 24),
        ),
        routes=(
            local(f"192.0.2.{node}"),
            local(f"10.5.{node}.1"),
            to("192.0.2.0/24", "eth0"),
            to(f"10.5.{node}.0/24", "cni0"),
            to(f"10.5.{other}.0/24", "flannel.1", f"10.5.{other}.0", onlink=True),
        ),
        neighbours=(NeighbourState("flannel.1", packed(f"10.5.{other}.0"), mac(200 + other), "permanent"),),
        fdb=(FdbState("flannel.1", mac(200 + other), remote=packed(f"192.0.2.{other}")),),
        sysctls={"net.ipv4.ip_forward": "1"},
    )


def part(node: int, pods: tuple[int, ...]) -> NodePart:
    name = f"n{node}"
    places = tuple(
        PodPlace(name=f"d/p{node}{number}", node=name, addresses=(packed(f"10.5.{node}.{number}"),))
        for number in pods
    )
    spaces = {f"d/p{node}{number}": pod_space(node, number) for number in pods}
    return NodePart(
        name=name,
        addresses=(packed(f"192.0.2.{node}"),),
        underlay="eth0",
        actual={NODE: node_space(node, pods), **spaces},
        pods=places,
    )


class Quiet:
    """A cluster without services and policies."""

    def __init__(self, turns: Mapping[str, Turn] | None = None, denied: str = "") -> None:
        self.turns, self.denied = dict(turns or {}), denied

    def service(self, node: str, flow: Flow, came: str) -> Turn | None:
        return self.turns.get(came) if flow.destination == VIP else None

    def policy(self, node: str, flow: Flow) -> tuple[Judged, ...]:
        return (Judged(False, "NetworkPolicy d/shut"),) if node == self.denied else ()

    def masquerade(self, node: str, flow: Flow) -> bool:
        return not flow.destination.startswith(b"\x0a\x05")


def changed(node: int, space: str, change: Callable[[SpaceState], SpaceState]) -> World:
    parts = [part(1, (2, 3)), part(2, (2,))]
    there = parts[node - 1]
    parts[node - 1] = msgspec.structs.replace(
        there, actual={**there.actual, space: change(there.actual[space])}
    )
    return join(parts)


def sound() -> World:
    return changed(1, NODE, lambda state: state)


def go(
    world: World, target: str = "10.5.2.2", *, ways: Quiet | None = None, protocol: int = ICMP
) -> tuple[Path, Path]:
    flow = Flow(
        protocol=protocol, source=packed("10.5.1.2"), destination=packed(target), source_port=40000,
        destination_port=80 if protocol == TCP else 0,
    )  # fmt: skip
    there = walk(world, ways or Quiet(), "n1", "d/p12", flow)
    return there, answer(world, ways or Quiet(), there) if there.arrived else there


def steps(path: Path) -> list[str]:
    return [
        " ".join(filter(None, (hop.node, hop.space, hop.component, hop.interface, hop.action)))
        for hop in path.hops
    ]


def test_a_packet_between_nodes_goes_through_bridge_overlay_and_bridge() -> None:
    there, back = go(sound())
    assert steps(there) == [
        "n1 d/p12 socket sent",
        "n1 d/p12 routing eth0 forwarded",
        "n1 bridge veth2 received",
        "n1 routing flannel.1 forwarded",
        "n1 neighbour flannel.1 forwarded",
        "n1 overlay flannel.1 encapsulated",
        "n1 underlay eth0 forwarded",
        "n2 underlay eth0 received",
        "n2 overlay flannel.1 decapsulated",
        "n2 routing cni0 forwarded",
        "n2 bridge veth2 forwarded",
        "n2 d/p22 interface eth0 received",
        "n2 d/p22 socket delivered",
    ]
    assert back.arrived
    assert (back.node, back.space) == ("n1", "d/p12")
    assert [hop.overhead for hop in there.hops if hop.component == "underlay"] == [50, 50]


def test_pods_of_one_bridge_meet_there() -> None:
    there, back = go(sound(), "10.5.1.3")
    assert steps(there)[1:] == [
        "n1 d/p12 routing eth0 forwarded",
        "n1 bridge veth2 received",
        "n1 bridge veth3 forwarded",
        "n1 d/p13 interface eth0 received",
        "n1 d/p13 socket delivered",
    ]
    assert back.arrived


def test_a_service_is_translated_there_and_back() -> None:
    target = (packed("10.5.2.2"), 80)
    ways = Quiet({"pod": Turn("d/web:http", target, others=((packed("10.5.1.3"), 80),), how="random")})
    there, back = go(sound(), "10.96.0.10", ways=ways, protocol=TCP)
    [turned] = [hop for hop in there.hops if hop.component == "service"]
    assert (turned.node, turned.detail, turned.reason) == ("n1", "d/web:http", "random, 1 more possible")
    assert (there.flow.destination, there.flow.destination_port) == target
    assert back.arrived
    assert back.flow.source == VIP


@pytest.mark.parametrize(("refused", "action"), [(True, "refused"), (False, "dropped")])
def test_a_service_without_endpoints_ends_the_way(refused: bool, action: str) -> None:
    there, _ = go(sound(), "10.96.0.10", ways=Quiet({"pod": Turn("d/web:http", None, refused=refused)}))
    assert (there.hops[-1].component, there.hops[-1].action) == ("service", action)


def test_what_leaves_the_cluster_gets_the_nodes_address_and_the_answer_comes_back() -> None:
    there, back = go(sound(), "192.0.2.2")
    [hidden] = [hop for hop in there.hops if hop.component == "masquerade"]
    assert (hidden.interface, there.flow.source) == ("eth0", packed("192.0.2.1"))
    assert (there.node, there.space, there.arrived) == ("n2", NODE, True)
    assert back.arrived
    assert (back.node, back.space) == ("n1", "d/p12")


def without(**tables: Any) -> Callable[[SpaceState], SpaceState]:
    return lambda state: msgspec.structs.replace(state, **tables)


def link(name: str, **change: Any) -> Callable[[SpaceState], SpaceState]:
    def job(state: SpaceState) -> SpaceState:
        links = {**state.links, name: msgspec.structs.replace(state.links[name], **change)}
        return msgspec.structs.replace(state, links=links)

    return job


def also(**more: tuple[Any, ...]) -> Callable[[SpaceState], SpaceState]:
    return lambda state: msgspec.structs.replace(
        state, **{name: (*items, *getattr(state, name)) for name, items in more.items()}
    )


def also_sysctl(name: str, value: str) -> Callable[[SpaceState], SpaceState]:
    return lambda state: msgspec.structs.replace(state, sysctls={**state.sysctls, name: value})


STALE = NeighbourState("cni0", packed("10.5.2.2"), mac(99), "stale")
DAMAGE = {
    "FDB entry gone": (1, NODE, without(fdb=()), "n1 overlay flannel.1 dropped", "no forwarding entry"),
    "neighbour gone": (1, NODE, without(neighbours=()), "n1 neighbour flannel.1 dropped", "no neighbour entry"),
    "VTEP MAC changed": (2, NODE, link("flannel.1", mac=mac(77)), "n2 overlay flannel.1 dropped", "02:00:00:00:00:4d"),
    "VTEP down": (2, NODE, link("flannel.1", up=False), "n2 overlay dropped", "no vxlan device"),
    "stale neighbour": (2, NODE, also(neighbours=(STALE,)), "n2 neighbour cni0 dropped", "02:00:00:00:00:63"),
    "forwarding off": (
        2, NODE, without(sysctls={"net.ipv4.ip_forward": "0"}), "n2 routing flannel.1 dropped", "forwards nothing",
    ),
    "strict rp_filter": (
        1, NODE, also(routes=(to("10.5.1.2/32", "eth0"),)), "n1 routing cni0 forwarded", "",
    ),
    "blackhole": (
        1, NODE, also(routes=(to("10.5.2.0/25", "", kind="blackhole"),)), "n1 routing dropped", "blackhole route",
    ),
    "pod without route": (1, "d/p12", without(routes=(local("10.5.1.2"),)), "n1 d/p12 routing dropped", "no route"),
    "wrong gateway": (
        1, "d/p12", without(routes=(local("10.5.1.2"), to("0.0.0.0/0", "eth0", "10.5.1.9"))),
        "n1 d/p12 neighbour eth0 dropped", "nobody on this link answers for 10.5.1.9",
    ),
    "veth down": (1, "d/p12", link("eth0", up=False), "n1 d/p12 routing dropped", "no route"),
    "port blocked": (2, NODE, link("veth2", port_state="blocking"), "n2 bridge veth2 dropped", "blocking"),
    "pod gone": (2, "d/p22", link("eth0", peer_index=99), "n2 neighbour cni0 dropped", "nobody on this link"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("node", "space", "change", "last", "why"), [row for name, row in DAMAGE.items() if row[4]],
    ids=[name for name, row in DAMAGE.items() if row[4]],
)  # fmt: skip
def test_a_damage_ends_the_way_where_it_is(
    node: int, space: str, change: Callable[[SpaceState], SpaceState], last: str, why: str
) -> None:
    there, _ = go(changed(node, space, change))
    assert not there.arrived
    assert steps(there)[-1] == last
    assert why in there.hops[-1].reason


def test_strict_reverse_path_filtering_drops_what_comes_by_another_way() -> None:
    def damage(state: SpaceState) -> SpaceState:
        state = also(routes=(to("10.5.1.2/32", "eth0"),))(state)
        return msgspec.structs.replace(state, sysctls={**state.sysctls, "net.ipv4.conf.all.rp_filter": "1"})

    there, _ = go(changed(1, NODE, damage))
    assert steps(there)[-1] == "n1 routing cni0 dropped"
    assert "rp_filter is strict" in there.hops[-1].reason


@pytest.mark.parametrize("isolated", [("veth2", "veth3"), ("veth2",)])
def test_isolated_ports_do_not_meet_each_other_but_others(isolated: tuple[str, ...]) -> None:
    def damage(state: SpaceState) -> SpaceState:
        for name in isolated:
            state = link(name, isolated=True)(state)
        return state

    there, _ = go(changed(1, NODE, damage), "10.5.1.3")
    assert there.arrived is (len(isolated) == 1)


def test_a_policy_ends_the_way_by_its_name() -> None:
    there, _ = go(sound(), ways=Quiet(denied="n2"))
    assert (steps(there)[-1], there.hops[-1].detail) == ("n2 policy dropped", "NetworkPolicy d/shut")


def test_nobody_listening_is_seen_at_the_socket() -> None:
    world = changed(2, "d/p22", without(listening=()))
    there, _ = go(world, protocol=TCP)
    assert (steps(there)[-1], there.hops[-1].detail) == ("n2 d/p22 socket refused", "no socket")


def test_an_answer_that_comes_by_another_way_is_not_known() -> None:
    target = (packed("10.5.1.3"), 80)
    ways = Quiet({"pod": Turn("d/web:http", target)})
    # Both pods hang on one bridge: the answer is bridged, past the node that would translate it back, unless bridged
    # packets pass IP's hooks.
    seen = also_sysctl("net.bridge.bridge-nf-call-iptables", "1")
    assert go(changed(1, NODE, seen), "10.96.0.10", ways=ways, protocol=TCP)[1].arrived
    there, back = go(sound(), "10.96.0.10", ways=ways, protocol=TCP)
    assert there.arrived
    assert not back.arrived
    assert (back.hops[-1].component, back.hops[-1].action) == ("socket", "refused")


RULES = (
    RuleState(priority=0, family=Family.V4, table=255),
    RuleState(priority=10, family=Family.V4, table=77, source=packed("10.5.1.0"), source_len=24),
    RuleState(priority=20, family=Family.V4, table=0, action="blackhole", mark=1, mask=1),
    RuleState(priority=32766, family=Family.V4, table=254),
)
ROUTES = (
    to("0.0.0.0/0", "a"),
    to("10.0.0.0/8", "b", metric=9),
    to("10.0.0.0/8", "c", metric=2),
    RouteState(table=77, destination=packed("10.5.0.0"), prefix_len=16, device="d"),
    RouteState(table=77, destination=packed("10.6.0.0"), prefix_len=16, kind="throw"),
)


@pytest.mark.parametrize(
    ("query", "device"),
    [
        (Query(packed("192.0.2.1")), "a"),
        (Query(packed("10.7.0.1")), "c"),
        (Query(packed("10.5.2.2"), packed("10.5.1.2")), "d"),
        (Query(packed("10.6.2.2"), packed("10.5.1.2")), "c"),
        (Query(packed("10.7.0.1"), mark=3), ""),
    ],
    ids=["default", "least metric", "table of a rule", "throw goes on", "rule that drops"],
)
def test_routes_are_found_in_the_kernels_order(query: Query, device: str) -> None:
    found = lookup.route(SpaceState(routes=ROUTES, rules=RULES), query)
    assert found is not None
    assert found.device == device


def test_two_owners_of_an_address_both_answer() -> None:
    world = changed(1, "d/p13", also(addresses=(AddressState("eth0", packed("10.5.1.2"), 24),)))
    found = lookup.answerers(world, "n1", NODE, "cni0", packed("10.5.1.2"))
    assert sorted(item.space for item in found) == ["d/p12", "d/p13"]


def test_the_underlays_end_is_nobodys_in_the_node_whatever_its_number() -> None:
    """Its peer's index is of another namespace, where numbers are the same: here they are those of pod p12's veth."""
    world = changed(1, NODE, link("eth0", kind="veth", index=12, peer_index=2))
    assert world.nodes["n1"].actual[NODE].links["eth0"].peer_space is None
    there, back = go(world)
    assert there.arrived
    assert back.arrived


def test_pods_on_the_underlay_meet_there_and_do_not_hear_their_own_node() -> None:
    def child(state: SpaceState) -> SpaceState:
        state = link("eth0", kind="macvlan", peer_index=0)(state)
        routes = (local("192.0.2.50"), to("192.0.2.0/24", "eth0"))
        return msgspec.structs.replace(
            state, addresses=(AddressState("eth0", packed("192.0.2.50"), 24),), routes=routes
        )

    world = changed(1, "d/p12", child)
    flow = Flow(protocol=ICMP, source=packed("192.0.2.50"), destination=packed("192.0.2.2"))
    assert walk(world, Quiet(), "n1", "d/p12", flow).arrived
    own = msgspec.structs.replace(flow, destination=packed("192.0.2.1"))
    assert walk(world, Quiet(), "n1", "d/p12", own).hops[-1].kind == "nobody-answers"


def test_a_socket_translates_to_a_service_and_back_where_it_is() -> None:
    world, turns = sound(), {"node": Turn("d/web", (packed("10.5.2.2"), 80))}
    flow = Flow(
        protocol=TCP, source=packed("10.5.1.2"), destination=VIP, source_port=40000, destination_port=80
    )
    there = walk(world, Quiet(turns), "n1", "d/p12", flow, early=True)
    assert there.arrived
    assert [(hop.component, hop.space) for hop in there.hops[:2]] == [
        ("socket", "d/p12"),
        ("service", "d/p12"),
    ]
    back = answer(world, Quiet(turns), there)
    assert back.arrived
    assert [(hop.component, hop.space) for hop in back.hops[-2:]] == [
        ("service", "d/p12"),
        ("socket", "d/p12"),
    ]
    assert walk(world, Quiet(turns), "n1", "d/p12", flow).hops[1].component != "service"


SEVERAL = SpaceState(
    links={name: LinkState(name=name, index=index) for index, name in enumerate(("lo", "eth0", "wg", "veth"), 1)},
    addresses=(
        AddressState("veth", packed("169.254.1.1"), 32), AddressState("veth", packed("fe80::1"), 64),
        AddressState("wg", packed("10.5.1.0"), 32), AddressState("wg", packed("fd00:5:1::"), 128),
        AddressState("eth0", packed("192.0.2.1"), 24), AddressState("eth0", packed("fd20::1"), 64),
        AddressState("lo", packed("127.0.0.1"), 8), AddressState("lo", packed("::1"), 128),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("device", "destination", "own"),
    [
        ("wg", "10.5.2.2", "10.5.1.0"),
        ("veth", "10.5.1.2", "192.0.2.1"),
        ("veth", "fd00:5:1::7", "fd00:5:1::"),
        ("veth", "fd20::7", "fd20::1"),
        ("eth0", "fd00:5:1::7", "fd20::1"),
    ],
)
def test_what_is_masqueraded_gets_the_address_the_kernel_takes(
    device: str, destination: str, own: str
) -> None:
    assert lookup.source(SEVERAL, device, packed(destination)) == packed(own)
    lonely = msgspec.structs.replace(SEVERAL, addresses=SEVERAL.addresses[:2])
    fallback = "fe80::1" if ":" in destination else "169.254.1.1"
    assert lookup.source(lonely, "veth", packed(destination)) == packed(fallback)
    assert lookup.source(SpaceState(), device, packed(destination)) == b""
