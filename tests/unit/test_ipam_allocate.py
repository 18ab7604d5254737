"""Choosing addresses: ranges, exclusions, round robin, requests, and costs that do not grow with the range."""

from __future__ import annotations

import ipaddress
import time
from ipaddress import ip_address, ip_network

import pytest

from pycni.errors import ConfigError, IpamError
from pycni.ipam.allocate import (
    RangeSet,
    SetStatus,
    Taken,
    address_of,
    allocation,
    assign_requests,
    compile_sets,
    exhausted,
    held_in,
    pick,
    pick_unused,
    status_of,
)
from pycni.model.cni import AddressRange
from pycni.model.family import Address


def rng(
    subnet: str, start: str = "", end: str = "", gateway: str | None = "first", exclude: tuple[str, ...] = ()
) -> AddressRange:
    net = ip_network(subnet)
    gate = net[1] if gateway == "first" else None if gateway is None else ip_address(gateway)
    return AddressRange(
        subnet=net,
        start=ip_address(start) if start else net[0],
        end=ip_address(end) if end else net[-1],
        gateway=gate,
        exclude=tuple(map(ip_network, exclude)),
    )


def one(*ranges: AddressRange) -> RangeSet:
    return compile_sets((ranges,))[0]


def all_of(compiled: RangeSet, limit: int = 1000) -> list[str]:
    """Every address in the order it is handed out."""
    taken, last, got = Taken(), None, []
    while len(got) < limit and (found := pick(compiled, taken, last)) is not None:
        last = address_of(*found)
        taken.add(last)
        got.append(str(last))
    return got


def spelled(first: str, last: str) -> list[str]:
    low, high = int(ip_address(first)), int(ip_address(last))
    return [str(type(ip_address(first))(number)) for number in range(low, high + 1)]


ORDERS = [
    pytest.param([rng("10.1.2.0/29")], spelled("10.1.2.2", "10.1.2.6"), id="v4 whole subnet"),
    pytest.param(
        [rng("10.1.2.0/29", gateway=None)], spelled("10.1.2.1", "10.1.2.6"), id="v4 without gateway"
    ),
    pytest.param(
        [rng("10.1.2.0/29", gateway="10.1.2.6")], spelled("10.1.2.1", "10.1.2.5"), id="gateway last"
    ),
    pytest.param([rng("10.1.2.0/30")], ["10.1.2.2"], id="v4 /30 has one"),
    pytest.param(
        [rng("10.1.2.4/31", gateway=None)], ["10.1.2.4", "10.1.2.5"], id="v4 /31 has both (RFC 3021)"
    ),
    pytest.param([rng("10.1.2.4/32", gateway=None)], ["10.1.2.4"], id="v4 /32"),
    pytest.param(
        [rng("10.1.2.0/24", "10.1.2.10", "10.1.2.13")],
        spelled("10.1.2.10", "10.1.2.13"),
        id="bounds are inclusive",
    ),
    pytest.param(
        [rng("10.1.2.0/28", exclude=("10.1.2.4/30", "10.1.2.9/32"))],
        [*spelled("10.1.2.2", "10.1.2.3"), "10.1.2.8", *spelled("10.1.2.10", "10.1.2.14")],
        id="excluded parts are jumped over",
    ),
    pytest.param(
        [rng("10.1.2.0/28", "10.1.2.2", "10.1.2.3"), rng("10.9.0.0/29", "10.9.0.2", "10.9.0.3")],
        ["10.1.2.2", "10.1.2.3", "10.9.0.2", "10.9.0.3"],
        id="ranges one after the other",
    ),
    pytest.param(
        [rng("10.1.2.0/28", "10.1.2.2", "10.1.2.5"), rng("10.1.2.0/28", "10.1.2.4", "10.1.2.7")],
        spelled("10.1.2.2", "10.1.2.7"),
        id="an overlap counts once",
    ),
    pytest.param(
        [
            rng("10.1.2.0/28", "10.1.2.2", "10.1.2.4", "10.1.2.1"),
            rng("10.1.2.0/28", "10.1.2.5", "10.1.2.7", "10.1.2.3"),
        ],
        ["10.1.2.2", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.7"],
        id="no range hands out another's gateway",
    ),
    pytest.param([rng("fd00::/125")], spelled("fd00::2", "fd00::7"), id="v6: anycast kept, no broadcast"),
    pytest.param([rng("fd00::4/127", gateway=None)], ["fd00::4", "fd00::5"], id="v6 /127 (RFC 6164)"),
    pytest.param([rng("10.1.2.0/29", exclude=("10.1.2.0/29",))], [], id="everything excluded"),
]


@pytest.mark.parametrize(("ranges", "expected"), ORDERS)
def test_hands_out_exactly_the_usable_addresses_in_order(
    ranges: list[AddressRange], expected: list[str]
) -> None:
    assert all_of(one(*ranges)) == expected
    assert one(*ranges).size == len(expected)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        pytest.param(None, "10.1.2.2", id="nothing handed out yet"),
        pytest.param("10.1.2.3", "10.1.2.5", id="goes on after the last, over the excluded"),
        pytest.param("10.1.2.4", "10.1.2.5", id="the last is excluded now"),
        pytest.param("10.1.2.6", "10.9.0.2", id="range ends: next range"),
        pytest.param("10.9.0.6", "10.1.2.2", id="set ends: from the start"),
        pytest.param("10.77.0.1", "10.1.2.2", id="the last is of another subnet"),
        pytest.param("fd00::1", "10.1.2.2", id="the last is of another family"),
    ],
)
def test_goes_round(last: str | None, expected: str) -> None:
    compiled = one(rng("10.1.2.0/29", exclude=("10.1.2.4/32",)), rng("10.9.0.0/29"))
    found = pick(compiled, Taken(), None if last is None else ip_address(last))
    assert found is not None
    assert str(address_of(*found)) == expected


