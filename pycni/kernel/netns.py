"""Network namespaces: opened, entered for the length of one call, made and removed.

A namespace is a property of a thread. ``run_in`` takes the calling thread there and brings it home again; it is
meant for short calls (opening a socket, writing a sysctl) on worker threads, never on the event loop's thread. A
socket opened inside stays inside, so the rest of the work needs no further change of namespace.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
FOLDER = "/run/netns"

_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> str:
    """File of a named namespace."""
    return f"{FOLDER}/{name}"


def open_netns(file: str) -> int:
    """Open a namespace file; the caller closes the descriptor. Raises KernelError naming the file."""
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise KernelError(exc.errno or 0, "open network namespace", file) from exc


def inode(fd: int) -> int:
    """Number of the namespace; unique while the namespace lives."""
    return os.fstat(fd).st_ino


def current() -> int:
    """Open the calling thread's own namespace; the caller closes the descriptor."""
    return open_netns(f"/proc/self/task/{threading.get_native_id()}/ns/net")


def is_current(fd: int) -> bool:
    """Whether the calling thread is in this namespace."""
    here = os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    there = os.fstat(fd)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def setns(fd: int, obj: str = "") -> None:
    """Move the calling thread for good. Raises KernelError."""
    if _libc.setns(fd, CLONE_NEWNET):
        raise KernelError(ctypes.get_errno(), "enter network namespace", obj or f"fd {fd}")


def run_in(fd: int, fn: Callable[[], T]) -> T:
    """Run ``fn`` on the calling thread inside the namespace.

    The thread is home again when this returns or raises; when the kernel refuses the way home the process is
    aborted, because everything this thread did later would happen in a pod.
    """
    home = current()
    try:
        try:
            setns(fd)
            return fn()
        finally:  # also when setns failed: nothing may come between it and this
            if _libc.setns(home, CLONE_NEWNET):
                os.abort()
    finally:
        os.close(home)


def socket_in(fd: int, protocol: int = NETLINK_ROUTE) -> NetlinkSocket:
    """A netlink socket inside the namespace."""
    return run_in(fd, lambda: NetlinkSocket(protocol))


def create(name: str) -> str:
    """Make a named namespace, as `ip netns add` does; returns its file. Raises KernelError (EEXIST)."""
    file = path(name)
    os.makedirs(FOLDER, mode=0o755, exist_ok=True)
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as exc:
        raise KernelError(exc.errno or 0, "create network namespace", name) from exc
    failure: list[KernelError] = []
    # A thread of its own: it stays in the new namespace and ends there.
    thread = threading.Thread(target=_unshare_and_pin, args=(file, name, failure))
    thread.start()
    thread.join()
    if failure:
        os.unlink(file)
        raise failure[0]
    return file


def delete(name: str) -> None:
    """Unmount and remove a named namespace; a missing one is success. Raises KernelError."""
    file = path(name)
    mnt_detach = 2
    if _libc.umount2(file.encode(), mnt_detach):
        code = ctypes.get_errno()
        if code not in {2, 22}:  # ENOENT; EINVAL: a file that is no mount
            raise KernelError(code, "unmount network namespace", name)
    try:
        os.unlink(file)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise KernelError(exc.errno or 0, "remove network namespace", name) from exc


def exec_prefix(name: str) -> list[str]:
    """Words before a command that run it in a named namespace (the mount namespace stays: /sys is not remounted)."""
    return ["nsenter", f"--net={path(name)}", "--"]


def _unshare_and_pin(file: str, name: str, failure: list[KernelError]) -> None:
    ms_bind = 0x1000
    source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    if _libc.unshare(CLONE_NEWNET):
        failure.append(KernelError(ctypes.get_errno(), "unshare network namespace", name))
    elif _libc.mount(source.encode(), file.encode(), b"none", ms_bind, None):
        failure.append(KernelError(ctypes.get_errno(), "mount network namespace", name))
