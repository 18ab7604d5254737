"""Which reservations and endpoints have outlived their pods: pure judgement over what was observed.

Life: ``agent/collector`` observes the node (`View`), asks `sweep`, acts on the answer and hands the remembered
misses back in at the next sweep. Nothing is removed on one observation: a subject has to be found gone in two
sweeps in a row, at least a grace period apart, with no operation of its owner under way at either.

How an **endpoint** (we made the attachment and recorded it) is judged, first match wins:

* ``dying`` and nobody working on it: DEL was interrupted; gone whatever lives.
* its host-side link is there: alive. The kernel destroys a veth pair with the namespace of either end, so this
  holds even where the agent's container sees neither the runtime's namespace files nor other processes.
* recorded in another boot: inode numbers prove nothing, they start over. Alive only if its own path still leads
  to a namespace of that inode. A reboot is never by itself a reason.
* its path leads to a namespace with its inode: alive.
* its inode is that of a living namespace elsewhere: alive, unless that namespace is another one. The kernel gives a
  number again as soon as it is free (seen on 6.18: the very next namespace gets it), so it is another one when a
  later endpoint of another container records the number, or when no living namespace has the endpoint's addresses.
* otherwise gone.

How a **reservation without endpoint** is judged (made by host-local before the node moved to pycni, left by an ADD
that was killed, or torn by a power loss): a running pod that was moved must never lose its address, so it takes
proof of death, and what cannot be proven is kept and reported.

* the address is configured in some living namespace: alive.
* the runtime's own record (libcni's cached result) leads to a living namespace or to a host link that is there: alive.
* the record leads to a namespace that is no more: gone, provided we can see namespaces at all: every process of
  the node is visible, or the record names host links and they have vanished as well.
* no record: libcni removes its record when DEL has succeeded, so none means detached or never attached; gone,
  provided the folder of records is there to be looked into, every process is visible and none has the address.
* a torn file names no owner: the same, with the record found by address.

Ages are measured from the first miss on a monotonic clock: file times and ``created`` come from a wall clock
that may jump after boot.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import msgspec

from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Address

MISSES = 2
"""In how many sweeps in a row a subject must be found gone."""


class Held(NamedTuple):
    """One reservation as found: where, which address, whose (container id "" when its file is torn)."""

    data_dir: str
    address: Address
    owner: Owner


class Cached(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime recorded of an attachment (libcni's ``cniCacheV1``)."""

    owner: Owner
    netns: str = ""
    """Path of the namespace; empty in records older than the format."""
    host_links: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of the node at one moment."""

    boot_id: str
    paths: Mapping[str, int] = {}
    """Of the namespace paths asked for, those that lead to a network namespace now, with its inode."""
    inodes: frozenset[int] = frozenset()
    """Network namespaces seen alive: some process is in them or they are mounted somewhere."""
    links: frozenset[str] = frozenset()
    """Of the host interfaces asked for, those that exist."""
    addresses: frozenset[Address] = frozenset()
    """Addresses configured in the namespaces seen, the host's own excepted."""
    complete: bool = False
    """Whether every process of the node could be seen and, with them, every namespace's addresses be read."""
    cached: Mapping[Owner, Cached] = {}
    cache_readable: bool = False
    """Whether a folder of runtime records is there."""


