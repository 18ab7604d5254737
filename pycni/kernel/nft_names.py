"""Names of the tables and chains of nftables, whoever made them: two dumps, without their rules.

iptables in its nft variant keeps its chains in tables ``filter``, ``nat`` ... of family ip and ip6, so its chains are
seen here too.

    nfgenmsg: u8 family | u8 version | be16 resource    attributes: include/uapi/linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.wire.netlink import message, parse_attrs, text

_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN = _SUBSYSTEM | 1, _SUBSYSTEM | 4
_NAME_OF_TABLE, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class Chain(NamedTuple):
    """One chain; ``family`` as nft writes it (ip, ip6, inet, bridge ...)."""

    family: str
    table: str
    name: str


def tables() -> list[tuple[str, str]]:
    """Family and name of every table of this namespace; none on a kernel without nftables. Raises KernelError."""
    return [
        (_family(payload), text(parse_attrs(payload, 4).get(_NAME_OF_TABLE, b"")))
        for payload in _dump(_GETTABLE, "list nft tables")
    ]


def chains() -> list[Chain]:
    """Every chain of this namespace; none on a kernel without nftables. Raises KernelError."""
    found = []
    for payload in _dump(_GETCHAIN, "list nft chains"):
        attrs = parse_attrs(payload, 4)
        found.append(
            Chain(_family(payload), text(attrs.get(_CHAIN_TABLE, b"")), text(attrs.get(_CHAIN_NAME, b"")))
        )
    return found


def _family(payload: bytes) -> str:
    return _FAMILIES.get(payload[0], str(payload[0]))


def _dump(kind: int, operation: str) -> list[bytes]:
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as sock:
            return [answer.payload for answer in sock.dump(message(kind, 0, bytes(4)), operation)]
    except OSError as exc:
        if exc.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            return []
        raise
    except KernelError as exc:
        # nfnetlink answers so when the subsystem is not there.
        if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return []
        raise
