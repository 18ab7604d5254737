"""Policies as operators see them: which there are, which hold for a pod and why, what their rules come to. Pure.

Life: ``overview`` and ``of_pod`` read the objects as they are, so that rules have the places and names they have in the
manifest (and in ``explain``); what the node has programmed and counted is given to them. Shapes are the structs below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from pycni.model.kube import NAMESPACE, POD, PROTOCOL_NAMES, Namespace, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    IpBlock,
    NetworkPolicy,
    Peer,
    PortRange,
    Rule,
    Selector,
    Tier,
)
from pycni.policy.ends import COMPLETED, Objects
from pycni.policy.nft.layout import shortened
from pycni.view.policies import NAME_LABEL

Problems = Mapping[str, Sequence[str]]
"""Lines by ``NetworkPolicy a/x``."""
SIDES = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}


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


class PeerText(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of a rule."""

    text: str
    pods: int
    """That it means now, in the whole cluster; -1: it is about addresses."""


class RuleText(msgspec.Struct, frozen=True, kw_only=True):
    """One rule."""

    number: int
    name: str
    action: str
    """Accept, Deny or Pass; NetworkPolicies only accept."""
    peers: tuple[PeerText, ...]
    """Any of them; none: everybody."""
    ports: tuple[str, ...]
    """Any of them; none: everything."""
    problem: str = ""


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
    cluster = _Cluster(objects)
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
        problems = (*facts.problems.get(name, ()), *_troubles(policy))
        rows.append(
            PolicyStatus(
                kind=_kind(policy),
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
    cluster = _Cluster(objects)
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


def _side(cluster: _Cluster, pod: Pod, direction: Direction, facts: Facts) -> SideRules:
    side = SIDES[direction]
    found: list[PolicyRules] = []
    isolated = False
    for tier, policy in cluster.ordered():
        if not has(policy, direction) or not cluster.selects(policy, pod):
            continue
        if isinstance(policy, NetworkPolicy):
            isolated = True
        elif tier == _TIERS[Tier.BASELINE] and isolated:
            # NetworkPolicies decide about every connection of a pod they isolate.
            continue
        found.append(
            PolicyRules(
                kind=_kind(policy),
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


# --- policies --------------------------------------------------------------------------------------------------------

_TIERS = {Tier.ADMIN: "admin", Tier.BASELINE: "baseline"}
_NETWORK = "network"
Policy = NetworkPolicy | ClusterNetworkPolicy


def named(policy: Policy) -> str:
    """``NetworkPolicy a/x`` or ``ClusterNetworkPolicy x``."""
    return f"{_kind(policy)} {policy.meta.key}"


def has(policy: Policy, direction: Direction) -> bool:
    """Whether a policy is about a direction."""
    rules = policy.egress if direction is Direction.EGRESS else policy.ingress
    return rules is not None if isinstance(policy, NetworkPolicy) else bool(rules)


def selection(policy: Policy) -> str:
    """The pods a policy is about."""
    if isinstance(policy, NetworkPolicy):
        return _pods_text(policy.pods)
    where = _spaces_text(policy.namespaces)
    return where if policy.pods is None else f"{where}, {_pods_text(policy.pods)}"


def _kind(policy: Policy) -> str:
    return NETWORK_POLICY if isinstance(policy, NetworkPolicy) else CLUSTER_NETWORK_POLICY


def _pods_text(selector: Selector) -> str:
    return "all pods" if selector == Selector() else f"pods {selector.text}"


def _spaces_text(selector: Selector) -> str:
    if selector == Selector():
        return "all namespaces"
    if [key for key, _ in selector.labels] == [NAME_LABEL] and not selector.expressions:
        return f"namespace {selector.labels[0][1]}"
    return f"namespaces {selector.text}"


def _count(counts: Counts, name: str, side: str) -> Count:
    return counts.get((shortened(name, 200), side), Count())


def _refused(counts: Counts, known: Iterable[str]) -> dict[str, dict[str, Count]]:
    policies = {shortened(name, 200) for name in known}
    found: dict[str, dict[str, Count]] = {}
    for (name, side), count in sorted(counts.items()):
        if name not in policies and count.packets:
            found.setdefault(name, {})[side] = count
    return found


def _troubles(policy: Policy) -> Iterator[str]:
    for direction in Direction:
        rules: Sequence[Rule | ClusterRule] = (
            policy.egress if direction is Direction.EGRESS else policy.ingress
        ) or ()
        for number, rule in enumerate(rules):
            problem = _problem(rule)
            if problem:
                yield f"{SIDES[direction]}[{number}]: {problem}"


def _problem(rule: Rule | ClusterRule) -> str:
    unknown = [peer.unknown for peer in rule.peers or () if peer.unknown]
    if not unknown:
        return ""
    kinds = ", ".join(unknown)
    if isinstance(rule, ClusterRule) and rule.action is not Action.ACCEPT:
        return f"{kinds}: not known here, so this rule denies everything"
    if isinstance(rule, ClusterRule):
        return f"{kinds}: not known here, so this rule matches nothing"
    return f"a peer with {kinds}: not known here, so it matches nobody"


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


class _Cluster:
    """Who is selected by what."""

    def __init__(self, objects: Objects) -> None:
        self._namespaces: Mapping[str, Namespace] = objects.of(NAMESPACE)
        running = (pod for pod in objects.of(POD).values() if pod.phase not in COMPLETED)
        self.pods: Sequence[Pod] = [pod for pod in running if not pod.host_network]
        self._policies: Sequence[NetworkPolicy] = [*objects.of(NETWORK_POLICY).values()]
        self._cluster: Sequence[ClusterNetworkPolicy] = [*objects.of(CLUSTER_NETWORK_POLICY).values()]

    def ordered(self) -> Iterator[tuple[str, Policy]]:
        """Admin by priority and name, NetworkPolicies by key, baseline."""
        ranked = sorted(self._cluster, key=lambda policy: (policy.priority, policy.meta.name))
        yield from (("admin", policy) for policy in ranked if policy.tier is Tier.ADMIN)
        yield from ((_NETWORK, policy) for policy in sorted(self._policies, key=lambda item: item.meta.key))
        yield from (("baseline", policy) for policy in ranked if policy.tier is Tier.BASELINE)

    def selects(self, policy: Policy, pod: Pod) -> bool:
        """Whether a policy is about a pod."""
        if isinstance(policy, NetworkPolicy):
            return policy.meta.namespace == pod.meta.namespace and policy.pods.matches(pod.meta.labels)
        return policy.namespaces.matches(self.labels(pod.meta.namespace)) and (
            policy.pods is None or policy.pods.matches(pod.meta.labels)
        )

    def labels(self, namespace: str) -> Mapping[str, str]:
        """Of a namespace."""
        found = self._namespaces.get(namespace)
        return {**(found.meta.labels if found is not None else {}), NAME_LABEL: namespace}

    def rules(self, policy: Policy, direction: Direction, pod: Pod) -> Iterator[RuleText]:
        """The rules of one direction, names of ports looked up."""
        home = policy.meta.namespace
        rules: Sequence[Rule | ClusterRule] = (
            policy.egress if direction is Direction.EGRESS else policy.ingress
        ) or ()
        for number, rule in enumerate(rules):
            members = [self.members(peer, home) for peer in rule.peers or ()]
            if direction is Direction.INGRESS:
                bearers: Sequence[Pod] = [pod]
            elif rule.peers is None:
                bearers = self.pods
            else:
                bearers = [one for some in members for one in some or ()]
            yield RuleText(
                number=number,
                name=rule.name if isinstance(rule, ClusterRule) else "",
                action=rule.action.value if isinstance(rule, ClusterRule) else Action.ACCEPT.value,
                peers=tuple(
                    PeerText(text=_peer(peer, home), pods=-1 if some is None or peer.unknown else len(some))
                    for peer, some in zip(rule.peers or (), members, strict=True)
                ),
                ports=tuple(_port(port, bearers) for port in rule.ports or ()),
                problem=_problem(rule),
            )

    def members(self, peer: Peer, home: str) -> list[Pod] | None:
        """The pods a peer means; None: it is about addresses."""
        if peer.unknown:
            return []
        if peer.block is not None:
            return None
        inside: Callable[[str], bool] = (
            (lambda name: name == home)
            if peer.namespaces is None
            else (lambda name: peer.namespaces is not None and peer.namespaces.matches(self.labels(name)))
        )
        spaces = {name for name in {pod.meta.namespace for pod in self.pods} if inside(name)}
        return [
            pod
            for pod in self.pods
            if pod.meta.namespace in spaces and (peer.pods is None or peer.pods.matches(pod.meta.labels))
        ]


def _peer(peer: Peer, home: str) -> str:
    if peer.unknown:
        return f"{peer.unknown} (not known here)"
    if peer.block is not None:
        return _block(peer.block)
    pods = _pods_text(peer.pods) if peer.pods is not None else "all pods"
    return f"{pods} of {f'namespace {home}' if peer.namespaces is None else _spaces_text(peer.namespaces)}"


def _block(block: IpBlock) -> str:
    if not block.excluded:
        return str(block.cidr)
    return f"{block.cidr} except {', '.join(map(str, block.excluded))}"


def _port(port: PortRange, bearers: Sequence[Pod]) -> str:
    protocol = PROTOCOL_NAMES.get(port.protocol, str(port.protocol))
    if port.name:
        found = Counter(
            number
            for pod in bearers
            for number in {
                item.port for item in pod.ports if (item.name, item.protocol) == (port.name, port.protocol)
            }
        )
        if not found:
            return f"{protocol} {port.name} (no such port)"
        if len(bearers) == 1:
            return f"{protocol} {port.name} ({', '.join(map(str, sorted(found)))})"
        numbers = ", ".join(
            f"{number} at {count} pod{'s' if count != 1 else ''}" for number, count in sorted(found.items())
        )
        return f"{protocol} {port.name} ({numbers})"
    if not port.first:
        return f"{protocol} all ports"
    return f"{protocol} {port.first}" if port.first == port.last else f"{protocol} {port.first}-{port.last}"
