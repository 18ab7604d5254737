"""The socket layer's maps and programs in the kernel: rows in, rows read back, connections counted.

Life: opening finds the pinned maps of an earlier life, or makes new ones. ``apply`` writes rows so that at every moment
each frontend leads to a whole pool: pools first, then frontends, what is no longer wanted last. Programs are attached
once the maps hold what was wanted; when all maps were found they are brought up to date at once, each in one step, so
that neither a restart nor an upgrade of the agent is seen by any connection.

Programs keep more than rows: turns of rr (they count connections too), open connections for lc, affinity, flows of UDP
sockets. These live in pinned maps as long as the rows do.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import bpf, bpf_build, bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.kernel.bpf_object import Attachment, BpfObject, ProgramSpec, Source
from pycni.model.kube import UDP
from pycni.model.service import FrontendKey, NodeFacts
from pycni.reconcile.delta import Delta
from pycni_proxy.base import Changes, Counters, Tables, TargetState
from pycni_proxy.ebpf import layout, stale
from pycni_proxy.ebpf.addresses import NodeAddresses
from pycni_proxy.ebpf.compile import FRONTENDS, MAP_OF, NODES, OUTSIDE
from pycni_proxy.ebpf.layout import Meta
from pycni_proxy.ebpf.namespaces import Namespaces
from pycni_proxy.ebpf.uplink import PART as UPLINK
from pycni_proxy.ebpf.uplink import SETTLE_S, Uplink

SWEEP_S = 60.0
PART = "services"
PROGRAMS = (
    ProgramSpec("connect4", bpf.CGROUP_SOCK_ADDR, bpf.INET4_CONNECT),
    ProgramSpec("connect6", bpf.CGROUP_SOCK_ADDR, bpf.INET6_CONNECT),
    ProgramSpec("sendmsg4", bpf.CGROUP_SOCK_ADDR, bpf.UDP4_SENDMSG),
    ProgramSpec("sendmsg6", bpf.CGROUP_SOCK_ADDR, bpf.UDP6_SENDMSG),
    ProgramSpec("recvmsg4", bpf.CGROUP_SOCK_ADDR, bpf.UDP4_RECVMSG),
    ProgramSpec("recvmsg6", bpf.CGROUP_SOCK_ADDR, bpf.UDP6_RECVMSG),
    ProgramSpec("getpeer4", bpf.CGROUP_SOCK_ADDR, bpf.INET4_GETPEERNAME),
    ProgramSpec("getpeer6", bpf.CGROUP_SOCK_ADDR, bpf.INET6_GETPEERNAME),
    ProgramSpec("release", bpf.CGROUP_SOCK, bpf.INET_SOCK_RELEASE),
)


class Places(NamedTuple):
    """Where this node's part is. ``cgroup``: the group whose sockets pass the programs; "" for the whole tree."""

    bpffs: str = bpf_places.BPFFS
    cgroup: str = ""
    cache: str = bpf_build.CACHE
    settle_s: float = SETTLE_S
    """See ``uplink``."""


def source(cache: str) -> Source:
    """The programs and where their builds are kept."""
    parts = ("balance.c", "sock.c")
    return Source("".join(Path(__file__).with_name(name).read_text() for name in parts), cache=cache)


