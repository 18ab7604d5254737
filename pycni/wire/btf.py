"""The kernel's own description of its types (BTF), as far as it is needed to read its structures. Pure.

Life: ``kernel/dropreason`` reads /sys/kernel/btf/vmlinux once per kernel and asks for offsets of members and for the
names of an enumeration; the few answers are kept on disk, the five megabytes are not.

    btf_header: u16 magic | u8 version | u8 flags | u32 header length | u32 types, length | u32 strings, length
    btf_type:   u32 name | u32 vlen (16), kind (5), kind flag (1) | u32 size or type | what belongs to its kind
                                                               (Documentation/bpf/btf.rst, include/uapi/linux/btf.h)
"""

from __future__ import annotations

import array
import struct
from collections.abc import Iterator, Sequence

from pycni.wire.netlink import MalformedError

_MAGIC = 0xEB9F
_HEAD = struct.Struct("=HBBIIIII")
_STRUCT, _UNION, _ENUM, _TYPEDEF, _PROTO = 4, 5, 6, 8, 13
_EACH = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _PROTO: 2, 15: 3, 19: 3}
"""Words per member, by kind; 15 is DATASEC, 19 ENUM64."""
_MORE = {1: 1, 3: 3, 14: 1, 17: 1}
"""Words behind the common three, by kind: INT, ARRAY, VAR, DECL_TAG."""


class Btf:
    """A description in the host's byte order. Raises MalformedError where it cannot be read."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            raise MalformedError(f"type information of {len(data)} bytes")
        magic, _, _, head, types, size, strings, length = _HEAD.unpack_from(data)
        if magic != _MAGIC or head + max(types + size, strings + length) > len(data) or size % 4:
            raise MalformedError(f"type information of {len(data)} bytes: magic {magic:#x}")
        self._strings = data[head + strings : head + strings + length]
        self._words = array.array("I", data[head + types : head + types + size])
        try:
            self._at = _index(self._words)
        except IndexError as exc:
            raise MalformedError("type information is cut") from exc

    def offset(self, path: str) -> int:
        """Bytes from the start of a structure to a member: ``sk_buff.head``, ``net.ns.inum``.

        Raises KeyError naming what there is not.
        """
        name, *members = path.split(".")
        total, number = 0, self._named(name, _STRUCT)
        for member in members:
            found = next((item for item in self._members(number) if item[0] == member), None)
            if found is None:
                raise KeyError(f"{path}: no member {member}")
            _, number, bits = found
            total += bits // 8
            number = self._bare(number)
        return total

    def constants(self, name: str) -> dict[int, str]:
        """The names of an enumeration by value. Raises KeyError."""
        at = self._at[self._named(name, _ENUM)]
        count = self._words[at + 1] & 0xFFFF
        pairs = self._words[at + 3 : at + 3 + 2 * count]
        return {pairs[i + 1]: self._text(pairs[i]) for i in range(0, 2 * count, 2)}

    def arguments(self, name: str) -> int:
        """How many arguments functions of a typedef to a pointer to a function have. Raises KeyError."""
        pointer = self._words[self._at[self._named(name, _TYPEDEF)] + 2]
        function = self._words[self._at[pointer] + 2]
        return int(self._words[self._at[function] + 1] & 0xFFFF)

    def _named(self, name: str, kind: int) -> int:
        where = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        for number in range(1, len(self._at)) if where else ():
            at = self._at[number]
            if self._words[at] == where and self._words[at + 1] >> 24 & 31 == kind:
                return number
        raise KeyError(name)

    def _bare(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        while number and self._words[self._at[number] + 1] >> 24 & 31 in {_TYPEDEF, 9, 10, 11, 18}:
            number = self._words[self._at[number] + 2]
        return number

    def _members(self, number: int, base: int = 0) -> Iterator[tuple[str, int, int]]:
        """Name, type and bit offset; those of unnamed parts too."""
        at = self._at[number]
        info = self._words[at + 1]
        if info >> 24 & 31 not in {_STRUCT, _UNION}:
            return
        for member in range(info & 0xFFFF):
            name, kind, place = self._words[at + 3 + 3 * member : at + 6 + 3 * member]
            bits = base + (place & 0xFFFFFF if info >> 31 else place)
            if name:
                yield self._text(name), kind, bits
            else:
                yield from self._members(self._bare(kind), bits)

    def _text(self, where: int) -> str:
        return self._strings[where : self._strings.index(b"\0", where)].decode()


def _index(words: Sequence[int]) -> list[int]:
    """Where each type begins, by number; 0 is void."""
    found, at, end = [0], 0, len(words)
    add, each, more = found.append, _EACH, _MORE
    while at < end:
        add(at)
        info = words[at + 1]
        kind = info >> 24 & 31
        if kind in each:
            at += 3 + each[kind] * (info & 0xFFFF)
        else:
            at += 3 + more.get(kind, 0)
    return found
