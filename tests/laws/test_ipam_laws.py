"""Laws of the pool: whatever is done in whatever order, by us or by others, files, index and model agree."""

from __future__ import annotations

import shutil
import tempfile
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pycni.errors import IpamError
from pycni.ipam.allocate import RangeSet, Taken, address_of, compile_sets, pick, status_of
from pycni.ipam.pool import Ipam, Reservation
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Owner
from pycni.model.family import Address

V4, V6 = ip_network("10.1.2.0/28"), ip_network("fd00:1::/124")


@st.composite
def address_ranges(draw: st.DrawFn, version: int) -> AddressRange:
    net = V4 if version == 4 else V6
    low, high = sorted(draw(st.tuples(st.integers(0, 15), st.integers(0, 15))))
    excluded = draw(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0, 0, 1, 2])), max_size=3))
    return AddressRange(
        subnet=net,
        start=net[low],
        end=net[high],
        gateway=draw(st.one_of(st.none(), st.sampled_from([net[1], net[14]]))),
        exclude=tuple(
            ip_network(f"{net[at]}/{net.max_prefixlen - size}", strict=False) for at, size in excluded
        ),
    )


def range_sets() -> st.SearchStrategy[tuple[AddressRange, ...]]:
    return st.sampled_from([4, 6]).flatmap(
        lambda version: st.lists(address_ranges(version), min_size=1, max_size=3).map(tuple)
    )


def usable(group: tuple[AddressRange, ...]) -> set[Address]:
    """The specification, one address at a time."""

    def kept_back(address: Address) -> bool:
        return any(
            address in (rng.gateway, rng.subnet[0])
            or (address.version == 4 and address == rng.subnet[-1])
            or any(address in net for net in rng.exclude)
            for rng in group
        )

    return {
        address
        for rng in group
        for address in rng.subnet
        if rng.start <= address <= rng.end and not kept_back(address)
    }


@settings(max_examples=150, deadline=None)
@given(range_sets(), st.sets(st.integers(0, 15)), st.one_of(st.none(), st.integers(0, 15)))
def test_pick_gives_a_usable_free_address_exactly_when_there_is_one(
    group: tuple[AddressRange, ...], taken: set[int], last: int | None
) -> None:
    compiled: RangeSet = compile_sets((group,))[0]
    net = group[0].subnet
    used = {net[at] for at in taken}
    found = pick(compiled, Taken(used), None if last is None else net[last])
    free = usable(group) - used
    assert (found is None) == (not free)
    assert found is None or address_of(*found) in free
    state = status_of(compiled, Taken(used))
    assert (state.free, state.used) == (len(free), len(usable(group) & used))
    assert compiled.size == len(usable(group))


@settings(max_examples=60, deadline=None)
@given(range_sets())
def test_going_round_visits_every_usable_address_once_before_any_comes_again(
    group: tuple[AddressRange, ...],
) -> None:
    compiled = compile_sets((group,))[0]
    last: Address | None = None
    seen: list[Address] = []
    for _ in range(2 * compiled.size):
        found = pick(compiled, Taken(), last)
        assert found is not None
        last = address_of(*found)
        seen.append(last)
    half = compiled.size
    assert set(seen[:half]) == usable(group)
    assert seen[:half] == seen[half:]


def within(addresses: set[Address], group: tuple[AddressRange, ...]) -> set[Address]:
    """Those inside the group's bounds, whether or not they may be handed out."""
    return {
        one
        for one in addresses
        for rng in group
        if rng.start.version == one.version and rng.start <= one <= rng.end
    }


