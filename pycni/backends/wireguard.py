"""wireguard: pod packets encrypted and authenticated between nodes (WireGuard), in UDP.

Scheme and wire data are flannel's, so that both kinds of nodes form one network: each node publishes its public key in
its lease, and the subnets of a node are the networks accepted from it and sent to it.

    WireGuard  <PublicKey> endpoint <PublicIP>:<ListenPort> allowed-ips <subnet>
    route      <subnet> dev flannel-wg

``Mode`` says how many devices there are: ``separate`` one per family, each over the underlay of its family; ``ipv4``,
``ipv6`` and ``auto`` one for both, over that underlay, or over IPv4 where both ends have it. The device's address is
the base address of our own subnet, alone (/32, /128).

What differs from flannel: a route per peer instead of one for the whole cluster network, so that what belongs to
nobody is not swallowed by the tunnel.
"""

from __future__ import annotations

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
from pycni.model.fabric import Link, WireguardLink
from pycni.model.family import Address, Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.model.tables import Route
from pycni.model.wireguard import WireguardKey, WireguardPeer, key_text, parse_key

DEVICE, DEVICE_V6 = "flannel-wg", "flannel-wg-v6"


class Wireguard:
    """``Backend.Type`` "wireguard"."""

    name = "wireguard"

    def overhead(self, _family: Family, _conf: NetConf | None = None) -> int:
        """Outer IP (40 at most) + UDP 8 + WireGuard 32: flannel takes the larger one for both families."""
        return 80

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """Public addresses, and the public key in the data of every family."""
        families = _underlays(node, conf)
        if not node.wireguard_key:
            raise ConfigError(f"node {node.name}", "wireguard key", None, "no key was made")
        data = msgspec.json.encode({"PublicKey": key_text(node.following_key or node.wireguard_key)})
        return LeaseAttrs(
            public_ip=node.public_ip if Family.V4 in families else None,
            public_ipv6=node.public_ipv6 if Family.V6 in families else None,
            backend_type=self.name,
            backend_data=data if conf.network is not None else None,
            backend_v6_data=data if conf.network6 is not None else None,
        )

    def links(self, site: Site) -> Mapping[str, Link]:
        """One device, or one per family of our lease with Mode separate."""
        families = [family for family in site.conf.families if site.own.of(family)]
        made: dict[str, Link] = {}
        for name in dict.fromkeys(_device(site.conf, family) for family in families):
            carried = [family for family in families if _device(site.conf, family) == name]
            made[name] = WireguardLink(
                name=name,
                public_key=site.node.wireguard_key,
                port=_port(site.conf, carried[0]),
                mtu=min(overlay_mtu(self, site.node, site.conf, family) for family in carried),
                addresses=tuple(
                    (subnet_of(site.own, family).network_address.packed, family.bits) for family in carried
                ),
            )
        return made

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """A route, and a WireGuard peer that has this family's subnet."""
        found = _data(lease.attrs.data(family))
        public = _endpoint(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        if isinstance(found, Refusal):
            return found
        key, port = found
        if key in {site.node.wireguard_key, site.node.following_key}:
            return Refusal(f"its PublicKey {key_text(key)} is this node's own")
        conf, net = site.conf.backend, subnet_of(lease, family)
        device = _device(site.conf, family)
        peer = WireguardPeer(
            endpoint=public.packed,
            port=port or _port(site.conf, family),
            allowed=((net.network_address.packed, net.prefixlen),),
            keepalive_s=conf.keepalive_s,
            psk=conf.psk.fingerprint if conf.psk is not None else "",
        )
        return PeerEntries(
            routes=((route_key(net), Route(None, device)),),
            wireguard=((WireguardKey(device, key), peer),),
            remote=public.packed,
        )


class _Data(msgspec.Struct, frozen=True):
    """Backend data of a wireguard lease. ``Port`` is in some flannel versions' records only."""

    public_key: str = msgspec.field(name="PublicKey")
    port: int = msgspec.field(name="Port", default=0)


_decoder = msgspec.json.Decoder(_Data)


def _data(data: bytes | None) -> tuple[bytes, int] | Refusal:
    """Public key and port (0: the net-conf's) in a lease's backend data; or what is wrong with it."""
    if data is None:
        return Refusal("it publishes no backend data for this family")
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(f"its backend data {data[:80].decode('utf-8', 'replace')!r}: {str(error)[:200]}")
    key = parse_key(found.public_key)
    if key is None:
        return Refusal(f"its PublicKey {found.public_key[:60]!r} is no WireGuard key")
    if not 0 <= found.port <= 65535:
        return Refusal(f"its Port {found.port} is no UDP port")
    return key, found.port


def published_key(attrs: LeaseAttrs) -> bytes:
    """The public key a lease says, be it that of a node between two backends; b"" when it says none."""
    ours = attrs.by(Wireguard.name)
    if ours is None:
        return b""
    found = _data(ours.backend_data or ours.backend_v6_data)
    return b"" if isinstance(found, Refusal) else found[0]


def _device(conf: NetConf, family: Family) -> str:
    return DEVICE_V6 if conf.backend.mode == "separate" and family is Family.V6 else DEVICE


def _port(conf: NetConf, family: Family) -> int:
    separate6 = conf.backend.mode == "separate" and family is Family.V6
    return conf.backend.listen_port_v6 if separate6 else conf.backend.listen_port


def _underlays(node: Node, conf: NetConf) -> tuple[Family, ...]:
    """Families of the underlay that peers may reach us by. Raises ConfigError when a needed address is missing."""
    mode = conf.backend.mode
    if mode == "separate":
        for family in conf.families:
            own_addresses(node, conf, family)
        return conf.families
    wanted = {"ipv4": (Family.V4,), "ipv6": (Family.V6,)}.get(mode, tuple(Family))
    found = tuple(family for family in wanted if node.public(family) is not None)
    if not found:
        label = wanted[0].label if len(wanted) == 1 else "IPv4 or IPv6"
        raise ConfigError(
            f"underlay {node.underlay.name}", f"{label} address", None, f"Mode {mode} needs one"
        )
    return found


def _endpoint(lease: Lease, family: Family, site: Site, name: str) -> Address | Refusal:
    """Where the peer is to be reached, by ``Mode``."""
    mode = site.conf.backend.mode
    if mode in {"ipv4", "ipv6"}:
        return peer_address(lease, Family.V4 if mode == "ipv4" else Family.V6, site, name)
    if mode == "auto":
        both = site.node.public(Family.V4) is not None and lease.attrs.public(Family.V4) is not None
        return peer_address(lease, Family.V4 if both else Family.V6, site, name)
    return peer_address(lease, family, site, name)
