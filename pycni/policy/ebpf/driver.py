"""The fast path's maps and programs in the kernel: rows in, rows read back, connections swept, denials counted.

Life: opening finds the pinned maps of an earlier life, or makes new ones, and has this version's programs run wherever
an earlier one's did, each in one step. ``aside`` keeps programs from judging (one write); ``apply`` writes rows in an
order in which nothing leads to what is not there, and ``judge`` lets programs judge by them. A process that ends
anywhere in between leaves them aside. Connections in ``flows`` go on in any case.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_build, bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.kernel.bpf_object import Attachment, BpfObject, ProgramSpec, Source
from pycni.kernel.conntrack_new import Connection, remember
from pycni.kernel.netlink import NetlinkSocket
from pycni.policy.base import JUDGED_MARK
from pycni.policy.ebpf import flows, layout
from pycni.policy.ebpf.flows import Times
from pycni.policy.ebpf.layout import COUNT_VALUE, RULES, TABLES, Config
from pycni.reconcile.ledger import Changes

PART = "policy"
SHARED = ("packet.h", "flows.h", "judge.h")
SPECS = tuple(MapSpec(*row) for row in (*layout.MAPS, *flows.MAPS))
"""All maps, in the order programs know them by."""
POD_IN, POD_OUT, UPLINK_IN, UPLINK_OUT = "pod_in", "pod_out", "uplink_in", "uplink_out"
HOOK_OF: Mapping[str, int] = {
    POD_IN: bpf.TCX_INGRESS,
    POD_OUT: bpf.TCX_EGRESS,
    UPLINK_IN: bpf.TCX_INGRESS,
    UPLINK_OUT: bpf.TCX_EGRESS,
}
FIRST = bytes(4)
"""Key of maps with one row."""


class Places(NamedTuple):
    """Where this node's part is."""

    bpffs: str = bpf_places.BPFFS
    cache: str = bpf_build.CACHE


class Count(NamedTuple):
    """Packets and bytes."""

    packets: int
    bytes: int


def headers(maps: Collection[str] = ()) -> str:
    """What a program has to begin with: maps by number, layouts, judging.

    ``maps``: names in the order of the object's specifications; empty: those of ``SPECS``.
    """
    maps = maps or [spec.name for spec in SPECS]
    numbers = ", ".join(f"MAP_{name.upper()}" for name in maps)
    parts = [f"#define JUDGED {JUDGED_MARK:#x}", f"enum {{ {numbers} }};"]
    parts += [layout.declarations(), flows.declarations()]
    parts += [Path(__file__).with_name(name).read_text() for name in SHARED]
    return "\n".join(parts)


def source(cache: str) -> Source:
    """The programs and where their builds are kept."""
    return Source(headers() + Path(__file__).with_name("fast.c").read_text(), cache=cache)


def programs(*, tcx: bool) -> tuple[ProgramSpec, ...]:
    """The programs, for links (tcx) or for filters."""
    return tuple(ProgramSpec(name, bpf.SCHED_CLS, hook if tcx else 0) for name, hook in HOOK_OF.items())


