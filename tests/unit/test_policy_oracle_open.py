"""What the API leaves open, as docs/policy.md decides it: nodes, host pods, completed and terminating pods, names."""

from __future__ import annotations

from typing import Any

import pytest

from pycni.model.family import FAMILIES, Family
from pycni.model.kube import NAMESPACE
from pycni.view.policy_oracle import Cause
from tests.unit.policy_world import ask, cluster, node_addresses, pod_object, policy, world

DENY = policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]")
ADMIN_DENY = cluster(
    "deny",
    "ingress: [{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]",
)
POLICIES = pytest.mark.parametrize(
    "text", [DENY, ADMIN_DENY, DENY + ADMIN_DENY], ids=["NetworkPolicy", "Admin Deny", "both"]
)
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.label)
FROM_ALL_PODS = policy(
    "in", "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]"
)
TO_ALL_PODS = policy(
    "out", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]"
)


def of(pair: tuple[str, str], family: Family) -> str:
    return pair[0] if family is Family.V4 else pair[1]


@families
@POLICIES
def test_a_node_reaches_its_own_pods_and_they_reach_it(text: str, family: Family) -> None:
    snapshot = world(text)
    bridge, overlay = of(("10.244.1.1", "fd00:244:1::1"), family), of(("10.244.1.0", "fd00:244:1::"), family)
    for address in (of(node_addresses(1), family), bridge, overlay):
        into, out = (ask(snapshot, *ends, family=family) for ends in ((address, "x/a"), ("x/a", address)))
        assert (into.allowed, into.ingress.cause) == (True, Cause.OWN_NODE)
        assert (out.allowed, out.egress.cause, out.ingress.cause) == (True, Cause.OWN_NODE, Cause.HOST)


@families
def test_an_external_address_of_the_node_is_its_own_and_a_pods_address_never_is(family: Family) -> None:
    outer = of(("203.0.113.1", "2001:db8::1"), family)
    status = {"addresses": [{"type": "ExternalIP", "address": outer}]}
    spec = {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": spec, "status": status}
    first = of(("10.244.1.1", "fd00:244:1::1"), family)
    snapshot = world(DENY, node, pod_object("y/first", nodeName="n1", ips=[first]))
    assert ask(snapshot, outer, "x/a", family=family).ingress.cause is Cause.OWN_NODE
    assert not ask(snapshot, outer, "x/b", family=family).allowed
    assert not ask(snapshot, first, "x/a", family=family).allowed
    assert not ask(snapshot, "x/a", first, family=family).allowed


@families
def test_another_node_is_an_address_like_any_other(family: Family) -> None:
    snapshot = world(DENY)
    for address in (of(node_addresses(2), family), of(("10.244.2.1", "fd00:244:2::1"), family)):
        assert not ask(snapshot, address, "x/a", family=family).allowed
        assert not ask(snapshot, "x/a", address, family=family).allowed
    blocks = "{ipBlock: {cidr: 192.168.0.2/32}}, {ipBlock: {cidr: 'fd00:a::2/128'}}"
    opened = world(DENY + policy("node", f"podSelector: {{}}, ingress: [{{from: [{blocks}]}}]"))
    assert ask(opened, of(node_addresses(2), family), "x/a", family=family).allowed
    assert not ask(opened, of(node_addresses(3), family), "x/a", family=family).allowed


@families
def test_what_a_node_sends_itself_is_the_nodes_whatever_source_it_has(family: Family) -> None:
    snapshot = world(DENY)
    odd = of(("203.0.113.7", "2001:db8::7"), family)
    own = ask(snapshot, odd, "x/a", node="n1", family=family)
    assert (own.allowed, own.ingress.cause, own.egress.cause) == (True, Cause.OWN_NODE, Cause.HOST)
    assert own.connection.startswith(f"Node n1 ({odd}) -> Pod x/a (")
    assert not ask(snapshot, odd, "x/a", node="n2", family=family).allowed
    assert not ask(snapshot, odd, "x/a", family=family).allowed
    stolen = ask(snapshot, "x/b", "x/a", node="n1", family=family)
    assert stolen.allowed, "even that of a pod"


@POLICIES
@families
def test_a_pod_reaches_itself(text: str, family: Family) -> None:
    found = ask(world(text), "x/a", "x/a", family=family)
    assert (found.allowed, found.egress.cause, found.ingress.cause) == (True, Cause.ITSELF, Cause.ITSELF)


HOST_POD = pod_object("x/host", {"pod": "b"}, hostNetwork=True, nodeName="n2", ips=list(node_addresses(2)))
UNLISTED = pod_object(
    "x/host", {"pod": "b"}, hostNetwork=True, nodeName="n2", ips=["192.168.7.7", "fd00:77::7"]
)


@families
def test_policies_do_not_select_pods_on_the_hosts_network(family: Family) -> None:
    snapshot = world(DENY + ADMIN_DENY, HOST_POD)
    assert ask(
        snapshot,
        of(node_addresses(2), family),
        "192.0.2.9" if family is Family.V4 else "2001:db8::9",
        family=family,
    ).allowed
    into = ask(
        snapshot, of(("192.0.2.9", "2001:db8::9"), family), of(node_addresses(2), family), family=family
    )
    assert (into.allowed, into.ingress.cause, into.ingress.subject) == (True, Cause.HOST, "Node n2")


@families
def test_as_peers_they_are_their_nodes_address(family: Family) -> None:
    address = of(node_addresses(2), family)
    assert not ask(world(FROM_ALL_PODS, HOST_POD), address, "x/a", family=family).allowed
    assert not ask(world(TO_ALL_PODS, HOST_POD), "x/a", address, family=family).allowed
    everybody = policy("in", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]")
    assert ask(world(everybody, HOST_POD), address, "x/a", family=family).allowed
    accept = cluster("a", "ingress: [{action: Accept, from: [{namespaces: {}}]}]")
    assert not ask(world(accept + FROM_ALL_PODS, HOST_POD), address, "x/a", family=family).allowed


@families
def test_an_address_only_a_host_pod_tells_of_is_its_nodes(family: Family) -> None:
    snapshot, address = world(DENY, UNLISTED), of(("192.168.7.7", "fd00:77::7"), family)
    assert ask(snapshot, address, "x/b", family=family).ingress.cause is Cause.OWN_NODE
    assert not ask(snapshot, address, "x/a", family=family).allowed


ANY_PORT_HTTP = policy("in", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: http}]}]")


