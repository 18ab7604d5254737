"""CHECK: what of one attachment is not as planned, in plain words.

Only what the plan asks for is looked at: addresses, routes and rules that later plugins of the chain added are
nobody's fault (CNI specification 1.1.0, section 2 "CHECK").
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from pycni.attach.plan import AttachPlan, BridgePlan, BridgePort, PodAddress, PodRoute
from pycni.errors import KernelError
from pycni.kernel import netns, sysctl, tc
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Family, show_mac
from pycni.wire import rtlink, rtnl
from pycni.wire.rtlink import Link

FORWARDING = {Family.V4: "net/ipv4/ip_forward", Family.V6: "net/ipv6/conf/all/forwarding"}


def differences(plan: AttachPlan, netns_fd: int, host: NetlinkSocket) -> list[str]:
    """Differences of both ends, addresses, routes and shaping. ``host``: a socket in the node's namespace."""
    with netns.socket_in(netns_fd) as inside:
        pod = find(inside, plan.ifname)
        found = pod_differences(plan, pod, inside)
    return found + _host(plan, pod, host)


def bridge_differences(plan: AttachPlan, port: BridgePort, host: NetlinkSocket) -> list[str]:
    """Differences of the host end as a port, and of its bridge as this pod needs it."""
    return _port(plan, port, host) + _bridge(port.bridge, host)


def find(sock: NetlinkSocket, name: str) -> Link | None:
    """A link by name; None when there is none. Raises KernelError."""
    try:
        return rtlink.parse_link(sock.request(rtlink.get_link(name=name), "read link", name)[0])
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def pod_differences(plan: AttachPlan, pod: Link | None, sock: NetlinkSocket) -> list[str]:
    """The pod's own side."""
    if pod is None:
        return [f"interface {plan.ifname} is missing in the pod"]
    found = []
    if not pod.up:
        found.append(f"interface {plan.ifname} is down")
    if pod.mac != plan.mac:
        found.append(f"interface {plan.ifname} has MAC {show_mac(pod.mac)}, expected {show_mac(plan.mac)}")
    if plan.mtu and pod.mtu != plan.mtu:
        found.append(f"interface {plan.ifname} has MTU {pod.mtu}, expected {plan.mtu}")
    present = _addresses(sock, pod.ifindex)
    found += [
        f"address {address.text()} is missing on {plan.ifname}"
        for address in plan.addresses
        if (address.address, address.prefix_len) not in present
    ]
    if plan.routes:
        routes = [
            rtnl.parse_route(msg) for msg in sock.dump(rtnl.dump_routes(oif=pod.ifindex), "list routes")
        ]
        found += [
            f"route {route.text()} is missing in the pod"
            for route in plan.routes
            if not any(_is_route(route, info, pod.ifindex) for info in routes)
        ]
    return found


def _host(plan: AttachPlan, pod: Link | None, sock: NetlinkSocket) -> list[str]:
    """The host end and its shaping."""
    host = find(sock, plan.host)
    if host is None:
        return [f"host end {plan.host} of {plan.ifname} is missing"]
    found = []
    if not host.up:
        found.append(f"host end {plan.host} is down")
    if pod is not None and host.parent != pod.ifindex:
        found.append(f"host end {plan.host} is not the other end of {plan.ifname}")
    return found + tc.differences(sock, plan, host.ifindex)


def _port(plan: AttachPlan, port: BridgePort, sock: NetlinkSocket) -> list[str]:
    """The host end as a port of its bridge."""
    host, bridge = find(sock, plan.host), find(sock, port.bridge.name)
    if host is None:
        return []  # said already
    if bridge is None or host.master != bridge.ifindex:
        return [f"host end {plan.host} is not a port of bridge {port.bridge.name}"]
    return [
        f"bridge port {plan.host} has {option} {'on' if value else 'off'}, expected {'off' if value else 'on'}"
        for option, value, wanted in (
            ("hairpin mode", host.hairpin, port.hairpin),
            ("isolation", host.isolated, port.isolated),
        )
        if value != wanted
    ]


def _bridge(plan: BridgePlan, sock: NetlinkSocket) -> list[str]:
    """The bridge as a pod needs it."""
    bridge = find(sock, plan.name)
    if bridge is None:
        return [f"bridge {plan.name} is missing"]
    found = [] if bridge.up else [f"bridge {plan.name} is down"]
    device = plan.gateway_device
    leg = bridge if device == plan.name or not plan.gateways else find(sock, device)
    if leg is None:
        return [*found, f"gateway device {device} is missing"]
    return found + gateway_differences(sock, leg, plan.gateways) + forwarding_differences(plan.families)


def gateway_differences(sock: NetlinkSocket, leg: Link, gateways: Iterable[PodAddress]) -> list[str]:
    """Gateway addresses that a device lacks, in words."""
    present = _addresses(sock, leg.ifindex) if gateways else set()
    return [
        f"gateway address {gateway.text()} is missing on {leg.name}"
        for gateway in gateways
        if (gateway.address, gateway.prefix_len) not in present
    ]


def forwarding_differences(families: Iterable[Family]) -> list[str]:
    """Families that the node does not forward, in words."""
    return [
        f"{family.label} forwarding is off ({FORWARDING[family]})"
        for family in families
        if sysctl.get(FORWARDING[family]) == "0"
    ]


def _addresses(sock: NetlinkSocket, ifindex: int) -> set[tuple[bytes, int]]:
    listed = (rtnl.parse_address(msg) for msg in sock.dump(rtnl.dump_addresses(ifindex), "list addresses"))
    return {
        (info.address, info.prefix_len)
        for info in listed
        if info.ifindex == ifindex and not info.flags & (rtnl.IFA_F_TENTATIVE | rtnl.IFA_F_DADFAILED)
    }


def _is_route(wanted: PodRoute, found: rtnl.RouteInfo, ifindex: int) -> bool:
    """Whether a listed route is the planned one; a table is compared when one was asked for (sbr moves routes)."""
    return (
        found.oif == ifindex
        and found.destination == wanted.destination
        and found.prefix_len == wanted.prefix_len
        and found.gateway == (wanted.gateway or b"")
        and (not wanted.table or found.table == wanted.table)
        and (not wanted.priority or found.metric == wanted.priority)
        and (not wanted.mtu or found.mtu == wanted.mtu)
    )
