"""Connections as the programs remember them, pods and their devices as they know them: byte by byte. Pure.

Life of a connection: its first packet is judged and allowed, ``flows`` gets one entry for both directions; every packet
after it renews ``used`` and what has been seen of its state; the entry counts as long as ``Times`` says and ``ended``
tells the agent's sweep which ones are over. ``seen`` holds connections that came through the stack, so that the fast
path leaves their replies alone; it is kept in the same way.

The key of a connection has its two ends in the order of their bytes, so that both directions find the same entry. Ports
of an echo are its number, on the side that asked, and 0.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from pycni.policy.ebpf.layout import Field, Layout, unpack_address

PODS, DEVICES, FLOWS, SEEN, TIMES, GRACE, DENIALS, REFUSED, LOST, EVENTS, WORK = (
    "pods",
    "devices",
    "flows",
    "seen",
    "times",
    "grace",
    "denials",
    "refused",
    "lost",
    "events",
    "work",
)
TCP, UDP, ICMP, SCTP, ICMP6 = 6, 17, 1, 132, 58
BEGAN, ANSWERED, ENDED, RESET = 1, 2, 4, 8
"""Of one side of a connection; as in packet.h."""
SHORT = 1
"""Flag of a flow: its packets go from device to device."""
SPOOF_CHECK = 1
"""Flag in CONFIG: pods may only send with their own addresses."""
REASONS = ("policy", "spoofed source", "spoofed MAC", "spoofed neighbour", "VLAN tag")
"""Why a packet was not let through; by number."""
SECOND = 10**9
_HASH, _ARRAY, _PERCPU_ARRAY, _RINGBUF, _NO_PREALLOC = 1, 2, 6, 27, 1
FLOW_ENTRIES, SEEN_ENTRIES = 1 << 18, 1 << 18
EVENT_BYTES = 1 << 18


def _fields(*fields: tuple[str, str] | tuple[str, str, int]) -> tuple[Field, ...]:
    return tuple(Field(*field) for field in fields)


_POD = Layout(
    "pod",
    _fields(("u32", "ifindex"), ("u32", "segment"), ("u64", "since"), ("u8", "mac", 6), ("u16", "mtu")),
    "segment: the bridge, 0: no short cuts; since: when datagrams may be beginnings",
)
_DEVICE = Layout("device", _fields(("u8", "mac", 6), ("u16", "pad")), "of a pod; the MAC is the pod's")
_FLOW_KEY = Layout(
    "flow_key",
    _fields(
        ("struct address", "low"),
        ("struct address", "high"),
        ("u16", "low_port"),
        ("u16", "high_port"),
        ("u8", "protocol"),
        ("u8", "pad", 3),
    ),
)
_FLOW = Layout(
    "flow",
    _fields(
        ("u64", "used"),
        ("u32", "ifindex", 2),
        ("u8", "low_mac", 6),
        ("u8", "high_mac", 6),
        ("u8", "seen", 2),
        ("u16", "mtu"),
        ("u8", "flags"),
        ("u8", "pad", 7),
    ),
    "ifindex: 0 on another node",
)
_SEEN = Layout("seen", _fields(("u64", "used"), ("u8", "seen", 2), ("u8", "pad", 6)))
_TIMES = Layout(
    "times",
    _fields(
        ("u64", "opening"),
        ("u64", "open"),
        ("u64", "ending"),
        ("u64", "reset"),
        ("u64", "datagram"),
        ("u64", "datagrams"),
        ("u64", "association"),
        ("u64", "noted"),
        ("u64", "grace"),
    ),
    "nanoseconds",
)
LAYOUTS = (_POD, _DEVICE, _FLOW_KEY, _FLOW, _SEEN, _TIMES)
EVENT = struct.Struct("=Q8s16s16sHHBBBB")
"""As in judge.h."""

MAPS: tuple[tuple[str, int, int, int, int, int], ...] = (
    (PODS, _HASH, 16, _POD.size, 1 << 14, _NO_PREALLOC),
    (DEVICES, _HASH, 4, _DEVICE.size, 1 << 13, _NO_PREALLOC),
    (FLOWS, _HASH, _FLOW_KEY.size, _FLOW.size, FLOW_ENTRIES, _NO_PREALLOC),
    (SEEN, _HASH, _FLOW_KEY.size, _SEEN.size, SEEN_ENTRIES, _NO_PREALLOC),
    (TIMES, _ARRAY, 4, _TIMES.size, 1, 0),
    (GRACE, _ARRAY, 4, 8, 1, 0),
    (DENIALS, _HASH, 8, 16, 1 << 14, _NO_PREALLOC),
    (REFUSED, _ARRAY, 4, 16, len(REASONS), 0),
    (LOST, _ARRAY, 4, 8, 1, 0),
    (EVENTS, _RINGBUF, 0, 0, EVENT_BYTES, 0),
    (WORK, _PERCPU_ARRAY, 4, 512, 1, 0),
)
"""(name, kind, bytes of a key, bytes of a value, most entries, flags)."""

_POD_FORMAT = struct.Struct("=IIQ6sH")
_FLOW_FORMAT = struct.Struct("=QII6s6sBBHB7x")
_FLOW_STATE = struct.Struct("=QII12xBB10x")
_KEY_FORMAT = struct.Struct(">16s16sHHB3x")
_SEEN_FORMAT = struct.Struct("=QBB6x")
_TIMES_FORMAT = struct.Struct("=9Q")
_PROTOCOL = 36
"""Where a flow's key has its protocol."""


