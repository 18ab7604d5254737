"""What compiled tables do to the first packet of a connection: iptables rules and IPVS, read as the kernel reads them.

The rules are interpreted from their text, with the sets' members, in the order of the kernel's hooks; so the evaluator
is about what is programmed, not about what was meant. Only what ``rules`` writes is understood; anything else raises
ValueError. Reads the tables whole, so it is for single questions.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES
from pycni.model.service import UNTOUCHED, Decision, NodeFacts, Packet, Target, Verdict
from pycni.view.service_decide import serves_node_ports
from pycni.wire.ipset import BITMAP_PORT, HASH_IP, HASH_IP_PORT_IP, HASH_IP_PORT_NET, HASH_NET_PORT, Member
from pycni.wire.ipvs import ServiceKey
from pycni_proxy.ipvs import names

Tables = Mapping[str, Mapping[Any, Any]]


class _State(NamedTuple):
    """A packet on its way: what rules look at and change."""

    source: bytes
    destination: bytes
    port: int
    lo: bool = False
    mark: int = 0
    connmark: int = 0


def evaluate(tables: Tables, facts: NodeFacts, packet: Packet) -> Decision:
    """Send a packet through the tables."""
    walk = _Walk(tables, facts, packet)
    own_address = packet.from_node and packet.destination in tables["vips"]
    # The node reaches its virtual addresses from these addresses themselves, unless a program chose another one.
    sources = (packet.source, packet.destination) if own_address else (packet.source,)
    decisions = [walk.decide(source) for source in sources]
    return next((found for found in decisions if found.verdict is not Verdict.DROP), decisions[0])


class _Walk:
    def __init__(self, tables: Tables, facts: NodeFacts, packet: Packet) -> None:
        self._tables = tables
        self._facts = facts
        self._packet = packet
        self._family = Family.of_packed(packet.destination)
        self._accepted = False
        self._rules: dict[str, dict[str, list[list[str]]]] = {
            table: _chains(tables["rules"].get((self._family, table), ()))
            for table in ("mangle", "nat", "filter")
        }

    def decide(self, source: bytes) -> Decision:
        """The way of a packet from this node's hooks to its targets."""
        packet = self._packet
        state = _State(source, packet.destination, packet.port)
        first = "OUTPUT" if packet.from_node else "PREROUTING"
        for table in ("mangle", "nat"):
            end, state = self._hook(table, first, state)
            if end is not None:
                return Decision(end, frozenset())
        if packet.from_node and (service := self._service(state)):
            return self._to(service, state)
        if not self._is_local(state):
            return UNTOUCHED
        if packet.from_node:
            end, state = self._hook("mangle", "PREROUTING", state._replace(lo=True, mark=0))
            if end is not None:
                return Decision(end, frozenset())
        end, state = self._hook("filter", "INPUT", state)
        if end is not None:
            return Decision(end, frozenset())
        found = self._service(state)
        return UNTOUCHED if found is None else self._to(found, state)

    def _is_local(self, state: _State) -> bool:
        direct = state.mark & (names.OURS_MASK | names.DIRECT_BIT) == names.OURS | names.DIRECT_BIT
        if direct and ("routing", self._family) in self._tables["direct"]:
            return True
        return state.destination in self._tables["vips"] or self._is_node(state.destination)

    def _is_node(self, address: bytes) -> bool:
        return address in self._facts.addresses or serves_node_ports(address, self._facts)

    def _service(self, state: _State) -> ServiceKey | None:
        """IPVS looks for the mark first, then for the address."""
        services = self._tables["services"]
        marked = ServiceKey(self._family, fwmark=state.mark)
        if state.mark and marked in services:
            return marked
        plain = ServiceKey(self._family, state.destination, self._packet.protocol, state.port)
        return plain if plain in services else None

    def _to(self, service: ServiceKey, state: _State) -> Decision:
        targets, rewritten = set(), set()
        for (owner, address, port), dest in self._tables["dests"].items():
            if owner != service or not dest.weight:
                continue
            member = Member(address, self._packet.protocol, port, address)
            local = (
                self._has(names.LOOP_BACK, member) or (address, state.destination) in self._tables["direct"]
            )
            target = Target(address, port, local)
            targets.add(target)
            after = state._replace(destination=address, port=port)
            if dest.method == 0 and self._hook("nat", "POSTROUTING", after)[0] is Verdict.REJECT:
                rewritten.add(target)
        if not targets:
            return Decision(Verdict.REJECT, frozenset())
        return Decision(None, frozenset(targets), frozenset(rewritten))

    def _hook(self, table: str, chain: str, state: _State) -> tuple[Verdict | None, _State]:
        self._accepted = False
        return self._run(table, chain, state)

    def _run(self, table: str, chain: str, state: _State) -> tuple[Verdict | None, _State]:
        """A chain with all it jumps to. In nat REJECT stands for MASQUERADE: the end of the way, too."""
        for words in self._rules[table].get(chain, ()):
            at = 0
            while at < len(words) and words[at] not in {"-j", "-g"}:
                matches, used = self._match(words[at:], state)
                if not matches:
                    break
                at += used
            else:
                end, state, left = self._target(table, words[at:], state)
                if end is not None or left:
                    return end, state
        return None, state

    def _target(self, table: str, words: list[str], state: _State) -> tuple[Verdict | None, _State, bool]:
        """What a rule does: a verdict, the packet after it, whether its chain is left."""
        name = words[1]
        if name.startswith(names.CHAIN_PREFIX):
            end, state = self._run(table, name, state)
            if end is None and self._accepted:
                return None, state, True
            return end, state, words[0] == "-g"
        if name in {"RETURN", "ACCEPT"}:
            self._accepted = name == "ACCEPT"
            return None, state, True
        if name == "DROP":
            return Verdict.DROP, state, True
        if name in {"REJECT", "MASQUERADE"}:
            return Verdict.REJECT, state, True
        if name == "SET":
            mark = self._mapped(words[3], state)
            return None, state if mark is None else state._replace(mark=mark), False
        if name == "CONNMARK":
            value = int(words[3].split("/")[0], 0)
            return None, state._replace(connmark=state.connmark | value), False
        if name in {"MARK", "TCPMSS"}:
            return None, state, False
        raise ValueError(f"rule target {' '.join(words)}")

    def _match(self, words: list[str], state: _State) -> tuple[bool, int]:
        """Whether the match at the front holds, and how many words it has."""
        option = words[0]
        if option in {"-s", "-d"}:
            address = state.source if option == "-s" else state.destination
            return ipaddress.ip_address(address) in ipaddress.ip_network(words[1]), 2
        if option == "-i":
            return state.lo, 2
        if option == "-p":
            return words[1] == PROTOCOL_NAMES[self._packet.protocol].lower(), 2
        if words[:2] == ["-m", "set"]:
            wanted = words[2] != "!"
            at = 3 if wanted else 4
            return self._in_set(words[at], words[at + 1], state) is wanted, at + 2
        if words[:2] == ["-m", "mark"] or words[:2] == ["-m", "connmark"]:
            value, _, mask = words[3].partition("/")
            held = state.mark if words[1] == "mark" else state.connmark
            return held & int(mask or "0xffffffff", 0) == int(value, 0), 4
        if words[:4] == ["-m", "conntrack", "--ctstate", "NEW"]:
            return True, 4
        if words[:3] == ["-m", "tcp", "--tcp-flags"]:
            return True, 5
        raise ValueError(f"rule match {' '.join(words)}")

    def _in_set(self, name: str, sides: str, state: _State) -> bool:
        if name == names.set_name(names.NODE_IP, self._family):
            return serves_node_ports(state.destination, self._facts)
        if name == names.set_name(names.LOCAL_IP, self._family):
            return self._is_node(state.destination)
        return any(self._has_name(name, member) for member in self._members(name, sides, state))

    def _members(self, name: str, sides: str, state: _State) -> Iterator[Member]:
        """The members a packet can meet in a set of some type."""
        kind = self._tables["sets"][name].type
        protocol, third = self._packet.protocol, state.source
        first = state.source if sides.startswith("src") else state.destination
        if kind == HASH_IP:
            yield Member(first)
        elif kind == BITMAP_PORT:
            yield Member(port=state.port)
        elif kind == HASH_NET_PORT:
            for prefix in range(1, len(first) * 8 + 1):
                yield Member(_network(first, prefix), protocol, state.port, prefix=prefix)
        elif kind == HASH_IP_PORT_IP:
            yield Member(first, protocol, state.port, third)
        elif kind == HASH_IP_PORT_NET:
            for prefix in range(1, len(third) * 8 + 1):
                yield Member(first, protocol, state.port, _network(third, prefix), prefix)
        else:
            yield Member(first, protocol, state.port)

    def _mapped(self, name: str, state: _State) -> int | None:
        for member in self._members(name, "dst,dst", state):
            mark = self._tables["members"].get((name, member))
            if mark is not None:
                return int(mark)
        return None

    def _has(self, base: str, member: Member) -> bool:
        return self._has_name(names.set_name(base, self._family), member)

    def _has_name(self, name: str, member: Member) -> bool:
        return (name, member) in self._tables["members"] or (name, member) in self._tables["addresses"]


def _network(address: bytes, prefix: int) -> bytes:
    bits = len(address) * 8
    number = int.from_bytes(address, "big") >> (bits - prefix) << (bits - prefix)
    return number.to_bytes(len(address), "big")


def _chains(lines: tuple[str, ...]) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        _, chain, *words = line.split()
        found.setdefault(chain, []).append(words)
    return found
