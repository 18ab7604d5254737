"""A map of the kernel's as bytes to bytes: single entries, whole tables, many changes in few calls.

Batches (kernel 5.6 and newer) carry thousands of entries in one system call; where the kernel does not know them for a
kind of map, entries go one by one. Nothing is copied between processes: programs see a change at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import bpf

BATCH_ENTRIES = 4096
_PER_CPU = frozenset({bpf.PERCPU_HASH, bpf.PERCPU_ARRAY})
_NO_BATCH = frozenset({errno.EINVAL, errno.ENOTSUP, 524})
"""524: ENOTSUPP, which has no name outside the kernel."""


class MapSpec(NamedTuple):
    """What a program expects of a map: the kernel's kind, sizes in bytes, most entries."""

    name: str
    kind: int
    key: int
    value: int
    entries: int
    flags: int = 0

    def fits(self, info: bpf.MapInfo) -> bool:
        """Whether an existing map is this one."""
        wanted = (self.kind, self.key, self.value, self.entries, self.flags)
        return wanted == (info.kind, info.key, info.value, info.entries, info.flags)


class BpfMap:
    """An open map. One thread at a time.

    Values of a map with one per processor are read as those of all processors, one after the other, each filled up to
    8 bytes (``parts``); one that is written is every processor's.
    """

    def __init__(self, spec: MapSpec, fd: int) -> None:
        """Takes over the descriptor."""
        self.spec = spec
        self.fd = fd
        self._each = -(-spec.value // 8) * 8
        self.width = self._each * possible_processors() if spec.kind in _PER_CPU else spec.value
        """Bytes of a value as it is read."""
        self._key = ctypes.create_string_buffer(spec.key)
        self._value = ctypes.create_string_buffer(max(self.width, 1))
        self._key_at = ctypes.addressof(self._key)
        self._value_at = ctypes.addressof(self._value)

    @classmethod
    def create(cls, spec: MapSpec) -> BpfMap:
        """Make it, empty. Raises KernelError."""
        made = bpf.create_map(
            spec.kind, spec.key, spec.value, spec.entries, flags=spec.flags, name=spec.name[: bpf.NAME_BYTES]
        )
        return cls(spec, made)

    def close(self) -> None:
        """Let go of it; harmless when done before."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def get(self, key: bytes) -> bytes | None:
        """Value of a key; None without. Raises KernelError."""
        self._key.raw = key
        code = bpf.element(bpf.MAP_LOOKUP, self.fd, self._key_at, self._value_at)
        if code == errno.ENOENT:
            return None
        self._check(code, "read", key)
        return self._value.raw

    def put(self, key: bytes, value: bytes, flags: int = bpf.ANY) -> bool:
        """Set one entry. False: NOEXIST or EXIST did not hold. Raises KernelError (E2BIG: the map is full)."""
        self._key.raw = key
        self._value.raw = self._whole(value)
        code = bpf.element(bpf.MAP_UPDATE, self.fd, self._key_at, self._value_at, flags)
        if (flags == bpf.NOEXIST and code == errno.EEXIST) or (flags == bpf.EXIST and code == errno.ENOENT):
            return False
        self._check(code, "write", key)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False when it was not there. Raises KernelError."""
        self._key.raw = key
        code = bpf.element(bpf.MAP_DELETE, self.fd, self._key_at, 0)
        if code == errno.ENOENT:
            return False
        self._check(code, "delete from", key)
        return True

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Set many entries. Raises KernelError; entries before the failing one are set then."""
        if len(entries) < 3:
            for key, value in entries.items():
                self.put(key, value)
            return
        keys, values = list(entries), list(entries.values())
        for start in range(0, len(keys), BATCH_ENTRIES):
            part, contents = keys[start : start + BATCH_ENTRIES], values[start : start + BATCH_ENTRIES]
            left = ctypes.create_string_buffer(b"".join(part), len(part) * self.spec.key)
            whole = b"".join(contents if self.width == self.spec.value else map(self._whole, contents))
            right = ctypes.create_string_buffer(whole, len(part) * self.width)
            where = (0, 0, ctypes.addressof(left), ctypes.addressof(right))
            done, code = bpf.batch(bpf.MAP_UPDATE_BATCH, self.fd, where, len(part))
            if code in _NO_BATCH:
                for key, value in zip(part, contents, strict=True):
                    self.put(key, value)
            else:
                self._check(code, "write", part[min(done, len(part) - 1)])

    def remove(self, keys: Collection[bytes]) -> None:
        """Remove many entries; missing ones are no error. Raises KernelError."""
        rest = list(keys)
        while len(rest) > 2:
            part = rest[:BATCH_ENTRIES]
            left = ctypes.create_string_buffer(b"".join(part), len(part) * self.spec.key)
            where = (0, 0, ctypes.addressof(left), 0)
            done, code = bpf.batch(bpf.MAP_DELETE_BATCH, self.fd, where, len(part))
            if code in _NO_BATCH:
                break
            if code not in {0, errno.ENOENT}:
                self._check(code, "delete from", part[min(done, len(part) - 1)])
            rest = rest[len(part) if code == 0 else done + 1 :]
        for key in rest:
            self.delete(key)

    def items(self) -> dict[bytes, bytes]:
        """Everything in it. Entries that come or go meanwhile may be missed. Raises KernelError."""
        found: dict[bytes, bytes] = {}
        for keys, values in self.batches():
            found.update(zip(_pieces(keys, self.spec.key), _pieces(values, self.width), strict=True))
        return found

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        """The same as keys one after the other and values one after the other, some thousand at a time."""
        size, room, start = self.spec, BATCH_ENTRIES, 0
        cursor = ctypes.create_string_buffer(max(size.key, 8))
        at = ctypes.addressof(cursor)
        while True:
            keys = ctypes.create_string_buffer(room * size.key)
            values = ctypes.create_string_buffer(room * self.width)
            where = (start, at, ctypes.addressof(keys), ctypes.addressof(values))
            done, code = bpf.batch(bpf.MAP_LOOKUP_BATCH, self.fd, where, room)
            if code in _NO_BATCH:
                found = self._items_by_key()
                yield b"".join(found), b"".join(found.values())
                return
            if code == errno.ENOSPC:  # one bucket holds more than there was room for
                room *= 4
                continue
            if code not in {0, errno.ENOENT}:
                self._check(code, "list", b"")
            yield keys.raw[: done * size.key], values.raw[: done * self.width]
            if code == errno.ENOENT:
                return
            start = at

    def _items_by_key(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        following = ctypes.create_string_buffer(self.spec.key)
        at = 0
        while True:
            code = bpf.element(bpf.MAP_NEXT_KEY, self.fd, at, ctypes.addressof(following))
            if code == errno.ENOENT:
                return found
            self._check(code, "list", b"")
            key = following.raw
            value = self.get(key)
            if value is not None:
                found[key] = value
            self._key.raw = key
            at = self._key_at

    def parts(self, value: bytes) -> list[bytes]:
        """What each processor has of a value as it was read."""
        if self.width == self.spec.value:
            return [value]
        return [value[at : at + self.spec.value] for at in range(0, self.width, self._each)]

    def take(self, key: bytes) -> bytes | None:
        """Remove one entry of a hash in one step with reading it; None when it was not there. Raises KernelError."""
        self._key.raw = key
        code = bpf.element(bpf.MAP_LOOKUP_AND_DELETE, self.fd, self._key_at, self._value_at)
        if code == errno.ENOENT:
            return None
        self._check(code, "take from", key)
        return self._value.raw

    def _whole(self, value: bytes) -> bytes:
        if len(value) == self.width:
            return value
        return value.ljust(self._each, b"\0") * (self.width // self._each)

    def _check(self, code: int, operation: str, key: bytes) -> None:
        if not code:
            return
        detail = f"full: it holds {self.spec.entries} entries" if code == errno.E2BIG else ""
        raise KernelError(code, f"{operation} map", f"{self.spec.name}[{key.hex()}]", detail)


@lru_cache(maxsize=1)
def possible_processors() -> int:
    """How many processors maps have room for."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


def _pieces(raw: bytes, size: int) -> Iterable[bytes]:
    return (raw[at : at + size] for at in range(0, len(raw), size))
