"""A node in a namespace of its own for tests of pods: the test's thread is in it, pods are named namespaces."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from typing import Any, NamedTuple

import pytest

from pycni.attach.compile import compile_attachment
from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.kernel import netns as namespaces
from pycni.kernel.pod import PodDriver
from pycni.model.cni import PluginConf
from pycni.model.endpoint import Owner
from pycni.model.podnet import PodNetwork

PODNET = PodNetwork(
    subnets=(ip_network("10.1.2.0/24"), ip_network("fd00:1:2::/64")),
    networks=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
    mtu=1450,
)
FAMILIES = {"v4": (4,), "v6": (6,), "dual": (4, 6)}
_NUMBERS = itertools.count()


class Allocation(NamedTuple):
    address: Any
    gateway: Any = None


class Pod:
    """A pod's namespace and what is attached to it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.fd = namespaces.open_netns(namespaces.path(name))
        self.plan: AttachPlan | None = None
        self.links: AttachedLinks | None = None

    def v4(self) -> str:
        return f"10.1.2.{self.number}"

    def v6(self) -> str:
        return f"fd00:1:2::{self.number:x}"

    def run(self, command: str, *, ok: bool = True) -> str:
        return run(command, self.name, ok=ok)

    def inside(self, fn: Callable[[], Any]) -> Any:
        return namespaces.run_in(self.fd, fn)


class Env:
    """The node."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self.name = make()
        self.pods: list[Pod] = []
        self.drivers: list[PodDriver] = []
        self.host = namespaces.open_netns(namespaces.path(self.name))
        namespaces.setns(self.host)
        run("ip link set lo up")
        self.driver = self.new_driver()

    def new_driver(self) -> PodDriver:
        driver = PodDriver()
        self.drivers.append(driver)
        driver.start()
        return driver

    def pod(self) -> Pod:
        """An empty pod."""
        pod = Pod(self._make(), len(self.pods) + 2)
        self.pods.append(pod)
        return pod

    def plan(
        self, pod: Pod, families: tuple[int, ...] = (4,), podnet: Any = PODNET, **conf: Any
    ) -> AttachPlan:
        allocated = []
        if 4 in families:
            allocated.append(Allocation(ip_interface(f"{pod.v4()}/24")))
        if 6 in families:
            allocated.append(Allocation(ip_interface(f"{pod.v6()}/64")))
        settings = PluginConf(cni_version="1.1.0", name=conf.pop("network", "net"), **conf)
        return compile_attachment(settings, podnet, allocated, Owner(settings.name, pod.name, "eth0"))

    def attach(self, families: tuple[int, ...] = (4,), **conf: Any) -> Pod:
        """A new pod, attached."""
        pod = self.pod()
        pod.plan = self.plan(pod, families, **conf)
        pod.links = self.driver.attach(pod.plan, pod.fd)
        return pod

    def detach(self, pod: Pod) -> None:
        """Cut off and wait until the link is gone."""
        assert pod.plan is not None
        self.driver.detach(pod.plan.owner, pod.fd)
        assert self.driver.wait_gone(pod.plan.owner)

    def outside(self, families: tuple[int, ...] = (4,)) -> Pod:
        """A machine next to the node, reached by eth1: 192.0.2.2/24 and 2001:db8::2/64, routes to the node."""
        out = self.pod()
        run(f"ip link add eth1 type veth peer name eth0 netns {out.name}")
        if 6 in families:
            run("sysctl -qw net.ipv6.conf.eth1.accept_dad=0")
            out.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
        run("ip link set eth1 up")
        out.run("ip link set lo up")
        out.run("ip link set eth0 up")
        if 4 in families:
            run("ip addr add 192.0.2.1/24 dev eth1")
            out.run("ip addr add 192.0.2.2/24 dev eth0")
            out.run("ip route add default via 192.0.2.1")
        if 6 in families:
            run("ip addr add 2001:db8::1/64 dev eth1 nodad")
            out.run("ip addr add 2001:db8::2/64 dev eth0 nodad")
            out.run("ip route add default via 2001:db8::1")
        return out

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        for pod in self.pods:
            os.close(pod.fd)
        os.close(self.host)


def run(command: str, netns: str = "", *, ok: bool = True) -> str:
    """Output of a command, in the calling thread's namespace or a named one."""
    words = command.split()
    prefix = namespaces.exec_prefix(netns) if netns else []
    done = subprocess.run([*prefix, *words], capture_output=True, text=True, check=False, timeout=30)
    if ok and done.returncode:
        pytest.fail(f"{command}: {done.stderr or done.stdout}")
    return done.stdout if ok else done.stdout + done.stderr


