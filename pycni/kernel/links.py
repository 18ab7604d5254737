"""Devices of this namespace by their names."""

from __future__ import annotations

import errno

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import rtlink
from pycni.wire.netlink import Message


def look_up(sock: NetlinkSocket, name: str) -> Message | None:
    """RTM_NEWLINK of a device; None when there is none of that name. Raises KernelError."""
    try:
        [reply] = sock.request(rtlink.get_link(name=name), "find link", name)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return reply
