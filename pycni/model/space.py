"""What a packet meets in one network namespace, as values: links, addresses, routes, neighbours, switches. Pure.

Life: ``kernel/spacestate`` reads a ``SpaceState`` from a namespace in one go; ``wanted`` gives the same namespace as
its agent wants it (the entries that are the agent's replaced by the desired ones); both travel as JSON between nodes.
``World`` puts the namespaces of all nodes and pods of a trace together. ``walk`` leads packets through worlds and
never asks which kind it was given.

Addresses are packed bytes (4 or 16), MACs six bytes. Devices go by their names; their indexes are there only to find
the two ends of veth pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.model.family import Family

NODE = ""
"""Name of a node's own namespace among the node's spaces; pods are called ``namespace/name``."""


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface."""

    name: str
    kind: str = ""
    """IFLA_INFO_KIND; "" for hardware and the loopback."""
    mac: bytes = b""
    mtu: int = 0
    up: bool = True
    """Administratively."""
    carrier: bool = True
    master: str = ""
    """The bridge it is a port of."""
    index: int = 0
    peer_index: int = 0
    """Of its veth peer (in the peer's namespace) or lower device; 0: none."""
    lower: str = ""
    """Name of the lower device, where that is in this namespace."""
    peer_space: str | None = None
    """Space its veth peer is in, as far as the world has it; None: not a veth, or nobody knows."""
    peer: str = ""
    """Name of the veth peer in that space."""
    hairpin: bool = False
    isolated: bool = False
    port_state: str = "forwarding"
    """Of a bridge port: disabled, listening, learning, forwarding, blocking."""
    vni: int = 0
    port: int = 0
    """UDP port of an overlay device."""
    local: bytes = b""
    """Underlay address of an overlay device."""
    checksum: bool = True
    """``tx-checksum-ip-generic``, where it matters (overlay devices)."""
    peers: tuple[PeerState, ...] | None = None
    """Of a WireGuard device; None: it is none, or they could not be read."""


class AddressState(msgspec.Struct, frozen=True):
    """An interface address."""

    device: str
    address: bytes
    prefix_len: int
    trouble: str = ""
    """``tentative`` or ``dadfailed``: it is not used."""


class RouteState(msgspec.Struct, frozen=True, kw_only=True):
    """A route, in the order the kernel tries them within its table: longest prefix, then metric."""

    table: int
    destination: bytes
    prefix_len: int
    kind: str = "unicast"
    """unicast, local, blackhole, unreachable, prohibit, broadcast, multicast, throw."""
    device: str = ""
    gateway: bytes = b""
    hops: tuple[bytes, ...] = ()
    """Gateways, where there are several."""
    source: bytes = b""
    metric: int = 0
    onlink: bool = False
    mtu: int = 0
    protocol: int = 0


class RuleState(msgspec.Struct, frozen=True, kw_only=True):
    """A routing rule (ip-rule(8)) that leads to a table."""

    priority: int
    family: Family
    table: int
    action: str = "lookup"
    source: bytes = b""
    source_len: int = 0
    destination: bytes = b""
    destination_len: int = 0
    iif: str = ""
    oif: str = ""
    mark: int = 0
    mask: int = 0
    invert: bool = False


class NeighbourState(msgspec.Struct, frozen=True):
    """A neighbour entry."""

    device: str
    address: bytes
    mac: bytes
    state: str
    """permanent, noarp, reachable, stale, delay, probe, incomplete, failed."""


class FdbState(msgspec.Struct, frozen=True):
    """A forwarding entry of a bridge (``port``) or of an overlay device (``remote``)."""

    device: str
    """The bridge, or the overlay device."""
    mac: bytes
    port: str = ""
    remote: bytes = b""
    vlan: int = 0


class ForeignHook(msgspec.Struct, frozen=True, kw_only=True):
    """A base chain of nftables or a table of iptables that is not ours."""

    family: str
    """ip, ip6, inet, bridge, netdev, arp; ``ip legacy`` and ``ip6 legacy`` for iptables-legacy."""
    table: str
    chain: str
    hook: str
    priority: int
    policy: str = "accept"
    device: str = ""
    """The only one it looks at (family netdev); "": all."""
    verdicts: tuple[str, ...] = ()
    """Rules that end a packet's way, as nft(8) or iptables(8) lists them, also of chains this one leads to."""
    rules: tuple[str, ...] = ()
    """All its rules in their order."""
    chains: Mapping[str, tuple[str, ...]] = {}
    """Rules of the chains of its table it may jump to, by name."""


