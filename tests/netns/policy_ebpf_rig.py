"""The node of ``policy_rig`` with the fast path above its data plane, and what can be seen of it from outside.

The file system for pins is one of the rig's own, so nothing of another node or of the machine is met.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Self

from pycni.kernel import bpf_places
from pycni.kernel import netns as namespaces
from pycni.model.kube import UDP
from pycni.policy import nft
from pycni.policy.base import LocalPod
from pycni.policy.ebpf import fastpath, flows
from pycni.policy.ebpf.driver import FIRST, Places
from pycni.policy.ebpf.fastpath import EbpfFastPath
from pycni.policy.ebpf.flows import Flow, Times
from pycni.policy.engine import PolicyEngine
from tests.netns.fabric_nodes import run
from tests.netns.policy_rig import Rig, Try
from tests.proxy import rig as plain_rig
from tests.proxy import topology
from tests.proxy.traffic import Traffic

NO_GRACE = Times(grace=0)
"""Datagrams are judged at once: nothing was sent before the programs came."""
_NUMBERS = itertools.count()


@contextlib.contextmanager
def pins() -> Iterator[str]:
    """A file system for pins."""
    where = f"/run/pyt{os.getpid()}-policy{next(_NUMBERS)}"
    try:
        yield bpf_places.bpffs(where)
    finally:
        ctypes.CDLL(None).umount2(where.encode(), 2)
        shutil.rmtree(where, ignore_errors=True)


def local_pods(spaces: topology.Topology, names: tuple[str, ...] = tuple(topology.PODS)) -> list[LocalPod]:
    """The pods of the node as its records have them."""
    found = []
    for name in names:
        mac = json.loads(run(spaces.names[name], "ip -j link show eth0"))[0]["address"]
        addresses = tuple(ipaddress.ip_address(text).packed for text in topology.PODS[name])
        found.append(LocalPod(f"shop/{name}", f"p{name}", bytes.fromhex(mac.replace(":", "")), addresses))
    return found


def in_node(spaces: topology.Topology, call):  # type: ignore[no-untyped-def]
    """Do something in the node's namespace."""
    fd = namespaces.open_netns(spaces.path("node"))
    try:
        return namespaces.run_in(fd, call)
    finally:
        os.close(fd)


class FastRig(Rig):
    """See ``policy_rig.Rig``."""

    filters = False
    """Programs are filters, not links."""

    def __init__(
        self, spaces: topology.Topology, traffic: Traffic, bpffs: str, times: Times = NO_GRACE
    ) -> None:
        self.bpffs, self.times, self.spaces = bpffs, times, spaces
        engine = PolicyEngine("n1", in_node(spaces, nft.make), self.make())
        super().__init__(engine, spaces, traffic)
        self.fast.pods(local_pods(spaces))

    @property
    def fast(self) -> EbpfFastPath:
        fast = self.engine.fast
        assert isinstance(fast, EbpfFastPath)
        return fast

    def make(self, **facts: object) -> EbpfFastPath:
        """Another life of the fast path."""
        facts = {"uplinks": ("eth0",), "times": self.times, "places": Places(bpffs=self.bpffs), **facts}
        if self.filters:
            facts["tcx"] = False
        return in_node(self.spaces, lambda: fastpath.make("n1", **facts))  # type: ignore[arg-type]

    def reset(self, times: Times = NO_GRACE) -> None:
        """As it was at first, with other times."""
        self.fast.driver.times = times
        maps = self.fast.maps
        maps[flows.TIMES].put(FIRST, times.pack())
        maps[flows.GRACE].put(FIRST, bytes(8))
        for name in (flows.FLOWS, flows.SEEN):
            maps[name].remove(maps[name].items())
        rows = maps[flows.PODS].items()
        maps[flows.PODS].update({key: raw[:8] + bytes(8) + raw[16:] for key, raw in rows.items()})
        for name in topology.PODS:
            self.put_pod(name)
        self.only()

    def close(self) -> None:
        self.fast.remove()
        self.fast.close()
        self.engine.plane.driver.remove()
        self.engine.plane.driver.close()

    def flows(self) -> Mapping[tuple[str, str, int], Flow]:
        """Connections that the programs carry: the two addresses, smaller text first, and the protocol."""
        found = {}
        for key, raw in self.fast.maps[flows.FLOWS].items().items():
            ends = sorted((_text(key[:16]), _text(key[16:32])))
            found[ends[0], ends[1], key[36]] = Flow.unpack(raw)
        return found

    def carried(self, one: Try) -> bool:
        """Whether the programs carry such a connection."""
        low, high = sorted(map(_plain, one.ends))
        return (low, high, one.protocol) in self.flows()

    def crossed(self) -> int:
        """Packets that the node's bridge has given to ports: what short cuts leave out."""
        text = run(self.spaces.names["node"], "cat /proc/net/dev")
        rows = {line.split(":")[0].strip(): line.split(":")[1].split() for line in text.splitlines()[2:]}
        return sum(int(rows[f"p{name}"][9]) for name in topology.PODS)


@contextlib.contextmanager
def fast_rig(proxy: plain_rig.Rig, times: Times = NO_GRACE) -> Iterator[FastRig]:
    """In a topology whose services are by nftables (``dataplanes.plain``)."""
    with pins() as bpffs:
        made = FastRig(proxy.spaces, proxy.traffic, bpffs, times)
        try:
            yield made
        finally:
            made.close()


def _text(raw: bytes) -> str:
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _plain(text: str) -> str:
    return str(ipaddress.ip_address(text))


class Socket:
    """A socket in a namespace of the topology: UDP or TCP as a protocol's number, ``icmp``, ``icmp6``, or ``frames``."""

    def __init__(
        self, spaces: topology.Topology, role: str, kind: int | str, address: str, port: int = 0
    ) -> None:
        def make() -> socket.socket:
            if kind == "frames":
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                sock.bind((address, 0))
                return sock
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if kind in {"icmp", "icmp6"}:
                protocol = socket.IPPROTO_ICMP if kind == "icmp" else socket.IPPROTO_ICMPV6
                sock = socket.socket(family, socket.SOCK_RAW, protocol)
            else:
                sock = socket.socket(family, socket.SOCK_DGRAM if kind == UDP else socket.SOCK_STREAM)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, port))
            return sock

        fd = namespaces.open_netns(spaces.path(role))
        try:
            self.sock = namespaces.run_in(fd, make)
        finally:
            os.close(fd)
        self.sock.settimeout(3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def connect(self, address: str, port: int) -> None:
        self.sock.connect((address, port))

    def ask(self) -> str:
        """Who answers; "" when nobody does."""
        try:
            self.sock.send(b"who\n")
            return self.sock.recv(100).decode().split(" ")[0]
        except OSError:
            return ""

    def send(self, data: bytes, address: str, port: int) -> None:
        self.sock.sendto(data, (address, port))

    def receive(self, timeout: float = 3) -> bytes | None:
        """One datagram; None when none comes."""
        self.sock.settimeout(timeout)
        try:
            return self.sock.recv(65536)
        except TimeoutError:
            return None
