"""What this node is to a trace: its own namespace and its pods', as they are and as this agent wants them.

Life: ``Known`` is put together on the event loop from what the parts know, at no cost; ``read`` then looks at the
kernel on a thread. With many pods only those a question is about are looked at for certain, others as long as there is
time: a trace waits for this on every node at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from pycni.agent.cni_records import recorded_plan
from pycni.agent.service_facts import node_facts
from pycni.agent.wireguard_key import SOCKETS
from pycni.attach.plan import AttachPlan, BridgePort
from pycni.errors import KernelError, PycniError
from pycni.kernel import netns, spacestate
from pycni.model.endpoint import Endpoint
from pycni.model.family import FAMILIES, show_mac
from pycni.model.kube import ENDPOINT_SLICE
from pycni.model.kube import NODE as NODE_KIND
from pycni.model.space import NODE, NodePart, PodPlace, SpaceState
from pycni.trace.cluster import NodeTerms
from pycni.trace.pick import Ends, concerned, pick
from pycni.trace.wanted import WantedPod, membership, node_space, pod_space
from pycni.tracing.speech import Objects

if TYPE_CHECKING:
    from pycni.agent.network_plan import Plan
    from pycni.agent.settings import Settings
    from pycni.model.fabric import FabricState
    from pycni.model.node import Underlay
    from pycni.model.podnet import PodNetwork
    from pycni.store import Snapshot

T = TypeVar("T")
LEASE = "lease"
"""Kind of leases in the store."""
MORE_S = 0.05
"""How long pods are read that nobody asked for."""


class Known(NamedTuple):
    """What the agent knows at one moment."""

    settings: Settings
    objects: Snapshot
    reason: str = ""
    """Why this agent is not ready; "" when it is."""
    plan: Plan | None = None
    """None without a network component, and before its first plan."""
    desired: FabricState | None = None
    podnet: PodNetwork | None = None
    endpoints: tuple[Endpoint, ...] = ()
    detect: Callable[[], Underlay | None] = lambda: None
    """The external interface where no plan tells (blocking)."""


class Attachment(NamedTuple):
    """A pod's interface in the cluster's network."""

    place: PodPlace
    endpoint: Endpoint
    want: WantedPod | None
    """None: its record gives no plan."""


class Read(NamedTuple):
    """What a question is answered with."""

    part: NodePart
    terms: NodeTerms
    objects: Objects
    unread: int


def read(known: Known, asked: Ends, pods: Sequence[str] = ()) -> Read:
    """Look at this node (blocking). ``pods``: names of further pods to look at. Raises KernelError."""
    began = time.monotonic()
    underlay = known.plan.node.underlay if known.plan is not None else known.detect()
    objects = pick(known.objects, asked)
    there = attachments(known)
    places = [item.place for item in there]
    first = {item.name for item in concerned(places, asked, objects[ENDPOINT_SLICE])} | set(pods)
    sockets = os.path.join(known.settings.state_dir, SOCKETS)
    actual = {NODE: spacestate.read(wireguard=sockets)}
    unread = 0
    for item in sorted(there, key=lambda item: item.place.name not in first):
        if item.place.name not in first and time.monotonic() - began > MORE_S:
            unread += 1
            continue
        try:
            actual[item.place.name] = inside(item.endpoint, spacestate.read)
        except KernelError:
            unread += 1  # it has just gone, or its record is from before a restart
    addresses = _addresses(known, underlay)
    part = NodePart(
        name=known.settings.node_name,
        addresses=addresses,
        underlay=underlay.name if underlay is not None else "",
        backend=known.plan.conf.backend.type if known.plan is not None else "",
        actual=actual,
        wanted=_wanted(known, there, actual),
        pods=tuple(places),
        agent=f"the agent is not ready: {known.reason}" if known.reason else "",
        lease=membership(known.objects.of(LEASE), addresses) if LEASE in known.objects.listed else "",
    )
    return Read(part, _terms(known, underlay), objects, unread)


def _bridged(settings: Settings) -> bool:
    """Whether rules of nftables have to see what bridges hand on."""
    judges = "policy" in settings.components and settings.policy == "nftables"
    return judges or ("proxy" in settings.components and settings.proxy_mode != "ebpf")


def attachments(known: Known) -> list[Attachment]:
    """One per pod of this node that is in the cluster's network, by name."""
    found: dict[str, Attachment] = {}
    networks = known.podnet.networks if known.podnet is not None else ()
    for endpoint in sorted(known.endpoints, key=lambda item: (item.ifname, item.owner)):
        inside_it = any(item.ip in net for item in endpoint.addresses for net in networks)
        if endpoint.state == "ready" and (inside_it or not networks):
            item = _attachment(endpoint, known)
            found.setdefault(item.place.name, item)
    return [found[name] for name in sorted(found)]


