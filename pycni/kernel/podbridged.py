"""Attachment ``bridge`` in the kernel: the host end is a port of the node's bridge.

The bridge itself is ``podbridge``'s; one pod's way is here: the pair is made with its host end on the bridge,
described, brought up, and when the port forwards, the other pods are told whose the addresses are.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from pycni.attach.plan import AttachPlan, BridgePlan, BridgePort
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError
from pycni.kernel import netns, podcheck, podlink
from pycni.kernel.podbridge import BridgeLink, Bridges
from pycni.kernel.podlink import PodSocket
from pycni.kernel.podway import Attaching
from pycni.wire import podlink as messages
from pycni.wire import rtnl


class BridgePorts:
    """The way of ``BridgePort``."""

    def __init__(self) -> None:
        """Start listening in the calling thread's namespace."""
        self._bridges = Bridges()

    def close(self) -> None:
        """See ``podway.Way``."""
        self._bridges.close()

    def attach(self, job: Attaching) -> AttachedLinks:
        """See ``podway.Way``."""
        plan, sock = job.plan, job.sock
        wanted = port_of(plan).bridge
        bridge = self._bridges.acquire(wanted, sock)
        job.undo.callback(self._bridges.release, wanted)
        bridge, host, pod = self._create(job, wanted, bridge)
        job.made(host)
        reached = bridge.gateway_ifindex if wanted.gateways else 0
        bring_up_host(job, host, gateway=reached)
        with netns.run_in(job.netns_fd, PodSocket) as pod_sock:
            podlink.configure_pod(pod_sock, plan, job.netns_fd, pod)
            podlink.await_running(sock, plan.host, host)
            if reached and not bridge.running:
                podlink.await_running(sock, wanted.gateway_device, reached, unknown=True)
            podlink.announce(pod_sock, plan, job.netns_fd, pod)
        names = plan.names
        return AttachedLinks(plan.host, host, names.host_mac, pod, plan.mac, plan.mtu, bridge.mac)

    def detached(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        self._bridges.release(port_of(plan).bridge)

    def cut_off(self, plan: AttachPlan) -> list[bytes]:
        """See ``podway.Way``: the next pod with one of these addresses has another MAC."""
        device = self._bridges.gateway_ifindex(port_of(plan).bridge)
        return [rtnl.del_neighbour(device, address.address) for address in plan.addresses if device]

    def adopt(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        self._bridges.adopt(port_of(plan).bridge)

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket, *, inet6: bool) -> list[str]:
        """See ``podway.Way``. What bridges needed is in the log."""
        if plans:
            self._bridges.repair(sock)
        for plan in plans:
            try:
                podlink.close_host(plan.host, inet6=inet6)
            except KernelError as error:
                if error.errno != errno.ENOENT:  # somebody deletes it just now
                    raise
        return []

    def differences(self, plan: AttachPlan, netns_fd: int, sock: PodSocket) -> list[str]:
        """See ``podway.Way``."""
        return podcheck.differences(plan, netns_fd, sock) + podcheck.bridge_differences(
            plan, port_of(plan), sock
        )

    def _create(self, job: Attaching, wanted: BridgePlan, bridge: BridgeLink) -> tuple[BridgeLink, int, int]:
        """Make the pair; once more when the bridge was made anew meanwhile."""
        try:
            return bridge, *job.create(bridge.ifindex)
        except KernelError as error:
            if error.errno not in {errno.EINVAL, errno.ENODEV}:
                raise
        self._bridges.distrust()
        bridge = self._bridges.acquire(wanted, job.sock)
        self._bridges.release(wanted)
        return bridge, *job.create(bridge.ifindex)


def port_of(plan: AttachPlan) -> BridgePort:
    """The plan's port. The way was chosen by its type."""
    assert isinstance(plan.link, BridgePort), plan.link
    return plan.link


def bring_up_host(job: Attaching, ifindex: int, *, gateway: int) -> None:
    """Describe the host end and its bridge port, then bring it up. Raises KernelError.

    ``gateway``: index of the device the node reaches the pod by; 0: none. Packets that wait there for somebody to
    have the pod's addresses are dropped: they passed the node's filters when those knew nothing of the pod.
    """
    plan, port = job.plan, port_of(job.plan)
    podlink.close_host(plan.host, inet6=job.inet6)
    waiting = [rtnl.del_neighbour(gateway, address.address) for address in plan.addresses if gateway]
    msgs = [
        *waiting,
        messages.describe_port(
            ifindex, plan.names.alias, hairpin=port.hairpin, isolated=port.isolated, inet6=job.inet6
        ),
        *(messages.port_vlan(ifindex, port.bridge.vlan) if port.bridge.vlan else ()),
        messages.set_up(ifindex),
    ]
    for number, error in enumerate(job.sock.batch(msgs, "set up bridge port", plan.host)):
        if error is not None and not (number < len(waiting) and error.errno == errno.ENOENT):
            raise error
