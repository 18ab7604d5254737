"""Attachments of this node's pods as they are wanted and as they are, line by line.

Life: ``sections`` compiles every attachment again from its record, as CHECK does, and looks into the pod's namespace
and at the node's end. Blocking; any thread in the node's namespace. Nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import msgspec

from pycni.agent.cni_records import recorded_plan
from pycni.agent.status_dump import section
from pycni.agent.status_ipam import Attached
from pycni.agent.status_model import Section
from pycni.attach.plan import AttachPlan, BridgePort, RoutedLeg
from pycni.errors import KernelError, PycniError
from pycni.kernel import netns, spacestate
from pycni.model.endpoint import Endpoint
from pycni.model.family import Family, show, show_mac
from pycni.model.space import RouteState, SpaceState

_KERNEL = 2
"""RTPROT_KERNEL: routes that follow from addresses."""
_LOCAL = 255
_DEFAULT_METRIC6 = 1024


def sections(side: Attached) -> Sequence[Section]:
    """One per attachment, by pod, and their nft tables. Raises KernelError when the node cannot be looked at."""
    host = spacestate.read(firewall=False, devices=())
    endpoints = sorted(side.endpoints.all(), key=lambda item: (_name(item), item.owner))
    found = [_section(side, endpoint, host) for endpoint in endpoints]
    plans = []
    for endpoint in endpoints:
        # Of an attachment on its way, and of one whose record is told as damaged, nothing is wanted here.
        with contextlib.suppress(PycniError, ValueError):
            if endpoint.state == "ready":
                plans.append(_plan(side, endpoint))
    wanted, there = side.pods.tables(plans)
    if wanted or there:
        found.append(section("pods", "tables inet pycni_pods, bridge pycni_spoof", wanted, there))
    return found


def _plan(side: Attached, endpoint: Endpoint) -> AttachPlan:
    """What the record asks for. Raises PycniError, ValueError."""
    plan = recorded_plan(endpoint, side.podnet())
    if endpoint.mac:
        return msgspec.structs.replace(plan, mac=bytes.fromhex(endpoint.mac.replace(":", "")))
    return plan


def _name(endpoint: Endpoint) -> str:
    pod = f"{endpoint.pod_namespace}/{endpoint.pod_name}" if endpoint.pod_name else endpoint.container_id
    return f"{pod} {endpoint.ifname}"


def _section(side: Attached, endpoint: Endpoint, host: SpaceState) -> Section:
    name = f"{_name(endpoint)} ({endpoint.network})"
    notes = [f"the attachment is {endpoint.state}"] if endpoint.state != "ready" else []
    try:
        plan = _plan(side, endpoint)
    except (PycniError, ValueError) as error:
        return Section(part="pods", name=name, notes=(*notes, f"its record gives no plan: {error}"))
    there: list[str] = []
    try:
        fd = netns.open_netns(endpoint.netns)
        try:
            if endpoint.netns_inode and netns.inode(fd) != endpoint.netns_inode:
                notes.append(f"{endpoint.netns} is another network namespace than it was")
            else:
                pod = netns.run_in(fd, lambda: spacestate.read(firewall=False, devices=()))
                there = [*inside(plan, pod), *outside(plan, host)]
                notes += side.pods.check(plan, fd)
        finally:
            os.close(fd)
    except KernelError as error:
        notes.append(str(error))
    return section("pods", name, wanted(plan), there, notes)


def wanted(plan: AttachPlan) -> list[str]:
    """What a plan asks for, in the notation of ip(8). The node's end says so."""
    words = [f"link {plan.ifname} address {show_mac(plan.mac)}"]
    words += [f"link {plan.ifname} mtu {plan.mtu}"] if plan.mtu else []
    lines = [*words, f"link {plan.ifname} up"]
    lines += [f"addr {address.text()} dev {plan.ifname}" for address in plan.addresses]
    lines += [f"route {route._replace(advmss=0).text()} dev {plan.ifname}" for route in plan.routes]
    if isinstance(plan.link, BridgePort):
        lines.append(f"node: link {plan.host} master {plan.link.bridge.name}")
        lines += [f"node: link {plan.host} isolated"] if plan.link.isolated else []
        lines += [f"node: link {plan.host} hairpin"] if plan.link.hairpin else []
    if isinstance(plan.link, BridgePort | RoutedLeg):
        lines.append(f"node: link {plan.host} up")
    if isinstance(plan.link, RoutedLeg):
        lines += [f"node: route {show(address.address)} dev {plan.host}" for address in plan.addresses]
    return lines


def inside(plan: AttachPlan, pod: SpaceState) -> Iterator[str]:
    """The pod's own side, in the same notation."""
    link = pod.links.get(plan.ifname)
    if link is None:
        return
    yield f"link {link.name} address {show_mac(link.mac)}"
    if plan.mtu:
        yield f"link {link.name} mtu {link.mtu}"
    if link.up:
        yield f"link {link.name} up"
    asked = {address.address for address in plan.addresses}
    for item in pod.of(plan.ifname):
        if item.address in asked or not ip_address(item.address).is_link_local:
            trouble = f" {item.trouble}" if item.trouble else ""
            yield f"addr {show(item.address)}/{item.prefix_len} dev {link.name}{trouble}"
    asked_routes = {(route.destination, route.prefix_len) for route in plan.routes}
    for route in pod.routes:
        own = (route.destination, route.prefix_len) in asked_routes
        if route.device == plan.ifname and (own or _foreign(route)):
            yield f"route {_text(route)} dev {link.name}"


def _foreign(route: RouteState) -> bool:
    """Whether a route that is not planned was put there by somebody."""
    multicast = route.kind == "multicast"
    return not (route.protocol == _KERNEL or route.table == _LOCAL or multicast)


def _text(route: RouteState) -> str:
    words = [f"{show(route.destination)}/{route.prefix_len}" if route.prefix_len else "default"]
    if route.gateway:
        words += ["via", show(route.gateway)]
    if route.table != 254:
        words += ["table", str(route.table)]
    if route.mtu:
        words += ["mtu", str(route.mtu)]
    default = _DEFAULT_METRIC6 if Family.of_packed(route.destination) is Family.V6 else 0
    if route.metric not in {0, default}:
        words += ["metric", str(route.metric)]
    return " ".join(words)


def outside(plan: AttachPlan, host: SpaceState) -> Iterator[str]:
    """The node's end."""
    if not isinstance(plan.link, BridgePort | RoutedLeg):
        return
    link = host.links.get(plan.host)
    if link is None:
        return
    if link.master:
        yield f"node: link {link.name} master {link.master}"
    if link.isolated:
        yield f"node: link {link.name} isolated"
    if link.hairpin:
        yield f"node: link {link.name} hairpin"
    if link.up:
        yield f"node: link {link.name} up"
    if isinstance(plan.link, RoutedLeg):
        for route in host.routes:
            if route.device == plan.host and route.protocol != _KERNEL and route.table != _LOCAL:
                yield f"node: route {show(route.destination)} dev {link.name}"
