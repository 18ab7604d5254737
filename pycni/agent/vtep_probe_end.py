"""The sockets by which agents ask each other through the pod network (``vtep_probe``), and the two datagrams.

A question and its answer are as long as each other: ``pycni-probe?`` or ``pycni-probe!`` and a number that only the
asker knows. Answers carry no checksum.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import NamedTuple, cast

from pycni.model.family import Address

log = logging.getLogger("pycni.probe")

SO_NO_CHECK = 11
UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX = 101, 102
IP_FREEBIND, IPV6_FREEBIND = 15, 78
ASK, ANSWER = b"pycni-probe?", b"pycni-probe!"
NONCE_BYTES = 8


class Answers(NamedTuple):
    """Round trip times of the two datagrams, None when not answered in time."""

    checked: float | None
    unchecked: float | None


class End:
    """The three sockets of one family: answering, asking with a checksum, asking without."""

    def __init__(self, address: Address, port: int, may_ask: Callable[[str], bool]) -> None:
        self.address = address
        self._may_ask = may_ask
        self._waiting: dict[tuple[str, bytes], asyncio.Future[float]] = {}
        self._transports: list[asyncio.DatagramTransport] = []
        self._port = port

    @classmethod
    async def open(cls, address: Address, port: int, may_ask: Callable[[str], bool]) -> End:
        """Sockets bound to ``address``, which need not be there yet."""
        end = cls(address, port, may_ask)
        loop = asyncio.get_running_loop()
        try:
            for bind_port, checked, handler in (
                (port, False, end._asked),
                (0, True, end._answered),
                (0, False, end._answered),
            ):
                sock = _socket(address, bind_port, checked=checked)
                try:
                    transport, _ = await loop.create_datagram_endpoint(
                        lambda handler=handler: _Protocol(handler),  # type: ignore[misc]
                        sock=sock,
                    )
                except BaseException:
                    sock.close()
                    raise
                end._transports.append(transport)
        except BaseException:
            end.close()
            raise
        return end

    def close(self) -> None:
        """Close all; who waits for an answer gets none."""
        for transport in self._transports:
            transport.close()
        for future in self._waiting.values():
            future.cancel()

    async def ask(self, peer: str, timeout_s: float) -> Answers:
        """Send both datagrams and wait for both answers."""
        _, checked, unchecked = self._transports
        tasks = [self._ask(transport, peer, timeout_s) for transport in (checked, unchecked)]
        return Answers(*await asyncio.gather(*tasks))

    async def _ask(self, transport: asyncio.DatagramTransport, peer: str, timeout_s: float) -> float | None:
        loop = asyncio.get_running_loop()
        nonce = os.urandom(NONCE_BYTES)
        future: asyncio.Future[float] = loop.create_future()
        self._waiting[peer, nonce] = future
        sent = loop.time()
        try:
            transport.sendto(ASK + nonce, (peer, self._port))
            async with asyncio.timeout(timeout_s):
                return await future - sent
        except TimeoutError:
            return None
        finally:
            del self._waiting[peer, nonce]

    def _asked(self, transport: asyncio.DatagramTransport, data: bytes, source: tuple[str, int]) -> None:
        if self._may_ask(source[0]) and data.startswith(ASK) and len(data) == len(ASK) + NONCE_BYTES:
            transport.sendto(ANSWER + data[len(ASK) :], source)

    def _answered(self, _transport: asyncio.DatagramTransport, data: bytes, source: tuple[str, int]) -> None:
        if not data.startswith(ANSWER):
            return
        future = self._waiting.get((source[0], data[len(ANSWER) :]))
        if future is not None and not future.done():
            future.set_result(asyncio.get_running_loop().time())


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, handler: Callable[[asyncio.DatagramTransport, bytes, tuple[str, int]], None]) -> None:
        self._handler = handler
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # 3.11's own is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._handler(self._transport, data, (addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:
        """ICMP errors and missing routes: the answer stays out, which is what counts."""
        log.debug("probe: %s", exc)


def _socket(address: Address, port: int, *, checked: bool) -> socket.socket:
    """A UDP socket on our VTEP address. ``checked``: whether what it sends carries a checksum."""
    v4 = address.version == 4
    sock = socket.socket(
        socket.AF_INET if v4 else socket.AF_INET6,
        socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        if v4:
            sock.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
            if not checked:
                sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_UDP, UDP_NO_CHECK6_RX, 1)
            if not checked:
                sock.setsockopt(socket.SOL_UDP, UDP_NO_CHECK6_TX, 1)
        sock.bind((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock
