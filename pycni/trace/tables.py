"""Where the kernels' tables and what agents want part, and why: the verdict before anything was seen. Pure.

Life: the same packet was led through the wanted and the actual world, there and back. The first hop at which the two
differ is where to look; the actual walk's last hop names the kind of fault. What should end the packet (a policy, a
Service without endpoints) is a fault too for who asks "why does it not get through", but of the cluster's objects and
not of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pycni.model.family import show
from pycni.model.space import World
from pycni.trace.model import Fault, Hop
from pycni.trace.suspects import of_nodes, suspects
from pycni.trace.ways import Path

MEANT = frozenset({"policy-denied", "service-without-endpoints", "nobody-listens", "endpoint-dead"})
"""Kinds that follow from the cluster's objects and programs, not from damage."""
CERTAIN = frozenset({"address-duplicate", "proxy-arp", "lease-expired", "policy-not-enforced"})
"""Kinds that are wrong although a packet may get through."""
ELSEWHERE = frozenset({"another-way", "asymmetric-return", "gateway-wrong", "route-missing"})
"""Kinds of packets that get through by another way than wanted."""
_MISLED = frozenset({"nobody-answers", "another-way", "asymmetric-return", "lost"})
"""What a route with a wrong gateway looks like."""
_WITHOUT_LEASE = frozenset(
    {"no-route", "neighbour-missing", "fdb-missing", "peer-unknown", "another-way", "lost"}
)
"""What the expiry of a node's lease looks like at the others."""
COMMANDS = {
    "fdb-missing": "bridge fdb show dev {interface}",
    "neighbour-missing": "ip neigh show dev {interface}",
    "neighbour-wrong": "ip neigh show dev {interface}",
    "nobody-answers": "ip neigh show dev {interface}",
    "wireguard-peer-missing": "wg show {interface} allowed-ips",
    "forwarder-dead": "pycnictl status",
    "vtep-missing": "ip -d link show type vxlan",
    "vtep-mac-wrong": "ip -d link show dev {interface}",
    "peer-unknown": "bridge fdb show dev {interface}",
    "no-route": "ip route get {destination}",
    "route-blocks": "ip route get {destination}",
    "underlay-no-route": "ip route",
    "underlay-down": "ip link show dev {interface}",
    "device-down": "ip link show dev {interface}",
    "device-missing": "ip link",
    "port-down": "bridge -d link show dev {interface}",
    "port-blocked": "bridge -d link show dev {interface}",
    "port-isolated": "bridge -d link show dev {interface}",
    "hairpin-off": "bridge -d link show dev {interface}",
    "rp-filter": "sysctl net.ipv4.conf.{interface}.rp_filter net.ipv4.conf.all.rp_filter",
    "forwarding-off": "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
    "answer-unknown": "conntrack -L",
    "another-way": "ip route get {destination}",
    "asymmetric-return": "ip route get {destination}",
    "gateway-wrong": "ip route get {destination}",
    "route-missing": "ip route get {destination}",
    "port-missing": "bridge link show",
    "address-duplicate": "arping -D -I {interface} {destination}",
    "address-unusable": "ip addr show",
    "proxy-arp": "sysctl -a --pattern proxy_arp",
    "endpoint-dead": "ss -ltun",
    "policy-not-enforced": "pycnictl policy explain {source} {destination} {port}",
    "policy-denied": "pycnictl policy explain {source} {destination} {port}",
    "service-without-endpoints": "pycnictl services",
    "nobody-listens": "ss -ltun",
}


class Walks(NamedTuple):
    """One packet and its answer in both worlds; the answer is None where the packet did not arrive."""

    wanted: Path
    wanted_back: Path | None
    actual: Path
    actual_back: Path | None


Verdict = tuple[Fault | None, tuple[Fault, ...]]
"""The fault, and what else is not as it should be."""


def judge(world: World, walks: Walks) -> Verdict:
    """The fault that stops the packet, if one does, and what else is not as it should be on its way."""
    stopped = _stopped(walks.actual, walks.actual_back)
    found = _doubtful(walks) or stopped or _unenforced(world, walks) or _elsewhere(walks)
    found = _misled(walks, _unrouted(walks, found))
    found = _without_lease(world, walks, found)
    others = [item for item in _suspicions(world, walks) if found is None or item.kind != found.kind]
    return found, tuple(others)


