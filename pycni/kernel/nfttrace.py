"""Which nftables rules a packet meets, in one namespace, as the kernel tells it.

Life: ``RuleTrace`` makes a table that is owned by its socket (``wire/nfttrace``) and listens to the group of rule
traces; ``read`` gives the rules our packets met, in order, with the rules' texts. ``close`` ends both sockets,
and with the first the kernel removes the table: so it does when the process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, SOL_NETLINK
from pycni.kernel.nft import Nft
from pycni.kernel.nft_elements import NftSocket
from pycni.model.spot import Spot
from pycni.wire import nfttrace
from pycni.wire.netlink import MalformedError, parse_attrs, text
from pycni.wire.nftmsg import (
    GETTABLE,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    decode_rule,
    in_family,
    nft_message,
)
from pycni.wire.nfttrace import Met

NAME = "pycni_trace"
"""Begins the table's name."""
MOST = 4096
"""Rules told of one trace in one namespace."""
_ADD_MEMBERSHIP, _RCVBUFFORCE = 1, 33
_ROOM = 1 << 20
_RECEIVE = 1 << 16
_NUMBERS = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_HANDLE = re.compile(r"^\s*(.*?)\s*# handle (\d+)$")
_COMMENT = re.compile(r'\s*comment "([^"]*)"')


class Rule(NamedTuple):
    """A rule in words."""

    text: str
    """As nft(8) lists it, without comment; "" when it is gone."""
    comment: str = ""


class Told(NamedTuple):
    """A rule our packet met."""

    met: Met
    rule: Rule


def tables() -> list[tuple[int, str]]:
    """Family number and name of all tables in the calling thread's namespace; none without nftables.

    Raises KernelError.
    """
    try:
        sock = NftSocket(0)
    except OSError as exc:
        if exc.errno in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
            return []
        raise KernelError(exc.errno or errno.EIO, "open nftables") from exc
    with sock:
        try:
            found = sock.dump(nft_message(GETTABLE, 0), "list tables")
        except KernelError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT}:  # a kernel without nf_tables
                return []
            raise
        return [(msg.payload[0], text(parse_attrs(msg.payload, 4).get(1, b""))) for msg in found]


class RuleTrace:
    """One namespace; made and used in it, by one thread at a time."""

    def __init__(self, spots: list[Spot], token: int) -> None:
        """In the calling thread's namespace. ``token``: makes the table's name one of its own.

        Raises KernelError: EOPNOTSUPP and its like on a kernel whose tables cannot have an owner.
        """
        self._name = f"{NAME}_{token:08x}"
        self._texts: dict[tuple[str, str, str, int], Rule] = {}
        self._mine: set[int] = set()
        self._told = 0
        self._nft: Nft | None = None
        with contextlib.ExitStack() as stack:
            self._news = stack.enter_context(_listen())
            self._owner = stack.enter_context(NftSocket())
            messages = nfttrace.table(self._name, spots, NFPROTO_INET)
            if any(family == NFPROTO_BRIDGE for family, _ in tables()):
                bridged = nfttrace.table(self._name, spots, NFPROTO_BRIDGE)
                messages += [in_family(msg, NFPROTO_BRIDGE) for msg in bridged]
            self._owner.commit(messages, "make table", self._name)
            # Its socket stays in this namespace, whoever calls later.
            self._nft = stack.enter_context(Nft(handles=True))
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        """Becomes readable when there is something to tell."""
        return self._news.fileno()

    def read(self) -> list[Told]:
        """What our packets met since the last call; never waits for the kernel's news. Raises KernelError."""
        found: list[Told] = []
        while self._told < MOST:
            try:
                data = self._news.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise KernelError(exc.errno or errno.EIO, "read rule traces") from exc
                continue
            try:
                found += [item for met in nfttrace.decode(data) if (item := self._take(met)) is not None]
            except MalformedError as exc:
                raise KernelError(errno.EBADMSG, "read rule traces", "", str(exc)) from exc
        return found

    def close(self) -> None:
        """The table goes with its socket; harmless when done before."""
        self._stack.close()

    def _take(self, met: Met) -> Told | None:
        """Others may trace packets of their own: only what our table has marked is ours."""
        if met.table == self._name:
            self._mine.add(met.packet)
            return None
        if met.packet not in self._mine:
            return None
        self._told += 1
        return Told(met, self._rule(met) if met.handle else Rule(""))

    def _rule(self, met: Met) -> Rule:
        key = (met.family, met.table, met.chain, met.handle)
        if key not in self._texts:
            comment = self._comment(met) if met.table.startswith("pycni") else ""
            if comment:
                self._texts[key] = Rule(comment, comment)
            else:
                self._list(met)
        return self._texts.setdefault(key, Rule(""))

    def _comment(self, met: Met) -> str:
        """Ours say in a comment what they do: asking for one rule costs less than listing a chain."""
        msg = in_family(nfttrace.rule(met.table, met.chain, met.handle), _NUMBERS.get(met.family, 1))
        try:
            replies = NftSocket.request(self._owner, msg, "get rule")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return ""
        return decode_rule(replies[0].payload).comment if replies else ""

    def _list(self, met: Met) -> None:
        """All rules of a chain."""
        if self._nft is None:
            return
        try:
            listing = self._nft.query(f"list chain {met.family} {met.table} {met.chain}")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return
        for line in listing.splitlines():
            found = _HANDLE.match(line)
            if found is not None:
                words, handle = found.groups()
                comment = _COMMENT.search(words)
                key = (met.family, met.table, met.chain, int(handle))
                self._texts[key] = Rule(_COMMENT.sub("", words), comment[1] if comment else "")


def _listen() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
    except OSError as exc:
        raise KernelError(
            exc.errno or errno.EIO, "listen to rule traces", detail=os.strerror(exc.errno or 0)
        ) from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, nfttrace.GROUP)
    except OSError as exc:
        sock.close()
        raise KernelError(
            exc.errno or errno.EIO, "listen to rule traces", detail=os.strerror(exc.errno or 0)
        ) from exc
    return sock
