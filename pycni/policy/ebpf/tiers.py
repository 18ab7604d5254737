"""A tier of a subject's policies as the maps have it: what it says by labels, and what it says by address. Pure.

Life: a ``Recipe`` is the rules of one tier in one direction, shared by all subjects that these policies judge. For the
named ports a subject has itself it makes a ``Tier``: its rows by labels (``PairRules``) and by address (``BlockRules``)
are numbered by what they say, so that tiers that say the same have the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    blocks_of,
    claims,
    number_of,
    ports_of,
    resolved,
    rule_number,
)
from pycni.policy.ebpf.layout import ALLOW, NONE
from pycni.view.policy_rules import Match, Named, Section
from pycni.view.policy_stages import ClusterPart

Side: TypeAlias = tuple[bytes, Direction]
"""An address as an end of connections."""
Rules: TypeAlias = tuple[tuple[RuleName, int, Match], ...]


def policy_rules(policies: Sequence[tuple[str, Section]], direction: Direction) -> Rules:
    """Rules of NetworkPolicies by their keys."""
    return tuple(
        (RuleName((f"NetworkPolicy {key}",), direction, place), ALLOW, match)
        for key, section in policies
        for place, match in enumerate(section)
    )


def cluster_rules(parts: Sequence[ClusterPart], direction: Direction) -> Rules:
    """Rules of ClusterNetworkPolicies."""
    return tuple(
        (RuleName((f"ClusterNetworkPolicy {part.name}",), direction, place), ACTIONS[rule.action], rule.match)
        for part in parts
        for place, rule in enumerate(part.rules)
    )


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
        self.groups: dict[str, list[int]] = {}
        self.names: dict[Named, list[int]] = {}
        """Claims for everybody by names of the peers' ports."""
        self.everybody: PortClass | None = None
        self._claims = some
        self._known: dict[tuple[int, ...], PortClass] = {}
        """By claims, none of which has names."""
        for place, claim in enumerate(some):
            for group in claim.groups:
                self.groups.setdefault(group, []).append(place)
            for named in claim.names if claim.anybody else ():
                self.names.setdefault(named, []).append(place)
        plain = [(item.said, item.numbers) for item in some if item.anybody and item.numbers != ()]
        if plain:
            self.everybody = ports_of(tuple(plain))

    def of(self, identity: Identity) -> PortClass | None:
        """What is said to an identity beyond what is said to everybody; None: nothing."""
        places = set[int]()
        for group in identity.groups & self.groups.keys():
            places.update(self.groups[group])
        for named, _ in identity.own if self.names else ():
            places.update(self.names.get(named, ()))
        key = tuple(sorted(places))
        found = self._known.get(key)
        if found is not None:
            return found
        some = [self._claims[place] for place in key]
        plain = []
        for claim in some:
            numbers = claim.numbers
            if claim.names:
                mine = resolved(claim.names, identity.own)
                numbers = mine if claim.anybody else (numbers or ()) + mine
            if numbers is None or numbers:
                plain.append((claim.said, numbers))
        if not plain:
            return None
        found = ports_of(tuple(plain))
        if not any(claim.names for claim in some):
            self._known[key] = found
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
        self, key: Any, direction: Direction, rules: Rules, source: Any, isolating: Sequence[str] = ()
    ) -> None:
        """``isolating``: keys of NetworkPolicies in whose name is denied what no rule allows."""
        self.key = key
        self.direction = direction
        self.rules = rules
        self.source = source
        """Objects whose identities are in ``key``."""
        self.tiers: dict[Own, Tier] = {}
        self.names = frozenset(
            named for _, _, match in rules if match.ports is not None for named in match.ports.names
        )
        self.policies = isolating
        self.users = 0
        """Tiers."""
        names = tuple(f"NetworkPolicy {key}" for key in isolating)
        self.isolation = RuleName(names, direction) if names else None
        self.isolated = rule_number(self.isolation) if self.isolation is not None else NONE

    def own(self, mine: Own) -> Own:
        """The part of a subject's ports that makes a difference."""
        if self.direction is Direction.EGRESS or not self.names or not mine:
            return frozenset()
        return frozenset([item for item in mine if item[0] in self.names])

    def rule_names(self) -> Iterator[RuleName]:
        """All in whose name something may be decided."""
        for name, _, _ in self.rules:
            yield name
        if self.isolation is not None:
            yield self.isolation