def pod_name(endpoint: Endpoint) -> str:
    """``namespace/name``; of what is no pod of Kubernetes its container's id."""
    if endpoint.pod_name:
        return f"{endpoint.pod_namespace or 'default'}/{endpoint.pod_name}"
    return f"container/{endpoint.container_id[:12]}"


def inside(endpoint: Endpoint, function: Callable[[], T]) -> T:
    """Run something in a pod's namespace. Raises KernelError when it is not there, or another one by now."""
    fd = netns.open_netns(endpoint.netns)
    try:
        if endpoint.netns_inode and netns.inode(fd) != endpoint.netns_inode:
            raise KernelError(2, "enter network namespace", endpoint.netns, "it is another one than it was")
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def _attachment(endpoint: Endpoint, known: Known) -> Attachment:
    name = pod_name(endpoint)
    try:
        plan = recorded_plan(endpoint, known.podnet)
        if endpoint.mac:
            plan = msgspec.structs.replace(plan, mac=bytes.fromhex(endpoint.mac.replace(":", "")))
    except (PycniError, ValueError):
        plan = None
    bridge = plan.link.bridge.name if plan is not None and isinstance(plan.link, BridgePort) else ""
    place = PodPlace(
        name=name,
        node=known.settings.node_name,
        addresses=tuple(item.ip.packed for item in endpoint.addresses),
        interface=endpoint.ifname,
        host_interface=endpoint.host_ifname,
        bridge=bridge,
    )
    want = WantedPod(name, endpoint.host_ifname, bridge, _result(plan)) if plan is not None else None
    return Attachment(place, endpoint, want)


def _result(plan: AttachPlan) -> Mapping[str, object]:
    """What ADD answered, as far as ``wanted`` reads it."""
    return {
        "interfaces": [{"name": plan.ifname, "mac": show_mac(plan.mac), "mtu": plan.mtu, "sandbox": "pod"}],
        "ips": [
            {"address": str(address), **({"gateway": str(gateway)} if gateway is not None else {})}
            for address, gateway in plan.reported_ips
        ],
        "routes": [
            {"dst": str(route.dst), **({"gw": str(route.gw)} if route.gw is not None else {})}
            for route in plan.reported_routes
        ],
    }


def _addresses(known: Known, underlay: Underlay | None) -> tuple[bytes, ...]:
    """By which peers reach this node, IPv4 first."""
    node = known.plan.node if known.plan is not None else None
    public = (node.public_ip, node.public_ipv6) if node is not None else ()
    own = [item.packed for item in public if item is not None]
    for family in FAMILIES:
        item = underlay.of(family) if underlay is not None else None
        if item is not None:
            own.append(item.ip.packed)
    return tuple(dict.fromkeys(own))


def _wanted(
    known: Known, there: Sequence[Attachment], actual: Mapping[str, SpaceState]
) -> dict[str, SpaceState]:
    """Nothing while this agent has no plan of its own."""
    if known.plan is None or known.desired is None:
        return {}
    conf = known.plan.conf
    networks = [net for family in conf.families if (net := conf.of(family)) is not None]
    pods = [item.want for item in there if item.want is not None]
    found = {NODE: node_space(actual[NODE], known.desired, pods, networks, bridged=_bridged(known.settings))}
    for pod in pods:
        if pod.space in actual:
            found[pod.space] = pod_space(actual[pod.space], pod)
    return found


def _terms(known: Known, underlay: Underlay | None) -> NodeTerms:
    settings = known.settings
    facts = None
    if "proxy" in settings.components:
        node = known.objects.of(NODE_KIND).get(settings.node_name)
        facts = node_facts(settings, node, underlay, known.podnet)
    masquerades = known.plan.firewall.masquerade if known.plan is not None else ()
    return NodeTerms(facts, "policy" in settings.components, tuple(masquerades))
