"""A pod's attachment to one network as the node knows it.

Life: made by CNI ADD before the kernel is touched (state ``pending``), ``ready`` once the interface is up,
``dying`` from the moment DEL has cut it off until its link is gone and its addresses are released. Persisted
by ``ipam/journal`` so that DEL, CHECK and the collector work after a restart, without netns or prevResult.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface
from typing import Literal, NamedTuple

import msgspec

from pycni.model.attachment import AttachmentKind


class Owner(NamedTuple):
    """What a CNI attachment is identified by (spec section 2: network, container id, interface)."""

    network: str
    container_id: str
    ifname: str


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment. ``netns_inode`` with ``boot_id`` say which namespace it is. A number can be used
    again once its namespace is gone, so the collector looks for more than that (``ipam/collect``).
    """

    network: str
    container_id: str
    ifname: str
    state: Literal["pending", "ready", "dying"] = "pending"
    netns: str = ""
    """Path as the runtime gave it; informative, may be empty."""
    netns_inode: int = 0
    boot_id: str = ""
    attachment: AttachmentKind = AttachmentKind.BRIDGE
    host_ifname: str = ""
    mac: str = ""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    data_dir: str = ""
    """IPAM dataDir of our own reservations; empty when another plugin did the IPAM."""
    created: float = 0.0
    """Seconds since the epoch."""
    conf: bytes = b""
    """The network configuration of ADD (stdin without prevResult) for clean-up without the runtime's help."""

    @property
    def owner(self) -> Owner:
        """The attachment's identity."""
        return Owner(self.network, self.container_id, self.ifname)
