"""For tests of backend udp: a peer by hand that speaks flannel's udp, a stream that misses nothing, frames on the wire."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from typing import Self

from pycni.kernel import netns as namespaces
from pycni.kernel import udp_forwarder
from pycni.wire import forwarder as wire
from tests.netns.fabric_nodes import FabricNode, FabricWorld, until
from tests.netns.test_network_component import pod

PORT = 8285
SO_RCVBUFFORCE = 33


def inhabitants(node: FabricNode) -> set[int]:
    """Processes in a node's namespace, without this one."""
    found = subprocess.run(["ip", "netns", "pids", node.name], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()} - {os.getpid()}


def forwarder_of(node: FabricNode) -> int:
    """Process of the node's forwarder."""
    [pid] = inhabitants(node)
    return pid


def clean(world: FabricWorld) -> None:
    """End agents and forwarders, remove everything."""
    for agent in (agent for node in world.nodes.values() for agent in node.agents):
        agent.stop()
    for node in world.nodes.values():
        node("ip link del flannel0", ok=False)
        with contextlib.suppress(AssertionError):
            until(lambda node=node: not inhabitants(node), "the forwarder ends")
        for pid in inhabitants(node):
            os.kill(pid, signal.SIGKILL)
    world.close()


def state(node: FabricNode) -> wire.State:
    """What the node's forwarder says."""
    return udp_forwarder.read(str(node.folder / "state/udp"), "flannel0")


def tell(node: FabricNode, request: wire.Request) -> None:
    [answer] = udp_forwarder.send(str(node.folder / "state/udp"), "flannel0", [request])
    assert not answer.error


def counters(node: FabricNode) -> dict[str, int]:
    return state(node).counters


def inside(name: str, job):
    """Run something in a namespace."""
    fd = namespaces.open_netns(namespaces.path(name))
    try:
        return namespaces.run_in(fd, job)
    finally:
        os.close(fd)


def wire_socket(name: str, device: str) -> socket.socket:
    """Sees and sends whole frames on a device of a namespace."""

    def made() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.bind((device, 3))
        tap.settimeout(0.3)
        return tap

    return inside(name, made)


def frames(tap: socket.socket) -> list[bytes]:
    """UDP datagrams to the forwarders' port that were seen, as frames; waits until nothing comes any more."""
    found = []
    while True:
        try:
            frame = tap.recv(70000)
        except TimeoutError:
            return found
        payload = udp_payload(frame)
        if payload is not None:
            found.append(frame)


def udp_payload(frame: bytes) -> bytes | None:
    """What a datagram to the forwarders' port carries; None for other frames."""
    kind, start = frame[12:14], {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 0)
    if not start or frame[23 if kind == b"\x08\x00" else 20] != socket.IPPROTO_UDP:
        return None
    _, port, size = struct.unpack_from("!HHH", frame, start)
    return frame[start + 8 : start + size] if port == PORT else None


class Stream:
    """Numbered datagrams from a pod of one node to one of another, every 2 ms, in a ``with`` block.

    Afterwards ``missing`` are those that did not come after the first that did.
    """

    def __init__(self, one: FabricNode, two: FabricNode, family: str = "4") -> None:
        self._source, target = pod(one, family), pod(two, family)
        self._receiver = two.socket(target, 4100)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self._sender = one.socket(self._source)
        self._target = (target, 4100)
        self._ended = threading.Event()
        self.sent, self.errors = 0, []
        self.came: set[int] = set()
        self.missing: set[int] = set()
        self._threads = [threading.Thread(target=job) for job in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            until(lambda: self.came, "the stream's first packet")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind, *_rest) -> None:
        last = self.sent
        if kind is None:
            with contextlib.suppress(AssertionError):
                until(lambda: last - 1 in self.came, "the last packet")
            self.missing = set(range(min(self.came), last)) - self.came
        self._close()

    def _send(self) -> None:
        while not self._ended.wait(0.002):
            try:
                self._sender.sendto(self.sent.to_bytes(8, "big") + bytes(100), self._target)
            except OSError as error:
                self.errors.append(error)
                continue
            self.sent += 1

    def _receive(self) -> None:
        self._receiver.settimeout(0.2)
        while True:
            try:
                self.came.add(int.from_bytes(self._receiver.recv(200)[:8], "big"))
            except TimeoutError:
                if self._ended.is_set():
                    return

    def _close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()


def transfer(one: FabricNode, two: FabricNode, family: str, size: int) -> bool:
    """Random bytes by TCP from pod to pod; whether they came as they were sent."""
    source, target = pod(one, family), pod(two, family)
    kind = socket.AF_INET if family == "4" else socket.AF_INET6
    data = os.urandom(size)
    came = hashlib.sha256()
    listener = inside(two.name, lambda: socket.create_server((target, 4200), family=kind))
    listener.settimeout(20)

    def take() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(30)
            while part := sock.recv(1 << 16):
                came.update(part)

    def give() -> socket.socket:
        return socket.create_connection((target, 4200), 20, (source, 0))

    with listener:
        taker = threading.Thread(target=take)
        taker.start()
        try:
            with inside(one.name, give) as sock:
                sock.sendall(data)
        finally:
            taker.join()
    return came.digest() == hashlib.sha256(data).digest()


class BarePeer:
    """flannel's udp backend as its documents describe it, by hand: an IP packet is what a datagram carries."""

    def __init__(self, node: FabricNode, others: dict[str, str]) -> None:
        """``others``: base of a /24 of pods -> its node's address. Its own subnet has the node's number."""
        self._others = {socket.inet_aton(base)[:3]: address for base, address in others.items()}

        def made() -> tuple[int, socket.socket]:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"flannel0", 0x1001))
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((f"192.0.2.{node.number}", PORT))
            return tun, sock

        self._tun, self._sock = inside(node.name, made)
        node(f"ip addr add 10.5.{node.number}.0/32 dev flannel0")
        node("ip link set flannel0 up mtu 1472")
        node("ip route add 10.5.0.0/16 dev flannel0")
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._tun, self._sock, self._ended], [], [])
            if self._ended in ready:
                return
            if self._sock in ready:
                packet = self._sock.recv(1500)
                with contextlib.suppress(OSError):
                    os.write(self._tun, packet)
            if self._tun in ready:
                packet = os.read(self._tun, 1500)
                there = self._others.get(packet[16:19]) if packet[0] >> 4 == 4 else None
                if there is not None:
                    self._sock.sendto(packet, (there, PORT))

    def close(self) -> None:
        os.close(self._end)
        self._thread.join()
        os.close(self._ended)
        os.close(self._tun)
        self._sock.close()
