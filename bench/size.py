"""How much is measured: all of it, or (``make bench QUICK=1``) enough to see whether something is badly wrong."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
QUICK = os.environ.get("BENCH_QUICK", "") not in {"", "0"}


def sized(full: T, quick: T) -> T:
    """The first, or in a quick run the second."""
    return quick if QUICK else full
