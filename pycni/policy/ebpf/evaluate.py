"""What programs make of a packet and the maps: the look-ups of ``layout`` word by word. Pure.

Life: tests ask ``decide`` the same questions as the API's oracle; the driver asks both functions about the kernel's
own maps. ``judge_end`` is the twin of the function in C; ``judge`` adds what has to be certain before it is asked.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple, TypeAlias

from pycni.model.policy import Direction
from pycni.policy.base import Decision, Packet
from pycni.policy.ebpf.classes import RuleName
from pycni.policy.ebpf.layout import (
    ALLOW,
    BLOCKS,
    CLOSED,
    DENY,
    NONE,
    NOTHING,
    OWN,
    PAIRS,
    PEERS,
    POLICIES,
    PORTS,
    SUBJECTS,
    PeerRules,
    Said,
    SubjectRow,
    block_key,
    pack_address,
    pair_key,
    port_key,
    subject_key,
)

Maps: TypeAlias = Mapping[str, Mapping[bytes, bytes]]

STACK = NOTHING
"""As an action: the data plane below has to say."""
_ALLOWED = Decision(True)
_UNKNOWN_POD = "pods not known yet"


class Verdict(NamedTuple):
    """What programs do, at one end or at both."""

    action: int
    """ALLOW, DENY or STACK."""
    rule: bytes = NONE
    """Which rule decided; NONE: none did."""
    why: str = ""
    """For STACK: ``itself``, ``closed``, ``left``, ``own``, ``unknown``."""
    direction: Direction | None = None
    """Where it was denied, or left."""


def judge(maps: Maps, packet: Packet, pods: Container[bytes] = frozenset()) -> Verdict:
    """What programs do with a connection's first packet. ``pods``: known ones that no policy is about."""
    own = maps[OWN]
    ends = packet.source, packet.destination
    if packet.local or any(pack_address(end) in own for end in ends):
        return Verdict(STACK, why="own")
    for end in ends:
        sides = (subject_key(end, direction) in maps[SUBJECTS] for direction in Direction)
        if pack_address(end) not in maps[PEERS] and not any(sides) and end not in pods:
            return Verdict(STACK, why="unknown")
    found = Verdict(ALLOW)
    for direction in (Direction.EGRESS, Direction.INGRESS):
        found = judge_end(maps, packet, direction)
        if found.action != ALLOW:
            return found._replace(direction=direction)
    return found


def decide(maps: Maps, names: Mapping[bytes, RuleName], packet: Packet) -> Decision | None:
    """What the maps mean for any first packet, certain or not; None: rules did not fit into them.

    ``names``: of the rules; others (read back from a kernel that is not up to date) go by their numbers.
    """
    if packet.local or any(pack_address(end) in maps[OWN] for end in packet[:2]):
        return _ALLOWED
    for direction in (Direction.EGRESS, Direction.INGRESS):
        found, side = judge_end(maps, packet, direction), direction.name.lower()
        if found.why == "left":
            return None
        if found.why == "closed":
            return Decision(False, (_UNKNOWN_POD,), side)
        if found.action == DENY:
            name = names.get(found.rule)
            return Decision(False, (f"rule {found.rule.hex()}",) if name is None else name.policies, side)
    return _ALLOWED


def judge_end(maps: Maps, packet: Packet, direction: Direction) -> Verdict:
    """What the policies of one end say: of the source at egress, of the destination at ingress."""
    end, other = packet.source, packet.destination
    if direction is Direction.INGRESS:
        end, other = other, end
    raw = maps[SUBJECTS].get(subject_key(end, direction))
    if raw is None:
        return Verdict(ALLOW)
    subject = SubjectRow.unpack(raw)
    if end == other or _same_pod(maps, subject, other, direction):
        return Verdict(STACK, why="itself")
    if subject.flags:
        return Verdict(STACK, why="closed" if subject.flags & CLOSED else "left")
    identity = maps[PEERS].get(pack_address(other), NONE)
    for place, tier in enumerate(subject.tiers):
        said = Said()
        if tier.pairs != NONE:
            for who in {identity, NONE}:
                said = _lower(said, _said(maps, maps[PAIRS].get(pair_key(tier.pairs, who)), packet))
        if tier.blocks != NONE:
            said = _lower(said, _said(maps, _longest_block(maps, tier.blocks, other), packet))
        if said.action in {ALLOW, DENY}:
            return Verdict(said.action, said.rule)
        if place == POLICIES and subject.isolated != NONE and said.action == NOTHING:
            return Verdict(DENY, subject.isolated)
    return Verdict(ALLOW)


def _same_pod(maps: Maps, subject: SubjectRow, other: bytes, direction: Direction) -> bool:
    if subject.pod == NONE:
        return False
    raw = maps[SUBJECTS].get(subject_key(other, direction))
    return raw is not None and SubjectRow.unpack(raw).pod == subject.pod


def _said(maps: Maps, raw: bytes | None, packet: Packet) -> Said:
    """What a row of pairs or blocks says to a packet's port."""
    if raw is None:
        return Said()
    rules = PeerRules.unpack(raw)
    if rules.ports != NONE:
        found = _longest_port(maps, rules.ports, packet)
        if found.action != NOTHING:
            return found
    return rules.rest


def _lower(one: Said, other: Said) -> Said:
    if one.action == NOTHING:
        return other
    return one if other.action == NOTHING or one.rank <= other.rank else other


def _longest_port(maps: Maps, ports: bytes, packet: Packet) -> Said:
    table = maps[PORTS]
    for length in range(16, -1, -1):
        value = packet.port >> (16 - length) << (16 - length)
        raw = table.get(port_key(ports, packet.protocol, value, length))
        if raw is not None:
            return Said.unpack(raw)
    return Said()


def _longest_block(maps: Maps, blocks: bytes, address: bytes) -> bytes | None:
    table = maps[BLOCKS]
    size, number = len(address), int.from_bytes(address, "big")
    for free in range(8 * size + 1):
        part = (number >> free << free).to_bytes(size, "big")
        raw = table.get(block_key(blocks, part, 8 * size - free))
        if raw is not None:
            return raw
    return None
