"""Laws of the fabric driver, on a kernel in memory: it always ends where it should, wherever it is interrupted."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import TRANSIENT_ERRNOS
from pycni.kernel.fabric import FabricDriver
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.fabric import FabricState, IpipLink, Link, VxlanLink
from pycni.model.family import Family
from pycni.model.tables import FdbEntry, FdbKey, Neighbour, NeighbourKey, Route, RouteKey
from pycni.wire import rtnl
from tests.laws.fakes import FakeKernel, KilledError

DEVICES = ("flannel.1", "flannel-v6.1", "flannel.2", "flannel.ipip")
NUMBERS = st.integers(1, 3)
LAW = settings(deadline=None, max_examples=60)


def address(family: Family, number: int) -> bytes:
    return bytes([10, 0, number, 0]) if family is Family.V4 else b"\xfd" + bytes(14) + bytes([number])


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


@st.composite
def links(draw: st.DrawFn, name: str) -> Link:
    """``flannel.2`` may be of either kind, as after a change of the backend with one name."""
    family = Family.V6 if "v6" in name else Family.V4
    own = st.tuples(NUMBERS.map(lambda n: address(family, n)), st.just(family.bits))
    if name == "flannel.ipip" or (name == "flannel.2" and draw(st.booleans())):
        return IpipLink(
            name=name,
            parent=draw(st.sampled_from(["eth0", "eth1"])),
            local=address(family, draw(NUMBERS)),
            mtu=draw(st.sampled_from([1480, 8980])),
            addresses=tuple(sorted(draw(st.sets(own, max_size=2)))),
        )
    return VxlanLink(
        name=name,
        vni=draw(NUMBERS),
        port=draw(st.sampled_from([8472, 4789])),
        parent=draw(st.sampled_from(["eth0", "eth1"])),
        local=address(family, draw(NUMBERS)),
        mac=mac(draw(NUMBERS)),
        mtu=draw(st.sampled_from([1450, 8950])),
        learning=draw(st.booleans()),
        gbp=draw(st.booleans()),
        addresses=tuple(sorted(draw(st.sets(own, max_size=2)))),
    )


@st.composite
def fabrics(draw: st.DrawFn) -> FabricState:
    """Any state a backend could ask for: entries only on devices that are there."""
    made = {name: draw(links(name)) for name in sorted(draw(st.sets(st.sampled_from(DEVICES))))}
    places = st.sampled_from([*made, "eth0"])
    routes: dict[RouteKey, Route] = {}
    for family in Family:
        for number in draw(st.sets(NUMBERS)):
            key = RouteKey(
                family, 254, address(family, number), family.bits, draw(st.sampled_from([0, 0, 50]))
            )
            if draw(st.integers(0, 5)) == 0:
                routes[key] = Route(None, None, kind="blackhole")
            else:
                routes[key] = Route(address(family, draw(NUMBERS)), draw(places), draw(st.booleans()))
    neighbours: dict[NeighbourKey, Neighbour] = {}
    fdb: dict[FdbKey, FdbEntry] = {}
    for name in (name for name, link in made.items() if isinstance(link, VxlanLink)):
        family = Family.V6 if "v6" in name else Family.V4
        for number in draw(st.sets(NUMBERS)):
            neighbours[NeighbourKey(name, address(family, number))] = Neighbour(mac(draw(NUMBERS)))
        for number in draw(st.sets(NUMBERS)):
            fdb[FdbKey(name, mac(number))] = FdbEntry(address(family, draw(NUMBERS)))
    return FabricState(links=made, routes=routes, neighbours=neighbours, fdb=fdb)


@contextmanager
def driver_on(kernel: FakeKernel) -> Iterator[FabricDriver]:
    driver = FabricDriver(cast("NetlinkSocket", kernel), put_sysctl=lambda name, value: None)
    try:
        yield driver
    finally:
        driver.close()


def underlay() -> FakeKernel:
    kernel = FakeKernel()
    kernel.add_link("eth0")
    kernel.add_link("eth1")
    return kernel


def reach(kernel: FakeKernel, desired: FabricState) -> list[Any]:
    """One pass of a fresh process."""
    with driver_on(kernel) as driver:
        return driver.apply(desired, driver.read(desired.links.keys()))


def state_of(kernel: FakeKernel) -> FabricState:
    with driver_on(kernel) as driver:
        return driver.read()


@LAW
@given(fabrics(), fabrics())
def test_any_state_is_reached_from_any_other(first: FabricState, second: FabricState) -> None:
    kernel = underlay()
    for desired in (first, second, FabricState()):
        assert reach(kernel, desired) == []
        assert state_of(kernel) == desired
    assert len(kernel.links) == 2
    assert (kernel.routes, kernel.neighbours, kernel.fdb) == ({}, {}, {})


@LAW
@given(fabrics())
def test_a_state_that_is_reached_costs_nothing(desired: FabricState) -> None:
    kernel = underlay()
    reach(kernel, desired)
    before = kernel.messages
    assert reach(kernel, desired) == []
    assert kernel.messages == before


@LAW
@given(fabrics(), fabrics(), st.data())
def test_a_process_killed_at_any_step_is_continued_by_the_next(
    first: FabricState, second: FabricState, data: st.DataObject
) -> None:
    kernel = underlay()
    reach(kernel, first)
    kernel.kill_at = kernel.messages + data.draw(st.integers(0, 40), label="killed at")
    try:
        reach(kernel, second)
    except KilledError:
        kernel.kill_at = None
    assert reach(kernel, second) == []
    assert state_of(kernel) == second


@LAW
@given(fabrics(), fabrics(), st.dictionaries(st.integers(0, 40), st.sampled_from(sorted(TRANSIENT_ERRNOS))))
def test_what_fails_is_told_and_done_by_the_next_pass(
    first: FabricState, second: FabricState, failing: dict[int, int]
) -> None:
    kernel = underlay()
    reach(kernel, first)
    kernel.fail_at = {kernel.messages + number: code for number, code in failing.items()}
    for _ in range(len(failing) + 1):
        failures = reach(kernel, second)
        assert all(failure.error.transient for failure in failures)
        if not failures:
            break
    assert not failures
    assert state_of(kernel) == second


@LAW
@given(fabrics(), fabrics())
def test_changes_from_memory_end_where_reading_would(first: FabricState, second: FabricState) -> None:
    """``apply`` with what was applied last in place of what was read."""
    kernel = underlay()
    with driver_on(kernel) as driver:
        driver.apply(first, driver.read())
        assert driver.apply(second, first) == []
    assert state_of(kernel) == second


@LAW
@given(fabrics())
def test_what_is_not_ours_stays(desired: FabricState) -> None:
    kernel = underlay()
    foreign = kernel.add_link("docker0", "bridge")
    kernel.put(
        rtnl.new_route(bytes([172, 17, 0, 0]), 16, oif=foreign),
        rtnl.new_neighbour(foreign, bytes([172, 17, 0, 2]), mac(9)),
        rtnl.new_address(foreign, bytes([172, 17, 0, 1]), 16),
    )
    before = dict(kernel.routes), dict(kernel.neighbours), dict(kernel.addresses), set(kernel.links)
    assert reach(kernel, desired) == []
    assert reach(kernel, FabricState()) == []
    assert before == (kernel.routes, kernel.neighbours, kernel.addresses, set(kernel.links))


def one_route(gateway: int = 2) -> FabricState:
    key = RouteKey(Family.V4, 254, address(Family.V4, 1), 24, 0)
    return FabricState(routes={key: Route(address(Family.V4, gateway), "eth0")})


@pytest.mark.parametrize("leads", [2, 3], ids=["the same way", "elsewhere"])
def test_a_foreign_route_is_taken_over_only_if_it_leads_the_same_way(leads: int) -> None:
    kernel = underlay()
    kernel.put(rtnl.new_route(address(Family.V4, 1), 24, oif=1, gateway=address(Family.V4, leads)))
    failures = reach(kernel, one_route())
    if leads == 2:
        assert failures == []
        assert state_of(kernel) == one_route()
    else:
        [failure] = failures
        assert failure.error.errno == errno.EEXIST
        assert str(failure.error) == (
            "add route 10.0.1.0/24 via 10.0.2.0 dev eth0 proto 112: EEXIST "
            "(in the way and not ours: 10.0.1.0/24 via 10.0.3.0 dev eth0 proto 4)"
        )
        assert state_of(kernel) == FabricState()


def test_a_device_that_cannot_be_made_is_the_only_failure() -> None:
    name = "flannel.1"
    link = VxlanLink(
        name=name, vni=1, port=8472, parent="eth7", local=address(Family.V4, 1), mac=mac(1), mtu=1450
    )
    desired = msgspec.structs.replace(
        one_route(),
        links={name: link},
        neighbours={NeighbourKey(name, address(Family.V4, n)): Neighbour(mac(n)) for n in range(100)},
        fdb={FdbKey(name, mac(n)): FdbEntry(address(Family.V4, n)) for n in range(100)},
    )
    kernel = underlay()
    [failure] = reach(kernel, desired)
    assert (failure.table, failure.key) == ("links", name)
    assert str(failure.error) == "find link eth7: ENODEV"
    assert state_of(kernel) == one_route()


def test_an_entry_of_a_missing_device_is_named_whole() -> None:
    kernel = underlay()
    key = RouteKey(Family.V4, 254, address(Family.V4, 1), 24, 0)
    [failure] = reach(kernel, FabricState(routes={key: Route(None, "eth9")}))
    assert str(failure.error) == "add route 10.0.1.0/24 dev eth9 proto 112: ENODEV"
