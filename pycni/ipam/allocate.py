"""Which address comes next: pure choice among ranges, with no idea of files, locks or clocks.

Life: a configuration's ``range_sets`` are compiled once into a `RangeSet` each (what may be handed out, as
few disjoint segments of numbers); ``ipam/pool`` keeps a `Taken` of every address in use and asks `pick` for one
address per set. Nothing here walks addresses one by one: a run of taken addresses is jumped over by bisection,
so a full /16 and an empty /64 cost the same few microseconds.

Never handed out: a network's own address (IPv4 up to /30; IPv6 up to /126, there the subnet-router anycast
address of RFC 4291 section 2.6.1), an IPv4 broadcast address, any gateway of any range, anything excluded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
)
from typing import NamedTuple, TypeAlias

from pycni.errors import ConfigError, IpamError
from pycni.model.cni import AddressRange
from pycni.model.family import Address

RangeSets: TypeAlias = tuple[tuple[AddressRange, ...], ...]
_Hole: TypeAlias = tuple[int, int, int]


class Allocation(NamedTuple):
    """One address of an attachment with its subnet's prefix length, and the gateway of its range."""

    address: IPv4Interface | IPv6Interface
    gateway: Address | None


class SetStatus(NamedTuple):
    """How full one range set is; ``free + used`` is its size (excluded and reserved addresses do not count)."""

    free: int
    used: int


class Bounds(NamedTuple):
    """One range as numbers, bounds inclusive, with what an allocation from it says."""

    version: int
    low: int
    high: int
    prefix_len: int
    gateway: Address | None


class Segment(NamedTuple):
    """Neighbouring addresses that may be handed out: part of range number ``owner``; bounds inclusive."""

    low: int
    high: int
    owner: int


class RangeSet(NamedTuple):
    """One compiled set: its ranges in the given order and their usable segments, ascending within a range."""

    ranges: tuple[Bounds, ...]
    segments: tuple[Segment, ...]
    size: int
    text: str

    def range_of(self, address: Address) -> Bounds | None:
        """The range an address lies in, whether or not it may be handed out."""
        number = int(address)
        for bounds in self.ranges:
            if bounds.version == address.version and bounds.low <= number <= bounds.high:
                return bounds
        return None

    def usable(self, address: Address) -> bool:
        """Whether the address may be handed out at all."""
        number = int(address)
        return any(
            part.low <= number <= part.high and self.ranges[part.owner].version == address.version
            for part in self.segments
        )


class Taken:
    """Numbers of the addresses in use, per family, sorted.

    Adding and removing cost a bisection and a memmove; counting and finding the next gap only bisections.
    One writer at a time; `count` may be called beside it (each bisection is one step for other threads).
    """

    __slots__ = ("_numbers",)

    def __init__(self, addresses: Iterable[Address] = ()) -> None:
        self._numbers: dict[int, list[int]] = {4: [], 6: []}
        for address in addresses:
            self._numbers[address.version].append(int(address))
        for numbers in self._numbers.values():
            numbers.sort()

    def add(self, address: Address) -> None:
        """Mark an address as in use; it must not be already."""
        insort(self._numbers[address.version], int(address))

    def total(self, version: int) -> int:
        """How many there are of one IP version."""
        return len(self._numbers[version])

    def discard(self, address: Address) -> None:
        """Mark an address as free; harmless when it is."""
        numbers, number = self._numbers[address.version], int(address)
        at = bisect_left(numbers, number)
        if at < len(numbers) and numbers[at] == number:
            del numbers[at]

    def count(self, version: int, low: int, high: int) -> int:
        """How many addresses from ``low`` to ``high`` are in use."""
        numbers = self._numbers[version]
        return bisect_right(numbers, high) - bisect_left(numbers, low)

    def first_free(self, version: int, low: int, high: int) -> int | None:
        """The lowest number from ``low`` to ``high`` that is not in use, None when all are."""
        if low > high:
            return None
        numbers = self._numbers[version]
        at = bisect_left(numbers, low)
        if at == len(numbers) or numbers[at] != low:
            return low
        # Distinct and sorted: numbers[i] - i never falls, and stays equal exactly within a run without gaps.
        run_end = bisect_right(range(len(numbers)), low - at, lo=at, key=lambda index: numbers[index] - index)
        free = low + (run_end - at)
        return free if free <= high else None


