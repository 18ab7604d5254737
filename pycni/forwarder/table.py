"""Which network is behind which peer: longest prefix first, remembered per address.

Life: changed by control requests only; asked for the receiver of each packet on the way out and for its sender on the
way in. A peer lives as long as a network names it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pycni.wire.forwarder import Entry

if TYPE_CHECKING:
    from pycni.forwarder.seal import Channel

REMEMBERED = 1 << 16
"""Addresses whose peer is remembered; then all are forgotten at once."""


class Peer:
    """Another node's forwarder."""

    __slots__ = ("address", "channel", "networks", "packed", "port", "whole")

    def __init__(self, packed: bytes, port: int) -> None:
        self.packed = packed
        """Its address."""
        self.port = port
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        self.address = socket.inet_ntop(family, packed)
        self.networks: set[tuple[int, bytes]] = set()
        """Its networks as (prefix length, packed)."""
        self.channel: Channel | None = None
        """Its encrypted sessions; None without a key."""
        self.whole = 0.0
        """Until when its datagrams are sent one by one, as a burst was refused."""


class Table:
    """Networks and peers."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        """By address as text."""
        self._networks: dict[tuple[int, bytes], Peer] = {}
        self._lengths: dict[int, dict[int, int]] = {4: {}, 16: {}}
        """Bytes of an address -> prefix length -> how many networks have it."""
        self._found: dict[bytes, Peer | None] = {}

    def owner(self, address: bytes) -> Peer | None:
        """Who has an address (packed); None when nobody does, or it is none."""
        try:
            return self._found[address]
        except KeyError:
            pass
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        found = self._found[address] = self._look_up(address)
        return found

    def put(self, entry: Entry) -> Peer | None:
        """Make or change a network; returns a peer that has none any more."""
        name = entry.prefix_len, entry.network
        family = socket.AF_INET if len(entry.endpoint) == 4 else socket.AF_INET6
        address = socket.inet_ntop(family, entry.endpoint)
        peer = self.peers.get(address)
        if peer is None:
            peer = self.peers[address] = Peer(entry.endpoint, entry.port)
        peer.port = entry.port
        left = self.remove(entry) if self._networks.get(name) not in {None, peer} else None
        if name not in self._networks:
            self._count(name, 1)
        self._networks[name] = peer
        peer.networks.add(name)
        return left

    def remove(self, entry: Entry) -> Peer | None:
        """Remove a network; returns its peer when that has none any more."""
        name = entry.prefix_len, entry.network
        peer = self._networks.pop(name, None)
        if peer is None:
            return None
        self._count(name, -1)
        peer.networks.discard(name)
        if peer.networks:
            return None
        del self.peers[peer.address]
        return peer

    def entries(self) -> Iterator[Entry]:
        """Everything."""
        for (length, network), peer in self._networks.items():
            yield Entry(network, length, peer.packed, peer.port)

    def _count(self, name: tuple[int, bytes], step: int) -> None:
        length, network = name
        lengths = self._lengths[len(network)]
        count = lengths.get(length, 0) + step
        if count:
            lengths[length] = count
        else:
            del lengths[length]
        self._found.clear()

    def _look_up(self, address: bytes) -> Peer | None:
        bits = len(address) * 8
        number = int.from_bytes(address, "big")
        for length in sorted(self._lengths.get(len(address), ()), reverse=True):
            base = number >> (bits - length) << (bits - length)
            found = self._networks.get((length, base.to_bytes(len(address), "big")))
            if found is not None:
                return found
        return None


def put_all(table: Table, entries: Iterable[Entry]) -> list[Peer]:
    """Put many; returns peers that have no network any more."""
    return [left for entry in entries if (left := table.put(entry)) is not None]
