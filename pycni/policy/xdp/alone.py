"""The maps that judge connections, for the XDP program alone: no programs at pods read them, no connection is kept.

Life of a change as ``engine`` has it: ``aside`` (one write: the program lets everything pass), the data plane's own
transaction, ``apply`` (rows, then a new state's number in CONFIG, by which the program knows that what it remembers is
of another time). A restarted agent finds the maps pinned and brings them up to date by the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycni.kernel import bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.kernel.bpf_object import BpfObject, Source
from pycni.policy.ebpf import layout
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ebpf.layout import CONFIG, RULES, TABLES, Config
from pycni.policy.xdp.driver import SHARED, per_processor
from pycni.view.policy_stages import RowDiff

PART = "judging"
_FIRST = bytes(4)


class Alone:
    """The maps of the node the making thread is in. One thread at a time."""

    def __init__(self, node: str, bpffs: str = bpf_places.BPFFS) -> None:
        """Raises KernelError, OSError."""
        self.folder = bpf_places.folder(node, PART, bpf_places.bpffs(bpffs))
        self._object = BpfObject(self.folder, Source(""), [MapSpec(*row) for row in SHARED], ())
        self.maps: Mapping[str, BpfMap] = self._object.maps
        self.compiled = Maps()
        self._full = True

    def update(self, rows: Sequence[RowDiff], *, full: bool) -> None:
        """Take in rows of the view that changed."""
        self.compiled.update(rows, full=full)
        self._full = self._full or full

    def aside(self) -> None:
        """Let everything pass. Raises KernelError."""
        config = self._config()
        if config.judging:
            self._put(config._replace(judging=0, since=config.judging))

    def apply(self) -> int:
        """Bring the maps to what was taken in and have them used; says how many operations. Raises KernelError."""
        full, self._full = self._full, True
        changes = self.compiled.against(self._read()) if full else self.compiled.take()
        if changes:
            self.aside()
        for name, delta in changes:
            table = per_processor(self.maps[name]) if name == RULES else self.maps[name]
            rows = {**delta.add, **delta.change}
            if name == RULES:
                rows = {key: bytes(table.spec.value) for key in rows}
            table.update(rows)
            if table is not self.maps[name]:
                table.close()
        for name, delta in reversed(changes):
            self.maps[name].remove(delta.remove)
        self._object.commit(())
        config = self._config()
        if not config.judging and not self.compiled.unfit:
            self._put(config._replace(judging=config.since % 0xFFFFFFFF + 1))
        self._full = False
        return sum(delta.size for _, delta in changes)

    def remove(self) -> list[str]:
        """Take the maps away; says what went."""
        return self._object.detach()

    def close(self) -> None:
        """Release descriptors."""
        self._object.close()

    def _read(self) -> dict[str, dict[bytes, bytes]]:
        found = {name: self.maps[name].items() for name in TABLES if name != RULES}
        counters = per_processor(self.maps[RULES])
        try:
            found[RULES] = dict.fromkeys(counters.items(), layout.COUNT_VALUE)
        finally:
            counters.close()
        return found

    def _config(self) -> Config:
        return Config.unpack(self.maps[CONFIG].get(_FIRST) or bytes(32))

    def _put(self, config: Config) -> None:
        self.maps[CONFIG].put(_FIRST, config.pack())
