"""Where what should happen and what does part, and why. Pure.

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
from pycni.model.space import NODE, NodePart, SpaceState, World
from pycni.trace.match import Matched
from pycni.trace.model import Fault, Hop
from pycni.trace.ways import Path

MEANT = frozenset({"policy-denied", "service-without-endpoints", "nobody-listens"})
"""Kinds that follow from the cluster's objects and programs, not from damage."""
COMMANDS = {
    "fdb-missing": "bridge fdb show dev {interface}",
    "neighbour-missing": "ip neigh show dev {interface}",
    "neighbour-wrong": "ip neigh show dev {interface}",
    "nobody-answers": "ip neigh show dev {interface}",
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


def judge(world: World, walks: Walks) -> tuple[Fault | None, tuple[Fault, ...]]:
    """The fault that stops the packet, if one does, and what else is not as it should be on its way."""
    found = _stopped(walks.actual, walks.actual_back)
    if found is None:
        found = _elsewhere(walks)
    others = [item for item in _suspicions(world, walks) if found is None or item.kind != found.kind]
    return found, tuple(others)


def watched(
    world: World,
    found: tuple[Fault | None, tuple[Fault, ...]],
    there: Matched,
    back: Matched | None,
    *,
    answered: bool,
) -> tuple[Fault | None, tuple[Fault, ...]]:
    """The verdict once a probe was watched: what happened counts for more than what tables lead to.

    ``answered``: the asker got an answer. ``back`` None: answers of this kind cannot be told from others.
    """
    fault, others = found
    if answered:
        meant = fault is not None and fault.kind in MEANT
        return (fault, others) if meant else (None, ((fault, *others) if fault is not None else others))
    if fault is not None:
        return fault, others
    for matched, start, what in ((there, 0, "the packet"), (back, len(there.hops), "the answer")):
        if matched is not None and matched.lost is not None:
            return _vanished(world, matched, start, what, others)
    if back is not None:
        last = there.hops[-1]
        cause = "the packet was delivered and nobody answered"
        return Fault(
            kind="no-answer", node=last.node, space=last.space, component="socket", cause=cause
        ), others
    return None, others


def _vanished(
    world: World, matched: Matched, start: int, what: str, others: tuple[Fault, ...]
) -> tuple[Fault, tuple[Fault, ...]]:
    """Seen up to somewhere, and not where it should have been next: with the likeliest of what is wrong there."""
    index = matched.lost or 0
    hop = matched.hops[index]
    seen = next((item for item in reversed(matched.hops[:index]) if item.sight is not None), None)
    after = f"it was seen last at {_brief(seen)}" if seen is not None else "it was seen nowhere"
    places = [hop.node, *([seen.node] if seen is not None else [])]
    likely = [item for item in others if item.node in places and item.kind != "agent-dead"]
    silent = [name for name in places if name in world.silent]
    why = likely[0].cause if likely else (world.silent[silent[0]] if silent else "")
    cause = f"{what} vanishes before {_brief(hop)}; {after}" + (f"; likely: {why}" if why else "")
    kind = likely[0].kind if likely else "vanished"
    node = likely[0].node if likely else hop.node
    lost = Fault(
        kind=kind, node=node, space=hop.space, component=likely[0].component if likely else hop.component,
        interface=hop.interface, hop=start + index, cause=cause,
        command=likely[0].command if likely else "pycnictl trace --json",
    )  # fmt: skip
    return lost, tuple(item for item in others if item not in likely[:1])


def _stopped(there: Path, back: Path | None) -> Fault | None:
    """What ends the packet or its answer."""
    for path, before in ((there, 0), (back, len(there.hops))):
        if path is not None and not path.arrived and path.hops:
            last = path.hops[-1]
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


def _elsewhere(walks: Walks) -> Fault | None:
    """Delivered, but by another way or to somebody else than wanted."""
    pairs = ((walks.wanted, walks.actual, 0), (walks.wanted_back, walks.actual_back, len(walks.actual.hops)))
    for wanted, actual, before in pairs:
        if wanted is None or actual is None or not wanted.arrived:
            continue
        index = parting(wanted.hops, actual.hops)
        if index is not None:
            hop = actual.hops[min(index, len(actual.hops) - 1)]
            should = wanted.hops[min(index, len(wanted.hops) - 1)]
            cause = f"{_brief(hop)} where {_brief(should)} was to be expected"
            found = fault(hop, cause, before + min(index, len(actual.hops) - 1))
            return msgspec.structs.replace(found, kind="another-way")
    return None


def parting(wanted: Sequence[Hop], actual: Sequence[Hop]) -> int | None:
    """Index of the first hop at which two ways differ; None when they are one."""
    for index, (one, two) in enumerate(zip(wanted, actual, strict=False)):
        if _place(one) != _place(two):
            return index
    return None if len(wanted) == len(actual) else min(len(wanted), len(actual))


def _place(hop: Hop) -> tuple[str, str, str, str, str]:
    return hop.node, hop.space, hop.component, hop.interface, hop.action


def _brief(hop: Hop) -> str:
    where = f"{hop.node} {hop.space}".strip()
    return f"{hop.component} {hop.interface} of {where}: {hop.action} {hop.detail}".replace("  ", " ").strip()


def _suspicions(world: World, walks: Walks) -> list[Fault]:
    """What the states on the way say of themselves."""
    nodes = dict.fromkeys(hop.node for path in walks if path is not None for hop in path.hops)
    found: list[Fault] = []
    for name in nodes:
        part = world.nodes[name]
        state = part.actual.get(NODE)
        if state is None:
            continue
        if part.agent:
            found.append(Fault(kind="agent-dead", node=name, component="agent", cause=part.agent))
        for hook in state.hooks:
            if hook.verdicts or hook.policy != "accept":
                what = "; ".join(hook.verdicts) or f"policy {hook.policy}"
                cause = f"{hook.family} {hook.table} {hook.chain} (hook {hook.hook}) of somebody else: {what}"
                command = f"nft list chain {hook.family} {hook.table} {hook.chain}"
                found.append(
                    Fault(kind="foreign-rule", node=name, component="firewall", cause=cause, command=command)
                )
        room = state.conntrack
        if room.limit and room.count >= room.limit:
            cause = f"connection tracking is full: {room.count} of {room.limit}"
            command = "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"
            found.append(
                Fault(kind="conntrack-full", node=name, component="firewall", cause=cause, command=command)
            )
    return list(dict.fromkeys([*found, *_tight(world, walks)]))


def _tight(world: World, walks: Walks) -> list[Fault]:
    """Underlays that do not take what is put into them: nobody tells the sender of those (RFC 7348 section 4.3)."""
    found = []
    for path in (walks.actual, walks.actual_back):
        inside = 0
        for hop in path.hops if path is not None else ():
            if hop.component == "overlay":
                inside = hop.mtu
            if hop.component != "underlay" or not hop.overhead or not inside:
                continue
            sizes = [(hop.node, hop.interface, hop.mtu)]
            sizes += [
                (name, part.underlay, _mtu(part))
                for name, part in world.nodes.items()
                if name == _next(path, hop)
            ]
            for node, interface, mtu in sizes:
                if mtu and inside + hop.overhead > mtu:
                    cause = f"{interface} takes {mtu} bytes, the overlay's packets have up to {inside} + {hop.overhead}"
                    found.append(
                        Fault(
                            kind="mtu-too-small", node=node, component="underlay", interface=interface, cause=cause,
                            command=f"ip link show dev {interface}",
                        )
                    )  # fmt: skip
    return found


def _next(path: Path | None, hop: Hop) -> str:
    """The node behind a hop."""
    hops = path.hops if path is not None else ()
    index = hops.index(hop)
    return hops[index + 1].node if index + 1 < len(hops) else ""


def _mtu(part: NodePart) -> int:
    link = part.actual.get(NODE, SpaceState()).links.get(part.underlay)
    return link.mtu if link is not None else 0
