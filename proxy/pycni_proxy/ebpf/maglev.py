"""Maglev's lookup table: which of N targets serves a row, so that few rows change when a target comes or goes. Pure.

Algorithm: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Every
target goes through all rows in an order of its own (a start and a step made of hashes of its address); in turns each
takes its next row that is still free. The table depends on the set of targets only, not on their order; shares differ
by at most one row.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence

from pycni_proxy.ebpf.layout import MAGLEV_BLOCK, MAGLEV_SIZES


def table(targets: Sequence[bytes], size: int) -> list[int]:
    """For each of ``size`` (a prime) rows the index of a target. ``targets`` are distinct names, at least one.

    Turns go in the order of the names, so that equal sets give equal tables.
    """
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    places, steps = [], []
    for index in order:
        start, step = struct.unpack("<QQ", hashlib.blake2b(targets[index], digest_size=16).digest())
        places.append(start % size)
        steps.append(step % (size - 1) + 1)
    rows = [-1] * size
    free = size
    while True:
        for turn, index in enumerate(order):
            place, step = places[turn], steps[turn]
            while rows[place] >= 0:
                place = (place + step) % size
            rows[place] = index
            places[turn] = (place + step) % size
            free -= 1
            if not free:
                return rows


def size_class(count: int) -> int:
    """Which of ``MAGLEV_SIZES`` a pool of so many targets gets."""
    return 0 if count <= 32 else 1 if count <= 64 else 2


@functools.lru_cache(maxsize=64)
def pack(targets: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The table in blocks as the map holds them: 16 bits a row, the last block filled up with zeros.

    A few are remembered: the engine compiles a service before and after each change.
    """
    size = MAGLEV_SIZES[size_class(len(targets))]
    raw = struct.pack(f"={size}H", *table(targets, size))
    return tuple(
        raw[at : at + 2 * MAGLEV_BLOCK].ljust(2 * MAGLEV_BLOCK, b"\0")
        for at in range(0, len(raw), 2 * MAGLEV_BLOCK)
    )
