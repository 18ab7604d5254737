"""What the tests of the uplink's programs need besides the rig: lives of the agent, streams, packets by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from pycni.kernel import ethtool, netns
from pycni.model.kube import TCP
from pycni.model.service import FrontendKey, NodeFacts
from pycni_proxy.ebpf.driver import SockDriver
from pycni_proxy.ebpf.layout import LEFT, Conn, Tuple, pack_address
from pycni_proxy.ebpf.uplink import Uplink
from pycni_proxy.engine import Engine
from tests.proxy.rig import FACTS, Rig
from tests.unit.service_world import pack

T = TypeVar("T")
PIECE = 1 << 16


def sock_driver(node: Rig) -> SockDriver:
    driver = node.engine.planes[0].driver
    assert isinstance(driver, SockDriver)
    return driver


def uplink(node: Rig) -> Uplink:
    found = sock_driver(node).uplink
    assert found is not None
    return found


def next_life(node: Rig, facts: NodeFacts = FACTS) -> None:
    """The agent ends and starts again; nothing is taken out of the kernel."""

    def begin() -> None:
        for plane in node.engine.planes:
            plane.driver.close()
        node.engine = Engine(facts, node._make(facts))
        node._facts = facts
        node.engine.sync(node._store.snapshot())

    node.inside(begin)


def connections(node: Rig) -> list[tuple[Tuple, Conn, Conn | None]]:
    """What the programs have taken or left, with what they know of answers."""
    entries = uplink(node).conns.items()
    found = []
    for key, raw in entries.items():
        where, conn = Tuple.unpack(key), Conn.unpack(raw)
        if where.answers:
            continue
        back = Tuple(where.client, conn.address, where.ports[:2] + conn.port, where.protocol, answers=True)
        reply = entries.get(back.pack())
        found.append((where, conn, None if reply is None else Conn.unpack(reply)))
    return found


def taken(node: Rig, address: str) -> list[tuple[Tuple, Conn, Conn]]:
    """Connections to an address that were translated on the uplink in both directions."""
    return [
        (where, conn, reply)
        for where, conn, reply in connections(node)
        if where.other == pack_address(pack(address))
        and not conn.flags & LEFT
        and reply is not None
        and conn.packets
        and reply.packets
    ]


def counted(node: Rig, address: str, port: int, plane: int) -> int:
    """Connections through a frontend (``address`` "" and a family's node port too), by one data plane."""
    family = FACTS.families[":" in address]
    key = FrontendKey(family, b"" if port >= 30000 else pack(address), TCP, port)
    counters = node.inside(node.engine.planes[plane].driver.counters)
    return counters[key].connections if key in counters else 0


def inside(node: Rig, role: str, function: Callable[[], T]) -> T:
    """Run something in the namespace of a role of the topology."""
    fd = netns.open_netns(node.spaces.path(role))
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def listening(node: Rig, role: str, address: str, port: int) -> Iterator[socket.socket]:
    sock = inside(node, role, lambda: socket.socket(family_of(address), socket.SOCK_STREAM))
    with sock:
        sock.settimeout(20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(8)
        yield sock


@contextlib.contextmanager
def connected(
    node: Rig, server: socket.socket, source: str, address: str, port: int
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from outside to a server of the test's own: the client's end and the server's."""
    client = inside(node, "out", lambda: socket.socket(family_of(address), socket.SOCK_STREAM))
    with client:
        client.settimeout(20)
        client.bind((source, 0))
        client.connect((address, port))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(20)
            yield client, accepted


def stream(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send so many bytes one way and see them arrive unchanged."""
    data = os.urandom(PIECE) * (size // PIECE)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    got = bytearray()
    try:
        while len(got) < len(data):
            piece = receiver.recv(1 << 20)
            assert piece, f"the connection ended after {len(got)} bytes"
            got += piece
    finally:
        if len(got) < len(data):
            sender.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert bytes(got) == data


@contextlib.contextmanager
def own_sums(node: Rig, *devices: tuple[str, str]) -> Iterator[None]:
    """Have the kernel write checksums itself before these devices (role, name) send: receivers verify them then."""

    def switch(role: str, device: str, *, on: bool) -> None:
        inside(node, role, lambda: ethtool.set_tx_checksum(device, on=on))

    with contextlib.ExitStack() as stack:
        for role, device in devices:
            switch(role, device, on=False)
            stack.callback(switch, role, device, on=True)
        yield


class Sniffer:
    """TCP packets that an address sends, as they pass a device in a namespace."""

    def __init__(self, node: Rig, role: str, device: str, source: str) -> None:
        self._source = pack(source)
        self._sock = inside(
            node, role, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        )
        self._sock.bind((device, 3))
        self._sock.settimeout(5)

    def next(self, flags: int) -> bytes:
        """The next IP packet from the address with exactly these TCP flags, checksums as they are."""
        v6 = len(self._source) == 16
        at, length, header = (8, 16, 40) if v6 else (12, 4, 20)
        while True:
            packet = self._sock.recv(65536)
            if packet[0] >> 4 != (6 if v6 else 4) or packet[at : at + length] != self._source:
                continue
            if packet[6 if v6 else 9] == TCP and packet[header + 13] == flags:
                return packet

    def close(self) -> None:
        self._sock.close()


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def too_big(packet: bytes, mtu: int) -> tuple[bytes, int]:
    """An ICMP error about a packet (only what it would still send next is believed), and its protocol."""
    v6 = packet[0] >> 4 == 6
    header = 40 if v6 else 20
    sequence = struct.unpack_from("!I", packet, header + 4)[0]
    total = 40 + struct.unpack_from("!H", packet, 4)[0] if v6 else struct.unpack_from("!H", packet, 2)[0]
    data = total - header - (packet[header + 12] >> 4) * 4
    quoted = (
        packet[: header + 4] + struct.pack("!I", (sequence + data) % 2**32) + packet[header + 8 : header + 20]
    )
    if v6:
        return struct.pack("!BBHI", 2, 0, 0, mtu) + quoted, socket.IPPROTO_ICMPV6
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:], socket.IPPROTO_ICMP
