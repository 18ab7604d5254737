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
from pycni.wire.nfttable import Schema, fixed_messages


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
    return fixed_messages(TABLE, row_sets().values(), fixed_chains(), HOOKS, instructions)
