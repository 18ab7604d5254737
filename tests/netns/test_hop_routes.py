"""Routes with several gateways under a protocol number of their own."""

from __future__ import annotations

import errno
import ipaddress
import json
from collections.abc import Callable, Iterator

import pytest

from pycni.kernel import netns as namespaces
from pycni.kernel.hops import Destination, HopRoutes, Routes
from tests.netns.fabric_nodes import run

PROTOCOL = 113


def _at(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _to(text: str) -> Destination:
    network = ipaddress.ip_network(text)
    return Destination(network.network_address.packed, network.prefixlen)


def _wanted(*rows: tuple[str, str]) -> Routes:
    return {_to(prefix): tuple(sorted(_at(hop) for hop in hops.split())) for prefix, hops in rows}


@pytest.fixture
def where(netns_factory: Callable[[], str]) -> Iterator[str]:
    """A node on 192.0.2.0/24 and 2001:db8::/64, with a router to 198.51.100.0/24."""
    name = netns_factory()
    run(name, "ip link set lo up")
    run(name, "ip link add eth0 type veth peer name far")
    for link in ("eth0", "far"):
        run(name, f"ip link set {link} up")
    run(name, "ip address add 192.0.2.1/24 dev eth0")
    run(name, "ip address add 2001:db8::1/64 dev eth0 nodad")
    run(name, "ip route add 198.51.100.0/24 via 192.0.2.254")
    return name


@pytest.fixture
def driver(where: str) -> Iterator[HopRoutes]:
    """Made inside."""
    fd = namespaces.open_netns(namespaces.path(where))
    found = namespaces.run_in(fd, lambda: HopRoutes(PROTOCOL))
    yield found
    found.close()


def _shown(where: str) -> dict[str, str]:
    found = {}
    for family in ("-4", "-6"):
        for route in json.loads(run(where, f"ip -j {family} route show proto {PROTOCOL}") or "[]"):
            hops = [hop["gateway"] for hop in route.get("nexthops", ())] or [route["gateway"]]
            found[route["dst"]] = " ".join(sorted(hops))
    return found


def test_routes_follow_what_is_wanted(where: str, driver: HopRoutes) -> None:
    """One and several gateways, more and fewer of them, gone; both families; a second driver sees the same."""
    steps = [
        {"10.1.0.0/24": "192.0.2.2", "2001:db8:1::/64": "2001:db8::2"},
        {"10.1.0.0/24": "192.0.2.2 192.0.2.3", "2001:db8:1::/64": "2001:db8::2 2001:db8::3"},
        {"10.1.0.0/24": "192.0.2.3 192.0.2.4", "2001:db8:1::/64": "2001:db8::3", "default": "192.0.2.9"},
        {"10.1.0.0/24": "192.0.2.4"},
        {},
    ]
    for step in steps:
        rows = [("0.0.0.0/0" if prefix == "default" else prefix, hops) for prefix, hops in step.items()]
        assert driver.apply(_wanted(*rows)) == []
        assert _shown(where) == step
        assert driver.read() == _wanted(*rows)


@pytest.mark.parametrize(
    ("network", "gateway", "inside"),
    [("192.0.2.0/24", "192.0.2.9", "192.0.2.7"), ("2001:db8::/64", "2001:db8::9", "2001:db8::7")],
    ids=["IPv4", "IPv6"],
)
def test_a_network_this_node_is_on_is_not_led_elsewhere(
    where: str, driver: HopRoutes, network: str, gateway: str, inside: str
) -> None:
    assert driver.apply(_wanted((network, gateway))) == []
    assert _shown(where) == {network: gateway}
    assert "via" not in run(where, f"ip route get {inside}")


@pytest.mark.parametrize("family", [4, 6])
def test_a_neighbour_may_tell_of_its_own_address(where: str, driver: HopRoutes, family: int) -> None:
    """That adds nothing; other routes by it stay, however often it is looked at."""
    rows = [("192.0.2.9/32", "192.0.2.9"), ("10.1.0.0/24", "192.0.2.9")]
    if family == 6:
        rows = [("2001:db8::9/128", "2001:db8::9"), ("2001:db8:1::/64", "2001:db8::9")]
    for _ in range(3):
        assert driver.apply(_wanted(*rows)) == []
        assert driver.read() == _wanted(rows[1])


def test_a_gateway_farther_away_is_reached_by_the_one_next_door(where: str, driver: HopRoutes) -> None:
    wanted = _wanted(("10.1.0.0/24", "198.51.100.7"))
    assert driver.apply(wanted) == []
    assert _shown(where) == {"10.1.0.0/24": "192.0.2.254"}
    run(where, "ip route replace 198.51.100.0/24 via 192.0.2.253")
    assert driver.apply(wanted) == []
    assert _shown(where) == {"10.1.0.0/24": "192.0.2.253"}


def test_a_route_to_nowhere_is_refused_and_the_others_are_made(where: str, driver: HopRoutes) -> None:
    good, bad = ("10.1.0.0/24", "192.0.2.2"), ("10.2.0.0/24", "203.0.113.1")
    assert driver.apply(_wanted(good, ("10.2.0.0/24", "192.0.2.3"))) == []
    refused = driver.apply(_wanted(good, bad))
    assert [(item.destination, item.error.errno) for item in refused] == [
        (_to("10.2.0.0/24"), errno.ENETUNREACH)
    ]
    assert "10.2.0.0/24 via 203.0.113.1" in str(refused[0].error)
    assert _shown(where) == {"10.1.0.0/24": "192.0.2.2"}, "nothing leads where there is no way any more"


def test_somebody_elses_route_is_left_alone(where: str, driver: HopRoutes) -> None:
    run(where, "ip route add 10.1.0.0/24 via 192.0.2.77 metric 32 proto static")
    refused = driver.apply(_wanted(("10.1.0.0/24", "192.0.2.2"), ("10.2.0.0/24", "192.0.2.2")))
    assert [(str(item.destination), item.error.errno) for item in refused] == [("10.1.0.0/24", errno.EEXIST)]
    assert "192.0.2.77" in run(where, "ip route show 10.1.0.0/24")
    assert driver.apply({}) == []
    assert "192.0.2.77" in run(where, "ip route show 10.1.0.0/24")
    assert not _shown(where)


def test_a_route_another_program_removed_is_made_again_after_reading(where: str, driver: HopRoutes) -> None:
    wanted = _wanted(("10.1.0.0/24", "192.0.2.2"))
    driver.apply(wanted)
    run(where, "ip route del 10.1.0.0/24")
    driver.read()
    assert driver.apply(wanted) == []
    assert _shown(where) == {"10.1.0.0/24": "192.0.2.2"}
