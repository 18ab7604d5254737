"""Connection tracking entries for connections that the stack has not seen begin (ctnetlink, IPCTNL_MSG_CT_NEW).

For what has carried connections past the stack and gives them back to it: without an entry a packet from their middle
would be taken for a first one. Entries are made as established and answered, and lenient about TCP windows, which
nobody has followed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Family
from pycni.wire.ctnetlink import TUPLE_ORIG, TUPLE_REPLY, Tuple, encode_tuple
from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attr_u8,
    message,
    nested,
)

_NEW = 1 << 8
_STATUS, _PROTOINFO, _TIMEOUT = 3, 4, 7
_SEEN_REPLY, _ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3
_TCP, _TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_ESTABLISHED, _LIBERAL = 3, 1 << 3
_IPPROTO_TCP = 6
_FAMILY = {Family.V4: 2, Family.V6: 10}


class Connection(NamedTuple):
    """One to be remembered, in either direction."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int
    protocol: int
    """TCP or UDP."""
    seconds: int
    """How long, if it stays quiet."""


def remember(sock: NetlinkSocket, connections: Iterable[Connection]) -> int:
    """Make entries; those that are there stay as they are. Returns how many were made. Raises KernelError."""
    results = sock.batch([_creation(item) for item in connections], "remember connections")
    for error in results:
        if error is not None and error.errno != errno.EEXIST:
            raise KernelError(error.errno, error.operation, error.obj, error.detail)
    return results.count(None)


def _creation(item: Connection) -> bytes:
    family = Family.of_packed(item.source)
    status = _SEEN_REPLY | _ASSURED | _CONFIRMED
    there = Tuple(item.source, item.target, item.source_port, item.target_port)
    back = Tuple(item.target, item.source, item.target_port, item.source_port)
    body = (
        bytes((_FAMILY[family], 0, 0, 0))
        + encode_tuple(TUPLE_ORIG, family, item.protocol, there)
        + encode_tuple(TUPLE_REPLY, family, item.protocol, back)
        + attr(_STATUS, status.to_bytes(4, "big"))
        + attr(_TIMEOUT, item.seconds.to_bytes(4, "big"))
    )  # fmt: skip
    if item.protocol == _IPPROTO_TCP:
        lenient = bytes((_LIBERAL, _LIBERAL))
        flags = attr(_TCP_FLAGS_ORIGINAL, lenient) + attr(_TCP_FLAGS_REPLY, lenient)
        body += nested(_PROTOINFO, nested(_TCP, attr_u8(_TCP_STATE, _ESTABLISHED), flags))
    return message(_NEW, NLM_F_CREATE | NLM_F_EXCL, body)
