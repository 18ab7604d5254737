"""What may have stopped a packet between two places: rules and programs of others, full tables, links too small. Pure.

Life: made from the states of the nodes on a way. A suspect lies before a hop; where a probe was seen before that hop
and not at it, the suspect is accused, the sure ones first. Where nothing vanished they are only told of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.model.space import NODE, ForeignHook, SpaceState, World
from pycni.trace import foreign
from pycni.trace.foreign import Met, Outcome
from pycni.trace.model import Fault, Hop
from pycni.trace.passages import Passage, passages

SURE, LIKELY, PERHAPS = 2, 1, 0
PROBE_BYTES = 84
"""About what a small probe's IP packet has."""
_TRACKED = frozenset({"prerouting", "output"})
"""Hooks at which connection tracking begins."""


class Suspect(NamedTuple):
    """Somebody to accuse."""

    fault: Fault
    weight: int
    before: int
    """Index of the hop a packet does not get to by it."""


def suspects(world: World, hops: Sequence[Hop], *, answer: bool, size: int = 0) -> list[Suspect]:
    """Of one way, in its order. ``answer``: of the way back. ``size``: of the IP packet, 0: small."""
    found: list[Suspect] = []
    for passage in passages(world, hops):
        state = _state(world, passage.node, passage.space)
        length = (size or PROBE_BYTES) + passage.size
        met = Met(passage.flow, passage.iif, passage.oif, length, answer)
        found += _by_rules(state, passage, met)
        found += _by_programs(state, passage)
        found += _by_tracking(state, passage, answer=answer)
    return [*found, *narrow(hops)]


def translators(world: World, hops: Sequence[Hop]) -> list[Suspect]:
    """Rules of others that translate addresses on a way."""
    found = []
    for passage in passages(world, hops):
        met = Met(passage.flow, passage.iif, passage.oif)
        for hook in _state(world, passage.node, passage.space).hooks:
            outcome = foreign.translation(hook, met) if _there(hook, passage) else None
            if outcome is not None:
                found.append(_of_rule(hook, outcome, passage, "foreign-nat"))
    return found


def _by_rules(state: SpaceState, passage: Passage, met: Met) -> Iterator[Suspect]:
    for hook in state.hooks:
        outcome = foreign.judge(hook, met) if _there(hook, passage) else None
        if outcome is not None:
            yield _of_rule(hook, outcome, passage, "foreign-rule")


def _of_rule(hook: ForeignHook, outcome: Outcome, passage: Passage, kind: str) -> Suspect:
    cause = f"{hook.family} {hook.table} {hook.chain} (hook {hook.hook}) of somebody else: {outcome.rule}"
    legacy = hook.family.endswith("legacy")
    program = "iptables-legacy" if hook.family.startswith("ip ") else "ip6tables-legacy"
    command = (
        f"{program} -t {hook.table} -S {hook.chain}"
        if legacy
        else f"nft list chain {hook.family} {hook.table} {hook.chain}"
    )
    fault = _fault(passage, kind, cause, command)
    return Suspect(fault, SURE if outcome.sure else PERHAPS, passage.before)


def _there(hook: ForeignHook, passage: Passage) -> bool:
    """Whether a chain hangs on the hook of a passage."""
    family = hook.family.split()[0]
    bridged = passage.hook.startswith("bridge ")
    if family == "bridge":
        return bridged and passage.hook == f"bridge {hook.hook}"
    if family == "arp" or bridged:
        return False
    if family == "netdev" or hook.hook in {"ingress", "egress"}:
        return hook.hook == passage.hook and hook.device in {passage.iif, passage.oif}
    return hook.hook == passage.hook


def _by_programs(state: SpaceState, passage: Passage) -> Iterator[Suspect]:
    device = passage.iif if passage.hook in {"xdp", "ingress"} else passage.oif
    for program in state.programs:
        if (program.where, program.device) != (passage.hook, device):
            continue
        cause = f"{program.words} on {device} ({program.where}) of somebody else"
        command = f"ip -d link show dev {device}"
        if program.where != "xdp":
            command = f"tc filter show dev {device} {program.where}"
        fault = _fault(passage, "foreign-program", cause, command)
        yield Suspect(fault, LIKELY if program.drops else PERHAPS, passage.before)


def _by_tracking(state: SpaceState, passage: Passage, *, answer: bool) -> Iterator[Suspect]:
    room = state.conntrack
    if not answer and passage.hook in _TRACKED and room.limit and room.count >= room.limit:
        cause = f"connection tracking is full: {room.count} of {room.limit}"
        command = "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"
        yield Suspect(_fault(passage, "conntrack-full", cause, command), SURE, passage.before)


def narrow(hops: Sequence[Hop]) -> Iterator[Suspect]:
    """Links that take less than what may be put on them, with no router in between that would tell the sender.

    RFC 7348 section 4.3 for overlays; of a veth pair the receiving end decides (is_skb_forwardable).
    """
    size, largest = 0, 0
    for index, hop in enumerate(hops):
        if hop.component == "routing" and hop.action == "forwarded":
            size = largest = hop.mtu if not largest else min(largest, hop.mtu)
        if not hop.mtu or not size or hop.component not in {"bridge", "interface", "underlay"}:
            continue
        # The device of an overlay takes what it may; what is around comes on top.
        needed = size + hop.overhead
        if needed > hop.mtu:
            around = f" + {hop.overhead} around them" if hop.overhead else ""
            cause = f"{hop.interface} takes {hop.mtu} bytes, packets have up to {size}{around}"
            yield Suspect(
                Fault(
                    kind="mtu-too-small", node=hop.node, space=hop.space, component=hop.component,
                    interface=hop.interface, cause=cause, command=f"ip link show dev {hop.interface}",
                ),
                SURE,
                index,
            )  # fmt: skip


def _fault(passage: Passage, kind: str, cause: str, command: str) -> Fault:
    return Fault(
        kind=kind,
        node=passage.node,
        space=passage.space,
        component="firewall",
        interface=passage.oif or passage.iif,
        cause=cause,
        command=command,
    )


def _state(world: World, node: str, space: str) -> SpaceState:
    part = world.nodes.get(node)
    return part.actual.get(space, SpaceState()) if part is not None else SpaceState()


def of_nodes(world: World, hops: Sequence[Hop]) -> Iterator[Fault]:
    """What is wrong with the nodes on a way as such."""
    for name in dict.fromkeys(hop.node for hop in hops):
        part = world.nodes[name]
        if name in world.silent:
            yield Fault(kind="node-silent", node=name, component="agent", cause=world.silent[name])
        if part.agent:
            yield Fault(kind="agent-dead", node=name, component="agent", cause=part.agent)
        room = part.actual.get(NODE, SpaceState()).conntrack
        if room.limit and room.count >= room.limit:
            cause = f"connection tracking is full: {room.count} of {room.limit}"
            command = "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"
            yield Fault(kind="conntrack-full", node=name, component="firewall", cause=cause, command=command)
