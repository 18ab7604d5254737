"""An agent, or a peer, fed by the scripted API server of the tests, in a namespace of its own."""

from __future__ import annotations

import contextlib
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

import msgspec

from pycni.kernel import netns
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

HEALTH_PORT, API_PORT = 8285, 6443
PATIENCE_S = 600
ADDRESS = "192.168.90.1"
"""The node's."""


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


@contextlib.contextmanager
def api(objects: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """A namespace in which an API server has these objects, and a folder."""
    space = f"pyb{os.getpid()}w"
    with tempfile.TemporaryDirectory(prefix="pyb") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        log = folder / "api.log"
        (folder / "objects.json").write_bytes(msgspec.json.encode(objects))
        netns.create(space)
        stack.callback(netns.delete, space)
        for words in ("link set lo up", f"addr add {ADDRESS}/24 dev lo"):
            subprocess.run(["ip", "-n", space, *words.split()], check=True)
        server = ["-m", "bench.feeder", "127.0.0.1", str(API_PORT), str(folder / "objects.json")]
        stack.enter_context(program(space, server, log))
        end = time.monotonic() + PATIENCE_S
        while "serving" not in log.read_text():
            if time.monotonic() > end:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield space, folder


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
