"""iptables rules of our own chains, through the tools: read by ``iptables-save``, written by ``iptables-restore``.

There are two implementations in a kernel, nft's and the older one, each with tools of its own; ``backend`` tells which
one works here. A table's changes are one restore, which the kernel takes whole or not at all.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from pycni.errors import KernelError
from pycni.model.family import Family

TIMEOUT_S = 30.0
BACKENDS = ("nft", "legacy")
_LOCK_S = "5"
"""How long to wait for another program's lock."""


def backend() -> str:
    """``nft`` or ``legacy``: the first whose tools are installed and whose tables the kernel has; "" for neither."""
    for name in BACKENDS:
        tool = f"iptables-{name}"
        if shutil.which(f"{tool}-restore") is None:
            continue
        # A listing of the policies makes no table and fails where the kernel has none.
        if _run([tool, "-w", _LOCK_S, "-t", "nat", "-S", "PREROUTING"], "").returncode == 0:
            return name
    return ""


class Iptables:
    """One backend's tools, in the calling thread's network namespace."""

    def __init__(self, name: str) -> None:
        """``name`` is a result of ``backend``."""
        self._name = name

    def save(self, family: Family, table: str) -> list[str]:
        """The lines of ``iptables-save`` for a table. Raises KernelError."""
        tool = f"{_program(family)}-{self._name}-save"
        done = _run([tool, "-t", table], "")
        if done.returncode:
            raise KernelError(errno.EINVAL, "read iptables", f"{family.label} {table}", done.stderr.strip())
        return done.stdout.splitlines()

    def replace(self, family: Family, table: str, chains: Sequence[str], changes: Iterable[str]) -> None:
        """Empty ``chains`` (made where missing), then carry out ``changes`` (lines of -A, -I, -D, -X): all or nothing.

        Raises KernelError with the tool's words.
        """
        tool = f"{_program(family)}-{self._name}-restore"
        text = "\n".join([f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *changes, "COMMIT", ""])
        done = _run([tool, "--noflush", "-w", _LOCK_S], text)
        if done.returncode:
            raise KernelError(errno.EINVAL, "write iptables", f"{family.label} {table}", done.stderr.strip())


def _program(family: Family) -> str:
    return "iptables" if family is Family.V4 else "ip6tables"


def _run(words: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError as exc:
        raise KernelError(errno.ENOENT, "run", words[0], "not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise KernelError(errno.ETIMEDOUT, "run", " ".join(words)) from exc
