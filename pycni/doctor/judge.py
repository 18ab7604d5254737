"""All rules over the facts of all nodes: equal findings become one, the worst come first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from pycni.doctor import conflicts, features, mtu, offloads, switches
from pycni.doctor.model import LEVELS, Change, Facts, Finding

RULES: Mapping[str, Callable[[Facts], Iterable[Finding]]] = {
    "kernel": features.check,
    "sysctls": switches.check,
    "mtu": mtu.check,
    "offloads": offloads.check,
    "conflicts": conflicts.check,
}
"""By area, in the order they are told in."""


def judge(nodes: Sequence[Facts]) -> tuple[Finding, ...]:
    """What is to be known of these nodes, the worst first."""
    found = [
        finding if finding.nodes or not facts.node else msgspec.structs.replace(finding, nodes=(facts.node,))
        for rule in RULES.values()
        for facts in nodes
        for finding in rule(facts)
    ]
    return tuple(sorted(_merged([*found, *mtu.between(nodes)]), key=lambda item: LEVELS.index(item.level)))


def _merged(found: Iterable[Finding]) -> Iterable[Finding]:
    """What several nodes have in common, once."""
    groups: dict[tuple[str, ...], Finding] = {}
    for item in found:
        key = (item.check, item.level, item.subject, item.reason, item.fix)
        had = groups.get(key)
        if had is not None:
            item = msgspec.structs.replace(  # noqa: PLW2901 - the same finding, of more nodes
                item,
                nodes=tuple(dict.fromkeys((*had.nodes, *item.nodes))),
                changes={**had.changes, **item.changes},
            )
        groups[key] = item
    return groups.values()


def changes(found: Iterable[Finding]) -> dict[str, tuple[Change, ...]]:
    """What ``--fix`` does, by node; each switch once."""
    by_node: dict[str, dict[str, Change]] = {}
    for finding in found:
        for node, wanted in finding.changes.items():
            names = by_node.setdefault(node, {})
            for change in wanted:
                names.setdefault(change.name, change)
    return {node: tuple(names.values()) for node, names in by_node.items()}
