"""Network policies from JSON: missing against empty, defaults, what is refused, what fails closed, and nothing else."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.policy import (
    Action,
    Expression,
    IpBlock,
    Operator,
    Peer,
    PortRange,
    Rule,
    Selector,
    Tier,
)
from pycni.wire.kube import API_VERSIONS, decode_event, decode_list, decode_object, from_mapping

NP, CNP = "NetworkPolicy", "ClusterNetworkPolicy"
ALL = Selector()
WEB = Selector(labels=(("app", "web"),))


def whole(kind: str, spec: Any) -> dict[str, Any]:
    meta = {"name": "x", "namespace": "a"}
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": meta, "spec": spec}


def decode(kind: str, spec: Any) -> Any:
    found_kind, found = decode_object(json.dumps(whole(kind, spec)).encode())
    assert found_kind == kind
    return found


def ingress(*rules: Any) -> tuple[Rule, ...]:
    return decode(NP, {"ingress": list(rules)}).ingress


SECTIONS: dict[str, tuple[Any, Any, Any]] = {
    "nothing said isolates ingress": ({}, (), None),
    "no spec isolates ingress": (None, (), None),
    "nulls are missing": ({"podSelector": None, "policyTypes": None, "ingress": None, "egress": None}, (), None),
    "an ingress section is no egress section": ({"ingress": [{}]}, (Rule(),), None),
    "an egress section adds Egress": ({"egress": [{}]}, (), (Rule(),)),
    "an empty egress section adds nothing without policyTypes": ({"egress": []}, (), None),
    "policyTypes Egress alone leaves ingress open, whatever it says": ({"policyTypes": ["Egress"], "ingress": [{}]}, None, ()),
    "policyTypes Ingress alone leaves egress open, whatever it says": ({"policyTypes": ["Ingress"], "egress": [{}]}, (), None),
    "both types without rules isolate both": ({"policyTypes": ["Ingress", "Egress"]}, (), ()),
    "empty policyTypes are missing ones": ({"policyTypes": [], "egress": [{}]}, (), (Rule(),)),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "into", "out"), SECTIONS.values(), ids=SECTIONS)
def test_isolated_directions_follow_policy_types(spec: Any, into: Any, out: Any) -> None:
    found = decode(NP, spec)
    assert (found.ingress, found.egress, found.pods) == (into, out, ALL)


RULES: dict[str, tuple[Any, Rule]] = {
    "missing peers and ports are everything": ({}, Rule()),
    "null too": ({"from": None, "ports": None}, Rule()),
    "empty too": ({"from": [], "ports": []}, Rule()),
    "pods of the own namespace": ({"from": [{"podSelector": {}}]}, Rule(peers=(Peer(pods=ALL),))),
    "whole namespaces": ({"from": [{"namespaceSelector": {}}]}, Rule(peers=(Peer(namespaces=ALL),))),
    "both selectors": ({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}, Rule(peers=(Peer(namespaces=ALL, pods=WEB),))),
    "two elements": ({"from": [{"namespaceSelector": {}}, {"podSelector": {}}]}, Rule(peers=(Peer(namespaces=ALL), Peer(pods=ALL)))),
    "a block": ({"from": [{"ipBlock": {"cidr": "10.1.2.3/8"}}]}, Rule(peers=(Peer(block=IpBlock(cidr=ip_network("10.0.0.0/8"))),))),
    "a block with exceptions, sorted, once": (
        {"from": [{"ipBlock": {"cidr": "FD00::/8", "except": ["fd00:2::/32", "fd00:1::/32", "fd00:2::/32"]}}]},
        Rule(peers=(Peer(block=IpBlock(cidr=ip_network("fd00::/8"), excluded=(ip_network("fd00:1::/32"), ip_network("fd00:2::/32")))),)),
    ),
    "null exceptions": ({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": None}}]}, Rule(peers=(Peer(block=IpBlock(cidr=ip_network("0.0.0.0/0"))),))),
    "a peer of a kind not known": ({"from": [{"fqdn": "example.org"}]}, Rule(peers=(Peer(unknown="a field this version does not know"),))),
    "an empty port is all of TCP": ({"ports": [{}]}, Rule(ports=(PortRange(protocol=TCP),))),
    "all of a protocol": ({"ports": [{"protocol": "SCTP"}]}, Rule(ports=(PortRange(protocol=SCTP),))),
    "a number, TCP by default": ({"ports": [{"port": 80}]}, Rule(ports=(PortRange(protocol=TCP, first=80, last=80),))),
    "a name": ({"ports": [{"port": "dns-2", "protocol": "UDP"}]}, Rule(ports=(PortRange(protocol=UDP, name="dns-2"),))),
    "a range": ({"ports": [{"port": 80, "endPort": 90}]}, Rule(ports=(PortRange(protocol=TCP, first=80, last=90),))),
    "a range of one": ({"ports": [{"port": 80, "endPort": 80}]}, Rule(ports=(PortRange(protocol=TCP, first=80, last=80),))),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "expected"), RULES.values(), ids=RULES)
def test_a_rule_means_what_the_api_says(rule: Any, expected: Rule) -> None:
    assert ingress(rule) == (expected,)
    if "from" in rule:
        rule = {**rule, "to": rule["from"]}
        del rule["from"]
    assert decode(NP, {"egress": [rule]}).egress == (expected,), (
        "egress reads alike, its peers under another name"
    )


def test_a_rules_peers_are_read_under_their_own_direction_only() -> None:
    peers = [{"podSelector": {}}]
    found = decode(NP, {"ingress": [{"to": peers}], "egress": [{"from": peers}]})
    assert (found.ingress, found.egress) == ((Rule(),), (Rule(),))


def test_equal_selectors_compare_equal_however_they_are_written() -> None:
    one = {
        "matchLabels": {"b": "2", "a": None},
        "matchExpressions": [
            {"key": "z", "operator": "NotIn", "values": ["q", "p", "q"]},
            {"key": "a", "operator": "Exists"},
        ],
    }
    other = {
        "matchExpressions": [
            {"key": "a", "operator": "Exists", "values": []},
            {"key": "z", "operator": "NotIn", "values": ["p", "q"]},
            {"key": "a", "operator": "Exists", "values": None},
        ],
        "matchLabels": {"a": "", "b": "2"},
    }
    expected = Selector(
        labels=(("a", ""), ("b", "2")),
        expressions=(
            Expression(key="a", operator=Operator.EXISTS),
            Expression(key="z", operator=Operator.NOT_IN, values=("p", "q")),
        ),
    )
    assert decode(NP, {"podSelector": one}).pods == decode(NP, {"podSelector": other}).pods == expected
    assert expected.text == "a=,b=2,a,z notin (p,q)"
    assert ALL.text == "all"


BLOCK = "spec.ingress[0].from[0]"
REFUSED: dict[str, tuple[Any, str, Any]] = {
    "an unknown direction": ({"policyTypes": ["ingress"]}, "spec.policyTypes", "ingress"),
    "a block with a selector": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}, BLOCK, "ipBlock and a selector"),
    "a block with a namespace selector": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}}]}]}, BLOCK, "ipBlock and a selector"),
    "a block without cidr": ({"ingress": [{"from": [{"ipBlock": {}}]}]}, f"{BLOCK}.ipBlock.cidr", None),
    "an address for a block": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]}, f"{BLOCK}.ipBlock.cidr", "10.0.0.1"),
    "an exception outside": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}, f"{BLOCK}.ipBlock.except", "11.0.0.0/16"),
    "an exception around": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}}]}]}, f"{BLOCK}.ipBlock.except", "0.0.0.0/0"),
    "an exception that is all": ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}]}, f"{BLOCK}.ipBlock.except", "10.0.0.0/8"),
    "an exception of the other family": ({"ingress": [{"from": [{"ipBlock": {"cidr": "::/0", "except": ["10.0.0.0/8"]}}]}]}, f"{BLOCK}.ipBlock.except", "10.0.0.0/8"),
    "port 0": ({"ingress": [{"ports": [{"port": 0}]}]}, "spec.ingress[0].ports[0].port", 0),
    "a port too large": ({"ingress": [{"ports": [{"port": 65536}]}]}, "spec.ingress[0].ports[0].port", 65536),
    "a number in quotes": ({"ingress": [{"ports": [{"port": "80"}]}]}, "spec.ingress[0].ports[0].port", "80"),
    "no name": ({"ingress": [{"ports": [{"port": ""}]}]}, "spec.ingress[0].ports[0].port", ""),
    "a name too long": ({"ingress": [{"ports": [{"port": "a234567890123456"}]}]}, "spec.ingress[0].ports[0].port", "a234567890123456"),
    "a name with two dashes": ({"ingress": [{"ports": [{"port": "a--b"}]}]}, "spec.ingress[0].ports[0].port", "a--b"),
    "a name with a line end": ({"ingress": [{"ports": [{"port": "a\n"}]}]}, "spec.ingress[0].ports[0].port", "a\n"),
    "endPort with a name": ({"ingress": [{"ports": [{"port": "http", "endPort": 90}]}]}, "spec.ingress[0].ports[0].endPort", 90),
    "endPort without port": ({"ingress": [{"ports": [{"endPort": 90}]}]}, "spec.ingress[0].ports[0].endPort", 90),
    "endPort below port": ({"egress": [{"ports": [{"port": 80, "endPort": 79}]}]}, "spec.egress[0].ports[0].endPort", 79),
    "endPort too large": ({"egress": [{"ports": [{"port": 80, "endPort": 65536}]}]}, "spec.egress[0].ports[0].endPort", 65536),
    "an unknown protocol": ({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol", "ICMP"),
    "an unknown operator": ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["x"]}]}}, "spec.podSelector.matchExpressions[0].operator", "in"),
    "In without values": ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "spec.podSelector.matchExpressions[0].values", None),
    "NotIn without values": ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}}, "spec.podSelector.matchExpressions[0].values", []),
    "Exists with values": ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}}, "spec.podSelector.matchExpressions[0].values", ["x"]),
    "DoesNotExist with values": ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist", "values": ["x"]}]}}, "spec.podSelector.matchExpressions[0].values", ["x"]),
    "an expression without key": ({"podSelector": {"matchExpressions": [{"operator": "Exists"}]}}, "spec.podSelector.matchExpressions[0].key", None),
    "a label without name": ({"podSelector": {"matchLabels": {"": "x"}}}, "spec.podSelector.matchLabels", ""),
    "a rule that is none": ({"ingress": [None]}, "spec.ingress[0]", None),
    "a port that is a list": ({"ingress": [{"ports": [{"port": [80]}]}]}, "spec.ingress[0].ports[0].port", [80]),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "value"), REFUSED.values(), ids=REFUSED)
def test_nonsense_is_refused_naming_object_field_and_value(spec: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(NP, spec)
    error = caught.value
    assert (error.obj, error.field, error.value) == ("NetworkPolicy a/x", field, value)


# --- ClusterNetworkPolicy --------------------------------------------------------------------------------------------

EVERYBODY = {"namespaces": {}}


def cluster(**spec: Any) -> dict[str, Any]:
    return {"tier": "Admin", "priority": 10, "subject": EVERYBODY, **spec}


def rule(
    peers: Any = (EVERYBODY,), action: str = "Accept", side: str = "from", **rest: Any
) -> dict[str, Any]:
    return {"action": action, side: list(peers), **rest}


def test_a_cluster_policy_keeps_tier_priority_subject_and_rules_in_order() -> None:
    pods = {"namespaceSelector": {"matchLabels": {"app": "web"}}, "podSelector": {}}
    found = decode(
        CNP,
        cluster(
            tier="Baseline",
            priority=0,
            subject={"pods": pods},
            ingress=[rule(action="Pass", name="first"), rule([{"pods": pods}], "Deny")],
            egress=[rule([{"networks": ["10.0.0.0/8", "::/0"]}], side="to")],
        ),
    )
    assert found.meta.key == "x", "it has no namespace"
    assert (found.tier, found.priority, found.namespaces, found.pods) == (Tier.BASELINE, 0, WEB, ALL)
    first, second = found.ingress
    assert (first.action, first.name, first.peers, first.ports) == (
        Action.PASS,
        "first",
        (Peer(namespaces=ALL),),
        None,
    )
    assert (second.action, second.peers) == (Action.DENY, (Peer(namespaces=WEB, pods=ALL),))
    assert [peer.block.cidr for peer in found.egress[0].peers] == [
        ip_network("10.0.0.0/8"),
        ip_network("::/0"),
    ]
    bare = decode(CNP, cluster())
    assert (bare.tier, bare.pods, bare.ingress, bare.egress) == (Tier.ADMIN, None, (), ())


PROTOCOLS: dict[str, tuple[Any, tuple[PortRange, ...]]] = {
    "a number": ({"tcp": {"destinationPort": {"number": 80}}}, (PortRange(protocol=TCP, first=80, last=80),)),
    "a range": ({"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}}, (PortRange(protocol=UDP, first=1, last=65535),)),
    "SCTP": ({"sctp": {"destinationPort": {"number": 9}}}, (PortRange(protocol=SCTP, first=9, last=9),)),
    "a name is of any protocol": ({"destinationNamedPort": "http"}, tuple(PortRange(protocol=p, name="http") for p in (TCP, UDP, SCTP))),
}  # fmt: skip


@pytest.mark.parametrize(("protocol", "ports"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_protocols_of_a_cluster_policy(protocol: Any, ports: Any) -> None:
    assert decode(CNP, cluster(ingress=[rule(protocols=[protocol])])).ingress[0].ports == ports


UNKNOWN: dict[str, tuple[str, Any, str]] = {
    "an empty peer": ("ingress", {"peers": [{}]}, "a field this version does not know"),
    "a peer of nulls": ("ingress", {"peers": [{"namespaces": None, "pods": None}]}, "a field this version does not know"),
    "a new kind of peer": ("egress", {"peers": [EVERYBODY, {"services": {}}]}, "a field this version does not know"),
    "nodes": ("egress", {"peers": [{"nodes": {}}]}, "nodes"),
    "names": ("egress", {"peers": [{"domainNames": ["example.org"]}]}, "domainNames"),
    "networks at ingress": ("ingress", {"peers": [{"networks": ["10.0.0.0/8"]}]}, "networks"),
    "a new kind of protocol": ("ingress", {"protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"icmp": {}}]}, "protocols[1]: a field this version does not know"),
    "TCP without a port": ("ingress", {"protocols": [{"tcp": {}}]}, "protocols[0]: a field this version does not know"),
    "a port without a number": ("ingress", {"protocols": [{"udp": {"destinationPort": {}}}]}, "protocols[0]: a field this version does not know"),
}  # fmt: skip


@pytest.mark.parametrize("action", ["Accept", "Deny", "Pass"])
@pytest.mark.parametrize(("side", "fields", "said"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_rule_with_something_unknown_fails_closed_as_a_whole(
    side: str, fields: Any, said: str, action: str
) -> None:
    given_rule = rule(
        **{"action": action, "side": {"ingress": "from", "egress": "to"}[side], "name": "n", **fields}
    )
    [found] = getattr(decode(CNP, cluster(**{side: [given_rule]})), side)
    assert found.action is (Action.ACCEPT if action == "Accept" else Action.DENY)
    assert (found.peers, found.ports, found.name) == ((Peer(unknown=said),), None, "n")


MANY = 26
NETWORKS = [f"10.{n}.0.0/16" for n in range(MANY)]
CLUSTER_REFUSED: dict[str, tuple[Any, str, Any]] = {
    "no tier": (cluster(tier=None), "spec.tier", None),
    "a tier unknown": (cluster(tier="admin"), "spec.tier", "admin"),
    "no priority": (cluster(priority=None), "spec.priority", None),
    "a priority below 0": (cluster(priority=-1), "spec.priority", -1),
    "a priority above 1000": (cluster(priority=1001), "spec.priority", 1001),
    "no subject": (cluster(subject=None), "spec.subject", "neither"),
    "two subjects": (cluster(subject={"namespaces": {}, "pods": {}}), "spec.subject", "both"),
    "no action": (cluster(ingress=[{"from": [EVERYBODY]}]), "spec.ingress[0].action", None),
    "an old action": (cluster(ingress=[rule(action="Allow")]), "spec.ingress[0].action", "Allow"),
    "no peers": (cluster(ingress=[{"action": "Deny"}]), "spec.ingress[0].from", "0 entries"),
    "no peers at egress": (cluster(egress=[{"action": "Deny", "to": []}]), "spec.egress[0].to", "0 entries"),
    "peers of the other side": (cluster(egress=[rule()]), "spec.egress[0].to", "0 entries"),
    "too many rules": (cluster(ingress=[rule()] * MANY), "spec.ingress", "26 entries"),
    "too many rules out": (cluster(egress=[rule(side="to")] * MANY), "spec.egress", "26 entries"),
    "too many peers": (cluster(ingress=[rule([EVERYBODY] * MANY)]), "spec.ingress[0].from", "26 entries"),
    "too many networks": (cluster(egress=[rule([{"networks": NETWORKS}], side="to")]), "spec.egress[0].to[0].networks", "26 entries"),
    "no networks": (cluster(egress=[rule([{"networks": []}], side="to")]), "spec.egress[0].to[0].networks", "0 entries"),
    "no network": (cluster(egress=[rule([{"networks": ["10.0.0.0"]}], side="to")]), "spec.egress[0].to[0].networks[0]", "10.0.0.0"),
    "two kinds of peer in one": (cluster(ingress=[rule([{"namespaces": {}, "pods": {}}])]), "spec.ingress[0].from[0]", "namespaces and pods"),
    "no protocols": (cluster(ingress=[rule(protocols=[])]), "spec.ingress[0].protocols", "0 entries"),
    "too many protocols": (cluster(ingress=[rule(protocols=[{"destinationNamedPort": "a"}] * MANY)]), "spec.ingress[0].protocols", "26 entries"),
    "two protocols in one": (cluster(ingress=[rule(protocols=[{"tcp": {}, "udp": {}}])]), "spec.ingress[0].protocols[0]", "TCP and UDP"),
    "a number and a range": (cluster(ingress=[rule(protocols=[{"tcp": {"destinationPort": {"number": 1, "range": {"start": 1, "end": 2}}}}])]), "spec.ingress[0].protocols[0].tcp.destinationPort", "number and range"),
    "a range of one": (cluster(ingress=[rule(protocols=[{"tcp": {"destinationPort": {"range": {"start": 2, "end": 2}}}}])]), "spec.ingress[0].protocols[0].tcp.destinationPort.range", "2..2"),
    "port 0": (cluster(ingress=[rule(protocols=[{"sctp": {"destinationPort": {"number": 0}}}])]), "spec.ingress[0].protocols[0].sctp.destinationPort", 0),
    "a range too long": (cluster(ingress=[rule(protocols=[{"tcp": {"destinationPort": {"range": {"start": 2, "end": 65536}}}}])]), "spec.ingress[0].protocols[0].tcp.destinationPort", 65536),
    "no name of a port": (cluster(ingress=[rule(protocols=[{"destinationNamedPort": "80"}])]), "spec.ingress[0].protocols[0].destinationNamedPort", "80"),
    "a named port of networks": (cluster(egress=[rule([{"networks": ["::/0"]}], side="to", protocols=[{"destinationNamedPort": "http"}])]), "spec.egress[0].protocols", "destinationNamedPort"),
    "a name too long": (cluster(ingress=[rule(name="n" * 101)]), "spec.ingress[0].name", "n" * 101),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "value"), CLUSTER_REFUSED.values(), ids=CLUSTER_REFUSED)
def test_what_the_crd_refuses_is_refused_here(spec: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(CNP, spec)
    error = caught.value
    assert (error.obj, error.field, error.value) == ("ClusterNetworkPolicy x", field, value)


def test_the_limits_themselves_are_allowed() -> None:
    peers = [{"networks": NETWORKS[:25]}] * 25
    ports = [{"tcp": {"destinationPort": {"number": n}}} for n in range(1, 26)]
    rules = [rule(peers, side="to", protocols=ports, name="n" * 100)] * 25
    found = decode(CNP, cluster(priority=1000, egress=rules))
    assert (len(found.egress), len(found.egress[24].peers), len(found.egress[24].ports)) == (25, 625, 25)


@pytest.mark.parametrize(
    ("kind", "version"),
    [(NP, "extensions/v1beta1"), (CNP, "policy.networking.k8s.io/v1alpha1"), (NP, "v1")],
)
def test_other_versions_are_refused(kind: str, version: str) -> None:
    with pytest.raises(ConfigError, match="apiVersion"):
        from_mapping({**whole(kind, {}), "apiVersion": version})


def test_policies_come_from_yaml_lists_and_watches_alike() -> None:
    text = """
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: x, namespace: a}
    spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}
    """
    document = yaml.safe_load(text)
    found = from_mapping(document)
    assert found is not None
    bad = {"metadata": {"name": "bad", "namespace": "a"}, "spec": {"policyTypes": ["x"]}}
    page = decode_list(NP, json.dumps({"metadata": {}, "items": [document, bad]}).encode())
    assert (page.items, [skip.key for skip in page.skipped]) == ([found[1]], ["a/bad"])
    line = json.dumps({"type": "ADDED", "object": document}).encode()
    assert decode_event(NP, line).object == found[1]


# --- whatever comes --------------------------------------------------------------------------------------------------

_small = st.sampled_from([*[1, 2, 80, 90, 443, 999] * 4, -1, 0, 1001, 65535, 65536, 70000])
_names = st.sampled_from([*["a", "http", "dns-2"] * 5, "", "80", "a--b", "10.0.0.0/8"])
_nets = st.sampled_from(
    [*["10.0.0.0/8", "::/0", "fd00::/8", "0.0.0.0/0", "10.1.2.3/16"] * 3, "10.0.0.0", "::/129"]
)
_parts = st.sampled_from(["10.1.0.0/16", "fd00:1::/32", "10.0.0.0/8"])
_junk = (
    st.none()
    | st.booleans()
    | _small
    | _names
    | st.just([])
    | st.just({})
    | st.floats(allow_nan=False, allow_infinity=False)
)


def either(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what it should be, now and then anything."""
    return st.integers(0, 60).flatmap(lambda chance: _junk if chance == 13 else good)