class FastDriver:
    """Maps and programs of the node whose network namespace the making thread is in. One thread at a time."""

    def __init__(self, node: str, places: Places, times: Times, *, spoof_check: bool, tcx: bool) -> None:
        """Raises KernelError, BuildError."""
        self.times = times
        self.folder = bpf_places.folder(node, PART, bpf_places.bpffs(places.bpffs))
        with kernel_errors(self.folder):
            self.object = BpfObject(self.folder, source(places.cache), SPECS, programs(tcx=tcx))
        try:
            self.maps: Mapping[str, BpfMap] = self.object.maps
            fresh = {flows.SEEN, flows.GRACE} & self.object.fresh
            self.maps[flows.TIMES].put(FIRST, times.pack())
            if fresh:
                self.hold_datagrams()
            self._flags = flows.SPOOF_CHECK if spoof_check else 0
            config = self._config()
            self._number = config.judging
            self._put_config(config.judging)
            with kernel_errors(self.folder):
                self.object.commit(self._adopted())
        except BaseException:
            self.object.close()
            raise

    def _adopted(self) -> list[Attachment]:
        """Where programs of an earlier life run."""
        found = []
        for name, (target, _) in self.object.links().items():
            function, _, index = name.rpartition("-")
            if target and str(target) == index and function in HOOK_OF:
                found.append(Attachment(name, function, target, target))
        return found

    # --- judging -------------------------------------------------------------------------------------------------

    def aside(self) -> None:
        """Leave everything new to the stack from now on. Raises KernelError."""
        if self._config().judging:
            self._put_config(0)

    def judge(self) -> None:
        """Judge by what is in the maps now. Raises KernelError."""
        # Another number than ever before: a program that was judging meanwhile notices.
        self._number = self._number % 0xFFFFFFFF + 1
        self._put_config(self._number)

    @property
    def judging(self) -> bool:
        """Whether programs judge. Raises KernelError."""
        return bool(self._config().judging)

    def _config(self) -> Config:
        return Config.unpack(self.maps[layout.CONFIG].get(FIRST) or bytes(32))

    def _put_config(self, judging: int) -> None:
        self.maps[layout.CONFIG].put(FIRST, Config(judging, self._flags).pack())

    def hold_datagrams(self) -> None:
        """Programs have missed datagrams: leave those without an entry to the stack for as long as it knows more."""
        until = time.monotonic_ns() + self.times.grace
        self.maps[flows.GRACE].put(FIRST, until.to_bytes(8, sys.byteorder))

    # --- rows ----------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, dict[bytes, bytes]]:
        """Rows of the compiled tables as they are. Raises KernelError."""
        found = {name: self.maps[name].items() for name in TABLES}
        found[RULES] = dict.fromkeys(found[RULES], COUNT_VALUE)
        return found

    def live(self) -> Mapping[str, Mapping[bytes, bytes]]:
        """The compiled tables, each row looked up in the kernel when it is asked for."""
        return {name: _Live(self.maps[name]) for name in TABLES}

    def fills(self) -> dict[str, float]:
        """Entries of the maps that programs fill, with their limits. Raises KernelError."""
        found: dict[str, float] = {}
        for name in (flows.FLOWS, flows.SEEN):
            found[name] = len(self.maps[name].items())
            found[f"{name} limit"] = self.maps[name].spec.entries
        return found

    def apply(self, changes: Changes) -> int:
        """Write differences while standing aside: additions in order, then removals backwards. Raises KernelError."""
        self.aside()
        count = 0
        for name, delta in changes:
            self.maps[name].update({**delta.add, **delta.change})
        for name, delta in reversed(changes):
            self.maps[name].remove(delta.remove)
            count += delta.size
        return count

    # --- connections ---------------------------------------------------------------------------------------------

    def sweep(self, devices: Collection[int]) -> int:
        """Forget connections that are over, and those of interfaces that are not there any more. Raises KernelError."""
        now, times = time.monotonic_ns(), self.times
        gone = _forget(
            self.maps[flows.FLOWS], lambda keys, rows: flows.ended(keys, rows, now, times, devices)
        )
        _forget(self.maps[flows.SEEN], lambda keys, rows: flows.forgotten(keys, rows, now, times))
        return gone

    def drop_flows(self, devices: Collection[int]) -> None:
        """Forget the connections of these interfaces. Raises KernelError."""
        table, gone = self.maps[flows.FLOWS], set(devices)
        table.remove([key for keys, rows in table.batches() for key in flows.of_devices(keys, rows, gone)])

    def hand_over(self, sock: NetlinkSocket) -> int:
        """Have the stack know the connections that are open, before the programs go. Raises KernelError."""
        return give_to_stack(self.maps[flows.FLOWS], self.times, sock)

    # --- denials -------------------------------------------------------------------------------------------------

    def denials(self) -> dict[bytes, Count]:
        """What was denied, by rule. Raises KernelError."""
        return {rule: _count(raw) for rule, raw in self.maps[flows.DENIALS].items().items()}

    def refused(self) -> dict[str, Count]:
        """What was refused for other reasons than policies. Raises KernelError."""
        table = self.maps[flows.REFUSED]
        found = {}
        for number, reason in enumerate(flows.REASONS):
            if number:
                found[reason] = _count(table.get(number.to_bytes(4, sys.byteorder)) or bytes(16))
        return found

    def decided(self) -> dict[bytes, Count]:
        """How often each rule decided about a connection. Raises KernelError."""
        table = self.maps[RULES]
        found = {}
        for rule, raw in table.items().items():
            counts = [_count(part) for part in table.parts(raw)]
            found[rule] = Count(sum(item.packets for item in counts), sum(item.bytes for item in counts))
        return found

    def forget_rules(self, known: Collection[bytes]) -> None:
        """Drop counts of rules that are not there any more. Raises KernelError."""
        table = self.maps[flows.DENIALS]
        table.remove([rule for rule in table.items() if rule not in known])

    def lost(self) -> int:
        """How many denials programs could not tell of. Raises KernelError."""
        return int.from_bytes(self.maps[flows.LOST].get(FIRST) or b"", sys.byteorder)

    def close(self) -> None:
        """Release descriptors; the programs go on."""
        self.object.close()


