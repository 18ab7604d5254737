"""Elements of sets of ranges. Pure.

A range is a pair of keys, its first and its last, compared as bytes; rows of such a set have both, joined, as key.
Ranges of one set neither overlap nor touch. In the kernel a range is two elements: its first key, and the key behind
its last one with INTERVAL_END (left out behind the greatest there is).           (net/netfilter/nft_set_rbtree.c)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pycni.wire.netlink import MalformedError, attr, nested, parse_attrs
from pycni.wire.nftmsg import DELSETELEM, NEWSETELEM, attr_be32
from pycni.wire.nftset import SetSpec, element_bodies, element_lists

_INTERVAL_END = 1


def add_ranges(table: str, spec: SetSpec, ranges: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Messages that add ranges (first, last)."""
    return element_lists(NEWSETELEM, table, spec.name, _elements(ranges))


def add_range_rows(table: str, spec: SetSpec, rows: Iterable[bytes]) -> Iterator[bytes]:
    """Messages that add rows."""
    return add_ranges(table, spec, _halves(spec, rows))


def delete_range_rows(table: str, spec: SetSpec, rows: Iterable[bytes]) -> Iterator[bytes]:
    """Messages that delete rows; ENOENT when one is not there."""
    return element_lists(DELSETELEM, table, spec.name, _elements(_halves(spec, rows)))


def decode_ranges(spec: SetSpec, payloads: Iterable[bytes]) -> list[bytes]:
    """The rows of a whole dump of a set. Raises MalformedError."""
    edges: list[tuple[bytes, bool]] = []
    for payload in payloads:
        for element in element_bodies(payload):
            attrs = parse_attrs(element)
            key = parse_attrs(attrs.get(1, b"")).get(1, b"")
            flags = int.from_bytes(attrs.get(3, b""), "big")
            edges.append((key, not flags & _INTERVAL_END))
    found: list[bytes] = []
    start: bytes | None = None
    for key, opens in sorted(edges):
        if start is not None:
            if opens:
                raise MalformedError(f"set {spec.name}: a range starts inside another")
            found.append(start + (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big"))
            start = None
        elif opens:
            start = key
        # The kernel may keep an end of its own before everything (an "end" at zero).
    if start is not None:
        found.append(start + b"\xff" * len(start))
    return found


def _halves(spec: SetSpec, rows: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    size = spec.key_size
    return ((row[:size], row[size:]) for row in sorted(rows))


def _elements(ranges: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for first, last in ranges:
        yield nested(1, nested(1, attr(1, first)))
        behind = (int.from_bytes(last, "big") + 1).to_bytes(len(last) + 1, "big")
        if not behind[0]:
            yield nested(1, nested(1, attr(1, behind[1:])), attr_be32(3, _INTERVAL_END))
