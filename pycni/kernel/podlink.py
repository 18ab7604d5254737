"""The two ends of one pod's veth pair: made, described, brought up, found working.

Life of an attachment's link: one message on the node's side makes both ends (the far one in the pod's namespace
already, with name, MAC and MTU); two more name its owner, set the bridge port and bring it up; one batch on a socket
opened inside the pod gives addresses and routes; when the port forwards, other pods are told whose the addresses
are. Namespaces are entered only to open sockets.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import NamedTuple, Protocol

from pycni.attach.plan import AttachPlan
from pycni.errors import KernelError
from pycni.kernel import netns, sysctl
from pycni.kernel.netlink import (
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    SOL_NETLINK,
    NetlinkSocket,
)
from pycni.model.family import Family, show
from pycni.wire import podlink, rtnl
from pycni.wire.netlink import Message, split

LOOPBACK = 1
"""Index of ``lo`` in every namespace."""
TIMEOUT_S = 10
CARRIER_TIMEOUT_S = 5.0
DAD_TIMEOUT_S = 10.0
"""As long as the reference plugins wait for addresses to settle."""
_TABLE_LOCAL = 255
_ALL_NODES = "ff02::1"
_INDEX = struct.Struct("=I")
_RECEIVE_BYTES = 1 << 15
"""More than any answer in these exchanges (the kernel sends at most 32 KiB at once); cheap to allocate."""


class _Described(Protocol):
    def text(self) -> str: ...


class _Step(NamedTuple):
    """One message with what to call it when it fails."""

    message: bytes
    operation: str
    about: _Described | None = None


class PodSocket(NetlinkSocket):
    """A route socket for a few short exchanges: fewer options to set, a small receive buffer."""

    def __init__(self) -> None:
        """Open in the calling thread's namespace."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", TIMEOUT_S, 0))
            super().__init__(sock=sock)
        except BaseException:
            sock.close()
            raise

    def _receive(self, operation: str, obj: str) -> list[Message]:
        try:
            return list(split(self._sock.recv(_RECEIVE_BYTES)))
        except OSError as exc:
            code = errno.ETIMEDOUT if exc.errno == errno.EAGAIN else exc.errno or errno.EIO
            raise KernelError(code, operation, obj, "receiving the answer") from exc


def create(sock: NetlinkSocket, plan: AttachPlan, master: int, netns_fd: int) -> tuple[int, int]:
    """Make the pair, down; returns the host end's and the pod end's index.

    Raises KernelError: EEXIST when the host end's or the pod interface's name is taken.
    """
    msg = podlink.create_pair(
        plan.host,
        plan.names.host_mac,
        master,
        plan.mtu,
        pod=plan.ifname,
        pod_mac=plan.mac,
        netns_fd=netns_fd,
    )
    answers = sock.request(msg, "create interface", f"{plan.ifname} with host end {plan.host}")
    if not answers:
        # Before kernel 6.2 NLM_F_ECHO does not apply to links.
        answers = sock.request(podlink.get_state(name=plan.host), "read link", plan.host)
    return podlink.pair_indexes(answers[0].payload)


def close_host(name: str, *, inet6: bool) -> None:
    """Have a host end take no packets for itself from frames to the groups of IEEE 802.1D. Raises KernelError.

    A bridge hands those to the port's device past all its hooks (br_handle_frame in net/bridge/br_input.c), so a pod
    could reach the node with any source address. They are multicasts: RFC 1122 section 3.3.6 has packets in them
    dropped that are to one host, and so does the kernel when told.
    """
    for family in ("ipv4", "ipv6") if inet6 else ("ipv4",):
        sysctl.put(f"net/{family}/conf/{name}/drop_unicast_in_l2_multicast", 1)


