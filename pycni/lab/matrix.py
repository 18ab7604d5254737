"""Who reaches whom: which checks a lab calls for, and what their outcome means. Pure.

Pods without a network have to reach nobody: that is a check (``ALONE``) of its own.

Life: ``hosts`` (nodes and pods, in the order they are shown) become ``plan``'s checks: every pod with every other pod
and every node with every pod, in both directions, per enabled family, each by a small ping, a full-MTU packet that
must not be fragmented, TCP and UDP. ``probe`` tries them; ``Matrix`` holds the outcome for the table, the JSON and
the exit code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pycni.lab.checks import Check
from pycni.lab.modes import CLUSTER, HOST, reaches
from pycni.lab.probe import KINDS
from pycni.lab.stations import Host

ALONE = "alone"
"""Kind of a check that passes when nothing gets through."""


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
    modes: Mapping[str, str] = {}
    """Where pods have their network from, if not the cluster's."""
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


def plan(
    nodes: Sequence[Host],
    pods: Sequence[Host],
    kinds: Sequence[str] = KINDS,
    roots: Mapping[str, str] | None = None,
) -> list[Check]:
    """Every check between hosts that share a family and have a way between them (``modes.reaches``).

    ``roots``: where pods have their network from, if not the cluster's.
    """
    ways = {**dict.fromkeys((host.name for host in nodes), HOST), **(roots or {})}

    def reach(a: Host, b: Host) -> bool:
        return reaches(ways.get(a.name, CLUSTER), a.node, ways.get(b.name, CLUSTER), b.node)

    pairs = [(a, b) for a in pods for b in pods if a.name != b.name and reach(a, b)]
    pairs += [(node, pod) for node in nodes for pod in pods if reach(node, pod)]
    pairs += [(pod, node) for pod in pods for node in nodes if reach(pod, node)]
    return [
        Check(a.name, b.name, family, kind)
        for a, b in pairs
        for family in a.addresses
        if family in b.addresses
        for kind in kinds
    ]


def plan_alone(nodes: Sequence[Host], pods: Sequence[Host]) -> list[Check]:
    """Pings of pods without a network to every node, none of which may be answered."""
    return [
        Check(pod.name, node.name, family, "ping")
        for pod in pods
        for node in nodes
        for family in pod.addresses
        if family in node.addresses
    ]


def judge_alone(reasons: Mapping[Check, str]) -> dict[Check, str]:
    """What is wrong when pings of pods without a network had these outcomes."""
    return {
        check._replace(kind=ALONE): "" if reason else "answers, although the pod has no network"
        for check, reason in reasons.items()
    }
