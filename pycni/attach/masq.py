"""``ipMasq``: which pods' traffic leaves under the node's address, and for which destinations it does not.

Each pod that asks for it is one element in a set of addresses. Destinations that are spared are pairs of
networks (the pod's own subnet, then its own subnet or a cluster network): a few per network configuration,
whatever the number of pods. Multicast is spared by a rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pycni.model.family import Family, Network, show


class Spared(NamedTuple):
    """Traffic from the first network to the second keeps its source address."""

    family: Family
    source: bytes
    source_len: int
    target: bytes
    target_len: int

    def text(self) -> str:
        """``10.1.2.0/24 . 10.1.0.0/16``."""
        return f"{show(self.source)}/{self.source_len} . {show(self.target)}/{self.target_len}"

    def meets(self, other: Spared) -> bool:
        """Whether some packet is in both."""
        return (
            self.family is other.family
            and _nested(self.source, self.source_len, other.source, other.source_len)
            and _nested(self.target, self.target_len, other.target, other.target_len)
        )

    def join(self, other: Spared) -> Spared:
        """The pair of the wider source and the wider target of two pairs that meet."""
        source = min((self.source_len, self.source), (other.source_len, other.source))
        target = min((self.target_len, self.target), (other.target_len, other.target))
        return Spared(self.family, source[1], source[0], target[1], target[0])


def spared(own: Sequence[Network], cluster: Sequence[Network]) -> tuple[Spared, ...]:
    """Pairs for a pod with addresses in ``own`` on a node that reaches ``cluster`` without translation."""
    return tuple(
        Spared(
            Family.of(net),
            net.network_address.packed,
            net.prefixlen,
            target.network_address.packed,
            target.prefixlen,
        )
        for net in own
        for target in (net, *cluster)
        if target.version == net.version
    )


def collapse(pairs: Iterable[Spared]) -> frozenset[Spared]:
    """Pairs that do not overlap and spare at least what was given: intervals of a set must not overlap.

    Two networks that meet are nested, so two pairs that meet are covered by the pair of the wider ends.
    """
    apart: set[Spared] = set()
    for pair in sorted(set(pairs)):
        wide = pair
        while (met := next((other for other in apart if other.meets(wide)), None)) is not None:
            apart.discard(met)
            wide = wide.join(met)
        apart.add(wide)
    return frozenset(apart)


def _nested(one: bytes, one_len: int, other: bytes, other_len: int) -> bool:
    shift = len(one) * 8 - min(one_len, other_len)
    return int.from_bytes(one, "big") >> shift == int.from_bytes(other, "big") >> shift
