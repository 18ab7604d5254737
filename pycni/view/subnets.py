"""Which subnet a node is to have: flannel's ladder as a pure choice over the records that exist.

1. a record with the node's own public address, when it fits the network (a static reservation or an earlier life),
2. the record this node wrote itself under another address, recognised by its etcd lease or its VTEP MAC,
3. the subnets the node had before, family by family, when they are free and fit,
4. one of the first 100 free subnets, at random, each family by itself.

A record whose value cannot be read still takes up its subnet. Static reservations are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from pycni.errors import PycniError
from pycni.model.family import Family, Network
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf

CANDIDATES = 100
"""Of how many free subnets one is drawn: enough that nodes starting together seldom meet."""

Previous = tuple[IPv4Network | None, IPv6Network | None]


class OutOfSubnetsError(PycniError):
    """Every subnet of the network is taken. Leases of dead nodes end by themselves, so waiting can help."""

    transient = True


class Known(NamedTuple):
    """A record under ``<prefix>/subnets/`` whose key could be read."""

    name: str
    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    attrs: LeaseAttrs | None
    """None when the value cannot be read."""
    permanent: bool
    """A record without an etcd lease: a static reservation."""
    revision: int
    """Of its last write."""
    etcd_lease: int = 0
    """Id of the etcd lease it hangs on."""


class Choice(NamedTuple):
    """What to write: over ``reuse``, or as a new record and ``replaces`` deleted with it."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    why: str
    reuse: Known | None = None
    replaces: Known | None = None


def fits(conf: NetConf, subnet: IPv4Network | None, subnet6: IPv6Network | None) -> bool:
    """Whether subnets could have been handed out in this network: every family as configured."""
    return _fits(conf, Family.V4, subnet) and _fits(conf, Family.V6, subnet6)


def unfit(conf: NetConf, leases: Iterable[Lease]) -> list[str]:
    """Names of the leases that do not fit the network, sorted."""
    return sorted(lease.key for lease in leases if not fits(conf, lease.subnet, lease.subnet6))


def is_ours(attrs: LeaseAttrs | None, mine: LeaseAttrs) -> bool:
    """Whether a record carries this node's public address (IPv4 when it has one, as flannel compares)."""
    if attrs is None:
        return False
    if mine.public_ip is not None:
        return attrs.public_ip == mine.public_ip
    return mine.public_ipv6 is not None and attrs.public_ipv6 == mine.public_ipv6


def choose(
    conf: NetConf,
    known: Sequence[Known],
    mine: LeaseAttrs,
    previous: Previous,
    *,
    draw: Callable[[int], int],
    remembered: Lease | None = None,
    etcd_lease: int = 0,
) -> Choice:
    """The subnets for this node. ``draw(n)`` gives a number in 0..n-1. Raises OutOfSubnetsError.

    ``remembered`` and ``etcd_lease``: what an earlier life of this node wrote, and hung it on.
    """
    own = [record for record in known if is_ours(record.attrs, mine)]
    own += [
        record for record in known if record not in own and _written_by_us(record, remembered, etcd_lease)
    ]
    # Of several, what the node has now comes first, then static reservations.
    own.sort(key=lambda record: ((record.subnet, record.subnet6) != previous, not record.permanent))
    for record in own:
        if fits(conf, record.subnet, record.subnet6):
            return Choice(record.subnet, record.subnet6, _why_reused(record), reuse=record)
    replaces = next((record for record in own if not record.permanent), None)
    taken = [record for record in known if record is not replaces]
    subnet, why = _family(conf, Family.V4, taken, previous[0], draw)
    subnet6, why6 = _family(conf, Family.V6, taken, previous[1], draw)
    assert subnet is None or isinstance(subnet, IPv4Network)
    assert subnet6 is None or isinstance(subnet6, IPv6Network)
    return Choice(subnet, subnet6, why or why6, replaces=replaces)


def overlapping(
    known: Iterable[Known], subnet: IPv4Network | None, subnet6: IPv6Network | None
) -> list[Known]:
    """Records that take up some of these subnets."""
    return [
        record
        for record in known
        if (subnet is not None and record.subnet is not None and subnet.overlaps(record.subnet))
        or (subnet6 is not None and record.subnet6 is not None and subnet6.overlaps(record.subnet6))
    ]


def first_free(conf: NetConf, family: Family, taken: Iterable[Network], limit: int = CANDIDATES) -> list[int]:
    """Base addresses (as numbers) of the first ``limit`` subnets between the bounds that overlap nothing taken.

    Walks over taken stretches in one step, so a large network costs no more than the number of records.
    """
    low, high = conf.bounds(family)
    size = 1 << (family.bits - conf.length(family))
    stretches = sorted((int(net.network_address), int(net.broadcast_address)) for net in taken)
    free: list[int] = []
    base, last, index = int(low), int(high), 0
    while base <= last and len(free) < limit:
        while index < len(stretches) and stretches[index][1] < base:
            index += 1
        if index < len(stretches) and stretches[index][0] < base + size:
            base = max(base, stretches[index][1] // size * size) + size
        else:
            free.append(base)
            base += size
    return free


def _fits(conf: NetConf, family: Family, subnet: Network | None) -> bool:
    if conf.of(family) is None or subnet is None:
        return conf.of(family) is None and subnet is None
    low, high = conf.bounds(family)
    return subnet.prefixlen == conf.length(family) and int(low) <= int(subnet.network_address) <= int(high)


def _family(
    conf: NetConf,
    family: Family,
    known: Sequence[Known],
    previous: Network | None,
    draw: Callable[[int], int],
) -> tuple[Network | None, str]:
    """One family's subnet and why, (None, "") when the family is off."""
    network = conf.of(family)
    if network is None:
        return None, ""
    v4 = family is Family.V4
    pairs = ((record.subnet if v4 else record.subnet6) for record in known)
    taken: list[Network] = [net for net in pairs if net is not None]
    if previous is not None and _fits(conf, family, previous):
        first, last = int(previous.network_address), int(previous.broadcast_address)
        if not any(int(net.network_address) <= last and first <= int(net.broadcast_address) for net in taken):
            return previous, "it was this node's before"
    free = first_free(conf, family, taken)
    if not free:
        raise OutOfSubnetsError(
            f"no free /{conf.length(family)} in {network} between {conf.bounds(family)[0]} and"
            f" {conf.bounds(family)[1]}: {len(taken)} records take it up"
        )
    base = free[draw(len(free))]
    chosen = type(network)((base, conf.length(family)))
    return chosen, f"drawn from {len(free)} free ones"


def _written_by_us(record: Known, remembered: Lease | None, etcd_lease: int) -> bool:
    """A record with exactly what this node wrote last, that nobody else can have written alike.

    Whoever takes a record over hangs it on an etcd lease of his own.
    """
    if etcd_lease and record.etcd_lease == etcd_lease:
        return True
    if remembered is None or record.attrs is None or record.attrs != remembered.attrs:
        return False
    has_identity = remembered.attrs.backend_data is not None or remembered.attrs.backend_v6_data is not None
    return has_identity and (record.subnet, record.subnet6) == (remembered.subnet, remembered.subnet6)


def _why_reused(record: Known) -> str:
    return "it is reserved for this node" if record.permanent else "its record is this node's"
