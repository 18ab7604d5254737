"""Why the kernel dropped a packet: its own reasons, by a small eBPF program, without a compiler and without tracefs.

Life: ``DropWatch`` loads ``wire/dropprobe``'s program for the packets it is told to know, attaches it to the tracepoint
skb:kfree_skb of the whole machine and reads its ring; closing the two descriptors removes everything, and so does the
end of the process. Where a kernel keeps what (BTF) is found once per kernel, a tenth of a second, and kept on disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_build
from pycni.kernel.bpf_ring import RingReader
from pycni.model.spot import Spot
from pycni.wire import dropprobe
from pycni.wire.btf import Btf
from pycni.wire.dropprobe import Layout
from pycni.wire.netlink import MalformedError

BTF = "/sys/kernel/btf/vmlinux"
SYMBOLS = "/proc/kallsyms"
RING_BYTES = 1 << 16
_FORMAT = 2
_PATHS = {
    "head": "sk_buff.head",
    "network_header": "sk_buff.network_header",
    "device": "sk_buff.dev",
    "socket": "sk_buff.sk",
    "device_index": "net_device.ifindex",
    "device_space": "net_device.nd_net.net",
    "space_number": "net.ns.inum",
    "socket_space": "sock.__sk_common.skc_net.net",
}
_REASON_ARGUMENTS = 4
"""Of the tracepoint's function, with its own data first, from the kernel on that tells reasons (5.17)."""
_PREFIXES = ("SKB_DROP_REASON_", "SKB_")


class Drop(NamedTuple):
    """One packet that was dropped."""

    time_ns: int
    """Since the epoch."""
    reason: str
    """As the kernel calls it, in lower case: ``no_socket``, ``netfilter_drop``, ``ip_rpfilter``."""
    place: int
    """Address in the kernel; see ``Symbols``."""
    space: int
    """Inode of the network namespace; 0: not known."""
    interface: int
    packet: bytes
    """From its network header on, at most ``dropprobe.COPY`` bytes."""


class _Kernel(msgspec.Struct, frozen=True):
    layout: Layout
    reasons: dict[int, str]


_KERNEL = msgspec.json.Decoder(_Kernel)


class DropWatch:
    """Hears of dropped packets that have one of some spots in them, in all namespaces of this machine."""

    def __init__(self, spots: Sequence[Spot], cache: str = bpf_build.CACHE) -> None:
        """Raises KernelError: EOPNOTSUPP where this kernel tells no reasons, with what it lacks."""
        known = _kernel(cache)
        self._reasons = known.reasons
        self._fds: list[int] = []
        self._ring: RingReader | None = None
        try:
            ring = bpf.create_map(bpf.RINGBUF, 0, 0, RING_BYTES, name="pycni_drops")
            self._fds.append(ring)
            self._ring = RingReader(ring, RING_BYTES)
            code = dropprobe.program(known.layout, spots, ring)
            loaded = bpf.load_program(bpf.RAW_TRACEPOINT, code, name="pycni_trace", licence=dropprobe.LICENCE)
            self._fds.append(loaded)
            self._fds.append(bpf.open_tracepoint(loaded, dropprobe.TRACEPOINT))
        except KernelError:
            self.close()
            raise
        self._boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def fileno(self) -> int:
        """Becomes readable when a packet was dropped."""
        return self._fds[0]

    def read(self) -> list[Drop]:
        """What was dropped since the last call; never waits."""
        if self._ring is None:
            return []
        return [self._drop(dropprobe.decode(raw)) for raw in self._ring.read()]

    def close(self) -> None:
        """Take the program away; harmless when done before."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()
        fds, self._fds = self._fds, []
        bpf.close_all(fds[::-1])

    def _drop(self, event: dropprobe.Event) -> Drop:
        return Drop(
            event.since_boot_ns + self._boot_ns,
            self._reasons.get(event.reason, f"reason {event.reason:#x}"),
            event.place,
            event.space,
            event.interface,
            _whole(event.packet),
        )


class Symbols:
    """Names of places in the kernel. The list is read when asked first, which takes some hundredths of a second."""

    def __init__(self) -> None:
        self._text: bytes | None = None
        self._names: dict[int, str] = {}

    def name(self, place: int) -> str:
        """The function a place is in; "" where the kernel does not say (kernel.kptr_restrict)."""
        if place not in self._names:
            self._names[place] = self._find(place)
        return self._names[place]

    def _find(self, place: int) -> str:
        if self._text is None:
            try:
                with open(SYMBOLS, "rb") as file:
                    self._text = file.read()
            except OSError:
                self._text = b""
        # The kernel's own come in order, and functions are shorter than a window of 64 KiB.
        for back in (0, 1):
            before = [(at, name) for at, name in self._window((place >> 16) - back) if at <= place]
            if before:
                return max(before)[1].decode()
        return ""

    def _window(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Functions whose addresses have these upper bits."""
        text, head = self._text or b"", b"\n%012x" % number
        at = text.find(head)
        while at >= 0 and text.startswith(head, at):
            end = text.find(b"\n", at + 1)
            place, kind, name, *_ = text[at:end].split()
            if kind in b"tTwW":
                yield int(place, 16), name
            at = end


def _whole(data: bytes) -> bytes:
    """Without what is in memory behind the packet's end."""
    if data[0] >> 4 == 4:
        return data[: int.from_bytes(data[2:4], "big")]
    return data[: 40 + int.from_bytes(data[4:6], "big")]


def _kernel(cache: str) -> _Kernel:
    """From the disk, or from the kernel's own description. Raises KernelError."""
    name = hashlib.sha256(f"{_FORMAT} {platform.version()} {platform.release()}".encode()).hexdigest()[:16]
    path = os.path.join(cache, f"drops-{name}.json")
    with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
        return _KERNEL.decode(file.read())
    known = _ask()
    with contextlib.suppress(OSError):  # a disk that cannot be written costs a tenth of a second each time
        os.makedirs(cache, mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=cache)
        with os.fdopen(handle, "wb") as out:
            out.write(msgspec.json.encode(known))
        os.rename(temporary, path)
    return known


def _ask() -> _Kernel:
    try:
        with open(BTF, "rb") as file:
            types = Btf(file.read())
        if types.arguments(f"btf_trace_{dropprobe.TRACEPOINT}") < _REASON_ARGUMENTS:
            raise _lacking("it is older than 5.17")
        layout = Layout(**{field: types.offset(path) for field, path in _PATHS.items()})
        return _Kernel(
            layout, {value: _word(name) for value, name in types.constants("skb_drop_reason").items()}
        )
    except FileNotFoundError as exc:
        raise _lacking("no type information (CONFIG_DEBUG_INFO_BTF)") from exc
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "read type information", BTF) from exc
    except (KeyError, MalformedError, struct.error) as exc:
        raise _lacking(f"its type information lacks {exc}") from exc


def _word(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix).lower()
    return name.lower()


def _lacking(why: str) -> KernelError:
    return KernelError(errno.EOPNOTSUPP, "hear of dropped packets", "this kernel", why)