def test_a_released_address_waits_until_all_others_have_been_used() -> None:
    compiled, taken, last = one(rng("10.1.2.0/29")), Taken(), ip_address("10.1.2.2")
    seen = []
    for _ in range(5):
        found = pick(compiled, taken, last)
        assert found is not None
        last = address_of(*found)
        seen.append(str(last))
    assert seen == ["10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.2"]


def test_the_only_free_address_is_found_wherever_the_round_stands() -> None:
    compiled = one(rng("10.1.2.0/28", exclude=("10.1.2.8/32",)))
    every = [ip_address(text) for text in all_of(compiled)]
    for free in every:
        taken = Taken(address for address in every if address != free)
        for last in [None, *every]:
            found = pick(compiled, taken, last)
            assert found is not None, f"{free} not found after {last}"
            assert address_of(*found) == free


def test_allocation_carries_prefix_and_gateway_of_its_range() -> None:
    compiled = one(rng("10.1.2.0/24", "10.1.2.9", "10.1.2.9"), rng("10.9.0.0/16", gateway="10.9.255.1"))
    taken = Taken([ip_address("10.1.2.9")])
    found = pick(compiled, taken, None)
    assert found is not None
    made = allocation(*found)
    assert (str(made.address), str(made.gateway)) == ("10.9.0.1/16", "10.9.255.1")
    kept = held_in(compiled, [ip_address("10.1.2.9")])
    assert kept is not None
    assert (str(kept.address), str(kept.gateway)) == ("10.1.2.9/24", "10.1.2.1")


def test_an_address_held_before_it_was_excluded_is_kept() -> None:
    compiled = one(rng("10.1.2.0/24", exclude=("10.1.2.8/29",)))
    kept = held_in(compiled, [ip_address("10.1.2.9")])
    assert kept is not None
    assert str(kept.address) == "10.1.2.9/24"


