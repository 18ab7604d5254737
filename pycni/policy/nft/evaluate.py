"""What the compiled table does to a packet: the rules interpreted word by word. Pure.

Life: tests ask ``decide`` the same questions as the API's oracle and as real packets; ``explain`` asks it whether the
kernel's tables agree with the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycni.policy.base import Decision, Packet
from pycni.policy.nft.layout import (
    CHAINS,
    CLASSES,
    ID,
    PORTS,
    SIDES,
    blocks,
    fixed_chains,
    group_id,
    named_by,
    named_id,
    port_bytes,
    service_bytes,
    verdicts,
    version_of,
)
from pycni.policy.nft.rules import Condition, condition

_ALLOWED = Decision(True)
_FIXED = fixed_chains()


def decide(tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
    """What becomes of a first packet that is neither judged, neighbour discovery nor an error about a connection."""
    for side in SIDES.values():
        walk = _Walk(tables, packet, side)
        if walk.chain(side) == "drop":
            return Decision(False, tuple(walk.counted), side)
    return _ALLOWED


class _Walk:
    """One packet on its way through the chains of one direction."""

    def __init__(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet, side: str) -> None:
        self._tables, self._packet, self._side = tables, packet, side
        self._version = version_of(packet.source)
        self._end = packet.source if side == "egress" else packet.destination
        self._other = packet.destination if side == "egress" else packet.source
        self.counted: list[str] = []
        """Who has counted the packet."""

    def chain(self, name: str) -> str:
        """``accept``, ``drop``, or "" when the chain ends."""
        if name in {"accept", "drop"}:
            return name
        rules = _FIXED.get(name)
        for rule in self._tables[CHAINS][name] if rules is None else rules:
            if rule.startswith("if "):
                found = condition(rule)
                if self._matches(found):
                    return self._final(found.verdict)
                continue
            verdict = self._rule(rule.split(), rule)
            if verdict:
                return verdict
        return ""

    def _final(self, name: str) -> str:
        """Going somewhere does not come back: where that ends the base chain's policy accepts."""
        return self.chain(name) or "accept"

    def _rule(self, words: list[str], rule: str) -> str:
        packet, version = self._packet, str(self._version)
        match words:
            case ["local", "accept"] if packet.local:
                return "accept"
            case ["family", number, "goto", name] if number == version:
                return self._final(name)
            case ["own", _, end, "accept"] if getattr(packet, end) in self._table("own"):
                return "accept"
            case ["self", *_] if packet.source + packet.destination in self._table("self"):
                return "accept"
            case ["judge", _, side]:
                named = self._table(f"judged_{side}").get(self._end)
                chains = self._tables[verdicts(side, self._version)]
                return "" if named is None else self.chain(chains[named_by(named)])
            case ["closed", _, side, "goto", name] if self._end in self._table(f"closed_{side}"):
                return self._final(name)
            case ["jump", name]:
                return self.chain(name)
            case ["goto", name]:
                return self._final(name)
            case ["accept" | "drop" as found]:
                return found
            case ["count", side, *_]:
                self.counted.append(rule.removeprefix(f"count {side} "))
        return ""

    def _matches(self, found: Condition) -> bool:
        packet = self._packet
        if found.version != self._version:
            return False
        service = service_bytes(packet.protocol, packet.port)
        if found.by_port:
            row = self._range(CLASSES, bytes.fromhex(found.by_port) + service)
            return row is not None and self._is(found, named_by(self._tables[CLASSES][row]))
        if found.ports and self._range(PORTS, bytes.fromhex(found.ports) + service) is None:
            return False
        if found.named is not None:
            key = packet.destination + port_bytes(packet.port) + named_id(found.named)
            if packet.protocol != found.named[0] or key not in self._table("named"):
                return False
        name = bytes.fromhex(found.block) if found.block else group_id(found.group)
        return not (found.block or found.group) or self._is(found, name)

    def _is(self, found: Condition, name: bytes) -> bool:
        """Whether the other end is in these blocks or in this group."""
        if found.block:
            return self._range(blocks(self._version), name + self._other) is not None
        return self._other + name in self._table("groups")

    def _range(self, name: str, key: bytes) -> bytes | None:
        """The row whose range has a key."""
        size = len(key)
        rows = (row for row in self._tables.get(name, {}) if row.startswith(key[:ID]))
        return next((row for row in rows if row[:size] <= key <= row[size:]), None)

    def _table(self, name: str) -> Mapping[Any, Any]:
        return self._tables.get(f"{name}{self._version}", {})
