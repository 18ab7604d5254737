"""What ADD reports: interfaces in the order of the reference bridge and ptp, the pod's addresses, routes and DNS.

With a result of earlier plugins in the chain, theirs come first and ours follow (CNI specification 1.1.0,
section 2 "ADD": a plugin outputs everything from prevResult with its own changes).
"""

from __future__ import annotations

from typing import NamedTuple

from pycni.attach.plan import AttachPlan, BridgePort
from pycni.model.cni import CniResult, Dns, InterfaceResult, IpResult, PluginConf
from pycni.model.family import show_mac


class AttachedLinks(NamedTuple):
    """The devices as the kernel has them after ADD."""

    host_ifname: str
    host_ifindex: int
    host_mac: bytes
    pod_ifindex: int
    pod_mac: bytes
    mtu: int
    """Of the pod's interface, bytes."""
    bridge_mac: bytes = b""
    """Of the bridge, where there is one."""


def result(plan: AttachPlan, links: AttachedLinks, conf: PluginConf, netns: str) -> CniResult:
    """The result of ADD; ``netns`` is the sandbox path as the runtime gave it."""
    before = conf.prev_result or CniResult()
    offset = len(before.interfaces)
    pod = InterfaceResult(name=plan.ifname, mac=show_mac(links.pod_mac), mtu=links.mtu, sandbox=netns)
    interfaces = (
        *_shared(plan, links),
        InterfaceResult(name=links.host_ifname, mac=show_mac(links.host_mac)),
        pod,
    )
    ips = tuple(
        IpResult(address=address, gateway=gateway, interface=offset + len(interfaces) - 1)
        for address, gateway in plan.reported_ips
    )
    return CniResult(
        interfaces=before.interfaces + interfaces,
        ips=before.ips + ips,
        routes=before.routes + plan.reported_routes,
        dns=conf.dns if conf.dns != Dns() else before.dns,
    )


def _shared(plan: AttachPlan, links: AttachedLinks) -> tuple[InterfaceResult, ...]:
    """The node's device that pods share."""
    if not isinstance(plan.link, BridgePort):
        return ()
    return (InterfaceResult(name=plan.link.bridge.name, mac=show_mac(links.bridge_mac)),)