DUAL = (
    (rng("10.1.2.0/29"),),
    (rng("fd00:1::/64"),),
)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        pytest.param([], (None, None), id="none"),
        pytest.param(["fd00:1::7"], (None, "fd00:1::7"), id="one of two sets"),
        pytest.param(["fd00:1::7", "10.1.2.3"], ("10.1.2.3", "fd00:1::7"), id="order does not matter"),
        pytest.param(["10.1.2.3", "10.1.2.3"], ("10.1.2.3", None), id="the same twice is one request"),
    ],
)
def test_requests_find_their_sets(requested: list[str], expected: tuple[str | None, ...]) -> None:
    found = assign_requests("net", compile_sets(DUAL), [ip_address(text) for text in requested])
    assert tuple(None if address is None else str(address) for address in found) == expected


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        pytest.param(["10.7.7.7"], r"'net': requested address 10\.7\.7\.7 fits no range set", id="outside"),
        pytest.param(["10.1.2.3", "10.1.2.4"], r"10\.1\.2\.4 fits no range set", id="two from one set"),
        pytest.param(["10.1.2.1"], r"10\.1\.2\.1 may not be handed out: it is a gateway", id="gateway"),
        pytest.param(["10.1.2.0"], r"10\.1\.2\.0 may not be handed out", id="network address"),
        pytest.param(["10.1.2.7"], r"10\.1\.2\.7 may not be handed out", id="broadcast address"),
        pytest.param(["fd00:1::"], r"fd00:1:: may not be handed out", id="anycast address"),
    ],
)
def test_a_request_that_cannot_be_had_is_refused_by_name(requested: list[str], message: str) -> None:
    with pytest.raises(IpamError, match=message):
        assign_requests("net", compile_sets(DUAL), [ip_address(text) for text in requested])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(
            rng("10.1.2.0/24", "10.1.3.1"), r"range of 10\.1\.2\.0/24: rangeStart='10\.1\.3\.1'", id="outside"
        ),
        pytest.param(
            rng("10.1.2.0/24", "10.1.2.9", "10.1.2.8"), r"must not be above rangeEnd 10\.1\.2\.8", id="order"
        ),
        pytest.param(rng("10.1.2.0/24", "fd00::1", "fd00::2"), "rangeStart='fd00::1'", id="family"),
    ],
)
def test_contradictory_ranges_are_refused(bad: AddressRange, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_sets(((bad,),))


def test_exhaustion_names_network_ranges_and_counts() -> None:
    compiled = one(rng("10.1.2.0/29"))
    taken = Taken(map(ip_address, all_of(compiled)))
    assert pick(compiled, taken, None) is None
    error = exhausted("cbr0", 1, compiled, taken)
    assert error.exhausted
    assert str(error) == "network 'cbr0': no free address in range set 1 (10.1.2.0-10.1.2.7): 5 of 5 in use"


def test_status_counts_only_what_can_be_handed_out() -> None:
    compiled = one(rng("10.1.2.0/28", exclude=("10.1.2.8/29",)))
    foreign = ["10.1.2.1", "10.1.2.9", "10.1.2.3", "10.2.0.1", "fd00::1"]
    assert status_of(compiled, Taken(map(ip_address, foreign))) == SetStatus(free=5, used=1)


def test_addresses_in_use_elsewhere_are_passed_over_and_end_in_exhaustion() -> None:
    compiled = one(rng("10.1.2.0/29"))
    asked: list[Address] = []

    def first_three(address: Address) -> bool:
        asked.append(address)
        return int(address) & 7 < 5

    found = pick_unused(compiled, Taken(), None, first_three)
    assert found is not None
    assert str(found[1]) == "10.1.2.5"
    assert pick_unused(compiled, Taken(), ip_address("10.1.2.4"), lambda _: True) is None


@pytest.mark.parametrize(
    ("subnet", "held"),
    [
        pytest.param("10.0.0.0/16", 65532, id="a /16 with one address left"),
        pytest.param("fd00::/64", 60000, id="a /64 with a long run at its start"),
    ],
)
def test_the_next_address_costs_no_walk(subnet: str, held: int) -> None:
    net = ip_network(subnet)
    compiled = one(rng(subnet))
    kind = ipaddress.IPv4Address if net.version == 4 else ipaddress.IPv6Address
    taken = Taken(kind(int(net[0]) + 2 + number) for number in range(held))
    began = time.perf_counter()
    for _ in range(200):
        found = pick(compiled, taken, None)
    each_us = (time.perf_counter() - began) / 200 * 1e6
    assert found is not None
    assert found[1] == int(net[0]) + 2 + held
    assert each_us < 1000, f"{each_us:.0f} us"


def test_taken_counts_and_gaps() -> None:
    taken = Taken(map(ip_address, ["10.0.0.5", "10.0.0.3", "10.0.0.4", "10.0.0.9"]))
    low = int(ip_address("10.0.0.0"))
    assert taken.count(4, low + 3, low + 9) == 4
    assert taken.count(4, low + 4, low + 8) == 2
    assert taken.first_free(4, low + 3, low + 9) == low + 6
    assert taken.first_free(4, low + 3, low + 5) is None
    assert taken.first_free(4, low + 9, low + 9) is None
    assert taken.first_free(4, low + 8, low + 7) is None
    taken.discard(ip_address("10.0.0.4"))
    taken.discard(ip_address("10.0.0.77"))
    assert taken.first_free(4, low + 3, low + 9) == low + 4
    assert taken.count(6, 0, 2**128) == 0
