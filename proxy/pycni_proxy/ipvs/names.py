"""Names and numbers the IPVS data plane leaves in the kernel, and the marks that lead packets to virtual servers. Pure.

Sets carry the names of kube-proxy's IPVS mode where they do its work, and ``PYCNI-*`` where they do ours; IPv6 twins
have a ``6`` in the name and are cut to 31 characters.

A packet mark is 32 bits: ``01`` ours | direct | inside | node port | 27 bits that tell frontends apart. A node port's
27 bits are its protocol and number, so they never collide; a virtual address's are a digest, and ``Marks`` gives the
later of two that collide the next free number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.service import FrontendKey
from pycni.wire.ipset import (
    BITMAP_PORT,
    HASH_IP,
    HASH_IP_PORT,
    HASH_IP_PORT_IP,
    HASH_IP_PORT_NET,
    HASH_NET_PORT,
    NAME_BYTES,
    SetSpec,
)

DEVICE = "pycni-ipvs0"
CHAIN_PREFIX = "PYCNI-"

LOOP_BACK = "KUBE-LOOP-BACK"
CLUSTER_IP = "KUBE-CLUSTER-IP"
EXTERNAL_IP, EXTERNAL_IP_LOCAL = "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"
LOAD_BALANCER, LOAD_BALANCER_LOCAL = "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-LOCAL"
LOAD_BALANCER_FW = "KUBE-LOAD-BALANCER-FW"
SOURCE_CIDR, SOURCE_IP = "KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-LOAD-BALANCER-SOURCE-IP"
NODE_PORT: Mapping[int, str] = {
    TCP: "KUBE-NODE-PORT-TCP",
    UDP: "KUBE-NODE-PORT-UDP",
    SCTP: "KUBE-NODE-PORT-SCTP-HASH",
}
NODE_PORT_LOCAL: Mapping[int, str] = {
    TCP: "KUBE-NODE-PORT-LOCAL-TCP",
    UDP: "KUBE-NODE-PORT-LOCAL-UDP",
    SCTP: "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
}
IPVS_IPS = "KUBE-IPVS-IPS"
"""Every virtual address that is no address of the node itself."""

MARK, INSIDE = "PYCNI-MARK", "PYCNI-INSIDE"
"""Virtual address and port -> packet mark: for everybody; for pods and the node, which overrides."""
NODE_MARK, NODE_INSIDE = "PYCNI-NODE-MARK", "PYCNI-NODE-INSIDE"
"""The same for node ports, whose "address" is each half of all addresses."""
NODE_IP, LOCAL_IP = "PYCNI-NODE-IP", "PYCNI-LOCAL-IP"
"""Addresses at which node ports are served; all addresses of the node. The driver keeps them."""
DIRECT = "PYCNI-DSR"
"""Virtual addresses served by direct server return."""

FRONTENDS = (CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL, LOAD_BALANCER, LOAD_BALANCER_LOCAL)
"""Sets with each virtual address and port we serve: the record by which our virtual servers are known."""
MARKED = (MARK, INSIDE, NODE_MARK, NODE_INSIDE)
"""Sets with each firewall mark we serve."""
DRIVERS_OWN = (NODE_IP, LOCAL_IP)

_TYPES: Mapping[str, tuple[str, bool]] = {
    LOOP_BACK: (HASH_IP_PORT_IP, False),
    **dict.fromkeys(FRONTENDS, (HASH_IP_PORT, False)),
    LOAD_BALANCER_FW: (HASH_IP_PORT, False),
    SOURCE_CIDR: (HASH_IP_PORT_NET, False),
    SOURCE_IP: (HASH_IP_PORT_IP, False),
    NODE_PORT[TCP]: (BITMAP_PORT, False),
    NODE_PORT[UDP]: (BITMAP_PORT, False),
    # Node ports have no address, and bitmap:port knows TCP and UDP only (ip_set_get_ip_port in ip_set_getport.c).
    NODE_PORT[SCTP]: (HASH_NET_PORT, False),
    NODE_PORT_LOCAL[TCP]: (BITMAP_PORT, False),
    NODE_PORT_LOCAL[UDP]: (BITMAP_PORT, False),
    NODE_PORT_LOCAL[SCTP]: (HASH_NET_PORT, False),
    IPVS_IPS: (HASH_IP, False),
    MARK: (HASH_IP_PORT, True),
    INSIDE: (HASH_IP_PORT, True),
    NODE_MARK: (HASH_NET_PORT, True),
    NODE_INSIDE: (HASH_NET_PORT, True),
    NODE_IP: (HASH_IP, False),
    LOCAL_IP: (HASH_IP, False),
    DIRECT: (HASH_IP, False),
}

OURS, OURS_MASK = 0x40000000, 0xC0000000
DIRECT_BIT, INSIDE_BIT, NODE_PORT_BIT = 1 << 29, 1 << 28, 1 << 27
REJECT_MARK, DROP_MARK = OURS | 1, OURS | 2
PROBE_MARK = OURS | 3
"""A virtual server that is made and removed to learn what the kernel can do."""
_FIRST, _SPACE = 16, 1 << 27
_PROTOCOL_BITS = {TCP: 0, UDP: 1, SCTP: 2}


def set_name(base: str, family: Family) -> str:
    """Name of a set in a family: ``KUBE-CLUSTER-IP``, ``KUBE-6-CLUSTER-IP``."""
    if family is Family.V4:
        return base
    head, _, rest = base.partition("-")
    return f"{head}-6-{rest}"[:NAME_BYTES]


def set_specs(family: Family) -> dict[str, SetSpec]:
    """All sets of a family. A bitmap of ports has no family: the kernel lists it as the first one."""
    return {
        set_name(base, family): SetSpec(kind, Family.V4 if kind == BITMAP_PORT else family, marks)
        for base, (kind, marks) in _TYPES.items()
    }


class Marks:
    """Packet marks of frontends: stable for the life of this object, and over restarts but for collisions."""

    def __init__(self) -> None:
        self._by_key: dict[FrontendKey, int] = {}
        self._taken: dict[tuple[Family, int], FrontendKey] = {}

    def of(self, key: FrontendKey) -> int:
        """The mark of a frontend's outer pool; ``| INSIDE_BIT`` is that of its inner one."""
        if not key.address:
            return OURS | NODE_PORT_BIT | _PROTOCOL_BITS[key.protocol] << 16 | key.port
        known = self._by_key.get(key)
        if known is None:
            text = key.address + bytes((key.protocol,)) + key.port.to_bytes(2, "big")
            number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
            number = _FIRST + number % (_SPACE - _FIRST)
            while self._taken.setdefault((key.family, number), key) != key:
                number = number + 1 if number + 1 < _SPACE else _FIRST
            known = self._by_key[key] = OURS | number
        return known
