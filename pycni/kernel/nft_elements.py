"""nf_tables over netlink without libnftables: transactions and dumps of packed messages, small changes of sets.

libnftables takes eight times as long for one element and four times as long, and ten times the memory, for many.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from pycni.closing import Closing
from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.wire.netlink import NLMSG_ERROR, Message, parse_error
from pycni.wire.nftmsg import NFPROTO_INET, batch, in_family
from pycni.wire.nftset import IPV4, IPV6, SetSpec, add_elements, delete_elements

_SNDBUFFORCE = 32
_SEQ_WRAP = 1 << 30
_OWN_SEQ = 1 << 30
"""Transactions number from here on, dumps (``NetlinkSocket``) from 1: their answers cannot be mistaken."""


class NftSocket(NetlinkSocket):
    """A netlink socket for nf_tables in the namespace it was made in. One thread at a time."""

    def __init__(self, family: int = NFPROTO_INET) -> None:
        """``family``: of the tables that all messages are about."""
        super().__init__(NETLINK_NETFILTER)
        self._family = family
        self._next = _OWN_SEQ
        self._send_bytes = 0

    def request(self, msg: bytes, operation: str = "", obj: str = "") -> list[Message]:
        """See ``NetlinkSocket.request``."""
        return super().request(in_family(msg, self._family), operation, obj)

    def dump(self, msg: bytes, operation: str = "dump", obj: str = "") -> list[Message]:
        """See ``NetlinkSocket.dump``."""
        return super().dump(in_family(msg, self._family), operation, obj)

    def commit(self, messages: Sequence[bytes], operation: str, obj: str, *, check: bool = False) -> None:
        """Carry out messages (of ``wire/nftmsg`` and ``wire/nftset``) as one transaction; none: nothing to do.

        ``check``: only find out whether the kernel would take them.
        Raises KernelError with the first refusal; nothing has changed then, unless it is ETIMEDOUT.
        """
        if not messages:
            return
        if self._next > _OWN_SEQ + _SEQ_WRAP:
            self._next = _OWN_SEQ
        first = self._next + 1
        last = first + len(messages) - 1
        self._next = last + 2
        if self._family != NFPROTO_INET:
            messages = [in_family(msg, self._family) for msg in messages]
        out = batch(messages, first, check=check)
        self._make_room(len(out))
        try:
            self._sock.send(out)
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, operation, obj, f"sending {len(out)} bytes") from exc
        del out
        while True:
            for reply in self._receive(operation, obj):
                # A commit that fails as a whole is reported for the edge in front of the messages.
                if reply.kind != NLMSG_ERROR or not first - 1 <= reply.seq <= last:
                    continue
                code, detail = parse_error(reply)
                if code:
                    raise KernelError(code, operation, obj, detail)
                if reply.seq == last:
                    return

    def _make_room(self, size: int) -> None:
        """The kernel takes a transaction as one datagram, so the send buffer has to hold it."""
        if size > self._send_bytes:
            self._send_bytes = max(2 * size, 1 << 18)
            self._sock.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, self._send_bytes)


class NftElements(Closing):
    """Changes of sets of addresses. One thread at a time."""

    def __init__(self) -> None:
        """Open a socket in the calling thread's network namespace. Raises OSError."""
        self._sock = NftSocket()
        self.port = self._sock.port
        """See ``NetlinkSocket.port``."""

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def add(self, table: str, name: str, keys: Sequence[bytes]) -> None:
        """Add elements to a set of an ``inet`` table, present ones too. Raises KernelError; nothing is added then."""
        messages = add_elements(table, _spec(name, keys), dict.fromkeys(keys))
        self._sock.commit(list(messages), "add element", _about(table, name, keys))

    def delete(self, table: str, name: str, keys: Sequence[bytes]) -> None:
        """Delete elements. Raises KernelError (ENOENT: one is not there); nothing is deleted then."""
        messages = delete_elements(table, _spec(name, keys), keys)
        self._sock.commit(list(messages), "delete element", _about(table, name, keys))


def _spec(name: str, keys: Sequence[bytes]) -> SetSpec:
    return SetSpec(name, (IPV4 if not keys or len(keys[0]) == IPV4.size else IPV6,))


def _about(table: str, name: str, keys: Sequence[bytes]) -> str:
    return f"inet {table} {name} ({len(keys)} elements)"