class Times(NamedTuple):
    """How long connections are remembered after their last packet, in nanoseconds."""

    opening: int = 120 * SECOND
    """TCP and others that have not been answered."""
    open: int = 432000 * SECOND
    """TCP: as connection tracking's."""
    ending: int = 120 * SECOND
    """One side has said that it will send no more."""
    reset: int = 10 * SECOND
    datagram: int = 30 * SECOND
    """UDP and echoes without an answer."""
    datagrams: int = 120 * SECOND
    """With one."""
    association: int = 210 * SECOND
    """SCTP."""
    noted: int = 200 * SECOND
    """UDP that came through the stack: longer than connection tracking remembers it."""
    grace: int = 200 * SECOND
    """How long datagrams without an entry may belong to what the stack knows and the programs have not noted."""

    def pack(self) -> bytes:
        """72 bytes."""
        return _TIMES_FORMAT.pack(*self)


class PodRow(NamedTuple):
    """Value of PODS, whose key is an address of a pod of this node."""

    ifindex: int
    segment: int
    since: int
    mac: bytes
    mtu: int

    def pack(self) -> bytes:
        """24 bytes."""
        return _POD_FORMAT.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> PodRow:
        """The other way."""
        return cls(*_POD_FORMAT.unpack(raw))


class Flow(NamedTuple):
    """Value of FLOWS."""

    used: int
    low_ifindex: int
    high_ifindex: int
    low_mac: bytes
    high_mac: bytes
    low_seen: int
    high_seen: int
    mtu: int
    flags: int

    @classmethod
    def unpack(cls, raw: bytes) -> Flow:
        """The other way."""
        return cls(*_FLOW_FORMAT.unpack(raw))

    def pack(self) -> bytes:
        """48 bytes."""
        return _FLOW_FORMAT.pack(*self)


def device_row(mac: bytes) -> bytes:
    """Value of DEVICES."""
    return mac + bytes(2)


def lasts(protocol: int, low: int, high: int, times: Times) -> int:
    """How long a connection of this state is remembered; as ``lasts`` in flows.h."""
    if protocol in {TCP, SCTP}:
        if (low | high) & RESET:
            return times.reset
        if (low | high) & ENDED:
            return times.ending
        if low & high & ANSWERED:
            return times.open if protocol == TCP else times.association
        return times.opening
    return times.datagrams if low and high else times.datagram