@lru_cache(maxsize=64)
def compile_sets(range_sets: RangeSets) -> tuple[RangeSet, ...]:
    """Ranges as decoded into what may be handed out.

    Ranges of one set may touch or overlap (an address counts for the first that has it). What one range keeps back
    (gateway, exclusions, its subnet's own and broadcast address) no other range hands out either. Raises ConfigError
    for bounds that are outside the subnet or in the wrong order.
    """
    kept_back = [hole for group in range_sets for rng in group for hole in _kept_back(rng)]
    return tuple(_compile_set(group, kept_back) for group in range_sets)


def _compile_set(group: Sequence[AddressRange], kept_back: Sequence[_Hole]) -> RangeSet:
    ranges: list[Bounds] = []
    segments: list[Segment] = []
    for owner, rng in enumerate(group):
        bounds = _bounds(rng)
        holes = [(low, high) for version, low, high in kept_back if version == bounds.version]
        holes += [(earlier.low, earlier.high) for earlier in ranges if earlier.version == bounds.version]
        ranges.append(bounds)
        segments += [Segment(low, high, owner) for low, high in _subtract(bounds.low, bounds.high, holes)]
    return RangeSet(
        ranges=tuple(ranges),
        segments=tuple(segments),
        size=sum(part.high - part.low + 1 for part in segments),
        text=", ".join(f"{rng.start}-{rng.end}" for rng in group),
    )


def _bounds(rng: AddressRange) -> Bounds:
    obj = f"range of {rng.subnet}"
    for field, value in (("rangeStart", rng.start), ("rangeEnd", rng.end)):
        if value.version != rng.subnet.version or value not in rng.subnet:
            raise ConfigError(obj, field, str(value), "must lie in the subnet")
    if int(rng.start) > int(rng.end):
        raise ConfigError(obj, "rangeStart", str(rng.start), f"must not be above rangeEnd {rng.end}")
    return Bounds(rng.subnet.version, int(rng.start), int(rng.end), rng.subnet.prefixlen, rng.gateway)


def _kept_back(rng: AddressRange) -> Iterator[_Hole]:
    """What must not be handed out because of one range, as (version, low, high).

    A network's own and broadcast address exist only where the prefix leaves room for them (RFC 3021, RFC 6164).
    """
    subnet = rng.subnet
    if subnet.max_prefixlen - subnet.prefixlen >= 2:
        low, high = int(subnet.network_address), int(subnet.broadcast_address)
        yield subnet.version, low, low
        if subnet.version == 4:
            yield subnet.version, high, high
    if rng.gateway is not None:
        yield rng.gateway.version, int(rng.gateway), int(rng.gateway)
    for net in rng.exclude:
        yield net.version, int(net.network_address), int(net.broadcast_address)


