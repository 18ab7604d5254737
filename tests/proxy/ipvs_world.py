"""A node with pods, a neighbour's pod and an outsider, as namespaces of a guest, with servers that say who asks.

Runs inside User-Mode Linux. Sockets are opened inside a namespace and used from outside, so one thread serves all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import selectors
import socket
import subprocess
import threading
import time

from pycni.kernel import netns, sysctl
from pycni.model.family import Family
from pycni.model.kube import TCP, UDP
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
from pycni.reconcile.ledger import Ledger
from pycni_proxy import ipvs
from pycni_proxy.ipvs.options import IpvsOptions

PODS = {"a": 5, "b": 6, "c": 7, "d": 8}
PORT = 8080


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def pod_address(name: str, family: int = 4) -> str:
    if name == "far":
        return "10.244.2.5" if family == 4 else "fd01:0:0:2::5"
    return f"10.244.1.{PODS[name]}" if family == 4 else f"fd01:0:0:1::{PODS[name]}"


NODE = {4: "192.168.0.1", 6: "2001:db8::1"}
OUT = {4: "192.168.0.77", 6: "2001:db8::77"}
BRIDGE = {4: "10.244.1.1", 6: "fd01:0:0:1::1"}
FACTS = NodeFacts(
    name="n1",
    addresses=(packed(NODE[4]), packed(NODE[6])),
    cluster_networks=(ipaddress.ip_network("10.244.0.0/16"), ipaddress.ip_network("fd01::/48")),
    service_networks=(ipaddress.ip_network("10.96.0.0/16"), ipaddress.ip_network("fd00:96::/112")),
    families=tuple(Family),
)


class Servers:
    """A line server, TCP and UDP, in every pod: answers ``<pod> <client address>`` and holds the connection."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.open = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def listen(self, space: str, pod: str, port: int = PORT, address: str = "::") -> None:
        def make() -> list[socket.socket]:
            tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, port))
            tcp.listen(512)
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            udp.bind((address, port))
            return [tcp, udp]

        for sock in inside(space, make):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, (sock.type, pod))

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(0.2):
                kind, pod = key.data
                with contextlib.suppress(OSError):
                    if kind == "held":
                        data = key.fileobj.recv(1000)
                        if data:
                            key.fileobj.send(f"{pod} {data.decode()}".encode())
                        else:
                            self._selector.unregister(key.fileobj)
                            key.fileobj.close()
                    elif kind == socket.SOCK_STREAM:
                        connection, peer = key.fileobj.accept()
                        connection.send(f"{pod} {plain(peer[0])}\n".encode())
                        self._selector.register(connection, selectors.EVENT_READ, ("held", pod))
                    else:
                        _, peer = key.fileobj.recvfrom(1000)
                        key.fileobj.sendto(f"{pod} {plain(peer[0])}\n".encode(), peer)


def plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def inside(space: str, fn):
    fd = netns.open_netns(netns.path(space))
    try:
        return netns.run_in(fd, fn)
    finally:
        os.close(fd)


