"""vxlan: pod packets in UDP, one device per family, everything known beforehand (no flooding, no learning).

Scheme and wire data are flannel's, so that both kinds of nodes form one network. Per peer three entries:

    neighbour  <base of the peer's subnet> -> VtepMAC     (the peer's VTEP has that address)
    FDB        VtepMAC -> PublicIP                        (where to send the frame)
    route      <subnet> via <base> dev flannel.<VNI> onlink

With DirectRouting a peer on our own link gets a plain route via its PublicIP instead. The device's address is
the base address of our own subnet, alone (/32, /128).

What differs from flannel: an IPv6 underlay header is 20 bytes longer, so IPv6 pays 70 bytes where flannel takes
50 off for both families; with 50 a full-sized packet would not fit and be cut into fragments. Nodes of both
kinds still understand each other: the MTU limits only what a node sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from pycni.backends.base import (
    PeerEntries,
    Refusal,
    Site,
    overlay_mtu,
    own_addresses,
    peer_address,
    route_key,
    subnet_of,
)
from pycni.errors import ConfigError
from pycni.model.fabric import Link, VxlanLink
from pycni.model.family import Family, show_mac
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import FdbEntry, FdbKey, Neighbour, NeighbourKey, Route

_PREFIXES = {Family.V4: ("flannel.", "fl."), Family.V6: ("flannel-v6.", "fl-v6.")}
IFNAME_LENGTH = 15
"""IFNAMSIZ without the closing NUL."""


def device_name(family: Family, vni: int) -> str:
    """Flannel's name of the VTEP; a shorter one where flannel's would not fit (VNI has up to 8 digits)."""
    usual, short = _PREFIXES[family]
    name = f"{usual}{vni}"
    return name if len(name) <= IFNAME_LENGTH else f"{short}{vni}"


class Vxlan:
    """``Backend.Type`` "vxlan"."""

    name = "vxlan"

    def overhead(self, family: Family, _conf: NetConf | None = None) -> int:
        """Outer IP (20 or 40) + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348 section 5)."""
        return 50 if family is Family.V4 else 70

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """Public addresses, and per family the VNI and our VTEP's MAC."""
        data = {}
        for family in conf.families:
            own_addresses(node, conf, family)
            mac = _own_mac(node, conf, family)
            data[family] = msgspec.json.encode({"VNI": conf.backend.vni, "VtepMAC": show_mac(mac)})
        return LeaseAttrs(
            public_ip=node.public_ip if Family.V4 in data else None,
            public_ipv6=node.public_ipv6 if Family.V6 in data else None,
            backend_type=self.name,
            backend_data=data.get(Family.V4),
            backend_v6_data=data.get(Family.V6),
        )

    def links(self, site: Site) -> Mapping[str, Link]:
        """One VTEP per family of our lease."""
        return {
            link.name: link
            for link in (_link(self, site, family) for family in site.conf.families if site.own.of(family))
        }

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """Neighbour, forwarding entry and route; or a plain route with DirectRouting on our own link."""
        public = peer_address(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        mac = vtep_mac(lease.attrs.data(family), site.conf.backend.vni)
        if isinstance(mac, Refusal):
            return mac
        if mac == _own_mac(site.node, site.conf, family):
            return Refusal(f"its VtepMAC {show_mac(mac)} is this node's own")
        net = subnet_of(lease, family)
        underlay, remote = site.node.underlay, public.packed
        if site.conf.backend.direct_routing and underlay.reaches_directly(public):
            return PeerEntries(routes=((route_key(net), Route(remote, underlay.name)),), remote=remote)
        device, base = device_name(family, site.conf.backend.vni), net.network_address.packed
        return PeerEntries(
            routes=((route_key(net), Route(base, device, onlink=True)),),
            neighbours=((NeighbourKey(device, base), Neighbour(mac)),),
            fdb=((FdbKey(device, mac), FdbEntry(remote)),),
            remote=remote,
        )


class _Data(msgspec.Struct, frozen=True):
    """Backend data of a vxlan lease. Old flannel versions wrote no VNI."""

    vtep_mac: str = msgspec.field(name="VtepMAC")
    vni: int | None = msgspec.field(name="VNI", default=None)


_decoder = msgspec.json.Decoder(_Data)
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


def vtep_mac(data: bytes | None, vni: int) -> bytes | Refusal:
    """The VTEP's MAC in a lease's backend data, six bytes; or what is wrong with the data."""
    if data is None:
        return Refusal("it publishes no backend data for this family")
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(f"its backend data {_shown(data)}: {str(error)[:200]}")
    if found.vni is not None and found.vni != vni:
        return Refusal(f"its VNI is {found.vni}, this network's is {vni}")
    mac = bytes.fromhex(found.vtep_mac.replace(":", "")) if _MAC.fullmatch(found.vtep_mac) else b""
    if not any(mac) or mac[0] & 1:
        return Refusal(f"its VtepMAC {found.vtep_mac[:40]!r} is no unicast MAC address")
    return mac


def _shown(data: bytes) -> str:
    return repr(data[:80].decode("utf-8", "replace"))


def _own_mac(node: Node, conf: NetConf, family: Family) -> bytes:
    name = device_name(family, conf.backend.vni)
    if name not in node.macs:
        raise ConfigError(f"node {node.name}", "macs", sorted(node.macs), f"no MAC was chosen for {name}")
    return node.macs[name]


def _link(backend: Vxlan, site: Site, family: Family) -> VxlanLink:
    _, local = own_addresses(site.node, site.conf, family)
    conf = site.conf.backend
    return VxlanLink(
        name=device_name(family, conf.vni),
        vni=conf.vni,
        port=conf.port,
        parent=site.node.underlay.name,
        local=local.packed,
        mac=_own_mac(site.node, site.conf, family),
        mtu=overlay_mtu(backend, site.node, site.conf, family),
        learning=conf.learning,
        gbp=conf.gbp,
        addresses=((subnet_of(site.own, family).network_address.packed, family.bits),),
    )
