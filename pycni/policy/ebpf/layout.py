"""The maps by which programs judge connections: what lies in them, byte by byte. Pure.

A connection is judged at both ends, egress at the source and ingress at the destination, each in the same way:

    subjects[end, direction]           no row: no policy is about this end, it allows. Else three tiers in turn (admin,
                                       NetworkPolicies, baseline), each with a number for its pods and one for blocks
    peers[other end]                   identity: the groups and names of ports the other end has; no row: 0, which is no
                                       pod that any rule is about
    pairs[tier.pairs, identity]        } what the tier's rules say to this peer: up to three rows,
    pairs[tier.pairs, 0]               } by its labels, to everybody, and by its address
    blocks[tier.blocks, other end]     }
    ports[row.ports, protocol, port]   of each row: the rule for this port; none: the row's ``rest``
    rules[rule]                        how often it decided

The lowest rank of what has been found decides; Pass, and nothing found, lead to the next tier; a subject that some
NetworkPolicy isolates (``isolated`` is not 0) is denied in that rule's name when nothing is found in the second tier.
A number that is 0 needs no look-up: there is nothing. The longest prefix wins in tries, so what has to be the first
match is made flat when it is compiled; a row of action NOTHING cuts a hole into a wider one.

A subject and its blocks are of one family. A row of ports with action NOTHING, like none, leaves it to ``rest``.
A pod always reaches itself: the same address, or rows of both with the same ``pod``. What is in OWN is the node.

Numbers of tiers, identities, classes of ports and rules are hashes of what they stand for. A row of pairs, blocks and
ports therefore never changes its value: a change adds rows, leads subjects and peers to them, and removes the old ones.

Addresses are 16 bytes in network order (IPv4 as ``::ffff:a.b.c.d``; a real packet with such an address is nobody's to
judge here), ports 2 bytes in network order, everything else in the machine's order. ``declarations`` has it all in C.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

from pycni.model.policy import Direction

# Kinds of maps (include/uapi/linux/bpf.h); the kernel layer has the same numbers, which pure code may not import.
_HASH, _ARRAY, _PERCPU_HASH, _TRIE = 1, 2, 5, 11
_NO_PREALLOC = 1

SUBJECTS, PEERS, PAIRS, BLOCKS, PORTS, OWN, RULES, CONFIG = (
    "subjects",
    "peers",
    "pairs",
    "blocks",
    "ports",
    "own",
    "rules",
    "config",
)
TABLES = (RULES, PORTS, BLOCKS, PAIRS, OWN, PEERS, SUBJECTS)
"""Those with compiled rows, in the order rows are added in, and removed in the other way round. Of RULES only the keys
are compiled, the values are the programs'. CONFIG is the driver's."""

NOTHING, ALLOW, DENY, PASS = range(4)
"""Actions."""
CLOSED, LEAVE = 1, 2
"""Flags of a subject: not known yet; too many rules for the maps. Both are left to the data plane below."""
TIERS = ADMIN, POLICIES, BASELINE = range(3)

ID = 8
"""Bytes of a number."""
NONE = bytes(ID)
"""As a number: nothing; as an identity: everybody."""
BLOCK_BITS, PORT_BITS, PROTOCOL_BITS = 192, 96, 80
"""Whole keys of BLOCKS and PORTS, and those of a protocol's every port. Address bits begin after 64, port bits after
80; the length itself is no part of them."""
_BLOCK_ID = 64
_MAPPED = bytes(10) + b"\xff\xff"
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


class Field(NamedTuple):
    """A member of a structure."""

    type: str
    """u8, u16, u32, u64 or ``struct x``."""
    name: str
    times: int = 1


class Layout(NamedTuple):
    """A structure as programs declare it: naturally aligned, no hidden padding."""

    name: str
    fields: tuple[Field, ...]
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(_width(field) * field.times for field in self.fields)

    @property
    def c(self) -> str:
        """Its declaration, with a check of its size."""
        members = "".join(
            f" {field.type} {field.name}{f'[{field.times}]' if field.times > 1 else ''};"
            for field in self.fields
        )
        note = f" /* {self.note} */" if self.note else ""
        check = f'_Static_assert(sizeof(struct {self.name}) == {self.size}, "{self.name}");'
        return f"struct {self.name} {{{members} }};{note}\n{check}"


def _width(field: Field) -> int:
    if field.type.startswith("struct "):
        return STRUCTS[field.type.removeprefix("struct ")].size
    return _SIZES[field.type]


STRUCTS: dict[str, Layout] = {}


def _layout(name: str, note: str, *fields: tuple[str, str] | tuple[str, str, int]) -> Layout:
    found = STRUCTS[name] = Layout(name, tuple(Field(*field) for field in fields), note)
    return found


_ADDRESS = _layout("address", "network order", ("u32", "w", 4))
_SUBJECT_KEY = _layout(
    "subject_key", "direction: INGRESS, EGRESS", ("struct address", "address"), ("u32", "direction")
)
_TIER = _layout("tier", "0: nothing there", ("u64", "pairs"), ("u64", "blocks"))
_SUBJECT = _layout(
    "subject",
    "isolated: rule; pod: not 0 if it has several addresses of this family, which have rows with the same number",
    ("struct tier", "tiers", len(TIERS)),
    ("u64", "isolated"),
    ("u64", "pod"),
    ("u32", "flags"),
    ("u32", "pad"),
)
_PAIR_KEY = _layout("pair_key", "", ("u64", "pairs"), ("u64", "identity"))
_SAID = _layout("said", "the lowest rank counts", ("u64", "rule"), ("u32", "rank"), ("u32", "action"))
_PEER_RULES = _layout(
    "peer_rules", "ports: 0 if all ports are the same", ("u64", "ports"), ("struct said", "rest")
)
_BLOCK_KEY = _layout(
    "block_key",
    "a trie's: bits, then what they count",
    ("u32", "bits"),
    ("u32", "blocks", 2),
    ("u32", "address", 4),
)
_PORT_KEY = _layout(
    "port_key",
    "a trie's; port in network order, 0 without ports",
    ("u32", "bits"),
    ("u32", "ports", 2),
    ("u8", "protocol"),
    ("u8", "pad"),
    ("u16", "port"),
)
_COUNT = _layout("count", "one per processor", ("u64", "packets"), ("u64", "bytes"))
_CONFIG = _layout(
    "config",
    "judging: 0 stands aside; since, until: the driver's, nanoseconds of the monotonic clock",
    ("u32", "judging"),
    ("u32", "flags"),
    ("u64", "since"),
    ("u64", "until"),
    ("u64", "spare"),
)

MAPS: tuple[tuple[str, int, int, int, int, int], ...] = (
    (SUBJECTS, _HASH, _SUBJECT_KEY.size, _SUBJECT.size, 1 << 14, _NO_PREALLOC),
    (PEERS, _HASH, _ADDRESS.size, ID, 1 << 17, _NO_PREALLOC),
    (PAIRS, _HASH, _PAIR_KEY.size, _PEER_RULES.size, 1 << 18, _NO_PREALLOC),
    (BLOCKS, _TRIE, _BLOCK_KEY.size, _PEER_RULES.size, 1 << 17, _NO_PREALLOC),
    (PORTS, _TRIE, _PORT_KEY.size, _SAID.size, 1 << 17, _NO_PREALLOC),
    (OWN, _HASH, _ADDRESS.size, 4, 1 << 10, _NO_PREALLOC),
    (RULES, _PERCPU_HASH, ID, _COUNT.size, 1 << 17, _NO_PREALLOC),
    (CONFIG, _ARRAY, 4, _CONFIG.size, 1, 0),
)
"""(name, kind, bytes of a key, bytes of a value, most entries, flags)."""

OWN_VALUE = bytes(4)
COUNT_VALUE = bytes(_COUNT.size)

_SUBJECT_FORMAT = struct.Struct("=8s8s8s8s8s8s8s8sI4x")
_SAID_FORMAT = struct.Struct("=8sII")
_RULES_FORMAT = struct.Struct("=8s8sII")
_CONFIG_FORMAT = struct.Struct("=IIQQ8x")
_SIDES = {side: int(side).to_bytes(4, sys.byteorder) for side in Direction}
_LENGTHS = tuple(bits.to_bytes(4, sys.byteorder) for bits in range(BLOCK_BITS + 1))


class TierIds(NamedTuple):
    """Where the rules of a tier are."""

    pairs: bytes = NONE
    blocks: bytes = NONE


class SubjectRow(NamedTuple):
    """Value of SUBJECTS."""

    tiers: tuple[TierIds, TierIds, TierIds] = (TierIds(), TierIds(), TierIds())
    isolated: bytes = NONE
    """The rule in whose name is denied what no NetworkPolicy allows; NONE: none isolates it."""
    pod: bytes = NONE
    flags: int = 0

    def pack(self) -> bytes:
        """72 bytes."""
        return pack_subject([number for tier in self.tiers for number in tier], *self[1:])

    @classmethod
    def unpack(cls, raw: bytes) -> SubjectRow:
        """The other way."""
        *ids, isolated, pod, flags = _SUBJECT_FORMAT.unpack(raw)
        return cls((TierIds(*ids[:2]), TierIds(*ids[2:4]), TierIds(*ids[4:])), isolated, pod, flags)


def pack_subject(tiers: Sequence[bytes], isolated: bytes, pod: bytes, flags: int = 0) -> bytes:
    """A ``SubjectRow``, with the six numbers of its tiers in a row."""
    return _SUBJECT_FORMAT.pack(*tiers, isolated, pod, flags)


class Said(NamedTuple):
    """What a rule says. Value of PORTS."""

    rule: bytes = NONE
    rank: int = 0
    action: int = NOTHING

    def pack(self) -> bytes:
        """16 bytes."""
        return _SAID_FORMAT.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> Said:
        """The other way."""
        return cls(*_SAID_FORMAT.unpack(raw))


class PeerRules(NamedTuple):
    """What a tier's rules say to a peer. Value of PAIRS and of BLOCKS."""

    ports: bytes = NONE
    """Class of ports: some are told apart."""
    rest: Said = Said()
    """For all other ports, and packets without any."""

    def pack(self) -> bytes:
        """24 bytes."""
        return _RULES_FORMAT.pack(self.ports, *self.rest)

    @classmethod
    def unpack(cls, raw: bytes) -> PeerRules:
        """The other way."""
        ports, *rest = _RULES_FORMAT.unpack(raw)
        return cls(ports, Said(*rest))


