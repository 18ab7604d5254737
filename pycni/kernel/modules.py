"""Kernel modules that nothing asks for by itself: loaded by modprobe, as an administrator would."""

from __future__ import annotations

import errno
import shutil
import subprocess

from pycni.errors import KernelError

PATIENCE_S = 20.0


def load(name: str) -> None:
    """Load a module unless it is there. Raises KernelError saying what an administrator can do."""
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise KernelError(errno.ENOENT, "load module", name, "there is no modprobe here; load it on the host")
    try:
        done = subprocess.run(
            [program, name],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise KernelError(errno.EIO, "load module", name, str(exc)) from exc
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"modprobe ended with {done.returncode}"
        raise KernelError(errno.ENOENT, "load module", name, f"{said}; load it on the host")
