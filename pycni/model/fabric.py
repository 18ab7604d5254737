"""What the fabric of one node has to look like in the kernel: the output of a backend's ``compile``.

Pure value. ``kernel/fabric`` reads the kernel's side into the same type (only what is ours) and applies the
difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.model.extension import ExtensionKey, ExtensionPeer, extension_text
from pycni.model.family import show
from pycni.model.tables import (
    FdbEntry,
    FdbKey,
    Neighbour,
    NeighbourKey,
    Route,
    RouteKey,
    fdb_text,
    neighbour_text,
    route_text,
)
from pycni.model.udp import UdpKey, UdpPeer, udp_text
from pycni.model.wireguard import WireguardKey, WireguardPeer, key_text, wireguard_text

IPIP, VXLAN, WIREGUARD, WIREGUARD_GO, UDP = "ipip", "vxlan", "wireguard", "tun", "tun"
"""IFLA_INFO_KIND of the devices; those of wireguard-go and of our forwarder are TUN devices."""
UDP_DEVICE = "flannel0"
"""The forwarder's device, by which it is told from wireguard-go's."""


class VxlanLink(msgspec.Struct, frozen=True, kw_only=True):
    """A VTEP device. A change of anything the kernel cannot change in place means delete and create."""

    name: str
    vni: int
    port: int
    """UDP destination port."""
    parent: str
    """Underlay interface (IFLA_VXLAN_LINK)."""
    local: bytes
    """Underlay source address, 4 or 16 bytes."""
    mac: bytes
    mtu: int
    """MTU of this device (overlay MTU)."""
    learning: bool = False
    gbp: bool = False
    addresses: tuple[tuple[bytes, int], ...] = ()
    """Own addresses as (packed, prefix length)."""

    @property
    def text(self) -> str:
        """In the notation of ip-link(8)."""
        return f"link {self.name} type {VXLAN} id {self.vni} dstport {self.port} mtu {self.mtu}"


class IpipLink(msgspec.Struct, frozen=True, kw_only=True):
    """An IPv4-in-IPv4 device without a far end of its own: the gateway of the route is the far end."""

    name: str
    parent: str
    """Underlay interface (IFLA_IPTUN_LINK)."""
    local: bytes
    """Underlay source address, 4 bytes."""
    mtu: int
    addresses: tuple[tuple[bytes, int], ...] = ()
    """Own addresses as (packed, prefix length)."""

    @property
    def text(self) -> str:
        """In the notation of ip-link(8)."""
        return f"link {self.name} type {IPIP} local {show(self.local)} mtu {self.mtu}"


class WireguardLink(msgspec.Struct, frozen=True, kw_only=True):
    """A WireGuard device, of the kernel or of wireguard-go. Its private key is the driver's business."""

    name: str
    public_key: bytes
    port: int
    """UDP port peers send to."""
    mtu: int
    addresses: tuple[tuple[bytes, int], ...] = ()
    """Own addresses as (packed, prefix length)."""

    @property
    def text(self) -> str:
        """In the words of ip-link(8) and wg(8)."""
        words = f"listen-port {self.port} public-key {key_text(self.public_key)} mtu {self.mtu}"
        return f"link {self.name} type {WIREGUARD} {words}"


class UdpLink(msgspec.Struct, frozen=True, kw_only=True):
    """A TUN device whose packets our forwarder carries in UDP."""

    name: str
    port: int
    """UDP port of every node's forwarder."""
    mtu: int
    local: tuple[bytes, ...]
    """Own underlay addresses the forwarder sends from, packed, one per family."""
    public: tuple[bytes, ...]
    """The same as peers know them."""
    psk: str = ""
    """Fingerprint of the pre-shared key, "" for packets as they are."""
    addresses: tuple[tuple[bytes, int], ...] = ()
    """Own addresses as (packed, prefix length)."""

    @property
    def text(self) -> str:
        """In the words of ip-link(8)."""
        words = ",".join(show(address) for address in self.local)
        return f"link {self.name} type udp local {words} port {self.port} mtu {self.mtu}{' psk' * bool(self.psk)}"


Link = VxlanLink | IpipLink | WireguardLink | UdpLink
"""A device of the fabric, which all peers share."""


class FabricState(msgspec.Struct, frozen=True, kw_only=True):
    """Devices and hot tables by which this node reaches its peers' pods."""

    links: Mapping[str, Link] = {}
    routes: Mapping[RouteKey, Route] = {}
    neighbours: Mapping[NeighbourKey, Neighbour] = {}
    fdb: Mapping[FdbKey, FdbEntry] = {}
    wireguard: Mapping[WireguardKey, WireguardPeer] = {}
    udp: Mapping[UdpKey, UdpPeer] = {}
    extension: Mapping[ExtensionKey, ExtensionPeer] = {}
    vtep_peers: frozenset[bytes] = frozenset()
    """Underlay addresses VXLAN is accepted from; meaningful when ``links`` has VXLAN devices."""

    def text(self) -> list[str]:
        """Every entry as a line in the notation of ip(8) and bridge(8), sorted."""
        lines = [link.text for link in self.links.values()]
        lines += [route_text(*item) for item in self.routes.items()]
        lines += [neighbour_text(*item) for item in self.neighbours.items()]
        lines += [fdb_text(*item) for item in self.fdb.items()]
        lines += [wireguard_text(*item) for item in self.wireguard.items()]
        lines += [udp_text(*item) for item in self.udp.items()]
        lines += [extension_text(*item) for item in self.extension.items()]
        return sorted(lines)
