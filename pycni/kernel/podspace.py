"""A pod's network namespace found again by what is on record: the path the runtime gave, or any process in it."""

from __future__ import annotations

import contextlib
import os

from pycni.kernel import netns


def open_pod(path: str, inode: int) -> int | None:
    """Open the namespace with this number; None when it is nowhere to be seen. The caller closes the descriptor.

    The path may lead to another namespace by now, or mean nothing to this process: the number decides.
    """
    if path:
        fd = _open(path, inode)
        if fd is not None:
            return fd
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}/ns/net").st_ino == inode:
                fd = _open(f"/proc/{name}/ns/net", inode)
                if fd is not None:
                    return fd
    return None


def _open(path: str, inode: int) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if inode and netns.inode(fd) == inode:
        return fd
    os.close(fd)
    return None
