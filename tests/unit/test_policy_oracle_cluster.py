"""ClusterNetworkPolicies before the oracle: tiers, priorities, first match, Pass, subjects, what fails closed."""

from __future__ import annotations

import pytest

from pycni.model.family import FAMILIES, Family
from pycni.model.kube import Meta
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    Peer,
    Selector,
    Tier,
)
from pycni.view.policy_oracle import Cause
from tests.unit.policy_world import ask, cluster, policy, table, truth, world

ALL = "namespaces: {}"
OF_X = "namespaces: {matchLabels: {ns: x}}"
POD_A = "pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}"
NP_DENY = policy("np", "podSelector: {}, policyTypes: [Ingress]")
NP_ALLOW = policy("np", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]")
NP_FROM_Y = policy(
    "np",
    "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]",
)


def rules(*actions: str, peer: str = ALL, protocols: str = "", side: str = "ingress") -> str:
    """``ingress: [...]`` with one rule per action; ``Deny y`` is about namespace y only."""
    found = []
    for action in actions:
        verb, _, space = action.partition(" ")
        who = f"namespaces: {{matchLabels: {{ns: {space}}}}}" if space else peer
        word = "from" if side == "ingress" else "to"
        found.append(
            f"{{action: {verb}, {word}: [{{{who}}}]{f', protocols: [{protocols}]' if protocols else ''}}}"
        )
    return f"{side}: [{', '.join(found)}]"


def admin(spec: str, priority: int = 10, name: str = "adm", subject: str = OF_X) -> str:
    return cluster(name, spec, priority=priority, subject=subject)


def baseline(spec: str, priority: int = 10, name: str = "base", subject: str = OF_X) -> str:
    return cluster(name, spec, tier="Baseline", priority=priority, subject=subject)


NET = "networks: [10.244.2.0/24, 'fd00:244:2::/64']"
PORT_80 = "{tcp: {destinationPort: {number: 80}}}"
CASES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "Deny": (admin(rules("Deny")), {"x/*": ""}, {}),
    "Deny before a NetworkPolicy that allows": (admin(rules("Deny")) + NP_ALLOW, {"x/*": ""}, {}),
    "Accept before a NetworkPolicy that denies": (admin(rules("Accept y")) + NP_DENY, {"x/*": "y/*"}, {}),
    "Pass to a NetworkPolicy that allows": (admin(rules("Pass y", "Deny")) + NP_ALLOW, {"x/*": "y/*"}, {}),
    "Pass to a NetworkPolicy that denies": (admin(rules("Pass y", "Deny")) + NP_DENY, {"x/*": ""}, {}),
    "Pass to the baseline": (admin(rules("Pass y", "Accept")) + baseline(rules("Deny")), {"x/*": "x/* z/*"}, {}),
    "Pass to nothing": (admin(rules("Pass y", "Deny")), {"x/*": "y/*"}, {}),
    "Pass leads past later policies of the tier": (admin(rules("Pass y"), 1, "one") + admin(rules("Deny"), 2, "two"), {"x/*": "y/*"}, {}),
    "what no rule matches goes on": (admin(rules("Accept y")) + baseline(rules("Deny")), {"x/*": "y/*"}, {}),
    "first match wins inside a policy": (admin(rules("Accept y", "Deny y", "Deny z")), {"x/*": "x/* y/*"}, {}),
    "the smaller priority wins": (admin(rules("Deny"), 2, "a") + admin(rules("Accept y"), 1, "b"), {"x/*": "y/*"}, {}),
    "0 and 1000 are priorities": (admin(rules("Deny"), 1000, "a") + admin(rules("Accept y"), 0, "b"), {"x/*": "y/*"}, {}),
    "equal priorities go by name": (admin(rules("Deny"), 5, "b") + admin(rules("Accept y"), 5, "a"), {"x/*": "y/*"}, {}),
    "a NetworkPolicy's deny is final": (NP_FROM_Y + baseline(rules("Accept")), {"x/*": "y/*"}, {}),
    "a NetworkPolicy's allow is final": (NP_FROM_Y + baseline(rules("Deny")), {"x/*": "y/*"}, {}),
    "the baseline is for pods no NetworkPolicy isolates": (
        policy("np", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{}]") + baseline(rules("Deny")),
        {"x/[bc]": ""},
        {},
    ),
    "isolated at egress is not isolated at ingress": (policy("np", "podSelector: {}, policyTypes: [Egress], egress: [{}]") + baseline(rules("Deny")), {"x/*": ""}, {}),
    "Baseline Accept before Baseline Deny": (baseline(rules("Deny"), 2, "a") + baseline(rules("Accept y"), 1, "b"), {"x/*": "y/*"}, {}),
    "Baseline Pass leads to the default": (baseline(rules("Pass y", "Deny")), {"x/*": "y/*"}, {}),
    "Admin is before Baseline whatever the priorities": (baseline(rules("Deny"), 0) + admin(rules("Accept y"), 1000), {"x/*": "y/*"}, {}),
    "no rules change nothing": (admin("ingress: []"), {}, {}),
    "a subject of pods": (admin(rules("Deny"), subject=POD_A), {"x/a": ""}, {}),
    "a subject of all": (admin(rules("Deny"), subject=ALL), {"*": ""}, {}),
    "egress": (admin(rules("Deny y", side="egress")), {}, {"x/*": "x/* z/*"}),
    "an Accept at egress leaves ingress to others": (admin(rules("Accept", side="egress"), subject=ALL) + NP_DENY, {"x/*": ""}, {}),
    "networks at egress match pods": (admin(rules("Deny", peer=NET, side="egress")), {}, {"x/*": "*/[ac]"}),
    "networks with pods passed before": (
        admin(f"egress: [{{action: Pass, to: [{{{ALL}}}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0, '::/0']}}]}}]"),
        {},
        {},
    ),
    "pods as peers": (admin(rules("Deny", peer="pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}")), {"x/*": "*/[ac]"}, {}),
    "a port that fits": (admin(rules("Deny", protocols=PORT_80)), {"x/*": ""}, {}),
    "a port that does not": (admin(rules("Deny", protocols="{tcp: {destinationPort: {number: 81}}}")), {}, {}),
    "a range that fits": (admin(rules("Deny", protocols="{tcp: {destinationPort: {range: {start: 79, end: 80}}}}")), {"x/*": ""}, {}),
    "a protocol that does not": (admin(rules("Deny", protocols="{udp: {destinationPort: {number: 80}}}, {sctp: {destinationPort: {number: 80}}}")), {}, {}),
    "a named port": (admin(rules("Deny", protocols="{destinationNamedPort: serve-80-tcp}")), {"x/*": ""}, {}),
    "a named port at egress": (admin(rules("Deny", protocols="{destinationNamedPort: serve-80-tcp}", side="egress")), {}, {"x/*": ""}),
    "another port's name": (admin(rules("Deny", protocols="{destinationNamedPort: serve-80-udp}")), {}, {}),
    "an unknown peer of an Accept rule: the rule is none": (
        admin("ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: y}}}, {}]}, {action: Deny, from: [{namespaces: {}}]}]"),
        {"x/*": ""},
        {},
    ),
    "an unknown peer of a Deny rule: deny all": (admin("ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}, {}]}]"), {"x/*": ""}, {}),
    "an unknown peer of a Pass rule: deny all, ports or not": (
        admin(f"ingress: [{{action: Pass, from: [{{}}], protocols: [{PORT_80.replace('80', '9')}]}}]") + NP_ALLOW,
        {"x/*": ""},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.label)