class Config(NamedTuple):
    """The row of CONFIG."""

    judging: int = 0
    flags: int = 0
    since: int = 0
    until: int = 0

    def pack(self) -> bytes:
        """32 bytes."""
        return _CONFIG_FORMAT.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes) -> Config:
        """The other way."""
        return cls(*_CONFIG_FORMAT.unpack(raw))


def pack_address(packed: bytes) -> bytes:
    """16 bytes for an address of 4 or 16. Key of PEERS and OWN."""
    return _MAPPED + packed if len(packed) == 4 else packed


def unpack_address(raw: bytes) -> bytes:
    """4 bytes again for a mapped address."""
    return raw[12:] if raw.startswith(_MAPPED) else raw


def subject_key(address: bytes, direction: Direction) -> bytes:
    """20 bytes. Address of 4 or 16."""
    return pack_address(address) + _SIDES[direction]


def unpack_subject_key(raw: bytes) -> tuple[bytes, Direction]:
    """The other way."""
    return unpack_address(raw[:16]), Direction(int.from_bytes(raw[16:], sys.byteorder))


def pair_key(pairs: bytes, identity: bytes) -> bytes:
    """16 bytes."""
    return pairs + identity


def block_key(blocks: bytes, address: bytes, length: int) -> bytes:
    """28 bytes. Address of 4 or 16, of which the first ``length`` bits count."""
    bits = _BLOCK_ID + 128 - 8 * len(address) + length
    return _LENGTHS[bits] + blocks + pack_address(address)


