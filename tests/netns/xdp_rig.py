"""A node's uplink with the XDP program on it, judged by frames: one namespace, one veth pair, pods that are addresses.

What is sent into ``far`` arrives at ``eth0``; what XDP lets pass is seen there by a packet socket.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pycni.kernel import bpf, bpf_xdp, netns
from pycni.kernel.netlink import NetlinkSocket
from pycni.policy.ebpf.driver import Places
from pycni.policy.xdp import xdp
from pycni.policy.xdp.xdp import XdpPath
from pycni.store import Objects
from pycni.view.policies import PolicyView
from pycni.view.policy_stages import ABSENT, RowDiff
from pycni.wire import rtlink
from pycni.wire.netlink import parse_attrs
from tests.netns import bpf_run
from tests.netns import frames as f
from tests.netns.fabric_nodes import run
from tests.netns.policy_ebpf_rig import pins

T = TypeVar("T")
MAC, FAR_MAC = f.mac("02:00:00:00:00:01"), f.mac("02:00:00:00:00:02")
LOCAL = {4: "192.168.0.1", 6: "fd00:a::1"}
REMOTE = {4: "192.168.0.2", 6: "fd00:a::2"}
PORT, VNI = 8472, {4: 1, 6: 2}
_CARRIER_CHANGES = 35
_NUMBERS = itertools.count()


class Wire:
    """The namespace."""

    def __init__(self, name: str, bpffs: str) -> None:
        self.name, self.places = name, Places(bpffs=bpffs)
        self._fd = netns.open_netns(netns.path(name))

    def inside(self, call: Callable[[], T]) -> T:
        return netns.run_in(self._fd, call)

    def path(self, mode: str = "auto", **facts: Any) -> XdpPath:
        """A life of the agent's part."""
        facts = {"devices": ("eth0",), "places": self.places, **facts}
        return self.inside(lambda: xdp.make("n1", mode=mode, **facts))

    def carrier_changes(self, device: str = "eth0") -> int:
        with self.inside(NetlinkSocket) as sock:
            [reply] = sock.request(rtlink.get_link(name=device), "look", device)
        return int.from_bytes(parse_attrs(reply.payload, 16)[_CARRIER_CHANGES], "little")

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    name = f"pyt{os.getpid()}xdp{next(_NUMBERS)}"
    netns.create(name)
    try:
        run(
            name,
            "ip link add eth0 address 02:00:00:00:00:01 type veth peer name far address 02:00:00:00:00:02",
        )
        for device in ("eth0", "far"):
            run(name, f"ip link set {device} up")
        for family, local in LOCAL.items():
            # Nothing has to reach the device: what comes through the program is looked at before.
            run(
                name,
                f"ip link add vx{family} type vxlan id {VNI[family]} local {local} dstport {PORT} dev eth0 nolearning",
            )
        with pins() as bpffs:
            made = Wire(name, bpffs)
            try:
                yield made
            finally:
                made.close()
    finally:
        netns.delete(name)


def ifindex(made: Wire, name: str = "eth0") -> int:
    found = made.inside(lambda: look(name))
    assert found is not None
    return found.ifindex


def look(name: str) -> bpf_xdp.Device | None:
    with NetlinkSocket() as sock:
        return bpf_xdp.device(sock, name)


class Judge:
    """A node's view, and the program's verdicts on frames without sending them."""

    def __init__(self, path: XdpPath) -> None:
        self.path = path
        self.view = PolicyView("n1")
        self._fd = -1

    def sync(self, objects: Objects, changed: Mapping[str, set[str]] | None = None) -> None:
        """As the engine does it."""
        rows = self.view.update(objects, changed)
        if changed is None:
            tables = self.view.tables
            rows = [RowDiff(name, key, ABSENT, row) for name in tables for key, row in tables[name].items()]
        self.path.aside()
        self.path.update(rows, full=changed is None)
        self.path.apply()

    def drops(self, frame: bytes) -> bool:
        if self._fd < 0:
            self._fd = bpf.get(os.path.join(self.path._programs.folder, "programs", "pycni_xdp"))
        said = bpf_run.run(self._fd, frame)[0]
        assert said in {bpf_run.XDP_DROP, bpf_run.XDP_PASS}
        return said == bpf_run.XDP_DROP

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self.path.remove()
        self.path.close()


def plain(packet: bytes, mac: bytes = MAC) -> bytes:
    return f.ether(mac, FAR_MAC, packet)


def vxlan(
    packet: bytes, family: int = 4, vni: int = 0, port: int = PORT, flags: int = 8, **outer: Any
) -> bytes:
    """A packet in an Ethernet frame in VXLAN of an outer family."""
    head = struct.pack(">II", flags << 24, (vni or VNI[family]) << 8)
    inner = f.ether(f.mac("02:00:00:00:00:0a"), FAR_MAC, packet)
    ends = {"source": REMOTE[family], "destination": LOCAL[family], **outer}
    return plain(f.ip(ends.pop("source"), ends.pop("destination"), f.UDP, f.udp(port, head + inner), **ends))


def first_packet(source: str | bytes, destination: str | bytes, protocol: int, port: int) -> bytes:
    """What begins a connection."""
    return f.ip(source, destination, protocol, payload(protocol, port))


def payload(protocol: int, port: int = 80) -> bytes:
    if protocol == f.TCP:
        return f.tcp(port)
    if protocol == f.UDP:
        return f.udp(port, b"hello")
    if protocol == 132:
        return f.sctp_init(port)
    return f.icmp(8 if protocol == f.ICMP else 128, 0, b"\0\7\0\1")


@contextlib.contextmanager
def sending(made: Wire) -> Iterator[tuple[socket.socket, f.Catcher]]:
    """A socket whose frames arrive at eth0, and what of them passes."""
    with made.inside(lambda: f.wire("far")) as sock, f.catching(made.inside, "eth0") as catcher:
        yield sock, catcher
