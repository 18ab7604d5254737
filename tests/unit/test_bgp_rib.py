"""What a node tells whom, which learned routes it takes, and which of them are best."""

from __future__ import annotations

import ipaddress
import random

import msgspec
import pytest

from pycni_bgp.annotations import NodeSettings
from pycni_bgp.model import Attributes, Learned, Local, Neighbour, Prefix, prefix
from pycni_bgp.rib import Rib
from pycni_bgp.settings import BgpSettings


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


OWN = NodeSettings(
    name="a",
    addresses=(_packed("192.0.2.1"), _packed("2001:db8::1")),
    pod_cidrs=(ipaddress.ip_network("10.1.0.0/24"), ipaddress.ip_network("2001:db8:1::/64")),
)
ROUTER_ID = _packed("192.0.2.1")
CLUSTER = bytes((0, 0, 0, 42))
NODE_B = Neighbour(address=_packed("192.0.2.2"), asn=64512, local_asn=64512, origin="node b", node="b")
NODE_C = msgspec.structs.replace(NODE_B, address=_packed("192.0.2.3"), node="c")
TOR = Neighbour(address=_packed("192.0.2.100"), asn=65001, local_asn=64512, origin="setting")
TOR2 = msgspec.structs.replace(TOR, address=_packed("192.0.2.101"), asn=65002)
SESSIONS = {item.address: item for item in (NODE_B, NODE_C, TOR, TOR2)}
POD4, POD6, VIP = prefix("10.1.0.0/24"), prefix("2001:db8:1::/64"), prefix("198.51.100.7/32")
LOCAL = {
    POD4: Local("pod CIDR", "node a"),
    POD6: Local("pod CIDR", "node a"),
    VIP: Local("LoadBalancer", "Service x/y"),
}


def _rib(settings: BgpSettings | None = None, *, draining: bool = False, **own: object) -> Rib:
    node = msgspec.structs.replace(OWN, **own)
    return Rib(settings or BgpSettings(), node, ROUTER_ID, SESSIONS, draining=draining)


def _learned(text: str, source: Neighbour = TOR, **more: object) -> Learned:
    attributes = Attributes(next_hop=source.address, as_path=() if source.internal else (source.asn,))
    return Learned(
        source.address, source.address[:4], prefix(text), msgspec.structs.replace(attributes, **more)
    )


# --- out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neighbour", "settings", "draining", "wanted"),
    [
        (NODE_B, BgpSettings(), False, {POD4, POD6}),
        (TOR, BgpSettings(), False, {POD4, POD6, VIP}),
        (TOR, BgpSettings(pod_cidrs=False), False, {VIP}),
        (NODE_B, BgpSettings(pod_cidrs=False), False, {POD4, POD6}),
        (TOR, BgpSettings(), True, {POD4, POD6}),
    ],
    ids=["node", "router", "no pod cidrs outside", "nodes always", "draining"],
)
def test_what_a_neighbour_is_told(
    neighbour: Neighbour, settings: BgpSettings, draining: bool, wanted: set[Prefix]
) -> None:
    rib = _rib(settings, draining=draining)
    assert set(rib.exports(neighbour, LOCAL, {})) == wanted
    told = {item for item in LOCAL if not rib.withheld(neighbour, item, LOCAL[item])}
    assert told == wanted


def test_the_next_hop_is_of_the_prefix_family() -> None:
    found = _rib().exports(NODE_B, LOCAL, {})
    assert {str(item): found[item].next_hop for item in found} == {
        "10.1.0.0/24": _packed("192.0.2.1"),
        "2001:db8:1::/64": _packed("2001:db8::1"),
    }


def test_a_prefix_without_next_hop_is_withheld() -> None:
    rib = _rib(addresses=(_packed("192.0.2.1"),))
    assert set(rib.exports(NODE_B, LOCAL, {})) == {POD4}
    assert rib.withheld(NODE_B, POD6, LOCAL[POD6]) == "this node has no ipv6 address to be the next hop"


def test_communities_and_prepending_are_for_routers_outside() -> None:
    rib = _rib(communities=("64512:1",), prepend=(64999, 2))
    outside, inside = (rib.exports(item, LOCAL, {})[POD4] for item in (TOR, NODE_B))
    assert (outside.communities, outside.as_path, outside.local_pref) == (("64512:1",), (64999, 64999), None)
    assert (inside.communities, inside.as_path, inside.local_pref) == ((), (), 100)


def test_what_was_learned_is_told_to_nobody() -> None:
    rib = _rib()
    best = rib.first([_learned("203.0.113.0/24"), _learned("10.2.0.0/24", NODE_B)])
    assert all(set(rib.exports(item, {}, best)) == set() for item in SESSIONS.values())


@pytest.mark.parametrize(
    ("source_client", "target_client", "told"),
    [(True, False, True), (False, True, True), (True, True, True), (False, False, False)],
)
def test_a_reflector_reflects_from_and_to_clients(
    source_client: bool, target_client: bool, told: bool
) -> None:
    source = msgspec.structs.replace(NODE_B, client=source_client)
    target = msgspec.structs.replace(NODE_C, client=target_client)
    sessions = {item.address: item for item in (source, target)}
    rib = Rib(BgpSettings(), msgspec.structs.replace(OWN, reflector=CLUSTER), ROUTER_ID, sessions)
    path = _learned("10.2.0.0/24", source, clusters=(b"\0\0\0\1",))
    found = rib.exports(target, {}, rib.first([path]))
    assert (path.prefix in found) is told
    if told:
        attributes = found[path.prefix]
        assert attributes.next_hop == source.address
        assert (attributes.originator, attributes.clusters) == (source.address, (CLUSTER, b"\0\0\0\1"))
    assert not rib.exports(source, {}, rib.first([path]))


