"""Sets and maps of nf_tables as netlink messages: their making, their elements both ways. Pure.

Life of an element: a compiler makes rows of plain bytes (``key`` as the set's registers hold it: every field padded to
four bytes; the value the same, or a verdict); ``add_elements`` and ``delete_elements`` wrap many of them into few
messages of up to 64 KiB; ``decode_elements`` gives the rows back from a dump.

    NFTA_SET_ELEM_LIST_TABLE 1, _SET 2, _ELEMENTS 3 > LIST_ELEM 1 > SET_ELEM_KEY 1 > DATA_VALUE 1
                                                                  > SET_ELEM_DATA 2 > DATA_VALUE 1 | DATA_VERDICT 2
                                             (include/uapi/linux/netfilter/nf_tables.h)

Numbers inside keys are as the packet has them (network order), only marks and indexes are in host order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from pycni.wire.netlink import (
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    MalformedError,
    attr,
    attr_str,
    nested,
    parse_attrs,
    text,
)
from pycni.wire.nftmsg import (
    DELSETELEM,
    GETSETELEM,
    NEWSET,
    NEWSETELEM,
    attr_be32,
    attr_be64,
    nft_message,
)

MAX_LIST = 0xFFFF - 4 - 256
"""Bytes of elements in one message: an attribute's length has 16 bits, and an element has under 256 bytes."""
NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_GOTO = 0, 1, -3, -4
_IFNAME = 41
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)
"""libnftnl's note that a set's keys are no numbers in network order (NFTNL_UDATA_SET_KEYBYTEORDER): for nft list."""
_INTERVAL, _MAP, _TIMEOUT, _EVAL = 4, 8, 0x10, 0x20
_VERDICT_TYPE = 0xFFFFFF00
_VERDICTS = {"drop": NF_DROP, "accept": NF_ACCEPT}
_ATTR = struct.Struct("=HH")
_BE32 = struct.Struct(">i")
_BE64 = struct.Struct(">Q")


class Field(NamedTuple):
    """One field of a key: libnftables' number of its type, its bytes."""

    kind: int
    size: int


IPV4, IPV6, PROTO, PORT, MARK = Field(7, 4), Field(8, 16), Field(12, 1), Field(13, 2), Field(19, 4)


def number(size: int) -> Field:
    """A whole key of so many bytes without a type of its own."""
    return Field(4, size)


Value: TypeAlias = bytes | str | None
"""Of an element: data, a verdict (``drop``, ``accept``, or the chain to go to), or nothing."""

Elements: TypeAlias = Iterable[bytes]
"""Packed elements."""


class SetSpec(NamedTuple):
    """A set or map of one table."""

    name: str
    key: tuple[Field, ...]
    value: tuple[Field, ...] | None = None
    """The data's fields; () for verdicts; None for a set."""
    interval: bool = False
    """A set of ranges: its elements are ``range_keys``."""
    dynamic: int = 0
    """For a map that packets write to: the greatest number of elements, each with a timeout."""
    counted: bool = False
    """Every element counts its packets and bytes."""
    returns: bool = False
    """Verdicts that lead to a chain come back behind the rule that looked them up (jump, not goto)."""

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return sum((field.size + 3) & ~3 for field in self.key)

    @property
    def value_size(self) -> int:
        """Bytes of a value; 0 for verdicts and sets."""
        return sum((field.size + 3) & ~3 for field in self.value or ())


class Remembered(NamedTuple):
    """An element that packets wrote."""

    key: bytes
    value: bytes
    timeout_ms: int
    expires_ms: int


class Count(NamedTuple):
    """A counter of an element."""

    packets: int
    bytes: int