def ended(keys: bytes, flows: bytes, now: int, times: Times, devices: Collection[int]) -> Iterator[bytes]:
    """Keys of the connections that are over, or of pods that are gone: ``devices`` are the interfaces there are.

    ``keys`` and ``flows`` are those of many, one after the other.
    """
    there, size = {0, *devices}, _FLOW_KEY.size
    youngest = now - min(times)
    for at, (used, low, high, low_seen, high_seen) in enumerate(_FLOW_STATE.iter_unpack(flows)):
        if used > youngest and low in there and high in there:
            continue
        key = keys[at * size : (at + 1) * size]
        gone = low not in there or high not in there
        if gone or now - used > lasts(key[_PROTOCOL], low_seen, high_seen, times):
            yield key


def of_devices(keys: bytes, flows: bytes, devices: Collection[int]) -> Iterator[bytes]:
    """Keys of the connections of these interfaces; as ``ended``."""
    size = _FLOW_KEY.size
    for at, (_, low, high, _, _) in enumerate(_FLOW_STATE.iter_unpack(flows)):
        if low in devices or high in devices:
            yield keys[at * size : (at + 1) * size]


def of_hosts(keys: bytes, hosts: Collection[bytes]) -> Iterator[bytes]:
    """Keys, of many one after the other, with one of these addresses (16 bytes each)."""
    for at in range(0, len(keys), _FLOW_KEY.size):
        if keys[at : at + 16] in hosts or keys[at + 16 : at + 32] in hosts:
            yield keys[at : at + _FLOW_KEY.size]


def open_ones(
    keys: bytes, flows: bytes, now: int, times: Times
) -> Iterator[tuple[bytes, int, bytes, int, int, int]]:
    """TCP and UDP connections that are open: two ends, address and port each, protocol, seconds they have left."""
    size = _FLOW_KEY.size
    for at, (used, _, _, low_seen, high_seen) in enumerate(_FLOW_STATE.iter_unpack(flows)):
        low, high, low_port, high_port, protocol = _KEY_FORMAT.unpack_from(keys, at * size)
        left = (lasts(protocol, low_seen, high_seen, times) - (now - used)) // SECOND
        over = (low_seen | high_seen) & (ENDED | RESET)
        if protocol in {TCP, UDP} and low_seen & high_seen & ANSWERED and left > 0 and not over:
            yield unpack_address(low), low_port, unpack_address(high), high_port, protocol, left


def forgotten(keys: bytes, seen: bytes, now: int, times: Times) -> Iterator[bytes]:
    """Keys of ``seen`` that the stack has forgotten as well; as ``ended``."""
    size, youngest = _FLOW_KEY.size, now - min(times)
    for at, (used, low, high) in enumerate(_SEEN_FORMAT.iter_unpack(seen)):
        if used <= youngest:
            key = keys[at * size : (at + 1) * size]
            if now - used > remembered(key[_PROTOCOL], low, high, times):
                yield key


def remembered(protocol: int, low: int, high: int, times: Times) -> int:
    """How long a connection that came through the stack is left to it; as ``remembered`` in flows.h."""
    if protocol == UDP:
        return times.noted
    return lasts(protocol, low, high, times)


def flow_key(one: tuple[bytes, int], other: tuple[bytes, int], protocol: int) -> tuple[bytes, bool]:
    """A key from two ends, (address of 16 bytes, port), and whether the first is the upper one."""
    swapped = _order(one[0]) > _order(other[0])
    low, high = (other, one) if swapped else (one, other)
    ports = low[1].to_bytes(2, "big") + high[1].to_bytes(2, "big")
    return low[0] + high[0] + ports + bytes((protocol, 0, 0, 0)), swapped


def _order(address: bytes) -> tuple[int, ...]:
    """As the programs compare: from the last word on, in the machine's order."""
    return tuple(reversed(struct.unpack("=4I", address)))


def declarations() -> str:
    """Structures and flags in C."""
    return "\n".join(
        (
            f"enum {{ SHORT = {SHORT}, SPOOF_CHECK = {SPOOF_CHECK} }};",
            *(layout.c for layout in LAYOUTS),
            "",
        )
    )
