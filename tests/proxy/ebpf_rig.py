"""A client's namespace, a node's, one full of servers, and the eBPF data plane for the node: real sockets, real kernel.

Programs are attached to a control group of this process's own, pins are in a bpf file system of its own, so nothing that
runs beside a test is touched. All of it goes at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pycni.kernel import bpf_places
from pycni.kernel import netns as namespaces
from pycni.model.family import Family
from pycni.model.kube import TCP
from pycni.model.service import (
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Options,
    Pool,
    PortName,
    Target,
    Verdict,
)
from pycni.reconcile.delta import diff
from pycni_proxy import ebpf
from pycni_proxy.base import Dataplane, Tables
from pycni_proxy.ebpf.driver import Places, SockDriver

T = TypeVar("T")
CACHE = "/var/cache/pycni/bpf"
PORT = 8080
CLIENT = {Family.V4: "10.93.0.2", Family.V6: "fd93::2"}
NODE = {Family.V4: "10.93.0.3", Family.V6: "fd93::3"}


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def server_address(number: int, family: Family) -> str:
    return f"10.93.1.{number + 1}" if family is Family.V4 else f"fd93::1:{number + 1:x}"


def vip(number: int, family: Family) -> str:
    return f"10.96.0.{number + 1}" if family is Family.V4 else f"fd96::{number + 1:x}"


def target(number: int, family: Family, port: int = PORT) -> Target:
    return Target(packed(server_address(number, family)), port, local=False)


def frontend(
    number: int,
    family: Family,
    servers: Sequence[int],
    *,
    protocol: int = TCP,
    port: int = 80,
    empty: Verdict = Verdict.REJECT,
    draining: Sequence[int] = (),
    address: str | None = None,
    kind: Kind = Kind.CLUSTER_IP,
    **options: Any,
) -> Frontend:
    """Service ``number``, led to servers by their numbers."""
    where = packed(vip(number, family) if address is None else address) if address != "" else b""
    return Frontend(
        key=FrontendKey(family, where, protocol, port),
        kind=kind,
        name=PortName("ns", f"svc{number}", ""),
        pool=Pool(
            targets=tuple(sorted(target(item, family) for item in servers)),
            draining=tuple(sorted(target(item, family) for item in draining)),
            empty=empty,
        ),
        options=Options(**options),
    )


class Servers:
    """TCP and UDP servers at many addresses: each says its number (a byte) to every connection and datagram."""

    def __init__(self, netns: str, count: int) -> None:
        self._fd = namespaces.open_netns(namespaces.path(netns))
        self._stop = threading.Event()
        self._socks: list[socket.socket] = []
        self._held: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for family in Family:
            for number in range(count):
                self._open(number, family)

    def _open(self, number: int, family: Family) -> None:
        for kind, serve in ((socket.SOCK_STREAM, self._serve_tcp), (socket.SOCK_DGRAM, self._serve_udp)):
            sock = namespaces.run_in(self._fd, lambda kind=kind: socket.socket(int(family), kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((server_address(number, family), PORT))
            if kind == socket.SOCK_STREAM:
                sock.listen(128)
            sock.settimeout(0.2)
            self._socks.append(sock)
            thread = threading.Thread(target=serve, args=(sock, number), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve_tcp(self, sock: socket.socket, number: int) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                conn, _ = sock.accept()
                with conn:
                    conn.sendall(bytes([number]))
                    if not self._stop.is_set():
                        conn.shutdown(socket.SHUT_WR)

    def _serve_udp(self, sock: socket.socket, number: int) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                _, peer = sock.recvfrom(64)
                sock.sendto(bytes([number]), peer)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for sock in self._socks:
            sock.close()
        os.close(self._fd)


class Rig:
    """Everything of one test."""

    def __init__(self, prefix: str, servers: int) -> None:
        self._cleanup = contextlib.ExitStack()
        self.prefix = prefix
        try:
            self.bpffs = f"/run/{prefix}-bpf"
            self._cleanup.callback(_unmount, self.bpffs)
            self.cgroup = os.path.join(bpf_places.cgroup2(), prefix)
            self._cleanup.callback(_leave, self.cgroup)
            os.mkdir(self.cgroup)
            _enter(self.cgroup)
            self.names = {part: f"{prefix}-{part}" for part in ("node", "client", "servers")}
            self.fds = {}
            for part, name in self.names.items():
                namespaces.create(name)
                self._cleanup.callback(namespaces.delete, name)
                self.fds[part] = namespaces.open_netns(namespaces.path(name))
                self._cleanup.callback(os.close, self.fds[part])
            self._wire(servers)
            self.servers = Servers(self.names["servers"], servers)
            self._cleanup.callback(self.servers.close)
            self.facts = NodeFacts(
                name="n1",
                addresses=tuple(packed(NODE[family]) for family in Family),
                cluster_networks=(ipaddress.ip_network("10.93.0.0/16"), ipaddress.ip_network("fd93::/64")),
                families=tuple(Family),
            )
            self.places = Places(bpffs=self.bpffs, cgroup=self.cgroup, cache=CACHE)
            self.plane = self.open()
            self.tables: Tables = {}
        except BaseException:
            self._cleanup.close()
            raise

    def _wire(self, servers: int) -> None:
        """All three on one bridge inside the servers' namespace."""
        lines = ["link add br0 type bridge", "link set br0 up", "link set lo up"]
        for family in Family:
            bits = 32 if family is Family.V4 else 128
            lines += [f"address add {server_address(n, family)}/{bits} dev lo nodad" for n in range(servers)]
        lines += ["address add 10.93.255.254/16 dev br0", "address add fd93::ffff/64 dev br0 nodad"]
        for part in ("node", "client"):
            lines += [
                f"link add {part} type veth peer name eth0 netns {self.names[part]}",
                f"link set {part} master br0 up",
            ]
        _ip(self.names["servers"], lines)
        for part, addresses in (("node", NODE), ("client", CLIENT)):
            lines = ["link set lo up", "link set eth0 up"]
            lines += [f"address add {addresses[Family.V4]}/16 dev eth0"]
            lines += [f"address add {addresses[Family.V6]}/64 dev eth0 nodad"]
            # A virtual address needs a route for nothing but the look-up before connect.
            lines += ["route add default via 10.93.255.254", "-6 route add default via fd93::ffff"]
            lines += ["route add 10.93.1.0/24 via 10.93.255.254", "-6 route add fd93::1:0/112 via fd93::ffff"]
            _ip(self.names[part], lines)

    def open(self) -> Dataplane:
        """The data plane as a (re)started agent opens it, with the client's namespace served."""
        plane = namespaces.run_in(self.fds["node"], lambda: ebpf.make(self.facts, self.places))
        self._cleanup.callback(plane.driver.close)
        self._cleanup.callback(plane.driver.remove)
        driver(plane).namespaces.add(namespaces.path(self.names["client"]))
        return plane

    def restart(self) -> None:
        """As if the agent had been killed and started again: nothing is taken back, everything found again."""
        self.plane.driver.close()
        self.plane = self.open()

    def apply(self, *frontends: Frontend) -> None:
        """Have the kernel hold exactly these frontends."""
        compiler = self.plane.compiler
        wanted: Tables = {name: {} for name in compiler.tables}
        for part in (compiler.common(), *(compiler.rows([item]) for item in frontends)):
            for name, rows in part.items():
                wanted[name].update(rows)
        there = self.plane.driver.read()
        changes = [(name, diff(wanted[name], there.get(name, {}))) for name in compiler.tables]
        self.plane.driver.apply([item for item in changes if not item[1].empty])
        self.tables = wanted

    def socket(self, family: int, kind: int, where: str = "client") -> socket.socket:
        sock = self.within(where, lambda: socket.socket(family, kind))
        sock.settimeout(5)
        return sock

    def within(self, where: str, fn: Callable[[], T]) -> T:
        return namespaces.run_in(self.fds[where], fn)

    def ask_tcp(self, address: str, port: int = 80, where: str = "client") -> int:
        """Which server answers a new connection."""
        with self.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, where
        ) as sock:
            sock.connect((address, port))
            return sock.recv(1)[0]

    def ask_udp(self, address: str, port: int = 80, where: str = "client") -> int:
        """Which server answers a datagram from a new, unconnected socket; it must seem to come from the service."""
        with self.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM, where
        ) as sock:
            return send(sock, address, port)

    def close(self) -> None:
        self._cleanup.close()


def send(sock: socket.socket, address: str, port: int = 80) -> int:
    sock.sendto(b"?", (address, port))
    answer, peer = sock.recvfrom(16)
    assert peer[:2] == (address, port)
    return answer[0]


def driver(plane: Dataplane) -> SockDriver:
    assert isinstance(plane.driver, SockDriver)
    return plane.driver


@contextlib.contextmanager
def rig(servers: int = 3, tag: str = "e") -> Iterator[Rig]:
    made = Rig(f"pyt{os.getpid()}-{tag}", servers)
    try:
        yield made
    finally:
        made.close()


def _ip(netns: str, lines: Sequence[str]) -> None:
    for version in ("-4", "-6"):
        batch = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == (version == "-6")]
        subprocess.run(
            [*namespaces.exec_prefix(netns), "ip", version if version == "-6" else "-d", "-batch", "-"],
            input="\n".join(batch).encode(),
            check=True,
            capture_output=True,
        )


def _enter(cgroup: str) -> None:
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))


def _leave(cgroup: str) -> None:
    _enter(os.path.dirname(cgroup))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(cgroup)


def _unmount(where: str) -> None:
    ctypes.CDLL(None).umount2(where.encode(), 2)
    shutil.rmtree(where, ignore_errors=True)
