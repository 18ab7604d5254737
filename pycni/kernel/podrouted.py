"""Attachment ``ptp`` in the kernel: the host end stands alone, with a gateway address and a route to the pod.

Life of a leg: the pair is made; the host end comes up, gets its gateway addresses, and routes to the pod's addresses
lead to it (protocol 114); the pod gets its side; when both ends have their carrier each is told the other's MAC, so
that nobody has to ask first. All of it goes with the host end. What no pod has of the node's subnets is unreachable
here (a route of the last resort): a packet to it would otherwise leave by the default route and come back for ever.

What differs from the plans is found and repaired for all legs together (``podlegs``), however many there are.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Collection, Iterable

from pycni.attach.plan import AttachPlan, PodAddress, RoutedLeg
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError
from pycni.kernel import netns, podcheck, podlegs, podlink, sysctl
from pycni.kernel.podbeside import PodsBeside
from pycni.kernel.podlink import PodSocket
from pycni.kernel.podway import Attaching
from pycni.model.family import Family
from pycni.wire import podlink as messages

log = logging.getLogger("pycni.attach")


class RoutedLegs:
    """The way of ``RoutedLeg``."""

    def __init__(self) -> None:
        """Nothing is touched yet."""
        self._lock = threading.Lock()
        self._closed: set[PodAddress] = set()
        """Subnets with a route of the last resort, as far as we know."""
        self._places: dict[str, frozenset[bytes]] = {}
        """Of each pod here, by host end: its addresses and subnets."""
        self._beside = PodsBeside()

    def close(self) -> None:
        """See ``podway.Way``."""

    def attach(self, job: Attaching) -> AttachedLinks:
        """See ``podway.Way``."""
        plan, sock, link = job.plan, job.sock, leg_of(job.plan)
        _forward(link)
        self._close_subnets(link.subnets, sock)
        host, pod = job.create()
        job.made(host)
        prepare_leg(plan, link, inet6=job.inet6)
        first = [messages.describe_leg(host, plan.names.alias, inet6=job.inet6), messages.set_up(host)]
        try_all(sock, first, "set up host end", plan.host)
        ways = [
            *(podlegs.gateway_message(host, gateway) for gateway in link.gateways),
            *(podlegs.route_message(host, address) for address in plan.addresses),
        ]
        try_all(sock, ways, "route to pod", plan.host)
        with netns.run_in(job.netns_fd, PodSocket) as inside:
            podlink.configure_pod(inside, plan, job.netns_fd, pod)
        podlink.await_running(sock, plan.host, host)
        known = [messages.first_neighbour(host, item.address, plan.mac) for item in plan.addresses]
        try_all(sock, known, "add neighbour", plan.host)
        local = {gateway.address for gateway in link.gateways if gateway.family is Family.V6}
        if local:
            podlink.await_local(sock, host, local, plan.host)
        job.undo.callback(self._take_back, plan, sock)
        self._beside.add(plan, sock)
        self.adopt(plan)
        return AttachedLinks(plan.host, host, plan.names.host_mac, pod, plan.mac, plan.mtu)

    def detached(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        with self._lock:
            self._places.pop(plan.host, None)
        self._beside.remove(plan)

    def _take_back(self, plan: AttachPlan, sock: PodSocket) -> None:
        sock.batch(self.cut_off(plan), "take back", plan.host)
        self.detached(plan)

    def cut_off(self, plan: AttachPlan) -> list[bytes]:
        """See ``podway.Way``: routes and neighbours on the host end go with its carrier."""
        return self._beside.messages(plan)

    def adopt(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        places = (*plan.addresses, *leg_of(plan).subnets)
        with self._lock:
            self._places[plan.host] = frozenset(place.address for place in places)

    def need(self, gone: Collection[bytes | int]) -> bool:
        """Whether a pod here needs what ``podroutewatch`` says has gone."""
        with self._lock:
            return podlegs.needed(self._places, gone)

    def bridge_used(self, name: str, sock: PodSocket) -> None:
        """A pod is on this bridge: see that it can reach the pods on legs. Raises KernelError."""
        self._beside.bridge_used(name, sock)

    def differences(self, plan: AttachPlan, netns_fd: int, sock: PodSocket) -> list[str]:
        """See ``podway.Way``."""
        link = leg_of(plan)
        found = podcheck.differences(plan, netns_fd, sock)
        said = set(found)
        found += [
            fault.text for fault in podlegs.faults(plan, link, podlegs.read(sock)) if fault.text not in said
        ]
        return found + podcheck.forwarding_differences(link.families)

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket, *, inet6: bool) -> list[str]:
        """See ``podway.Way``."""
        subnets = {subnet for plan in plans for subnet in leg_of(plan).subnets}
        seen = podlegs.read(sock) if plans else podlegs.read_subnets(sock)
        wrong = list(podlegs.subnet_faults(subnets, seen))
        with self._lock:
            self._closed = set(subnets)
        for plan in plans:
            wrong += podlegs.faults(plan, leg_of(plan), seen)
            try:
                prepare_leg(plan, leg_of(plan), inet6=inet6)
            except KernelError as error:
                if error.errno != errno.ENOENT:  # somebody deletes it just now
                    raise
        done = [
            f"{family.label} forwarding was off"
            for family in sorted({family for plan in plans for family in leg_of(plan).families})
            if sysctl.put(podcheck.FORWARDING[family], 1)
        ]
        results = sock.batch([fault.message for fault in wrong], "repair legs")
        for fault, failed in zip(wrong, results, strict=True):
            if failed is None:
                done.append(fault.text)
            elif failed.errno not in {errno.EEXIST, errno.ENODEV, errno.ESRCH}:
                raise KernelError(failed.errno, "repair", fault.text, failed.detail)
        return done + self._beside.repair(plans, sock)

    def _close_subnets(self, subnets: Iterable[PodAddress], sock: PodSocket) -> None:
        """Have addresses of these subnets that no pod has unreachable. Raises KernelError."""
        with self._lock:
            new = [subnet for subnet in subnets if subnet not in self._closed]
            try_all(
                sock, list(map(podlegs.subnet_message, new)), "close subnet", " ".join(s.text() for s in new)
            )
            self._closed.update(new)


def leg_of(plan: AttachPlan) -> RoutedLeg:
    """The plan's leg. The way was chosen by its type."""
    assert isinstance(plan.link, RoutedLeg), plan.link
    return plan.link


def prepare_leg(plan: AttachPlan, link: RoutedLeg, *, inet6: bool) -> None:
    """Set a host end's switches. Raises KernelError (ENOENT: it is gone)."""
    close_leg(plan.host, inet6=inet6)
    if inet6 and Family.V6 in link.families:
        # IPv6 may be switched off for new devices of this host.
        sysctl.put(f"net/ipv6/conf/{plan.host}/disable_ipv6", 0)


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
