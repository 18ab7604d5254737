"""What rows of pairs and blocks there are: identities, tiers in use, and each pair of them that says something. Pure.

Life: an identity lives as long as an address has it, a tier's rows as long as a subject's row leads to them. One that
comes looks by groups and names of ports who it has to meet; nothing is compared with everything. What does not fit into
a map is ``left`` out whole, biggest first, and comes back when there is room again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from pycni.model.family import Family
from pycni.policy.ebpf.classes import Own, PortClass, hash_of
from pycni.policy.ebpf.layout import BLOCKS, ID, NONE, PAIRS, PORTS
from pycni.policy.ebpf.rows import Rows
from pycni.policy.ebpf.tiers import BlockRules, Identity, PairRules, Side, Tier
from pycni.view.policy_rules import Named

_LIMITED = {PAIRS: "pairs of rules and peers", BLOCKS: "blocks of addresses", PORTS: "ports of rules"}
_END = 4 + ID
"""Of the number in a key of BLOCKS."""
_K = TypeVar("_K")
_V = TypeVar("_V")


class Stock:
    """Identities and tiers, and the rows between them."""

    def __init__(self, rows: Rows, room: Mapping[str, int]) -> None:
        self._rows = rows
        self._room = room
        self._of: dict[bytes, Identity] = {}
        """By address."""
        self._identities: dict[tuple[frozenset[str], Own], Identity] = {}
        self._idle: set[Identity] = set()
        """Perhaps nobody has them any more."""
        self._in_group: dict[str, set[Identity]] = {}
        self._bearers: dict[Named, set[Identity]] = {}
        self._pairs: dict[bytes, PairRules] = {}
        self._for_group: dict[str, set[PairRules]] = {}
        self._for_name: dict[Named, set[PairRules]] = {}
        self._blocks: dict[bytes, BlockRules] = {}
        self._left: dict[PairRules | BlockRules, Mapping[str, int]] = {}
        """What does not fit, with its rows by map when it was left out."""

    # --- identities ----------------------------------------------------------------------------------------------

    def identify(self, address: bytes, groups: frozenset[str], own: Own) -> Identity | None:
        """An address's identity from now on; None: nobody asks for it any more, or no rule can tell it."""
        found = self._identity(groups, own) if groups or own else None
        old = self._of.get(address)
        if found is not old:
            if old is not None:
                old.users -= 1
                if not old.users:
                    self._idle.add(old)
            if found is not None:
                found.users += 1
                self._of[address] = found
            else:
                del self._of[address]
        return found

    def _identity(self, groups: frozenset[str], own: Own) -> Identity:
        found = self._identities.get((groups, own))
        if found is not None:
            return found
        found = self._identities[groups, own] = Identity(groups, own)
        meets: set[PairRules] = set()
        for group in groups:
            self._in_group.setdefault(group, set()).add(found)
            meets.update(self._for_group.get(group, ()))
        for named, _ in own:
            self._bearers.setdefault(named, set()).add(found)
            meets.update(self._for_name.get(named, ()))
        for pairs in meets:
            if not pairs.left:
                self._pair(pairs, found)
        return found

    def forget(self) -> None:
        """Let go of identities that no address has."""
        idle, self._idle = self._idle, set()
        for identity in idle:
            if identity.users:
                continue
            del self._identities[identity.groups, identity.own]
            meets: set[PairRules] = set()
            for group in identity.groups:
                _discard(self._in_group, group, identity)
                meets.update(self._for_group.get(group, ()))
            for named in {named for named, _ in identity.own}:
                _discard(self._bearers, named, identity)
                meets.update(self._for_name.get(named, ()))
            for pairs in meets:
                said = pairs.rows.pop(identity.number, None)
                if said is not None:
                    self._rows.leave(PAIRS, pairs.number + identity.number, said)

    def _pair(self, pairs: PairRules, identity: Identity) -> None:
        said = pairs.of(identity, pairs.about(identity))
        if said is not None:
            pairs.rows[identity.number] = said
            self._rows.lead(PAIRS, (pairs.number + identity.number,), said)

    # --- tiers ---------------------------------------------------------------------------------------------------

    def hold(self, tier: Tier, family: Family) -> None:
        """One more subject of this family refers to the tier."""
        if not any(tier.users.values()) and tier.by_labels:
            tier.pairs = self._pairs.get(tier.pairs_number) or self._new_pairs(tier)
            tier.pairs.users.add(tier)
        if not tier.users[family]:
            blocks = tier.block_rows(family)
            held = None
            if blocks:
                number = hash_of(b"blocks", *[part for key, said in blocks for part in (key, said.packed)])
                held = self._blocks.get(number)
                if held is None:
                    held = self._blocks[number] = BlockRules(number, blocks)
                    self._add_blocks(held)
                held.users.add(tier)
            tier.blocks[family] = held
        tier.users[family] += 1

    def release(self, tier: Tier, family: Family) -> None:
        """One less."""
        tier.users[family] -= 1
        if tier.users[family]:
            return
        blocks = tier.blocks.pop(family)
        if blocks is not None and not any(held is blocks for held in tier.blocks.values()):
            blocks.users.discard(tier)
            if not blocks.users:
                del self._blocks[blocks.number]
                self._remove(blocks)
                self._left.pop(blocks, None)
        pairs = tier.pairs
        if pairs is not None and not any(tier.users.values()):
            tier.pairs = None
            pairs.users.discard(tier)
            if not pairs.users:
                self._end_pairs(pairs)

    def _new_pairs(self, tier: Tier) -> PairRules:
        pairs = self._pairs[tier.pairs_number] = PairRules(tier.pairs_number, tier.by_labels)
        for group in pairs.groups:
            self._for_group.setdefault(group, set()).add(pairs)
        for named in pairs.names:
            self._for_name.setdefault(named, set()).add(pairs)
        self._add_pairs(pairs)
        return pairs

    def _end_pairs(self, pairs: PairRules) -> None:
        del self._pairs[pairs.number]
        for group in pairs.groups:
            _discard(self._for_group, group, pairs)
        for named in pairs.names:
            _discard(self._for_name, named, pairs)
        self._remove(pairs)
        self._left.pop(pairs, None)

    def _add_pairs(self, pairs: PairRules) -> None:
        about: dict[Identity, int] = {}
        for group, bits in pairs.groups.items():
            for identity in self._in_group.get(group, ()):
                about[identity] = about.get(identity, 0) | bits
        for named, bits in pairs.names.items():
            for identity in self._bearers.get(named, ()):
                about[identity] = about.get(identity, 0) | bits
        alike: dict[int, list[Identity]] = {}
        for identity, bits in about.items():
            alike.setdefault(bits, []).append(identity)
        number, rows = pairs.number, pairs.rows
        for bits, some in alike.items():
            for part in [[one] for one in some] if bits & pairs.named else [some]:
                said = pairs.of(part[0], bits)
                if said is not None:
                    rows.update(dict.fromkeys([one.number for one in part], said))
                    self._rows.lead(PAIRS, [number + one.number for one in part], said)
        if pairs.everybody is not None:
            rows[NONE] = pairs.everybody
            self._rows.lead(PAIRS, (number + NONE,), pairs.everybody)

    def _add_blocks(self, blocks: BlockRules) -> None:
        for key, said in blocks.blocks:
            self._rows.lead(BLOCKS, (key[:4] + blocks.number + key[_END:],), said)

    def _remove(self, part: PairRules | BlockRules) -> None:
        """Its rows, if it has any."""
        if isinstance(part, PairRules):
            for number, said in part.rows.items():
                self._rows.leave(PAIRS, part.number + number, said)
            part.rows = {}
        elif not part.left:
            for key, said in part.blocks:
                self._rows.leave(BLOCKS, key[:4] + part.number + key[_END:], said)

    # --- room ----------------------------------------------------------------------------------------------------

    def fit(self) -> set[Side]:
        """Leave out what does not fit, take back what fits again. Returns the subjects concerned."""
        changed: set[Side] = set()
        for part, sizes in sorted(
            self._left.items(), key=lambda item: (sum(item[1].values()), item[0].number)
        ):
            if all(len(self._rows.tables[name]) + size <= self._room[name] for name, size in sizes.items()):
                self._return(part)
                changed |= _subjects(part)
        for name in _LIMITED:
            while len(self._rows.tables[name]) > self._room[name]:
                part = max(self._parts(), key=lambda part: (_sizes(part).get(name, 0), part.number))
                self._left[part] = _sizes(part)
                self._remove(part)
                part.left = True
                changed |= _subjects(part)
        return changed

    def _return(self, part: PairRules | BlockRules) -> None:
        del self._left[part]
        part.left = False
        if isinstance(part, PairRules):
            self._add_pairs(part)
        else:
            self._add_blocks(part)

    def _parts(self) -> Iterator[PairRules | BlockRules]:
        for parts in (self._pairs, self._blocks):
            yield from (part for part in parts.values() if not part.left)

    def problems(self) -> Sequence[str]:
        """What is left out, in words, by map."""
        addresses = {side[0] for part in self._left for side in _subjects(part)}
        if not addresses:
            return []
        full = [
            f"{name} ({what}, room for {self._room[name]})"
            for name, what in _LIMITED.items()
            if any(sizes.get(name) for sizes in self._left.values())
        ]
        return [f"maps {', '.join(full)}: no room for the rules about {len(addresses)} addresses"]


def _subjects(part: PairRules | BlockRules) -> set[Side]:
    return {side for tier in part.users for side in tier.subjects}


def _sizes(part: PairRules | BlockRules) -> Mapping[str, int]:
    """Rows by map; classes of ports that others lead to as well count whole."""
    some: Iterable[PortClass]
    if isinstance(part, PairRules):
        found, some = {PAIRS: len(part.rows)}, part.rows.values()
    else:
        found, some = {BLOCKS: len(part.blocks)}, [said for _, said in part.blocks]
    found[PORTS] = sum(len(rows) for rows in {said.value.ports: said.rows for said in some}.values())
    return found


def _discard(index: dict[_K, set[_V]], key: _K, value: _V) -> None:
    held = index[key]
    held.discard(value)
    if not held:
        del index[key]
