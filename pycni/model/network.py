"""The cluster's network configuration: flannel's net-conf JSON, decoded and checked by ``wire/netconf``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

from pycni.model.extension import Commands
from pycni.model.family import Address, Family, Network
from pycni.model.wireguard import Secret


class BackendConf(msgspec.Struct, frozen=True, kw_only=True):
    """The ``Backend`` object. Keys of one backend type are refused on another one."""

    type: str = "vxlan"
    vni: int = 1
    port: int = 8472
    """UDP port of vxlan and udp; flannel's 0 means the kernel's default, 8472, and udp's, 8285."""
    mtu: int = 0
    """Size of packets on the underlay: the overlay device gets this minus the overhead. 0: the underlay's MTU."""
    direct_routing: bool = False
    gbp: bool = False
    learning: bool = False
    psk: Secret | None = None
    """Pre-shared key of wireguard, and of udp: the packets are encrypted."""
    listen_port: int = 51820
    listen_port_v6: int = 51821
    """UDP port of the device for IPv6 when there is one per family."""
    mode: str = "separate"
    """WireGuard's devices: ``separate`` per family; ``ipv4``, ``ipv6`` or ``auto``: one, over that underlay."""
    keepalive_s: int = 0
    commands: Commands = Commands()
    """What extension runs."""


class NetConf(msgspec.Struct, frozen=True, kw_only=True):
    """Cluster-wide settings. At least one family is enabled; lengths and bounds are consistent when decoded."""

    network: IPv4Network | None = None
    network6: IPv6Network | None = None
    subnet_len: int = 24
    subnet_min: IPv4Address | None = None
    """First subnet to hand out (its network address)."""
    subnet_max: IPv4Address | None = None
    subnet6_len: int = 64
    subnet6_min: IPv6Address | None = None
    subnet6_max: IPv6Address | None = None
    backend: BackendConf = BackendConf()

    def of(self, family: Family) -> Network | None:
        """The cluster network of one family, None when the family is off."""
        return self.network if family is Family.V4 else self.network6

    def length(self, family: Family) -> int:
        """Prefix length of one node's subnet."""
        return self.subnet_len if family is Family.V4 else self.subnet6_len

    def bounds(self, family: Family) -> tuple[Address, Address]:
        """Network addresses of the first and the last subnet to hand out."""
        low, high = (
            (self.subnet_min, self.subnet_max)
            if family is Family.V4
            else (self.subnet6_min, self.subnet6_max)
        )
        assert low is not None, f"{family.label} is off"
        assert high is not None, f"{family.label} is off"
        return low, high

    @property
    def families(self) -> tuple[Family, ...]:
        """The enabled families, IPv4 first."""
        return tuple(family for family in Family if self.of(family) is not None)
