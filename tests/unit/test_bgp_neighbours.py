"""Who speaks with whom: full mesh, nodes of one AS, route reflectors, routers outside."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from pycni_bgp.annotations import NodeSettings, PeerWish
from pycni_bgp.model import Bfd, Secret
from pycni_bgp.neighbours import Neighbourhood, neighbours
from pycni_bgp.settings import BgpSettings

CLUSTER = bytes((0, 0, 0, 42))


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _node(name: str, **more: object) -> NodeSettings:
    number = ord(name) - ord("a") + 1
    found = NodeSettings(name=name, addresses=(_packed(f"192.0.2.{number}"), _packed(f"2001:db8::{number}")))
    return msgspec.structs.replace(found, **more)


def _of(own: str, nodes: dict[str, NodeSettings], settings: BgpSettings | None = None) -> Neighbourhood:
    return neighbours(settings or BgpSettings(), nodes[own], nodes)


def _pairs(nodes: dict[str, NodeSettings], settings: BgpSettings | None = None) -> set[str]:
    """Sessions as seen from both ends; asserts that the ends agree."""
    found = {
        (name, session.node) for name in nodes for session in _of(name, nodes, settings).sessions.values()
    }
    assert found == {(two, one) for one, two in found}
    return {one + two for one, two in found if one < two}


def _nodes(names: str, **more: dict[str, object]) -> dict[str, NodeSettings]:
    return {name: _node(name, **more.get(name, {})) for name in names}


SERVER, CLIENT = {"reflector": CLUSTER}, {"client": CLUSTER}


@pytest.mark.parametrize(
    ("nodes", "settings", "wanted"),
    [
        (_nodes("abc"), BgpSettings(), {"ab", "ac", "bc"}),
        (_nodes("abc", c={"asn": 65000}), BgpSettings(), {"ab", "ac", "bc"}),
        (_nodes("abc", c={"asn": 65000}), BgpSettings(full_mesh=False), {"ab"}),
        (_nodes("abc"), BgpSettings(internal=False), set()),
        (
            _nodes("abcd", a=SERVER, b=SERVER, c=CLIENT, d=CLIENT),
            BgpSettings(),
            {"ab", "ac", "ad", "bc", "bd"},
        ),
        (_nodes("abc", a=SERVER, b=CLIENT), BgpSettings(), {"ab", "ac"}),
        (_nodes("ab", a={**SERVER, **CLIENT}, b=SERVER), BgpSettings(), {"ab"}),
    ],
    ids=["mesh", "several AS", "no mesh", "no ibgp", "reflectors", "beside a client", "reflector and client"],
)
def test_sessions_between_nodes(
    nodes: dict[str, NodeSettings], settings: BgpSettings, wanted: set[str]
) -> None:
    assert _pairs(nodes, settings) == wanted


def test_a_node_that_is_no_neighbour_has_a_reason() -> None:
    nodes = _nodes("abc", a=CLIENT, b=SERVER)
    assert _of("a", nodes).strangers == {
        "c": "node a is a route reflector's client and node c is no reflector"
    }


def test_a_reflector_knows_its_clients() -> None:
    nodes = _nodes("abc", a=SERVER, b=CLIENT)
    assert {item.node: item.client for item in _of("a", nodes).sessions.values()} == {"b": True, "c": False}
    assert not any(item.client for item in _of("b", nodes).sessions.values())


def test_nodes_meet_at_addresses_of_a_family_both_have() -> None:
    nodes = {
        "a": _node("a"),
        "b": _node("b", addresses=(_packed("2001:db8::2"),)),
        "c": _node("c", addresses=(_packed("192.0.2.3"),)),
    }
    found = _of("a", nodes)
    assert set(found.sessions) == {_packed("2001:db8::2"), _packed("192.0.2.3")}
    assert _of("b", nodes).strangers == {"c": "no internal address of a family this node has"}


def test_routers_outside_come_from_the_node_or_from_the_setting() -> None:
    wish = PeerWish(
        address=_packed("192.0.2.99"),
        asn=65001,
        port=1179,
        password=Secret("x"),
        bfd=Bfd(),
        local_address=b"abcd",
    )
    other = PeerWish(address=_packed("192.0.2.98"), asn=65002)
    nodes = {"a": _node("a", peers=(wish,), asn=64999)}
    session = _of("a", nodes).sessions[wish.address]
    assert (session.asn, session.local_asn, session.port, session.local_address) == (
        65001,
        64999,
        1179,
        b"abcd",
    )
    assert (session.password, session.bfd, session.node, session.hops) == (Secret("x"), Bfd(), "", 1)
    assert session.origin == "annotation kube-router.io/peers"
    found = _of("a", nodes, BgpSettings(peers=(other,), multihop=3, ttl_security=True))
    assert list(found.sessions) == [other.address]
    assert found.sessions[other.address].hops == 3
    assert found.sessions[other.address].ttl_security
    assert found.problems == (
        "annotation kube-router.io/peers: not looked at, because setting peer-router-ips is set",
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [("192.0.2.1", "is this node's own address"), ("192.0.2.2", "is node b already")],
    ids=["itself", "a node"],
)
def test_a_router_that_is_somebody_else_is_a_problem(address: str, words: str) -> None:
    nodes = {"a": _node("a", peers=(PeerWish(address=_packed(address), asn=65001),)), "b": _node("b")}
    found = _of("a", nodes)
    assert [item.node for item in found.sessions.values()] == ["b"]
    assert found.problems[0].endswith(words)
