"""Sets of a table that come and go, as rows: one row per set, one per element of any of them. Pure.

Life: a component says by a set's name what the set holds; ``add_groups`` makes the messages that come before those of
chains, which may look elements up, and ``remove_groups`` those that come after; ``decode_ranges`` gives ranges back
from dumps. The row of an element has the key ``(set, bytes)``; in a set of ranges the bytes are first and last value.

A range lies in the kernel as two elements: its first value, and the value behind its last one with INTERVAL_END (left
out behind the greatest there is).                                        (net/netfilter/nft_set_rbtree.c)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pycni.wire.netlink import MalformedError, attr, attr_str, nested, parse_attrs, text
from pycni.wire.nftmsg import DELSET, DELSETELEM, GETSET, attr_be32, nft_message
from pycni.wire.nftset import (
    Elements,
    SetSpec,
    add_elements,
    add_ranges,
    add_set,
    delete_elements,
    element_bodies,
    element_lists,
)

Kinds = Callable[[str], SetSpec]
"""What a set of this name holds; ValueError for a name that is none of the component's."""
Element = tuple[str, bytes]
_INTERVAL_END = 1


def add_groups(
    table: str, kinds: Kinds, names: Iterable[str], elements: Iterable[Element], first_number: int
) -> Iterator[bytes]:
    """Messages that create sets and fill sets. ``first_number``: behind those of the table's other sets."""
    for number, name in enumerate(names, first_number):
        yield add_set(table, kinds(name), number)
    for name, keys in _by_set(elements).items():
        spec = kinds(name)
        if spec.interval:
            half = spec.key_size
            yield from add_ranges(table, spec, sorted((key[:half], key[half:]) for key in keys))
        else:
            yield from add_elements(table, spec, dict.fromkeys(keys))


def remove_groups(
    table: str, kinds: Kinds, names: Sequence[str], elements: Iterable[Element]
) -> Iterator[bytes]:
    """Messages that delete elements, and sets with all they hold. Raises nothing; ENOENT comes from the kernel."""
    going = set(names)
    for name, keys in _by_set(item for item in elements if item[0] not in going).items():
        spec = kinds(name)
        if spec.interval:
            yield from element_lists(DELSETELEM, table, name, _range_elements(spec, keys))
        else:
            yield from delete_elements(table, spec, keys)
    for name in names:
        yield nft_message(DELSET, 0, attr_str(1, table), attr_str(2, name))


def get_sets(table: str) -> bytes:
    """Ask for the sets of a table (a dump)."""
    return nft_message(GETSET, 0, attr_str(1, table))


def decode_set_name(payload: bytes) -> str:
    """The name of a NEWSET message."""
    return text(parse_attrs(payload, 4).get(2, b""))


def decode_ranges(spec: SetSpec, payloads: Iterable[bytes]) -> list[bytes]:
    """The ranges of a whole dump of a set. Raises MalformedError."""
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


def _range_elements(spec: SetSpec, keys: Iterable[bytes]) -> Elements:
    half = spec.key_size
    for key in sorted(keys):
        yield nested(1, nested(1, attr(1, key[:half])))
        behind = int.from_bytes(key[half:], "big") + 1
        if behind < 1 << 8 * half:
            end = behind.to_bytes(half, "big")
            yield nested(1, nested(1, attr(1, end)), attr_be32(3, _INTERVAL_END))


def _by_set(elements: Iterable[Element]) -> Mapping[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name, key in elements:
        known = found.get(name)
        if known is None:
            found[name] = [key]
        else:
            known.append(key)
    return found
