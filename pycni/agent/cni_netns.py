"""Looking at the namespace a call came with, before anything is done in it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping

from pycni.errors import CniError
from pycni.kernel import netns
from pycni.model.cni import Request
from pycni.wire.cni import show

NS_GET_NSTYPE = 0xB703
"""include/uapi/linux/nsfs.h"""
CLONE_NEWNET = 0x40000000


class Namespaces:
    """What the kernel says about a descriptor."""

    def is_namespace(self, fd: int) -> bool:
        """Whether it is a network namespace."""
        try:
            return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
        except OSError:
            return False

    def is_node(self, fd: int) -> bool:
        """Whether it is the node's own."""
        found, own = os.fstat(fd), os.stat("/proc/self/ns/net")
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def has_interface(self, fd: int, name: str) -> bool:
        """Whether an interface of that name is in it."""
        return netns.run_in(fd, lambda: _has_interface(name))

    def inode(self, fd: int) -> int:
        """Its number, unique while it lives."""
        return netns.inode(fd)


def _has_interface(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def required(namespaces: Namespaces, request: Request, fd: int | None) -> int:
    """The namespace of ADD and CHECK. CniError 3 when it is gone, 4 when CNI_NETNS is something else."""
    if fd is None:
        msg = f"CNI_NETNS={show(request.netns)} cannot be opened"
        raise CniError(CniError.UNKNOWN_CONTAINER, msg, "the container's network namespace is gone")
    if not namespaces.is_namespace(fd):
        msg = f"CNI_NETNS={show(request.netns)} is not a network namespace"
        raise CniError(CniError.BAD_ENVIRONMENT, msg)
    return fd


def overridden(environment: Mapping[str, str]) -> bool:
    """Whether the caller insists on its own namespace (CNI_NETNS_OVERRIDE of the reference skeleton)."""
    return environment.get("CNI_NETNS_OVERRIDE", "").lower() in {"1", "true"}


def own_namespace_error(request: Request) -> CniError:
    """The error for a namespace that is the node's."""
    msg = f"CNI_NETNS={show(request.netns)} is the plugin's own network namespace"
    return CniError(CniError.OWN_NETNS, msg, "a pod needs a namespace of its own")
