"""Shell commands of people's own: run to their end, within a time, with what they said when they failed.

What they write goes into files, not pipes: a daemon that a command leaves behind keeps them open, and nobody waits
for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from typing import IO

from pycni.errors import KernelError

TIMEOUT_S = 60.0
OUTPUT_BYTES = 1 << 16
"""How much of what it writes a command may have counted."""
_OWN = ("PYCNID_", "FLANNELD_")
"""Our own settings, passwords among them, are nothing for commands."""


def run(
    name: str,
    command: str,
    environment: Iterable[tuple[str, str]],
    data: str = "",
    *,
    about: str = "",
    timeout_s: float | None = None,
) -> str:
    """Run ``sh -c command`` with ``data`` and a line end as standard input; what it wrote, without space around.

    Raises KernelError that names the command (``name``), what it was run for (``about``) and its last words: EIO for
    an exit code, ETIMEDOUT (it and its children are killed).
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OWN)}
    limit_s = TIMEOUT_S if timeout_s is None else timeout_s
    operation = f"run {name}"
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(data.encode() + b"\n")
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                ["sh", "-c", command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=inherited | dict(environment),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:  # ValueError: a NUL byte
            code = exc.errno if isinstance(exc, OSError) and exc.errno else errno.EINVAL
            raise KernelError(code, operation, about, str(exc)) from exc
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            detail = f"killed after {limit_s:g} s{_words(stderr, stdout)}"
            raise KernelError(errno.ETIMEDOUT, operation, about, detail) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise KernelError(errno.EIO, operation, about, f"{how}{_words(stderr, stdout)}")
        stdout.seek(0)
        return stdout.read(OUTPUT_BYTES).decode("utf-8", "replace").strip()


def _words(*files: IO[bytes]) -> str:
    """The last line a command wrote, of the first file that has one."""
    for file in files:
        file.seek(0)
        lines = file.read(OUTPUT_BYTES).decode("utf-8", "replace").strip().splitlines()
        if lines:
            return f": {lines[-1][:200]}"
    return ""
