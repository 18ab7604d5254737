"""Removal of cut-off links in the background, many at a time.

Life of a link here: DEL takes it down, off its bridge and into the group of the dying (0.1 ms, the pod is cut off);
``Remover`` deletes the group with one message for all that gathered, because the kernel waits 10-20 ms for readers
either way; then the callbacks run, and only then may addresses be given to others. Links a killed agent left
in the group go with the first deletion after a start.

Deletion holds the kernel's link lock for that time, so it waits for a pause in the coming and going of pods, but
not for long and not for many.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from pycni.attach.names import shaper_of
from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import rtlink

log = logging.getLogger("pycni.attach")

DYING_GROUP = 0x70637964
"""IFLA_GROUP of links that are to be deleted ("pcyd"); nobody else's links are in it."""
PAUSE_S = 0.03
"""Without any ADD or DEL for this long, deletion starts."""
LONGEST_S = 0.5
"""It starts in any case when the first link has waited this long,"""
MOST = 64
"""or when this many wait."""
RETRY_S = 1.0


class Dying(NamedTuple):
    """A link on its way out."""

    name: str
    netns_inode: int
    """Namespace of the pod's end, 0 when unknown."""
    on_gone: Callable[[], None] | None
    since: float


class Remover:
    """Owns the thread that deletes links. Start it on a thread in the node's namespace: it inherits that."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._dying: list[Dying] = []
        self._leftovers = True
        """The group may hold links of an earlier run."""
        self._last_activity = 0.0
        self._hurry = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pycni-remover", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Delete what is waiting, run its callbacks, end the thread."""
        with self._changed:
            self._stopping = self._hurry = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def busy(self) -> None:
        """An ADD or DEL is under way: put deletion off a little."""
        self._last_activity = time.monotonic()

    def add(self, name: str, netns_inode: int, on_gone: Callable[[], None] | None) -> None:
        """Take charge of a link that is in the dying group."""
        now = time.monotonic()
        with self._changed:
            self._dying.append(Dying(name, netns_inode, on_gone, now))
            self._last_activity = now
            self._changed.notify_all()

    def is_dying(self, name: str, netns_inode: int) -> bool:
        """Whether a link of this name, or with its end in this namespace, waits for its deletion."""
        with self._changed:
            return self._matches(name, netns_inode)

    def waiting(self) -> int:
        """How many links wait for their deletion."""
        with self._changed:
            return len(self._dying)

    def hurry(self) -> None:
        """Delete at once what is waiting."""
        with self._changed:
            if self._dying or self._leftovers:
                self._hurry = True
                self._changed.notify_all()

    def wait_gone(self, name: str = "", netns_inode: int = 0, timeout_s: float = 5.0) -> bool:
        """Wait until no link of this name, or with its end in this namespace, is dying; False: it still is."""

        def gone() -> bool:
            return not self._matches(name, netns_inode)

        with self._changed:
            if gone():
                return True
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(gone, timeout_s)

    def _matches(self, name: str, netns_inode: int) -> bool:
        return self._leftovers or any(
            (name and link.name == name) or (netns_inode and link.netns_inode == netns_inode)
            for link in self._dying
        )

    def _run(self) -> None:
        with NetlinkSocket() as sock:
            while True:
                with self._changed:
                    self._wait_for_work()
                    if self._stopping and not self._dying and not self._leftovers:
                        return
                    batch = list(self._dying)
                try:
                    _delete_group(sock, batch)
                except KernelError:
                    log.exception("deleting %d links of removed pods failed, trying again", len(batch))
                    if self._pause_after_failure():
                        return
                    continue
                for link in batch:
                    _report(link)
                with self._changed:
                    self._leftovers = False
                    self._dying = self._dying[len(batch) :]
                    self._hurry = self._hurry and bool(self._dying)
                    self._changed.notify_all()

    def _wait_for_work(self) -> None:
        """Sleep until it is time to delete something."""
        while not (self._hurry or self._stopping):
            now = time.monotonic()
            if not self._dying:
                if self._leftovers:
                    return
                self._changed.wait()
                continue
            due = min(self._last_activity + PAUSE_S, self._dying[0].since + LONGEST_S)
            if now >= due or len(self._dying) >= MOST:
                return
            self._changed.wait(due - now)

    def _pause_after_failure(self) -> bool:
        """Wait a little; True when the thread is to end nevertheless."""
        with self._changed:
            if self._stopping:
                return True
            self._changed.wait(RETRY_S)
            return False


def _delete_group(sock: NetlinkSocket, batch: list[Dying]) -> None:
    """Delete all links of the group; none is success. Raises KernelError."""
    try:
        sock.request(rtlink.del_link(group=DYING_GROUP), "delete link group", f"{len(batch)} links")
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return
        if error.errno != errno.EOPNOTSUPP:
            raise
        # Something in the group cannot be deleted, which spares all of it: one by one, then.
        for name in [name for link in batch for name in (link.name, shaper_of(link.name))]:
            try:
                sock.request(rtlink.del_link(name=name), "delete link", name)
            except KernelError as single:
                if single.errno != errno.ENODEV:
                    raise


def _report(link: Dying) -> None:
    if link.on_gone is None:
        return
    try:
        link.on_gone()
    except Exception:
        log.exception("releasing what belonged to removed link %s failed", link.name)
