"""Figures of the node that decide whether pods' packets pass: connection tracking, and the devices packets cross.

Life: registered once; the kernel's files are read at every scrape, in the network namespace of the agent, and nothing
is kept. A figure this kernel has not is left out. The node exporter has most of it too, under names of its own, but
not in every cluster, and never by which of the devices are this agent's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from pycni.agent.metrics import Registry, Sample

COUNTER = "counter"
DROPPED = ("insert_failed", "drop", "early_drop")
"""Columns of /proc/net/stat/nf_conntrack that mean a connection could not be tracked, or lost its entry to another."""


class Device(NamedTuple):
    """Counters of one network device."""

    received_bytes: int
    received_packets: int
    received_errors: int
    received_drops: int
    sent_bytes: int
    sent_packets: int
    sent_errors: int
    sent_drops: int


def parse_devices(text: str) -> dict[str, Device]:
    """/proc/net/dev by device: bytes, packets, errs and drop of both directions."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        columns = rest.split()
        if len(columns) >= 16:
            found[name.strip()] = Device(*map(int, (*columns[0:4], *columns[8:12])))
    return found


def parse_conntrack_stat(text: str) -> dict[str, int]:
    """/proc/net/stat/nf_conntrack: a line per processor in hexadecimal, summed by column."""
    lines = text.splitlines()
    names = lines[0].split() if lines else []
    totals = dict.fromkeys(names, 0)
    for line in lines[1:]:
        for name, value in zip(names, line.split(), strict=False):
            totals[name] += int(value, 16)
    return totals


def follow_host(registry: Registry, devices: Callable[[], Collection[str]], proc: str = "/proc") -> None:
    """Register the figures. ``devices``: which ones are told of; ``proc``: where the kernel's files are."""
    for name, text, file in (
        ("entries", "Connections tracked in this network namespace.", "nf_conntrack_count"),
        ("limit", "Most connections that can be tracked (nf_conntrack_max).", "nf_conntrack_max"),
    ):
        path = os.path.join(proc, "sys/net/netfilter", file)
        registry.callback(f"pycni_conntrack_{name}", text, lambda path=path: _number_in(path))  # type: ignore[misc]

    def dropped() -> list[Sample]:
        totals = parse_conntrack_stat(_text(os.path.join(proc, "net/stat/nf_conntrack")))
        return [((name,), float(totals[name])) for name in DROPPED if name in totals]

    registry.callback(
        "pycni_conntrack_dropped_total",
        "Connections not tracked, or forgotten before their time: insert_failed, drop (table full), early_drop.",
        dropped,
        labels=("reason",),
        kind=COUNTER,
    )
    _follow_devices(registry, devices, os.path.join(proc, "net/dev"))


_DEVICE_COUNTERS = (
    ("bytes", "Bytes", ("received_bytes", "sent_bytes")),
    ("packets", "Packets", ("received_packets", "sent_packets")),
    ("errors", "Packets with errors", ("received_errors", "sent_errors")),
    ("drops", "Packets dropped", ("received_drops", "sent_drops")),
)


def _follow_devices(registry: Registry, devices: Callable[[], Collection[str]], path: str) -> None:
    for name, text, fields in _DEVICE_COUNTERS:

        def read(fields: Sequence[str] = fields) -> list[Sample]:
            wanted = devices()
            return [
                ((device, direction), float(getattr(counters, field)))
                for device, counters in parse_devices(_text(path)).items()
                if device in wanted
                for direction, field in zip(("receive", "transmit"), fields, strict=True)
            ]

        registry.callback(
            f"pycni_device_{name}_total",
            f"{text}, of the underlay, the bridge and the devices between nodes.",
            read,
            labels=("device", "direction"),
            kind=COUNTER,
        )


def _number_in(path: str) -> list[Sample]:
    words = _text(path).split()
    return [((), float(words[0]))] if words else []


def _text(path: str) -> str:
    """A file of the kernel's; "" when this kernel has none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""
