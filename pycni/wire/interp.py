"""An ELF executable made to run with libraries of its own: another program interpreter and DT_RPATH. Pure.

A CNI plugin is executed on hosts that may have another C library than the one the bundled Python was built for, or
none. Its copy must therefore name its own loader and its own library folder. Both texts are longer than what stands
there, so a new segment at the end of the file takes the dynamic section, a longer string table and the loader's path;
the header of a note segment, which nothing needs at run time, is reused to map it:

    [ original file | padding | .dynamic' | .dynstr + rpath | interp ]
                    ^ PT_LOAD (was PT_NOTE), above every other segment

Layouts: System V ABI, "Program Header" and "Dynamic Section"; 64-bit, little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")

_SHOFF, _SHNUM = 40, 60
"""Offsets of e_shoff and of e_shnum with e_shstrndx in the file header."""

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_PROPERTY = 0x6474E553
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH = 0, 1, 5, 10, 15, 29
_READ_WRITE = 6


class _Segment(NamedTuple):
    """A program header in the order of its fields."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int
    align: int


class _Elf(NamedTuple):
    """What is needed of an executable."""

    table_offset: int
    segments: list[_Segment]
    dynamic: list[tuple[int, int]]

    def of(self, kind: int) -> _Segment:
        """The one segment of a kind."""
        found = [segment for segment in self.segments if segment.kind == kind]
        if len(found) != 1:
            raise ValueError(f"{len(found)} program headers of type {kind:#x}, expected one")
        return found[0]

    def offset_of(self, vaddr: int) -> int:
        """Where an address of the program is in the file."""
        for segment in self.segments:
            if segment.kind == PT_LOAD and segment.vaddr <= vaddr < segment.vaddr + segment.file_size:
                return segment.offset + vaddr - segment.vaddr
        raise ValueError(f"address {vaddr:#x} is in no segment of the file")

    def value(self, tag: int) -> int:
        """A value of the dynamic section."""
        return next(value for key, value in self.dynamic if key == tag)


def _parse(image: bytes) -> _Elf:
    try:
        header = _HEADER.unpack_from(image)
        if header[0][:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        table_offset, size, count = header[5], header[9], header[10]
        if size != _PHDR.size:
            raise ValueError(f"program headers of {size} bytes")
        segments = [_Segment(*_PHDR.unpack_from(image, table_offset + i * size)) for i in range(count)]
        elf = _Elf(table_offset, segments, [])
        place = elf.of(PT_DYNAMIC)
        for tag, value in _DYN.iter_unpack(image[place.offset : place.offset + place.file_size]):
            if tag == DT_NULL:
                break
            elf.dynamic.append((tag, value))
        elf.value(DT_STRTAB), elf.value(DT_STRSZ)
    except (struct.error, StopIteration) as exc:
        raise ValueError(f"truncated or incomplete ELF file: {exc}") from exc
    return elf


def interpreter(image: bytes) -> str:
    """Path of the program interpreter (loader). Errors: ValueError when there is none (static, not ELF)."""
    place = _parse(image).of(PT_INTERP)
    return image[place.offset : place.offset + place.file_size].rstrip(b"\0").decode()


def relocated(image: bytes, loader: str, rpath: str) -> bytes:
    """The executable with ``loader`` as its interpreter and ``rpath`` ($ORIGIN is allowed) before all else.

    DT_RPATH and not DT_RUNPATH: the former holds for the libraries' own needs too. Errors: ValueError.
    """
    elf = _parse(image)
    elf.of(PT_INTERP)
    loads = [i for i, segment in enumerate(elf.segments) if segment.kind == PT_LOAD]
    # PT_LOAD headers must stay sorted by address, so the reused header has to come after all of them.
    spare = [
        i
        for i, segment in enumerate(elf.segments)
        if segment.kind in (PT_NOTE, PT_GNU_PROPERTY) and i > loads[-1]
    ]
    if not spare:
        raise ValueError("no note segment whose program header could be reused")
    align = max(4096, *(elf.segments[i].align for i in loads))
    end = max(elf.segments[i].vaddr + elf.segments[i].memory_size for i in loads)
    vaddr, offset = -(-end // align) * align, -(-len(image) // align) * align

    old = elf.offset_of(elf.value(DT_STRTAB))
    strings = image[old : old + elf.value(DT_STRSZ)]
    rpath_at = len(strings)
    strings += rpath.encode() + b"\0"
    kept = [entry for entry in elf.dynamic if entry[0] not in (DT_RPATH, DT_RUNPATH, DT_STRTAB, DT_STRSZ)]
    dynamic_size = (len(kept) + 4) * _DYN.size
    replaced = [
        (DT_RPATH, rpath_at),
        (DT_STRTAB, vaddr + dynamic_size),
        (DT_STRSZ, len(strings)),
        (DT_NULL, 0),
    ]
    dynamic = b"".join(_DYN.pack(*entry) for entry in [*kept, *replaced])
    added = dynamic + strings + loader.encode() + b"\0"

    def part(kind: int, start: int, size: int, segment_align: int) -> _Segment:
        place = (offset + start, vaddr + start, vaddr + start, size, size)
        return _Segment(kind, _READ_WRITE, *place, segment_align)

    headers = list(elf.segments)
    headers[spare[-1]] = part(PT_LOAD, 0, len(added), align)
    for index, segment in enumerate(headers):
        if segment.kind == PT_DYNAMIC:
            headers[index] = part(PT_DYNAMIC, 0, len(dynamic), 8)
        elif segment.kind == PT_INTERP:
            headers[index] = part(PT_INTERP, len(dynamic) + len(strings), len(loader.encode()) + 1, 1)
    table = b"".join(_PHDR.pack(*segment) for segment in headers)
    changed = bytearray(image.ljust(offset, b"\0") + added)
    changed[elf.table_offset : elf.table_offset + len(table)] = table
    # The section table describes the old places; nothing needs it at run time.
    struct.pack_into("<Q", changed, _SHOFF, 0)
    struct.pack_into("<HH", changed, _SHNUM, 0, 0)
    return bytes(changed)


def without_runpath(image: bytes) -> bytes:
    """A shared library whose own needs are searched where its user's DT_RPATH says (ld.so(8))."""
    elf = _parse(image)
    kept = [entry for entry in elf.dynamic if entry[0] not in (DT_RPATH, DT_RUNPATH)]
    gone = len(elf.dynamic) - len(kept)
    place = elf.of(PT_DYNAMIC)
    section = b"".join(_DYN.pack(*entry) for entry in [*kept, *[(DT_NULL, 0)] * gone])
    return image[: place.offset] + section + image[place.offset + len(section) :]
