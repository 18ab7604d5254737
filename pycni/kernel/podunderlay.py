"""Attachments ``macvlan`` and ``ipvlan`` in the kernel: a child of the uplink in the pod, and a leg to the node beside.

Life: the leg is made like that of a routed pod (its host end has the pod's name and alias, so that the pod is found
and counted by it), with the pod's addresses as host prefixes; then the child, in the pod at once. Everything on the
child happens on a socket inside the pod. Cutting off deletes the child first, through the number the node has for the
namespace at the leg's other end: a child has nothing on the node's side that could be taken down.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import threading
from collections.abc import Collection

import msgspec

from pycni.attach.plan import AttachPlan, RoutedLeg, UnderlayChild
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError
from pycni.kernel import netns, podcheck, podlegs, podlink, sysctl
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.podlink import PodSocket
from pycni.kernel.podrouted import prepare_leg, try_all
from pycni.kernel.podway import Attaching
from pycni.model.attachment import AttachmentKind
from pycni.model.family import Family
from pycni.model.tables import POD_ROUTE_PROTOCOL
from pycni.wire import childlink, rtlink, rtnl
from pycni.wire import podlink as messages

log = logging.getLogger("pycni.attach")

KINDS = frozenset({AttachmentKind.MACVLAN, AttachmentKind.IPVLAN})
_ETH_P_ARP = 0x0806
_ARP = struct.Struct("!HHBBH6s4s6s4s")


class UnderlayChildren:
    """The way of ``UnderlayChild``."""

    def __init__(self) -> None:
        """Nothing is touched yet."""
        self._lock = threading.Lock()
        self._places: dict[str, frozenset[bytes]] = {}
        """Of each pod here, by host end: its addresses."""

    def close(self) -> None:
        """See ``podway.Way``."""

    def attach(self, job: Attaching) -> AttachedLinks:
        """See ``podway.Way``."""
        plan, sock, link = job.plan, job.sock, child_of(job.plan)
        parent = _parent(sock, plan, link)
        own = link.kind is AttachmentKind.MACVLAN
        mac = plan.mac if own else parent.mac
        leg = leg_plan(plan, plan.mtu or parent.mtu)
        _forward(link)
        host, end = job._replace(plan=leg).create()
        job.made(host)
        prepare_leg(plan, _routed(link), inet6=job.inet6)
        first = [messages.describe_leg(host, plan.names.alias, inet6=job.inet6), messages.set_up(host)]
        try_all(sock, first, "set up host end", plan.host)
        try_all(sock, _ways(link, host), "route to pod", plan.host)
        index = self._create(job, link, parent.ifindex, plan.mac if own else b"")
        netns.run_in(job.netns_fd, lambda: _quiet(plan, link))
        with netns.run_in(job.netns_fd, PodSocket) as inside:
            podlink.configure_pod(inside, leg, job.netns_fd, end)
            podlink.configure_pod(inside, plan, job.netns_fd, index)
            podlink.await_running(sock, plan.host, host)
            if own:
                podlink.announce(inside, plan, job.netns_fd, index)
            else:
                _announce_v4(plan, job.netns_fd, mac)
        local = {gateway.address for gateway in link.gateways if gateway.family is Family.V6}
        if local:
            podlink.await_local(sock, host, local, plan.host)
        known = [messages.first_neighbour(host, item.address, leg.mac) for item in link.addresses]
        try_all(sock, known, "add neighbour", plan.host)
        job.undo.callback(self.detached, plan)
        self.adopt(plan)
        return AttachedLinks(plan.host, host, plan.names.host_mac, index, mac, plan.mtu or parent.mtu)

    def detached(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        with self._lock:
            self._places.pop(plan.host, None)

    def cut_off(self, plan: AttachPlan) -> list[bytes]:  # noqa: ARG002 - see below
        """See ``podway.Way``: routes and neighbours go with the host end; the child is ``remove_child``'s."""
        return []

    def adopt(self, plan: AttachPlan) -> None:
        """See ``podway.Way``."""
        with self._lock:
            self._places[plan.host] = frozenset(item.address for item in child_of(plan).addresses)

    def need(self, gone: Collection[bytes | int]) -> bool:
        """Whether a pod here needs what ``podroutewatch`` says has gone."""
        with self._lock:
            return podlegs.needed(self._places, gone)

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket, *, inet6: bool) -> list[str]:
        """See ``podway.Way``. The pod's side is the pod's own: CHECK tells of it."""
        if not plans:
            return []
        seen = podlegs.read(sock)
        done: list[str] = []
        for plan in plans:
            link = child_of(plan)
            wrong = list(podlegs.faults(leg_plan(plan, plan.mtu), _routed(link), seen))
            if wrong:
                index = seen.links[plan.host].ifindex
                msgs = [fault.message for fault in wrong] + _ways(link, index)
                try_all(sock, msgs, "repair leg", plan.host)
                done += [fault.text for fault in wrong]
            try:
                prepare_leg(plan, _routed(link), inet6=inet6)
            except KernelError as error:
                if error.errno != errno.ENOENT:  # somebody deletes it just now
                    raise
        families = sorted({family for plan in plans for family in child_of(plan).families})
        done += [
            f"{family.label} forwarding was off"
            for family in families
            if sysctl.put(podcheck.FORWARDING[family], 1)
        ]
        return done

    def differences(self, plan: AttachPlan, netns_fd: int, sock: PodSocket) -> list[str]:
        """See ``podway.Way``."""
        link = child_of(plan)
        leg = leg_plan(plan, plan.mtu)
        parent = podcheck.find(sock, link.master)
        with netns.socket_in(netns_fd) as inside:
            child = podcheck.find(inside, plan.ifname)
            found = podcheck.pod_differences(plan, child, inside)
        if parent is None:
            found.append(f"uplink {link.master} is missing")
        elif child is not None and (child.kind != link.kind or child.parent != parent.ifindex):
            found.append(f"interface {plan.ifname} is no {link.kind} child of {link.master}")
        found += podcheck.differences(leg, netns_fd, sock)
        said = set(found)
        faults = podlegs.faults(leg, _routed(link), podlegs.read(sock))
        found += [fault.text for fault in faults if fault.text not in said]
        return found + podcheck.forwarding_differences(link.families)

    def _create(self, job: Attaching, link: UnderlayChild, parent: int, mac: bytes) -> int:
        """Make the child; once more after an earlier attachment that is in the way has gone."""
        plan = job.plan
        msg = childlink.create_child(
            link.kind, plan.ifname, parent, netns_fd=job.netns_fd, mac=mac, mtu=plan.mtu
        )
        about = f"{plan.ifname}, {link.kind} child of {link.master}"
        try:
            job.sock.request(msg, "create interface", about)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            job.clear(error)
            job.sock.request(msg, "create interface", about)
        job.undo.callback(_delete_child, job.netns_fd, plan.ifname, link.kind)
        with netns.run_in(job.netns_fd, PodSocket) as inside:
            child = podcheck.find(inside, plan.ifname)
        if child is None:
            raise KernelError(errno.ENODEV, "create interface", about, "it vanished at once")
        return child.ifindex