def add_set(table: str, spec: SetSpec, number: int) -> bytes:
    """Create a set or map; ``number`` tells those of one transaction apart. One that is there stays."""
    flags = (_INTERVAL if spec.interval else 0) | (_MAP if spec.value is not None else 0)
    flags |= _TIMEOUT | _EVAL if spec.dynamic else 0
    attrs = [attr_str(1, table), attr_str(2, spec.name), attr_be32(3, flags)]
    attrs += [attr_be32(4, _type(spec.key)), attr_be32(5, spec.key_size)]
    if spec.value is not None:
        attrs += [attr_be32(6, _type(spec.value) if spec.value else _VERDICT_TYPE)]
        attrs += [attr_be32(7, spec.value_size)]
    attrs.append(attr_be32(10, number))
    if len(spec.key) == 1 and spec.key[0].kind == _IFNAME:
        attrs.append(attr(13, _HOST_ORDER))
    if spec.dynamic:
        attrs.append(nested(9, attr_be32(1, spec.dynamic)))
    if spec.counted:
        attrs.append(nested(17, attr_str(1, "counter"), nested(2)))
    return nft_message(NEWSET, NLM_F_CREATE, *attrs)


def add_elements(table: str, spec: SetSpec, rows: Mapping[bytes, Value]) -> Iterator[bytes]:
    """Messages that add rows. The same row again is success, another value for a key EEXIST."""
    key_size = spec.key_size
    if spec.value:
        head = _before_key(key_size, 8 + spec.value_size)
        middle = _ATTR.pack(8 + spec.value_size, 0x8002) + _ATTR.pack(4 + spec.value_size, 1)
        elements: Iterable[bytes] = (head + key + middle + value for key, value in rows.items())  # type: ignore[operator]
    elif spec.value is None:
        head = _before_key(key_size, 0)
        elements = (head + key for key in rows)
    else:
        elements = _verdict_elements(spec, rows)
    return _lists(NEWSETELEM, NLM_F_CREATE, table, spec.name, elements)


def delete_elements(table: str, spec: SetSpec, keys: Iterable[bytes]) -> Iterator[bytes]:
    """Messages that delete elements; ENOENT when one is not there."""
    head = _before_key(spec.key_size, 0)
    return _lists(DELSETELEM, 0, table, spec.name, (head + key for key in keys))


def add_remembered(table: str, spec: SetSpec, elements: Iterable[Remembered]) -> Iterator[bytes]:
    """Messages that put elements of a dynamic map back, with the time they still have."""
    packed = (
        nested(
            1,
            nested(1, attr(1, item.key)),
            nested(2, attr(1, item.value)),
            attr_be64(4, item.timeout_ms),
            attr_be64(5, item.expires_ms),
        )
        for item in elements
    )
    return _lists(NEWSETELEM, NLM_F_CREATE, table, spec.name, packed)


def get_elements(table: str, spec: SetSpec) -> bytes:
    """Ask for all elements of a set (a dump)."""
    return nft_message(GETSETELEM, 0, attr_str(1, table), attr_str(2, spec.name))


def get_element(table: str, spec: SetSpec, key: bytes) -> bytes:
    """Ask for one element (no dump); ENOENT when it is not there."""
    element = nested(3, nested(1, nested(1, attr(1, key))))
    return nft_message(GETSETELEM, 0, attr_str(1, table), attr_str(2, spec.name), element)


def decode_elements(spec: SetSpec, payload: bytes) -> list[tuple[bytes, Value]]:
    """The rows of one message of a dump. Raises MalformedError."""
    rows: list[tuple[bytes, Value]] = []
    verdicts: dict[bytes, str] = {}
    key_size, value_size = spec.key_size, spec.value_size
    plain = 8 + key_size + (8 + value_size if value_size else 0)
    key_end, value_at = 8 + key_size, 16 + key_size
    for element in element_bodies(payload):
        # The common shape (key, then data, nothing else) is cut out by position: a third of the time.
        if value_size and len(element) == plain:
            rows.append((element[8:key_end], element[value_at:]))
            continue
        attrs = parse_attrs(element)
        key = _value_of(attrs.get(1, b""))
        if spec.value is None:
            rows.append((key, None))
        elif spec.value:
            rows.append((key, _value_of(attrs.get(2, b""))))
        else:
            raw = attrs.get(2, b"")
            if raw not in verdicts:
                verdicts[raw] = _verdict_of(raw)
            rows.append((key, verdicts[raw]))
    return rows