def _subtract(low: int, high: int, holes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``low..high`` without the holes, ascending."""
    for hole_low, hole_high in sorted(holes):
        if hole_high < low:
            continue
        if hole_low > high:
            break
        if hole_low > low:
            yield low, hole_low - 1
        low = hole_high + 1
    if low <= high:
        yield low, high


def pick(range_set: RangeSet, taken: Taken, last: Address | None) -> tuple[Bounds, int] | None:
    """The first free address after ``last``, the set's end followed by its start; None when all are in use.

    ``last`` is the set's most recently reserved address (host-local's ``last_reserved_ip``); one that no longer
    lies in the set, or None, means: from the start. Going round robin keeps a released address unused for as
    long as the set allows.
    """
    segments = range_set.segments
    at, low = _start(range_set, last)
    for step in range(len(segments) + 1):
        part = segments[(at + step) % len(segments)] if segments else None
        if part is None:
            return None
        bounds = range_set.ranges[part.owner]
        # The segment begun in the middle comes once more at the end, for its first part.
        free = taken.first_free(bounds.version, max(part.low, low) if step == 0 else part.low, part.high)
        if free is not None:
            return bounds, free
    return None


def _start(range_set: RangeSet, last: Address | None) -> tuple[int, int]:
    """Where round robin goes on: index of a segment and the lowest number to try in it."""
    bounds = None if last is None else range_set.range_of(last)
    if last is None or bounds is None:
        return 0, 0
    owner, number = range_set.ranges.index(bounds), int(last)
    for index, part in enumerate(range_set.segments):
        if part.owner > owner or (part.owner == owner and part.high > number):
            return index, number + 1 if part.owner == owner else part.low
    return 0, 0


def allocation(bounds: Bounds, number: int) -> Allocation:
    """The value handed to the attachment for an address picked from a range."""
    if bounds.version == 4:
        return Allocation(IPv4Interface((number, bounds.prefix_len)), bounds.gateway)
    return Allocation(IPv6Interface((number, bounds.prefix_len)), bounds.gateway)


def address_of(bounds: Bounds, number: int) -> Address:
    """The address of a picked number."""
    return IPv4Address(number) if bounds.version == 4 else IPv6Address(number)


def assign_requests(
    network: str, sets: Sequence[RangeSet], requested: Sequence[Address]
) -> tuple[Address | None, ...]:
    """Which requested address is to be taken from which set; None: any. All requests must find a place.

    Raises IpamError naming the address and why it cannot be had.
    """
    left = list(dict.fromkeys(requested))
    chosen: list[Address | None] = []
    for compiled in sets:
        match = next((address for address in left if compiled.range_of(address) is not None), None)
        chosen.append(match)
        if match is None:
            continue
        left.remove(match)
        if not compiled.usable(match):
            raise IpamError(
                f"network {network!r}: requested address {match} may not be handed out:"
                f" it is a gateway, excluded, or its subnet's network or broadcast address"
            )
    if left:
        shown = ", ".join(map(str, left))
        ranges = "; ".join(compiled.text for compiled in sets) or "none"
        raise IpamError(
            f"network {network!r}: requested address {shown} fits no range set that has a place left"
            f" (one address is taken from each of: {ranges})"
        )
    return tuple(chosen)


def held_in(compiled: RangeSet, held: Sequence[Address]) -> Allocation | None:
    """The allocation an owner already has from this set, None when it has none."""
    for address in held:
        bounds = compiled.range_of(address)
        if bounds is not None:
            return allocation(bounds, int(address))
    return None


def pick_unused(
    compiled: RangeSet, taken: Taken, last: Address | None, in_use: Callable[[Address], bool]
) -> tuple[Bounds, Address] | None:
    """Like `pick`, passing over addresses that ``in_use`` knows of although no reservation says so."""
    passed: set[Address] = set()
    while True:
        found = pick(compiled, taken, last)
        if found is None:
            return None
        address = address_of(*found)
        if not in_use(address):
            return found[0], address
        if address in passed:
            return None
        passed.add(address)
        last = address


def status_of(compiled: RangeSet, taken: Taken) -> SetStatus:
    """How many addresses of a set are free and used."""
    used = sum(
        taken.count(compiled.ranges[part.owner].version, part.low, part.high) for part in compiled.segments
    )
    return SetStatus(free=compiled.size - used, used=used)


def exhausted(network: str, index: int, compiled: RangeSet, taken: Taken) -> IpamError:
    """The error of a set that has no free address: which network, which ranges, how many."""
    state = status_of(compiled, taken)
    return IpamError(
        f"network {network!r}: no free address in range set {index} ({compiled.text}):"
        f" {state.used} of {compiled.size} in use",
        exhausted=True,
    )
