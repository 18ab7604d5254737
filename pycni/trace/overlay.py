"""Where an overlay device sends a packet, and which device of the far node takes it out again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.family import show, show_mac
from pycni.model.space import NODE, LinkState, PeerState, SpaceState, World
from pycni.trace import lookup
from pycni.trace.lookup import Query
from pycni.trace.model import UDP, Flow

OVERHEAD = {"vxlan": (50, 70), "ipip": (20, 40), "wireguard": (60, 80), "tun": (28, 48)}
"""Bytes around a packet by kind of device, over IPv4 and IPv6."""

_IPIP = 4
"""IP protocol of what an ipip device sends."""

SECRET = frozenset({"wireguard", "tun"})
"""Kinds of devices whose packets on the underlay may be encrypted."""


class Aim(NamedTuple):
    """A packet on its way to a node."""

    far: str
    """The node."""
    remote: bytes
    """Its underlay address."""
    mac: bytes = b""
    """VXLAN: of the far device, as this node believes."""
    overhead: int = 0
    words: str = ""


class Lost(NamedTuple):
    """Why it gets no further."""

    component: str
    kind: str
    detail: str
    reason: str
    interface: str = ""


def aim(world: World, node: str, link: LinkState, gateway: bytes, destination: bytes) -> Aim | Lost:
    """Which node a device sends to: by its forwarding entry, the gateway, or whose the address is."""
    state, remote, mac = _space(world, node), gateway, b""
    if link.kind == "vxlan":
        known = lookup.entry(state, link.name, gateway or destination)
        if known is None:
            reason = (
                f"no neighbour entry for {show(gateway or destination)}, and nobody is asked on an overlay"
            )
            return Lost("neighbour", "neighbour-missing", show(gateway or destination), reason)
        mac = known.mac
        row = lookup.tunnel_entry(state, link.name, mac)
        if row is None:
            reason = f"no forwarding entry of {link.name} for {show_mac(mac)}"
            return Lost("overlay", "fdb-missing", f"fdb {show_mac(mac)} dev {link.name}", reason)
        remote = row.remote
    if link.peers is not None:
        peer = _peer(link.peers, destination)
        if peer is None:
            reason = f"no peer of {link.name} has {show(destination)} among its allowed IPs"
            return Lost("overlay", "wireguard-peer-missing", f"allowed-ips of {link.name}", reason)
        remote = peer.endpoint or remote
    far = _far_node(world, remote, destination)
    if not far or far == node:
        reason = f"no node is known at {show(remote)}" if remote else "no node is known for this address"
        return Lost("overlay", "peer-unknown", f"dst {show(remote)}" if remote else "", reason)
    # A device without addresses of its own (WireGuard, ours in user space) goes by the peer's.
    remote = remote or next((item for item in world.nodes[far].addresses), b"")
    overhead = OVERHEAD[link.kind][len(remote) == 16]
    words = f"{link.kind} {f'id {link.vni} ' if link.vni else ''}to {show(remote)}"
    return Aim(far, remote, mac, overhead, words)


def outer(state: SpaceState, link: LinkState, there: Aim) -> Flow | None:
    """The packet around it; None where its addresses are not known."""
    route = lookup.route(state, Query(there.remote))
    own = [item.address for item in state.of(route.device)] if route is not None else []
    source = link.local or next((item for item in own if len(item) == len(there.remote)), b"")
    if not source or len(source) != len(there.remote):
        return None
    protocol = _IPIP if link.kind == "ipip" else UDP
    return Flow(protocol=protocol, source=source, destination=there.remote, destination_port=link.port)


def _far_node(world: World, remote: bytes, destination: bytes) -> str:
    """Who has an underlay address; without one, on whose pods' subnet the packet ends."""
    if remote:
        return next((name for name, part in world.nodes.items() if remote in part.addresses), "")
    owner = world.owner(destination)
    return owner[0] if owner is not None else ""


def _peer(peers: Sequence[PeerState], address: bytes) -> PeerState | None:
    """Whose allowed networks have an address, the longest prefix first (cryptokey routing)."""
    found = [
        (length, item)
        for item in peers
        for network, length in item.allowed
        if len(network) == len(address) and lookup.inside(address, network, length)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def refused(item: LinkState, there: Aim, source: bytes) -> Lost | None:
    """Why a WireGuard device takes nothing from this source."""
    if item.peers is None or _peer(item.peers, source) is not None:
        return None
    reason = f"no peer of {item.name} may send from {show(source)} (allowed IPs)"
    return Lost("overlay", "wireguard-peer-missing", there.words, reason, item.name)


def opening(world: World, there: Aim, link: LinkState) -> LinkState | Lost:
    """The far node's device that takes out what this device has sent."""
    links = _space(world, there.far).links.values()
    # Those of other programs have nothing to be told by but their names, which are the same everywhere.
    for item in sorted(links, key=lambda item: item.name != link.name):
        same = (item.kind, item.vni, item.port) == (link.kind, link.vni, link.port)
        if same and item.up and len(item.local) == len(link.local):
            break
    else:
        reason = f"this node has no {link.kind} device like {link.name} of the sender"
        return Lost("overlay", "vtep-missing", there.words, reason)
    if item.kind == "tun" and not item.carrier:
        reason = f"{item.name} is without carrier: the program that serves it is not running"
        return Lost("overlay", "forwarder-dead", there.words, reason, item.name)
    if there.mac and item.mac != there.mac:
        reason = f"{item.name} has {show_mac(item.mac)}, the sender believes {show_mac(there.mac)}"
        return Lost("overlay", "vtep-mac-wrong", f"to {show_mac(there.mac)}", reason, item.name)
    return item


def _space(world: World, node: str) -> SpaceState:
    part = world.nodes.get(node)
    return part.actual.get(NODE, SpaceState()) if part is not None else SpaceState()
