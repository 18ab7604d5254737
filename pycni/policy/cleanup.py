"""Everything network policies have in this node's kernel, taken away: for ``pycnictl cleanup``."""

from __future__ import annotations

from collections.abc import Sequence

from pycni.errors import PycniError
from pycni.policy import nft
from pycni.policy.component_fast import remove_programs
from pycni.policy.shut import Shut
from pycni.policy.spoof import Guard


def leftovers() -> tuple[list[str], list[str]]:
    """What went, and what could not be removed. Programs first: they send packets past the tables."""
    gone: list[str] = []
    failed: list[str] = []
    for remove in (_programs, nft.leftovers, _shut, _spoof):
        try:
            gone += remove()
        except (PycniError, OSError) as error:
            failed.append(f"network policies: {error}")
    return gone, failed


def _programs() -> Sequence[str]:
    return remove_programs(set())


def _shut() -> Sequence[str]:
    return _closing(Shut())


def _spoof() -> Sequence[str]:
    return _closing(Guard())


def _closing(holder: Shut | Guard) -> Sequence[str]:
    try:
        return holder.remove()
    finally:
        holder.close()
