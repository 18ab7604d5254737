"""Is another service proxy at work on this node, or has one left its rules? Seen, named, never touched.

Life: ``others`` looks at the worker thread's network namespace every minute: devices, nftables tables, chains of
iptables in both its variants, processes in the same network namespace, and what answers at their health ports;
``judge`` (pure) makes one line per proxy of it, saying what was seen.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from pycni.errors import KernelError
from pycni.kernel import nft_names

HEALTH_PORTS: Mapping[str, int] = {"kube-proxy": 10256, "kube-router": 20244}
DEVICES: Mapping[str, str] = {"kube-ipvs0": "kube-proxy", "kube-dummy-if": "kube-router"}
TABLES: Mapping[str, str] = {
    "kube-proxy": "kube-proxy",
    "kube-router-filter-ipv4": "kube-router",
    "kube-router-filter-ipv6": "kube-router",
}
_HEALTH_S = 0.5
_SAVE_S = 10.0


class Signs(NamedTuple):
    """What was seen on a node."""

    devices: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    """Names of nftables tables."""
    chains: frozenset[str] = frozenset()
    """Names of chains, nftables' and legacy iptables'."""
    processes: Mapping[str, tuple[int, ...]] = {}
    """Names of programs in this network namespace and their pids."""
    answering: frozenset[str] = frozenset()
    """Programs whose health port answers as theirs does."""


def judge(signs: Signs) -> list[str]:
    """One line per other service proxy. Pure."""
    seen: dict[str, list[str]] = {}

    def note(program: str, what: str) -> None:
        seen.setdefault(program, []).append(what)

    for program in HEALTH_PORTS:
        pids = signs.processes.get(program, ())
        if pids:
            note(program, f"process {', '.join(map(str, pids))}")
        if program in signs.answering:
            note(program, f"it answers at port {HEALTH_PORTS[program]}")
    for device, program in DEVICES.items():
        if device in signs.devices:
            note(program, f"device {device}")
    for table in sorted(signs.tables & TABLES.keys()):
        note(TABLES[table], f"nftables table {table}")
    if "KUBE-SERVICES" in signs.chains:
        note("kube-proxy", "iptables chain KUBE-SERVICES")
    routers = sorted(name for name in signs.chains if name.startswith("KUBE-ROUTER-"))
    if routers:
        note("kube-router", f"iptables chain {routers[0]}")
    lines = []
    for program, what in sorted(seen.items()):
        runs = program in signs.processes or program in signs.answering
        state = "is running" if runs else "is not seen running, its rules are here"
        lines.append(f"{program} {state} ({'; '.join(what)})")
    return lines


def others(*, health: bool = True) -> list[str]:
    """The other service proxies of the calling thread's network namespace. Blocking.

    ``health``: ask the health ports too, except kube-proxy's when this process answers there itself.
    """
    return judge(look(health=health))


def look(*, health: bool = True) -> Signs:
    """Everything ``judge`` wants to know. What cannot be read counts as not there."""
    devices = frozenset(name for _, name in socket.if_nameindex())
    tables, chains = frozenset[str](), frozenset[str]()
    with contextlib.suppress(KernelError, OSError):
        tables = frozenset(name for _, name in nft_names.tables())
        chains = frozenset(chain.name for chain in nft_names.chains())
    return Signs(
        devices,
        tables,
        chains | _legacy_chains(),
        _processes(HEALTH_PORTS),
        frozenset(name for name in HEALTH_PORTS if _answers(name)) if health else frozenset(),
    )


def _processes(names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Processes by program name, of this pid namespace and this network namespace."""
    wanted = {name[:15]: name for name in names}
    own = _namespace("thread-self")
    found: dict[str, tuple[int, ...]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/comm", "rb") as file:
                name = wanted.get(file.read().strip().decode(errors="replace"))
        except OSError:
            continue
        if name is not None and _namespace(entry) in (own, None):
            found[name] = (*found.get(name, ()), int(entry))
    return found


def _namespace(process: str) -> tuple[int, int] | None:
    """What identifies a process's network namespace; None when that may not be seen."""
    try:
        found = os.stat(f"/proc/{process}/ns/net")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _legacy_chains() -> frozenset[str]:
    """Chains of the nat table in iptables' legacy variant, where the kernel has such a table."""
    found: set[str] = set()
    for names, program in (
        ("/proc/net/ip_tables_names", "iptables-legacy-save"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy-save"),
    ):
        try:
            with open(names) as file:
                present = "nat" in file.read().split()
        except OSError:
            continue
        path = shutil.which(program)
        if not present or path is None:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([path, "-t", "nat"], capture_output=True, timeout=_SAVE_S, check=True)
            found |= {
                line[1:].split(b" ", 1)[0].decode(errors="replace")
                for line in done.stdout.splitlines()
                if line.startswith(b":")
            }
    return frozenset(found)


def _answers(program: str) -> bool:
    """Whether the program's health port answers as that program does (pycni's own says something else)."""
    connection = http.client.HTTPConnection("127.0.0.1", HEALTH_PORTS[program], timeout=_HEALTH_S)
    try:
        connection.request("GET", "/healthz")
        body = connection.getresponse().read(4096)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if program == "kube-router":
        return body.strip() in (b"OK", b"Unhealthy")
    try:
        return isinstance(msgspec.json.decode(body), dict) and b'"lastUpdated"' in body
    except msgspec.DecodeError:
        return False
