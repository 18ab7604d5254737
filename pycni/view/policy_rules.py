"""Rules of network policies brought into the form compilers want: what a packet has to match, without selectors. Pure.

Life: ``section`` and ``cluster_section`` turn a policy's rules of one direction into ``Match``es, once per policy
object. Peers by labels become ``Group``s, which many policies share and whose members ``view/policies`` keeps, and many
of them in one rule become a union; blocks become disjoint ranges; ports become disjoint ranges per protocol and names.
Rules of a NetworkPolicy only allow, so those with the same ports or the same peers become one; those of a
ClusterNetworkPolicy stay as they are and in order. ``policy_apart`` goes on where many are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from pycni.model.family import FAMILIES, Family
from pycni.model.policy import (
    Action,
    ClusterRule,
    Direction,
    IpBlock,
    Peer,
    PortRange,
    Rule,
    Selector,
)

Range: TypeAlias = tuple[bytes, bytes]
"""First and last address, network byte order."""
Named: TypeAlias = tuple[int, str]
"""Protocol and name of a container port."""
PortsOf: TypeAlias = tuple[int, tuple[tuple[int, int], ...]]
"""A protocol and disjoint, sorted ranges of its ports; no range: all its packets."""


class Group(NamedTuple):
    """Pods by labels. Equal groups have equal names."""

    name: str
    """Twelve hexadecimal digits."""
    namespace: str
    """The namespace they are in; "" when ``namespaces`` says."""
    namespaces: Selector | None
    pods: Selector
    parts: tuple[Group, ...] = ()
    """Of a union: pods of any of these, whatever the selectors above say."""


class Ports(NamedTuple):
    """One of them has to fit."""

    numbers: tuple[PortsOf, ...] = ()
    """By protocol."""
    names: tuple[Named, ...] = ()
    """Ports of the destination pod."""


class Match(NamedTuple):
    """One of the peers and one of the ports."""

    anybody: bool = False
    groups: tuple[Group, ...] = ()
    ranges: tuple[tuple[Range, ...], tuple[Range, ...]] = ((), ())
    """IPv4 and IPv6; disjoint, sorted, not touching."""
    ports: Ports | None = None
    """None: everything."""

    def of(self, family: Family) -> tuple[Range, ...]:
        """The ranges of one family."""
        return self.ranges[family is Family.V6]


class ClusterMatch(NamedTuple):
    """A rule of a ClusterNetworkPolicy."""

    action: Action
    match: Match


SEVERAL = 2
"""So many groups of a match stay groups, which many policies share; more become a union."""
Section: TypeAlias = tuple[Match, ...]
ClusterSection: TypeAlias = tuple[ClusterMatch, ...]


def section(namespace: str, rules: Sequence[Rule]) -> Section:
    """What a NetworkPolicy of a namespace allows in one direction."""
    peers: dict[Ports | None, list[Peer] | None] = {}
    for rule in rules:
        ports = _ports(rule.ports)
        if rule.peers is None:
            peers[ports] = None
            continue
        known = peers.setdefault(ports, [])
        if known is not None:
            known += rule.peers
    same: dict[Match, list[Ports | None]] = {}
    for ports, some in peers.items():
        if ports is not None and not (ports.numbers or ports.names):
            continue
        match = _match(namespace, some, None)
        if match is not None:
            same.setdefault(match, []).append(ports)
    matches = [match._replace(ports=joined(some)) for match, some in same.items()]
    return tuple(few_groups(match, SEVERAL) for match in matches)


def cluster_section(rules: Sequence[ClusterRule]) -> ClusterSection:
    """The rules of a ClusterNetworkPolicy; an Accept with a peer of an unknown kind is left out, others deny all."""
    found = []
    for rule in rules:
        if any(peer.unknown for peer in rule.peers):
            if rule.action is not Action.ACCEPT:
                found.append(ClusterMatch(Action.DENY, Match(anybody=True)))
            continue
        ports = _ports(rule.ports)
        match = _match("", rule.peers, ports)
        if match is not None and (ports is None or ports.numbers or ports.names):
            found.append(ClusterMatch(rule.action, few_groups(match, SEVERAL)))
    return tuple(found)


def nameless(match: Match) -> Match:
    """Without names of ports: what holds of the ranges of an egress rule."""
    if match.ports is None or not match.ports.names:
        return match
    return match._replace(ports=match.ports._replace(names=()))


def directions(match: Match, direction: Direction) -> tuple[Match, ...]:
    """The same as matches whose peers and ports are independent of each other.

    At egress names are resolved on the peers, and a range of addresses has no pods.
    """
    has_ranges = any(match.ranges)
    if direction is Direction.INGRESS or not has_ranges or match.ports is None or not match.ports.names:
        return (match,)
    blocks = nameless(Match(ranges=match.ranges, ports=match.ports))
    parts = [blocks] if blocks.ports is not None and blocks.ports.numbers else []
    if match.groups or match.anybody:
        parts.insert(0, match._replace(ranges=((), ())))
    return tuple(parts)


def _match(namespace: str, peers: Sequence[Peer] | None, ports: Ports | None) -> Match | None:
    """None when nobody can match."""
    if peers is None:
        return Match(anybody=True, ports=ports)
    groups: dict[str, Group] = {}
    blocks: list[IpBlock] = []
    for peer in peers:
        if peer.unknown:
            continue
        if peer.block is not None:
            blocks.append(peer.block)
        elif peer.namespaces is not None or namespace:
            group = group_of(namespace, peer)
            groups[group.name] = group
    if not groups and not blocks:
        return None
    ranges = [union(blocks, family) for family in FAMILIES]
    return Match(False, tuple(groups[name] for name in sorted(groups)), (ranges[0], ranges[1]), ports)


def group_of(namespace: str, peer: Peer) -> Group:
    """The group of a peer by labels, in a policy of this namespace ("" for cluster-wide ones)."""
    pods = peer.pods if peer.pods is not None else Selector()
    home = namespace if peer.namespaces is None else ""
    raw = msgspec.json.encode((home, peer.namespaces, pods))
    return Group(hashlib.blake2b(raw, digest_size=6).hexdigest(), home, peer.namespaces, pods)


def few_groups(match: Match, most: int) -> Match:
    """The same with a union in place of more groups than that."""
    return match if len(match.groups) <= most else match._replace(groups=(united(match.groups),))


def united(groups: Sequence[Group]) -> Group:
    """The union of groups, of which none is a union."""
    parts = tuple(sorted(groups, key=lambda group: group.name))
    homes = {group.namespace for group in parts}
    raw = "".join(group.name for group in parts).encode()
    name = hashlib.blake2b(raw, digest_size=6, person=b"union").hexdigest()
    return Group(name, homes.pop() if len(homes) == 1 else "", None, Selector(), parts)


def union(blocks: Iterable[IpBlock], family: Family) -> tuple[Range, ...]:
    """All addresses of blocks, each without what it excludes, as disjoint ranges that do not touch."""
    spans: list[tuple[int, int]] = []
    for block in blocks:
        if Family.of(block.cidr) is not family:
            continue
        first = int(block.cidr.network_address)
        last = int(block.cidr.broadcast_address)
        for low, high in merged(
            (int(net.network_address), int(net.broadcast_address))
            for net in block.excluded
            if Family.of(net) is family
        ):
            if low > last:
                break
            if low > first:
                spans.append((first, low - 1))
            first = max(first, high + 1)
        if first <= last:
            spans.append((first, last))
    size = family.bits // 8
    return tuple((low.to_bytes(size, "big"), high.to_bytes(size, "big")) for low, high in merged(spans))


def _ports(ports: Sequence[PortRange] | None) -> Ports | None:
    if ports is None:
        return None
    return joined(
        [
            Ports(names=((port.protocol, port.name),))
            if port.name
            else Ports(((port.protocol, ((port.first, port.last),) if port.first else ()),))
            for port in ports
        ]
    )


def joined(some: Sequence[Ports | None]) -> Ports | None:
    """All that any of them has."""
    numbers: dict[int, list[tuple[int, int]] | None] = {}
    names: set[Named] = set()
    for ports in some:
        if ports is None:
            return None
        names.update(ports.names)
        for protocol, ranges in ports.numbers:
            known = numbers.setdefault(protocol, [])
            if not ranges:
                numbers[protocol] = None
            elif known is not None:
                known += ranges
    return Ports(
        tuple((protocol, tuple(merged(numbers[protocol] or ()))) for protocol in sorted(numbers)),
        tuple(sorted(names)),
    )


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint, sorted, not touching."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found