class SockDriver:
    """Driver of the eBPF data plane, for the node whose network namespace the making thread is in."""

    def __init__(self, facts: NodeFacts, places: Places) -> None:
        """Raises KernelError, BuildError."""
        self._facts = facts
        self._cgroup = places.cgroup or bpf_places.cgroup2()
        self.folder = bpf_places.folder(facts.name, PART, bpf_places.bpffs(places.bpffs))
        specs = [MapSpec(*row) for row in layout.MAPS]
        self._object = BpfObject(self.folder, source(places.cache), specs, PROGRAMS)
        self.uplink: Uplink | None = None
        try:
            self._maps = self._object.maps
            self._tables = {table: self._maps[name] for table, name in MAP_OF.items()}
            if facts.uplink:
                self.uplink = Uplink(facts, places.bpffs, places.cache, self._maps, places.settle_s)
                self._tables[OUTSIDE] = self.uplink.outside
            self._addresses = NodeAddresses(facts)
            served = BpfMap(self._maps["served"].spec, os.dup(self._maps["served"].fd))
            self.namespaces = Namespaces(served, everybody=bpf_places.machine_wide(), own=bpf_places.cookie())
            self._gone: set[bytes] = set()
            self._swept = time.monotonic()
            self._current = False
            self._refresh_addresses()
            if not self._object.fresh:
                self._commit()
                if self.uplink is not None and not self.uplink.fresh:
                    self.uplink.attach()
        except BaseException:
            if self.uplink is not None:
                self.uplink.close()
            self._object.close()
            raise

    def follow(self, endpoints: EndpointStore) -> None:
        """Serve the sockets of these pods too, now and as they come and go."""
        self.namespaces.follow(endpoints)

    def read(self) -> Tables:
        """Rows of all tables. Node-port addresses the driver finds itself are no rows."""
        if self._current and self.uplink is not None:
            self.uplink.attach()
        found: Tables = {OUTSIDE: {}}
        for table, rows in self._tables.items():
            if table != NODES or not self._facts.node_port_ranges:
                found[table] = dict(rows.items().items())
        return found

    def apply(self, changes: Changes) -> None:
        """Write differences, then have the programs run. Raises KernelError, BuildError."""
        by_table = dict(changes)
        datagrams = self._datagram_targets(by_table.get(FRONTENDS))
        for table, rows in self._tables.items():
            delta = by_table.get(table)
            if delta is not None:
                rows.update({**delta.add, **delta.change})
        for table, rows in reversed(tuple(self._tables.items())):
            delta = by_table.get(table)
            if delta is not None and delta.remove:
                rows.remove(delta.remove)
                if table in {FRONTENDS, OUTSIDE}:
                    self._maps["turns"].remove(delta.remove)
        for key, before in datagrams.items():
            raw = self._maps["frontends"].get(key)
            kept = () if raw is None else map(layout.nameless, self._pool(Meta.unpack(raw)))
            self._gone |= before.difference(kept)
        self._commit()
        if self.uplink is not None:
            self.uplink.attach(look=False)

    def counters(self) -> Mapping[FrontendKey, Counters]:
        """Connections (UDP: flows) opened through each frontend by sockets of this node, and on the uplink."""
        return {
            layout.unpack_frontend(key): Counters(int.from_bytes(value, sys.byteorder))
            for key, value in self._maps["turns"].items().items()
        }

    def targets(self, key: FrontendKey) -> Sequence[TargetState]:
        """Targets of a frontend; open connections are counted where the scheduler goes by them."""
        raw = self._maps["frontends"].get(layout.pack_frontend(key))
        if raw is None:
            return ()
        meta = Meta.unpack(raw)
        found = []
        for index, packed in enumerate(self._pool(meta)):
            active = -1
            if meta.scheduler == layout.LC:
                count = self._maps["open"].get(layout.open_key(meta.service, layout.nameless(packed)))
                active = int.from_bytes(count or b"", sys.byteorder)
            found.append(TargetState(layout.unpack_target(packed), int(index < meta.targets), active))
        return found

    def poll(self) -> float | None:
        """End UDP sockets that are connected to targets gone since; forget counts nobody needs; look at addresses."""
        self._refresh_addresses()
        if self._gone:
            gone, self._gone = self._gone, set()
            stale.end_sockets(self.namespaces.paths(), gone, self._leads_to)
        now = time.monotonic()
        if now - self._swept >= SWEEP_S:
            self._swept = now
            self._sweep()
            if self.uplink is not None:
                self.uplink.attach()
                self.uplink.sweep()
        return SWEEP_S

    def remove(self) -> list[str]:
        """Detach and unpin everything; connections that sockets of this node have open stay open."""
        gone = [] if self.uplink is None else [f"{UPLINK}/{name}" for name in self.uplink.remove()]
        return gone + self._object.detach()

    def close(self) -> None:
        """Release descriptors; the programs go on with what the maps hold."""
        self.namespaces.close()
        self._addresses.close()
        if self.uplink is not None:
            self.uplink.close()
        self._object.close()

    def _commit(self) -> None:
        if self._current:
            return
        try:
            fd = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                number = bpf_places.cgroup_id(self._cgroup)
                self._object.commit(
                    [Attachment(spec.function, spec.function, fd, number) for spec in PROGRAMS]
                )
            finally:
                os.close(fd)
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, "load eBPF programs", self.folder, str(exc)) from exc
        self._current = True

    def _pool(self, meta: Meta) -> Iterable[bytes]:
        total = meta.targets + meta.draining
        for number in range(-(-total // layout.CHUNK)):
            row = self._maps["pools"].get(layout.chunk_key(meta.pool, number)) or b""
            for index in range(min(layout.CHUNK, total - number * layout.CHUNK, len(row) // 20)):
                yield row[20 * index : 20 * index + 20]

    def _refresh_addresses(self) -> None:
        wanted = self._addresses.read()
        if wanted is None:
            return
        there = self._maps["nodes"].items().keys()
        self._maps["nodes"].update(dict.fromkeys(wanted - there, bytes(4)))
        self._maps["nodes"].remove(there - wanted)

    def _datagram_targets(self, delta: Delta[bytes, bytes] | None) -> dict[bytes, set[bytes]]:
        """Targets of UDP frontends as they are before a change, by the frontends' keys."""
        found: dict[bytes, set[bytes]] = {}
        for key in () if delta is None else (*delta.change, *delta.remove):
            raw = self._maps["frontends"].get(key) if key[18] == UDP else None
            if raw is not None:
                found[key] = {layout.nameless(item) for item in self._pool(Meta.unpack(raw))}
        return found

    def _leads_to(self, socket: int, target: bytes) -> bool:
        """Whether a socket reached a target through no service of ours, or through one that still has it."""
        asked = self._maps["reverse"].get(layout.reverse_key(socket, target))
        if asked is None:
            return True
        raw = self._maps["frontends"].get(asked)
        if raw is None:
            node_port = bytes(10) + (b"\xff\xff" if asked[10:12] == b"\xff\xff" else b"\0\0") + bytes(4)
            raw = self._maps["frontends"].get(node_port + asked[16:19] + b"\1")
        return raw is not None and any(
            layout.nameless(item) == target for item in self._pool(Meta.unpack(raw))
        )

    def _sweep(self) -> None:
        """Forget counts of open connections to targets that no lc frontend has any more, once they are zero."""
        counts = self._maps["open"].items()
        zero = {key for key, value in counts.items() if not any(value)}
        if not zero:
            return
        wanted = set()
        for raw in self._maps["frontends"].items().values():
            meta = Meta.unpack(raw)
            if meta.scheduler == layout.LC:
                wanted |= {layout.open_key(meta.service, layout.nameless(item)) for item in self._pool(meta)}
        self._maps["open"].remove(zero - wanted)
