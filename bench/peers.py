"""Binaries of the field's own systems, which the user names: Debian has none of them.

Life: ``pytest bench/test_peers.py --peer-flanneld PATH ...``; each is started in the namespace of a node of ours, with the
etcd or the API server that ours is fed by, and stopped at the end. What it has made goes with the namespace.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycni.kernel import netns
from tests.cni.runtimes import inside

OPTIONS = {
    "--peer-flanneld": "flanneld",
    "--peer-flannel-cni": "the flannel CNI plugin",
    "--peer-kube-proxy": "kube-proxy",
    "--peer-kube-router": "kube-router",
}
PATIENCE_S = 180


def add_options(parser: pytest.Parser) -> None:
    """One for each."""
    for name, what in OPTIONS.items():
        parser.addoption(name, default="", metavar="PATH", help=f"measure {what} beside ours")


def path(config: pytest.Config, option: str) -> Path | None:
    """Of a peer; None: not asked for. Raises UsageError naming option and path when it is no program."""
    text = config.getoption(option)
    if not text:
        return None
    found = Path(text).resolve()
    if not (found.is_file() and os.access(found, os.X_OK)):
        raise pytest.UsageError(f"{option} {text}: no program")
    return found


@contextlib.contextmanager
def running(space: str, words: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A peer at work inside a namespace."""
    with log.open("wb") as out:
        made = subprocess.Popen(
            [*inside(space), *words], stdout=out, stderr=out, env={"PATH": os.environ["PATH"], **environment}
        )
        try:
            yield made
        finally:
            made.terminate()
            try:
                made.wait(20)
            except subprocess.TimeoutExpired:
                made.kill()
                made.wait()


def wait(space: str, made: subprocess.Popen[bytes], log: Path, done: Callable[[], bool]) -> float:
    """Until something holds, looked at inside the namespace; ``time.monotonic()`` then.

    Raises RuntimeError with the log's end when the peer ends or patience does.
    """
    fd = netns.open_netns(netns.path(space))
    end = time.monotonic() + PATIENCE_S
    try:
        while not netns.run_in(fd, done):
            if made.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{made.args!r}: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)
        return time.monotonic()
    finally:
        os.close(fd)


def metric(url: str, name: str) -> float:
    """The first value of a metric; 0 while it is not there."""
    text = ""
    with (
        contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
        urllib.request.urlopen(url, timeout=5) as answer,
    ):
        text = answer.read().decode()
    for line in text.splitlines():
        if line.startswith(name) and line[len(name) : len(name) + 1] in {" ", "{"}:
            return float(line.rpartition(" ")[2])
    return 0.0
