"""Kernel switches below /proc/sys, by dotted name, in the calling thread's network namespace."""

from __future__ import annotations

import os

from pycni.errors import KernelError

ROOT = "/proc/sys/"


def get(name: str) -> str:
    """Value of ``net.ipv4.ip_forward`` and the like. Interface names with dots: use ``/`` as the separator.

    Raises KernelError (ENOENT: no such switch here).
    """
    try:
        with open(path(name), "rb", buffering=0) as file:
            return file.read().strip().decode()
    except OSError as exc:
        raise KernelError(exc.errno or 0, "read sysctl", name) from exc


def put(name: str, value: str | int) -> bool:
    """Set a switch unless it has the value already; returns whether it was changed. Raises KernelError."""
    wanted = str(value)
    if get(name) == wanted:
        return False
    try:
        fd = os.open(path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, (wanted or "\n").encode())  # of nothing the kernel would take nothing
        finally:
            os.close(fd)
    except OSError as exc:
        raise KernelError(exc.errno or 0, f"set sysctl to {wanted}", name) from exc
    return True


def path(name: str) -> str:
    """File of a switch."""
    return ROOT + (name if "/" in name else name.replace(".", "/"))