def unpack_block_key(raw: bytes) -> tuple[bytes, bytes, int]:
    """The other way. The network ::ffff:0:0/96 or a part of it is one of IPv4."""
    address = raw[12:]
    length = int.from_bytes(raw[:4], sys.byteorder) - _BLOCK_ID
    if address.startswith(_MAPPED) and length >= 96:
        return raw[4:12], address[12:], length - 96
    return raw[4:12], address, length


def port_key(ports: bytes, protocol: int, port: int, length: int = 16) -> bytes:
    """16 bytes. Of the port the first ``length`` bits count; it has to end in zeros behind them."""
    return _LENGTHS[PROTOCOL_BITS + length] + ports + bytes((protocol, 0, port >> 8, port & 255))


def unpack_port_key(raw: bytes) -> tuple[bytes, int, int, int]:
    """The other way."""
    length = int.from_bytes(raw[:4], sys.byteorder) - PROTOCOL_BITS
    return raw[4:12], raw[12], int.from_bytes(raw[14:], "big"), length


def declarations() -> str:
    """Constants and structures in C."""
    sides = ", ".join(f"{side.name} = {int(side)}" for side in Direction)
    return "\n".join(
        (
            f"enum {{ {sides} }};",
            f"enum {{ NOTHING = {NOTHING}, ALLOW = {ALLOW}, DENY = {DENY}, PASS = {PASS} }};",
            f"enum {{ CLOSED = {CLOSED}, LEAVE = {LEAVE} }}; /* flags of a subject: to the stack */",
            f"enum {{ ADMIN = {ADMIN}, POLICIES = {POLICIES}, BASELINE = {BASELINE}, TIERS = {len(TIERS)} }};",
            f"enum {{ BLOCK_BITS = {BLOCK_BITS}, PORT_BITS = {PORT_BITS} }}; /* of keys to look up */",
            *(layout.c for layout in STRUCTS.values()),
            "",
        )
    )
