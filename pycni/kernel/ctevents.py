"""Hearing of connections as they begin, change and end, and reading the table of those there are (ctnetlink).

Life: ``CtEvents`` joins the multicast groups and is read whenever it is readable; it never blocks, and no packet waits
for it: the kernel throws away what does not fit the socket's buffer and says so once (ENOBUFS), which ``overruns``
counts. How many events those were nobody knows, so whoever follows reads the table again (``CtTable``) and compares.

A kernel tells of entries that were made while somebody listened (nf_conntrack_events 2, the default since 5.19) or of
all (1); of older ones then only their end. With 0 it tells nothing (``Settings.events``).
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import sockfilter, sysctl
from pycni.kernel.netlink import NETLINK_NETFILTER, SOL_NETLINK, NetlinkSocket
from pycni.kernel.sockfilter import ACCEPT, DROP, JUMP_EQUAL, LOAD_HALF, LOAD_WORD, as_loaded
from pycni.model.family import Family
from pycni.wire import ctnetlink
from pycni.wire.ctnetlink import Entry, Event
from pycni.wire.netlink import (
    MalformedError,
)

BUFFER_BYTES = 8 << 20
"""Of events, as the kernel accounts them: some ten thousand."""
DATAGRAMS_PER_READ = 512
_ADD_MEMBERSHIP = 1
_RCVBUFFORCE = 33
_RECEIVE_BYTES = 1 << 16
_FOLDER = "net/netfilter/nf_conntrack_"


_LOAD_X, _X_FROM_A, _LOAD_BYTE_X = 0x01, 0x07, 0x50
_FIND_ATTR, _FIND_NESTED = 0xFFFFF000 + 12, 0xFFFFF000 + 16
"""SKF_AD_NLATTR: where the first attribute of type X is, from offset A on; SKF_AD_NLATTR_NEST: inside the one at A."""
_DELETED = as_loaded("H", ctnetlink.DELETE)
_ATTRS_AT = 20
_NO_CHANGES = (
    (LOAD_HALF, 0, 0, 4),
    (JUMP_EQUAL, 16, 0, _DELETED),
    (LOAD_HALF, 0, 0, 6),
    (JUMP_EQUAL, 0, 14, 0),  # flags: NLM_F_CREATE | NLM_F_EXCL are on what is new
    (0x00, 0, 0, _ATTRS_AT),
    (_LOAD_X, 0, 0, ctnetlink.PROTOINFO),
    (LOAD_WORD, 0, 0, _FIND_ATTR),
    (JUMP_EQUAL, 9, 0, 0),
    (_LOAD_X, 0, 0, ctnetlink.PROTOINFO_TCP),
    (LOAD_WORD, 0, 0, _FIND_NESTED),
    (JUMP_EQUAL, 6, 0, 0),
    (_LOAD_X, 0, 0, ctnetlink.TCP_STATE),
    (LOAD_WORD, 0, 0, _FIND_NESTED),
    (JUMP_EQUAL, 3, 0, 0),
    (_X_FROM_A, 0, 0, 0),
    (_LOAD_BYTE_X, 0, 0, 4),
    (JUMP_EQUAL, 1, 0, ctnetlink.TIME_WAIT),
    (JUMP_EQUAL, 0, 1, ctnetlink.CLOSE),
    ACCEPT,
    DROP,
)
"""Beginnings, ends, and changes of TCP to a state in which it is only remembered."""


class Settings(NamedTuple):
    """Switches of connection tracking in this namespace; -1: this kernel has none, or nothing is tracked yet."""

    accounting: int
    """Packets and bytes are counted by connection: of connections that began after it was switched on."""
    events: int
    timestamps: int
    limit: int
    """Of entries; more are refused, and their packets dropped."""


def settings() -> Settings:
    """Of the calling thread's namespace."""
    return Settings(*map(_switch, ("acct", "events", "timestamp", "max")))


def _switch(name: str) -> int:
    try:
        return int(sysctl.get(_FOLDER + name))
    except (KernelError, ValueError):
        return -1


class CtEvents:
    """Events of the network namespace of the thread that makes this. Give it to a selector."""

    def __init__(self, *, changes: bool = False, buffer: int = BUFFER_BYTES) -> None:
        """``changes``: of every change of state; else connections' beginnings and ends, and TCP being closed.

        The kernel remembers a closed TCP connection for up to two minutes before it tells of its end.
        Raises KernelError.
        """
        self.overruns = 0
        """How often events were lost."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        except OSError as exc:
            raise _error(exc) from exc
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, buffer)
            self._sock.bind((0, 0))
            if not changes:
                sockfilter.attach(self._sock, _NO_CHANGES)
            for group in (ctnetlink.GROUP_NEW, ctnetlink.GROUP_UPDATE, ctnetlink.GROUP_DESTROY):
                self._sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
            self._sock.setblocking(False)
        except OSError as exc:
            self._sock.close()
            raise _error(exc) from exc

    def fileno(self) -> int:
        """File descriptor, for selectors."""
        return self._sock.fileno()

    def read(self, limit: int = DATAGRAMS_PER_READ) -> list[Event]:
        """What has come, ``limit`` datagrams at most. An event without a time gets that of being read.

        Raises KernelError.
        """
        found: list[Event] = []
        for _ in range(limit):
            try:
                datagram = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise _error(exc) from exc
                self.overruns += 1
                continue
            try:
                found += ctnetlink.events(datagram)
            except MalformedError as exc:
                raise KernelError(errno.EBADMSG, "read events", "connection tracking", str(exc)) from exc
        now = time.time_ns()
        return [event if event.time_ns else event._replace(time_ns=now) for event in found]

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()


class CtTable(NetlinkSocket):
    """The table of the network namespace of the thread that makes this."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def entries(self, family: Family | None = None) -> Iterator[Entry]:
        """Entries as they are read. The table may change meanwhile: one may be missed, none is made up.

        Raises KernelError.
        """
        for reply in self.each(ctnetlink.listing(family), "list connections"):
            try:
                yield ctnetlink.entry(reply.payload)
            except MalformedError as exc:
                raise KernelError(errno.EBADMSG, "list connections", "", str(exc)) from exc

    def counted(self, entry: Entry) -> Entry:
        """The entry with its counters as they are now; as it was when it is gone. Raises KernelError."""
        question = ctnetlink.request(entry.family, entry.protocol, entry.original, zone=entry.zone)
        try:
            answers = self.request(question, "look up connection")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return entry
            raise
        for answer in answers:
            found = ctnetlink.entry(answer.payload)
            if found.ident == entry.ident:
                return entry._replace(sent=found.sent, answered=found.answered, started_ns=found.started_ns)
        return entry


def _error(exc: OSError) -> KernelError:
    code = exc.errno or errno.EIO
    hints = {errno.EPERM: "CAP_NET_ADMIN is missing", errno.EPROTONOSUPPORT: "no nfnetlink in this kernel"}
    return KernelError(code, "listen to events", "connection tracking", hints.get(code, exc.strerror or ""))
