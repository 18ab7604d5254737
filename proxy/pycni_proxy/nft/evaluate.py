"""What the compiled table does to a packet: the rules interpreted word by word. Pure.

Life: tests ask ``decide`` the same questions as the API's oracle and as real packets. Memory of affinity is not part
of the table, so a client without one is asked about: every target it could be given.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from pycni.model.family import Family
from pycni.model.service import UNTOUCHED, Decision, FrontendKey, NodeFacts, Packet, Target, Verdict
from pycni_proxy.nft.layout import (
    CHAINS,
    REFUSE,
    TARGETS,
    VERDICTS,
    VERSIONS,
    fixed_chains,
    frontend_bytes,
    id_place,
    index,
    named_by,
    networks,
    shard_of,
    target_parts,
)

_REJECTED = Decision(Verdict.REJECT, frozenset())
_DROPPED = Decision(Verdict.DROP, frozenset())


def decide(facts: NodeFacts, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
    """What becomes of a first packet. Addresses inside the node port networks are taken for addresses of this node."""
    family = Family.of_packed(packet.destination)
    if family not in facts.families:
        return UNTOUCHED
    return _Walk(facts, tables, packet, VERSIONS[family]).chain(f"services{VERSIONS[family]}")


class _Walk:
    """One packet on its way through the chains."""

    def __init__(
        self, facts: NodeFacts, tables: Mapping[str, Mapping[Any, Any]], packet: Packet, version: int
    ) -> None:
        self._tables, self._packet, self._version = tables, packet, version
        self._fixed = fixed_chains(facts)
        self._ranges = networks(facts, version)
        self._marked = False
        self._where = {
            "vip": frontend_bytes(self._key(packet.destination)),
            "port": frontend_bytes(self._key(b"")),
        }

    def chain(self, name: str) -> Decision:
        """The verdict of a chain (or of ``drop``)."""
        if name == "drop":
            return _DROPPED
        if name == REFUSE:
            return _REJECTED
        rules: Sequence[str] = self._fixed.get(name) or self._tables.get(CHAINS, {})[name]
        for rule in rules:
            found = self._rule(rule.split())
            if found is not None:
                return found
        return UNTOUCHED

    def _key(self, address: bytes) -> FrontendKey:
        family = next(family for family, number in VERSIONS.items() if number == self._version)
        return FrontendKey(family, address, self._packet.protocol, self._packet.port)

    def _rule(self, words: list[str]) -> Decision | None:
        """A decision, or None to go on with the next rule."""
        packet = self._packet
        match words:
            case ["serve", _, how]:
                return self._serve(how)
            case ["mark"]:
                self._marked = True
            case ["outside", _, "mark"]:
                self._marked |= not self._within("cluster", packet.source)
            case ["unknown", *_] if packet.destination in self._table("cluster_ips"):
                return _REJECTED
            case ["unallocated", *_] if self._within("service_networks", packet.destination):
                return _DROPPED
            case ["node", *middle, name] if packet.from_node:
                self._marked |= "mark" in middle
                return self.chain(name)
            case ["cluster", _, "goto", name] if self._within("cluster", packet.source):
                return self.chain(name)
            case ["from", net, "goto", name] if ipaddress.ip_address(packet.source) in ipaddress.ip_network(
                net
            ):
                return self.chain(name)
            case ["goto", name]:
                return self.chain(name)
            case ["drop"]:
                return _DROPPED
            case ["dnat" | "learn", _, _, where, _, count, offset, *_]:
                return self._translated(words[0] == "learn", where, int(count), int(offset))
        return None

    def _serve(self, how: str) -> Decision | None:
        destination = self._packet.destination
        if how != "vip" and not self._within("node_ports", destination):
            return None
        if how == "local" and ipaddress.ip_address(destination).is_loopback:
            return None
        named = self._table("services").get(self._where["vip" if how == "vip" else "port"])
        return None if named is None else self.chain(self._tables[VERDICTS][named_by(named)])

    def _translated(self, remembered: bool, where: str, count: int, offset: int) -> Decision:
        frontend, hairpin = self._where[where], self._table("hairpin")
        targets = self._tables[TARGETS[self._version][shard_of(frontend)]]
        chosen, rewritten = set(), set()
        for number in range(offset, offset + count):
            place = index(number)
            if remembered:
                place = id_place(self._table("ids")[place + frontend])
            address, port = target_parts(targets[place + frontend])
            target = Target(address, port, address + address in hairpin)
            chosen.add(target)
            if self._marked or (target.local and address == self._packet.source):
                rewritten.add(target)
        return Decision(None, frozenset(chosen), frozenset(rewritten))

    def _table(self, name: str) -> Mapping[Any, Any]:
        return self._tables.get(f"{name}{self._version}", {})

    def _within(self, name: str, address: bytes) -> bool:
        return any(first <= address <= last for first, last in self._ranges[name])