def links(netns: str = "") -> dict[str, Any]:
    """Links with details by name."""
    return {link["ifname"]: link for link in json.loads(run("ip -d -j link", netns))}


def addresses(device: str, netns: str = "") -> list[str]:
    """Addresses of a device that are not link-local, sorted."""
    listed = json.loads(run(f"ip -j addr show dev {device}", netns))
    return sorted(
        f"{info['local']}/{info['prefixlen']}" for info in listed[0]["addr_info"] if info["scope"] == "global"
    )


def pings(pod: Pod | None, target: str, *, size: int = 56, wait: float = 2.0) -> bool:
    """Whether one unfragmented echo request with ``size`` bytes of data is answered; nothing is sent twice."""

    def open_socket() -> socket.socket:
        if ":" in target:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            ipv6_dontfrag = 62
            sock.setsockopt(socket.IPPROTO_IPV6, ipv6_dontfrag, 1)
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            ip_mtu_discover, ip_pmtudisc_do = 10, 2
            sock.setsockopt(socket.IPPROTO_IP, ip_mtu_discover, ip_pmtudisc_do)
        return sock

    number = next(_NUMBERS) & 0xFFFF
    v6 = ":" in target
    body = struct.pack(">BBHHH", 128 if v6 else 8, 0, 0, os.getpid() & 0xFFFF, number) + bytes(size)
    if not v6:
        total = sum(struct.unpack(f">{len(body) // 2}H", body))
        total = (total & 0xFFFF) + (total >> 16)
        body = body[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    deadline = time.monotonic() + wait
    with pod.inside(open_socket) if pod is not None else open_socket() as sock:
        try:
            sock.sendto(body, (target, 0))
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                answer = sock.recv(65536)
                answer = answer if v6 else answer[(answer[0] & 15) * 4 :]
                if answer[0] == (129 if v6 else 0) and answer[4:] == body[4:]:
                    return True
        except OSError:
            pass
    return False


@contextmanager
def serving(pod: Pod | None, port: int, *, family: int = 4, udp: bool = False) -> Iterator[socket.socket]:
    """A server's socket in a pod (None: in the node)."""

    def open_socket() -> socket.socket:
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0" if family == 4 else "::", port))
        if not udp:
            sock.listen(16)
        sock.settimeout(3)
        return sock

    sock = pod.inside(open_socket) if pod is not None else open_socket()
    with sock:
        yield sock


def connect(pod: Pod | None, target: str, port: int, server: socket.socket, wait: float = 1.0) -> str:
    """The client's address as a TCP server sees it; "" when the connection fails."""

    def open_socket() -> socket.socket | None:
        try:
            return socket.create_connection((target, port), timeout=wait)
        except OSError:
            return None

    client = pod.inside(open_socket) if pod is not None else open_socket()
    if client is None:
        return ""
    with client:
        accepted, peer = server.accept()
        with accepted:
            accepted.sendall(b"x")
            assert client.recv(1) == b"x"
        return str(peer[0])


def exchange(pod: Pod | None, target: str, port: int, server: socket.socket, wait: float = 1.0) -> str:
    """The client's address as a UDP server sees it; "" when no answer comes back."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET

    def open_socket() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(wait)
        sock.connect((target, port))
        return sock

    with pod.inside(open_socket) if pod is not None else open_socket() as client:
        client.send(b"ping")
        server.settimeout(wait)
        try:
            _, peer = server.recvfrom(16)
            server.sendto(b"pong", peer)
            client.recv(16)
        except OSError:
            return ""
        return str(peer[0])


@contextmanager
def node(make: Callable[[], str]) -> Iterator[Env]:
    """The test's thread is in the node's namespace inside this block, and back home after it."""
    home = namespaces.current()
    env: Env | None = None
    try:
        env = Env(make)
        yield env
    finally:
        try:
            if env is not None:
                env.close()
        finally:
            namespaces.setns(home)
            os.close(home)
