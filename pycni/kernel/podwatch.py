"""Hearing about a few devices among thousands: has anything about them changed since last asked?

A route socket subscribed to links and addresses, with a classic BPF filter that lets pass only messages about the
devices of interest: their index stands at the same place in link and address messages.

    nlmsghdr (16 bytes) | ifinfomsg: family, pad, type:16, index:32 | ...
                        | ifaddrmsg: family, prefix, flags, scope, index:32 | ...
"""

from __future__ import annotations

import socket

from pycni.kernel.netlink import SOL_NETLINK
from pycni.kernel.sockfilter import ACCEPT, DROP, JUMP_EQUAL, LOAD_WORD, as_loaded, attach

_GROUPS = (1, 5, 9)
"""RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR (include/uapi/linux/rtnetlink.h)."""
_ADD_MEMBERSHIP = 1
_INDEX_OFFSET = 20
_MAX_DEVICES = 200
"""A jump of classic BPF reaches 255 instructions."""


class DeviceWatch:
    """Tells whether devices changed. One thread at a time."""

    def __init__(self) -> None:
        """Subscribe in the calling thread's namespace; nothing is of interest yet."""
        self._devices: set[int] = set()
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_NETLINK, kind, 0)
        try:
            self._filter()
            # Without an address the kernel takes the socket for the origin of its own messages and skips it.
            self._sock.bind((0, 0))
            for group in _GROUPS:
                self._sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def listen(self, *devices: int) -> bool:
        """Be interested in these indexes too; True when one is new (its past is unknown, then)."""
        new = set(devices) - self._devices
        if new:
            self._devices |= new
            if len(self._devices) > _MAX_DEVICES:
                # Indexes of devices that are long gone; those in use are named again.
                self._devices = set(devices)
            self._filter()
        return bool(new)

    def changed(self) -> bool:
        """Whether there was any message since the last call; lost messages count."""
        found = False
        while True:
            try:
                self._sock.recv(1)
            except BlockingIOError:
                return found
            except OSError:
                # ENOBUFS: some were lost, which says the same.
                return True
            found = True

    def _filter(self) -> None:
        devices = sorted(self._devices)
        program = [(LOAD_WORD, 0, 0, _INDEX_OFFSET)]
        for position, device in enumerate(devices):
            program.append((JUMP_EQUAL, len(devices) - position, 0, as_loaded("I", device)))
        attach(self._sock, [*program, DROP, ACCEPT])