def configure_pod(sock: NetlinkSocket, plan: AttachPlan, netns_fd: int, ifindex: int) -> None:
    """Loopback, addresses and routes of the pod, and its interface up. ``sock``: inside the pod."""
    wanted = {address.address for address in plan.addresses if address.family is Family.V6}
    steps = _pod_steps(plan, ifindex, has_v6=bool(wanted))
    try:
        _run(sock, plan, steps)
    except KernelError as error:
        if not wanted or error.errno != errno.EACCES:
            raise
        # The batch went on after the refusal: before IPv6 comes up, the kernel's own address is off again.
        if not plan.enable_dad:
            sock.request(podlink.no_link_local(ifindex), "set up interface", plan.ifname)
        netns.run_in(netns_fd, lambda: _enable_ipv6(plan.ifname))
        _run(sock, plan, steps)
    if not wanted:
        return
    if plan.enable_dad:
        _await_detection(sock, plan, ifindex, wanted)
    else:
        wanted.add(podlink.link_local(plan.mac))
    await_local(sock, ifindex, wanted, plan.ifname)


def announce(sock: NetlinkSocket, plan: AttachPlan, netns_fd: int, ifindex: int) -> None:
    """Tell the other pods which MAC has the pod's addresses now: they may remember an earlier pod's.

    What the kernel sends by itself when the interface comes up can be too early for the bridge port.
    """
    if any(address.family is Family.V4 for address in plan.addresses):
        sock.request(podlink.announce_v4(ifindex, plan.mac), "announce addresses", plan.ifname)
    wanted = [address.address for address in plan.addresses if address.family is Family.V6]
    if not wanted:
        return
    with netns.run_in(netns_fd, _icmpv6) as sender:
        for address in wanted:
            source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address + _INDEX.pack(ifindex))
            try:
                sender.sendmsg(
                    [podlink.advertisement(address, plan.mac)], [source], 0, (_ALL_NODES, 0, 0, ifindex)
                )
            except OSError as exc:
                raise KernelError(exc.errno or errno.EIO, "announce address", show(address)) from exc


def _icmpv6() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
    # RFC 4861 section 7.1.2: anything but 255 was forwarded and is discarded.
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    return sock


def await_local(sock: NetlinkSocket, ifindex: int, wanted: set[bytes], name: str) -> None:
    """Wait until packets to these IPv6 addresses of a device are received.

    The kernel adds an address's local route and joins its solicited-node group from a work queue, with duplicate
    detection switched off too (addrconf_dad_work in net/ipv6/addrconf.c); until then answers to the
    device's own neighbour solicitations are dropped, and the next one is sent a second later. Raises KernelError.
    """
    request = rtnl.dump_routes(Family.V6, table=_TABLE_LOCAL, oif=ifindex)
    deadline = 0.0
    pause = 0.0001
    while True:
        listed = sock.dump(request, "list local routes", name)
        missing = wanted - {podlink.find_attr(msg.payload, rtnl.RTA_DST, 12) for msg in listed}
        if not missing:
            return
        now = time.monotonic()
        deadline = deadline or now + CARRIER_TIMEOUT_S
        if now > deadline:
            text = ", ".join(sorted(show(address) for address in missing))
            raise KernelError(errno.ETIMEDOUT, "wait for addresses", f"{text} dev {name}")
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def await_running(sock: NetlinkSocket, name: str, ifindex: int, *, unknown: bool = False) -> None:
    """Wait until a device has its carrier: a host end's bridge port forwards then, a bridge transmits.

    The kernel does it from a work queue (net/core/link_watch.c): mostly it is done by now. ``unknown``: a device
    that has had its carrier from the first never tells, which is good enough for a bridge. Raises KernelError.
    """
    deadline = 0.0
    pause = 0.0001
    request = podlink.get_state(ifindex)
    while True:
        payload = sock.request(request, "read link", name)[0].payload
        state = podlink.operstate(payload)
        if state == podlink.OPER_UP or (
            unknown and state == podlink.OPER_UNKNOWN and podlink.has_carrier(payload)
        ):
            return
        now = time.monotonic()
        deadline = deadline or now + CARRIER_TIMEOUT_S
        if now > deadline:
            reason = "is the bridge or the other end down?"
            raise KernelError(errno.ETIMEDOUT, "wait for carrier", name, reason)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def _run(sock: NetlinkSocket, plan: AttachPlan, steps: list[_Step]) -> None:
    errors = sock.batch([step.message for step in steps])
    for step, error in zip(steps, errors, strict=True):
        # Of equal routes the first one wins, as in the reference plugins.
        if error is not None and not (error.errno == errno.EEXIST and step.operation == "add route"):
            what = f"{step.about.text()} dev {plan.ifname}" if step.about is not None else plan.ifname
            raise KernelError(error.errno, step.operation, what, error.detail)


