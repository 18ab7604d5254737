"""What one process and one etcd spend: processor time, memory, requests answered."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

from pycni.kernel import netns

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """So far."""

    cpu_s: float
    mib: float


class Load(NamedTuple):
    """What an etcd server has done so far."""

    calls: int
    """Unary requests and streams begun."""
    sent: int
    """Messages on streams: watch events and the like."""
    cpu_s: float


def spent(pid: int) -> Spent:
    """Of a process."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    return Spent(
        (int(columns[11]) + int(columns[12])) * _TICK_S, int(resident[1]) / 1024 if resident else 0.0
    )


def etcd_load(space: str, endpoint: str) -> Load:
    """By etcd's own metrics."""
    fd = netns.open_netns(netns.path(space))
    try:
        text = netns.run_in(fd, lambda: _fetched(f"{endpoint}/metrics"))
    finally:
        os.close(fd)

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    return Load(
        int(total("grpc_server_started_total")),
        int(total("grpc_server_msg_sent_total")),
        total("process_cpu_seconds_total"),
    )


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text
