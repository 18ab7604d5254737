"""Which tracked UDP connections lead to endpoints that do not serve any more. Pure.

UDP has no end of connection: a client that keeps sending from one port stays on the way its first packet took, also
after the endpoint is gone, and also when that packet came before there was any endpoint (the entry is untranslated
then, kubernetes#48370, #125467). So after a change an entry goes when its destination as the client sent it is a
frontend of ours that has endpoints and its answers are expected from none of them. Frontends without endpoints are
passed over: their packets are refused by rules, whatever is tracked. TCP is left alone: its ends notice themselves.

Life: ``relevant`` picks from a pass's changes the frontends whose serving endpoints differ; ``Stale`` is the judgement
for exactly those, made from the frontends as they are now; ``kernel.conntrack`` lists and deletes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pycni.model.family import Family, Network
from pycni.model.kube import UDP
from pycni.model.service import Frontend, FrontendKey, NodeFacts

End = tuple[bytes, int]
"""Packed address and port."""


class Watched(NamedTuple):
    """Frontends whose connections are to be judged, with the ends that serve them."""

    ends: Mapping[FrontendKey, frozenset[End]]

    @property
    def families(self) -> tuple[Family, ...]:
        """Families there is something to do in."""
        return tuple(sorted({key.family for key in self.ends}))

    def ports(self, family: Family) -> frozenset[int]:
        """Destination ports of a family's frontends."""
        return frozenset(key.port for key in self.ends if key.family is family)


def serving(frontend: Frontend) -> frozenset[End]:
    """Every end that may answer for a frontend: for new connections, and draining ones for those they have."""
    return frozenset(
        (target.address, target.port) for pool in frontend.pools for target in (*pool.targets, *pool.draining)
    )


def relevant(changes: Iterable[tuple[Iterable[Frontend], Iterable[Frontend]]]) -> Watched:
    """From (before, after) of every changed service: UDP frontends that have endpoints now and not the same as before.

    A frontend that only gained endpoints counts when it had none; else what is tracked still leads to one of them.
    """
    found: dict[FrontendKey, frozenset[End]] = {}
    for before, after in changes:
        was = {item.key: serving(item) for item in before if item.key.protocol == UDP}
        for item in after:
            if item.key.protocol != UDP:
                continue
            now = serving(item)
            old = was.get(item.key, frozenset())
            if now and (not old or old - now):
                found[item.key] = now
    return Watched(found)


def everything(frontends: Iterable[Frontend]) -> Watched:
    """All UDP frontends with endpoints: the judgement after a start, when what happened before is not known."""
    found = {}
    for item in frontends:
        if item.key.protocol == UDP:
            now = serving(item)
            if now:
                found[item.key] = now
    return Watched(found)


class Stale:
    """Judges connections. Node ports count at the node's own addresses only."""

    def __init__(self, watched: Watched, facts: NodeFacts) -> None:
        self._ends = watched.ends
        self._addresses = frozenset(facts.addresses)
        self._ranges: tuple[Network, ...] = facts.node_port_ranges

    def __call__(self, target: bytes, target_port: int, source: bytes, source_port: int) -> bool:
        """Whether to forget a UDP connection sent to ``target`` and answered from ``source`` (packed addresses)."""
        family = Family.of_packed(target)
        ends = self._ends.get(FrontendKey(family, target, UDP, target_port))
        if ends is None:
            ends = self._ends.get(FrontendKey(family, b"", UDP, target_port))
            if ends is None or not self._is_node_port_address(target):
                return False
        return (source, source_port) not in ends

    def _is_node_port_address(self, packed: bytes) -> bool:
        if not self._ranges:
            return packed in self._addresses
        address = ipaddress.ip_address(packed)
        return any(address.version == net.version and address in net for net in self._ranges)
