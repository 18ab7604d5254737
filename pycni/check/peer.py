"""The program in the check's pods: a server that says who it is, and a client that does a list of tasks.

    peer.py serve NAME PORT [attached]   answers by TCP and UDP, in both families, until it is ended (attached: or its
                                     standard input is closed)
    peer.py ask TASKS [FILE]         does the tasks (JSON, ``model.Task``), prints the answers (``model.Answer``) or
                                     writes them into a file, which Kubernetes takes as the termination message

It needs nothing but Python 3.10: it goes into pods of any image as text. TCP: after a line ``who`` the server says its
name and the client's address; after ``bulk N`` and N bytes it sends them back. UDP: a datagram comes back with the same
in front. Pings are raw sockets, or unprivileged ones where those are allowed.
"""

from __future__ import annotations

# The interpreter in a pod may be older than ours: nothing newer than Python 3.10 here.
import base64
import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BULK = 4 << 20
TOGETHER = 48
ROOM = 4000
"""Bytes of a termination message: Kubernetes keeps 4096."""
RESEND_S = 0.3
SMALLER = "only smaller packets are taken on the way"
RESOLVER = "timeout:2 attempts:2"
"""resolv.conf(5): sooner than by default, so that a name server that is not reached does not hold up everything."""
SMALL = 84
"""IP length of a small echo."""
_PKTINFO = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 49)}
_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_PROBE = 3
"""IP_PMTUDISC_PROBE: never fragment, whatever is known of the path (ip(7))."""
Task = dict[str, Any]
"""A ``model.Task``, or an ``Answer``."""
_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921


class TaskError(Exception):
    """It did not get through."""


# --- server


def serve(name: str, port: int, *, attached: bool = False) -> None:
    """Answer until the process is ended; ``attached``: or standard input is closed."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # a machine without this family
            stream = _bound(family, socket.SOCK_STREAM, port)
            stream.listen(256)
            datagram = _bound(family, socket.SOCK_DGRAM, port)
            datagram.setsockopt(*_PKTINFO[family], 1)
            for target, sock in ((_accepting, stream), (_datagrams, datagram)):
                threading.Thread(target=target, args=(name, sock), daemon=True).start()
    print("ready", flush=True)
    while attached and sys.stdin.read(1):
        pass
    if not attached:
        threading.Event().wait()


def _bound(family: int, kind: int, port: int) -> socket.socket:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    return sock


def _accepting(name: str, listener: socket.socket) -> None:
    while True:
        sock, peer = listener.accept()
        threading.Thread(target=_stream, args=(name, sock, peer[0]), daemon=True).start()


def _stream(name: str, sock: socket.socket, peer: str) -> None:
    with sock, contextlib.suppress(OSError, ValueError):
        sock.settimeout(60)
        file = sock.makefile("rb")
        words = file.readline(200).split()
        if words[:1] == [b"who"]:
            sock.sendall((f"{name} {peer}\n").encode())
        elif words[:1] == [b"bulk"]:
            sock.sendall(file.read(min(int(words[1]), 4 * BULK)))


def _datagrams(name: str, sock: socket.socket) -> None:
    while True:
        data, ancillary, _flags, sender = sock.recvmsg(65535, 128)
        head = (f"{name} {sender[0]} ").encode()
        # The answer has to come from the address that was asked, which need not be the first one.
        with contextlib.suppress(OSError):
            sock.sendmsg([head + data[:1000]], _from_there(ancillary), 0, sender)


def _from_there(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == 8:
            return [(level, kind, struct.pack("=I4s4s", 0, data[8:12], b"\0" * 4))]
        if level == socket.IPPROTO_IPV6 and kind == 50:
            return [(level, kind, struct.pack("=16sI", data[:16], 0))]
    return []


# --- client


def ask(tasks: list[Task]) -> list[Task]:
    """The answers to all tasks, many at a time."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(_patient, tasks))


