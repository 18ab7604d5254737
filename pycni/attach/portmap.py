"""Capability ``portMappings``: from what the runtime asks for to entries of the node's port tables.

Life: ``compile_attachment`` makes the entries, ``kernel/podnft`` keeps them as elements of two maps per family,
(protocol . port) and (host address . protocol . port), each to (pod address . port). The number of rules does
not depend on the number of pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.cni import PortMapping
from pycni.model.family import Family, show

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
"""IANA protocol numbers by the capability's names."""
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class HostPort(NamedTuple):
    """One port of the node that leads to a pod."""

    family: Family
    host_ip: bytes | None
    """Address of the node this is for; None: every local address."""
    protocol: int
    port: int
    address: bytes
    """The pod's address."""
    target_port: int

    def text(self) -> str:
        """``tcp 0.0.0.0:8080 -> 10.1.2.3:80``."""
        return f"{self.place()} -> {_join(show(self.address), self.target_port)}"

    def place(self) -> str:
        """``tcp 0.0.0.0:8080``: what a second pod cannot have."""
        host = show(self.host_ip if self.host_ip is not None else bytes(len(self.address)))
        return f"{PROTOCOL_NAMES[self.protocol]} {_join(host, self.port)}"


def host_ports(
    mappings: Sequence[PortMapping], addresses: Sequence[tuple[Family, bytes]]
) -> tuple[HostPort, ...]:
    """Entries for one pod: each mapping once per family it is meant for, to the pod's first address of it.

    No host address means both families, ``0.0.0.0`` and ``::`` every address of theirs. A mapping for a family
    the pod has no address in yields nothing: runtimes send both wildcards to pods of one family.
    """
    first: dict[Family, bytes] = {}
    for family, packed in addresses:
        first.setdefault(family, packed)
    entries: dict[HostPort, None] = {}
    for mapping in mappings:
        for family, packed in first.items():
            host = mapping.host_ip
            if host is not None and host.version != (4 if family is Family.V4 else 6):
                continue
            only = None if host is None or host.is_unspecified else host.packed
            number = PROTOCOLS[mapping.protocol]
            entry = HostPort(family, only, number, mapping.host_port, packed, mapping.container_port)
            entries[entry] = None
    return tuple(entries)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
