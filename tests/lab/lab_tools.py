"""Running pycnictl as people do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .conftest import unique_name

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pycni.cli"]


def environment() -> dict[str, str]:
    """An environment in which the package of this checkout is found from everywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


PATIENCE_S = 10.0


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in time; a busy machine gets ``PATIENCE_S`` at least."""
    deadline = time.monotonic() + max(seconds, PATIENCE_S)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ctl(*words: str, timeout: float = 60, feed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a pycnictl command to its end. ``feed``: its standard input."""
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
        check=False,
        input=feed,
    )


def ctl_start(*words: str) -> subprocess.Popen[str]:
    """Start a pycnictl command in a session of its own; its output is one stream."""
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


@contextlib.contextmanager
def running(**fields: Any) -> Iterator[Lab]:
    """A lab of ``LabSpec``'s fields; it is gone afterwards."""
    lab = Lab.up(LabSpec(name=unique_name(), **fields))
    try:
        yield lab
    finally:
        lab.down()


def apply(lab: Lab, *files: Path, text: str = "") -> None:
    """Have the lab what manifests say: files one after the other, then ``text``."""
    for name in [*map(str, files), *(["-"] if text else [])]:
        done = ctl("lab", "apply", "--name", lab.spec.name, "-f", name, feed=text)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def trace(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    """``pycnictl trace --json`` in a lab: its exit code, and what it says."""
    done = ctl("trace", "--name", lab.spec.name, "--json", *words)
    assert done.returncode in {0, 1}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found