def _patient(task: Task) -> Task:
    """Try until the outcome is the wanted one, or patience ends."""
    end = time.monotonic() + task.get("patience_s", 0)
    while True:
        answer = _tried(task)
        if bool(answer["why"]) is task.get("silence", False) or time.monotonic() >= end:
            return answer
        time.sleep(RESEND_S)


def _tried(task: Task) -> Task:
    answer = {"number": task["number"], "why": "", "who": [], "seen": [], "ms": 0.0}
    try:
        for _ in range(task.get("count", 1)):
            began = time.monotonic()
            words = _KINDS[task["kind"]](task, began + task.get("wait_s", 4.0))
            answer["ms"] = max(answer["ms"], round((time.monotonic() - began) * 1000, 2))
            if task["kind"] == "name":
                answer["who"] = words
            elif words:
                answer["who"].append(words[0])
                answer["seen"].append(words[1])
    except TaskError as error:
        answer["why"] = str(error)
    except socket.gaierror as error:
        answer["why"] = "{} is not resolved: {}".format(task["host"], error.strerror)
    except TimeoutError:
        answer["why"] = _late(task)
    except OSError as error:
        small = error.errno == errno.EMSGSIZE
        answer["why"] = SMALLER if small else os.strerror(error.errno) if error.errno else str(error)
    # Each server once, in the order of their first answers.
    answer["who"], answer["seen"] = list(dict.fromkeys(answer["who"])), list(dict.fromkeys(answer["seen"]))
    return answer


def _late(task: Task) -> str:
    return "no answer within {:g} s".format(task.get("wait_s", 4.0))


def _connected(task: Task, end: float) -> socket.socket:
    found = socket.getaddrinfo(task["host"], task["port"], task.get("family", 0), socket.SOCK_STREAM)
    sock = socket.socket(*found[0][:3])
    try:
        sock.settimeout(max(end - time.monotonic(), 0.01))
        sock.connect(found[0][4])
    except BaseException:
        sock.close()
        raise
    return sock


def _tcp(task: Task, end: float) -> list[str]:
    with _connected(task, end) as sock:
        sock.sendall(b"who\n")
        line = sock.makefile("rb").readline(500)
    words = line.decode(errors="replace").split()
    if len(words) != 2:
        raise TaskError("closed without an answer")
    return words


def _reach(task: Task, end: float) -> list[str]:
    """A connection to somebody who is no server of ours."""
    _connected(task, end).close()
    return []


