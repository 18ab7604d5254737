"""Maglev's lookup table: a hash finds a target, and few hashes find another one when a target goes. Pure.

Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4: every target
prefers the slots in an order of its own, and the targets take turns to fill the free slot they like best.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

SLOTS = 1021
"""A prime; the same for every pool, so that the number of targets can change. Up to a hundred get even shares."""


@lru_cache(maxsize=256)
def table(targets: Sequence[bytes]) -> tuple[int, ...]:
    """For each slot the number of a target. ``targets`` (a tuple, 1 to 1021) are what they are told apart by."""
    order = sorted(range(len(targets)), key=targets.__getitem__)
    prefers = {number: _preference(targets[number]) for number in order}
    slots = [-1] * SLOTS
    free = SLOTS
    while True:
        for number in order:
            at, step = prefers[number]
            while slots[at] >= 0:
                at = (at + step) % SLOTS
            slots[at] = number
            prefers[number] = ((at + step) % SLOTS, step)
            free -= 1
            if not free:
                return tuple(slots)


def _preference(target: bytes) -> tuple[int, int]:
    """First slot and step of a target's order."""
    digest = hashlib.blake2b(target, digest_size=16).digest()
    first = int.from_bytes(digest[:8], "big") % SLOTS
    return first, 1 + int.from_bytes(digest[8:], "big") % (SLOTS - 1)
