"""The rows of the maps as they should be, with what differs since they were last looked at. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycni.policy.ebpf.classes import PortClass
from pycni.policy.ebpf.layout import PORTS, TABLES
from pycni.reconcile.delta import Delta, diff, diff_keys
from pycni.reconcile.ledger import Changes


class Rows:
    """Tables by name; classes of ports as long as rows lead to them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self._before: dict[str, dict[bytes, bytes | None]] | None = {name: {} for name in TABLES}
        """Rows touched, as they were; None: everything was."""
        self._base = self.tables
        """What ``take`` compares with when everything was touched."""
        self._classes: dict[bytes, int] = {}

    def restart(self) -> None:
        """Begin with nothing; what differs in the end is found by comparing everything."""
        if self._before is not None:
            self._base = {name: self._was(name, before) for name, before in self._before.items()}
        self.tables = {name: {} for name in TABLES}
        self._before = None
        self._classes = {}

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Set a row."""
        table = self.tables[name]
        if self._before is not None:
            self._before[name].setdefault(key, table.get(key))
        table[key] = value

    def drop(self, name: str, key: bytes) -> None:
        """Remove a row; one that is not there is no error."""
        held = self.tables[name].pop(key, None)
        if held is not None and self._before is not None:
            self._before[name].setdefault(key, held)

    def lead(self, name: str, keys: Sequence[bytes], to: PortClass) -> None:
        """Set rows of PAIRS or BLOCKS that say the same; they may lead to a class of ports."""
        if to.rows:
            ports = to.value.ports
            users = self._classes.get(ports, 0)
            self._classes[ports] = users + len(keys)
            if not users:
                for row in to.rows:
                    self.put(PORTS, *row)
        table = self.tables[name]
        if self._before is not None:
            before = self._before[name]
            for key in keys:
                before.setdefault(key, table.get(key))
        table.update(dict.fromkeys(keys, to.packed))

    def leave(self, name: str, key: bytes, from_: PortClass) -> None:
        """Take ``lead`` back."""
        self.drop(name, key)
        if to_rows := from_.rows:
            ports = from_.value.ports
            self._classes[ports] -= 1
            if not self._classes[ports]:
                del self._classes[ports]
                for row, _ in to_rows:
                    self.drop(PORTS, row)

    def take(self) -> Changes:
        """Differences since the last ``take`` or ``against``, in the order of TABLES; without empty ones."""
        before, self._before = self._before, {name: {} for name in TABLES}
        if before is None:
            base, self._base = self._base, self.tables
            return _without_empty({name: diff(self.tables[name], base[name]) for name in TABLES})
        found = {}
        for name, touched in before.items():
            if touched:
                actual = {key: value for key, value in touched.items() if value is not None}
                found[name] = diff_keys(self.tables[name], actual, touched)
        return _without_empty(found)

    def against(self, actual: Mapping[str, Mapping[bytes, bytes]]) -> Changes:
        """Differences to what the kernel has; counts as taken."""
        self._before = {name: {} for name in TABLES}
        return _without_empty({name: diff(self.tables[name], actual.get(name, {})) for name in TABLES})

    def _was(self, name: str, before: Mapping[bytes, bytes | None]) -> dict[bytes, bytes]:
        table = dict(self.tables[name])
        for key, value in before.items():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        return table


def _without_empty(found: Mapping[str, Delta[bytes, bytes]]) -> Changes:
    return [(name, delta) for name, delta in found.items() if not delta.empty]
