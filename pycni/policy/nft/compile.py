"""From rows of a node's view to the rows of the nftables table. Pure.

Life of a pod's row: its stages become one chain, named by what it does, which all pods with the same stages share.
NetworkPolicies are jumps to chains of their own, so that a changed policy is one changed chain; rules of
ClusterNetworkPolicies are written out, because Pass has to leave the rest of its tier, and a chain that was jumped to
can only accept, drop or come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

from pycni.model.family import Family
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY, Action, Direction
from pycni.policy.base import Decision, Packet
from pycni.policy.nft import evaluate
from pycni.policy.nft.layout import (
    CHAINS,
    CLASSES,
    PORTS,
    SIDES,
    TABLE_ROW,
    VERSIONS,
    blocks,
    denial,
    generation,
    group_id,
    groups,
    hashed,
    named_id,
    named_ports,
    named_value,
    place,
    plain,
    policy_chain,
    port_bytes,
    row_sets,
    service_bytes,
    verdict_name,
    verdicts,
    version_of,
)
from pycni.policy.nft.listing import table_text
from pycni.reconcile.ledger import Tables
from pycni.view.policy_apart import MANY
from pycni.view.policy_rules import Match, Ports, Section, directions
from pycni.view.policy_stages import ClusterPart, Stages, Subject

_ALL_PORTS = ((0, 0xFFFF),)
_FAMILY = {4: Family.V4, 6: Family.V6}
_Data: TypeAlias = Tables
"""Blocks and ports of rules: set -> elements."""


class NftCompiler:
    """The pure half of the nftables data plane; see ``base.Compiler``."""

    def __init__(self) -> None:
        self.tables: tuple[str, ...] = (TABLE_ROW, CHAINS, *row_sets())
        self.shared = frozenset({CHAINS, *row_sets()})

    def common(self) -> Tables:
        """See ``base.Compiler``."""
        return {TABLE_ROW: {"generation": generation()}}

    def rows(self, table: str, key: Any, value: Any) -> Tables:
        """See ``base.Compiler``."""
        match table:
            case "members":
                group, address = key
                return {groups(version_of(address)): {address + group_id(group): None}}
            case "ports":
                named, address, port = key
                found = address + port_bytes(port) + named_id(named)
                return {named_ports(version_of(address)): {found: None}}
            case "groups" | "names":
                return {}
            case "own":
                return {f"own{version_of(key)}": {key: None}}
            case "closed":
                return {_closed(key[0], key[1]): {key[0]: None}}
            case "sections":
                return _section(key[0], key[1], value)
            case "subjects":
                return _subject(key[0], key[1], value)
        raise ValueError(f"table {table} of the view: unknown")

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """See ``base.Compiler``."""
        return evaluate.decide(tables, packet)

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """See ``base.Compiler``."""
        return table_text(tables)


def _closed(address: bytes, direction: Direction) -> str:
    return f"closed_{SIDES[direction]}{version_of(address)}"


def _subject(address: bytes, direction: Direction, subject: Subject) -> Tables:
    version, side = version_of(address), SIDES[direction]
    chain, chains, data = _combination(version, direction, subject.stages)
    tables: Tables = {
        CHAINS: dict[Any, Any](chains),
        verdicts(side, version): {verdict_name(chain): chain},
        f"judged_{side}{version}": {address: named_value(verdict_name(chain))},
        f"self{version}": {address + other: None for other in subject.siblings},
        f"closed_{side}{version}": {address: None},
    }
    return {**tables, **data}


def _disjoint(section: Section) -> bool:
    """Whether a packet's port, by its number, is in at most one match, and that has no more than one group."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for match in section:
        if match.ports is None:
            continue
        if len(match.groups) > 1:
            return False
        for protocol, numbers in match.ports.numbers:
            spans.setdefault(protocol, []).extend(numbers or _ALL_PORTS)
    return all(one[1] < next_[0] for some in spans.values() for one, next_ in pairwise(sorted(some)))


def _by_ports(version: int, direction: Direction, key: str, section: Section, data: _Data) -> Iterator[str]:
    """Rules for the numbers of ports of all matches at once; what depends on the port goes to ``data``."""
    side = SIDES[direction]
    anybody, group, block = (place(NETWORK_POLICY, key, side, number) for number in (-1, -2, -3))
    words: set[str] = set()
    for index, match in enumerate(section):
        if match.ports is None or not match.ports.numbers:
            continue
        if match.anybody:
            words.add(f" ports {anybody}")
            data.setdefault(PORTS, {}).update(dict.fromkeys(_spans(match.ports, anybody)))
        for item in match.groups:
            words.add(f" group-of {group}")
            value = named_value(group_id(item.name))
            data.setdefault(CLASSES, {}).update(dict.fromkeys(_spans(match.ports, group), value))
        where = bytes.fromhex(place(NETWORK_POLICY, key, side, index))
        some = match.of(_FAMILY[version])
        if some:
            words.add(f" block-of {block}")
            data.setdefault(CLASSES, {}).update(dict.fromkeys(_spans(match.ports, block), named_value(where)))
            data.setdefault(blocks(version), {}).update(
                (where + first + where + last, None) for first, last in some
            )
    yield from (f"if {version} {side}{word} then accept" for word in sorted(words))


