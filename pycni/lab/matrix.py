"""Who reaches whom: which checks a lab calls for, and what their outcome means. Pure.

Life: ``hosts`` (nodes and pods, in the order they are shown) become ``plan``'s checks: every pod with every other pod
and every node with every pod, in both directions, per enabled family, each by a small ping, a full-MTU packet that
must not be fragmented, TCP and UDP. ``probe`` tries them; ``Matrix`` holds the outcome for the table, the JSON and
the exit code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pycni.lab.probe import KINDS, Check
from pycni.lab.stations import Host


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one run."""

    nodes: tuple[str, ...]
    pods: tuple[tuple[str, str], ...]
    """(pod, its node), in the order of the nodes."""
    services: tuple[str, ...] = ()
    """``namespace/name`` of the Services that were tried."""
    outside: tuple[str, ...] = ()
    """Hosts that are neither: the client outside."""
    reasons: Mapping[Check, str]
    """"" for success."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there was something to check and nothing failed."""
        return bool(self.reasons) and not any(self.reasons.values())

    def failed(self) -> list[tuple[Check, str]]:
        """Failed checks and why, in the order of the plan."""
        return [(check, reason) for check, reason in self.reasons.items() if reason]

    def json(self) -> dict[str, Any]:
        """The object ``lab matrix --json`` prints."""
        failed = [
            {
                "from": check.source,
                "to": check.target,
                "family": check.family.label,
                "kind": check.kind,
                "reason": reason,
            }
            for check, reason in self.failed()
        ]
        return {
            "ok": self.ok,
            "checks": len(self.reasons),
            "failed": failed,
            "seconds": round(self.seconds, 3),
        }

    def pairs(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(checks, failures) per ordered pair."""
        counts: dict[tuple[str, str], tuple[int, int]] = {}
        for check, reason in self.reasons.items():
            checks, failures = counts.get((check.source, check.target), (0, 0))
            counts[check.source, check.target] = (checks + 1, failures + bool(reason))
        return counts


def plan(nodes: Sequence[Host], pods: Sequence[Host], kinds: Sequence[str] = KINDS) -> list[Check]:
    """Every check between hosts that share a family. Node to node is the underlay's business and left out."""
    pairs = [(a, b) for a in pods for b in pods if a.name != b.name]
    pairs += [(node, pod) for node in nodes for pod in pods]
    pairs += [(pod, node) for pod in pods for node in nodes]
    return [
        Check(a.name, b.name, family, kind)
        for a, b in pairs
        for family in a.addresses
        if family in b.addresses
        for kind in kinds
    ]