def _stopped(there: Path, back: Path | None) -> Fault | None:
    """What ends the packet or its answer."""
    for path, before in ((there, 0), (back, len(there.hops))):
        if path is not None and not path.arrived and path.hops:
            last = path.hops[-1]
            if (last.component, last.action) == ("underlay", "sent"):
                continue  # it goes on to where nobody can look
            what = "the packet" if path is there else "the answer"
            return fault(
                last, f"{what} is {last.action}: {last.reason or last.detail}", before + len(path.hops) - 1
            )
    return None


def fault(hop: Hop, cause: str, index: int) -> Fault:
    """A fault at a hop."""
    command = COMMANDS.get(hop.kind, "").format(
        interface=hop.interface,
        source=show(hop.flow.source),
        destination=show(hop.flow.destination),
        port=hop.flow.destination_port or "icmp",
    )
    return Fault(
        kind=hop.kind or "lost",
        node=hop.node,
        space=hop.space,
        component=hop.component,
        interface=hop.interface,
        hop=index,
        cause=cause,
        command=command,
    )


def _doubtful(walks: Walks) -> Fault | None:
    """A hop that is wrong although the packet goes on."""
    hops = (*walks.actual.hops, *(walks.actual_back.hops if walks.actual_back is not None else ()))
    for index, hop in enumerate(hops):
        if hop.kind and hop.action not in {"dropped", "refused"}:
            return fault(hop, hop.reason, index)
    return None


def _unenforced(world: World, walks: Walks) -> Fault | None:
    """A policy denies what nobody stops, as its rules are not asked."""
    last = walks.wanted.hops[-1]
    if last.kind != "policy-denied" or not walks.actual.arrived:
        return None
    part = world.nodes.get(last.node)
    family = "iptables" if len(last.flow.source) == 4 else "ip6tables"
    name = f"net.bridge.bridge-nf-call-{family}"
    state = part.actual.get(last.space) if part is not None else None
    off = state is not None and state.sysctls.get(name, "1") == "0"
    why = f": {name} is 0, rules do not see what a bridge hands on" if off else ""
    cause = f"{last.detail}, and nobody stops it{why}"
    index = min(len(walks.wanted.hops), len(walks.actual.hops)) - 1
    at = fault(msgspec.structs.replace(last, kind="policy-not-enforced"), cause, index)
    return msgspec.structs.replace(at, command=f"sysctl {name}" if off else at.command)


def _elsewhere(walks: Walks) -> Fault | None:
    """Delivered, but by another way or to somebody else than wanted."""
    pairs = (
        (walks.wanted, walks.actual, 0, "another-way"),
        (walks.wanted_back, walks.actual_back, len(walks.actual.hops), "asymmetric-return"),
    )
    for wanted, actual, before, kind in pairs:
        if wanted is None or actual is None or not wanted.arrived:
            continue
        index = parting(wanted.hops, actual.hops)
        if index is not None:
            hop = actual.hops[min(index, len(actual.hops) - 1)]
            should = wanted.hops[min(index, len(wanted.hops) - 1)]
            cause = f"{brief(hop)} where {brief(should)} was to be expected"
            if kind == "asymmetric-return":
                cause = f"the answer comes by another way: {cause}"
            found = fault(msgspec.structs.replace(hop, kind=kind), cause, before)
            return msgspec.structs.replace(found, hop=before + min(index, len(actual.hops) - 1))
    return None


def _misled(walks: Walks, found: Fault | None) -> Fault | None:
    """A packet that got nowhere, or elsewhere, because a route is gone or has another gateway than wanted."""
    if found is None or found.kind not in _MISLED:
        return found
    pairs = ((walks.wanted, walks.actual, 0), (walks.wanted_back, walks.actual_back, len(walks.actual.hops)))
    for wanted, actual, before in pairs:
        if wanted is None or actual is None:
            continue
        for index, (one, two) in enumerate(zip(wanted.hops, actual.hops, strict=False)):
            kind = _other_route(one, two)
            if kind and before + index <= found.hop:
                cause = f"{two.detail}, where {one.detail} is wanted: {found.cause}"
                if kind == "route-missing":
                    cause = f"the route {one.detail} is missing, it goes by {two.detail}"
                return fault(msgspec.structs.replace(two, kind=kind), cause, before + index)
            if _place(one) != _place(two):
                break
    return found


