"""What one process, one etcd and one API server spend: processor time, memory, requests, bytes; and work for them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pycni.kernel import netns

T = TypeVar("T")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """So far."""

    cpu_s: float
    mib: float


class Load(NamedTuple):
    """What an etcd server has done so far."""

    calls: int
    """Unary requests and streams begun."""
    sent_bytes: int
    """To clients."""
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
    text = within(space, lambda: _fetched(f"{endpoint}/metrics"))

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    return Load(
        int(total("grpc_server_started_total")),
        int(total("etcd_network_client_grpc_sent_bytes_total")),
        total("process_cpu_seconds_total"),
    )


def loopback_bytes(space: str) -> int:
    """What has gone over a namespace's loopback so far."""
    for line in within(space, lambda: Path("/proc/thread-self/net/dev").read_text()).splitlines():
        name, _, columns = line.partition(":")
        if name.strip() == "lo":
            return int(columns.split()[0])
    raise RuntimeError(f"{space} has no loopback")


def patched(space: str, port: int, patches: Mapping[str, Any], pause_s: float) -> None:
    """Have an API server change objects (path -> merge patch), one after the other."""

    def work() -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            for path, patch in patches.items():
                connection.request(
                    "PATCH", path, json.dumps(patch), {"Content-Type": "application/merge-patch+json"}
                )
                with connection.getresponse() as answer:
                    body = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"PATCH {path}: {answer.status} {body[:200]!r}")
                time.sleep(pause_s)

    within(space, work)


def within(space: str, work: Callable[[], T]) -> T:
    """Do something in a network namespace."""
    with _opened(space) as fd:
        return netns.run_in(fd, work)


@contextlib.contextmanager
def _opened(space: str) -> Iterator[int]:
    fd = netns.open_netns(netns.path(space))
    try:
        yield fd
    finally:
        os.close(fd)


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text
