"""Policies in words: whom they select, what their rules say, who is meant by that now. Pure.

Life: ``effective`` makes one ``Cluster`` for an answer and asks it which policies are about a pod and what their rules
come to: peers with the number of pods they mean, names of ports with their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from pycni.view.policies import NAME_LABEL

SIDES = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}


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


TIERS = {Tier.ADMIN: "admin", Tier.BASELINE: "baseline"}
NETWORK = "network"
Policy = NetworkPolicy | ClusterNetworkPolicy


def named(policy: Policy) -> str:
    """``NetworkPolicy a/x`` or ``ClusterNetworkPolicy x``."""
    return f"{kind_of(policy)} {policy.meta.key}"


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


def kind_of(policy: Policy) -> str:
    """Of the object."""
    return NETWORK_POLICY if isinstance(policy, NetworkPolicy) else CLUSTER_NETWORK_POLICY


def _pods_text(selector: Selector) -> str:
    return "all pods" if selector == Selector() else f"pods {selector.text}"


def _spaces_text(selector: Selector) -> str:
    if selector == Selector():
        return "all namespaces"
    if [key for key, _ in selector.labels] == [NAME_LABEL] and not selector.expressions:
        return f"namespace {selector.labels[0][1]}"
    return f"namespaces {selector.text}"


def troubles(policy: Policy) -> Iterator[str]:
    """What of a policy fails closed, rule by rule."""
    for direction in Direction:
        rules: Sequence[Rule | ClusterRule] = (
            policy.egress if direction is Direction.EGRESS else policy.ingress
        ) or ()
        for number, rule in enumerate(rules):
            problem = problem_of(rule)
            if problem:
                yield f"{SIDES[direction]}[{number}]: {problem}"


def problem_of(rule: Rule | ClusterRule) -> str:
    """Why a rule is not what it says; "" when it is."""
    unknown = [peer.unknown for peer in rule.peers or () if peer.unknown]
    if not unknown:
        return ""
    kinds = ", ".join(unknown)
    if isinstance(rule, ClusterRule) and rule.action is not Action.ACCEPT:
        return f"{kinds}: not known here, so this rule denies everything"
    if isinstance(rule, ClusterRule):
        return f"{kinds}: not known here, so this rule matches nothing"
    return f"a peer with {kinds}: not known here, so it matches nobody"


class Cluster:
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
        yield from ((NETWORK, policy) for policy in sorted(self._policies, key=lambda item: item.meta.key))
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
                problem=problem_of(rule),
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
