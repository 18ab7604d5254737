"""Addresses at which node ports are served when they are given as networks: those of the node's own inside them."""

from __future__ import annotations

import ipaddress

from pycni.kernel.netlink import NetlinkSocket
from pycni.model.service import NodeFacts
from pycni.wire import rtnl
from pycni_proxy.ebpf import layout


class NodeAddresses:
    """Reads the addresses of the namespace it was made in."""

    def __init__(self, facts: NodeFacts) -> None:
        self._ranges = facts.node_port_ranges
        self._sock = NetlinkSocket() if self._ranges else None

    def read(self) -> set[bytes] | None:
        """Packed (16 bytes each); None: they are not found here but given by the facts. Raises KernelError."""
        if self._sock is None:
            return None
        found = set()
        for msg in self._sock.dump(rtnl.dump_addresses(), "list addresses"):
            packed = rtnl.parse_address(msg).address
            address = ipaddress.ip_address(packed)
            if address.is_loopback or address.is_link_local:
                continue
            if any(address.version == net.version and address in net for net in self._ranges):
                found.add(layout.pack_address(packed))
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
