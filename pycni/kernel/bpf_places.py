"""Where eBPF objects live: the bpf file system for pins, the unified control group tree for socket programs.

Pins of one node are in one folder, ``<bpffs>/pycni/<name>``, so nodes of a lab, which share the machine's kernel, keep
apart. The folder of a node that is a network namespace of its own carries the namespace's cookie, a number the kernel
never gives twice within a boot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct

from pycni.errors import KernelError
from pycni.kernel import bpf, netns

BPFFS = "/sys/fs/bpf"
OURS = "pycni"
OWN_CGROUP2 = "/run/pycni/cgroup2"
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)


def bpffs(root: str = BPFFS) -> str:
    """The bpf file system's root, mounted there when it is not. Raises KernelError."""
    if not any((kind, where) == ("bpf", root) for kind, _, where in _mounts()):
        _mount("bpf", root)
    return root


def cgroup2() -> str:
    """Root of the unified control group tree, mounted when nobody has. Raises KernelError.

    In a container the host's tree, when that is mounted too, is above the container's own group: its root shows as
    ``/../..`` there. The highest one is taken, because pods are beside the agent's group, not below it.
    """
    found = [(root.count(".."), where) for kind, root, where in _mounts() if kind == "cgroup2"]
    if found:
        return max(found, key=lambda item: item[0])[1]
    _mount("cgroup2", OWN_CGROUP2)
    return OWN_CGROUP2


def cgroup_id(path: str) -> int:
    """A control group's number, as links name it."""
    return os.stat(path).st_ino


def cookie() -> int:
    """Cookie of the calling thread's network namespace: what ``bpf_get_netns_cookie`` gives. Raises KernelError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "read network namespace cookie") from exc


def cookie_of(file: str) -> int:
    """Cookie of the network namespace of a file. Enters it for the length of the call. Raises KernelError."""
    fd = netns.open_netns(file)
    try:
        return netns.run_in(fd, cookie)
    finally:
        os.close(fd)


def machine_wide() -> bool:
    """Whether the calling thread is in the network namespace of process 1: this node is the whole machine.

    Where process 1 may not be looked at the answer is no: a node then serves itself and its pods, nobody else.
    """
    try:
        there = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return netns.is_current(there)
    finally:
        os.close(there)


def folder(node: str, part: str, root: str = BPFFS) -> str:
    """Folder for one part ("services") of the pins of the node this thread is in. Makes nothing."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", node) or "_"
    return os.path.join(root, OURS, name + _suffix(), part)


def existing(part: str = "", root: str = BPFFS) -> list[str]:
    """Folders that are there for the node this thread is in, whatever its name was then; "" for all parts together."""
    suffix = _suffix()
    try:
        names = os.listdir(os.path.join(root, OURS))
    except FileNotFoundError:
        return []
    mine = [name for name in sorted(names) if (name.endswith(suffix) if suffix else "@" not in name)]
    folders = [os.path.join(root, OURS, name, part).rstrip("/") for name in mine]
    return [folder for folder in folders if os.path.isdir(folder)]


def remove_node(file: str, root: str = BPFFS) -> list[str]:
    """Remove all pins of the node whose network namespace a file names, before that goes; says what went.

    For labs, whose nodes can be taken away with their agents killed. Raises KernelError.
    """
    if not os.path.isdir(os.path.join(root, OURS)):
        return []
    fd = netns.open_netns(file)
    try:
        folders = netns.run_in(fd, lambda: existing(root=root))
    finally:
        os.close(fd)
    return [name for folder in folders for name in remove_tree(folder)]


def remove_tree(path: str) -> list[str]:
    """Remove a folder of pins and all in it, and parents of it up to ``pycni`` that are empty then.

    What only the pins kept goes: links are detached, programs and maps freed. Returns the names of what went.
    """
    gone: list[str] = []
    for where, folders, files in os.walk(path, topdown=False):
        # Links first: a program never runs beside maps that are no longer pinned.
        for name in sorted(files, key=lambda name: (os.path.basename(where) != "links", name)):
            with contextlib.suppress(FileNotFoundError):
                if os.path.basename(where) == "links":
                    detach(os.path.join(where, name))
                os.unlink(os.path.join(where, name))
                gone.append(f"{os.path.relpath(where, path)}/{name}")
        for name in folders:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(where, name))
    parent = path
    while os.path.basename(parent) != OURS and parent != "/":
        with contextlib.suppress(OSError):
            os.rmdir(parent)
        parent = os.path.dirname(parent)
    with contextlib.suppress(OSError):
        os.rmdir(parent)
    return sorted(gone)


def detach(path: str) -> None:
    """Take a pinned link's program off. What cannot be detached by itself goes with its pin."""
    with contextlib.suppress(KernelError):
        link = bpf.get(path)
        try:
            bpf.detach_link(link, path)
        finally:
            os.close(link)


def _suffix() -> str:
    return "" if machine_wide() else f"@{cookie()}"


def _mounts() -> list[tuple[str, str, str]]:
    """(file system type, root inside it, mount point) of every mount seen here."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            head, _, tail = line.partition(" - ")
            words = head.split(" ")
            found.append((tail.split(" ", 1)[0], words[3], words[4]))
    return found


def _mount(kind: str, where: str) -> None:
    try:
        os.makedirs(where, exist_ok=True)
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, f"mount {kind}", where) from exc
    if _libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        raise KernelError(ctypes.get_errno(), f"mount {kind}", where)
