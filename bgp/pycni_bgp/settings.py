"""What the cluster's administrator wants of BGP, beside what annotations say. Pure.

Names are those of kube-router's flags where it has one (its user guide, ``--help``).
"""

from __future__ import annotations

import msgspec

from pycni.model.family import Network
from pycni_bgp.annotations import PeerWish
from pycni_bgp.model import PRIVATE_ASN, Secret


class OspfSettings(msgspec.Struct, frozen=True, kw_only=True):
    """OSPF version 2 for IPv4 and 3 for IPv6 (RFC 2328, 5340) beside BGP or in its place."""

    area: str = "0.0.0.0"
    interfaces: tuple[str, ...] = ()
    """Where to look for neighbours; empty: the external interface."""
    hello_s: int = 10
    dead_s: int = 40
    password: Secret | None = None
    """For MD5 authentication (RFC 2328, D.3) of version 2; version 3 has none here."""


class BgpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one node; equal on all of them."""

    asn: int = PRIVATE_ASN
    """cluster-asn: of nodes whose annotation names none."""
    full_mesh: bool = True
    """nodes-full-mesh: sessions with all nodes, whatever their AS; otherwise with those of the same AS only."""
    internal: bool = True
    """enable-ibgp: sessions between nodes at all."""
    peers: tuple[PeerWish, ...] = ()
    """peer-router-*: routers outside for every node. With any of them, annotations ``peers`` are not looked at."""
    multihop: int = 0
    """peer-router-multihop-ttl: how far routers outside may be; 0: next door."""
    ttl_security: bool = False
    """peer-router-ttl-security: RFC 5082 with routers outside."""
    pod_cidrs: bool = True
    """advertise-pod-cidr."""
    cluster_ips: bool = False
    """advertise-cluster-ip; Services may say otherwise by annotation, as with the next two."""
    external_ips: bool = False
    """advertise-external-ip."""
    load_balancer_ips: bool = False
    """advertise-loadbalancer-ip."""
    next_hop_self: bool = True
    """override-nexthop: what is learned outside is handed to other nodes with this node as the next hop."""
    graceful: bool = True
    """bgp-graceful-restart."""
    restart_s: int = 90
    """bgp-graceful-restart-time: how long neighbours keep routes without a session."""
    hold_s: int = 90
    """bgp-holdtime."""
    drain_unschedulable: bool = False
    """bgp-drain-unschedulable: a node without scheduling announces no services."""
    service_networks: tuple[Network, ...] = ()
    """Where services' addresses come from: nothing inside is accepted from anybody."""
    ospf: OspfSettings | None = None
