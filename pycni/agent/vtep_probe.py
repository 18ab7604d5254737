"""Asks the other nodes' agents through the overlay whether they can be reached, and finds a broken checksum offload.

Some network cards and hypervisors fill in the checksum of a packet inside VXLAN wrongly: UDP and TCP between nodes
stall while pings work (field trouble for years; the cure is ``ethtool -K flannel.1 tx-checksum-ip-generic off``).
So two datagrams go to a peer's VTEP address: one with a checksum, which the device leaves to what is below it, and
one without any (``SO_NO_CHECK``, RFC 6936 for IPv6). Answers carry none. When only the second one is answered, several
times in a row, the offload is suspected: it is switched off (the first must be answered then), on (not), and, that
being the proof, off for good. When switching it off does not help it is not to blame and stays on.

Life: ``VtepProber.update`` says who we are and who the peers are; ``run`` asks one peer per interval in turn. Only
agents of this project answer, and only to VTEP addresses of known peers, with as many bytes as they were sent. A peer
that never answered may run something else: nothing is concluded from its silence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, NoReturn, cast

from pycni.errors import KernelError
from pycni.model.family import Address, Family
from pycni.view.fabric import PeerKey

log = logging.getLogger("pycni.probe")

SO_NO_CHECK = 11
UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX = 101, 102
IP_FREEBIND, IPV6_FREEBIND = 15, 78
ASK, ANSWER = b"pycni-probe?", b"pycni-probe!"
NONCE_BYTES = 8

Switch = Callable[[str, bool], Awaitable[bool]]
"""Switches ``tx-checksum-ip-generic`` of a device; returns whether that changed anything. Raises KernelError."""


class Vtep(NamedTuple):
    """Our end of the overlay in one family."""

    device: str
    address: Address


class PeerProbe(NamedTuple):
    """What is known of a peer through the overlay. Times are the loop's, in seconds."""

    reachable: bool | None
    """None: it never answered, so it may not be one of ours."""
    rtt_s: float | None
    asked: float
    answered: float | None
    """When it last answered."""


class Answers(NamedTuple):
    """Round trip times of the two datagrams, None when not answered in time."""

    checked: float | None
    unchecked: float | None


