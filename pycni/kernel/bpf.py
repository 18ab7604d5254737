"""The bpf(2) system call: maps, programs, pins and links, without a library and without LLVM.

Every function packs one member of ``union bpf_attr`` (include/uapi/linux/bpf.h), calls, and raises KernelError with
the kernel's errno and the object's name. Descriptors returned are the caller's to close; the kernel keeps an object as
long as a descriptor, a pin, a link or another object refers to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pycni.errors import KernelError

# Commands.
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROG_LOAD, OBJ_PIN, OBJ_GET = range(8)
OBJ_INFO, PROG_QUERY, BTF_LOAD, MAP_LOOKUP_AND_DELETE = 15, 16, 18, 21
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
RAW_TRACEPOINT_OPEN = 17

# Map types.
HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LPM_TRIE = 1, 2, 5, 6, 9, 11
SK_STORAGE, RINGBUF = 24, 27
NO_PREALLOC = 1
TCX_FIRST = 1 << 3
"""BPF_F_BEFORE: of a link, before all programs that are on the hook."""
ANY, NOEXIST, EXIST = 0, 1, 2

# Program types and the attach types used with them.
SCHED_CLS, XDP, CGROUP_SOCK, RAW_TRACEPOINT, CGROUP_SOCK_ADDR = 3, 6, 9, 17, 18
INET4_CONNECT, INET6_CONNECT, UDP4_SENDMSG, UDP6_SENDMSG, UDP4_RECVMSG, UDP6_RECVMSG = 10, 11, 14, 15, 19, 20
INET4_GETPEERNAME, INET6_GETPEERNAME, INET_SOCK_RELEASE, XDP_ATTACH = 29, 30, 34, 37
TCX_INGRESS, TCX_EGRESS = 46, 47

INSTRUCTION_BYTES = 8
LOG_BYTES = 1 << 20
NAME_BYTES = 15
"""Longest name of a map or a program."""
_CALLS = {"x86_64": 321, "aarch64": 280, "armv7l": 386, "ppc64le": 361, "s390x": 351, "riscv64": 280}

_libc = ctypes.CDLL(None, use_errno=True)
_ELEMENT = struct.Struct("=I4xQQQ")
_BATCH = struct.Struct("=QQQQIIQQ")
LICENSE = "Apache-2.0"


class MapInfo(NamedTuple):
    """What the kernel says of a map. Sizes in bytes."""

    kind: int
    id: int
    key: int
    value: int
    entries: int
    flags: int
    name: str


class ProgramInfo(NamedTuple):
    """What the kernel says of a loaded program."""

    kind: int
    id: int
    name: str
    maps: frozenset[int]
    """Ids of the maps it uses."""


class LinkInfo(NamedTuple):
    """What the kernel says of a link; ``target`` is a cgroup's id or an interface's index, 0 when it is gone."""

    kind: int
    id: int
    program: int
    target: int


LINK_CGROUP, LINK_XDP, LINK_TCX = 3, 6, 11


def call(command: int, attr: bytes | ctypes.Array[ctypes.c_char], operation: str, obj: str = "") -> int:
    """One bpf(2). Returns its result, a descriptor for commands that make or open something. Raises KernelError."""
    number = _CALLS.get(platform.machine())
    if number is None:
        raise KernelError(errno.ENOSYS, operation, obj, f"no bpf(2) known for {platform.machine()}")
    for _ in range(10):  # the verifier answers EAGAIN when a signal arrives
        result = int(_libc.syscall(number, command, attr, len(attr)))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            break
    raise KernelError(code, operation, obj)


def create_map(kind: int, key: int, value: int, entries: int, *, flags: int = 0, name: str = "") -> int:
    """Make a map; sizes in bytes. Returns its descriptor. Socket storage comes with the type information it demands."""
    btf = _opaque_btf(value) if kind == SK_STORAGE else -1
    try:
        types = (btf, 1, 3) if btf >= 0 else (0, 0, 0)
        head = struct.pack("=7I16sI3I", kind, key, value, entries, flags, 0, 0, _name(name), 0, *types)
        return call(MAP_CREATE, head + bytes(16), "create map", name)
    finally:
        if btf >= 0:
            os.close(btf)


def load_program(
    kind: int, code: bytes, *, attach_type: int = 0, name: str = "", flags: int = 0, licence: str = LICENSE
) -> int:
    """Have the kernel verify and translate a program. Returns its descriptor.

    ``code`` are instructions of 8 bytes with descriptors of maps in place; ``flags`` are BPF_F_*; ``licence`` is what
    the program is offered under, which decides what helpers it may call. On refusal KernelError's detail is the end
    of the verifier's own log, which tells the instruction and the reason.
    """
    body = ctypes.create_string_buffer(code, len(code))
    offered = ctypes.create_string_buffer(licence.encode())

    def attempt(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        size, address = (0, 0) if log is None else (len(log), ctypes.addressof(log))
        attr = struct.pack(
            "=2IQQ2IQ2I16s2I",
            *(kind, len(code) // INSTRUCTION_BYTES, ctypes.addressof(body), ctypes.addressof(offered)),
            *(level, size, address, 0, flags, _name(name), 0, attach_type),
        )
        return call(PROG_LOAD, attr, "load program", name)

    try:
        return attempt(0, None)
    except KernelError as error:
        if error.errno in {errno.EPERM, errno.ENOSYS, errno.ENOMEM}:
            raise
    log = ctypes.create_string_buffer(LOG_BYTES)
    try:
        return attempt(1, log)
    except KernelError as error:
        raise KernelError(error.errno, "load program", name, _last_lines(log.value)) from None


def pin(fd: int, path: str) -> None:
    """Give an object a name in bpffs. Raises KernelError (EEXIST)."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    call(OBJ_PIN, struct.pack("=QII", ctypes.addressof(text), fd, 0), "pin", path)