class TwoPrograms(RuleBasedStateMachine):
    """One directory; our pool, restarted at will, and others who write files, with the lock or without.

    The model: who holds what (``held``), and every address ever seen held by two owners at once is a failure.
    """

    owners = st.sampled_from([Owner("net", f"c{number}", f"eth{number % 2}") for number in range(12)])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="pytipam")
        self.pool = Ipam(self.folder, "net")
        self.held: dict[Address, Owner] = {}
        self.sets: tuple[tuple[AddressRange, ...], ...] = ()

    @initialize(dual=st.booleans())
    def configure(self, dual: bool) -> None:
        v4 = AddressRange(
            subnet=V4, start=V4[1], end=V4[9], gateway=V4[1], exclude=(ip_network("10.1.2.4/31"),)
        )
        v6 = AddressRange(subnet=V6, start=V6[1], end=V6[15], gateway=V6[1])
        self.sets = ((v4,), (v6,)) if dual else ((v4,),)

    def teardown(self) -> None:
        self.pool.close()
        shutil.rmtree(self.folder)

    def file(self, address: Address) -> Path:
        folder = Path(self.folder) / "net"
        folder.mkdir(exist_ok=True)
        return folder / str(address)

    def of(self, owner: Owner) -> set[Address]:
        return {address for address, holder in self.held.items() if holder == owner}

    @rule(owner=owners)
    def reserve(self, owner: Owner) -> None:
        before = self.of(owner)
        full = [
            group for group in self.sets if not within(before, group) and usable(group) <= self.held.keys()
        ]
        if full:
            with pytest.raises(IpamError, match="no free address in range set") as caught:
                self.pool.reserve(owner, self.sets)
            assert caught.value.exhausted
            return
        made = self.pool.reserve(owner, self.sets)
        addresses = [allocated.address.ip for allocated in made]
        assert len(addresses) == len(self.sets)
        for address, group in zip(addresses, self.sets, strict=True):
            assert self.held.get(address, owner) == owner, f"{address} given twice"
            mine = within(before, group)
            assert address in mine if mine else address in usable(group)
            self.held[address] = owner

    @rule(owner=owners, address=st.sampled_from([V4[2], V4[3], V4[4], V4[9], V6[15]]))
    def reserve_requested(self, owner: Owner, address: Address) -> None:
        fits = any(address in usable(group) for group in self.sets)
        try:
            made = self.pool.reserve(owner, self.sets, [address])
        except IpamError:
            return
        assert fits or self.held.get(address) == owner
        assert address in [allocated.address.ip for allocated in made]
        for allocated in made:
            assert self.held.get(allocated.address.ip, owner) == owner
            self.held[allocated.address.ip] = owner

    @rule(owner=owners)
    def release(self, owner: Owner) -> None:
        assert set(self.pool.release(owner)) == self.of(owner)
        self.held = {address: holder for address, holder in self.held.items() if holder != owner}

    @rule(owner=owners, address=st.sampled_from([*V4][2:10]))
    def discard(self, owner: Owner, address: Address) -> None:
        mine = self.held.get(address) == owner
        assert self.pool.discard(Reservation(address, owner)) == mine
        if mine:
            del self.held[address]

    @rule(owner=owners, address=st.sampled_from([*V4][2:10]))
    def restore(self, owner: Owner, address: Address) -> None:
        assert self.pool.restore(Reservation(address, owner)) == (address not in self.held)
        self.held.setdefault(address, owner)

    @rule()
    def restart(self) -> None:
        self.pool.close()
        self.pool = Ipam(self.folder, "net")

    @rule(owner=owners, address=st.sampled_from([*V4][2:10]))
    def somebody_else_reserves(self, owner: Owner, address: Address) -> None:
        if address not in self.held:
            self.file(address).write_bytes(f"{owner.container_id}\r\n{owner.ifname}".encode())
            self.held[address] = owner

    @rule(address=st.sampled_from([*V4][2:10]))
    def somebody_else_removes(self, address: Address) -> None:
        self.file(address).unlink(missing_ok=True)
        self.held.pop(address, None)

    @rule(address=st.sampled_from([*V4][2:10]))
    def a_file_is_torn(self, address: Address) -> None:
        if address not in self.held:
            self.file(address).write_bytes(b"")
            self.held[address] = Owner("net", "", "")

    @rule()
    def the_directory_vanishes(self) -> None:
        shutil.rmtree(Path(self.folder) / "net", ignore_errors=True)
        self.held.clear()

    @invariant()
    def files_index_and_model_agree(self) -> None:
        folder = Path(self.folder) / "net"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        found = {ip_address(name) for name in names if name != "lock" and not name.startswith("last")}
        assert found == self.held.keys()
        by_owner: dict[Owner, set[Address]] = {}
        for address, holder in self.held.items():
            by_owner.setdefault(holder, set()).add(address)
        assert {owner: set(addresses) for owner, addresses in self.pool.owners().items()} == by_owner
        states = self.pool.status(self.sets)
        assert [s.used for s in states] == [len(usable(group) & self.held.keys()) for group in self.sets]


TwoPrograms.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_two_programs_on_one_directory = pytest.mark.timeout(120)(TwoPrograms.TestCase)
