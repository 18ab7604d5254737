"""Carrying out differences step by step on a fake kernel: interrupted anywhere, the next pass converges.

The kernel keeps tables and checks what a packet needs: a route over a VTEP device is of use only with the device, the
next hop's neighbour entry and that one's forwarding entry. Peers that stay must never lose any of it.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.backends.compiler import compile_fabric
from pycni.backends.table import backend
from pycni.reconcile.delta import diff
from pycni.reconcile.order import Action, steps
from tests.unit.fabric_world import by_key, lease, mac, site

TABLES = ("links", "neighbours", "fdb", "routes")


class InterruptedPassError(Exception):
    """The agent was killed, or the kernel refused."""


class FakeKernel:
    def __init__(self):
        self.tables = {name: {} for name in TABLES}
        self.done = 0
        self.fail_at = None

    def carry_out(self, desired):
        deltas = [(name, diff(getattr(desired, name), self.tables[name])) for name in TABLES]
        for step in steps(deltas):
            if self.fail_at is not None and self.done >= self.fail_at:
                raise InterruptedPassError
            table = self.tables[step.table]
            if step.action is Action.ADD:
                assert step.key not in table
            else:
                assert step.key in table
            if step.action is Action.REMOVE:
                del table[step.key]
            else:
                table[step.key] = step.value
            self.done += 1
            yield step

    def delivers(self, key):
        """Whether a packet to the subnet of a route gets out, and where to."""
        route = self.tables["routes"].get(key)
        if route is None:
            return None
        if not route.onlink:
            return route.gateway
        neighbour = next(
            (value for known, value in self.tables["neighbours"].items() if known.address == route.gateway),
            None,
        )
        if route.device not in self.tables["links"] or neighbour is None:
            return None
        entry = next(
            (value for known, value in self.tables["fdb"].items() if known.mac == neighbour.mac), None
        )
        return entry.remote if entry is not None else None


@st.composite
def worlds(draw):
    """Leases of a few nodes, some direct, on one of two sites."""
    numbers = draw(st.sets(st.integers(2, 7)))
    leases = by_key(
        *(
            lease(
                number,
                backend_data=b'{"VtepMAC":"%s"}' % mac(draw(st.sampled_from([number, number + 20]))).encode(),
                backend_type="vxlan",
            )
            for number in numbers
        )
    )
    where = draw(st.sampled_from(["vxlan", "direct"]))
    return compile_fabric(backend("vxlan"), leases, SITES[where])


SITES = {"vxlan": site(), "direct": site(direct_routing=True)}


@settings(max_examples=300)
@given(before=worlds(), after=worlds(), cut=st.integers(0, 20))
def test_a_pass_killed_after_any_step_converges_when_repeated(before, after, cut):
    kernel = FakeKernel()
    list(kernel.carry_out(before))
    kernel.done, kernel.fail_at = 0, cut
    try:
        list(kernel.carry_out(after))
    except InterruptedPassError:
        kernel.fail_at = None
        list(kernel.carry_out(after))
    assert all(kernel.tables[name] == dict(getattr(after, name)) for name in TABLES)
    assert list(kernel.carry_out(after)) == []


@settings(max_examples=300)
@given(before=worlds(), after=worlds())
def test_peers_that_stay_as_they_are_are_reachable_at_every_step(before, after):
    kernel = FakeKernel()
    list(kernel.carry_out(before))
    stay = [key for key in before.routes if peer_entries(before, key) == peer_entries(after, key)]
    expected = {key: kernel.delivers(key) for key in stay}
    for _ in kernel.carry_out(after):
        assert {key: kernel.delivers(key) for key in stay} == expected


@settings(max_examples=200)
@given(after=worlds())
def test_a_route_never_comes_before_what_it_needs(after):
    kernel = FakeKernel()
    for _ in kernel.carry_out(after):
        assert all(kernel.delivers(key) is not None for key in kernel.tables["routes"])


@settings(max_examples=200)
@given(before=worlds())
def test_a_route_never_outlives_what_it_needs(before):
    kernel = FakeKernel()
    list(kernel.carry_out(before))
    empty = type(before)()
    for _ in kernel.carry_out(empty):
        assert all(kernel.delivers(key) is not None for key in kernel.tables["routes"])
    assert not any(kernel.tables.values())


def peer_entries(state, key):
    """Everything of one peer."""
    route = state.routes.get(key)
    if route is None or not route.onlink:
        return route
    neighbours = {known: value for known, value in state.neighbours.items() if known.address == route.gateway}
    macs = {value.mac for value in neighbours.values()}
    return route, neighbours, {known: value for known, value in state.fdb.items() if known.mac in macs}


@pytest.mark.parametrize("backwards", [False, True])
def test_the_fake_kernel_notices_a_wrong_order(backwards):
    """The laws above can fail: removing in the order of adding is seen."""
    kernel = FakeKernel()
    state = compile_fabric(backend("vxlan"), by_key(lease(2)), SITES["vxlan"])
    list(kernel.carry_out(state))
    (key,) = kernel.tables["routes"]
    order = TABLES if backwards else tuple(reversed(TABLES))
    seen = []
    for name in order:
        kernel.tables[name].clear()
        seen.append(key in kernel.tables["routes"] and kernel.delivers(key) is None)
    assert any(seen) is backwards
