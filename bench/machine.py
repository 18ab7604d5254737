"""Describes the machine a run of benchmarks is made on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from bench.model import Machine

TOOLS = {
    "iperf3": ("iperf3", "--version"),
    "sockperf": ("sockperf", "--version"),
    "nft": ("nft", "--version"),
    "ip": ("ip", "-V"),
    "etcd": ("etcd", "--version"),
    "BIRD": ("bird", "--version"),
    "wireguard-go": ("wireguard-go", "--version"),
    "CNI plugins": ("dpkg-query", "-W", "-f", "version ${Version}", "containernetworking-plugins"),
}


def describe() -> Machine:
    """The machine as it is now."""
    info = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    release = platform.freedesktop_os_release()
    return Machine(
        processor=names[0] if names else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(int(total[1]) / 2**20, 1) if total else 0.0,
        kernel=platform.release(),
        system=release.get("PRETTY_NAME", release.get("ID", "")),
        python=platform.python_version(),
        tools={name: version for name, command in TOOLS.items() if (version := _version(*command))},
        load=os.getloadavg()[0],
    )


def commit() -> str:
    """Of the checkout, with a ``+`` where it was changed; "" outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(*command: str) -> str:
    """ "" where the tool is missing or says none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+(\.\d+)+[^\s,)]*", done.stdout + done.stderr)
    return found[0] if found else ""
