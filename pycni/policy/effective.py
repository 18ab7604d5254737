"""Policies as operators see them: which there are, which hold for a pod and why, what their rules come to. Pure.

Life: ``overview`` and ``of_pod`` read the objects as they are, so that rules have the places and names they have in the
manifest (and in ``explain``); what the node has programmed and counted is given to them. Shapes are the structs below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from pycni.model.kube import Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    ClusterNetworkPolicy,
    Direction,
    NetworkPolicy,
    Tier,
)
from pycni.policy.effective_texts import (
    SIDES,
    TIERS,
    Cluster,
    RuleText,
    has,
    kind_of,
    named,
    selection,
    troubles,
)
from pycni.policy.ends import COMPLETED, Objects
from pycni.policy.nft.layout import shortened

Problems = Mapping[str, Sequence[str]]
"""Lines by ``NetworkPolicy a/x``."""


class Count(msgspec.Struct, frozen=True):
    """Packets."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        """Of both."""
        return Count(self.packets + other.packets, self.bytes + other.bytes)


Counts = Mapping[tuple[str, str], Count]
"""Denied, by ``NetworkPolicy a/x`` and ``ingress`` or ``egress``."""


class PolicyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one node."""

    kind: str
    namespace: str
    name: str
    tier: str
    """admin, network or baseline: the order in which they are asked."""
    priority: int
    """-1 for a NetworkPolicy, which has none."""
    directions: tuple[str, ...]
    selects: str
    pods: int
    """Selected ones of this node."""
    denied: Mapping[str, Count]
    """On this node, by direction, since the rows were programmed."""
    state: str
    """``in use``, ``no pod here``, or what keeps it from being enforced."""
    problems: tuple[str, ...] = ()


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """``/policies``."""

    node: str
    planes: tuple[str, ...]
    """What enforces, the fast path first."""
    isolated: Mapping[str, int]
    """Pods of this node that a policy isolates, by direction."""
    pods: int
    """Pods of this node."""
    closed: Mapping[str, int]
    """Addresses nothing may come from or to, because their pod is not known yet, by direction."""
    policies: tuple[PolicyStatus, ...]
    refused: Mapping[str, Mapping[str, Count]] = {}
    """What was denied by no policy there is now, by reason and direction: closed addresses, spoofed sources."""
    trouble: str = ""
    notes: tuple[str, ...] = ()