def child_of(plan: AttachPlan) -> UnderlayChild:
    """The plan's link. The way was chosen by its type."""
    assert isinstance(plan.link, UnderlayChild), plan.link
    return plan.link


def _routed(link: UnderlayChild) -> RoutedLeg:
    """The host end of a leg, as that of a routed pod."""
    return RoutedLeg(gateways=link.gateways)


def leg_plan(plan: AttachPlan, mtu: int) -> AttachPlan:
    """The leg of a pod, as a plan of its own, named by the same host end. ``mtu``: of the pod's interface.

    It has the MAC of a macvlan child; children by ipvlan all have their parent's.
    """
    link = child_of(plan)
    return msgspec.structs.replace(
        plan,
        owner=plan.owner._replace(ifname=link.leg),
        mac=plan.mac if link.kind is AttachmentKind.MACVLAN else plan.names.mac,
        mtu=mtu,
        addresses=link.addresses,
        routes=link.routes,
        neighbours=link.neighbours,
        enable_dad=False,
    )


def remove_child(sock: NetlinkSocket, host: str, ifname: str) -> None:
    """Delete the child at the other end of a leg, if there is one. Raises KernelError."""
    try:
        answer = sock.request(messages.get_state(name=host), "read link", host)[0]
        nsid = childlink.peer_namespace(answer.payload)
        if nsid is None:
            return
        child = rtlink.parse_link(sock.request(childlink.get_there(nsid, ifname), "read link", ifname)[0])
        if child.kind in KINDS:
            sock.request(childlink.delete_there(nsid, child.ifindex), "delete link", ifname)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise


