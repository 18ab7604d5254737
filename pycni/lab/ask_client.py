"""Asking a service from somewhere in a lab: runs ``ask`` there and reads its tally."""

from __future__ import annotations

import os
import subprocess
import sys

from pycni.lab import processes
from pycni.lab.ask import Tally
from pycni.lab.run import Lab
from pycni.lab.topology import LabError
from pycni.wire import typed

LOOK_UP_S = 5.0
"""What the resolver may take each time."""


def ask_from(
    lab: Lab, source: str, target: str, *, protocol: str = "TCP", count: int = 1, timeout: float = 2.0
) -> Tally:
    """Ask ``HOST:PORT`` from a pod, a node, ``fabric`` or ``client``. Raises LabError."""
    host, _colon, port = target.rpartition(":")
    if not host or not port.isdigit():
        raise LabError(f"{target!r}: expected HOST:PORT", usage=True)
    words = [sys.executable, "-P", "-m", "pycni.lab.ask", host.strip("[]"), port, protocol]
    argv = lab.exec_argv(source, [*words, str(count), str(timeout)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(processes.import_roots())}
    patience = 30 + count * (timeout + LOOK_UP_S)
    try:
        done = subprocess.run(argv, capture_output=True, env=environment, check=False, timeout=patience)
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{source} has not asked {target} {count} times within {patience:g} s") from exc
    if done.returncode:
        raise LabError(f"cannot ask from {source}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return typed.decode(done.stdout, Tally)
