"""Pods in the kernel: attached, checked, cut off. The one driver the CNI side uses.

Life of an attachment here: ``attach`` makes a compiled plan true (rows in nft tables, link, shaping, addresses; the way
of the plan's kind does what is particular to it, ``podway``) or leaves nothing behind; ``detach`` cuts the pod off at
once and has the link deleted in the background, after which the caller's callback runs; ``resync`` takes over what an
earlier run left. The node's side happens in the namespace of the threads that call (the agent's), the pod's side
through a descriptor of its namespace.

Calls for different attachments run side by side; calls for one attachment are the caller's to put in a row.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from pycni.attach.names import host_ifname, owner_of, shaper_of
from pycni.attach.plan import AttachPlan, BridgePort, RoutedLeg, UnderlayChild
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError, PycniError
from pycni.kernel import netns, podcheck, podports, tc
from pycni.kernel.podbridged import BridgePorts
from pycni.kernel.poddel import DYING_GROUP, Remover
from pycni.kernel.podlink import PodSocket
from pycni.kernel.podnft import PodTables, Rows
from pycni.kernel.podrouted import RoutedLegs
from pycni.kernel.podunderlay import UnderlayChildren, remove_child
from pycni.kernel.podway import Attaching, Way
from pycni.model.endpoint import Owner
from pycni.wire import podlink as messages
from pycni.wire import rtlink

log = logging.getLogger("pycni.attach")

Done = Callable[[PycniError | None], None]
"""Told once when a detached pod's devices are gone, with what went wrong on the way."""
_POD_LINKS = frozenset({"veth", "macvlan", "ipvlan"})
DYING_TIMEOUT_S = 5.0
"""How long an ADD waits for an earlier attachment of the same name or namespace to go."""


