"""Which module serves which kind of device of the fabric."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.kernel import tunnel_ipip, vtep
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.served import Served
from pycni.kernel.tunnel import Lost, PutSysctl
from pycni.model.fabric import IPIP, VXLAN, IpipLink, Link, VxlanLink
from pycni.wire import rtlink

KINDS = frozenset({VXLAN, IPIP})
"""IFLA_INFO_KIND of devices that need no driver with a state; the others are ``kernel/served``'s."""


def read(sock: NetlinkSocket, link: rtlink.Link, names: Mapping[int, str]) -> Link:
    """A device of one of ``KINDS`` as a value; ``names`` are the links by index. Raises KernelError."""
    return vtep.read(sock, link, names) if link.kind == VXLAN else tunnel_ipip.read(sock, link, names)


def same(desired: Link, actual: Link) -> bool:
    """Whether nothing is to be done; the order of addresses is no difference."""
    return msgspec.structs.replace(desired, addresses=tuple(sorted(desired.addresses))) == actual


def ensure(
    sock: NetlinkSocket,
    served: Mapping[type, Served],
    desired: Link,
    actual: Link | None,
    put_sysctl: PutSysctl,
) -> Lost:
    """Make the device what it should be; returns what has to be replayed on it. Raises KernelError.

    ``served``: who makes the devices of these types.
    A device of ours that has the name and another kind goes first.
    """
    if actual is not None and type(actual) is not type(desired):
        sock.request(rtlink.del_link(name=desired.name), "delete link", desired.name)
        actual = None
    if isinstance(desired, VxlanLink):
        assert actual is None or isinstance(actual, VxlanLink)
        return vtep.ensure(sock, desired, actual, put_sysctl)
    if type(desired) in served:
        return served[type(desired)].ensure(sock, desired, actual, put_sysctl)
    assert isinstance(desired, IpipLink), f"nobody makes {type(desired).__name__}"
    assert actual is None or isinstance(actual, IpipLink)
    return tunnel_ipip.ensure(sock, desired, actual, put_sysctl)
