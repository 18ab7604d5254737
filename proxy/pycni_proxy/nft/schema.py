"""The parts of the table that are no rows, as messages for the kernel. Pure.

Life: ``schema`` describes the table for the driver: which row tables are sets, how a rule's words become instructions,
and the messages that build everything else. The driver sends those once, in the transaction that makes the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pycni.model.service import NodeFacts
from pycni.wire.nftmsg import add_chain, add_rule
from pycni.wire.nftrange import add_ranges
from pycni.wire.nftset import SetSpec, add_set
from pycni.wire.nfttable import Schema
from pycni_proxy.nft.layout import (
    CHAINS,
    HOOKS,
    TABLE,
    TABLE_ROW,
    VERDICT_MAP,
    VERDICTS,
    VERSIONS,
    affinity_map,
    fixed_chains,
    generation,
    is_index,
    networks,
    range_set,
    row_sets,
)
from pycni_proxy.nft.rules import instructions


def sets_in_order(version: int) -> tuple[SetSpec, ...]:
    """The sets of rows of one family, in dependency order."""
    return tuple(row_sets(version).values())


def schema(facts: NodeFacts) -> Schema:
    """The table of a node."""
    versions = [VERSIONS[family] for family in facts.families]
    mark = facts.masquerade_mark
    return Schema(
        table=TABLE,
        generation=generation(facts),
        table_row=TABLE_ROW,
        chains=CHAINS,
        sets={
            VERDICTS: VERDICT_MAP,
            **{spec.name: spec for version in versions for spec in sets_in_order(version)},
        },
        kept=tuple(affinity_map(version) for version in versions),
        fixed=tuple(_fixed(facts, versions)),
        fixed_chains=fixed_chains(facts),
        instructions=lambda rule: instructions(rule, mark),
        entries=frozenset(f"services{version}" for version in versions),
        met_late=_met_late,
    )


def _met_late(name: str, key: Any) -> bool:
    """Whether only the rows of ``services`` lead to a row: not to sets looked up first, nor to targets by their ids."""
    if name.startswith("targets"):
        return is_index(key)
    return name in {CHAINS, VERDICTS} or name.startswith("ids")


def _fixed(facts: NodeFacts, versions: list[int]) -> Iterator[bytes]:
    number = 1
    yield add_set(TABLE, VERDICT_MAP, number)
    for version in versions:
        for spec in (*sets_in_order(version), affinity_map(version)):
            number += 1
            yield add_set(TABLE, spec, number)
        for name, ranges in networks(facts, version).items():
            number += 1
            spec = range_set(name, version)
            yield add_set(TABLE, spec, number)
            yield from add_ranges(TABLE, spec, ranges)
    chains = fixed_chains(facts)
    for name in chains:
        yield add_chain(TABLE, name, HOOKS.get(name))
    for name, rules in chains.items():
        for rule in rules:
            yield add_rule(TABLE, name, instructions(rule, facts.masquerade_mark), rule)
