"""How much memory does a whole agent need for 10,000 services of the Kubernetes API, and how soon do they work?

A real ``pycnid`` with the proxy alone, in a namespace, following the scripted API server of the tests, which runs in
the same namespace. kube-proxy had 74 MiB at 1,000 services on the same kind of machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.rows import row
from bench.test_kube import endpoint_slice, service
from pycni.kernel import netns
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

HEALTH_PORT, API_PORT = 8285, 6443
KUBE_PROXY_MIB = 74
PATIENCE_S = 300


@contextlib.contextmanager
def program(space: str, words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours inside a namespace."""
    with log.open("wb") as out:
        made = subprocess.Popen(
            [*inside(space), sys.executable, *words],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proxy"},
        )
        try:
            yield made
        finally:
            made.terminate()
            made.wait(20)


def agent(folder: Path) -> list[str]:
    """Its command line."""
    return [
        "-m", "pycni.agent.main", "run", "--components=proxy", "--node-name=n1", f"--state-dir={folder}",
        f"--cni-socket={folder}/cni.sock", "--proxy-mode=nftables", "--proxy-healthz-port=0",
        "--cluster-cidr=10.0.0.0/8", f"--kube-api-url=http://127.0.0.1:{API_PORT}", "--iface=lo",
        f"--healthz-port={HEALTH_PORT}", "--healthz-ip=127.0.0.1",
    ]  # fmt: skip


def wait_ready(space: str, log: Path) -> float:
    """Until /readyz says so; seconds since the clock's start."""
    fd = netns.open_netns(netns.path(space))
    end = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                netns.run_in(
                    fd, lambda: urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}/readyz").close()
                )
                return time.monotonic()
            time.sleep(0.05)
    finally:
        os.close(fd)
    raise AssertionError(f"the agent is not ready: {log.read_text()[-2000:]}")


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [1_000, 10_000])
def test_an_agent_with_all_services(benchmark: Any, count: int) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n1"}}],
        "services": [service(number) for number in range(1, count + 1)],
        "endpointslices": [endpoint_slice(number) for number in range(1, count + 1)],
    }
    space = f"pyb{os.getpid()}a"
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pyb") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "objects.json").write_text(json.dumps(objects))
        netns.create(space)
        stack.callback(netns.delete, space)
        for words in ("link set lo up", "addr add 192.168.90.1/24 dev lo"):
            subprocess.run(["ip", "-n", space, *words.split()], check=True)
        server = ["-m", "tests.k8s.api_server", "127.0.0.1", str(API_PORT), str(folder / "objects.json")]
        stack.enter_context(program(space, server, folder / "api.log"))
        end = time.monotonic() + PATIENCE_S
        while "serving" not in (folder / "api.log").read_text():
            assert time.monotonic() < end, (folder / "api.log").read_text()
            time.sleep(0.1)

        def start() -> None:
            started = time.monotonic()
            made = stack.enter_context(program(space, agent(folder), folder / "agent.log"))
            found["ready_s"] = wait_ready(space, folder / "agent.log") - started
            time.sleep(5)
            found["mib"] = resident_mib(made.pid)

        benchmark.pedantic(start, rounds=1)
    row(
        f"agent with {count} services of the API: memory",
        f"{found['mib']:.0f} MiB",
        f"kube-proxy {KUBE_PROXY_MIB} MiB" if count == 1_000 else "",
        found["mib"],
        "<= 120" if count == 10_000 else "",
    )
    row(
        f"agent with {count} services of the API: process start until all are in the kernel",
        f"{found['ready_s']:.2f} s",
    )
