"""The oracle: a row for each behaviour of the upstream NetworkPolicy tests, then every other rule of the API's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from pycni.model.family import FAMILIES, Family
from tests.unit.policy_world import pod_object, policy, table, truth, world

NOBODY = ""
X_A = "podSelector: {matchLabels: {pod: a}}"
"""Selects x/a in its namespace."""
DENY_IN = policy("deny-in", "podSelector: {}, policyTypes: [Ingress]")
DENY_ALL = policy("deny-all", "podSelector: {}, policyTypes: [Ingress, Egress]")
CLOSED_A = policy("closed", f"{X_A}, policyTypes: [Ingress]")


class Try(NamedTuple):
    """One truth table, as in ``truth``."""

    what: str
    into: Mapping[str, str] | None = None
    out: Mapping[str, str] | None = None


def tcp(into: dict[str, str] | None = None, out: dict[str, str] | None = None) -> list[Try]:
    """The same for 80 and 81, TCP."""
    return [Try(what, into, out) for what in ("80/TCP", "81/TCP")]


def _rules(text: str) -> str:
    """ "": none; ``{}``: the empty one; else the inside of one rule, or of several, joined by ``}, {``."""
    return text if text in {"", "{}"} else f"{{{text}}}"


def ingress(rules: str, select: str = X_A, name: str = "in", space: str = "x") -> str:
    return policy(name, f"{select}, policyTypes: [Ingress], ingress: [{_rules(rules)}]", space)


def egress(rules: str, select: str = X_A, name: str = "out", space: str = "x") -> str:
    return policy(name, f"{select}, policyTypes: [Egress], egress: [{_rules(rules)}]", space)


NS_Y = "namespaceSelector: {matchLabels: {ns: y}}"
NS_NOT_X = "namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}"
POD_B = "podSelector: {matchLabels: {pod: b}}"
ONLY_80 = [Try("80/TCP"), Try("81/TCP", {"x/a": NOBODY})]
ONLY_81 = [Try("80/TCP", {"x/a": NOBODY}), Try("81/TCP")]

UPSTREAM: dict[str, tuple[str, list[Try]]] = {
    "default-deny-ingress": (DENY_IN, tcp({"x/*": NOBODY})),
    "default-deny-all": (DENY_ALL, tcp({"x/*": NOBODY}, {"x/*": NOBODY})),
    "podSelector in the same namespace": (ingress(f"from: [{{{POD_B}}}]"), tcp({"x/a": "x/b"})),
    "a target is allowed over deny-all": (DENY_IN + ingress("from: [{namespaceSelector: {}}]"), tcp({"x/b": NOBODY, "x/c": NOBODY})),
    "pods of all namespaces": (DENY_IN + ingress("from: [{namespaceSelector: {}}]", "podSelector: {}"), tcp()),
    "only another namespace": (ingress(f"from: [{{{NS_Y}}}]"), tcp({"x/a": "y/*"})),
    "podSelector with matchExpressions": (ingress("from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]"), tcp({"x/a": "x/b"})),
    "namespaceSelector with matchExpressions": (ingress("from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y]}]}}]"), tcp({"x/a": "y/*"})),
    "a pod OR a namespace": (ingress(f"from: [{{{POD_B}}}, {{{NS_Y}}}]"), tcp({"x/a": "x/b y/*"})),
    "a pod AND a namespace": (ingress(f"from: [{{{POD_B}, {NS_Y}}}]"), tcp({"x/a": "y/b"})),
    "several ANDed with NotIn and In": (
        ingress(f"from: [{{{NS_NOT_X}, podSelector: {{matchExpressions: [{{key: pod, operator: In, values: [b, c]}}]}}}}]"),
        tcp({"x/a": "y/b y/c z/b z/c"}),
    ),
    "any of several podSelectors": (
        ingress("from: [{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]"),
        tcp({"x/a": "x/b x/c"}),
    ),
    "exactly one pod of another namespace": (ingress(f"from: [{{{NS_Y}, podSelector: {{matchLabels: {{pod: a}}}}}}]"), tcp({"x/a": "y/a"})),
    "only port 81": (ingress(f"from: [{{{NS_Y}}}], ports: [{{port: 81}}]"), [Try("80/TCP", {"x/a": NOBODY}), Try("81/TCP", {"x/a": "y/*"})]),
    "stacked policies, each with its port": (
        ingress(f"from: [{{{NS_Y}}}], ports: [{{port: 81}}]", name="one") + ingress(f"from: [{{{NS_Y}}}], ports: [{{port: 80}}]", name="two"),
        tcp({"x/a": "y/*"}),
    ),
    "allow-all": (DENY_IN + ingress("{}", "podSelector: {}"), tcp()),
    "a named port": (ingress("ports: [{port: serve-81-tcp}]"), ONLY_81),
    "a named port from one namespace": (ingress(f"from: [{{{NS_Y}}}], ports: [{{port: serve-81-tcp}}]"), [Try("80/TCP", {"x/a": NOBODY}), Try("81/TCP", {"x/a": "y/*"})]),
    "a named port at egress": (egress("ports: [{port: serve-80-tcp}]"), [Try("80/TCP"), Try("81/TCP", {}, {"x/a": NOBODY})]),
    "pods of other namespaces are denied": (ingress("from: [{podSelector: {}}]", "podSelector: {}"), tcp({"x/*": "x/*"})),
    "egress denied by podSelector": (egress(""), tcp({}, {"x/a": NOBODY})),
    "egress of a namespace denied": (egress("", "podSelector: {}"), tcp({}, {"x/*": NOBODY})),
    "ingress and egress together": (
        policy("both", f"{X_A}, policyTypes: [Ingress, Egress], ingress: [{{from: [{{{NS_Y}}}], ports: [{{port: 81}}]}}], egress: [{{to: [{{{POD_B}}}]}}]"),
        [Try("80/TCP", {"x/a": NOBODY}, {"x/a": "x/b"}), Try("81/TCP", {"x/a": "y/*"}, {"x/a": "x/b"})],
    ),
    "the client's side denies what the server's allows": (
        egress(f"to: [{{{NS_Y}, podSelector: {{matchLabels: {{pod: b}}}}}}]") + ingress("from: [{namespaceSelector: {matchLabels: {ns: x}}}]", space="y"),
        tcp({"y/a": "x/*"}, {"x/a": "y/b"}),
    ),
    "egress to a pod AND a namespace": (egress(f"to: [{{{NS_Y}, {POD_B}}}]"), tcp({}, {"x/a": "y/b"})),
    "a rule with a protocol only": (
        ingress("ports: [{protocol: TCP}]"),
        [*tcp(), Try("80/UDP", {"x/a": NOBODY}), Try("80/SCTP", {"x/a": NOBODY}), Try("icmp", {"x/a": NOBODY})],
    ),
    "ingress allow-all wins over a narrower one": (ingress(f"from: [{{{POD_B}}}], ports: [{{port: 80}}]", name="one") + ingress("{}", name="two"), tcp()),
    "egress allow-all wins over a narrower one": (egress(f"to: [{{{POD_B}}}], ports: [{{port: 80}}]", name="one") + egress("{}", name="two"), tcp()),
    "egress to a CIDR": (egress("to: [{ipBlock: {cidr: 10.244.2.12/32}}, {ipBlock: {cidr: 'fd00:244:2::12/128'}}]"), tcp({}, {"x/a": "x/b"})),
    "a /4 minus one address": (
        egress("to: [{ipBlock: {cidr: 0.0.0.0/4, except: [10.244.2.12/32]}}, {ipBlock: {cidr: 'f000::/4', except: ['fd00:244:2::12/128']}}]"),
        tcp({}, {"x/a": "x/[ac] y/* z/*"}),
    ),
    "an address excluded here and allowed there is allowed": (
        egress("to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.12/32]}}, {ipBlock: {cidr: 'fd00:244::/32', except: ['fd00:244:2::12/128']}}]", name="one")
        + egress("to: [{ipBlock: {cidr: 10.244.2.12/32}}, {ipBlock: {cidr: 'fd00:244:2::12/128'}}]", name="two"),
        tcp(),
    ),
    "directions are independent": (
        ingress("", name="one") + egress(f"to: [{{{POD_B}}}]", name="two") + egress("", POD_B, name="three"),
        tcp({"x/a": NOBODY}, {"x/a": "x/b", "x/b": NOBODY}),
    ),
    "SCTP is not taken for TCP": (ingress("ports: [{protocol: SCTP, port: 80}]"), [*tcp({"x/a": NOBODY}), Try("80/SCTP"), Try("81/SCTP", {"x/a": NOBODY})]),
    "a pod with SCTP allowed stays isolated for TCP": (
        ingress("ports: [{protocol: SCTP, port: 80}]", "podSelector: {}"),
        [*tcp({"x/*": NOBODY}), Try("80/UDP", {"x/*": NOBODY}), Try("80/SCTP")],
    ),
    "a UDP rule gives no TCP": (ingress("ports: [{protocol: UDP, port: 80}]"), [*tcp({"x/a": NOBODY}), Try("80/UDP")]),
    "the namespaces' own label, matchLabels": (ingress("from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]"), tcp({"x/a": "y/*"})),
    "the namespaces' own label, NotIn at egress": (
        egress("to: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}]"),
        tcp({}, {"x/a": "x/* z/*"}),
    ),
    **{
        f"{what}: {name}": (text, tries)
        for what in ("UDP", "SCTP")
        for name, text, tries in (
            ("default-deny-ingress", DENY_IN, [Try(f"80/{what}", {"x/*": NOBODY}), Try(f"81/{what}", {"x/*": NOBODY})]),
            ("only port 81", ingress(f"from: [{{{NS_Y}}}], ports: [{{port: 81, protocol: {what}}}]"), [Try(f"80/{what}", {"x/a": NOBODY}), Try(f"81/{what}", {"x/a": "y/*"}), Try("81/TCP", {"x/a": NOBODY})]),
            ("exactly one pod of another namespace", ingress(f"from: [{{{NS_Y}, podSelector: {{matchLabels: {{pod: a}}}}}}], ports: [{{protocol: {what}}}]"), [Try(f"80/{what}", {"x/a": "y/a"}), Try("80/TCP", {"x/a": NOBODY})]),
        )
    },
}  # fmt: skip
"""37 of the 42 TCP behaviours, three for UDP, three for SCTP; five more are about changes, below."""

CHANGES: dict[str, list[tuple[str, list[dict[str, Any]], list[Try]]]] = {
    "an updated policy": [(ingress("{}"), [], tcp()), (ingress("ports: [{port: 81}]"), [], ONLY_81)],
    "an updated namespace label": [
        (ingress("from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]"), [], tcp({"x/a": NOBODY})),
        (
            ingress("from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]"),
            [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y", "labels": {"ns": "y", "ns2": "updated"}}}],
            tcp({"x/a": "y/*"}),
        ),
    ],
    "an updated pod label": [
        (ingress("from: [{podSelector: {matchLabels: {pod2: updated}}}]"), [], tcp({"x/a": NOBODY})),
        (
            ingress("from: [{podSelector: {matchLabels: {pod2: updated}}}]"),
            [pod_object("x/b", {"pod": "b", "pod2": "updated"})],
            tcp({"x/a": "x/b"}),
        ),
    ],
    "a pod becomes isolated by a new label": [
        (ingress("", "podSelector: {matchLabels: {target: isolated}}"), [], tcp()),
        (
            ingress("", "podSelector: {matchLabels: {target: isolated}}"),
            [pod_object("x/a", {"pod": "a", "target": "isolated"})],
            tcp({"x/a": NOBODY}),
        ),
    ],
    "removal restores": [(DENY_ALL, [], tcp({"x/*": NOBODY}, {"x/*": NOBODY})), ("", [], tcp())],
}  # fmt: skip

FURTHER: dict[str, tuple[str, list[Try]]] = {
    "a policy says nothing about other namespaces": (policy("deny", "podSelector: {}, policyTypes: [Ingress]", "y"), tcp({"y/*": NOBODY})),
    "a podSelector without a namespaceSelector is of the policy's namespace": (ingress(f"from: [{{{POD_B}}}]", "podSelector: {}", space="y"), tcp({"y/*": "y/b"})),
    "no ingress rules are nothing": (policy("p", f"{X_A}, ingress: []"), tcp({"x/a": NOBODY})),
    "one empty rule is everything": (policy("p", f"{X_A}, ingress: [{{}}]"), tcp()),
    "empty from is everybody": (ingress("from: []"), tcp()),
    "empty ports are every port": (ingress(f"from: [{{{POD_B}}}], ports: []"), tcp({"x/a": "x/b"})),
    "ingress rules count for nothing when the policy is for egress": (policy("p", f"{X_A}, policyTypes: [Egress], ingress: [{{}}], egress: []"), tcp({}, {"x/a": NOBODY})),
    "egress rules isolate egress without policyTypes, and ingress too": (policy("p", f"{X_A}, egress: [{{to: [{{{POD_B}}}]}}]"), tcp({"x/a": NOBODY}, {"x/a": "x/b"})),
    "rules are ORed, peers and ports of one are ANDed": (
        ingress(f"from: [{{{POD_B}}}], ports: [{{port: 80}}]}}, {{from: [{{{NS_Y}}}], ports: [{{port: 81}}]"),
        [Try("80/TCP", {"x/a": "x/b"}), Try("81/TCP", {"x/a": "y/*"})],
    ),
    "endPort includes both ends": (
        ingress("ports: [{port: 80, endPort: 81}]"),
        [Try("79/TCP", {"x/a": NOBODY}), Try("80/TCP"), Try("81/TCP"), Try("82/TCP", {"x/a": NOBODY}), Try("80/UDP", {"x/a": NOBODY})],
    ),
    "endPort equal to port is one port": (ingress("ports: [{port: 80, endPort: 80}]"), ONLY_80),
    "a name of another protocol's port is none": (ingress("ports: [{port: serve-80-udp, protocol: TCP}]"), tcp({"x/a": NOBODY})),
    "a name nobody has is none": (ingress("ports: [{port: metrics}]"), tcp({"x/a": NOBODY})),
    "a name at egress is none in a block": (egress("to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}], ports: [{port: serve-80-tcp}]"), tcp({}, {"x/a": NOBODY})),
    "a name at ingress is the pod's own, from a block too": (ingress("from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}], ports: [{port: serve-80-tcp}]"), ONLY_80),
    "a block matches pods at ingress": (ingress("from: [{ipBlock: {cidr: 10.244.3.0/24}}, {ipBlock: {cidr: 'fd00:244:3::/64'}}]"), tcp({"x/a": "*/c"})),
    "several exceptions": (
        ingress("from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24, 10.244.3.0/24]}}, {ipBlock: {cidr: 'fd00:244::/32', except: ['fd00:244:2::/64', 'fd00:244:3::/64']}}]"),
        tcp({"x/a": "*/a"}),
    ),
    "a peer nobody knows is nobody, and the pod stays isolated": (ingress("from: [{fqdn: example.org}]"), tcp({"x/a": NOBODY})),
    "Exists": (ingress("from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: Exists}]}}]"), tcp()),
    "DoesNotExist": (ingress("from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: DoesNotExist}]}}]"), tcp({"x/a": NOBODY})),
    "NotIn holds without the label": (ingress("from: [{namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [x]}]}}]"), tcp()),
    "In does not": (ingress("from: [{namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [x, y]}]}}]"), tcp({"x/a": NOBODY})),
    "labels and expressions both have to hold": (ingress("from: [{podSelector: {matchLabels: {pod: b}, matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]"), tcp({"x/a": NOBODY})),
    "ICMP matches rules without ports": (ingress(f"from: [{{{POD_B}}}]"), [Try("icmp", {"x/a": "x/b"})]),
    "all ports of TCP are no ICMP": (ingress("ports: [{protocol: TCP}]"), [Try("icmp", {"x/a": NOBODY})]),
}  # fmt: skip


def judged(text: str, changes: list[dict[str, Any]], tries: list[Try], family: Family) -> None:
    snapshot = world(text, *changes)
    for each in tries:
        expected = truth(each.into, each.out)
        found = table(snapshot, each.what, family)
        assert found == expected, f"{each.what}: {sorted(found ^ expected)} differ"


families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.label)


@families
@pytest.mark.parametrize(("text", "tries"), UPSTREAM.values(), ids=UPSTREAM)
def test_upstream(text: str, tries: list[Try], family: Family) -> None:
    judged(text, [], tries, family)


@families
@pytest.mark.parametrize("steps", CHANGES.values(), ids=CHANGES)
def test_upstream_after_a_change(
    steps: list[tuple[str, list[dict[str, Any]], list[Try]]], family: Family
) -> None:
    for text, changes, tries in steps:
        judged(text, changes, tries, family)


@families
@pytest.mark.parametrize(("text", "tries"), FURTHER.values(), ids=FURTHER)
def test_network_policies(text: str, tries: list[Try], family: Family) -> None:
    judged(text, [], tries, family)


def test_every_upstream_behaviour_has_a_row() -> None:
    assert len(UPSTREAM) + len(CHANGES) == 42 + 3 + 3
