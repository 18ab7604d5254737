"""Which other nodes this node has to reach, seen from the leases of all.

Life: the store holds one ``Lease`` per node and key; ``FabricView.update`` takes all of them and keeps, per
address family, the peers whose subnet can be routed, and for every other one the reason why not. What a peer
needs in the kernel is a backend's business; here only subnets are judged:

* our own record is not a peer; somebody else's claim on our subnet is skipped,
* a subnet outside the cluster network is skipped (it could take other traffic away),
* of two that overlap the one of the network's subnet length counts (nobody is given another), then the narrower,
  of two equal ones that with the smaller key (dual-stack records can share a subnet of one family under two keys):
  the same on every node, whatever came first.

``update`` costs as much as what changed, plus one identity comparison per lease.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from itertools import chain, compress, repeat
from operator import is_not
from typing import TypeAlias

import msgspec

from pycni.model.family import Family, Network
from pycni.model.lease import Lease
from pycni.model.network import NetConf

PeerKey: TypeAlias = tuple[str, Family]
"""(name of the lease record, family): a peer is judged and reached per family."""


class Fabric(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one set of leases."""

    peers: Mapping[PeerKey, Lease]
    skipped: Mapping[PeerKey, str]
    """Records with a subnet of the family that is not used, with the reason in words."""


def fabric(leases: Mapping[str, Lease], own: Lease, conf: NetConf) -> Fabric:
    """Judge all leases (keyed by record name) at once."""
    view = FabricView(own, conf)
    view.update(leases)
    return Fabric(peers=view.peers, skipped=view.skipped)


class FabricView:
    """Peers by key, kept up to date. Same leases in any order of updates: same peers and reasons."""

    def __init__(self, own: Lease, conf: NetConf) -> None:
        self._own = own
        self._conf = conf
        self._leases: Mapping[str, Lease] = {}
        self._subnets = {family: _Subnets() for family in conf.families}
        self.peers: dict[PeerKey, Lease] = {}
        self.skipped: dict[PeerKey, str] = {}

    def update(self, leases: Mapping[str, Lease]) -> set[PeerKey]:
        """Take the leases as they are now. Returns the keys whose lease or verdict changed."""
        before = self._leases
        # Place by place first: the store keeps order and identity, so nearly all drop out here at C speed.
        moved = compress(leases, map(is_not, leases.values(), chain(before.values(), repeat(None))))
        names = [
            name for name in moved if (held := before.get(name)) is not leases[name] and held != leases[name]
        ]
        if len(before) + sum(name not in before for name in names) > len(leases):
            names += [name for name in before if name not in leases]
        self._leases = leases
        touched: set[PeerKey] = set()
        for family, subnets in self._subnets.items():
            affected = set(names)
            for name in names:
                affected |= subnets.replace(name, _subnet(leases.get(name), family))
            touched.update((name, family) for name in affected if self._judge(name, family))
        return touched

    def _judge(self, name: str, family: Family) -> bool:
        """Set one key's peer or reason; whether anything changed."""
        key = (name, family)
        lease = self._leases.get(name)
        net = _subnet(lease, family)
        was = (self.peers.pop(key, None), self.skipped.pop(key, None))
        if lease is not None and net is not None:
            reason = self._objection(name, lease, net, family)
            if reason is None:
                self.peers[key] = lease
            elif reason:
                self.skipped[key] = reason
        return was != (self.peers.get(key), self.skipped.get(key))

    def _objection(self, name: str, lease: Lease, net: Network, family: Family) -> str | None:
        """Why a lease cannot be a peer; "" for our own record, None when it can."""
        if name == self._own.key:
            return "" if _ours(lease, self._own, family) else f"{net} is this node's own subnet"
        cluster = self._conf.of(family)
        assert cluster is not None, f"{family.label} is off"
        if not _inside(net, cluster):
            return f"{net} is not inside the cluster network {cluster}"
        own = self._own.of(family)
        if own is not None and (_inside(net, own) or _inside(own, net)):
            return f"{net} overlaps this node's own subnet {own}"
        regular = self._conf.length(family)
        mine = (net.prefixlen != regular, -net.prefixlen, name)
        better = min(
            (
                (length != regular, -length, other)
                for length, other in self._subnets[family].overlapping(net)
                if other != name
            ),
            default=mine,
        )
        return None if mine <= better else f"{net} overlaps the subnet of lease {better[2]}"


class _Subnets:
    """Subnets of one family by address, to find overlaps without looking at all of them.

    Two CIDR blocks overlap only when one contains the other: the contained ones lie side by side in address
    order, the containing ones are found by cutting the address to each length in use.
    """

    def __init__(self) -> None:
        self._of: dict[str, Network] = {}
        self._sorted: list[tuple[int, int, str]] = []
        self._lengths: dict[int, dict[int, set[str]]] = {}

    def replace(self, name: str, net: Network | None) -> set[str]:
        """Give a record another subnet (None: no subnet). Returns the other records it overlapped or overlaps."""
        held = self._of.get(name)
        if held == net:
            return set()
        near: set[str] = set()
        if held is not None:
            self._drop(name, held)
            near.update(other for _, other in self.overlapping(held))
        if net is not None:
            near.update(other for _, other in self.overlapping(net))
            start = int(net.network_address)
            self._of[name] = net
            insort(self._sorted, (start, net.prefixlen, name))
            self._lengths.setdefault(net.prefixlen, {}).setdefault(start, set()).add(name)
        return near

    def overlapping(self, net: Network) -> Iterator[tuple[int, str]]:
        """(prefix length, name) of every subnet that shares an address with ``net``."""
        start = int(net.network_address)
        end = start | ((1 << (net.max_prefixlen - net.prefixlen)) - 1)
        at = bisect_left(self._sorted, (start, net.prefixlen, ""))
        while at < len(self._sorted) and self._sorted[at][0] <= end:
            _, length, name = self._sorted[at]
            yield length, name
            at += 1
        for length, starts in self._lengths.items():
            if length < net.prefixlen:
                cut = net.max_prefixlen - length
                for name in starts.get(start >> cut << cut, ()):
                    yield length, name

    def _drop(self, name: str, net: Network) -> None:
        start = int(net.network_address)
        del self._of[name]
        del self._sorted[bisect_left(self._sorted, (start, net.prefixlen, name))]
        starts = self._lengths[net.prefixlen]
        starts[start].discard(name)
        if not starts[start]:
            del starts[start]
        if not starts:
            del self._lengths[net.prefixlen]


def _subnet(lease: Lease | None, family: Family) -> Network | None:
    return None if lease is None else lease.of(family)


def _ours(lease: Lease, own: Lease, family: Family) -> bool:
    """Whether the record under our key is what we wrote, now or before our address or MAC changed."""
    mine, theirs = own.attrs, lease.attrs
    return mine.public(family) == theirs.public(family) or (
        mine.data(family) is not None and mine.data(family) == theirs.data(family)
    )


def _inside(net: Network, outer: Network) -> bool:
    """Whether ``net`` is part of ``outer`` (same family); integers, as ipaddress's own test is slow."""
    cut = outer.max_prefixlen - outer.prefixlen
    return (
        net.prefixlen >= outer.prefixlen
        and int(net.network_address) >> cut == int(outer.network_address) >> cut
    )