def fields(
    needed: dict[str, st.SearchStrategy[Any]] | None = None, **parts: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    return either(
        st.fixed_dictionaries(needed or {}, optional={name.rstrip("_"): part for name, part in parts.items()})
    )


def many(part: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[Any]:
    return either(st.lists(part, min_size=least, max_size=2))


_valued = st.sampled_from(["In", "NotIn"])
_expression = fields({"key": _names, "operator": _valued, "values": many(_names, 1)}) | fields(
    {"key": _names, "operator": st.sampled_from(["Exists", "DoesNotExist", "in"])}, values=st.just([])
)
_selector = fields(
    matchLabels=either(st.dictionaries(_names, _names, max_size=2)), matchExpressions=many(_expression)
)
_block = fields({"cidr": _nets}, **{"except": many(_parts)})
_peer = fields(podSelector=_selector, namespaceSelector=_selector) | fields({"ipBlock": _block})
_port = fields(protocol=st.sampled_from(["TCP", "UDP", "SCTP", "ICMP"]), port=_small | _names) | fields(
    {"port": _small}, endPort=_small
)
_rule = fields(from_=many(_peer), to=many(_peer), ports=many(_port))
_types = many(st.sampled_from(["Ingress", "Egress"]))
_policy = fields(podSelector=_selector, policyTypes=_types, ingress=many(_rule), egress=many(_rule))

_pods = fields({"namespaceSelector": _selector, "podSelector": _selector})
_subject = fields({"namespaces": _selector}) | fields({"pods": _pods})
_cluster_peer = _subject | fields({"networks": many(_nets, 1)}) | fields(nodes=_junk, domainNames=_junk)
_span = fields({"range": fields({"start": st.sampled_from([1, 80]), "end": _small})})
_transport = fields({"destinationPort": fields({"number": _small}) | _span})
_protocol = (
    fields({"tcp": _transport})
    | fields({"udp": _transport})
    | fields({"destinationNamedPort": _names})
    | fields(tcp=_transport, sctp=_transport)
)


def _cluster_rules(side: str) -> st.SearchStrategy[Any]:
    action = st.sampled_from(["Accept", "Deny", "Pass", "Accept", "Deny", "Pass", "Allow"])
    return many(
        fields({"action": action, side: many(_cluster_peer, 1)}, name=_names, protocols=many(_protocol, 1))
    )


_cluster_policy = fields(
    {"tier": st.sampled_from(["Admin", "Baseline"]), "priority": _small, "subject": _subject},
    ingress=_cluster_rules("from"),
    egress=_cluster_rules("to"),
)


@settings(max_examples=600, deadline=None)
@given(st.tuples(st.just(NP), _policy) | st.tuples(st.just(CNP), _cluster_policy))
def test_whatever_a_policy_says_it_is_one_or_one_configerror(given_spec: tuple[str, Any]) -> None:
    kind, spec = given_spec
    raw = json.dumps(whole(kind, spec)).encode()
    try:
        _, found = decode_object(raw)
    except ConfigError:
        event(f"{kind} refused")
        page = decode_list(kind, b'{"metadata":{},"items":[' + raw + b"]}")
        assert (page.items, len(page.skipped)) == ([], 1)
    else:
        event(f"{kind} read")
        assert from_mapping(json.loads(raw)) == (kind, found)
        hash(repr(found))