def get(path: str) -> int:
    """Open a pinned object. Raises KernelError (ENOENT)."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return call(OBJ_GET, struct.pack("=QII", ctypes.addressof(text), 0, 0), "open pin", path)


def create_link(program: int, target: int, attach_type: int, obj: str = "", flags: int = 0) -> int:
    """Attach a program to a cgroup (its descriptor) or an interface (its index); it stays as long as the link.

    Several programs may be attached to one cgroup; all of them run. ``flags`` are the hook's own. Raises KernelError:
    EPERM or EBUSY when somebody holds the hook for himself alone.
    """
    attr = struct.pack("=4I", program, target, attach_type, flags)
    return call(LINK_CREATE, attr + bytes(32), "attach program", obj)


def update_link(link: int, program: int, obj: str = "") -> None:
    """Put another program in the place of a link's, in one step. Raises KernelError (ENOLINK: the target is gone)."""
    call(LINK_UPDATE, struct.pack("=4I", link, program, 0, 0), "swap program", obj)


def detach_link(link: int, obj: str = "") -> None:
    """Take a link's program off at once; without it that happens a little after the last reference went."""
    call(LINK_DETACH, struct.pack("=I", link), "detach program", obj)


def open_tracepoint(program: int, name: str) -> int:
    """Attach a program to a tracepoint, without tracefs. It stays as long as the descriptor. Raises KernelError.

    ENOENT: this kernel has no such tracepoint; EINVAL: it has fewer arguments than the program reads.
    """
    text = ctypes.create_string_buffer(name.encode())
    attr = struct.pack("=QI4xQ", ctypes.addressof(text), program, 0)
    return call(RAW_TRACEPOINT_OPEN, attr, "attach program", name)


