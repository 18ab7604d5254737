"""With whom a node speaks BGP, from its own settings and those of all nodes. Pure.

Life: ``neighbours`` is asked whenever a node or the settings changed; the engine gets the difference. Who is not a
neighbour is in the result with the reason, so that ``pycnictl bgp`` can say it.

Between nodes (kube-router's rules, ``bgp.md``): everybody with everybody; without a full mesh, only nodes of one AS.
As soon as nodes reflect routes, reflectors speak with everybody and clients with reflectors only. Cluster ids say which
reflectors stand in for one another, not who is whose client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pycni.model.family import Family, show
from pycni_bgp.annotations import NodeSettings, PeerWish
from pycni_bgp.model import Neighbour
from pycni_bgp.settings import BgpSettings

ANNOTATION = "annotation kube-router.io/peers"
SETTING = "setting peer-router-ips"
FARTHEST = 255


class Neighbourhood(NamedTuple):
    """Sessions by address, nodes without one by name with the reason, and what cannot be had."""

    sessions: Mapping[bytes, Neighbour]
    strangers: Mapping[str, str]
    problems: tuple[str, ...]


def neighbours(settings: BgpSettings, own: NodeSettings, others: Mapping[str, NodeSettings]) -> Neighbourhood:
    """All sessions of the node ``own``. ``others``: nodes by name; its own entry does not count."""
    sessions: dict[bytes, Neighbour] = {}
    strangers: dict[str, str] = {}
    problems: list[str] = []
    local_asn = own.asn or settings.asn
    for name in sorted(others):
        if name == own.name:
            continue
        node = others[name]
        reason = _unwanted(settings, own, node)
        address = _address(own, node)
        if not reason and not address:
            reason = "no internal address of a family this node has"
        if reason:
            strangers[name] = reason
            continue
        sessions[address] = Neighbour(
            address=address,
            asn=node.asn or settings.asn,
            local_asn=local_asn,
            origin=f"node {name}",
            node=name,
            client=bool(own.reflector and node.client),
            # Nodes of different AS in one cluster may be routers apart; eBGP would refuse that.
            hops=FARTHEST if (node.asn or settings.asn) != local_asn else 1,
        )
    for wish, origin in _outside(settings, own, problems):
        found = _router(settings, wish, local_asn, origin)
        if wish.address in own.addresses:
            problems.append(f"{origin}: {show(wish.address)} is this node's own address")
        elif sessions.setdefault(wish.address, found) is not found:
            problems.append(f"{origin}: {show(wish.address)} is {sessions[wish.address].origin} already")
    return Neighbourhood(sessions, strangers, tuple(problems))


def _unwanted(settings: BgpSettings, own: NodeSettings, node: NodeSettings) -> str:
    """Why there is no session between two nodes; "" when there is one."""
    if not settings.internal:
        return "enable-ibgp is off"
    asn, theirs = own.asn or settings.asn, node.asn or settings.asn
    if not settings.full_mesh and asn != theirs:
        return f"AS{theirs} is not this node's AS{asn}, and there is no full mesh"
    for client, other in ((own, node), (node, own)):
        if client.client and not other.reflector:
            return f"node {client.name} is a route reflector's client and node {other.name} is no reflector"
    return ""


def _address(own: NodeSettings, node: NodeSettings) -> bytes:
    """The first address of a family both have, in this node's order of preference; both ends must agree."""
    theirs = {len(address): address for address in reversed(node.addresses)}
    common = [len(address) for address in own.addresses if len(address) in theirs]
    if not common:
        return b""
    size = Family.V4.bits // 8
    return theirs[size if size in common else common[0]]


def _outside(settings: BgpSettings, own: NodeSettings, problems: list[str]) -> list[tuple[PeerWish, str]]:
    if not settings.peers:
        return [(wish, ANNOTATION) for wish in own.peers]
    if own.peers:
        problems.append(f"{ANNOTATION}: not looked at, because {SETTING} is set")
    return [(wish, SETTING) for wish in settings.peers]


def _router(settings: BgpSettings, wish: PeerWish, local_asn: int, origin: str) -> Neighbour:
    return Neighbour(
        address=wish.address,
        asn=wish.asn,
        local_asn=local_asn,
        origin=origin,
        port=wish.port,
        local_address=wish.local_address,
        password=wish.password,
        hops=max(1, settings.multihop),
        ttl_security=settings.ttl_security,
        bfd=wish.bfd,
    )