def test_a_reflector_hands_routes_from_outside_to_nodes_with_itself_as_next_hop() -> None:
    path = _learned("203.0.113.0/24")
    rib = _rib(reflector=CLUSTER)
    found = rib.exports(NODE_B, {}, rib.first([path]))[path.prefix]
    assert (found.next_hop, found.local_pref, found.originator) == (_packed("192.0.2.1"), 100, b"")
    kept = _rib(BgpSettings(next_hop_self=False), reflector=CLUSTER)
    assert kept.exports(NODE_B, {}, kept.first([path]))[path.prefix].next_hop == TOR.address
    assert not rib.exports(TOR2, {}, rib.first([path]))


# --- in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (_learned("203.0.113.0/24"), ""),
        (_learned("0.0.0.0/0"), ""),
        (_learned("203.0.113.0/24", as_path=(65001, 64512)), "this node's AS64512 is in its path"),
        (_learned("203.0.113.0/24", NODE_B, originator=ROUTER_ID), "this node is its originator"),
        (_learned("203.0.113.0/24", NODE_B, clusters=(CLUSTER,)), "it has passed cluster 0.0.0.42 already"),
        (_learned("203.0.113.0/24", next_hop=_packed("2001:db8::1")), "this node is its next hop"),
        (_learned("10.1.0.128/25"), "inside this node's pod CIDR 10.1.0.0/24"),
        (_learned("10.0.0.0/8"), ""),
        (_learned("10.9.1.0/24"), "node.bgp.customimportreject (10.9.0.0/16)"),
        (_learned("10.96.0.1/32"), "inside a network of services (10.96.0.0/12)"),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)
def test_which_learned_routes_are_taken(path: Learned, words: str) -> None:
    rib = _rib(
        BgpSettings(service_networks=(ipaddress.ip_network("10.96.0.0/12"),)),
        reflector=CLUSTER,
        reject=(ipaddress.ip_network("10.9.0.0/16"),),
    )
    assert rib.refused(path) == words
    assert rib.accepted([path]) == ([] if words else [path])


def test_a_route_of_a_neighbour_that_went_is_refused() -> None:
    gone = msgspec.structs.replace(TOR, address=_packed("192.0.2.7"))
    assert _rib().refused(_learned("203.0.113.0/24", gone)) == "192.0.2.7 is no neighbour any more"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"local_pref": 200, "as_path": (1, 2, 3)}, {"local_pref": None}),
        ({"as_path": (65002,)}, {"as_path": (65001, 7), "origin": "igp"}),
        ({"origin": "igp", "med": 9}, {"origin": "egp", "med": 0}),
        ({"origin": "egp"}, {"origin": "incomplete"}),
    ],
    ids=["preference", "path", "origin", "origins"],
)
def test_the_better_path_wins(better: dict[str, object], worse: dict[str, object]) -> None:
    one, two = _learned("203.0.113.0/24", TOR2, **better), _learned("203.0.113.0/24", TOR, **worse)
    assert _rib().routes([two, one]) == {one.prefix: (TOR2.address,)}


def test_discriminators_are_compared_within_one_as_only() -> None:
    same = [_learned("203.0.113.0/24", TOR, med=5), _learned("203.0.113.0/24", TOR2, med=3, as_path=(65001,))]
    assert _rib().routes(same) == {same[0].prefix: (TOR2.address,)}
    other = [_learned("203.0.113.0/24", TOR, med=5), _learned("203.0.113.0/24", TOR2, med=3)]
    assert _rib().routes(other) == {other[0].prefix: (TOR.address, TOR2.address)}


def test_a_path_from_outside_wins_over_one_from_a_node() -> None:
    paths = [_learned("203.0.113.0/24", NODE_B, as_path=(65001,)), _learned("203.0.113.0/24", TOR)]
    assert _rib().routes(paths) == {paths[0].prefix: (TOR.address,)}


def test_equal_paths_are_used_together_and_one_of_them_is_first() -> None:
    paths = [_learned("203.0.113.0/24", TOR2), _learned("203.0.113.0/24", TOR)]
    assert _rib().routes(paths) == {paths[0].prefix: (TOR.address, TOR2.address)}
    assert _rib().first(paths)[paths[0].prefix].neighbour == TOR.address


def test_the_order_of_paths_does_not_matter() -> None:
    chance = random.Random(5)
    rib = _rib()
    for _ in range(300):
        paths = [
            _learned(
                chance.choice(("203.0.113.0/24", "203.0.113.0/25")),
                chance.choice(tuple(SESSIONS.values())),
                local_pref=chance.choice((None, 100, 200)),
                as_path=tuple(chance.choices((65001, 65002, 7), k=chance.randint(0, 2))),
                med=chance.choice((None, 0, 5)),
                origin=chance.choice(("igp", "egp")),
            )
            for _ in range(chance.randint(1, 7))
        ]
        shuffled = chance.sample(paths, len(paths))
        assert rib.routes(paths) == rib.routes(shuffled)
        assert {item: path.attributes for item, path in rib.first(paths).items()}.keys() == rib.routes(
            paths
        ).keys()


def test_a_prefix_covers_what_is_inside() -> None:
    assert prefix("10.0.0.0/8").covers(prefix("10.255.0.0/16"))
    assert prefix("::/0").covers(prefix("2001:db8::/32"))
    assert not prefix("0.0.0.0/0").covers(prefix("::/0"))
    assert not prefix("10.255.0.0/16").covers(prefix("10.0.0.0/8"))
    assert not prefix("10.0.0.0/8").covers(prefix("11.0.0.0/8"))
