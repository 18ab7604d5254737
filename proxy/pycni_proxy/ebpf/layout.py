"""Keys and values of the programs' maps as bytes, exactly as ``balance.c`` and what follows it read them. Pure.

Addresses are 16 bytes in network order (IPv4 as ``::ffff:a.b.c.d``), ports 2 bytes in network order, everything else in
the machine's own order. Sizes and order of ``MAPS`` are the other half of the structures and the enumeration there.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.family import Family
from pycni.model.service import FrontendKey, Target

# Kinds of maps (include/uapi/linux/bpf.h); the kernel layer has the same numbers, which pure code may not import.
_HASH, _ARRAY, _PERCPU_ARRAY, _LRU, _TRIE, _STORAGE = 1, 2, 6, 9, 11, 24
_NO_PREALLOC = 1

CHUNK = 8
"""Targets per row of a pool."""
MAGLEV_SIZES = (4093, 16381, 65521)
"""Rows of a Maglev table, primes, for up to 32 targets, up to 64, and more. The first is what IPVS takes by default
(net/netfilter/ipvs/ip_vs_mh.c); larger tables keep what moves with one of N targets under 2/N (up to about 150)."""
MAGLEV_BLOCK = 4096
"""Rows of a Maglev table per row of the map."""
LC_EXACT = 64
"""Up to as many targets, least connections looks at all; beyond, at as many from a random one on."""
MOST_TARGETS = 65535

MAPS: tuple[tuple[str, int, int, int, int, int], ...] = (
    ("frontends", _HASH, 20, 32, 1 << 18, _NO_PREALLOC),
    ("pools", _HASH, 16, 20 * CHUNK, 1 << 18, _NO_PREALLOC),
    ("maglev", _HASH, 16, 2 * MAGLEV_BLOCK, 1 << 15, _NO_PREALLOC),
    ("nodes", _HASH, 16, 4, 1 << 10, _NO_PREALLOC),
    ("served", _HASH, 8, 4, 1 << 12, _NO_PREALLOC),
    ("turns", _HASH, 20, 8, 1 << 18, _NO_PREALLOC),
    ("open", _HASH, 32, 8, 1 << 18, _NO_PREALLOC),
    ("affinity", _LRU, 16, 32, 1 << 16, 0),
    ("flows", _LRU, 32, 40, 1 << 16, 0),
    ("reverse", _LRU, 32, 20, 1 << 16, 0),
    ("sockets", _STORAGE, 4, 80, 0, _NO_PREALLOC),
)
"""(name, kind, bytes of a key, bytes of a value, most entries, flags), in the order of the enumerations in
balance.c and sock.c."""
SHARED = ("pools", "maglev", "nodes", "served", "turns", "open", "affinity")
"""Maps of the socket layer that the uplink's programs use too, behind a map of frontends of their own."""
UPLINK_MAPS: tuple[tuple[str, int, int, int, int, int], ...] = (
    ("outside", _HASH, 20, 32, 1 << 16, _NO_PREALLOC),
    *(row for row in MAPS if row[0] in SHARED),
    ("conns", _HASH, 40, 32, 1 << 18, _NO_PREALLOC),
    ("fragments", _LRU, 36, 24, 1 << 12, 0),
    ("config", _ARRAY, 4, 16, 1, 0),
    ("scratch", _PERCPU_ARRAY, 4, 120, 1, 0),
    ("sources", _TRIE, 20, 4, 1 << 14, _NO_PREALLOC),
)
"""The same in the order of the enumerations in balance.c and uplink.c."""

RANDOM, RR, LC, SH, DH, MH = range(6)
REFUSE, HASH_PORTS, MAGLEV_SHIFT, MASQUERADE = 1, 2, 2, 16
"""Flags; in the two bits from MAGLEV_SHIFT on which of ``MAGLEV_SIZES``."""
LEFT, MARKED, FIN, RESET, ANSWERED = 1, 2, 4, 8, 16
"""Flags of a connection by the uplink."""
SCHEDULER_NAMES = ("random", "rr", "lc", "sh", "dh", "mh")

_MAPPED = bytes(10) + b"\xff\xff"
_META = struct.Struct("=12sIQIBBH")
_TUPLE = struct.Struct("=16s16s4sBB2x")
_CONN = struct.Struct("=16s2sBxIQ")
_NODE_PORT_V4 = _MAPPED + bytes(4)


class Meta(NamedTuple):
    """Value of a frontend: which pool, and how a target is chosen from it."""

    pool: bytes
    """12 bytes; zeros for an empty one."""
    targets: int
    service: int
    """64-bit number of the service port; affinity and open connections are kept by it."""
    affinity_s: int = 0
    scheduler: int = RANDOM
    flags: int = 0
    draining: int = 0

    def pack(self) -> bytes:
        """32 bytes."""
        return _META.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> Meta:
        """The other way."""
        return cls(*_META.unpack(raw))