def _spans(ports: Ports, where: str) -> Iterator[bytes]:
    """Numbers of ports at a place."""
    key = bytes.fromhex(where)
    for protocol, numbers in ports.numbers:
        for first, last in numbers or _ALL_PORTS:
            yield key + service_bytes(protocol, first) + key + service_bytes(protocol, last)


def _section(key: str, direction: Direction, section: Section) -> Tables:
    side = SIDES[direction]
    chains: dict[Any, Any] = {}
    data: _Data = {}
    by_ports = len(section) > MANY and _disjoint(section)
    for version in VERSIONS:
        rules = [*_by_ports(version, direction, key, section, data)] if by_ports else []
        for index, match in enumerate(section):
            rest = match
            if by_ports and match.ports is not None:
                rest = match._replace(ports=Ports(names=match.ports.names))
            where = place(NETWORK_POLICY, key, side, index)
            rules += _rules(version, direction, rest, where, "accept", data)
        chains[policy_chain(version, side, key)] = tuple(rules)
    return {CHAINS: chains, **data}


@lru_cache(maxsize=8192)
def _combination(
    version: int, direction: Direction, stages: Stages
) -> tuple[str, Mapping[str, tuple[str, ...]], _Data]:
    """Name of the chain of some stages, all chains it needs but those of NetworkPolicies, blocks and ports."""
    side = SIDES[direction]
    chains: dict[str, tuple[str, ...]] = {}
    data: _Data = {}
    rest: list[str] = []
    if stages.policies is not None:
        rest += (f"jump {policy_chain(version, side, key)}" for key in stages.policies)
        deny = _deny(chains, side, [f"NetworkPolicy {key}" for key in stages.policies])
        rest.append(f"goto {deny}")
    else:
        rest += _parts(version, direction, stages.baseline, "accept", chains, data)
        rest += ["accept"] if rest else []
    behind = "accept"
    passes = any(rule.action is Action.PASS for part in stages.admin for rule in part.rules)
    if rest and passes:
        behind = hashed(f"rest-{side}{version}", rest)
        chains[behind] = tuple(rest)
    rules = [*_parts(version, direction, stages.admin, behind, chains, data), *(rest or ["accept"])]
    name = hashed(f"pods-{side}{version}", rules)
    chains[name] = tuple(rules)
    return name, chains, data


def _parts(  # noqa: PLR0917 - two of them collect
    version: int,
    direction: Direction,
    parts: Sequence[ClusterPart],
    behind: str,
    chains: dict[str, tuple[str, ...]],
    data: _Data,
) -> Iterator[str]:
    """The rules of a tier; Pass leads to ``behind``."""
    for part in parts:
        for index, rule in enumerate(part.rules):
            where = place(CLUSTER_NETWORK_POLICY, part.name, SIDES[direction], index)
            if rule.action is Action.DENY:
                verdict = _deny(chains, SIDES[direction], [f"ClusterNetworkPolicy {part.name}"])
            else:
                verdict = "accept" if rule.action is Action.ACCEPT else behind
            yield from _rules(version, direction, rule.match, where, verdict, data)


def _deny(chains: dict[str, tuple[str, ...]], side: str, policies: Sequence[str]) -> str:
    rules = denial(side, policies)
    name = hashed(f"deny-{side}", rules)
    chains[name] = rules
    return name


def _rules(  # noqa: PLR0917 - one of them collects
    version: int, direction: Direction, match: Match, where: str, verdict: str, data: _Data
) -> Iterator[str]:
    """One rule per peer and kind of ports; blocks and ports of the rule's place go to ``data``."""
    key = bytes.fromhex(where)
    for part in directions(match, direction):
        peers = [""] if part.anybody else [f" group {item.name}" for item in part.groups]
        some = part.of(_FAMILY[version])
        if some:
            data.setdefault(blocks(version), {}).update(
                (key + first + key + last, None) for first, last in some
            )
            peers.append(f" block {where}")
        ports = [*_ports(part, where, data)] if peers else []
        for peer in peers:
            for port in ports:
                then = verdict if verdict == "accept" else f"goto {verdict}"
                yield f"if {version} {SIDES[direction]}{peer}{port} then {then}"


def _ports(match: Match, where: str, data: _Data) -> Iterator[str]:
    if match.ports is None:
        yield ""
        return
    if match.ports.numbers:
        data.setdefault(PORTS, {}).update(dict.fromkeys(_spans(match.ports, where)))
        yield f" ports {where}"
    for protocol, name in match.ports.names:
        yield f" proto {protocol} named {plain(name)}"
