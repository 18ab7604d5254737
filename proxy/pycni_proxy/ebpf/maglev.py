"""Maglev's lookup table: which of N targets serves a row, so that few rows change when a target comes or goes. Pure.

Algorithm: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Every
target goes through all rows in an order of its own (a start and a step made of hashes of its address); in turns each
takes its next row that is still free. The table depends on the set of targets only, not on their order; shares differ
by at most one row.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from pycni_proxy.ebpf.layout import MAGLEV_SIZE


def table(targets: Sequence[bytes], size: int = MAGLEV_SIZE) -> list[int]:
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


def pack(targets: Sequence[bytes], size: int = MAGLEV_SIZE) -> bytes:
    """The table as a map's value: 16 bits a row, 8,192 bytes for the usual size."""
    return struct.pack(f"={size}H", *table(targets, size)).ljust(-(-2 * size // 8) * 8, b"\0")
