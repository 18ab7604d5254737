"""Attachment ``ptp`` in the kernel: the host end stands alone, with a gateway address and a route to the pod.

Life of a leg: the pair is made; the host end comes up, gets its gateway addresses, and routes to the pod's addresses
lead to it (protocol 114); the pod gets its side; when both ends have their carrier each is told the other's MAC, so
that nobody has to ask first. All of it goes with the host end. What no pod has of the node's subnets is unreachable here
(a route of the last resort): a packet to it would otherwise leave by the default route and come back for ever.

Legs are looked at together: three dumps, however many pods.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Collection, Iterable

from pycni.attach.plan import AttachPlan, PodAddress, RoutedLeg
from pycni.attach.result import AttachedLinks
from pycni.kernel import netns, podcheck, podlink, sysctl
from pycni.kernel.podlink import PodSocket
from pycni.kernel.podway import Attaching
from pycni.model.family import Family
from pycni.model.tables import POD_ROUTE_PROTOCOL
from pycni.wire import podlink as messages
from pycni.wire import rtnl

log = logging.getLogger("pycni.attach")

LAST_METRIC = 0xFFFF0000
"""Of routes that say "unreachable": any other route to the same subnet, as a bridge's, comes before them."""


class RoutedLegs:
    """The way of ``RoutedLeg``."""

    def __init__(self) -> None:
        """Nothing is touched yet."""
        self._lock = threading.Lock()
        self._closed: set[PodAddress] = set()
        """Subnets with a route of the last resort, as far as we know."""

    def close(self) -> None:
        """See ``podway.Way``."""

    def attach(self, job: Attaching) -> AttachedLinks:
        """See ``podway.Way``."""
        plan, sock, link = job.plan, job.sock, leg_of(job.plan)
        _forward(link)
        self._close_subnets(link.subnets, sock)
        host, pod = job.create()
        job.made(host)
        close_leg(plan.host, inet6=job.inet6)
        first = [messages.describe_leg(host, plan.names.alias, inet6=job.inet6), messages.set_up(host)]
        try_all(sock, first, "set up host end", plan.host)
        try_all(sock, node_messages(plan, link, host), "route to pod", plan.host)
        with netns.run_in(job.netns_fd, PodSocket) as inside:
            podlink.configure_pod(inside, plan, job.netns_fd, pod)
        podlink.await_running(sock, plan.host, host)
        known = [messages.first_neighbour(host, item.address, plan.mac) for item in plan.addresses]
        try_all(sock, known, "add neighbour", plan.host)
        return AttachedLinks(plan.host, host, plan.names.host_mac, pod, plan.mac, plan.mtu)

    def detached(self, plan: AttachPlan) -> None:
        """See ``podway.Way``: nothing is counted."""

    def cut_off(self, plan: AttachPlan) -> list[bytes]:
        """See ``podway.Way``: routes and neighbours go with the host end's carrier."""
        return []

    def adopt(self, plan: AttachPlan) -> None:
        """See ``podway.Way``: nothing is counted."""

    def differences(self, plan: AttachPlan, netns_fd: int, sock: PodSocket) -> list[str]:
        """See ``podway.Way``."""
        return podcheck.differences(plan, netns_fd, sock)

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket, *, inet6: bool) -> list[str]:
        """See ``podway.Way``."""
        return []

    def _close_subnets(self, subnets: Iterable[PodAddress], sock: PodSocket) -> None:
        """Have addresses of these subnets that no pod has unreachable. Raises KernelError."""
        with self._lock:
            new = [subnet for subnet in subnets if subnet not in self._closed]
            for subnet in new:
                msg = rtnl.new_route(
                    subnet.address,
                    subnet.prefix_len,
                    kind=rtnl.RTN_UNREACHABLE,
                    metric=LAST_METRIC,
                    protocol=POD_ROUTE_PROTOCOL,
                )
                try_all(sock, [msg], "add route", f"unreachable {subnet.text()}")
                self._closed.add(subnet)


def leg_of(plan: AttachPlan) -> RoutedLeg:
    """The plan's leg. The way was chosen by its type."""
    assert isinstance(plan.link, RoutedLeg), plan.link
    return plan.link


def node_messages(plan: AttachPlan, link: RoutedLeg, host: int) -> list[bytes]:
    """Gateway addresses of a host end that is up, and the routes to the pod. EEXIST: it is there."""
    return [
        *(gateway_message(host, gateway) for gateway in link.gateways),
        *(route_message(host, address) for address in plan.addresses),
    ]


def gateway_message(host: int, gateway: PodAddress) -> bytes:
    """Give a host end a gateway address.

    IPv4: of scope "host", so that the node does not choose it as the source of what it sends to pods or, masquerading,
    for others. IPv6 chooses by the scope of addresses.
    """
    v6 = gateway.family is Family.V6
    return messages.own_address(
        host,
        gateway.address,
        gateway.prefix_len,
        flags=rtnl.IFA_F_NODAD if v6 else 0,
        protocol=POD_ROUTE_PROTOCOL,
        scope=rtnl.RT_SCOPE_LINK if v6 else rtnl.RT_SCOPE_HOST,
    )


def route_message(host: int, address: PodAddress) -> bytes:
    """Lead an address of the pod to its host end."""
    return rtnl.new_route(
        address.address, address.prefix_len, oif=host, protocol=POD_ROUTE_PROTOCOL, replace=True
    )


def close_leg(name: str, *, inet6: bool) -> None:
    """Have a host end believe its pod nothing about the network. Raises KernelError (ENOENT: it is gone).

    No router advertisements, whatever new interfaces of this node accept, and no packets to one host in frames to many
    (``podlink.close_host``).
    """
    podlink.close_host(name, inet6=inet6)
    if inet6:
        sysctl.put(f"net/ipv6/conf/{name}/accept_ra", 0)


def try_all(sock: PodSocket, msgs: list[bytes], operation: str, obj: str) -> None:
    """Send messages; what is there already is fine. Raises the first KernelError."""
    for error in sock.batch(msgs, operation, obj):
        if error is not None and error.errno != errno.EEXIST:
            raise error


def _forward(link: RoutedLeg) -> None:
    for family in link.families:
        if sysctl.put(podcheck.FORWARDING[family], 1):
            log.info("switched %s forwarding on: pods send by this node", family.label)
