"""iptables rules of our own chains, through the tools: read by ``iptables-save``, written by ``iptables-restore``.

There are two implementations in a kernel, nft's and the older one, each with tools of its own; ``backend`` tells which
one works here. A table's changes are one restore, which the kernel takes whole or not at all.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.model.family import Family

TIMEOUT_S = 30.0
BACKENDS = ("nft", "legacy")
_worked: list[str] = []
_LOCK_S = "5"
"""How long to wait for another program's lock."""


def backend() -> str:
    """``nft`` or ``legacy``: the first whose tools are installed and whose tables the kernel has; "" for neither.

    What worked once in this process is not tried again: it is the kernel's, not a namespace's.
    """
    if _worked:
        return _worked[0]
    for name in BACKENDS:
        tool = f"iptables-{name}"
        if shutil.which(f"{tool}-restore") is None:
            continue
        # A listing of the policies makes no table and fails where the kernel has none.
        if _run([tool, "-w", _LOCK_S, "-t", "nat", "-S", "PREROUTING"], "").returncode == 0:
            _worked.append(name)
            return name
    return ""


class TableChange(NamedTuple):
    """What is done to one table."""

    chains: Sequence[str]
    """Emptied first, made where missing."""
    lines: Sequence[str]
    """``-A``, ``-I``, ``-D``, ``-X`` lines, carried out then."""


class Iptables:
    """One backend's tools, in the calling thread's network namespace."""

    def __init__(self, name: str) -> None:
        """``name`` is a result of ``backend``."""
        self._name = name

    def save(self, family: Family) -> dict[str, list[str]]:
        """The lines of ``iptables-save`` by table; tables not made yet are missing. Raises KernelError."""
        tool = f"{_program(family)}-{self._name}-save"
        done = _run([tool], "")
        if done.returncode:
            raise KernelError(errno.EINVAL, "read iptables", family.label, done.stderr.strip())
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in done.stdout.splitlines():
            if line.startswith("*"):
                lines = found.setdefault(line[1:], [])
            else:
                lines.append(line)
        return found

    def replace(self, family: Family, tables: Mapping[str, TableChange]) -> None:
        """Change tables, each of them whole or not at all. Raises KernelError with the tool's words."""
        tool = f"{_program(family)}-{self._name}-restore"
        text = "".join(
            "\n".join(
                (f"*{table}", *(f":{chain} - [0:0]" for chain in change.chains), *change.lines, "COMMIT", "")
            )
            for table, change in tables.items()
        )
        done = _run([tool, "--noflush", "-w", _LOCK_S], text)
        if done.returncode:
            raise KernelError(
                errno.EINVAL, "write iptables", f"{family.label} {' '.join(tables)}", done.stderr.strip()
            )


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