class PodDriver:
    """Attachments of pods to this node."""

    def __init__(self) -> None:
        """Open what needs the node's namespace: call on a thread that is in it. No pod is touched yet."""
        self._legs = RoutedLegs()
        self._children = UnderlayChildren()
        self._ways: dict[type, Way] = {
            BridgePort: BridgePorts(),
            RoutedLeg: self._legs,
            UnderlayChild: self._children,
        }
        """By the type of the plan's link."""
        self._tables = PodTables()
        self._remover = Remover()
        self._lock = threading.Lock()
        self._idle: list[PodSocket] = []
        self._attached: dict[str, AttachPlan] = {}
        """Plans by the pod's veth."""
        self._inet6 = os.path.isdir("/proc/sys/net/ipv6")

    def start(self) -> None:
        """Start deleting links in the background, first those an earlier run left dying."""
        self._remover.start()

    def close(self) -> None:
        """Delete what is waiting and free sockets; pods stay as they are."""
        self._remover.stop()
        self._tables.close()
        for way in self._ways.values():
            way.close()
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def attach(self, plan: AttachPlan, netns_fd: int) -> AttachedLinks:
        """Make a plan true; the pod's network works when this returns.

        Raises KernelError with nothing left behind: EEXIST when the namespace has an interface of the name,
        EADDRINUSE when a host port or an address is taken, else what the kernel refused.
        """
        self._remover.busy()
        way = self._ways[type(plan.link)]
        rows: Rows = ()
        with self._socket() as sock, ExitStack() as undo:

            def made(host: int) -> None:
                nonlocal rows
                undo.callback(_delete, sock, plan)
                if plan.has_tables:
                    # Before the link is up: no packet passes unchecked or untranslated.
                    undo.callback(self._tables.release, plan.host)
                    rows = self._tables.claim(plan)
                if any(plan.shaping):
                    tc.shape(sock, plan, host)

            clear = partial(self._clear, sock, plan, netns_fd)
            links = way.attach(Attaching(plan, netns_fd, sock, undo, clear, made, self._inet6))
            if isinstance(plan.link, BridgePort):
                self._legs.bridge_used(plan.link.bridge.name, sock)
            if plan.host_ports:
                podports.let_loopback_out(plan)
                podports.forget_before(rows, sock)
            with self._lock:
                self._attached[plan.host] = plan
            undo.pop_all()
        return links

    def detach(self, owner: Owner, netns_fd: int | None = None, done: Done | None = None) -> bool:
        """Cut a pod off; its link is deleted in the background and ``done`` called then, once, on another thread.

        Without a link ``done`` is called before this returns. True when there was a link. Devices are found by the
        owner; with a namespace also an interface of the owner's name in it that somebody else made (a pod taken
        over). Missing things are success. Raises KernelError when the pod could not be cut off (``done`` is not
        called then); rows in nft tables that could not be removed are told to ``done``.
        """
        self._remover.busy()
        host = host_ifname(owner)
        with self._lock:
            plan = self._attached.get(host)
        if plan is None or isinstance(plan.link, UnderlayChild):
            with self._socket() as sock:
                remove_child(sock, host, owner.ifname)
        found = self._cut_off(host, plan)
        if not found and netns_fd is not None:
            found = _delete_inside(owner.ifname, netns_fd)
        problem: KernelError | None = None
        try:
            podports.forget_after(self._tables.release(host))
        except KernelError as error:
            log.warning("%s is cut off, but its nft rows stay: %s", host, error)
            problem = error
        with self._lock:
            plan = self._attached.pop(host, None)
        if plan is not None:
            self._ways[type(plan.link)].detached(plan)
        report = None if done is None else partial(done, problem)
        if found or self._remover.is_dying(host, 0):
            self._remover.add(host, netns.inode(netns_fd) if netns_fd is not None else 0, report)
        elif report is not None:
            report()
        return found

    def wait_gone(self, owner: Owner, netns_inode: int = 0, timeout_s: float = DYING_TIMEOUT_S) -> bool:
        """Wait until a detached pod's link is deleted and its callback has run; False: not in time."""
        return self._remover.wait_gone(host_ifname(owner), netns_inode, timeout_s)

    def hurry(self) -> None:
        """Delete links that wait for it now, for instance because addresses run short."""
        self._remover.hurry()

    def check(self, plan: AttachPlan, netns_fd: int) -> list[str]:
        """What of an attachment is not as planned, in plain words; empty: all is well.

        After a chain with later plugins: ``plan.with_result(prevResult)``. Raises KernelError.
        """
        with self._socket() as sock:
            found = self._ways[type(plan.link)].differences(plan, netns_fd, sock)
        return found + self._tables.differences(plan)

    def resync(self, plans: Iterable[AttachPlan]) -> list[str]:
        """Take over these attachments: count them on their bridges, repair their bridges and nft rows.

        For the start and for periodic calls, not while ADDs of other attachments than these are under way.
        Returns what had to be repaired. Raises KernelError.
        """
        known = {plan.host: plan for plan in plans}
        with self._lock:
            before = {host: self._attached[host] for host in known if host in self._attached}
            new = [plan for host, plan in known.items() if host not in before or _moved(before[host], plan)]
            self._attached |= {plan.host: plan for plan in new}
        for plan in new:
            self._ways[type(plan.link)].adopt(plan)
            if plan.host in before:
                self._ways[type(plan.link)].detached(before[plan.host])
        alive = self.links()
        repaired = self._tables.resync(known.values(), alive.keys())
        with self._socket() as sock:
            for kind, way in self._ways.items():
                here = [plan for plan in known.values() if type(plan.link) is kind and plan.host in alive]
                repaired += way.repair(here, sock, inet6=self._inet6)
        for plan in known.values():
            if plan.host_ports and plan.host in alive:
                podports.let_loopback_out(plan)
        return repaired

    def tables(self, plans: Iterable[AttachPlan]) -> tuple[list[str], list[str]]:
        """The nft tables of pods: what they are to hold for these, and what they hold, as lines. Raises KernelError."""
        return self._tables.sides(plans)

    def need(self, gone: Collection[bytes | int]) -> bool:
        """Whether an attached pod needs what went (``podroutewatch``)."""
        return self._legs.need(gone) or self._children.need(gone)

    def links(self) -> dict[str, Owner | None]:
        """Host ends of pods in the kernel that are not dying, with their owners (None: too long for the alias)."""
        with self._socket() as sock:
            listed = [
                rtlink.parse_link(msg) for msg in sock.dump(rtlink.dump_links(kind="veth"), "list links")
            ]
        found: dict[str, Owner | None] = {}
        for link in listed:
            owner = owner_of(link.alias)
            ours = link.alias.startswith("pycni:") if owner is None else host_ifname(owner) == link.name
            if ours and link.group != DYING_GROUP:
                found[link.name] = owner
        return found

    def _clear(self, sock: PodSocket, plan: AttachPlan, netns_fd: int, error: KernelError) -> None:
        """Wait until an earlier attachment that is in the way is gone. Raises KernelError when it is not dying."""
        inode = netns.inode(netns_fd)
        if not self._remover.is_dying(plan.host, inode):
            raise _taken(sock, plan) from error
        self._remover.wait_gone(plan.host, inode, DYING_TIMEOUT_S)

    def _cut_off(self, host: str, plan: AttachPlan | None) -> bool:
        """Take the pod's devices down and into the dying group; whether the veth was there."""
        msgs = [
            messages.cut_off(host, group=DYING_GROUP),
            messages.cut_off(shaper_of(host), group=DYING_GROUP),
        ]
        if plan is not None:
            msgs += self._ways[type(plan.link)].cut_off(plan)
        with self._socket() as sock:
            errors = sock.batch(msgs, "cut off", host)
        for error in errors[:2]:
            if error is not None and error.errno != errno.ENODEV:
                raise error
        return errors[0] is None

    @contextmanager
    def _socket(self) -> Iterator[PodSocket]:
        """A socket in the node's namespace, from the idle ones if possible."""
        with self._lock:
            sock = self._idle.pop() if self._idle else None
        sock = sock or PodSocket()
        try:
            yield sock
        finally:
            with self._lock:
                self._idle.append(sock)


def _moved(before: AttachPlan, plan: AttachPlan) -> bool:
    """Whether the pod's bridge is to be another one than that it is counted on, by its MTU for instance."""
    return (
        isinstance(before.link, BridgePort)
        and isinstance(plan.link, BridgePort)
        and before.link.bridge != plan.link.bridge
    )


def _taken(sock: PodSocket, plan: AttachPlan) -> KernelError:
    """Which of the two names is taken."""
    if podcheck.find(sock, plan.host) is not None:
        reason = f"host end {plan.host} exists: this attachment was added before and not deleted"
    else:
        reason = "the pod has an interface of this name"
    return KernelError(errno.EEXIST, "create interface", plan.ifname, reason)


def _delete(sock: PodSocket, plan: AttachPlan) -> None:
    """Delete what a failed attachment made; both ends go together."""
    names = [plan.host, plan.names.shaper] if plan.shaping.egress is not None else [plan.host]
    for name in names:
        try:
            sock.request(rtlink.del_link(name=name), "delete link", name)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise


def _delete_inside(ifname: str, netns_fd: int) -> bool:
    """Delete a pod's interface whose host end has a name we do not know (a pod taken over); whether it was there."""
    with netns.run_in(netns_fd, PodSocket) as sock:
        link = podcheck.find(sock, ifname)
        if link is None:
            return False
        if link.kind not in _POD_LINKS:
            log.warning("not deleting %s of a pod: it is a %s", ifname, link.kind or "device")
            return False
        sock.request(rtlink.del_link(link.ifindex), "delete link", ifname)
        return True
