"""What is spoken of in BGP here: prefixes, neighbours, routes and their attributes. Pure, frozen values.

Life: ``settings`` and ``annotations`` make what a node wants; ``neighbours`` who it speaks with; ``rib`` what goes to
whom and what comes of what was learned. An engine turns neighbours and announcements into sessions.

Numbers are those of RFC 4271 (attributes), RFC 1997 and 8092 (communities), RFC 5880 (BFD).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from pycni.model.family import Family, Network, show

PORT = 179
BFD_PORT = 3784
MAX_ASN = 2**32 - 1
PRIVATE_ASN = 64512
"""kube-router's default."""


class Prefix(NamedTuple):
    """A destination."""

    address: bytes
    """4 or 16 bytes, network byte order; no bits beyond ``length``."""
    length: int

    @classmethod
    def of(cls, network: Network) -> Prefix:
        """From a network."""
        return cls(network.network_address.packed, network.prefixlen)

    @classmethod
    def host(cls, address: bytes) -> Prefix:
        """One address."""
        return cls(address, len(address) * 8)

    @property
    def family(self) -> Family:
        """Of the address."""
        return Family.of_packed(self.address)

    def covers(self, other: Prefix) -> bool:
        """Whether ``other`` is within this one, or is it."""
        if len(self.address) != len(other.address) or other.length < self.length:
            return False
        shift = len(self.address) * 8 - self.length
        return int.from_bytes(self.address, "big") >> shift == int.from_bytes(other.address, "big") >> shift

    def __str__(self) -> str:
        return f"{show(self.address)}/{self.length}"


def prefix(text: str) -> Prefix:
    """A prefix by its text. ValueError."""
    return Prefix.of(ipaddress.ip_network(text))


WELL_KNOWN: Mapping[str, tuple[int, int]] = {
    "internet": (0, 0),
    "graceful-shutdown": (65535, 0),
    "no-export": (65535, 65281),
    "no-advertise": (65535, 65282),
    "local-as": (65535, 65283),
    "no-peer": (65535, 65284),
}
"""Communities with names (RFC 1997, 3765, 8326)."""


def community_numbers(text: str) -> tuple[int, ...]:
    """Two numbers, three of a large one."""
    return WELL_KNOWN.get(text) or tuple(int(part) for part in text.split(":"))


class Secret:
    """A password. It shows itself nowhere and has no form in JSON; ``reveal`` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The password itself."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


class Bfd(msgspec.Struct, frozen=True, kw_only=True):
    """Bidirectional forwarding detection with a neighbour (RFC 5880); kube-router's names and defaults."""

    port: int = BFD_PORT
    multiplier: int = 3
    receive_ms: int = 1000
    """Required minimum interval."""
    send_ms: int = 1000
    """Desired minimum interval."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """One session this node is to have."""

    address: bytes
    asn: int
    local_asn: int
    origin: str
    """Why: ``node b``, ``setting peer-router-ips``, ``annotation kube-router.io/peers``."""
    node: str = ""
    """The node's name, when it is one of this cluster."""
    port: int = PORT
    local_address: bytes = b""
    """"" leaves it to the kernel."""
    password: Secret | None = None
    """TCP MD5 signature, RFC 2385."""
    hops: int = 1
    """How many routers away at most."""
    ttl_security: bool = False
    """Expect packets from no farther than ``hops`` (RFC 5082)."""
    bfd: Bfd | None = None
    client: bool = False
    """It is our route reflector's client (RFC 4456)."""

    @property
    def internal(self) -> bool:
        """A neighbour of iBGP."""
        return self.asn == self.local_asn

    @property
    def family(self) -> Family:
        """Of the session's addresses; routes of both families may cross it."""
        return Family.of_packed(self.address)

    def __str__(self) -> str:
        return f"{show(self.address)} AS{self.asn}"


Origin = Literal["igp", "egp", "incomplete"]
ORIGINS: tuple[Origin, ...] = ("igp", "egp", "incomplete")
"""In the order of preference (RFC 4271, 9.1.2.2 b)."""


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """Path attributes of a route."""

    next_hop: bytes
    as_path: tuple[int, ...] = ()
    origin: Origin = "igp"
    local_pref: int | None = None
    """iBGP only; None counts as 100."""
    med: int | None = None
    """None counts as 0."""
    communities: tuple[str, ...] = ()
    """``64512:100``, ``no-export``; large ones with two colons."""
    originator: bytes = b""
    """Router id of the node a reflected route comes from (RFC 4456)."""
    clusters: tuple[bytes, ...] = ()
    """Reflectors' cluster ids it has passed."""


class Learned(NamedTuple):
    """A route as a neighbour announced it."""

    neighbour: bytes
    router_id: bytes
    """The neighbour's, four bytes."""
    prefix: Prefix
    attributes: Attributes


class Local(NamedTuple):
    """A destination this node announces, and for what."""

    kind: Literal["pod CIDR", "ClusterIP", "ExternalIP", "LoadBalancer"]
    owner: str
    """``node a``, ``Service a/b``."""
