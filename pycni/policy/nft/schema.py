"""The table as its driver needs it: what is fixed, as messages, and how rules become instructions. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pycni.policy.nft.layout import (
    CHAINS,
    HOOKS,
    TABLE,
    TABLE_ROW,
    fixed_chains,
    generation,
    row_sets,
)
from pycni.policy.nft.rules import instructions
from pycni.wire.nftmsg import add_chain, add_rule
from pycni.wire.nftset import add_set
from pycni.wire.nfttable import Schema


def schema() -> Schema:
    """The table."""
    return Schema(
        table=TABLE,
        generation=generation(),
        table_row=TABLE_ROW,
        chains=CHAINS,
        sets=row_sets(),
        kept=(),
        fixed=tuple(_fixed()),
        fixed_chains=fixed_chains(),
        instructions=instructions,
    )


def _fixed() -> Iterator[bytes]:
    for number, spec in enumerate(row_sets().values(), 1):
        yield add_set(TABLE, spec, number)
    chains = fixed_chains()
    for name in chains:
        yield add_chain(TABLE, name, HOOKS.get(name))
    for name, rules in chains.items():
        for rule in rules:
            yield add_rule(TABLE, name, instructions(rule), rule)
