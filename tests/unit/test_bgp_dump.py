"""BGP for ``pycnictl dump``: what is wanted, what there is, and where they differ."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from pycni_bgp.annotations import NodeSettings
from pycni_bgp.dumped import There, sections
from pycni_bgp.engine import Plan, Session
from pycni_bgp.model import Local, Neighbour, prefix
from pycni_bgp.settings import BgpSettings


def packed(text: str) -> bytes:
    return ip_address(text).packed


NODE = Neighbour(address=packed("10.0.0.2"), asn=64512, local_asn=64512, origin="node b", node="b")
ROUTER = Neighbour(address=packed("10.0.0.9"), asn=64600, local_asn=64512, origin="setting")
PODS, SERVICE, FAR = prefix("10.244.1.0/24"), prefix("10.98.0.1/32"), prefix("10.244.2.0/24")
PLAN = Plan(
    router_id=packed("10.0.0.1"),
    settings=BgpSettings(asn=64512),
    own=NodeSettings(name="a", addresses=(packed("10.0.0.1"),)),
    sessions={item.address: item for item in (NODE, ROUTER)},
    local={PODS: Local("pod CIDR", "node a"), SERVICE: Local("LoadBalancer", "Service shop/web")},
)
WELL = There(
    sessions=[Session(NODE.address, "Established"), Session(ROUTER.address, "Established")],
    told={NODE.address: [str(PODS)], ROUTER.address: [str(PODS), str(SERVICE)]},
    learned={FAR: (NODE.address,)},
    kernel={FAR: (NODE.address,)},
    protocol="113",
)


def test_what_is_as_wanted_has_no_difference() -> None:
    found = {item.name: item for item in sections(PLAN, WELL, [])}
    assert list(found) == ["sessions", "announced", "routes"]
    assert all(item.same and item.desired for item in found.values())
    assert found["sessions"].desired == (
        "neighbour 10.0.0.2 as 64512 Established",
        "neighbour 10.0.0.9 as 64600 Established",
    )
    assert found["announced"].desired == (
        "10.0.0.2: 10.244.1.0/24",
        "10.0.0.9: 10.244.1.0/24",
        "10.0.0.9: 10.98.0.1/32",
    )
    assert found["routes"].actual == ("10.244.2.0/24 via 10.0.0.2 proto 113",)


@pytest.mark.parametrize(
    ("there", "name", "missing", "extra"),
    [
        (
            WELL._replace(sessions=[WELL.sessions[0], Session(ROUTER.address, "Active")]),
            "sessions",
            ("neighbour 10.0.0.9 as 64600 Established",),
            ("neighbour 10.0.0.9 as 64600 Active",),
        ),
        (
            WELL._replace(sessions=[*WELL.sessions, Session(packed("10.0.0.7"), "Idle")]),
            "sessions",
            (),
            ("neighbour 10.0.0.7 Idle",),
        ),
        (
            WELL._replace(told={NODE.address: [str(PODS), str(SERVICE)]}),
            "announced",
            ("10.0.0.9: 10.244.1.0/24", "10.0.0.9: 10.98.0.1/32"),
            ("10.0.0.2: 10.98.0.1/32",),
        ),
        (WELL._replace(kernel={}), "routes", ("10.244.2.0/24 via 10.0.0.2 proto 113",), ()),
        (
            WELL._replace(kernel={FAR: (NODE.address, ROUTER.address)}),
            "routes",
            ("10.244.2.0/24 via 10.0.0.2 proto 113",),
            ("10.244.2.0/24 nexthop via 10.0.0.2 nexthop via 10.0.0.9 proto 113",),
        ),
    ],
    ids=["a session down", "a session too many", "announcements", "a route lost", "another way"],
)
def test_what_differs_is_named(
    there: There, name: str, missing: tuple[str, ...], extra: tuple[str, ...]
) -> None:
    found = {item.name: item for item in sections(PLAN, there, [])}
    assert (found[name].missing, found[name].extra) == (missing, extra)
    assert all(item.same for key, item in found.items() if key != name)


def test_a_drained_node_and_a_reflector_are_no_difference() -> None:
    drained = msgspec.structs.replace(PLAN, draining=True)
    told = {NODE.address: [str(PODS)], ROUTER.address: [str(PODS)]}
    assert all(item.same for item in sections(drained, WELL._replace(told=told), []))
    reflector = msgspec.structs.replace(
        PLAN, own=msgspec.structs.replace(PLAN.own, reflector=packed("42.0.0.1"))
    )
    passed_on = {**(WELL.told or {}), NODE.address: [str(PODS), str(FAR)]}
    assert all(item.same for item in sections(reflector, WELL._replace(told=passed_on), []))


def test_an_engine_that_does_not_say_what_it_told_has_no_such_section() -> None:
    found = sections(PLAN, WELL._replace(told=None), ["BIRD ended"])
    assert [item.name for item in found] == ["sessions", "routes"]
    assert found[0].notes == ("BIRD ended",)
