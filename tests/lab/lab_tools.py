"""Running pycnictl as people do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
