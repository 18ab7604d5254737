"""Packets in both directions, in bursts: what is accepted, what is dropped and why.

Out: a packet of the device goes to the peer whose network its receiver is in. In: a datagram counts when it comes from
a known peer's address, decrypts (with a key), is an IP packet of the length it says, and its sender is in one of that
peer's networks. Everything else is dropped and counted; nothing is answered.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycni.forwarder.sockets import TOO_LARGE, pieces, segment_size, send_piece
from pycni.forwarder.table import Peer, Table

if TYPE_CHECKING:
    from pycni.forwarder.seal import Channel, Keyring

BURST = 128
"""Packets of one direction before the other one has its turn."""
READ_BYTES, LEAST_READ_BYTES = 65536, 2048
TRY_AGAIN_S = 30.0
"""How long a peer's datagrams are sent one by one after a burst was refused."""


class DeviceGoneError(Exception):
    """The device was deleted."""


class Paths:
    """Between one device and the peers."""

    def __init__(self, tun: int) -> None:
        """``tun``: the device, not blocking."""
        self._tun = tun
        self.table = Table()
        self.counters: Counter[str] = Counter(tun_packets=0, tun_bytes=0, udp_packets=0, udp_bytes=0)
        """Packets and bytes of pods from the device, and to it."""
        self.drops: Counter[str] = Counter()
        """Packets by why they were dropped."""
        self.sockets: dict[int, socket.socket] = {}
        """By length of an address."""
        self.public: dict[int, bytes] = {}
        """Own public address by its length."""
        self.read_bytes = READ_BYTES
        """How much to make room for when a packet is read; a longer one is cut off and comes to nothing."""
        self.hurry = False
        """Whether a hello is out: the clock is to be looked at more often."""
        self._ring: Keyring | None = None
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)

    # what is wanted

    def secure(self, psk: bytes | None) -> None:
        """Start over with this key, or without one."""
        for peer in self.table.peers.values():
            self.part(peer)
        self._ring = None
        if psk is not None:
            # Its library takes a while to import, and only networks with a key need it.
            from pycni.forwarder.seal import Keyring  # noqa: PLC0415

            self._ring = Keyring(psk, self.drops)

    def part(self, peer: Peer) -> None:
        """Forget a peer's sessions."""
        if peer.channel is not None:
            peer.channel.close()
            peer.channel = None

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.hurry = False
        for peer in self.table.peers.values():
            channel = peer.channel
            if channel is not None:
                channel.tick(now)
                self._flush(peer, channel)

    # out

    def from_device(self) -> None:
        """One burst. Raises DeviceGoneError.

        The first packet is sent before the next one is looked for: a lonely one is not kept waiting.
        """
        packet = self._read()
        if packet is None:
            return
        peer = self._receiver(packet)
        if peer is not None:
            self._send(peer, [packet])
        bursts: dict[Peer, list[bytes]] = {}
        for _ in range(BURST):
            packet = self._read()
            if packet is None:
                break
            peer = self._receiver(packet)
            if peer is None:
                continue
            if peer in bursts:
                bursts[peer].append(packet)
            else:
                bursts[peer] = [packet]
        for peer, packets in bursts.items():
            self._send(peer, packets)

    def _read(self) -> bytes | None:
        """A packet of the device; None when there is none. Raises DeviceGoneError."""
        try:
            return os.read(self._tun, self.read_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise DeviceGoneError from None
            return None  # EIO: the device is down

    def _receiver(self, packet: bytes) -> Peer | None:
        """Whom a packet is for; one that is for nobody is counted."""
        peer = self.table.owner(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
        if peer is None:
            self.drops["no_peer"] += 1
        return peer

    def _send(self, peer: Peer, packets: list[bytes]) -> None:
        self.counters["tun_packets"] += len(packets)
        self.counters["tun_bytes"] += sum(map(len, packets))
        if self._ring is None:
            self._put_out(peer, packets)
            return
        channel = self._channel(self._ring, peer)
        self._put_out(peer, channel.seal(packets, time.monotonic()))
        self._flush(peer, channel)

    def _channel(self, ring: Keyring, peer: Peer) -> Channel:
        if peer.channel is None:
            peer.channel = ring.channel(self.public.get(len(peer.packed), b""), peer.packed)
        return peer.channel

    def _flush(self, peer: Peer, channel: Channel) -> None:
        """Send what a channel has to say besides packets."""
        self.hurry = self.hurry or channel.opening
        if channel.out:
            out, channel.out = channel.out, []
            self._put_out(peer, out)

    def _put_out(self, peer: Peer, datagrams: Sequence[bytes]) -> None:
        sock = self.sockets.get(len(peer.packed))
        if sock is None:
            self.drops["no_socket"] += len(datagrams)
            return
        address = peer.address, peer.port
        one_by_one = peer.whole and peer.whole > time.monotonic()
        for piece in [[each] for each in datagrams] if one_by_one else pieces(datagrams):
            try:
                send_piece(sock, piece, address)
            except OSError as error:
                if len(piece) > 1 and error.errno in {*TOO_LARGE, errno.EIO, errno.EOPNOTSUPP}:
                    peer.whole = time.monotonic() + TRY_AGAIN_S
                    self._put_out(peer, piece)
                else:
                    self.drops[f"send_{_name(error)}"] += len(piece)

    # in

    def from_socket(self, sock: socket.socket) -> None:
        """One burst. Raises DeviceGoneError."""
        done = 0
        while done < BURST:
            try:
                size, control, flags, sender = sock.recvmsg_into([self._buffer], 64)
            except BlockingIOError:
                return
            except OSError as error:  # of an earlier datagram we sent
                self.drops[f"receive_{_name(error)}"] += 1
                return
            step = segment_size(control, size) or 1
            count = -(-size // step) or 1
            done += count
            peer = self.table.peers.get(sender[0])
            if peer is None:
                self.drops["stranger"] += count
            elif flags & socket.MSG_TRUNC:
                self.drops["malformed"] += count
            else:
                self._take(peer, size, step)

    def _take(self, peer: Peer, size: int, step: int) -> None:
        """All datagrams of one call, from one peer."""
        view, ring = self._view[:size], self._ring
        if not size:
            self.drops["malformed"] += 1
            return
        packets = [view[start : start + step].tobytes() for start in range(0, size, step)]
        if ring is None:
            self._deliver(peer, packets)
            return
        now = time.monotonic()
        channel = self._channel(ring, peer)
        opened = [ring.receive(channel, datagram, now) for datagram in packets]
        self._deliver(peer, [packet for packet in opened if packet is not None])
        self._flush(peer, channel)

    def _deliver(self, peer: Peer, packets: Sequence[bytes]) -> None:
        """Packets into the device."""
        tun, owner, write = self._tun, self.table.owner, os.write
        delivered = bytes_delivered = 0
        for packet in packets:
            size = len(packet)
            version = packet[0] >> 4
            if version == 4 and size >= 20 and packet[2] << 8 | packet[3] == size:
                sender = packet[12:16]
            elif version == 6 and size >= 40 and (packet[4] << 8 | packet[5]) + 40 == size:
                sender = packet[8:24]
            else:
                self.drops["malformed"] += 1
                continue
            if owner(sender) is not peer:
                self.drops["foreign_sender"] += 1
                continue
            try:
                write(tun, packet)
            except OSError as error:
                if error.errno == errno.EBADFD:
                    raise DeviceGoneError from None
                self.drops[f"device_{_name(error)}"] += 1
                continue
            delivered += 1
            bytes_delivered += size
        self.counters["udp_packets"] += delivered
        self.counters["udp_bytes"] += bytes_delivered


def _name(error: OSError) -> str:
    """ENOBUFS as "enobufs"."""
    return errno.errorcode.get(error.errno or 0, "unknown").lower()
