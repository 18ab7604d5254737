"""How long a stream of packets is without a way: the router in use is cut off, and another one has a longer path.

A datagram every two milliseconds goes from the node to an address that both routers have. The first router's cable is
pulled at the switch, so that the node's own link stays up. The gap is from then until the other router gets a packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

from bench.bgpnet import BgpNet, Timers, bgp_net
from pycni.kernel import netns as namespaces
from tests.netns.bgp_nodes import execute

NETWORK, TARGET, PORT = "203.0.113.0/24", "203.0.113.5", 9
EVERY_S = 0.002
FIRST, SECOND = 11, 12
PATIENCE_S = 60.0


def _socket(where: str, address: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        if address:
            made.bind((address, PORT))
        return made

    fd = namespaces.open_netns(namespaces.path(where))
    try:
        return namespaces.run_in(fd, make)
    finally:
        os.close(fd)


class Stream:
    """Datagrams from the node, and when each router last got one."""

    def __init__(self, net: BgpNet) -> None:
        self.last: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._sender = _socket(net.node.where, "")
        self._receivers = {number: _socket(item.where, TARGET) for number, item in net.routers.items()}
        loop = asyncio.get_running_loop()
        for number, receiver in self._receivers.items():
            loop.add_reader(receiver, self._take, number, receiver)
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # no route: the gap shows it
                self._sender.sendto(b"x", (TARGET, PORT))
            await asyncio.sleep(EVERY_S)

    def _take(self, number: int, receiver: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(10):
                self.last[number] = time.perf_counter()

    async def arrives(self, number: int, since: float) -> float:
        """When a router got one after a moment."""
        end = time.perf_counter() + PATIENCE_S
        while self.last.get(number, since) <= since:
            assert time.perf_counter() < end, f"nothing at router {number} within {PATIENCE_S:g} s"
            await asyncio.sleep(EVERY_S)
        return self.last[number]

    async def close(self) -> None:
        """Send no more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        loop = asyncio.get_running_loop()
        for receiver in self._receivers.values():
            loop.remove_reader(receiver)
            receiver.close()
        self._sender.close()


async def failover(kind: str, timers: Timers, times: int) -> list[float]:
    """Seconds without a way, each time."""
    gaps = []
    async with bgp_net(kind, (FIRST, SECOND), timers) as net:
        for number, item in net.routers.items():
            execute(item.where, f"ip address add {TARGET}/32 dev lo")
            await item.configure(net.router_conf(number, [NETWORK]))
        stream = Stream(net)
        try:
            for _ in range(times):
                await stream.arrives(FIRST, time.perf_counter())
                await net.all_up()
                execute(net.net.switch.where, f"ip link set v{FIRST} down")
                cut = time.perf_counter()
                gaps.append(await stream.arrives(SECOND, cut) - cut)
                execute(net.net.switch.where, f"ip link set v{FIRST} up")
        finally:
            await stream.close()
    return gaps