def decode_counts(payload: bytes) -> list[tuple[bytes, Count]]:
    """Keys and counters of the elements in one message of a dump."""
    counts: list[tuple[bytes, Count]] = []
    for element in element_bodies(payload):
        attrs = parse_attrs(element)
        expression = parse_attrs(attrs.get(7, b""))
        if text(expression.get(1, b"")) == "counter":
            data = parse_attrs(expression.get(2, b""))
            count = Count(int.from_bytes(data.get(2, b""), "big"), int.from_bytes(data.get(1, b""), "big"))
            counts.append((_value_of(attrs.get(1, b"")), count))
    return counts


def decode_remembered(payload: bytes) -> list[Remembered]:
    """The elements of a dynamic map in one message of a dump."""
    found = []
    for element in element_bodies(payload):
        attrs = parse_attrs(element)
        timeout = int.from_bytes(attrs.get(4, b""), "big")
        expires = int.from_bytes(attrs.get(5, b""), "big")
        key, value = _value_of(attrs.get(1, b"")), _value_of(attrs.get(2, b""))
        found.append(Remembered(key, value, timeout, expires))
    return found


def verdict(name: str, *, returns: bool = False) -> bytes:
    """``drop``, ``accept`` or going to a chain, as NFTA_DATA_VERDICT. ``returns``: and coming back."""
    code = _VERDICTS.get(name)
    if code is not None:
        return nested(2, attr(1, _BE32.pack(code)))
    return nested(2, attr(1, _BE32.pack(NFT_JUMP if returns else NFT_GOTO)), attr_str(2, name))


def _type(fields: tuple[Field, ...]) -> int:
    """A concatenation's type: six bits for each of its fields' types."""
    number = 0
    for field in fields:
        number = number << 6 | field.kind
    return number


def _before_key(key_size: int, rest: int) -> bytes:
    """What stands before the key of an element whose attributes behind the key have ``rest`` bytes."""
    head = _ATTR.pack(12 + key_size + rest, 0x8001)
    return head + _ATTR.pack(8 + key_size, 0x8001) + _ATTR.pack(4 + key_size, 1)


def _verdict_elements(spec: SetSpec, rows: Mapping[bytes, Value]) -> Iterator[bytes]:
    key_size = spec.key_size
    pieces: dict[Value, tuple[bytes, bytes]] = {}
    for key, value in rows.items():
        piece = pieces.get(value)
        if piece is None:
            data = nested(2, verdict(str(value), returns=spec.returns))
            piece = pieces[value] = (_before_key(key_size, len(data)), data)
        yield piece[0] + key + piece[1]


def element_lists(kind: int, table: str, name: str, elements: Elements) -> Iterator[bytes]:
    """Messages (NEWSETELEM, DELSETELEM) about elements packed as NFTA_LIST_ELEM."""
    return _lists(kind, NLM_F_CREATE if kind == NEWSETELEM else 0, table, name, elements)


def _lists(kind: int, flags: int, table: str, name: str, elements: Iterable[bytes]) -> Iterator[bytes]:
    """Messages with as many elements each as fit."""
    names = attr_str(1, table) + attr_str(2, name)
    part: list[bytes] = []
    size = 0
    for element in elements:
        part.append(element)
        size += len(element)
        if size > MAX_LIST:
            yield nft_message(kind, flags, names, nested(3, *part))
            part, size = [], 0
    if part:
        yield nft_message(kind, flags, names, nested(3, *part))


def element_bodies(payload: bytes) -> Iterator[bytes]:
    """The bodies of the elements in a NEWSETELEM message."""
    lists = parse_attrs(payload, 4).get(3, b"")
    at, end = 0, len(lists)
    while at + 4 <= end:
        size, kind = _ATTR.unpack_from(lists, at)
        if size < 4 or at + size > end or kind & NLA_TYPE_MASK != 1:
            raise MalformedError(f"set element at {at}: length {size} in {end} bytes")
        yield lists[at + 4 : at + size]
        at += (size + 3) & ~3


def _value_of(data: bytes) -> bytes:
    return parse_attrs(data).get(1, b"")


def _verdict_of(data: bytes) -> str:
    attrs = parse_attrs(parse_attrs(data).get(2, b""))
    code = int.from_bytes(attrs.get(1, b""), "big", signed=True)
    if code in {NFT_GOTO, NFT_JUMP}:
        return text(attrs.get(2, b""))
    return next((name for name, number in _VERDICTS.items() if number == code), f"verdict {code}")
