"""What views of rates show: columns, order, filter, numbers as text. Pure.

Life: ``pycnictl top`` takes a ``Frame``, picks the rows of a view and orders them, for the table on a terminal and the
plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pycni.traffic.rates import Frame, ServiceRate, sum_known

T = TypeVar("T")


def together(services: Sequence[ServiceRate]) -> list[ServiceRate]:
    """Services of several nodes added up: ``node`` tells on how many they are seen."""
    by_name: dict[str, list[ServiceRate]] = {}
    for row in services:
        by_name.setdefault(row.service, []).append(row)
    fields = ("bytes_in", "bytes_out", "packets_in", "packets_out", "new", "active")
    return [
        ServiceRate(
            node=rows[0].node if len(rows) == 1 else f"{len(rows)} nodes",
            service=name,
            **{field: sum_known(getattr(row, field) for row in rows) for field in fields},
        )
        for name, rows in by_name.items()
    ]


class Column(NamedTuple):
    """What a view shows of a row, and sorts by."""

    title: str
    field: str
    kind: str = "rate"
    """``name``, ``rate``, ``bytes`` (per second) or ``count``."""


_NODE = Column("NODE", "node", "name")
_FLOW = (
    Column("IN B/s", "bytes_in", "bytes"),
    Column("OUT B/s", "bytes_out", "bytes"),
    Column("IN pkt/s", "packets_in"),
    Column("OUT pkt/s", "packets_out"),
)
_CONNECTIONS = (Column("NEW/s", "new"), Column("ACTIVE", "active", "count"))
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "pods": (
        Column("POD", "pod", "name"),
        _NODE,
        *_FLOW,
        *_CONNECTIONS,
        Column("DROPS/s", "drops"),
    ),
    "services": (Column("SERVICE", "service", "name"), _NODE, *_FLOW, *_CONNECTIONS),
    "policies": (
        Column("POLICY", "policy", "name"),
        Column("DIRECTION", "direction", "name"),
        _NODE,
        Column("DENIED pkt/s", "packets"),
        Column("DENIED B/s", "bytes", "bytes"),
        Column("DENIED", "total", "count"),
    ),
    "nodes": (
        _NODE,
        Column("PODS", "pods", "count"),
        *_FLOW,
        *_CONNECTIONS,
        Column("DROPS/s", "drops"),
        Column("DENIED/s", "denied"),
        Column("TRACKED", "tracked", "count"),
    ),
}
"""Of each view."""
BUSIEST = "busiest"
"""Sorts by bytes both ways, then packets, then connections."""


def rows_of(
    frame: Frame, view: str, *, node: str = "", words: str = "", apart: bool = False, silent: bool = False
) -> list[Any]:
    """A view's rows: of one node, with all of ``words`` in their names.

    Services of all nodes are added up unless ``apart``. Policies that have denied nothing are left out unless asked
    for by ``words`` or ``silent``.
    """
    found: list[Any] = getattr(frame, view)
    if node:
        found = [row for row in found if row.node == node]
    elif view == "services" and not apart:
        found = together(found)
    names = [column.field for column in COLUMNS[view] if column.kind == "name"]
    wanted = words.lower().split()
    if not wanted:
        return [row for row in found if view != "policies" or silent or row.total]

    def text(row: Any) -> str:
        return " ".join(str(getattr(row, name)) for name in names).lower()

    return [row for row in found if all(word in text(row) for word in wanted)]


def ordered(rows: Iterable[T], view: str, key: str = BUSIEST, *, ascending: bool = False) -> list[T]:
    """Sorted by a column's field, or by ``BUSIEST``; what is not counted comes last, equals by name."""
    names = [column.field for column in COLUMNS[view] if column.kind == "name"]
    by_name = sorted(rows, key=lambda row: tuple(str(getattr(row, name)) for name in names))
    if key in names:
        return sorted(by_name, key=lambda row: str(getattr(row, key)), reverse=ascending)
    value: Callable[[T], Any] = _busy if key == BUSIEST else (lambda row: getattr(row, key))
    known = [row for row in by_name if value(row) is not None]
    unknown = [row for row in by_name if value(row) is None]
    # Sorted is stable: of equals the names' order stays, either way round.
    known.sort(key=lambda row: value(row) if ascending else _negative(value(row)))
    return known + unknown


def _busy(row: Any) -> tuple[float, float, float]:
    def of(*names: str) -> float:
        return sum(float(getattr(row, name, None) or 0) for name in names)

    return of("bytes_in", "bytes_out", "bytes"), of("packets_in", "packets_out", "packets"), of("new")


def _negative(value: Any) -> Any:
    return tuple(-item for item in value) if isinstance(value, tuple) else -value


def human(value: float | None, kind: str = "rate") -> str:
    """A number in a cell; ``-``: not counted."""
    if value is None:
        return "-"
    if kind == "count":
        return f"{value:.0f}"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}" if value < size * 999.5 else f"{value / size:.0f}{unit}"
    if not value or value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}".removesuffix(".0")