def _parent(sock: PodSocket, plan: AttachPlan, link: UnderlayChild) -> rtlink.Link:
    found = podcheck.find(sock, link.master)
    if found is None:
        raise KernelError(errno.ENODEV, "create interface", plan.ifname, f"there is no uplink {link.master}")
    return found


def _ways(link: UnderlayChild, host: int) -> list[bytes]:
    """Gateway addresses of the host end and the routes to the pod, from an address the pod answers by the leg."""
    sources = {len(source): source for source in link.sources}
    routes = (
        rtnl.new_route(
            item.address,
            item.prefix_len,
            oif=host,
            source=sources.get(len(item.address), b""),
            protocol=POD_ROUTE_PROTOCOL,
            replace=True,
        )
        for item in link.addresses
    )
    return [*(podlegs.gateway_message(host, gateway) for gateway in link.gateways), *routes]


def _quiet(plan: AttachPlan, link: UnderlayChild) -> None:
    """No addresses but ours: routers of the underlay are not asked. In the pod's namespace."""
    has_v6 = any(item.family is Family.V6 for item in plan.addresses)
    for device in (plan.ifname, link.leg):
        try:
            sysctl.put(f"net/ipv6/conf/{device}/accept_ra", 0)
            if not has_v6:
                sysctl.put(f"net/ipv6/conf/{device}/disable_ipv6", 1)
        except KernelError as error:
            if error.errno != errno.ENOENT:  # a kernel without IPv6
                raise


def _announce_v4(plan: AttachPlan, netns_fd: int, mac: bytes) -> None:
    """Tell the segment which MAC has the pod's IPv4 addresses (RFC 5227 section 3): an ipvlan child cannot itself."""

    def open_socket() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)

    with netns.run_in(netns_fd, open_socket) as sock:
        for item in plan.addresses:
            if item.family is not Family.V4:
                continue
            body = _ARP.pack(1, 0x0800, 6, 4, 1, mac, item.address, bytes(6), item.address)
            frame = b"\xff" * 6 + mac + struct.pack("!H", _ETH_P_ARP) + body
            try:
                sock.sendto(frame, (plan.ifname, _ETH_P_ARP))
            except OSError as exc:
                raise KernelError(exc.errno or errno.EIO, "announce address", item.text()) from exc


def _delete_child(netns_fd: int, ifname: str, kind: AttachmentKind) -> None:
    """Take back a child that was made. Others' interfaces of the name stay."""
    with netns.run_in(netns_fd, PodSocket) as inside:
        child = podcheck.find(inside, ifname)
        if child is not None and child.kind == kind:
            inside.request(rtlink.del_link(child.ifindex), "delete link", ifname)


def _forward(link: UnderlayChild) -> None:
    for family in link.families:
        if sysctl.put(podcheck.FORWARDING[family], 1):
            log.info("switched %s forwarding on: pods reach Services by this node", family.label)