class Verdict(enum.Enum):
    """What is known of a subject."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Judged(NamedTuple):
    """A verdict with its reason, for logs and operators."""

    verdict: Verdict
    why: str


class Miss(NamedTuple):
    """How often in a row, and since when (monotonic seconds), a subject has been found gone."""

    times: int
    since: float


Subject: TypeAlias = tuple[object, ...]
Misses: TypeAlias = Mapping[Subject, Miss]


class GoneEndpoint(NamedTuple):
    """An endpoint to remove with everything it has."""

    endpoint: Endpoint
    why: str


class GoneReservation(NamedTuple):
    """A reservation to discard."""

    held: Held
    why: str


class LostReservation(NamedTuple):
    """An address of a running endpoint that has no reservation any more: reserve it again."""

    endpoint: Endpoint
    address: Address


class Sweep(NamedTuple):
    """What to do now, and what to remember for the next sweep."""

    endpoints: tuple[GoneEndpoint, ...]
    reservations: tuple[GoneReservation, ...]
    lost: tuple[LostReservation, ...]
    misses: Misses


def newest_by_inode(endpoints: Iterable[Endpoint], boot_id: str) -> dict[int, Endpoint]:
    """For each namespace number of this boot the endpoint that recorded it last."""
    newest: dict[int, Endpoint] = {}
    for endpoint in endpoints:
        if endpoint.boot_id == boot_id and endpoint.netns_inode:
            known = newest.setdefault(endpoint.netns_inode, endpoint)
            if endpoint.created > known.created:
                newest[endpoint.netns_inode] = endpoint
    return newest


def judge_endpoint(endpoint: Endpoint, view: View, newest: Mapping[int, Endpoint] | None = None) -> Judged:
    """Whether an endpoint's pod still is there; ``newest`` as `newest_by_inode` says. Rules: see the module."""
    inode, at_path = endpoint.netns_inode, view.paths.get(endpoint.netns)
    if endpoint.state == "dying":
        return Judged(Verdict.GONE, "its removal was interrupted")
    if endpoint.host_ifname and endpoint.host_ifname in view.links:
        return Judged(Verdict.ALIVE, f"its host link {endpoint.host_ifname} is there")
    if at_path is not None and (at_path == inode or (not inode and endpoint.boot_id == view.boot_id)):
        return Judged(Verdict.ALIVE, f"{endpoint.netns} leads to its namespace")
    if endpoint.boot_id != view.boot_id:
        return Judged(Verdict.GONE, f"it is of boot {endpoint.boot_id!r} and its namespace is not there")
    if not view.complete and not endpoint.host_ifname:
        return Judged(Verdict.UNKNOWN, "neither its namespace nor a link can be looked for from here")
    if not inode:
        return Judged(Verdict.GONE, f"its namespace {endpoint.netns or '(no path)'} is gone")
    if inode not in view.inodes:
        return Judged(Verdict.GONE, f"its namespace net:[{inode}] is gone")
    later = (newest or {}).get(inode, endpoint)
    if later.container_id != endpoint.container_id:
        return Judged(Verdict.GONE, f"net:[{inode}] is container {later.container_id}'s namespace now")
    held = [interface.ip for interface in endpoint.addresses]
    if view.complete and held and view.addresses.isdisjoint(held):
        return Judged(Verdict.GONE, f"net:[{inode}] is another namespace now: none has {held[0]}")
    return Judged(Verdict.ALIVE, f"a namespace net:[{inode}] is there")


def judge_reservation(held: Held, view: View) -> Judged:
    """Whether somebody still uses a reservation that has no endpoint. Rules: see the module."""
    if held.address in view.addresses:
        return Judged(Verdict.ALIVE, "a living namespace has the address")
    cached = _cached(held, view)
    if cached is None:
        if not view.cache_readable:
            return Judged(Verdict.UNKNOWN, "the runtime's records cannot be read")
        if not view.complete:
            return Judged(
                Verdict.UNKNOWN, "the runtime has no record of it, but not every namespace can be seen"
            )
        return Judged(Verdict.GONE, "the runtime has no record of it and no namespace has the address")
    if cached.netns in view.paths:
        return Judged(Verdict.ALIVE, f"the runtime's record leads to {cached.netns}")
    links = [name for name in cached.host_links if name in view.links]
    if links:
        return Judged(Verdict.ALIVE, f"the host link {links[0]} of the runtime's record is there")
    if not cached.netns:
        return Judged(Verdict.UNKNOWN, "the runtime's record names no namespace")
    if view.complete or cached.host_links:
        return Judged(Verdict.GONE, f"the namespace {cached.netns} of the runtime's record is gone")
    return Judged(Verdict.UNKNOWN, f"{cached.netns} cannot be seen, nor can every other namespace")


def _cached(held: Held, view: View) -> Cached | None:
    if held.owner.container_id:
        exact = view.cached.get(held.owner)
        if exact is not None or held.owner.ifname:
            return exact
        # Written by a host-local that recorded no interface: any record of the container will do.
        mine = (c for c in view.cached.values() if c.owner[:2] == held.owner[:2])
        return next((c for c in mine if held.address in c.addresses), None)
    network = held.owner.network
    return next(
        (c for c in view.cached.values() if c.owner.network == network and held.address in c.addresses), None
    )


def unclaimed(reservations: Iterable[Held], endpoints: Iterable[Endpoint]) -> tuple[Held, ...]:
    """The reservations no endpoint answers for, be it by owner or by address."""
    owners: set[Owner] = set()
    addresses: set[tuple[str, Address]] = set()
    for endpoint in endpoints:
        owners.add(endpoint.owner)
        addresses.update((endpoint.network, interface.ip) for interface in endpoint.addresses)
    return tuple(
        held
        for held in reservations
        if held.owner not in owners and (held.owner.network, held.address) not in addresses
    )


