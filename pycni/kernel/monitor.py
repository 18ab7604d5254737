"""Changes of links, addresses, routes and neighbours as the kernel announces them, for an asyncio loop.

Life: the socket's multicast groups deliver every change of the namespace, our own among them; ``Monitor`` decodes
each to an ``Event`` in the terms of the hot tables and hands the events of one wake-up to a callback together. Events
only speed things up: when the kernel had to drop some (ENOBUFS), ``LOST`` is delivered and the receiver looks at
everything again.

Two kinds of messages are dropped in the kernel, because a node with many pods is full of them and none is ours to
repair here: links with a pod leg's name, and routes that the kernel itself keeps.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from pycni.kernel.netlink import NETLINK_ROUTE
from pycni.kernel.sockfilter import (
    ACCEPT,
    DROP,
    JUMP_EQUAL,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_WORD,
    as_loaded,
    attach,
)
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import MalformedError, Message, split

_GROUPS = (1, 3, 5, 7, 9, 11)
"""RTNLGRP_ LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_NETLINK_ADD_MEMBERSHIP = 1
_SOL_NETLINK = 270
_RCVBUFFORCE = 33
BUFFER_BYTES = 8 << 20
DATAGRAMS_PER_WAKEUP = 256

Info = rtlink.Link | rtnl.AddressInfo | rtnl.RouteInfo | rtnl.NeighbourInfo


_LEG_NAME_BYTES = 16
"""``veth``, eleven hexadecimal digits (``attach/names``) and the closing zero: no other link is likely to have that."""
_RTPROT_KERNEL = 2
_UNINTERESTING = [
    (LOAD_HALF, 0, 0, 4),  # nlmsg_type
    (JUMP_EQUAL, 4, 0, as_loaded("H", rtlink.RTM_NEWLINK)),
    (JUMP_EQUAL, 3, 0, as_loaded("H", rtlink.RTM_DELLINK)),
    (JUMP_EQUAL, 6, 0, as_loaded("H", rtnl.RTM_NEWROUTE)),
    (JUMP_EQUAL, 5, 0, as_loaded("H", rtnl.RTM_DELROUTE)),
    ACCEPT,
    (LOAD_WORD, 0, 0, 32),  # a link's first attribute: length and type
    (JUMP_EQUAL, 0, 4, as_loaded("HH", _LEG_NAME_BYTES + 4, rtlink.IFLA_IFNAME)),
    (LOAD_WORD, 0, 0, 36),
    (JUMP_EQUAL, 3, 2, int.from_bytes(b"veth", "big")),
    (LOAD_BYTE, 0, 0, 21),  # rtm_protocol
    (JUMP_EQUAL, 1, 0, _RTPROT_KERNEL),
    ACCEPT,
    DROP,
]


class Event(NamedTuple):
    """One change. ``info`` tells its kind by type; ``removed`` False means added or changed."""

    removed: bool
    info: Info


class Lost:
    """Some events were dropped by the kernel."""


LOST = Lost()

_KINDS: dict[int, tuple[bool, Callable[[Message], Info]]] = {
    rtlink.RTM_NEWLINK: (False, rtlink.parse_link),
    rtlink.RTM_DELLINK: (True, rtlink.parse_link),
    rtnl.RTM_NEWADDR: (False, rtnl.parse_address),
    rtnl.RTM_DELADDR: (True, rtnl.parse_address),
    rtnl.RTM_NEWROUTE: (False, rtnl.parse_route),
    rtnl.RTM_DELROUTE: (True, rtnl.parse_route),
    rtnl.RTM_NEWNEIGH: (False, rtnl.parse_neighbour),
    rtnl.RTM_DELNEIGH: (True, rtnl.parse_neighbour),
}


def decode(datagram: bytes) -> list[Event | Lost]:
    """The events in one datagram; messages of other kinds are passed over, of broken ones the loss is told."""
    events: list[Event | Lost] = []
    try:
        for msg in split(datagram):
            kind = _KINDS.get(msg.kind)
            if kind is not None:
                events.append(Event(kind[0], kind[1](msg)))
    except (MalformedError, struct.error):
        events.append(LOST)
    return events


class Monitor:
    """Listens in the network namespace of the thread that makes it, delivers on the running loop."""

    def __init__(self, deliver: Callable[[list[Event | Lost]], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, BUFFER_BYTES)
            attach(self._sock, _UNINTERESTING)
            self._sock.bind((0, 0))
            for group in _GROUPS:
                self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            self._loop.add_reader(self._sock, self._readable)
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Stop listening; harmless when stopped."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        """Take what is there, but let other work in between when there is much."""
        events: list[Event | Lost] = []
        for _ in range(DATAGRAMS_PER_WAKEUP):
            try:
                events += decode(self._sock.recv(1 << 16))
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                events.append(LOST)
        if events:
            self._deliver(events)
