"""A tier of a subject's policies as the maps have it: what it says by labels, and what it says by address. Pure.

Life: a ``Recipe`` is the rules of one tier in one direction, shared by all subjects that these policies judge. For the
named ports a subject has itself it makes a ``Tier``: its rows by labels (``PairRules``) and by address (``BlockRules``)
are numbered by what they say, so that tiers that say the same have the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from pycni.model.family import FAMILIES, Family
from pycni.model.policy import Direction
from pycni.policy.ebpf.classes import (
    ACTIONS,
    Block,
    Claim,
    Own,
    PortClass,
    RuleName,
    TierRule,
    blocks_of,
    claims,
    number_of,
    numbered,
    ports_of,
    resolved,
    rule_number,
)
from pycni.policy.ebpf.layout import ALLOW, NONE
from pycni.view.policy_rules import Named, Section
from pycni.view.policy_stages import ClusterPart

Side: TypeAlias = tuple[bytes, Direction]
"""An address as an end of connections."""


def policy_rules(policies: Sequence[tuple[str, Section]], direction: Direction) -> tuple[TierRule, ...]:
    """Rules of NetworkPolicies by their keys."""
    return tuple(
        numbered(RuleName((f"NetworkPolicy {key}",), direction, place), ALLOW, match)
        for key, section in policies
        for place, match in enumerate(section)
    )


def cluster_rules(parts: Sequence[ClusterPart], direction: Direction) -> tuple[TierRule, ...]:
    """Rules of ClusterNetworkPolicies."""
    return tuple(
        numbered(
            RuleName((f"ClusterNetworkPolicy {part.name}",), direction, place),
            ACTIONS[rule.action],
            rule.match,
        )
        for part in parts
        for place, rule in enumerate(part.rules)
    )


_NO_PORTS: Own = frozenset()


class Identity:
    """What rules can tell of an address by its pod's labels and ports."""

    __slots__ = ("groups", "number", "own", "users")

    def __init__(self, groups: frozenset[str], own: Own) -> None:
        self.groups = groups
        self.own = own
        self.number = number_of("identity", sorted(groups), sorted(own))
        self.users = 0
        """Addresses."""


class PairRules:
    """What a tier says to peers by their labels, and to everybody."""

    def __init__(self, number: bytes, some: Sequence[Claim]) -> None:
        self.number = number
        self.users: set[Tier] = set()
        self.rows: dict[bytes, PortClass] = {}
        """By identity: those in the maps."""
        self.left = False
        """They do not fit."""
        self.groups: dict[str, int] = {}
        """Which claims are about a group, one bit each."""
        self.names: dict[Named, int] = {}
        """Claims for everybody by names of the peers' ports."""
        self.everybody: PortClass | None = None
        self._claims = some
        self.named = 0
        """Claims that depend on the peer's ports."""
        self._known: dict[int, PortClass | None] = {}
        """By claims, none of which depends on ports."""
        for place, claim in enumerate(some):
            if claim.names:
                self.named |= 1 << place
            for group in claim.groups:
                self.groups[group] = self.groups.get(group, 0) | 1 << place
            for named in claim.names if claim.anybody else ():
                self.names[named] = self.names.get(named, 0) | 1 << place
        plain = [(item.said, item.numbers) for item in some if item.anybody and item.numbers != ()]
        if plain:
            self.everybody = ports_of(tuple(plain))

    def about(self, identity: Identity) -> int:
        """Which claims are about an identity by its labels and the names of its ports, one bit each."""
        about, groups = 0, self.groups
        for group in identity.groups:
            if group in groups:
                about |= groups[group]
        for named, _ in identity.own if self.names else ():
            about |= self.names.get(named, 0)
        return about

    def of(self, identity: Identity, about: int) -> PortClass | None:
        """What is said to an identity beyond what is said to everybody; None: nothing."""
        depends = about & self.named
        if not depends and about in self._known:
            return self._known[about]
        plain = []
        for place, claim in enumerate(self._claims):
            if not about >> place & 1:
                continue
            numbers = claim.numbers
            if claim.names:
                mine = resolved(claim.names, identity.own)
                numbers = mine if claim.anybody else (numbers or ()) + mine
            if numbers is None or numbers:
                plain.append((claim.said, numbers))
        found = ports_of(tuple(plain)) if plain else None
        if not depends:
            self._known[about] = found
        return found


class BlockRules:
    """What a tier says to addresses of one family."""

    def __init__(self, number: bytes, blocks: Sequence[Block]) -> None:
        self.number = number
        self.blocks = blocks
        self.users: set[Tier] = set()
        self.left = False


class Tier:
    """One tier of some subjects. Compared by identity."""

    def __init__(self, recipe: Recipe, own: Own) -> None:
        self.recipe = recipe
        self.own = own
        self.claims = claims(recipe.rules, recipe.direction, own)
        self.subjects: set[Side] = set()
        self.users: dict[Family, int] = dict.fromkeys(FAMILIES, 0)
        """How often subjects of a family refer to it."""
        self.pairs: PairRules | None = None
        """Shared by tiers that say the same; set by who has them all."""
        self.blocks: dict[Family, BlockRules | None] = {}
        by_labels = [item for item in self.claims if item.anybody or item.groups]
        self.by_labels = tuple(by_labels)
        self.pairs_number = number_of("pairs", [item._replace(ranges=((), ())) for item in by_labels])

    def block_rows(self, family: Family) -> tuple[Block, ...]:
        """What it says to addresses of a family."""
        return blocks_of(self.claims, family)


class Recipe:
    """The rules of one tier in one direction."""

    def __init__(
        self,
        key: Any,
        direction: Direction,
        rules: Sequence[TierRule],
        source: Any,
        isolating: Sequence[str] = (),
    ) -> None:
        """``isolating``: keys of NetworkPolicies in whose name is denied what no rule allows."""
        self.key = key
        self.direction = direction
        self.rules = rules
        self.source = source
        """Objects whose identities are in ``key``."""
        self.tiers: dict[Own, Tier] = {}
        self.names = frozenset(
            name for rule in rules if rule.match.ports is not None for name in rule.match.ports.names
        )
        self.policies = isolating
        self.users = 0
        """Tiers."""
        names = tuple(f"NetworkPolicy {key}" for key in isolating)
        self.isolation = RuleName(names, direction) if names else None
        self.isolated = rule_number(self.isolation) if self.isolation is not None else NONE

    def own(self, mine: AbstractSet[tuple[Named, int]]) -> Own:
        """The part of a subject's ports that makes a difference."""
        if self.direction is Direction.EGRESS or not self.names or not mine:
            return _NO_PORTS
        return frozenset([item for item in mine if item[0] in self.names])

    def rule_names(self) -> Iterator[tuple[bytes, RuleName]]:
        """All in whose name something may be decided, by their numbers."""
        for rule in self.rules:
            yield rule.number, rule.name
        if self.isolation is not None:
            yield self.isolated, self.isolation