def batch(space: str, *lines: str) -> None:
    """Commands of ip(8) in a namespace, in one process: a guest starts few per second."""
    done = subprocess.run(
        ["ip", "-n", space, "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{space}: {done.stderr}")


def build(servers: Servers) -> None:
    """Everything but the proxy; the calling thread ends up in the node's namespace."""
    for space in ("node", "out", "far", *PODS):
        netns.create(space)
    links = {pod: f"v{pod}" for pod in PODS} | {"out": "up0", "far": "fl0"}
    here = {"out": (f"{NODE[4]}/24", f"{NODE[6]}/64"), "far": ("10.244.2.1/24", "fd01:0:0:2::1/64")}
    there = {pod: (f"{pod_address(pod)}/24", f"{pod_address(pod, 6)}/64") for pod in (*PODS, "far")}
    there["out"] = (f"{OUT[4]}/24", f"{OUT[6]}/64")
    gateways = dict.fromkeys(PODS, (BRIDGE[4], BRIDGE[6])) | {
        "out": (NODE[4], NODE[6]),
        "far": ("10.244.2.1", "fd01:0:0:2::1"),
    }
    batch("node", "link set lo up", "link add cni0 type bridge")
    for space, name in links.items():
        batch(
            space,
            "link set lo up",
            f"link add eth0 type veth peer name {name} netns node",
            "link set eth0 up",
            *(f"addr add {address} dev eth0 {nodad(address)}" for address in there[space]),
        )
    batch(
        "node",
        *(f"link set v{pod} master cni0 up" for pod in PODS),
        # As the plugin does (hairpinMode): what a pod sends itself comes back by the port it left by.
        *(f"link set v{pod} type bridge_slave hairpin on" for pod in PODS),
        "link set cni0 up",
        f"addr add {BRIDGE[4]}/24 dev cni0",
        f"addr add {BRIDGE[6]}/64 dev cni0 nodad",
        *(f"link set {links[space]} up" for space in here),
        *(f"addr add {a} dev {links[space]} {nodad(a)}" for space, found in here.items() for a in found),
        f"route add default via {OUT[4]}",
        f"route add default via {OUT[6]}",
    )
    for space, (v4, v6) in gateways.items():
        batch(space, f"route add default via {v4}", f"route add default via {v6}")
        if space != "out":
            servers.listen(space, space)
    netns.setns(netns.open_netns(netns.path("node")))
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        sysctl.put(name, 1)


def nodad(address: str) -> str:
    return "nodad" if ":" in address else ""


def connect(
    space: str, address: str, port: int, *, source: str = "", wait: float = 3.0
) -> tuple[socket.socket, str]:
    """An open connection and what its server said. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def make() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        if source:
            sock.bind((source, 0))
        return sock

    sock = inside(space, make)
    sock.settimeout(wait)
    try:
        sock.connect((address, port))
        return sock, sock.recv(200).decode().strip()
    except BaseException:
        sock.close()
        raise


def ask(space: str, address: str, port: int, *, wait: float = 3.0, source: str = "") -> str:
    """``<pod> <client address>``, ``refused`` or ``silence``."""
    try:
        sock, said = connect(space, address, port, wait=wait, source=source)
    except TimeoutError:
        return "silence"
    except OSError as exc:
        return "refused" if isinstance(exc, ConnectionError) else f"error {exc.errno}"
    sock.close()
    return said


def ask_udp(space: str, address: str, port: int, *, wait: float = 1.5) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = inside(space, lambda: socket.socket(family, socket.SOCK_DGRAM))
    sock.settimeout(wait)
    try:
        sock.connect((address, port))
        sock.send(b"?")
        return sock.recv(200).decode().strip()
    except TimeoutError:
        return "silence"
    except ConnectionError:
        return "refused"
    finally:
        sock.close()


def who(said: str) -> str:
    return said.split(" ", maxsplit=1)[0]


class Proxy:
    """The data plane with a ledger: what the engine would do, for frontends given directly."""

    def __init__(self, facts: NodeFacts = FACTS, serving: tuple[Frontend, ...] = (), **options) -> None:
        reason = ipvs.missing()
        assert not reason, reason
        self.plane = ipvs.make(facts, IpvsOptions(**options))
        self.compiler, self.driver = self.plane.compiler, self.plane.driver
        self.ledger = Ledger(self.compiler.tables, self.compiler.shared)
        self.ledger.put(self.compiler.common())
        self.served = serving
        self.ledger.put(self.compiler.rows(serving))
        self.changed = self.full()

    def full(self) -> int:
        """A full pass; how many differences there were."""
        changes = self.ledger.against(self.driver.read())
        self.driver.apply(changes)
        return sum(delta.size for _, delta in changes)

    def serve(self, *frontends: Frontend) -> None:
        """Exactly these, by difference."""
        for item in frontends:
            assert not self.compiler.refusal(item), self.compiler.refusal(item)
        self.ledger.drop(self.compiler.rows(self.served))
        self.ledger.put(self.compiler.rows(frontends))
        self.served = frontends
        self.driver.apply(self.ledger.take())

    def left(self) -> list[str]:
        """What a full pass would change."""
        found = self.ledger.against(self.driver.read())
        return [f"{name} {delta}" for name, delta in found]

    def close(self) -> None:
        self.driver.close()


def target(pod: str, port: int = PORT, family: int = 4) -> Target:
    return Target(packed(pod_address(pod, family)), port, pod != "far")


def pool(pods: str, *, port: int = PORT, family: int = 4, draining: str = "", empty=Verdict.REJECT) -> Pool:
    names, gone = pods.split(), draining.split()
    return Pool(
        tuple(sorted(target(pod, port, family) for pod in names)),
        tuple(sorted(target(pod, port, family) for pod in gone)),
        empty,
    )


def frontend(
    address: str, port: int, pods: Pool, kind: Kind = Kind.CLUSTER_IP, *, family=0, protocol=TCP, **more
):
    number = family or (6 if ":" in address else 4)
    key = FrontendKey(
        Family.V4 if number == 4 else Family.V6, packed(address) if address else b"", protocol, port
    )
    return Frontend(key=key, kind=kind, name=PortName("d", "s", ""), pool=pods, **more)


def until(check, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.05)
    return False


__all__ = ["TCP", "UDP", "Kind", "Options"]
