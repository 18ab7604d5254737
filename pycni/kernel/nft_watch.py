"""Tells when somebody changed one of our nftables tables: a wake-up, not the truth.

The kernel sends every change of the ruleset to the multicast group NFNLGRP_NFTABLES; all we want to know is whether
a table of ours was named. What changed is found by listing. Our own transactions are told too, with the port of the
socket they came by (nlmsg_pid): those of sockets we know are passed over.

    nlmsghdr type: u8 message | u8 subsystem (10)    nfgenmsg: u8 family | u8 version | u16 resource
                                                       (include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h)
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection

from pycni.closing import Closing
from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, SOL_NETLINK
from pycni.wire.netlink import MalformedError, parse_attrs, split, text

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWGEN = 15
NFTA_TABLE = 1
"""Attribute 1 is the table's name in messages about tables, chains, rules, sets, elements and objects alike."""


class NftWatch(Closing):
    """A non-blocking socket in the namespace it was made in; give it to an event loop's ``add_reader``."""

    def __init__(self, tables: Collection[str], own_port: Callable[[], int | None] = lambda: None) -> None:
        """``own_port``: of the socket whose changes need no look. Raises KernelError on a kernel without nftables."""
        self._tables = frozenset(tables)
        self._own_port = own_port
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._sock = socket.socket(socket.AF_NETLINK, flags, NETLINK_NETFILTER)
        except OSError as exc:
            raise KernelError(
                exc.errno or errno.EIO, "watch nftables", detail="is it in this kernel?"
            ) from exc
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        except OSError as exc:
            self._sock.close()
            raise KernelError(exc.errno or 0, "watch nftables") from exc

    def fileno(self) -> int:
        """File descriptor, for the event loop."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def drain(self) -> bool:
        """Take all messages there are. Whether one of our tables was named, or messages were lost."""
        named = False
        while True:
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                return named
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise KernelError(
                        exc.errno or 0, "watch nftables", detail=os.strerror(exc.errno or 0)
                    ) from exc
                named = True
                continue
            named = named or names_table(data, self._tables, self._own_port())


def names_table(data: bytes, tables: Collection[str], own_port: int | None = None) -> bool:
    """Whether a datagram of nftables' events names one of the tables; what cannot be read counts as naming it.

    What came by the socket ``own_port`` does not count.
    """
    try:
        for message in split(data):
            subsystem, what = message.kind >> 8, message.kind & 0xFF
            if subsystem != NFNL_SUBSYS_NFTABLES or what == NFT_MSG_NEWGEN or message.port == own_port:
                continue
            if text(parse_attrs(message.payload, 4).get(NFTA_TABLE, b"")) in tables:
                return True
    except MalformedError:
        return True
    return False