def needs_depth(reservations: Iterable[Held], endpoints: Collection[Endpoint], view: View) -> bool:
    """Whether links, paths and records leave anybody's life in doubt, so that all namespaces must be looked at."""
    newest = newest_by_inode(endpoints, view.boot_id)
    doubtful = (
        endpoint.state != "dying" and judge_endpoint(endpoint, view, newest).verdict is not Verdict.ALIVE
        for endpoint in endpoints
    )
    return any(doubtful) or any(
        judge_reservation(held, view).verdict is not Verdict.ALIVE
        for held in unclaimed(reservations, endpoints)
    )


def sweep(
    reservations: Collection[Held],
    endpoints: Collection[Endpoint],
    view: View,
    *,
    busy: Collection[Owner],
    misses: Misses,
    now: float,
    endpoint_grace_s: float = 30.0,
    reservation_grace_s: float = 300.0,
) -> Sweep:
    """Decide what to remove now.

    ``reservations`` and ``endpoints`` must have been read before ``view`` was taken and ``busy`` after it, so that
    a pod attached in between is not judged by a view from before it. ``now`` is monotonic seconds.
    """
    owners_busy = frozenset(busy)
    remembered: dict[Subject, Miss] = {}
    gone_endpoints: list[GoneEndpoint] = []
    gone_reservations: list[GoneReservation] = []

    def missed(subject: Subject, grace_s: float) -> bool:
        before = misses.get(subject)
        miss = Miss(1, now) if before is None else Miss(before.times + 1, before.since)
        remembered[subject] = miss
        return miss.times >= MISSES and now - miss.since >= grace_s

    newest = newest_by_inode(endpoints, view.boot_id)
    for endpoint in endpoints:
        if endpoint.owner in owners_busy:
            continue
        verdict, why = judge_endpoint(endpoint, view, newest)
        if verdict is Verdict.GONE and missed(_subject(endpoint), endpoint_grace_s):
            gone_endpoints.append(GoneEndpoint(endpoint, why))
    for held in unclaimed(reservations, endpoints):
        if held.owner in owners_busy:
            continue
        verdict, why = judge_reservation(held, view)
        if verdict is Verdict.GONE and missed(("reservation", *held), reservation_grace_s):
            gone_reservations.append(GoneReservation(held, why))
    lost = [
        item
        for item in unreserved(reservations, endpoints, view)
        if item.endpoint.owner not in owners_busy and missed(("lost", item.endpoint.owner, item.address), 0.0)
    ]
    return Sweep(tuple(gone_endpoints), tuple(gone_reservations), tuple(lost), remembered)


def _subject(endpoint: Endpoint) -> Subject:
    """What two misses in a row must be of: a container id that is attached again is another subject."""
    return (
        "endpoint",
        endpoint.owner,
        endpoint.state,
        endpoint.boot_id,
        endpoint.netns_inode,
        endpoint.created,
    )


def unreserved(
    reservations: Iterable[Held], endpoints: Collection[Endpoint], view: View
) -> Iterable[LostReservation]:
    """Addresses of running endpoints, ours to reserve, without any reservation."""
    newest = newest_by_inode(endpoints, view.boot_id)
    reserved = {(held.data_dir, held.owner.network, held.address) for held in reservations}
    for endpoint in endpoints:
        if endpoint.state != "ready" or not endpoint.data_dir:
            continue
        if judge_endpoint(endpoint, view, newest).verdict is not Verdict.ALIVE:
            continue
        for interface in endpoint.addresses:
            if (endpoint.data_dir, endpoint.network, interface.ip) not in reserved:
                yield LostReservation(endpoint, interface.ip)


def invalid(
    network: str, owners: Iterable[Owner], valid: Collection[tuple[str, str]], busy: Collection[Owner] = ()
) -> tuple[Owner, ...]:
    """For the CNI verb GC: the network's owners the runtime no longer names as (container id, ifname).

    A torn reservation and one that names no interface say too little to be removed on the runtime's word.
    """
    keep, owners_busy = frozenset(valid), frozenset(busy)
    return tuple(
        owner
        for owner in dict.fromkeys(owners)
        if owner.network == network
        and owner.container_id
        and owner.ifname
        and (owner.container_id, owner.ifname) not in keep
        and owner not in owners_busy
    )