def _pod_steps(plan: AttachPlan, ifindex: int, *, has_v6: bool) -> list[_Step]:
    """The pod's side in the order the kernel wants it.

    IPv6 addresses come after "up", because their routes are refused on a link that is down. Announcing is switched
    on after it: ``announce`` does it when the bridge port forwards.
    """
    own_link_local = has_v6 and not plan.enable_dad
    steps = [_Step(podlink.set_up(LOOPBACK), "bring up loopback")]
    if own_link_local:
        steps.append(_Step(podlink.no_link_local(ifindex), "set up interface"))
    steps.append(_Step(podlink.set_up(ifindex), "bring up interface"))
    if own_link_local:
        own = podlink.link_local(plan.mac)
        msg = rtnl.new_address(ifindex, own, 64, flags=rtnl.IFA_F_NODAD)
        steps.append(_Step(msg, "add link-local address"))
    steps.append(_Step(podlink.describe_pod(ifindex, own_link_local=own_link_local), "set up interface"))
    for neighbour in plan.neighbours:
        msg = podlink.first_neighbour(ifindex, *neighbour)
        steps.append(_Step(msg, "add neighbour", neighbour))
    for entry in plan.addresses:
        _, address, length = entry
        flags, broadcast = 0, b""
        if len(address) == 4:
            broadcast = _broadcast(address, length) if length < 31 else b""
        elif not plan.enable_dad:
            flags = rtnl.IFA_F_NODAD
        msg = rtnl.new_address(ifindex, address, length, flags=flags, broadcast=broadcast)
        steps.append(_Step(msg, "add address", entry))
    for route in plan.routes:
        msg = rtnl.new_route(
            route.destination,
            route.prefix_len,
            oif=ifindex,
            gateway=route.gateway or b"",
            metric=route.priority,
            table=route.table or rtnl.RT_TABLE_MAIN,
            onlink=route.onlink,
            scope=route.scope or None,
            mtu=route.mtu,
            advmss=route.advmss,
        )
        steps.append(_Step(msg, "add route", route))
    return steps


def _broadcast(address: bytes, prefix_len: int) -> bytes:
    return (int.from_bytes(address, "big") | 0xFFFFFFFF >> prefix_len).to_bytes(4, "big")


def _enable_ipv6(ifname: str) -> None:
    for device in ("lo", ifname):
        sysctl.put(f"net/ipv6/conf/{device}/disable_ipv6", 0)


def _await_detection(sock: NetlinkSocket, plan: AttachPlan, ifindex: int, wanted: set[bytes]) -> None:
    """Wait for duplicate address detection. Raises KernelError: EADDRINUSE, ETIMEDOUT."""
    deadline = time.monotonic() + DAD_TIMEOUT_S
    while True:
        listed = [rtnl.parse_address(msg) for msg in sock.dump(rtnl.dump_addresses(ifindex, Family.V6))]
        ours = [info for info in listed if info.ifindex == ifindex and info.address in wanted]
        for info in ours:
            if info.flags & rtnl.IFA_F_DADFAILED:
                text = f"{show(info.address)} dev {plan.ifname}"
                raise KernelError(errno.EADDRINUSE, "add address", text, "duplicate address detection")
        if len(ours) == len(wanted) and not any(info.flags & rtnl.IFA_F_TENTATIVE for info in ours):
            return
        if time.monotonic() > deadline:
            raise KernelError(errno.ETIMEDOUT, "wait for duplicate address detection", plan.ifname)
        time.sleep(0.02)