@families
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_completed_pods_have_no_address_any_more(phase: str, family: Family) -> None:
    done = pod_object("x/b", phase=phase)
    gone = world(FROM_ALL_PODS + DENY, done)
    address = of(("10.244.2.12", "fd00:244:2::12"), family)
    assert ask(world(FROM_ALL_PODS), address, "x/a", family=family).allowed, "while it runs"
    assert not ask(gone, address, "x/a", family=family).allowed, "no peer"
    assert ask(gone, address, of(("192.0.2.9", "2001:db8::9"), family), family=family).allowed, "not isolated"
    heir = pod_object("y/heir", {"pod": "heir"}, ips=["10.244.2.12", "fd00:244:2::12"])
    found = ask(world(FROM_ALL_PODS, done, heir), address, "x/a", family=family)
    assert (found.allowed, found.egress.subject) == (True, "Pod y/heir"), "whose the address is now"


@families
def test_terminating_pods_keep_their_policies_and_stay_peers(family: Family) -> None:
    going = pod_object("x/b", deleting=True)
    assert ask(world(FROM_ALL_PODS, going), "x/b", "x/a", family=family).allowed
    assert not ask(world(DENY, going), "y/a", "x/b", family=family).allowed


CLAIMS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "not the one that goes": ([pod_object("y/p", ips=["10.244.1.99"], deleting=True, created="2024-01-02T00:00:00Z"), pod_object("z/p", ips=["10.244.1.99"])], "z/p"),
    "the newer one": ([pod_object("y/p", ips=["10.244.1.99"], created="2024-01-01T00:00:00Z"), pod_object("z/p", ips=["10.244.1.99"], created="2024-01-02T00:00:00Z")], "z/p"),
    "the first by name": ([pod_object("z/p", ips=["10.244.1.99"]), pod_object("y/p", ips=["10.244.1.99"])], "y/p"),
}  # fmt: skip


@pytest.mark.parametrize(("pods", "owner"), CLAIMS.values(), ids=CLAIMS)
def test_of_two_pods_with_one_address_it_belongs_to(pods: list[dict[str, Any]], owner: str) -> None:
    assert ask(world("", *pods), "10.244.1.99", "x/a").egress.subject == f"Pod {owner}"


