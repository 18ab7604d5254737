"""What connection tracking knows of one flow, in one namespace.

Life: ``ConnectionAsker`` keeps a netlink socket in the namespace it was made in; ``ask`` looks one tuple up, which the
kernel finds by a hash, whatever the size of its table.
"""

from __future__ import annotations

import errno

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.family import Family
from pycni.wire import ctnetlink
from pycni.wire.ctnetlink import Entry, Tuple
from pycni.wire.netlink import MalformedError

_NO_ENTRY = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL})
"""Nothing is known, the kernel does not track this protocol, or it tracks nothing at all."""


class ConnectionAsker:
    """One namespace. One thread at a time."""

    def __init__(self) -> None:
        """In the calling thread's namespace. Raises OSError, KernelError."""
        self._sock = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def ask(self, protocol: int, way: Tuple) -> Entry | None:
        """The entry that has this tuple in either direction; None without. Raises KernelError."""
        family = Family.of_packed(way.source)
        try:
            replies = self._sock.request(ctnetlink.request(family, protocol, way), "get connection")
        except KernelError as error:
            if error.errno in _NO_ENTRY:
                return None
            raise
        try:
            return ctnetlink.entry(replies[0].payload) if replies else None
        except MalformedError as exc:
            raise KernelError(errno.EBADMSG, "get connection", "", str(exc)) from exc
