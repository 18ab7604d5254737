"""Asking the servers of lab pods (``serve``): who answers at an address?

Life: ``ask`` tries many addresses at once from namespaces of one kernel, for ``lab matrix``; run as a program it asks
one name or address many times, one after the other, and prints a ``Tally`` as JSON, for ``lab ask``: there it runs
inside a pod, so that names are resolved by the system's resolver and the pod's resolv.conf.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab.stations import Inside
from pycni.model.kube import PROTOCOLS, SCTP, TCP, UDP

RESEND_S = 0.3
TIMEOUT_S = 2.0
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM, SCTP: socket.SOCK_STREAM}
_EINPROGRESS = 115

Question = tuple[str, str, int, int]
"""Name of a namespace ("": here), address, protocol number, port."""
Answer = tuple[str, str]
"""The line of the pod that answers ("<pod> <client address>") and "", or "" and why there is none."""


class Tally(msgspec.Struct, kw_only=True):
    """The outcome of asking one target many times."""

    asked: int = 0
    pods: Mapping[str, int] = {}
    """Answers by pod."""
    clients: Mapping[str, int] = {}
    """Answers by the address the pod saw."""
    failures: Mapping[str, int] = {}
    """By reason."""
    longest_s: float = 0.0


class _Question:
    """One under way."""

    __slots__ = ("question", "received", "sent", "sock")

    def __init__(self, question: Question, sock: socket.socket) -> None:
        self.question = question
        self.sock = sock
        self.received = b""
        self.sent = 0.0


def ask(questions: Sequence[Sequence[str | int]], timeout: float = TIMEOUT_S) -> list[Answer]:
    """One answer per ``Question``, in their order. ``timeout``: seconds for all of them together."""
    answers: list[Answer] = [("", f"no answer within {timeout:g} s")] * len(questions)
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(Inside())
        epoll = stack.enter_context(select.epoll())
        waiting: dict[int, tuple[int, _Question]] = {}
        for number, (space, address, protocol, port) in enumerate(questions):
            question = (str(space), str(address), int(protocol), int(port))
            try:
                item = _Question(question, stack.enter_context(_socket(inside, question)))
                _begin(item)
            except (OSError, PycniError) as exc:
                answers[number] = ("", _reason(exc))
                continue
            waiting[item.sock.fileno()] = (number, item)
            epoll.register(item.sock.fileno(), select.EPOLLIN)
        deadline = time.monotonic() + timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _mask in epoll.poll(min(left, RESEND_S), 256):
                number, item = waiting[fd]
                answer = _received(item)
                if answer is not None:
                    answers[number] = answer
                    del waiting[fd]
                    epoll.unregister(fd)
            _resend([item for _number, item in waiting.values()])
    return answers


def tally(host: str, port: int, protocol: int, count: int, timeout: float = TIMEOUT_S) -> Tally:
    """Ask a name or address ``count`` times, each time by a new socket and a new look-up."""
    pods: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    longest = 0.0
    for _ in range(count):
        started = time.monotonic()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            line, reason = ask([("", found[0][4][0], protocol, port)], timeout)[0]
        except socket.gaierror as exc:
            line, reason = "", f"{host}: {exc.strerror}"
        longest = max(longest, time.monotonic() - started)
        if reason:
            failures[reason] += 1
        else:
            pod, _blank, client = line.partition(" ")
            pods[pod] += 1
            clients[client] += 1
    return Tally(asked=count, pods=pods, clients=clients, failures=failures, longest_s=longest)


def _socket(inside: Inside, question: Question) -> socket.socket:
    space, address, protocol, _port = question
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    make = partial(socket.socket, family, _KINDS[protocol], protocol)
    sock = inside(kernel_netns.path(space), make) if space else make()
    sock.setblocking(False)
    return sock


def _begin(item: _Question) -> None:
    """Connect; a connected UDP socket also hears of refusals."""
    _space, address, protocol, port = item.question
    error = item.sock.connect_ex((address, port))
    if error not in {0, _EINPROGRESS}:
        raise OSError(error, os.strerror(error))
    if protocol == UDP:
        _resend([item])


def _resend(items: Sequence[_Question]) -> None:
    now = time.monotonic()
    for item in items:
        if item.question[2] == UDP and now - item.sent >= RESEND_S:
            item.sent = now
            # A refusal that came meanwhile is read, and told, by the next look.
            with contextlib.suppress(OSError):
                item.sock.send(b"?\n")


def _received(item: _Question) -> Answer | None:
    """The answer once it is complete."""
    try:
        data = item.sock.recv(4096)
    except BlockingIOError:
        return None
    except OSError as exc:
        return "", _reason(exc)
    item.received += data
    line, newline, _rest = item.received.partition(b"\n")
    if newline:
        return line.decode(errors="replace"), ""
    return None if data else ("", "closed without an answer")


def _reason(exc: OSError | PycniError) -> str:
    return exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)


def main(argv: Sequence[str]) -> None:
    """``HOST PORT PROTOCOL COUNT TIMEOUT``: prints a ``Tally`` as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("count", type=int)
    parser.add_argument("timeout", type=float)
    args = parser.parse_args(argv)
    found = tally(args.host, args.port, PROTOCOLS[args.protocol], args.count, args.timeout)
    sys.stdout.write(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
