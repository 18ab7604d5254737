"""Address families: the one parameter by which every IPv4/IPv6 pair of functions becomes one function."""

from __future__ import annotations

import enum
import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


class Family(enum.IntEnum):
    """AF_INET and AF_INET6 with the numbers of include/linux/socket.h."""

    V4 = 2
    V6 = 10

    @property
    def bits(self) -> int:
        """Length of an address in bits."""
        return 32 if self is Family.V4 else 128

    @property
    def label(self) -> str:
        """``ipv4`` or ``ipv6``."""
        return "ipv4" if self is Family.V4 else "ipv6"

    @classmethod
    def of(cls, value: Address | Network) -> Family:
        """Family of an address or a network."""
        return cls.V4 if value.version == 4 else cls.V6

    @classmethod
    def of_packed(cls, packed: bytes) -> Family:
        """Family of an address in network byte order (4 or 16 bytes)."""
        return cls.V4 if len(packed) == 4 else cls.V6


FAMILIES = (Family.V4, Family.V6)


def show(packed: bytes) -> str:
    """Text of an address in network byte order (4 or 16 bytes)."""
    return str(ipaddress.ip_address(packed))


def show_mac(mac: bytes) -> str:
    """``aa:bb:cc:dd:ee:ff`` for six bytes."""
    return mac.hex(":")
