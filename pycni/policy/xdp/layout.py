"""The maps of the XDP program's own: what it knows of the node, and what it remembers. Pure.

    setup      one row: the MACs packets are for, the tunnels they may come through, a filter of the node's addresses
    denials    per processor: what has been denied lately, by hash of destination, and of source and port
    quota      per processor: how much has been told in this second
    scratch    per processor: where evaluation keeps its variables (struct work of judge.h)

A denial counts what the map of rules has not been told yet, so what a rule has denied is the sum of both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pycni.policy.ebpf.layout import pack_address

SETUP, DENIED, QUOTA, WORK = "xdp_setup", "xdp_denied", "xdp_quota", "xdp_work"
MACS, TUNNELS, OWN_WORDS, SLOTS = 4, 4, 8, 512
"""As in xdp.c."""
NO_MAC = 1 << 63
"""More bits than a MAC has."""
TRACKED = 1
_TUNNEL_SET, _TUNNEL_IPV4 = 1, 2
_ARRAY, _PERCPU_ARRAY = 2, 6
_TUNNEL = struct.Struct("=16s4s2sH")
_SETUP = struct.Struct(f"={MACS}Q{MACS * _TUNNEL.size}s{OWN_WORDS}QQ")
_DENIAL = struct.Struct("=32xQ8sIIHHI")
_HALVES = struct.Struct("=QQ")
_ALL = (1 << 64) - 1

MAPS: tuple[tuple[str, int, int, int, int, int], ...] = (
    (SETUP, _ARRAY, 4, _SETUP.size, 1, 0),
    (DENIED, _PERCPU_ARRAY, 4, _DENIAL.size, SLOTS, 0),
    (QUOTA, _PERCPU_ARRAY, 4, 16, 1, 0),
    (WORK, _PERCPU_ARRAY, 4, 512, 1, 0),
)
"""(name, kind, bytes of a key, bytes of a value, most entries, flags)."""


class Tunnel(NamedTuple):
    """A VXLAN device of the node."""

    local: bytes
    """Its address in the outer header, 4 or 16 bytes."""
    port: int
    vni: int

    def pack(self) -> bytes:
        """24 bytes."""
        flags = _TUNNEL_SET | (_TUNNEL_IPV4 if len(self.local) == 4 else 0)
        return _TUNNEL.pack(
            pack_address(self.local),
            (self.vni << 8).to_bytes(4, "big"),
            self.port.to_bytes(2, "big"),
            flags,
        )


class Setup(NamedTuple):
    """What the program knows of the node."""

    macs: tuple[bytes, ...] = ()
    """Of the interfaces it is on; ``MACS`` at most."""
    tunnels: tuple[Tunnel, ...] = ()
    """``TUNNELS`` at most."""
    own: frozenset[bytes] = frozenset()
    """The node's addresses, of 4 or 16 bytes."""
    tracked: bool = False
    """Programs at pods know of every connection of theirs."""

    def pack(self) -> bytes:
        """Value of SETUP."""
        macs = [int.from_bytes(mac, "little") for mac in self.macs[:MACS]]
        words = [0] * OWN_WORDS
        for address in self.own:
            bit = own_bit(address)
            words[bit >> 6] |= 1 << (bit & 63)
        return _SETUP.pack(
            *macs,
            *[NO_MAC] * (MACS - len(macs)),
            b"".join(tunnel.pack() for tunnel in self.tunnels[:TUNNELS]),
            *words,
            TRACKED if self.tracked else 0,
        )


def own_bit(address: bytes) -> int:
    """Which bit of the filter an address has, as xdp.c has it."""
    first, second = _HALVES.unpack(pack_address(address))
    bit: int = ((first + second) * 0x9E3779B97F4A7C15 & _ALL) >> 55  # word << 6 | bit in it
    return bit


def counted(rows: Iterable[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(rule, packets, bytes) that denials have counted and RULES has not. ``rows``: values, all processors' in one."""
    for raw in rows:
        for at in range(0, len(raw), _DENIAL.size):
            _, rule, packets, size, *_ = _DENIAL.unpack_from(raw, at)
            if packets:
                yield rule, packets, size
