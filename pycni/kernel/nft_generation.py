"""Tells that some transaction changed nftables of this namespace, whoever's and whatever it was: a wake-up.

Unlike ``nft_watch`` it takes one message per transaction, the new generation's number (NFT_MSG_NEWGEN); the kernel
drops the messages about what changed before they cost anything, so a transaction of 50,000 elements is one wake-up too.

    nlmsghdr: u32 length | u16 type (10 << 8 | 15) | ...       (include/uapi/linux/netfilter/nf_tables.h)
"""

from __future__ import annotations

import errno
import socket

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, SOL_NETLINK
from pycni.kernel.nft_watch import (
    NETLINK_ADD_MEMBERSHIP,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTABLES,
    NFT_MSG_NEWGEN,
)
from pycni.kernel.sockfilter import ACCEPT, DROP, JUMP_EQUAL, LOAD_HALF, as_loaded, attach

_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
_ONLY_GENERATIONS = [(LOAD_HALF, 0, 0, 4), (JUMP_EQUAL, 0, 1, as_loaded("H", _NEWGEN)), ACCEPT, DROP]


class NftGeneration:
    """A non-blocking socket in the namespace it was made in; give it to an event loop's ``add_reader``."""

    def __init__(self) -> None:
        """Raises KernelError on a kernel without nftables."""
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._sock = socket.socket(socket.AF_NETLINK, flags, NETLINK_NETFILTER)
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, "watch nftables' generation") from exc
        try:
            attach(self._sock, _ONLY_GENERATIONS)
            self._sock.bind((0, 0))
            self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as exc:
            self._sock.close()
            raise KernelError(exc.errno or errno.EIO, "watch nftables' generation") from exc

    def fileno(self) -> int:
        """File descriptor, for the event loop."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def drain(self) -> bool:
        """Take all messages there are; whether there was one (or some were lost)."""
        seen = False
        while True:
            try:
                self._sock.recv(1 << 12)
            except BlockingIOError:
                return seen
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise KernelError(exc.errno or errno.EIO, "watch nftables' generation") from exc
            seen = True
