"""Names of the tables and chains of nftables, whoever made them: two dumps, without their rules.

iptables in its nft variant keeps its chains in tables ``filter``, ``nat`` ... of family ip and ip6, so its chains are
seen here too.

    nfgenmsg: u8 family | u8 version | be16 resource    attributes: include/uapi/linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

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
    return _tables(_dump(_GETTABLE, "list nft tables"))


class TableNames:
    """``tables``, again and again, in the namespace of the thread that asked first. One thread at a time.

    A socket is kept: the kernel lets none be closed before it has freed what transactions removed, for milliseconds.
    """

    def __init__(self) -> None:
        self._sock: NetlinkSocket | None = None

    def close(self) -> None:
        """Close the socket; harmless when there is none."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def read(self) -> list[tuple[str, str]]:
        """See ``tables``."""
        try:
            if self._sock is None:
                self._sock = NetlinkSocket(NETLINK_NETFILTER)
            return _tables(_asked(self._sock, _GETTABLE, "list nft tables"))
        except (OSError, KernelError) as exc:
            self.close()
            return _none(exc)


def _tables(payloads: list[bytes]) -> list[tuple[str, str]]:
    return [
        (_family(payload), text(parse_attrs(payload, 4).get(_NAME_OF_TABLE, b""))) for payload in payloads
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
            return _asked(sock, kind, operation)
    except (OSError, KernelError) as exc:
        return _none(exc)


def _asked(sock: NetlinkSocket, kind: int, operation: str) -> list[bytes]:
    return [answer.payload for answer in sock.dump(message(kind, 0, bytes(4)), operation)]


def _none(error: OSError | KernelError) -> list[Any]:
    """Nothing, where there is no nftables; raises every other error."""
    absent = {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
    if isinstance(error, KernelError):
        # nfnetlink answers so when the subsystem is not there.
        absent = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT}
    if error.errno in absent:
        return []
    raise error
