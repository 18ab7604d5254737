"""A ring buffer that programs write and one process reads (kernel/bpf/ringbuf.c).

Life: the map is pinned and programs go on writing whether anybody reads or not; when it is full they are told so.
``RingReader`` maps it into memory: a page with the reader's position (ours to write), then a page with the writers'
position and the data twice in a row, so that no record is cut at the end. Opening skips what was written before.

    record   u32 length, bit 31: still being written, bit 30: discarded | u32 page offset | data, filled up to 8 bytes
"""

from __future__ import annotations

import errno
import mmap
import struct

from pycni.errors import KernelError

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_POSITION, _LENGTH = struct.Struct("=Q"), struct.Struct("=I")


class RingReader:
    """The only reader of a ring buffer. One thread at a time."""

    def __init__(self, fd: int, size: int) -> None:
        """``fd`` stays the caller's; ``size`` is the map's number of bytes. Raises KernelError."""
        self._fd = fd
        self._size = size
        page = mmap.PAGESIZE
        try:
            self._own = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            try:
                self._data = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
            except BaseException:
                self._own.close()
                raise
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, "map ring buffer", f"fd {fd}") from exc
        _POSITION.pack_into(self._own, 0, self._written())

    def fileno(self) -> int:
        """Becomes readable when something was written."""
        return self._fd

    def read(self, most: int = 4096) -> list[bytes]:
        """What has been written since, at most so many records. Never blocks."""
        found: list[bytes] = []
        (at,) = _POSITION.unpack_from(self._own)
        end = self._written()
        while at < end and len(found) < most:
            offset = mmap.PAGESIZE + at % self._size
            (length,) = _LENGTH.unpack_from(self._data, offset)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._data[offset + _HEADER : offset + _HEADER + size])
            at += -(-(size + _HEADER) // 8) * 8
        _POSITION.pack_into(self._own, 0, at)
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._own.close()
        self._data.close()

    def _written(self) -> int:
        return int(_POSITION.unpack_from(self._data)[0])
