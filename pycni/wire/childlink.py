"""rtnetlink messages of children of an uplink in another namespace: macvlan and ipvlan. Pure.

A child is made in the pod's namespace at once, with its parent in the sender's. It is deleted from the node's side by
the number the node's namespace has for the pod's (IFLA_TARGET_NETNSID): no descriptor of the namespace is needed.
"""

from __future__ import annotations

import struct

from pycni.model.attachment import AttachmentKind
from pycni.wire.netlink import NLM_F_CREATE, NLM_F_EXCL, attr, attr_str, attr_u32, message, nested
from pycni.wire.podlink import find_attr
from pycni.wire.rtlink import (
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    ifinfo,
)

IFLA_TARGET_NETNSID = 46
IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE = 1, 4
IFLA_IPVLAN_MODE, IPVLAN_MODE_L2 = 1, 0
_S32, _U16 = struct.Struct("=i"), struct.Struct("=H")
_DATA = {
    AttachmentKind.MACVLAN: attr_u32(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE),
    AttachmentKind.IPVLAN: attr(IFLA_IPVLAN_MODE, _U16.pack(IPVLAN_MODE_L2)),
}
"""Children of one parent reach each other, in both."""


def create_child(
    kind: AttachmentKind, name: str, parent: int, *, netns_fd: int, mac: bytes = b"", mtu: int = 0
) -> bytes:
    """Make a child, down, in another namespace. ``mac`` empty: the kernel's choice; ``mtu`` 0: the parent's."""
    body = (
        ifinfo()
        + attr_str(IFLA_IFNAME, name)
        + attr_u32(IFLA_LINK, parent)
        + attr_u32(IFLA_NET_NS_FD, netns_fd)
        + (attr(IFLA_ADDRESS, mac) if mac else b"")
        + (attr_u32(IFLA_MTU, mtu) if mtu else b"")
        + nested(IFLA_LINKINFO, attr_str(IFLA_INFO_KIND, str(kind)), nested(IFLA_INFO_DATA, _DATA[kind]))
    )
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def peer_namespace(payload: bytes) -> int | None:
    """Number of the namespace a veth's other end is in, of an RTM_NEWLINK payload; None: in the same."""
    found = find_attr(payload, IFLA_LINK_NETNSID)
    return int(_S32.unpack(found)[0]) if found else None


def get_there(nsid: int, name: str) -> bytes:
    """Ask for a link of another namespace."""
    body = ifinfo() + attr_str(IFLA_IFNAME, name) + attr(IFLA_TARGET_NETNSID, _S32.pack(nsid))
    return message(RTM_GETLINK, 0, body)


def delete_there(nsid: int, ifindex: int) -> bytes:
    """Delete a link of another namespace."""
    return message(RTM_DELLINK, 0, ifinfo(ifindex) + attr(IFLA_TARGET_NETNSID, _S32.pack(nsid)))
