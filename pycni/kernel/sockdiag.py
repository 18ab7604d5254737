"""Sockets of a network namespace, listed and ended: what a UDP client keeps open towards an endpoint that is gone.

Messages are those of include/uapi/linux/inet_diag.h and sock_diag.h. A socket is known by its cookie, which is what
eBPF programs see of it too. Ending one (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY) makes its next call fail with
ECONNABORTED, upon which clients open another.

    inet_diag_req_v2  family:8 protocol:8 ext:8 pad:8 states:32 sockid
    sockid            sport:be16 dport:be16 source:128 destination:128 interface:32 cookie:64
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Family
from pycni.wire.netlink import NLM_F_REQUEST, message

NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_CONNECTED = 1 << 1
"""State TCP_ESTABLISHED, which connected UDP sockets have as well."""
_REQUEST = struct.Struct("=BBBxI48s")
_PORTS = struct.Struct(">HH")
_MAPPED = bytes(10) + b"\xff\xff"


class Open(NamedTuple):
    """One connected socket."""

    family: Family
    protocol: int
    peer: bytes
    """4 or 16 bytes; 4 for an IPv6 socket that talks IPv4, too."""
    port: int
    cookie: int
    raw: bytes
    """Its identity as the kernel wants it back."""


def connected(sock: NetlinkSocket, protocol: int) -> list[Open]:
    """Every connected socket of a protocol in the namespace ``sock`` was opened in. Raises KernelError."""
    found = []
    for family in Family:
        request = _REQUEST.pack(family, protocol, 0, _CONNECTED, bytes(48))
        for answer in sock.dump(message(_BY_FAMILY, NLM_F_REQUEST, request), "list sockets"):
            raw = answer.payload[4:52]
            size = 4 if family is Family.V4 else 16
            peer = raw[20 : 20 + size]
            if peer.startswith(_MAPPED):
                peer = peer[12:]
            cookie = int(struct.unpack_from("=Q", raw, 40)[0])
            found.append(Open(family, protocol, peer, _PORTS.unpack_from(raw)[1], cookie, raw))
    return found


def destroy(sock: NetlinkSocket, item: Open) -> bool:
    """End one socket; False when it is gone already. Raises KernelError (EOPNOTSUPP: not built into this kernel)."""
    request = _REQUEST.pack(item.family, item.protocol, 0, _CONNECTED, item.raw)
    try:
        sock.request(message(_DESTROY, NLM_F_REQUEST, request), "end socket", f"cookie {item.cookie}")
    except KernelError as error:
        if error.errno not in {errno.ENOENT, errno.ESTALE}:
            raise
        return False
    return True