class _Live(Mapping[bytes, bytes]):
    """A map of the kernel's, for who asks for single keys. In a trie the longest prefix comes first anyway."""

    def __init__(self, table: BpfMap) -> None:
        self._table = table

    def __getitem__(self, key: bytes) -> bytes:
        found = self._table.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._table.items())

    def __len__(self) -> int:
        return len(self._table.items())


def give_to_stack(table: BpfMap, times: Times, sock: NetlinkSocket) -> int:
    """Have connection tracking remember the connections of a table of flows. Raises KernelError."""
    now = time.monotonic_ns()
    return remember(
        sock,
        [
            Connection(*item)
            for keys, rows in table.batches()
            for item in flows.open_ones(keys, rows, now, times)
        ],
    )


def give_back(folder: str, sock: NetlinkSocket) -> None:
    """``give_to_stack`` with what an earlier life left in a folder of pins. Raises KernelError."""
    with _pinned(folder, flows.FLOWS) as table:
        if table is not None:
            give_to_stack(table, Times(), sock)


def forget_hosts(folder: str, addresses: Collection[bytes]) -> int:
    """Forget pods of a folder of pins, and how they were connected: these addresses. Raises KernelError."""
    hosts = {layout.pack_address(address) for address in addresses}
    with _pinned(folder, flows.PODS) as table:
        if table is not None:
            table.remove(hosts)
    count = 0
    for name in (flows.FLOWS, flows.SEEN):
        with _pinned(folder, name) as table:
            if table is not None:
                keys = [key for some, _ in table.batches() for key in flows.of_hosts(some, hosts)]
                table.remove(keys)
                count += len(keys)
    return count


@contextlib.contextmanager
def _pinned(folder: str, name: str) -> Iterator[BpfMap | None]:
    """A map of an earlier life; None: there is none, or it is another version's."""
    spec = next(item for item in SPECS if item.name == name)
    try:
        table = BpfMap(spec, bpf.get(f"{folder}/maps/{name}"))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        yield None
        return
    try:
        yield table if spec.fits(bpf.map_info(table.fd)) else None
    finally:
        table.close()


def _forget(table: BpfMap, over: Callable[[bytes, bytes], Iterator[bytes]]) -> int:
    gone = 0
    for keys, values in table.batches():
        for key in over(keys, values):
            raw = table.take(key)
            # A connection may have begun anew since it was looked at.
            if raw is not None and not any(over(key, raw)):
                table.put(key, raw, bpf.NOEXIST)
            else:
                gone += 1
    return gone


def _count(raw: bytes) -> Count:
    return Count(int.from_bytes(raw[:8], sys.byteorder), int.from_bytes(raw[8:16], sys.byteorder))


@contextlib.contextmanager
def kernel_errors(what: str) -> Iterator[None]:
    """What the file system of pins says, as KernelError."""
    try:
        yield
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "load eBPF programs", what, str(exc)) from exc
