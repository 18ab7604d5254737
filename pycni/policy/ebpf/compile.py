"""From rows of a node's view to the rows of the maps that judge connections, at the cost of what changed. Pure.

Life: ``Maps.update`` takes the rows that changed. An address that got into a group or out of one gets another identity;
a new identity gets a row of pairs in each tier in use that names one of its groups, and a new tier one for each such
identity. A subject whose policies or own named ports changed gets other tiers. Whatever nobody refers to any more goes.
``take`` gives the differences since the last ``take``, map by map.

What would not fit into a map is left out: what has most rows first, and its subjects are marked as left to the data
plane below. Where subjects, peers or the node's addresses do not fit, nothing may be judged (``unfit``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from pycni.model.family import Family
from pycni.model.policy import Direction
from pycni.policy.base import Decision, Packet
from pycni.policy.ebpf import evaluate, layout
from pycni.policy.ebpf.classes import RuleName, number_of
from pycni.policy.ebpf.layout import (
    ADMIN,
    CLOSED,
    COUNT_VALUE,
    LEAVE,
    NONE,
    OWN,
    OWN_VALUE,
    PEERS,
    POLICIES,
    RULES,
    SUBJECTS,
    TIERS,
    SubjectRow,
    pack_address,
    pack_subject,
    subject_key,
)
from pycni.policy.ebpf.rows import Rows
from pycni.policy.ebpf.stock import Stock
from pycni.policy.ebpf.tiers import Recipe, Side, Tier, cluster_rules, policy_rules
from pycni.reconcile.ledger import Changes
from pycni.view import policy_stages as view
from pycni.view.policy_rules import Named, Section
from pycni.view.policy_stages import ABSENT, ClusterPart, RowDiff, Subject

ROOM: Mapping[str, int] = {name: entries for name, _, _, _, entries, _ in layout.MAPS}
"""Most rows of each map."""
_WHOLE = {SUBJECTS: "pods with policies", PEERS: "addresses of pods", OWN: "addresses of the node"}
_NO_PORTS: frozenset[tuple[Named, int]] = frozenset()
_CLOSED_ROW = SubjectRow(flags=CLOSED).pack()
_Tiers: TypeAlias = tuple[Tier | None, ...]
_T = TypeVar("_T")


class Maps:
    """The maps of one node as they should be. One thread at a time."""

    def __init__(self, room: Mapping[str, int] = ROOM) -> None:
        self._room = {**ROOM, **room}
        self._rows = Rows()
        self._clear()

    def _clear(self) -> None:
        self._stock = Stock(self._rows, self._room)
        self._groups: dict[bytes, set[str]] = {}
        """Of addresses."""
        self._ports: dict[bytes, set[tuple[Named, int]]] = {}
        self._sections: dict[tuple[str, Direction], Section] = {}
        self._subjects: dict[Side, Subject] = {}
        self._closed: set[Side] = set()
        self._tiers: dict[Side, _Tiers] = {}
        """What the rows of subjects refer to."""
        self._recipes: dict[object, Recipe] = {}
        self._by_policy: dict[tuple[str, Direction], set[Recipe]] = {}
        self._names: dict[bytes, RuleName] = {}
        self._name_users: dict[bytes, int] = {}

    # --- what is asked -------------------------------------------------------------------------------------------

    @property
    def tables(self) -> Mapping[str, Mapping[bytes, bytes]]:
        """All rows as they should be; of RULES the keys. Do not change them."""
        return self._rows.tables

    def take(self) -> Changes:
        """Differences since the last ``take`` or ``against``: additions in this order, then removals backwards.

        So everything is there before something leads to it, and as long as something does.
        """
        return self._rows.take()

    def against(self, actual: Mapping[str, Mapping[bytes, bytes]]) -> Changes:
        """The same against what the kernel has (values of RULES: ``COUNT_VALUE`` for each key); counts as taken."""
        return self._rows.against(actual)

    def decide(self, packet: Packet) -> Decision | None:
        """What a first packet is to meet; None: the maps have no room for the rules that say."""
        return None if self.unfit else evaluate.decide(self.tables, self._names, packet)

    def rule_names(self) -> Mapping[bytes, RuleName]:
        """What the rules' numbers stand for."""
        return self._names

    @property
    def unfit(self) -> str:
        """Why nothing may be judged by the maps; "" when it may."""
        for name, what in _WHOLE.items():
            held = len(self.tables[name])
            if held > self._room[name]:
                return f"map {name}: {held} {what}, room for {self._room[name]}"
        return ""

    def problems(self) -> Sequence[str]:
        """What is left to the data plane below because maps are full, in words."""
        found = [self.unfit] if self.unfit else []
        if len(self._names) > self._room[RULES]:
            found.append(f"map {RULES}: {len(self._names)} rules, {self._room[RULES]} are counted")
        return [*found, *self._stock.problems()]

    # --- passes --------------------------------------------------------------------------------------------------

    def update(self, rows: Iterable[RowDiff], *, full: bool) -> None:
        """Take in rows of the view that changed. ``full``: they are all there are, compared with nothing."""
        if full:
            self._rows.restart()
            self._clear()
        moved: set[bytes] = set()
        carriers: set[bytes] = set()
        sides: set[Side] = set()
        sections: set[tuple[str, Direction]] = set()
        for table, key, _, after in rows:
            here = after is not ABSENT
            if table == view.MEMBERS:
                _keep(self._groups, key[1], key[0], here=here)
                moved.add(key[1])
            elif table == view.SUBJECTS:
                if here:
                    self._subjects[key] = after
                else:
                    self._subjects.pop(key, None)
                sides.add(key)
            elif table == view.SECTIONS:
                sections.add(key)
                if here:
                    self._sections[key] = after
                else:
                    self._sections.pop(key, None)
            elif table == view.PORTS:
                named, address, port = key
                _keep(self._ports, address, (named, port), here=here)
                carriers.add(address)
            elif table == view.CLOSED:
                (self._closed.add if here else self._closed.discard)(key)
                sides.add(key)
            elif table == view.OWN:
                if here:
                    self._rows.put(OWN, pack_address(key), OWN_VALUE)
                else:
                    self._rows.drop(OWN, pack_address(key))
        self._identify(moved | carriers)
        for section in sections:
            for recipe in self._by_policy.get(section, ()):
                self._recipes.pop(recipe.key, None)
                for tier in recipe.tiers.values():
                    sides |= tier.subjects
        sides.update((address, Direction.INGRESS) for address in carriers)
        gone = [self._lead(side) for side in sides]
        for side, tiers in gone:
            self._release(side, tiers)
        self._stock.forget()
        for side in self._stock.fit():
            self._write(side)

    def _identify(self, addresses: Iterable[bytes]) -> None:
        for address in addresses:
            groups, own = self._groups.get(address, ()), self._ports.get(address, ())
            found = self._stock.identify(address, frozenset(groups), frozenset(own))
            if found is None:
                self._rows.drop(PEERS, pack_address(address))
            else:
                self._rows.put(PEERS, pack_address(address), found.number)

    # --- subjects ------------------------------------------------------------------------------------------------

    def _lead(self, side: Side) -> tuple[Side, _Tiers]:
        """Lead a subject to its tiers. Returns those it had."""
        subject = self._subjects.get(side)
        old = self._tiers.pop(side, ())
        if subject is not None:
            tiers = self._tiers[side] = tuple([self._tier(side, subject, place) for place in TIERS])
            for tier in tiers:
                if tier is not None:
                    self._hold(tier, side)
        self._write(side)
        return side, old

    def _write(self, side: Side) -> None:
        subject, tiers = self._subjects.get(side), self._tiers.get(side, ())
        key = subject_key(*side)
        if subject is None:
            if side in self._closed:
                self._rows.put(SUBJECTS, key, _CLOSED_ROW)
            else:
                self._rows.drop(SUBJECTS, key)
            return
        left, isolated = False, NONE
        ids = [NONE] * (2 * len(TIERS))
        family = Family.of_packed(side[0])
        for place, tier in enumerate(tiers):
            if tier is None:
                continue
            pairs, blocks = tier.pairs, tier.blocks[family]
            if pairs is not None:
                ids[2 * place] = pairs.number
                left = left or pairs.left
            if blocks is not None:
                ids[2 * place + 1] = blocks.number
                left = left or blocks.left
            if place == POLICIES:
                isolated = tier.recipe.isolated
        pod = number_of("pod", subject.siblings) if len(subject.siblings) > 1 else NONE
        if left:
            self._rows.put(SUBJECTS, key, SubjectRow(flags=LEAVE, pod=pod).pack())
        else:
            self._rows.put(SUBJECTS, key, pack_subject(ids, isolated, pod))

    def _tier(self, side: Side, subject: Subject, place: int) -> Tier | None:
        recipe = self._recipe(subject, side[1], place)
        if recipe is None:
            return None
        own = recipe.own(self._ports.get(side[0], _NO_PORTS))
        found = recipe.tiers.get(own)
        if found is None:
            found = recipe.tiers[own] = Tier(recipe, own)
        return found

    def _recipe(self, subject: Subject, direction: Direction, place: int) -> Recipe | None:
        stages = subject.stages
        if place == POLICIES:
            if stages.policies is None:
                return None
            key: object = (place, direction, stages.policies)
            found = self._recipes.get(key)
            if found is None:
                some = [(name, self._sections[name, direction]) for name in stages.policies]
                rules = policy_rules(some, direction)
                found = self._recipes[key] = Recipe(key, direction, rules, None, stages.policies)
            return found
        parts: tuple[ClusterPart, ...] = stages.admin if place == ADMIN else stages.baseline
        if not parts:
            return None
        key = (place, direction, tuple([id(part) for part in parts]))
        found = self._recipes.get(key)
        if found is None:
            found = self._recipes[key] = Recipe(key, direction, cluster_rules(parts, direction), parts)
        return found

    def _hold(self, tier: Tier, side: Side) -> None:
        if not tier.subjects:
            recipe = tier.recipe
            if not recipe.users:
                self._name(recipe)
            recipe.users += 1
        tier.subjects.add(side)
        self._stock.hold(tier, Family.of_packed(side[0]))

    def _release(self, side: Side, tiers: _Tiers) -> None:
        now = self._tiers.get(side, ())
        for tier in tiers:
            if tier is None:
                continue
            self._stock.release(tier, Family.of_packed(side[0]))
            if tier not in now:
                tier.subjects.discard(side)
                if not tier.subjects:
                    self._end(tier)

    def _end(self, tier: Tier) -> None:
        recipe = tier.recipe
        del recipe.tiers[tier.own]
        recipe.users -= 1
        if not recipe.users:
            if self._recipes.get(recipe.key) is recipe:
                del self._recipes[recipe.key]
            self._unname(recipe)

    # --- names ---------------------------------------------------------------------------------------------------

    def _name(self, recipe: Recipe) -> None:
        for policy in recipe.policies:
            self._by_policy.setdefault((policy, recipe.direction), set()).add(recipe)
        counters = self.tables[RULES]
        for number, name in recipe.rule_names():
            users = self._name_users.get(number, 0)
            self._name_users[number] = users + 1
            if not users:
                self._names[number] = name
                if len(counters) < self._room[RULES]:
                    self._rows.put(RULES, number, COUNT_VALUE)

    def _unname(self, recipe: Recipe) -> None:
        for policy in recipe.policies:
            users = self._by_policy[policy, recipe.direction]
            users.discard(recipe)
            if not users:
                del self._by_policy[policy, recipe.direction]
        for number, _ in recipe.rule_names():
            self._name_users[number] -= 1
            if not self._name_users[number]:
                del self._name_users[number], self._names[number]
                self._rows.drop(RULES, number)


def _keep(held: dict[bytes, set[_T]], address: bytes, what: _T, *, here: bool) -> None:
    if here:
        held.setdefault(address, set()).add(what)
        return
    found = held.get(address)
    if found is not None:
        found.discard(what)
        if not found:
            del held[address]
