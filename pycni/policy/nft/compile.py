"""From rows of a node's view to the rows of the nftables table. Pure.

Life of a pod's row: its stages become one chain, named by what it does, which all pods with the same stages share.
NetworkPolicies are jumps to chains of their own, so that a changed policy is one changed chain; rules of
ClusterNetworkPolicies are written out, because Pass has to leave the rest of its tier, and a chain that was jumped to
can only accept, drop or come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pycni.model.family import Family
from pycni.model.policy import Action, Direction
from pycni.policy.base import Decision, Packet
from pycni.policy.nft import evaluate
from pycni.policy.nft.layout import (
    CHAINS,
    ELEMENTS,
    SETS,
    SIDES,
    TABLE_ROW,
    VERSIONS,
    denial,
    generation,
    group_set,
    hashed,
    judged_value,
    policy_chain,
    port_bytes,
    port_set,
    range_set,
    row_sets,
    service_bytes,
    service_set,
    verdict_name,
    verdicts,
    version_of,
)
from pycni.policy.nft.listing import table_text
from pycni.reconcile.ledger import Tables
from pycni.view.policy_rules import Match, Section, directions
from pycni.view.policy_stages import (
    CLOSED,
    GROUPS,
    MEMBERS,
    NAMES,
    OWN,
    PORTS,
    SECTIONS,
    SUBJECTS,
    ClusterPart,
    Stages,
    Subject,
)

_FAMILY = {4: Family.V4, 6: Family.V6}
_Sets: TypeAlias = dict[str, tuple[bytes, ...]]
"""Sets that rules look up and that are named by what they hold."""


class NftCompiler:
    """The pure half of the nftables data plane; see ``base.Compiler``."""

    def __init__(self) -> None:
        self.tables: tuple[str, ...] = (TABLE_ROW, SETS, ELEMENTS, CHAINS, *row_sets())
        self.shared = frozenset({SETS, ELEMENTS, CHAINS, *row_sets()})

    def common(self) -> Tables:
        """See ``base.Compiler``."""
        return {TABLE_ROW: {"generation": generation()}}

    def rows(self, table: str, key: Any, value: Any) -> Tables:
        """See ``base.Compiler``."""
        match table:
            case "members":
                group, address = key
                return {ELEMENTS: {(group_set(version_of(address), group), address): None}}
            case "ports":
                named, address, port = key
                name = port_set(version_of(address), named)
                return {ELEMENTS: {(name, address + port_bytes(port)): None}}
            case "groups":
                return {SETS: {group_set(version, key): None for version in VERSIONS}}
            case "names":
                return {SETS: {port_set(version, key): None for version in VERSIONS}}
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


HANDLED = frozenset({MEMBERS, PORTS, GROUPS, NAMES, OWN, CLOSED, SECTIONS, SUBJECTS})
"""Tables of the view that rows are made of."""


def _closed(address: bytes, direction: Direction) -> str:
    return f"closed_{SIDES[direction]}{version_of(address)}"


def _subject(address: bytes, direction: Direction, subject: Subject) -> Tables:
    version, side = version_of(address), SIDES[direction]
    chain, chains, sets = _combination(version, direction, subject.stages)
    tables: Tables = {
        CHAINS: dict[Any, Any](chains),
        verdicts(side, version): {verdict_name(chain): chain},
        f"judged_{side}{version}": {address: judged_value(chain)},
        f"self{version}": {address + other: None for other in subject.siblings},
    }
    if subject.stages.policies is not None:
        tables[f"closed_{side}{version}"] = {address: None}
    _add_sets(tables, sets)
    return tables


def _section(key: str, direction: Direction, section: Section) -> Tables:
    tables: Tables = {}
    chains = tables[CHAINS] = {}
    for version in VERSIONS:
        rules: list[str] = []
        sets: _Sets = {}
        for match in section:
            rules += _rules(version, direction, match, "accept", sets)
        chains[policy_chain(version, SIDES[direction], key)] = tuple(rules)
        _add_sets(tables, sets)
    return tables


def _add_sets(tables: Tables, sets: _Sets) -> None:
    for name, keys in sets.items():
        tables.setdefault(SETS, {})[name] = None
        tables.setdefault(ELEMENTS, {}).update(dict.fromkeys((name, key) for key in keys))


@lru_cache(maxsize=8192)
def _combination(
    version: int, direction: Direction, stages: Stages
) -> tuple[str, Mapping[str, tuple[str, ...]], _Sets]:
    """Name of the chain of some stages, all chains it needs but those of NetworkPolicies, and sets of ranges."""
    side = SIDES[direction]
    chains: dict[str, tuple[str, ...]] = {}
    sets: _Sets = {}
    rest: list[str] = []
    if stages.policies is not None:
        rest += (f"jump {policy_chain(version, side, key)}" for key in stages.policies)
        deny = _deny(chains, side, [f"NetworkPolicy {key}" for key in stages.policies])
        rest.append(f"goto {deny}")
    else:
        rest += _parts(version, direction, stages.baseline, "accept", chains, sets)
    behind = "accept"
    passes = any(rule.action is Action.PASS for part in stages.admin for rule in part.rules)
    if rest and passes:
        behind = hashed(f"rest-{side}{version}", rest)
        chains[behind] = tuple(rest)
    rules = [*_parts(version, direction, stages.admin, behind, chains, sets), *rest]
    name = hashed(f"pods-{side}{version}", rules)
    chains[name] = tuple(rules)
    return name, chains, sets


def _parts(  # noqa: PLR0917 - two of them collect
    version: int,
    direction: Direction,
    parts: Sequence[ClusterPart],
    behind: str,
    chains: dict[str, tuple[str, ...]],
    sets: _Sets,
) -> Iterator[str]:
    """The rules of a tier; Pass leads to ``behind``."""
    for part in parts:
        for rule in part.rules:
            if rule.action is Action.DENY:
                verdict = _deny(chains, SIDES[direction], [f"ClusterNetworkPolicy {part.name}"])
            else:
                verdict = "accept" if rule.action is Action.ACCEPT else behind
            yield from _rules(version, direction, rule.match, verdict, sets)


def _deny(chains: dict[str, tuple[str, ...]], side: str, policies: Sequence[str]) -> str:
    rules = denial(side, policies)
    name = hashed(f"deny-{side}", rules)
    chains[name] = rules
    return name


def _rules(version: int, direction: Direction, match: Match, verdict: str, sets: _Sets) -> Iterator[str]:
    """One rule per peer and port; sets they look up by content go to ``sets``."""
    for part in directions(match, direction):
        peers = [""] if part.anybody else [f" peer {group_set(version, item.name)}" for item in part.groups]
        some = part.of(_FAMILY[version])
        if some:
            name = range_set(version, some)
            sets[name] = tuple(first + last for first, last in some)
            peers.append(f" peer {name}")
        for peer in peers:
            for ports in _ports(version, part, sets):
                then = verdict if verdict == "accept" else f"goto {verdict}"
                yield f"if {version} {SIDES[direction]}{peer}{ports} then {then}"


def _ports(version: int, match: Match, sets: _Sets) -> Iterator[str]:
    if match.ports is None:
        yield ""
        return
    single = [
        service_bytes(protocol, first)
        for protocol, numbers in match.ports.numbers
        for first, last in numbers
        if first == last
    ]
    if len(single) > 1:
        name = service_set(single)
        sets[name] = tuple(single)
        yield f" service {name}"
    for protocol, numbers in match.ports.numbers:
        if not numbers:
            yield f" proto {protocol}"
        for first, last in numbers:
            if first == last and len(single) > 1:
                continue
            yield f" proto {protocol} port {first}-{last}"
    for named in match.ports.names:
        yield f" proto {named[0]} named {port_set(version, named)}"