class ForeignProgram(msgspec.Struct, frozen=True, kw_only=True):
    """What looks at packets of a device before (or after) the rules of any firewall, and is not ours."""

    device: str
    where: str
    """xdp, ingress or egress."""
    words: str
    """As ip(8) or tc(8) would say."""
    drops: bool = False
    """It is an action that drops; of a program nobody can tell."""


class PeerState(msgspec.Struct, frozen=True, kw_only=True):
    """A peer of a WireGuard device."""

    key: bytes
    """Its public key."""
    endpoint: bytes = b""
    port: int = 0
    allowed: tuple[tuple[bytes, int], ...] = ()
    """Networks whose packets are sent to it and taken from it, as (packed, prefix length)."""


class Conntrack(msgspec.Struct, frozen=True):
    """Room for connections."""

    count: int = 0
    limit: int = 0


class SpaceState(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace."""

    links: Mapping[str, LinkState] = {}
    addresses: tuple[AddressState, ...] = ()
    routes: tuple[RouteState, ...] = ()
    rules: tuple[RuleState, ...] = ()
    neighbours: tuple[NeighbourState, ...] = ()
    fdb: tuple[FdbState, ...] = ()
    sysctls: Mapping[str, str] = {}
    """By dotted name: forwarding, rp_filter, bridge-nf-call and the others that decide over packets."""
    hooks: tuple[ForeignHook, ...] = ()
    programs: tuple[ForeignProgram, ...] = ()
    conntrack: Conntrack = Conntrack()
    listening: tuple[tuple[str, bytes, int], ...] | None = None
    """Sockets that take new packets: protocol, packed address (zeros: any), port. None: not known."""

    def of(self, device: str) -> tuple[AddressState, ...]:
        """Addresses of a device."""
        return tuple(item for item in self.addresses if item.device == device)


class PodPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A pod and where it hangs."""

    name: str
    """``namespace/name``."""
    node: str
    addresses: tuple[bytes, ...] = ()
    interface: str = "eth0"
    host_interface: str = ""
    """The node's end of its veth; "" for pods without one."""
    bridge: str = ""


class NodePart(msgspec.Struct, frozen=True, kw_only=True):
    """What one node knows of itself: what its agent answers, or what is read for it in a lab."""

    name: str
    addresses: tuple[bytes, ...] = ()
    """Underlay addresses peers send to."""
    underlay: str = ""
    """Name of the underlay's interface."""
    backend: str = ""
    actual: Mapping[str, SpaceState] = {}
    """By space: the node's own (``NODE``) and its pods'."""
    wanted: Mapping[str, SpaceState] = {}
    """The same as the agent wants them; {}: no agent answers."""
    pods: tuple[PodPlace, ...] = ()
    agent: str = ""
    """Why the agent does not answer or is not ready; "" when it is."""
    lease: str = ""
    """Why it is no member of the network (its lease has expired); "" when it is, or nobody knows."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that a trace goes by."""

    nodes: Mapping[str, NodePart] = {}
    pods: Mapping[str, PodPlace] = {}
    silent: Mapping[str, str] = {}
    """Nodes nothing is known of, with the reason."""

    @property
    def as_wanted(self) -> World:
        """The same with the states that agents want in the place of the actual ones, where they are known."""
        nodes = {
            name: msgspec.structs.replace(part, actual={**part.actual, **part.wanted})
            for name, part in self.nodes.items()
        }
        return msgspec.structs.replace(self, nodes=nodes)

    def owner(self, address: bytes) -> tuple[str, str] | None:
        """Node and space an address belongs to; None when nobody's."""
        for pod in self.pods.values():
            if address in pod.addresses:
                return pod.node, pod.name
        for node in self.nodes.values():
            if address in node.addresses:
                return node.name, NODE
        for node in self.nodes.values():
            state = node.actual.get(NODE)
            if state is not None and any(item.address == address for item in state.addresses):
                return node.name, NODE
        return None
