"""The MTU of pods that run, brought along when the network's has changed (another backend, another underlay).

With the old one a pod would go on only half well: packets larger than a node's way out are answered with "fragmentation
needed", but a bridge and a veth drop without a word what is larger than the port it is for. Both ends of the veth are
set: the end that has to take larger packets before the one that sends them. Connections go on; the pod's kernel takes
the new size by itself.

Only the link of the attachment is touched: the pod's end has to be in the namespace on record and to have our end as
its peer. What has another MTU than our end was set on purpose, by a later plugin or in the pod, and stays.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from pycni.attach.plan import AttachPlan, BridgePort, RoutedLeg
from pycni.errors import KernelError
from pycni.kernel import netns
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import rtlink
from pycni.wire.netlink import attr_u32

log = logging.getLogger("pycni.attach")


class PodAt(NamedTuple):
    """An attachment, and where its pod is."""

    plan: AttachPlan
    path: str
    """Of the pod's namespace, as on record."""
    inode: int
    """What has to be found there."""


def follow(pods: Iterable[PodAt]) -> list[str]:
    """Give pods the MTU of their plans; says which have another one now.

    The calling thread has to be in the node's namespace. A pod that goes meanwhile is none; raises KernelError for
    what the kernel refused otherwise.
    """
    wanted = {
        pod.plan.host: pod
        for pod in pods
        if pod.plan.mtu and isinstance(pod.plan.link, BridgePort | RoutedLeg)
    }
    if not wanted:
        return []
    changed = []
    with NetlinkSocket() as sock:
        for message in sock.dump(rtlink.dump_links(kind="veth"), "list links"):
            link = rtlink.parse_link(message)
            pod = wanted.get(link.name)
            if pod is None or link.mtu == pod.plan.mtu:
                continue
            try:
                _change(sock, link, pod)
            except KernelError as error:
                if error.errno not in {errno.ENODEV, errno.ENOENT}:
                    raise
                continue
            changed.append(f"{pod.plan.owner}: MTU {pod.plan.mtu} in place of {link.mtu}")
    return changed


def _change(sock: NetlinkSocket, link: rtlink.Link, pod: PodAt) -> None:
    """Set both ends. Raises KernelError (ENODEV, ENOENT: the pod is gone)."""
    fd = netns.open_netns(pod.path)
    try:
        if netns.inode(fd) != pod.inode:
            raise KernelError(errno.ENOENT, "find pod", pod.path, "another namespace has its name")
        with netns.run_in(fd, NetlinkSocket) as inside:
            [reply] = inside.request(rtlink.get_link(name=pod.plan.ifname), "find link", pod.plan.ifname)
            end = rtlink.parse_link(reply)
            ours = end.kind == "veth" and end.parent == link.ifindex and link.parent == end.ifindex
            ends = [(sock, link)]
            if ours and end.mtu == link.mtu:
                ends.append((inside, end))
            if pod.plan.mtu < link.mtu:
                ends.reverse()
            for where, what in ends:
                where.request(
                    rtlink.set_link(what.ifindex, attr_u32(rtlink.IFLA_MTU, pod.plan.mtu)),
                    "set MTU",
                    f"{what.name} mtu {pod.plan.mtu}",
                )
    finally:
        os.close(fd)
