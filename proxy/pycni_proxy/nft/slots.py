"""A table from hashes to targets in which only the hashes of a target that goes find another one. Pure.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): in each slot every
target has a score of its own, and the highest has the slot. It stands where IPVS has Maglev's table: shares are a
little less even (one in twenty with five targets), but no flow moves between targets that stay, however many there are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

SLOTS = 1021
"""The same for every pool, so that the number of targets can change."""


@lru_cache(maxsize=256)
def table(targets: Sequence[bytes]) -> tuple[int, ...]:
    """For each slot the number of a target. ``targets`` (a tuple, not empty) are what they are told apart by."""
    order = sorted(range(len(targets)), key=targets.__getitem__)
    columns = zip(*(_scores(targets[number]) for number in order), strict=True)
    return tuple(order[column.index(max(column))] for column in columns)


def _scores(target: bytes) -> array[int]:
    scores = array("I")
    scores.frombytes(hashlib.shake_128(target).digest(SLOTS * scores.itemsize))
    return scores
