"""Elements of sets of ranges. Pure.

A range is a pair of keys, its first and its last, compared as bytes; rows of such a set have both, joined, as key.
Ranges of one set neither overlap nor touch. In the kernel a range is two elements: its first key, and the key behind
its last one with INTERVAL_END (left out behind the greatest there is). In a map the first of them has the value.
                                                                              (net/netfilter/nft_set_rbtree.c)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from pycni.wire.netlink import MalformedError, attr, nested, parse_attrs
from pycni.wire.nftmsg import DELSETELEM, NEWSETELEM, attr_be32
from pycni.wire.nftset import SetSpec, Value, element_bodies, element_lists

_INTERVAL_END = 1


def add_ranges(table: str, spec: SetSpec, ranges: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Messages that add ranges (first, last)."""
    packed = (element for first, last in ranges for element in _edges(first, last))
    return element_lists(NEWSETELEM, table, spec.name, packed)


def add_range_rows(table: str, spec: SetSpec, rows: Mapping[bytes, Value]) -> Iterator[bytes]:
    """Messages that add rows, whose values are data or None."""
    packed = (element for row in sorted(rows) for element in _edges(*_halves(row), rows[row]))
    return element_lists(NEWSETELEM, table, spec.name, packed)


def delete_range_rows(table: str, spec: SetSpec, rows: Iterable[bytes]) -> Iterator[bytes]:
    """Messages that delete rows; ENOENT when one is not there."""
    packed = (element for row in sorted(rows) for element in _edges(*_halves(row)))
    return element_lists(DELSETELEM, table, spec.name, packed)


def decode_ranges(spec: SetSpec, payloads: Iterable[bytes]) -> dict[bytes, Value]:
    """The rows of a whole dump of a set. Raises MalformedError."""
    edges: list[tuple[bytes, bool, Value]] = []
    for payload in payloads:
        for element in element_bodies(payload):
            attrs = parse_attrs(element)
            flags = int.from_bytes(attrs.get(3, b""), "big")
            data = _data(attrs[2]) if spec.value and 2 in attrs else None
            edges.append((_data(attrs.get(1, b"")), not flags & _INTERVAL_END, data))
    found: dict[bytes, Value] = {}
    start: tuple[bytes, Value] | None = None
    for key, opens, value in sorted(edges, key=_place):
        if start is not None:
            if opens:
                raise MalformedError(f"set {spec.name}: a range starts inside another")
            found[start[0] + (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")] = start[1]
            start = None
        elif opens:
            start = key, value
        # The kernel may keep an end of its own before everything (an "end" at zero).
    if start is not None:
        found[start[0] + b"\xff" * len(start[0])] = start[1]
    return found


def _place(edge: tuple[bytes, bool, Value]) -> tuple[bytes, bool]:
    return edge[0], edge[1]


def _data(raw: bytes) -> bytes:
    return parse_attrs(raw).get(1, b"")


def _halves(row: bytes) -> tuple[bytes, bytes]:
    half = len(row) // 2
    return row[:half], row[half:]


def _edges(first: bytes, last: bytes, value: Value = None) -> Iterator[bytes]:
    # Keys have whole registers, so nothing needs filling.
    size = len(first)
    if value is None:
        yield _head(size, 0) + first
    else:
        data = nested(2, attr(1, value))  # type: ignore[arg-type]  # never a verdict
        yield _head(size, len(data)) + first + data
    behind = int.from_bytes(last, "big") + 1
    if behind < 1 << 8 * size:
        yield _head(size, len(_END)) + behind.to_bytes(size, "big") + _END


_END = attr_be32(3, _INTERVAL_END)


@lru_cache(maxsize=64)
def _head(size: int, rest: int) -> bytes:
    """What stands before the key of an element whose attributes behind the key have ``rest`` bytes."""
    return nested(1, nested(1, attr(1, bytes(size))), bytes(rest))[: -size - rest]
