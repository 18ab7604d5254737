"""A blocking netlink socket: requests, batches and dumps, each with the kernel's own words on failure.

A socket belongs to the network namespace it was opened in (see ``netns.socket_in``) and to one thread at a time.
Sequence numbers tell answers apart, so a socket may be used again after an error.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

from pycni.closing import Closing
from pycni.errors import KernelError
from pycni.wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    Message,
    parse_error,
    split,
)

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

TIMEOUT_S = 10.0
RECEIVE_BYTES = 1 << 16
"""More than the kernel puts into one datagram of a dump (32 KiB)."""
BATCH_MESSAGES = 256
"""Messages per send; the answers to a batch in which every message fails still fit the receive buffer."""
DUMP_TRIES = 20
_FLAGS = struct.Struct("=H")
_FLAGS_SEQ = struct.Struct("=HI")
_SEQ_WRAP = 1 << 30
_RCVBUFFORCE = 33


class NetlinkSocket(Closing):
    """One AF_NETLINK socket, opened in the calling thread's network namespace."""

    def __init__(self, protocol: int = NETLINK_ROUTE, sock: socket.socket | None = None) -> None:
        self._sock = sock or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._seq = 0
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        try:
            if sock is None:
                self._sock.bind((0, 0))
                self._sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
                self._sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
                self._sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
                self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 20)
                self._sock.settimeout(TIMEOUT_S)
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        self._sock.close()

    def fileno(self) -> int:
        """File descriptor, for selectors."""
        return self._sock.fileno()

    @property
    def port(self) -> int:
        """Its address: what the kernel announces because of its requests bears it."""
        address: tuple[int, int] = self._sock.getsockname()
        return address[0]

    def request(self, msg: bytes, operation: str = "", obj: str = "") -> list[Message]:
        """Send one message and wait for its ACK; returns what came before the ACK (an echo, a GET's answer).

        Raises KernelError with errno and extended-ack text.
        """
        seq = self._send([msg])
        replies: list[Message] = []
        while True:
            for reply in self._receive(operation, obj):
                if reply.seq != seq:
                    continue
                if reply.kind == NLMSG_ERROR:
                    code, detail = parse_error(reply)
                    if code:
                        raise KernelError(code, operation, obj, detail)
                    return replies
                if reply.kind != NLMSG_NOOP:
                    replies.append(reply)

    def batch(self, msgs: Sequence[bytes], operation: str = "", obj: str = "") -> list[KernelError | None]:
        """Send many messages; one result per message, in order. Nothing is raised for a single one.

        Only the last of each send asks for an ACK: the kernel works in order and reports errors unasked, so one
        ACK tells that all before it are done.
        """
        results: list[KernelError | None] = []
        for start in range(0, len(msgs), BATCH_MESSAGES):
            chunk = msgs[start : start + BATCH_MESSAGES]
            last = self._send(chunk, NLM_F_REQUEST)
            first = last - len(chunk) + 1
            found: list[KernelError | None] = [None] * len(chunk)
            done = False
            while not done:
                for reply in self._receive(operation, obj):
                    if reply.kind != NLMSG_ERROR or not first <= reply.seq <= last:
                        continue
                    code, detail = parse_error(reply)
                    if code:
                        found[reply.seq - first] = KernelError(code, operation, obj, detail)
                    done = done or reply.seq == last
            results += found
        return results

    def dump(self, msg: bytes, operation: str = "dump", obj: str = "") -> list[Message]:
        """Everything a dump request lists. An interrupted dump (NLM_F_DUMP_INTR) is incomplete and repeated.

        Raises KernelError; EINTR when the tables changed under every try.
        """
        for _ in range(DUMP_TRIES):
            found, interrupted = self._dump_once(msg, operation, obj)
            if not interrupted:
                return found
        raise KernelError(errno.EINTR, operation, obj, "the table changes faster than it can be read")

    def _dump_once(self, msg: bytes, operation: str, obj: str) -> tuple[list[Message], bool]:
        seq = self._send([msg], NLM_F_REQUEST | NLM_F_DUMP)
        found: list[Message] = []
        interrupted = False
        while True:
            for reply in self._receive(operation, obj):
                if reply.seq != seq:
                    continue
                interrupted |= bool(reply.flags & NLM_F_DUMP_INTR)
                if reply.kind == NLMSG_DONE:
                    code = -_signed(reply.payload)
                    if code:
                        raise KernelError(code, operation, obj)
                    return found, interrupted
                if reply.kind == NLMSG_ERROR:
                    code, detail = parse_error(reply)
                    raise KernelError(code, operation, obj, detail)
                found.append(reply)

    def each(self, msg: bytes, operation: str = "dump", obj: str = "") -> Iterator[Message]:
        """A dump's messages as they come. The table may change meanwhile: one may be missed, none is made up.

        Raises KernelError.
        """
        seq = self._send([msg], NLM_F_REQUEST | NLM_F_DUMP)
        while True:
            for reply in self._receive(operation, obj):
                if reply.seq != seq:
                    continue
                if reply.kind == NLMSG_DONE:
                    return
                if reply.kind == NLMSG_ERROR:
                    code, detail = parse_error(reply)
                    raise KernelError(code, operation, obj, detail)
                yield reply

    def _send(self, msgs: Sequence[bytes], flags: int = NLM_F_REQUEST) -> int:
        """Number and send messages, the last one asking for an ACK; returns its sequence number."""
        if self._seq > _SEQ_WRAP:
            self._seq = 0
        out = bytearray().join(msgs)
        at = 0
        last = len(msgs) - 1
        for number, msg in enumerate(msgs):
            self._seq += 1
            wanted = _FLAGS.unpack_from(msg, 6)[0] | flags | (NLM_F_ACK if number == last else 0)
            _FLAGS_SEQ.pack_into(out, at + 6, wanted, self._seq)
            at += len(msg)
        try:
            self._sock.sendto(out, (0, 0))
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, "send to the kernel", f"{len(out)} bytes") from exc
        return self._seq

    def _receive(self, operation: str, obj: str) -> list[Message]:
        try:
            size = self._sock.recv_into(self._buffer)
        except TimeoutError as exc:
            raise KernelError(errno.ETIMEDOUT, operation, obj, "no answer from the kernel") from exc
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, operation, obj, "receiving the answer") from exc
        return list(split(self._buffer[:size]))


def _signed(payload: bytes) -> int:
    return int(struct.unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0