@pytest.mark.parametrize(("text", "into", "out"), CASES.values(), ids=CASES)
def test_cluster_policies(text: str, into: dict[str, str], out: dict[str, str], family: Family) -> None:
    expected = truth(into, out)
    found = table(world(text), "80/TCP", family)
    assert found == expected, f"{sorted(found ^ expected)} differ"


def test_rules_without_protocols_are_for_icmp_too_and_those_with_are_not() -> None:
    networks = "networks: [0.0.0.0/0, '::/0']"
    everything = world(admin(rules("Deny", peer=networks, side="egress")))
    ports = world(admin(rules("Deny", peer=networks, protocols=PORT_80, side="egress")))
    for family in FAMILIES:
        assert not ask(everything, "x/a", "y/b", "icmp", family=family).allowed
        assert ask(ports, "x/a", "y/b", "icmp", family=family).allowed


def test_networks_are_for_the_world_outside_and_say_so() -> None:
    found = ask(
        world(admin(rules("Deny", peer="networks: [192.0.2.0/24]", side="egress"))), "x/a", "192.0.2.9"
    )
    assert (found.allowed, found.egress.cause, found.ingress.cause) == (False, Cause.RULE, Cause.OUTSIDE)
    assert str(found) == (
        "Pod x/a (10.244.1.11) -> 192.0.2.9, TCP port 80: denied\n"
        "  egress of Pod x/a: denied: by rule egress[0] of ClusterNetworkPolicy adm\n"
        "  ingress of 192.0.2.9: allowed: no pod"
    )


def test_reasons_name_rules_and_what_passed_on() -> None:
    named = "ingress: [{action: Pass, from: [{namespaces: {}}], name: tenants}]"
    found = ask(
        world(admin(named) + baseline(named, name="b1") + baseline(rules("Deny"), 11, "b2")), "y/a", "x/a"
    )
    assert found.allowed
    assert found.ingress.passed == ("ClusterNetworkPolicy adm", "ClusterNetworkPolicy b1")
    assert str(found.ingress) == (
        "ingress of Pod x/a: allowed: no policy decides about it, "
        "passed on by ClusterNetworkPolicy adm, ClusterNetworkPolicy b1"
    )
    np = ask(world(admin(named) + NP_ALLOW), "y/a", "x/a").ingress
    assert (np.policies, np.passed) == (("NetworkPolicy x/np",), ("ClusterNetworkPolicy adm",))
    denied = ask(world(admin(named) + baseline(rules("Accept y", "Deny"))), "z/a", "x/a").ingress
    assert (denied.policies, denied.rule, denied.direction) == (
        ("ClusterNetworkPolicy base",),
        1,
        Direction.INGRESS,
    )
    assert denied.passed == ("ClusterNetworkPolicy adm",)
    accepted = ask(world(admin(named.replace("Pass", "Accept"))), "z/a", "x/a").ingress
    assert (
        str(accepted)
        == "ingress of Pod x/a: allowed: by rule ingress[0] (tenants) of ClusterNetworkPolicy adm"
    )


def test_an_unknown_peer_fails_closed_in_objects_made_elsewhere_too() -> None:
    snapshot = world()
    for action, allowed in ((Action.ACCEPT, True), (Action.DENY, False), (Action.PASS, False)):
        rule = ClusterRule(action=action, peers=(Peer(unknown="new"), Peer(namespaces=Selector())))
        made = ClusterNetworkPolicy(meta=Meta(name="c"), tier=Tier.ADMIN, priority=1, ingress=(rule,))
        snapshot[CLUSTER_NETWORK_POLICY] = {"c": made}
        found = ask(snapshot, "y/a", "x/a")
        assert (found.allowed, found.ingress.cause) == (allowed, Cause.DEFAULT if allowed else Cause.RULE)