def attached(target: int, attach_type: int, obj: str = "") -> list[int]:
    """Ids of the programs on a cgroup's hook (``target`` a descriptor) or a tcx hook (an index), in their order."""
    room = 256
    ids = (ctypes.c_uint32 * room)()
    attr = ctypes.create_string_buffer(
        struct.pack("=4IQI4x", target, attach_type, 0, 0, ctypes.addressof(ids), room) + bytes(32)
    )
    call(PROG_QUERY, attr, "query programs", obj)
    count = struct.unpack_from("=I", attr, 24)[0]
    return list(ids[:count])


def map_info(fd: int) -> MapInfo:
    """Kind, sizes and name of an open map."""
    raw = _info(fd, 88)
    kind, number, key, value, entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, number, key, value, entries, flags, raw[24:40].rstrip(b"\0").decode())


def program_info(fd: int) -> ProgramInfo:
    """Kind, name and maps of an open program."""
    room = 64
    ids = (ctypes.c_uint32 * room)()
    seed = bytearray(80)
    struct.pack_into("=IQ", seed, 52, room, ctypes.addressof(ids))
    raw = _info(fd, 80, bytes(seed))
    kind, number = struct.unpack_from("=2I", raw)
    count = struct.unpack_from("=I", raw, 52)[0]
    return ProgramInfo(kind, number, raw[64:80].rstrip(b"\0").decode(), frozenset(ids[: min(count, room)]))


def link_info(fd: int) -> LinkInfo:
    """Program and target of an open link."""
    raw = _info(fd, 32)
    kind, number, program = struct.unpack_from("=3I", raw)
    target = struct.unpack_from("=Q" if kind == LINK_CGROUP else "=I", raw, 16)[0]
    return LinkInfo(kind, number, program, target)


def element(command: int, fd: int, key: int, value: int, flags: int = 0) -> int:
    """Look up, update or delete one entry; ``key`` and ``value`` are addresses. Returns 0 or a positive errno."""
    attr = _ELEMENT.pack(fd, key, value, flags)
    if _libc.syscall(_CALLS[platform.machine()], command, attr, len(attr)) < 0:
        return ctypes.get_errno()
    return 0


def batch(command: int, fd: int, addresses: Sequence[int], count: int) -> tuple[int, int]:
    """Look up, update or delete many entries in one call. Returns how many were done, and 0 or a positive errno.

    ``addresses`` are those of the cursor read, the cursor written, keys and values (0 where there is none).
    """
    attr = ctypes.create_string_buffer(_BATCH.pack(*addresses, count, fd, 0, 0), _BATCH.size)
    code = 0
    if _libc.syscall(_CALLS[platform.machine()], command, attr, _BATCH.size) < 0:
        code = ctypes.get_errno()
    return int(struct.unpack_from("=I", attr, 32)[0]), code


def _info(fd: int, size: int, seed: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(seed.ljust(size, b"\0"), size)
    call(OBJ_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)), "describe object", f"fd {fd}")
    return buffer.raw


def _name(text: str) -> bytes:
    return text.encode()[:NAME_BYTES]


def _last_lines(log: bytes) -> str:
    """The verifier's verdict: its last lines that are not statistics."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("processed ", "verification time", "stack depth"))
    ]
    return "; ".join(line.strip() for line in lines[-4:])


def _opaque_btf(value: int) -> int:
    """BTF of a 32-bit key (type 1) and an array of bytes (type 3) as value (Documentation/bpf/btf.rst)."""
    int_kind, array_kind = 1, 3
    types = b"".join(
        (
            struct.pack("=4I", 1, int_kind << 24, 4, 1 << 24 | 32),
            struct.pack("=4I", 5, int_kind << 24, 1, 8),
            struct.pack("=3I3I", 0, array_kind << 24, 0, 2, 1, value),
        )
    )
    strings = b"\0int\0u8\0"
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    blob = ctypes.create_string_buffer(header + types + strings)
    attr = struct.pack("=QQIIII", ctypes.addressof(blob), 0, len(blob) - 1, 0, 0, 0)
    return call(BTF_LOAD, attr, "load type information", f"array of {value} bytes")


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever some of them say."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