class VtepProber:
    """Asks and answers. One event loop."""

    def __init__(
        self,
        port: int,
        switch: Switch,
        *,
        interval_s: float = 10.0,
        timeout_s: float = 1.0,
        rounds: int = 3,
        first_s: float = 1.0,
        first_peers: int = 5,
    ) -> None:
        """``rounds``: how often the fault must show before it is acted upon. The first few peers are asked faster."""
        self._port = port
        self._switch = switch
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._rounds = rounds
        self._first_s = first_s
        self._hurry = first_peers
        self._own: Mapping[Family, Vtep] = {}
        self._peers: Mapping[PeerKey, Address] = {}
        self._ends: dict[Family, _End] = {}
        self._asked: dict[PeerKey, None] = {}
        self._allowed: frozenset[str] | None = None
        self._innocent: set[str] = set()
        self.faulty: set[str] = set()
        """Devices whose offload was proven wrong and is off."""
        self.faults = 0
        """Times a fault was proven."""
        self.observe: Callable[[float | None], None] = lambda _rtt_s: None
        """Told of every round: its round trip time in seconds, None when nothing was answered."""
        self.peers: dict[PeerKey, PeerProbe] = {}
        """Results, for status and metrics."""

    def update(self, own: Mapping[Family, Vtep], peers: Mapping[PeerKey, Address]) -> None:
        """Who we are and whom to ask: VTEP addresses by peer.

        The mapping may be one that its owner keeps changing, with a call here after each change.
        """
        self._own, self._peers = own, peers
        self._allowed = None

    async def run(self) -> NoReturn:
        """Ask one peer after the other, for ever."""
        try:
            while True:
                await asyncio.sleep(self._first_s if self._hurry > 0 else self._interval_s)
                self._forget()
                await self._open()
                key = self._next()
                if key is not None:
                    self._hurry -= 1
                    await self.probe(key)
        finally:
            for end in self._ends.values():
                end.close()
            self._ends.clear()

    async def reassert(self) -> None:
        """Switch the offload off again where it was proven wrong (a device made anew has it on)."""
        for device in sorted(self.faulty):
            try:
                if await self._switch(device, False):
                    log.warning("%s: checksum offload switched off again", device)
            except KernelError as error:
                log.warning("%s: checksum offload: %s", device, error)

    async def probe(self, key: PeerKey) -> None:
        """Ask one peer, note the result, act on a proven fault."""
        end, address = self._ends.get(key[1]), self._peers.get(key)
        if end is None or address is None:
            return
        answers = await end.ask(str(address), self._timeout_s)
        own = self._own.get(key[1])
        if own is None:
            return  # while it was waited for an answer, the network got another backend
        self._note(key, answers)
        device = own.device
        if answers.checked is None and answers.unchecked is not None and device not in self._innocent:
            await self._accuse(key, end, str(address), device)

    async def _accuse(self, key: PeerKey, end: _End, address: str, device: str) -> None:
        """Only the datagram without checksum came through: see whether that follows the offload, both ways."""
        try:
            if not await self._lost(end, address) or not await self._switch(device, False):
                return  # it was chance; or the offload is off and something else loses the packets
            helps = await self._heard(end, address)
            await self._switch(device, True)
            if not helps:
                self._innocent.add(device)
                log.warning(
                    "%s: peer %s gets datagrams without checksum only; the offload is not the reason",
                    device,
                    key[0],
                )
            elif await self._lost(end, address):
                await self._switch(device, False)
                self.faulty.add(device)
                self.faults += 1
                log.error(
                    "%s: the network below computes checksums of packets inside VXLAN wrongly (shown by peer %s): "
                    "tx-checksum-ip-generic is off now",
                    device,
                    key[0],
                )
        except KernelError as error:
            log.warning("%s: checksum offload: %s", device, error)

    async def _lost(self, end: _End, address: str) -> bool:
        """Whether round after round only the datagram without checksum is answered."""
        for _ in range(self._rounds):
            answers = await end.ask(address, self._timeout_s)
            if answers.checked is not None or answers.unchecked is None:
                return False
        return True

    async def _heard(self, end: _End, address: str) -> bool:
        """Whether round after round the datagram with a checksum is answered."""
        for _ in range(self._rounds):
            if (await end.ask(address, self._timeout_s)).checked is None:
                return False
        return True

    def _note(self, key: PeerKey, answers: Answers) -> None:
        now = asyncio.get_running_loop().time()
        before = self.peers.get(key)
        times = [rtt for rtt in answers if rtt is not None]
        self.observe(min(times, default=None))
        if times:
            if before is not None and before.reachable is False:
                log.info("peer %s: reachable through the overlay again (%s)", key[0], key[1].label)
            self.peers[key] = PeerProbe(True, min(times), now, now)
        elif before is None or before.answered is None:
            self.peers[key] = PeerProbe(None, None, now, None)
        else:
            if before.reachable:
                log.warning("peer %s: no answer through the overlay any more (%s)", key[0], key[1].label)
            self.peers[key] = PeerProbe(False, None, now, before.answered)

    def _forget(self) -> None:
        """Drop what is known of peers that are gone."""
        for gone in self._asked.keys() - self._peers.keys():
            del self._asked[gone]
            self.peers.pop(gone, None)

    def _may_ask(self, source: str) -> bool:
        """Whether an address is a known peer's VTEP."""
        if self._allowed is None:
            self._allowed = frozenset(str(address) for address in self._peers.values())
        return source in self._allowed

    def _next(self) -> PeerKey | None:
        """The peer whose turn it is: never asked before, else longest ago."""
        fresh = next((key for key in self._peers if key not in self._asked), None)
        key = fresh if fresh is not None else next(iter(self._asked), None)
        if key is not None:
            self._asked.pop(key, None)
            self._asked[key] = None
        return key

    async def _open(self) -> None:
        """Have sockets on our present VTEP addresses."""
        for family, end in list(self._ends.items()):
            if self._own.get(family) is None or end.address != self._own[family].address:
                end.close()
                del self._ends[family]
        for family, own in self._own.items():
            if family not in self._ends:
                try:
                    self._ends[family] = await _End.open(own.address, self._port, self._may_ask)
                except OSError as error:
                    log.warning("probe socket on %s port %d: %s", own.address, self._port, error)


class _End:
    """The three sockets of one family: answering, asking with a checksum, asking without."""

    def __init__(self, address: Address, port: int, may_ask: Callable[[str], bool]) -> None:
        self.address = address
        self._may_ask = may_ask
        self._waiting: dict[tuple[str, bytes], asyncio.Future[float]] = {}
        self._transports: list[asyncio.DatagramTransport] = []
        self._port = port

    @classmethod
    async def open(cls, address: Address, port: int, may_ask: Callable[[str], bool]) -> _End:
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