class PolicyRules(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy says about one direction of a pod."""

    kind: str
    key: str
    tier: str
    priority: int
    selects: str
    """Why it holds for the pod."""
    rules: tuple[RuleText, ...]
    denied: Count
    decided: int
    """New connections its rules have decided about in the fast path, allowed or denied; -1: nobody counts them."""


class SideRules(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a pod."""

    direction: str
    policies: tuple[PolicyRules, ...]
    """In the order they are asked."""
    otherwise: str
    """What becomes of what no rule is about: allowed or denied."""
    closed: bool
    """Nothing passes, because this node does not know the pod yet."""
    programmed: bool
    """This node's tables have the pod's address as one that policies judge."""


class PodRules(msgspec.Struct, frozen=True, kw_only=True):
    """``/policies?pod=``."""

    node: str
    """Who answers."""
    pod: str
    runs_on: str
    addresses: tuple[str, ...]
    labels: Mapping[str, str]
    exempt: str
    """Why no policy is about it; "" when some may be."""
    sides: tuple[SideRules, ...]
    planes: tuple[str, ...]
    trouble: str = ""
    notes: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What the node adds to the objects."""

    node: str
    planes: tuple[str, ...]
    counts: Counts
    problems: Problems
    closed: frozenset[tuple[str, str]]
    """Address and direction."""
    judged: frozenset[tuple[str, str]]
    """Addresses and directions that have rows."""
    trouble: str = ""
    notes: tuple[str, ...] = ()
    decided: Mapping[tuple[str, str], int] | None = None
    """Connections by policy and direction; None: not counted."""


def overview(objects: Objects, facts: Facts) -> Overview:
    """All policies, in the order they are asked."""
    cluster = Cluster(objects)
    mine = [pod for pod in cluster.pods if pod.node == facts.node]
    rows: list[PolicyStatus] = []
    isolated: dict[str, set[str]] = {side: set() for side in SIDES.values()}
    for tier, policy in cluster.ordered():
        selected = [pod for pod in mine if cluster.selects(policy, pod)]
        name = named(policy)
        sides = tuple(SIDES[direction] for direction in Direction if has(policy, direction))
        if isinstance(policy, NetworkPolicy):
            for side in sides:
                isolated[side].update(pod.meta.key for pod in selected)
        problems = (*facts.problems.get(name, ()), *troubles(policy))
        rows.append(
            PolicyStatus(
                kind=kind_of(policy),
                namespace=policy.meta.namespace,
                name=policy.meta.name,
                tier=tier,
                priority=policy.priority if isinstance(policy, ClusterNetworkPolicy) else -1,
                directions=sides,
                selects=selection(policy),
                pods=len(selected),
                denied={side: _count(facts.counts, name, side) for side in sides},
                state="in use" if selected and sides else "no pod here" if sides else "no rules",
                problems=problems,
            )
        )
    known = {named(policy) for _, policy in cluster.ordered()}
    rows += (
        _unreadable(name, lines)
        for name, lines in sorted(facts.problems.items())
        if name not in known and name.partition(" ")[0] in {NETWORK_POLICY, CLUSTER_NETWORK_POLICY}
    )
    return Overview(
        node=facts.node,
        planes=facts.planes,
        isolated={side: len(keys) for side, keys in isolated.items()},
        pods=len(mine),
        closed=dict(Counter(side for _, side in sorted(facts.closed))),
        policies=tuple(rows),
        refused=_refused(facts.counts, known),
        trouble=facts.trouble,
        notes=facts.notes,
    )


def of_pod(objects: Objects, pod: Pod, facts: Facts) -> PodRules:
    """Which policies hold for a pod."""
    cluster = Cluster(objects)
    exempt = ""
    if pod.host_network:
        exempt = "it is on its node's network: no policy is about it"
    elif pod.phase in COMPLETED:
        exempt = f"it has ended ({pod.phase})"
    sides = [] if exempt else [_side(cluster, pod, direction, facts) for direction in Direction]
    return PodRules(
        node=facts.node,
        pod=pod.meta.key,
        runs_on=pod.node,
        addresses=pod.ips,
        labels=dict(sorted(pod.meta.labels.items())),
        exempt=exempt,
        sides=tuple(sides),
        planes=facts.planes,
        trouble=facts.trouble,
        notes=facts.notes,
    )


def _side(cluster: Cluster, pod: Pod, direction: Direction, facts: Facts) -> SideRules:
    side = SIDES[direction]
    found: list[PolicyRules] = []
    isolated = False
    for tier, policy in cluster.ordered():
        if not has(policy, direction) or not cluster.selects(policy, pod):
            continue
        if isinstance(policy, NetworkPolicy):
            isolated = True
        elif tier == TIERS[Tier.BASELINE] and isolated:
            # NetworkPolicies decide about every connection of a pod they isolate.
            continue
        found.append(
            PolicyRules(
                kind=kind_of(policy),
                key=policy.meta.key,
                tier=tier,
                priority=policy.priority if isinstance(policy, ClusterNetworkPolicy) else -1,
                selects=selection(policy),
                rules=tuple(cluster.rules(policy, direction, pod)),
                denied=_count(facts.counts, named(policy), side),
                decided=-1 if facts.decided is None else facts.decided.get((named(policy), side), 0),
            )
        )
    return SideRules(
        direction=side,
        policies=tuple(found),
        otherwise="denied" if isolated else "allowed",
        closed=any((ip, side) in facts.closed for ip in pod.ips),
        programmed=any((ip, side) in facts.judged for ip in pod.ips),
    )


def _count(counts: Counts, name: str, side: str) -> Count:
    return counts.get((shortened(name, 200), side), Count())


def _refused(counts: Counts, known: Iterable[str]) -> dict[str, dict[str, Count]]:
    policies = {shortened(name, 200) for name in known}
    found: dict[str, dict[str, Count]] = {}
    for (name, side), count in sorted(counts.items()):
        if name not in policies and count.packets:
            found.setdefault(name, {})[side] = count
    return found


def _unreadable(name: str, lines: Sequence[str]) -> PolicyStatus:
    kind, _, key = name.partition(" ")
    namespace, _, last = key.rpartition("/")
    return PolicyStatus(
        kind=kind,
        namespace=namespace,
        name=last,
        tier="",
        priority=-1,
        directions=(),
        selects="",
        pods=0,
        denied={},
        state="cannot be read",
        problems=tuple(lines),
    )
