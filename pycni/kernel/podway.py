"""What a kind of attachment has to do in the kernel, and what ``kernel/pod`` does for all of them.

Life of an ADD: ``PodDriver`` makes an ``Attaching`` and hands it to the way of the plan's link. The way makes the
devices (``Attaching.create``), says when they are there but still pass nothing (``made``: nft rows and shaping come
now), brings them up and reports. What it has to take back when it fails it puts on ``undo``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import NamedTuple, Protocol

from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError
from pycni.kernel import podlink
from pycni.kernel.podlink import PodSocket


class Attaching(NamedTuple):
    """One ADD under way."""

    plan: AttachPlan
    netns_fd: int
    """The pod's namespace."""
    sock: PodSocket
    """In the node's namespace."""
    undo: ExitStack
    clear: Callable[[KernelError], None]
    """After EEXIST: returns when an earlier attachment that was in the way is gone, else raises."""
    made: Callable[[int], None]
    """To be called with the host end's index when all devices are made and down. Raises KernelError."""
    inet6: bool
    """The kernel knows IPv6."""

    def create(self, master: int = 0) -> tuple[int, int]:
        """Make the veth pair, down, the host end on the bridge with this index; the indexes of host end and pod's end.

        Once more after an earlier attachment that is in the way has gone. Raises KernelError.
        """
        for last in (False, True):
            try:
                return podlink.create(self.sock, self.plan, master, self.netns_fd)
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise
                self.clear(error)
                if last:
                    raise
        raise AssertionError("not reached")


class Way(Protocol):
    """Attachments of one kind in the kernel. Any thread; made in the node's namespace.

    The pod's host end has the name and alias of ``plan.names`` and is a veth: by it ``kernel/pod`` cuts off, deletes
    (the other end goes with it), counts and finds again what is attached.
    """

    def attach(self, job: Attaching) -> AttachedLinks:
        """Make a plan true. Raises KernelError."""

    def detached(self, plan: AttachPlan) -> None:
        """One attachment less: it is cut off."""

    def cut_off(self, plan: AttachPlan) -> list[bytes]:
        """Messages for the node's namespace that go with taking the host end down; their errors do not matter."""

    def adopt(self, plan: AttachPlan) -> None:
        """Count an attachment of an earlier run."""

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket, *, inet6: bool) -> list[str]:
        """Put right what differs of these attachments, whose host ends are there, and of what they share.

        Also called without any. Says what it put right. Raises KernelError.
        """

    def differences(self, plan: AttachPlan, netns_fd: int, sock: PodSocket) -> list[str]:
        """What is not as planned, in words; nft rows are not this one's. Raises KernelError."""

    def close(self) -> None:
        """Free sockets; everything stays as it is."""