class Conn(NamedTuple):
    """What is known of one direction of a connection by the uplink."""

    address: bytes
    """16 bytes: the endpoint's; of answers the frontend's."""
    port: bytes
    flags: int
    packets: int
    used: int
    """Nanoseconds of the monotonic clock."""

    @classmethod
    def unpack(cls, raw: bytes) -> Conn:
        """From a value of ``conns``."""
        return cls(*_CONN.unpack(raw))


class Tuple(NamedTuple):
    """Which connection, and which direction of it. Addresses have 16 bytes, ports two."""

    client: bytes
    other: bytes
    """The frontend's address; of answers the endpoint's."""
    ports: bytes
    """The client's, then the other one."""
    protocol: int
    answers: bool

    def pack(self) -> bytes:
        """40 bytes: a key of ``conns``."""
        return _TUPLE.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> Tuple:
        """The other way."""
        client, other, ports, protocol, answers = _TUPLE.unpack(raw)
        return cls(client, other, ports, protocol, bool(answers))


def pack_address(packed: bytes) -> bytes:
    """16 bytes for an address of 4 or 16."""
    return _MAPPED + packed if len(packed) == 4 else packed


def unpack_address(raw: bytes) -> bytes:
    """4 bytes again for a mapped address."""
    return raw[12:] if raw.startswith(_MAPPED) else raw


def pack_frontend(key: FrontendKey) -> bytes:
    """20 bytes. A node port has the unspecified address of its family, and a mark apart from a real one."""
    if key.address:
        return pack_address(key.address) + key.port.to_bytes(2, "big") + bytes((key.protocol, 0))
    address = _NODE_PORT_V4 if key.family is Family.V4 else bytes(16)
    return address + key.port.to_bytes(2, "big") + bytes((key.protocol, 1))


def unpack_frontend(raw: bytes) -> FrontendKey:
    """The other way."""
    family = Family.V4 if raw.startswith(_MAPPED) else Family.V6
    address = b"" if raw[19] else unpack_address(raw[:16])
    return FrontendKey(family, address, raw[18], int.from_bytes(raw[16:18], "big"))


def pack_target(target: Target) -> bytes:
    """20 bytes. Whether it is local is kept for readers; programs take no notice."""
    return pack_address(target.address) + target.port.to_bytes(2, "big") + bytes((target.local, 0))


def unpack_target(raw: bytes) -> Target:
    """The other way."""
    return Target(unpack_address(raw[:16]), int.from_bytes(raw[16:18], "big"), bool(raw[18]))


def nameless(target: bytes) -> bytes:
    """A packed target as programs use it in keys: address and port only."""
    return target[:18] + b"\0\0"


def pool_id(targets: Sequence[bytes]) -> bytes:
    """12 bytes that stand for these packed targets in this order: a changed pool is another one."""
    return hashlib.blake2b(b"".join(targets), digest_size=12).digest()


def chunk_key(pool: bytes, number: int) -> bytes:
    """Key of the ``number``-th row of a pool, or of its Maglev table."""
    return pool + number.to_bytes(4, sys.byteorder)


def chunks(pool: bytes, targets: Sequence[bytes]) -> dict[bytes, bytes]:
    """Rows of a pool: eight targets each, the last one filled up with zeros."""
    return {
        chunk_key(pool, at // CHUNK): b"".join(targets[at : at + CHUNK]).ljust(20 * CHUNK, b"\0")
        for at in range(0, len(targets), CHUNK)
    }


def service_number(name: str, family: Family, protocol: int) -> int:
    """Number of a service port by its name (``namespace/service:port``)."""
    text = f"{name} {family} {protocol}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), sys.byteorder)


def open_key(service: int, target: bytes) -> bytes:
    """Key of the count of open connections; ``target`` is packed."""
    return struct.pack("=Q20s4x", service, target)


def reverse_key(socket: int, target: bytes) -> bytes:
    """Key of what a socket asked for when it was led to a packed target; ``socket`` is its cookie."""
    return struct.pack("=Q20s4x", socket, target)


def network_key(address: bytes, length: int) -> bytes:
    """Key of a network in ``sources``: length in bits, then the address, given with 4 or 16 bytes."""
    bits = length + 128 - 8 * len(address)
    return bits.to_bytes(4, sys.byteorder) + pack_address(address)


def config(start: int, mark: int, ifindex: int) -> bytes:
    """The row of ``config``: no connection is taken before ``start`` (nanoseconds of the monotonic clock)."""
    return struct.pack("=QII", start, mark, ifindex)
