"""Peers of WireGuard devices of one namespace, for a trace.

The kernel is asked by generic netlink, wireguard-go by its socket.
"""

from __future__ import annotations

import errno
import os

from pycni.errors import KernelError
from pycni.kernel import wireguard_go
from pycni.kernel.netlink import NETLINK_GENERIC, NetlinkSocket
from pycni.model.space import PeerState
from pycni.wire import wireguard as wire
from pycni.wire.genl import family_request, parse_family

_UNKNOWN = frozenset({errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ECONNREFUSED, errno.EPERM})


def peers(name: str, kind: str, folder: str) -> tuple[PeerState, ...] | None:
    """Of a device; None: it is none of WireGuard, or nobody answers. Raises KernelError.

    ``folder``: where wireguard-go has its sockets; "": it is not asked.
    """
    try:
        if kind == "wireguard":
            found = _by_kernel(name)
        elif kind == "tun" and folder and os.path.exists(os.path.join(folder, f"{name}.sock")):
            found = wireguard_go.read(folder, name)
        else:
            return None
    except KernelError as error:
        if error.errno not in _UNKNOWN:
            raise
        return None
    return tuple(
        PeerState(key=item.public_key, endpoint=item.endpoint, port=item.port, allowed=item.allowed)
        for item in found.peers
    )


def _by_kernel(name: str) -> wire.DeviceInfo:
    with NetlinkSocket(NETLINK_GENERIC) as sock:
        [answer] = sock.request(family_request(wire.FAMILY_NAME), "find netlink family", wire.FAMILY_NAME)
        request = wire.get_device(parse_family(answer), name)
        return wire.parse_device(sock.dump(request, "read WireGuard device", name))