def _bulk(task: Task, end: float) -> list[str]:
    data = os.urandom(65536) * (BULK // 65536)
    with _connected(task, end) as sock:
        sender = threading.Thread(target=_pour, args=(sock, b"bulk %d\n" % len(data) + data), daemon=True)
        sender.start()
        got, crc, stalled = 0, 0, False
        while got < len(data):
            try:
                chunk = sock.recv(1 << 18)
            except TimeoutError:
                stalled = True
                break
            if not chunk:
                break
            got, crc = got + len(chunk), zlib.crc32(chunk, crc)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the sender up
        sender.join()
    if got < len(data):
        what = "stands still" if stalled else "is closed"
        raise TaskError(f"the connection {what} after {got} of {len(data)} bytes have come back")
    if crc != zlib.crc32(data):
        raise TaskError("other bytes came back than were sent")
    return []


def _pour(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # told by who reads
        sock.sendall(data)


def _udp(task: Task, end: float) -> list[str]:
    token = base64.b16encode(os.urandom(8))
    family, kind, protocol, _name, address = socket.getaddrinfo(
        task["host"], task["port"], 0, socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.connect(address)
        while time.monotonic() < end:
            sock.send(token)
            sock.settimeout(max(min(RESEND_S, end - time.monotonic()), 0.01))
            try:
                words = sock.recv(2000).split()
            except TimeoutError:
                continue
            if len(words) == 3 and words[2] == token:
                return [word.decode() for word in words[:2]]
    raise TaskError(_late(task))


def _ping(task: Task, end: float) -> list[str]:
    family = socket.AF_INET6 if ":" in task["host"] else socket.AF_INET
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    head = (20 if family == socket.AF_INET else 40) + 8
    size = _device_mtu() if task["kind"] == "mtu" else SMALL
    body = os.urandom(16) + bytes(max(size - head - 16, 0))
    request = _echo(family, body)
    with _icmp_socket(family, protocol) as sock:
        sock.setsockopt(*_MTU_DISCOVER[family], _PROBE)
        sock.setsockopt(*_ERRORS[family], 1)
        sock.connect((task["host"], 0))
        while (now := time.monotonic()) < end:
            sock.send(request)
            if _echoed(sock, family, body, min(now + RESEND_S, end)):
                return []
    what = f"to a packet of {size} bytes " if task["kind"] == "mtu" else ""
    raise TaskError(f"no answer {what}within {task.get('wait_s', 4.0):g} s")


def _echoed(sock: socket.socket, family: int, body: bytes, until: float) -> bool:
    """Whether the echo comes back in time. Raises OSError for what an ICMP error says."""
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        with contextlib.suppress(TimeoutError):
            data = sock.recv(65535)
            if data.endswith(body) and _is_answer(family, data[: len(data) - len(body)]):
                return True
    return False


def _icmp_socket(family: int, protocol: int) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError:
        return socket.socket(family, socket.SOCK_DGRAM, protocol)


def _echo(family: int, body: bytes) -> bytes:
    """An echo request; of IPv6 the kernel fills in the checksum."""
    kind = 8 if family == socket.AF_INET else 128
    head = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, threading.get_ident() & 0xFFFF)
    if family == socket.AF_INET6:
        return head + body
    data = head + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:] + body


def _is_answer(family: int, head: bytes) -> bool:
    """Whether what is in front of the body is an echo reply's, with or without the IP header."""
    kind = 0 if family == socket.AF_INET else 129
    return len(head) >= 8 and head[-8] == kind


def _device_mtu() -> int:
    """The smallest MTU of the interfaces that are up here, loopback aside."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _number, name in socket.if_nameindex():
            ask_for = struct.pack("16s16x", name.encode())
            flags = struct.unpack("16xH", fcntl.ioctl(sock, _SIOCGIFFLAGS, ask_for)[:18])[0]
            if flags & 1 and not flags & 8:  # IFF_UP, IFF_LOOPBACK
                found.append(struct.unpack("16xI", fcntl.ioctl(sock, _SIOCGIFMTU, ask_for)[:20])[0])
    return min(found) if found else 1500


def _name(task: Task, _end: float) -> list[str]:
    began = time.monotonic()
    found = socket.getaddrinfo(task["host"], None, task.get("family", 0), socket.SOCK_STREAM)
    took = time.monotonic() - began
    if took > task.get("wait_s", 4.0):
        raise TaskError(f"{task['host']} is resolved only after {took:.1f} s")
    return sorted({str(item[4][0]) for item in found})


_KINDS: dict[str, Callable[[Task, float], list[str]]] = {
    "tcp": _tcp,
    "reach": _reach,
    "udp": _udp,
    "bulk": _bulk,
    "ping": _ping,
    "mtu": _ping,
    "name": _name,
}


def packed(answers: list[Task]) -> str:
    """The answers as text that fits into a termination message."""
    short = [{key: value for key, value in answer.items() if value or key == "number"} for answer in answers]
    text = json.dumps(short, separators=(",", ":"))
    return text if len(text) <= ROOM else "z" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str) -> str:
    """What was packed: JSON."""
    text = text.strip()
    return zlib.decompress(base64.b64decode(text[1:])).decode() if text.startswith("z") else text


def main(words: list[str]) -> None:
    """See above."""
    if words[0] == "serve":
        serve(words[1], int(words[2]), attached="attached" in words[3:])
        return
    os.environ.setdefault("RES_OPTIONS", RESOLVER)
    text = packed(ask(json.loads(words[1])))
    if len(words) > 2:
        with open(words[2], "w") as file:
            file.write(text)
    else:
        print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