def _unrouted(walks: Walks, found: Fault | None) -> Fault | None:
    """Which route is missing where there is none."""
    if found is None or found.kind != "no-route":
        return found
    back = found.hop >= len(walks.actual.hops)
    wanted = walks.wanted_back if back else walks.wanted
    index = found.hop - len(walks.actual.hops) * back
    if wanted is None or index >= len(wanted.hops):
        return found
    should = wanted.hops[index]
    if (should.node, should.space, should.component) != (found.node, found.space, "routing"):
        return found
    return msgspec.structs.replace(found, cause=f"{found.cause}: {should.detail} is missing")


def _other_route(wanted: Hop, actual: Hop) -> str:
    """What is wrong with a route, as a fault's kind; "" when it is another matter."""
    routing = all((hop.component, hop.action) == ("routing", "forwarded") for hop in (wanted, actual))
    if not routing or (wanted.node, wanted.space) != (actual.node, actual.space):
        return ""
    if _network(wanted) == _network(actual):
        return "gateway-wrong" if _gateway(wanted) != _gateway(actual) else ""
    return "route-missing" if _length(wanted) > _length(actual) else ""


def _network(hop: Hop) -> str:
    return hop.detail.partition(" ")[0]


def _length(hop: Hop) -> int:
    """Of a route's prefix."""
    network = _network(hop)
    if network == "default":
        return 0
    length = network.partition("/")[2]
    return int(length) if length.isdecimal() else 8 * len(hop.flow.destination)


def _gateway(hop: Hop) -> str:
    return hop.detail.partition(" via ")[2].partition(" ")[0]


def _without_lease(world: World, walks: Walks, found: Fault | None) -> Fault | None:
    """Ways to and from a node that is no member of the network any more."""
    hops = (*walks.actual.hops, *(walks.actual_back.hops if walks.actual_back is not None else ()))
    if found is not None and found.kind not in _WITHOUT_LEASE:
        return found
    target = world.owner(walks.actual.flow.destination)
    names = dict.fromkeys([*(hop.node for hop in hops), *([target[0]] if target is not None else [])])
    gone = [name for name in names if name in world.nodes and world.nodes[name].lease]
    if not gone or len(names) < 2:
        return found
    part = world.nodes[gone[0]]
    index = found.hop if found is not None else parting(walks.wanted.hops, walks.actual.hops)
    effect = found.cause if found is not None else "routes to it may go at any time"
    if index is None or not 0 <= index < len(hops):
        index = len(walks.actual.hops) - 1
    where = hops[index]
    if found is None and not walks.actual.arrived:
        effect = f"{brief(where)}"
    return Fault(
        kind="lease-expired", node=gone[0], component="lease", interface=where.interface,
        hop=index, cause=f"{gone[0]}: {part.lease}; {effect}",
        command="pycnictl status",
    )  # fmt: skip


def parting(wanted: Sequence[Hop], actual: Sequence[Hop]) -> int | None:
    """Index of the first hop at which two ways differ; None when they are one."""
    for index, (one, two) in enumerate(zip(wanted, actual, strict=False)):
        if _place(one) != _place(two):
            return index
    return None if len(wanted) == len(actual) else min(len(wanted), len(actual))


def _place(hop: Hop) -> tuple[str, str, str, str, str]:
    return hop.node, hop.space, hop.component, hop.interface, hop.action


def brief(hop: Hop) -> str:
    """A hop in one line."""
    where = f"{hop.node} {hop.space}".strip()
    return f"{hop.component} {hop.interface} of {where}: {hop.action} {hop.detail}".replace("  ", " ").strip()


def _suspicions(world: World, walks: Walks) -> list[Fault]:
    """What the states on the way say of themselves."""
    hops = [hop for path in walks if path is not None for hop in path.hops]
    found = list(of_nodes(world, hops))
    for path, answer in ((walks.actual, False), (walks.actual_back, True)):
        found += [
            item.fault for item in suspects(world, path.hops if path is not None else (), answer=answer)
        ]
    return list({(item.kind, item.node, item.cause): item for item in found}.values())
