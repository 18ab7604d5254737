"""What ``pycnictl bgp`` gets to know. Pure: the component asks the engine, ``status`` puts it in shape.

GET /bgp     the structs below as JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pycni.model.family import show
from pycni_bgp.engine import Adjacency, Route, Session
from pycni_bgp.model import Local, Neighbour, Prefix
from pycni_bgp.rib import Rib
from pycni_bgp.view import Draft


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One neighbour."""

    address: str
    asn: int
    kind: str
    """iBGP or eBGP, with ``client`` for a route reflector's."""
    origin: str
    state: str
    since: str = ""
    error: str = ""
    received: int = 0
    sent: int = 0


class AnnouncedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One prefix this node has to announce."""

    prefix: str
    kind: str
    owner: str
    to: tuple[str, ...] = ()
    """Neighbours that are told."""
    withheld: dict[str, str] = {}
    """Neighbours that are not, and why."""


class LearnedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One path a neighbour announced."""

    prefix: str
    neighbour: str
    next_hop: str
    as_path: tuple[int, ...] = ()
    communities: tuple[str, ...] = ()
    best: bool = False


class AdjacencyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A neighbour of OSPF."""

    router_id: str
    state: str
    interface: str
    address: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One node."""

    node: str
    asn: int
    router_id: str
    engine: str
    trouble: str = ""
    """Why the engine does not do what it is to do."""
    drained: tuple[str, ...] = ()
    """Why no services are announced, when the node is being drained."""
    problems: tuple[str, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    strangers: dict[str, str] = {}
    """Nodes without a session, and why."""
    announced: tuple[AnnouncedStatus, ...] = ()
    silent: dict[str, str] = {}
    """Addresses of services that nobody is told of, and why."""
    learned: tuple[LearnedStatus, ...] = ()
    ospf: tuple[AdjacencyStatus, ...] = ()


class Seen(NamedTuple):
    """What the engine says."""

    name: str
    trouble: str
    sessions: Sequence[Session] = ()
    learned: Sequence[Route] = ()
    adjacencies: Sequence[Adjacency] = ()


def status(draft: Draft, seen: Seen) -> Status:
    """Everything together."""
    plan = draft.plan
    by_address = {item.address: item for item in seen.sessions}
    rib = Rib(plan.settings, plan.own, plan.router_id, plan.sessions, draining=plan.draining)
    peers = sorted(plan.sessions.values(), key=lambda item: (len(item.address), item.address))
    return Status(
        node=plan.own.name,
        asn=plan.own.asn or plan.settings.asn,
        router_id=show(plan.router_id),
        engine=seen.name,
        trouble=seen.trouble,
        drained=draft.drained,
        problems=draft.problems,
        peers=tuple(_peer(item, by_address.get(item.address)) for item in peers),
        strangers=dict(draft.neighbourhood.strangers),
        announced=tuple(_announced(rib, peers, *item) for item in sorted(plan.local.items())),
        silent={str(prefix): why for prefix, why in sorted(draft.withheld.items())},
        learned=tuple(_learned(item) for item in seen.learned),
        ospf=tuple(
            AdjacencyStatus(
                router_id=show(item.router_id),
                state=item.state,
                interface=item.interface,
                address=item.address,
            )
            for item in seen.adjacencies
        ),
    )


def drained(draft: Draft) -> str:
    """What a drain has come to, in a line."""
    plan = draft.plan
    routers = sum(1 for peer in plan.sessions.values() if not peer.node)
    addresses = sum(1 for item in plan.local.values() if item.kind != "pod CIDR")
    what = f"{addresses} addresses of services, {routers} routers outside"
    if not draft.drained:
        return f"node {plan.own.name} announces {what}\n"
    return f"node {plan.own.name} is drained ({'; '.join(draft.drained)}), nothing is announced of {what}\n"


def _announced(rib: Rib, peers: Sequence[Neighbour], prefix: Prefix, item: Local) -> AnnouncedStatus:
    withheld = {show(peer.address): rib.withheld(peer, prefix, item) for peer in peers}
    return AnnouncedStatus(
        prefix=str(prefix),
        kind=item.kind,
        owner=item.owner,
        to=tuple(address for address, why in withheld.items() if not why),
        withheld={address: why for address, why in withheld.items() if why},
    )


def _peer(peer: Neighbour, known: Session | None) -> PeerStatus:
    session = known or Session(peer.address, "unknown")
    kind = "iBGP" if peer.internal else "eBGP"
    return PeerStatus(
        address=show(peer.address),
        asn=peer.asn,
        kind=f"{kind} client" if peer.client else kind,
        origin=peer.origin,
        state=session.state,
        since=session.since,
        error=session.error,
        received=session.imported,
        sent=session.exported,
    )


def _learned(item: Route) -> LearnedStatus:
    hop = item.attributes.next_hop
    return LearnedStatus(
        prefix=str(item.prefix),
        neighbour=show(item.neighbour),
        next_hop=show(hop) if hop else "",
        as_path=item.attributes.as_path,
        communities=item.attributes.communities,
        best=item.best,
    )