def test_a_namespace_nobody_told_of_has_its_name_as_label() -> None:
    by_name = policy(
        "in",
        "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]}]",
    )
    snapshot = world(by_name)
    del snapshot[NAMESPACE]
    assert ask(snapshot, "y/a", "x/a").allowed
    assert not ask(snapshot, "z/a", "x/a").allowed
    assert not ask(
        world(by_name.replace("kubernetes.io/metadata.name: y", "ns: other")), "y/a", "x/a"
    ).allowed


def test_names_of_ports_are_each_destination_pods_own() -> None:
    def serving(pod: str, *ports: tuple[int, str, str]) -> dict[str, Any]:
        return pod_object(
            pod, ports=[{"containerPort": n, "protocol": p, "name": name} for n, p, name in ports]
        )

    pods = [
        serving("x/a", (8080, "TCP", "http"), (53, "UDP", "http")),
        serving("x/b", (9090, "TCP", "http"), (9091, "TCP", "http")),
        serving("x/c", (8080, "TCP", "other")),
    ]
    out = policy(
        "out",
        "podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: http}]}]",
        "y",
    )
    anywhere = policy("out", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]", "y")
    for snapshot in (world(ANY_PORT_HTTP, *pods), world(out, *pods), world(anywhere, *pods)):
        reached = {
            (pod, what)
            for pod in ("x/a", "x/b", "x/c")
            for what in ("8080/TCP", "9090/TCP", "9091/TCP", "53/UDP", "53/TCP", "8080/UDP")
            if ask(snapshot, "y/a", pod, what).allowed
        }
        assert reached == {("x/a", "8080/TCP"), ("x/b", "9090/TCP"), ("x/b", "9091/TCP")}
    assert not ask(world(anywhere, *pods), "y/a", "192.0.2.9", "8080/TCP").allowed, "nobody outside has names"
    by_udp = world(ANY_PORT_HTTP.replace("port: http", "port: http, protocol: UDP"), *pods)
    assert ask(by_udp, "y/a", "x/a", "53/UDP").allowed
    assert not ask(by_udp, "y/a", "x/a", "8080/TCP").allowed
    cnp = world(
        cluster(
            "n",
            "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}, {action: Deny, from: [{namespaces: {}}]}]",
        ),
        *pods,
    )
    assert [ask(cnp, "y/a", "x/a", what).allowed for what in ("8080/TCP", "53/UDP", "53/TCP")] == [
        True,
        True,
        False,
    ]


@families
def test_the_world_outside_matches_blocks_and_rules_for_everybody_only(family: Family) -> None:
    outside = of(("192.0.2.9", "2001:db8:9::9"), family)
    both = "{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/29]}}, {ipBlock: {cidr: '2001:db8:9::/48', except: ['2001:db8:9::8/125']}}"
    plain = both.replace(", except: [192.0.2.8/29]", "").replace(", except: ['2001:db8:9::8/125']", "")
    for peers, allowed in (
        (both, False),
        (plain, True),
        ("{namespaceSelector: {}}", False),
        (f"{both}, {plain}", True),
    ):
        section = f"podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{from: [{peers}]}}], egress: [{{to: [{peers}]}}]"
        snapshot = world(policy("p", section))
        assert ask(snapshot, outside, "x/a", family=family).allowed is allowed
        assert ask(snapshot, "x/a", outside, family=family).allowed is allowed
    assert ask(world(DENY), outside, "y/a", family=family).allowed


def test_reasons_say_which_policies_isolate() -> None:
    found = ask(
        world(DENY + FROM_ALL_PODS + policy("other", "podSelector: {matchLabels: {pod: b}}")),
        "192.0.2.9",
        "x/a",
    )
    assert (
        str(found.ingress)
        == "ingress of Pod x/a: denied: no rule of NetworkPolicy x/deny, NetworkPolicy x/in allows it"
    )
    allowed = ask(world(DENY + FROM_ALL_PODS), "y/a", "x/a")
    assert str(allowed.ingress) == "ingress of Pod x/a: allowed: by rule ingress[0] of NetworkPolicy x/in"
    assert str(allowed.egress) == "egress of Pod y/a: allowed: no policy decides about it"
    assert allowed.connection == "Pod y/a (10.244.1.21) -> Pod x/a (10.244.1.11), TCP port 80"
    assert ask(world(), "x/a", "x/b", "icmp").connection.endswith("protocol 1")


def test_a_packet_is_of_one_family() -> None:
    with pytest.raises(ValueError, match="two families"):
        ask(world(), "10.244.1.11", "fd00::1")
