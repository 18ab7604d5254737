"""Network policies in nftables with real packets: what the API says is what arrives, and what the kernel says back."""

from __future__ import annotations

import os
import socket
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.kernel import netns as namespaces
from pycni.model.kube import POD, TCP, UDP, Meta
from pycni.model.policy import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Peer,
    PortRange,
    Selector,
    Tier,
)
from pycni.policy import nft
from pycni.policy.base import JUDGED_MARK
from pycni.policy.engine import PolicyEngine
from pycni.policy.nft.layout import LOG_GROUP, TABLE
from tests.laws.test_policy_nft import random_steps
from tests.netns.fabric_nodes import run
from tests.netns.policy_rig import EVERY, Rig, Try, block, policy, rule, web
from tests.proxy.topology import PODS, SECOND, Topology
from tests.proxy.traffic import Traffic

ALL = Selector()
TCP80, UDP80 = PortRange(first=80, last=80), PortRange(protocol=UDP, first=80, last=80)
HTTP = PortRange(name="http")


def cluster(name, tier, priority, **sections):
    return ClusterNetworkPolicy(meta=Meta(name=name), tier=tier, priority=priority, **sections)


def does(action, *peers, ports=None):
    return ClusterRule(action=action, peers=peers, ports=ports)


EVERYBODY = Peer(namespaces=ALL)
WORLDS = {
    "no policy": (),
    "default deny of ingress": (policy("shop/deny", ingress=()),),
    "default deny of egress": (policy("shop/deny", egress=()), policy("lone/deny", egress=())),
    "pods of the own namespace": (policy("shop/p", ingress=(rule(Peer(pods=web(app="db"))),)),),
    "pods of another namespace or the own": (
        policy("shop/p", ingress=(rule(Peer(namespaces=web(team="l"), pods=web(app="web")), Peer(pods=web(app="web"))),)),
    ),
    "egress by labels and a port": (
        policy("shop/e", web(app="web"), egress=(rule(Peer(pods=web(app="db")), ports=[TCP80]),)),
        policy("lone/e", egress=(rule(Peer(namespaces=web(team="s")), ports=[UDP80]),)),
    ),
    "blocks with exceptions": (
        policy("shop/b", ingress=(rule(block("0.0.0.0/0", "10.244.1.0/28"), block("2001:db8:9::/48")),)),
        policy("lone/b", egress=(rule(block("10.244.1.11/32"), block("fd00:244::/32", "fd00:244:2::/64")),)),
    ),
    "a named port": (
        policy("shop/n", ingress=(rule(ports=[HTTP]),)),
        policy("lone/n", egress=(rule(EVERYBODY, ports=[HTTP]),)),
    ),
    "a range of ports": (policy("shop/r", ingress=(rule(ports=[PortRange(first=81, last=9000), UDP80]),)),),
    "many rules with ports of their own": (
        policy("shop/m", ingress=(
            rule(Peer(pods=web(app="db")), ports=[TCP80]), rule(block("10.244.0.0/16"), ports=[TCP80, UDP80]),
            rule(Peer(namespaces=web(team="l")), block("fd00:244:2::/64"), ports=[PortRange(first=8000, last=9000)]),
            *(rule(block(f"192.0.2.{n}/32"), Peer(pods=web(app=f"n{n}")), ports=[PortRange(first=80, last=90 + n)]) for n in range(6)),
            rule(ports=[PortRange(protocol=UDP, first=8080, last=8080)]), rule(EVERYBODY, ports=[HTTP]),
        )),
        policy("lone/m", egress=(
            *(rule(Peer(namespaces=web(team="s"), pods=web(app=app)), ports=[port]) for app, port in (("web", TCP80), ("db", UDP80))),
            *(rule(Peer(pods=web(app=f"n{n}")), block("10.244.2.0/24"), ports=[PortRange(first=8070 + n, last=8080)]) for n in range(4)),
        )),
    ),
    "stacked policies": (
        policy("shop/one", web(app="db"), ingress=(rule(Peer(pods=web(app="web")), ports=[TCP80]),)),
        policy("shop/two", web(app="db"), ingress=(rule(EVERYBODY, ports=[UDP80]),), egress=()),
        policy("shop/three", ingress=(rule(block("192.0.2.0/24")),)),
    ),
    "admin before, baseline behind": (
        policy("shop/allow", web(app="web"), ingress=(rule(),)),
        cluster("deny-udp", Tier.ADMIN, 5, ingress=(does(Action.DENY, EVERYBODY, ports=(UDP80,)),)),
        cluster("baseline", Tier.BASELINE, 0, ingress=(does(Action.DENY, EVERYBODY),), egress=(does(Action.ACCEPT, EVERYBODY),)),
    ),
    "pass leaves the tier": (
        policy("shop/none", web(app="db"), ingress=()),
        cluster("a", Tier.ADMIN, 1, ingress=(does(Action.PASS, EVERYBODY, ports=(TCP80,)), does(Action.ACCEPT, EVERYBODY))),
        cluster("b", Tier.ADMIN, 2, ingress=(does(Action.DENY, EVERYBODY),)),
    ),
}  # fmt: skip
LISTED = (
    "stacked policies",
    "admin before, baseline behind",
    "a named port",
    "many rules with ports of their own",
)


def engine_in(path, node="n1"):
    fd = namespaces.open_netns(path)
    try:
        return PolicyEngine(node, namespaces.run_in(fd, nft.make))
    finally:
        os.close(fd)


@pytest.fixture
def rig(spaces: Topology, traffic: Traffic):
    engine = engine_in(spaces.path("node"))
    try:
        yield Rig(engine, spaces, traffic)
    finally:
        engine.plane.driver.remove()
        engine.plane.driver.close()


@pytest.mark.parametrize("world", WORLDS)
def test_what_the_api_says_arrives(rig, world):
    rig.only(*WORLDS[world])
    wanted = {one: rig.judged(one) for one in EVERY}
    if world != "no policy":
        assert {told for told, _ in wanted.values()} == {True, False}
    for one, passed in zip(EVERY, rig.passes(EVERY), strict=True):
        told, why = wanted[one]
        assert (passed, rig.decided(one)) == (told, told), f"{one}\n{why}"
    found = rig.engine.plane.driver.read()
    assert {name: found[name] for name in rig.engine.tables} == rig.engine.tables


def test_denials_are_counted_by_policy_and_direction(rig):
    rig.only(policy("shop/in", web(app="web"), ingress=()), policy("shop/out", web(app="web"), egress=()))
    rig.passes([Try("c", "a", 0, UDP, 80), Try("x", "a", 1, UDP, 80), Try("a", "x", 0, UDP, 80)], 0.3)
    found = {(item.policy, item.direction): item.packets for item in rig.engine.plane.driver.denied()}
    assert found["NetworkPolicy shop/in", "ingress"] == 2
    assert found["NetworkPolicy shop/out", "egress"] == 1
    assert found["pods not known yet", "ingress"] == 0


def test_denials_are_told_with_policy_and_direction(rig, spaces):
    fd = namespaces.open_netns(spaces.path("node"))
    try:
        log = namespaces.run_in(fd, open_log)
    finally:
        os.close(fd)
    with log:
        rig.only(policy("shop/closed", web(app="web"), ingress=()))
        rig.passes([Try("b", "a", 0, UDP, 80)], 0.3)
        assert b"pycni ingress NetworkPolicy shop/closed: \0" in log.recv(65536)


def open_log():
    """A socket that gets what is logged to our group in this namespace (linux/netfilter/nfnetlink_log.h)."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.settimeout(5)
    # nfgenmsg with the group, then NFULA_CFG_CMD: bind.
    body = struct.pack(">BBH", 0, 0, LOG_GROUP) + struct.pack("=HHB3x", 5, 1, 1)
    sock.send(struct.pack("=IHHII", 16 + len(body), 4 << 8 | 1, 5, 1, 0) + body)
    assert struct.unpack_from("=i", sock.recv(4096), 16)[0] == 0
    return sock


def test_established_connections_survive_changes(rig, traffic):
    rig.only(policy("shop/p", ingress=(rule(Peer(pods=web(app="db"))),)))
    held = [Try(client, "a", family, TCP, 80) for client in ("b", "out") for family in (0, 1)]
    rig.only()
    numbers = [
        number
        for outcome, number in traffic.hold([rig.dial(one, 5) for one in held])
        if outcome.verdict == "answer"
    ]
    assert len(numbers) == 4
    try:
        rig.only(policy("shop/p", ingress=(rule(Peer(pods=web(app="db"))),)))
        assert rig.passes([Try("out", "a", 0, TCP, 80)]) == [False]
        assert [one.verdict for one in traffic.ask(numbers)] == ["answer"] * 4
        rig.put_pod("c", app="other")
        rig.only(policy("shop/deny", ingress=(), egress=()), policy("lone/q", egress=()))
        assert [one.verdict for one in traffic.ask(numbers)] == ["answer"] * 4
    finally:
        traffic.drop(numbers)


def test_peers_are_pods_behind_a_translated_address(rig, spaces, traffic):
    """Pods of the same node and of another, through an address that is translated before routing."""
    name = spaces.names["node"]
    run(name, "nft add table inet pyt_dnat")
    try:
        run(name, "nft add chain inet pyt_dnat c { type nat hook prerouting priority -100 ; }")
        rule_text = "ip daddr 10.96.0.7 tcp dport 80 dnat ip to 10.244.1.12:80"
        run(name, f"nft add rule inet pyt_dnat c {rule_text}")
        dials = [
            rig.dial(Try(client, "b", 0, TCP, 80), 2)._replace(address="10.96.0.7")
            for client in ("a", "c", "x", "y")
        ]
        seen = {}
        for label, sections in {
            "own": {"ingress": (rule(Peer(pods=ALL)),)},
            "address": {"ingress": (rule(block("10.96.0.0/16")),)},
            "nobody's": {},
        }.items():
            rig.only(*([policy("shop/p", web(app="db"), **sections)] if sections else []))
            seen[label] = [one.verdict == "answer" for one in traffic.dial(dials)]
        assert seen == {"own": [True, False, True, False], "address": [False] * 4, "nobody's": [True] * 4}
    finally:
        run(name, "nft delete table inet pyt_dnat")


@pytest.mark.parametrize(
    ("mark", "passes"), [(JUDGED_MARK, True), (JUDGED_MARK | 0x4000, True), (~JUDGED_MARK, False)]
)
def test_what_a_fast_path_has_judged_passes(rig, spaces, mark, passes):
    """Bridged and routed, into pods and out of them."""
    name = spaces.names["node"]
    rig.only(policy("shop/deny", ingress=(), egress=()))
    tries = [
        Try(*ends, family, UDP, 80) for ends in (("b", "a"), ("x", "a"), ("a", "y")) for family in (0, 1)
    ]
    # Replies are of an established connection. The rule's hook is one that bridged packets pass too.
    hook = "type filter hook prerouting priority -150 ;"
    rule_text = f"meta l4proto udp meta mark set {mark & 0xFFFFFFFF:#x}"
    run(
        name,
        f"nft add table inet pyt_mark ; add chain inet pyt_mark c {{ {hook} }} ; add rule inet pyt_mark c {rule_text}",
    )
    try:
        assert dict(zip(tries, rig.passes(tries), strict=True)) == dict.fromkeys(tries, passes)
    finally:
        run(name, "nft delete table inet pyt_mark")
    assert rig.passes(tries) == [False] * len(tries)


def test_bridged_packets_are_judged_whatever_the_switch_said(spaces, traffic):
    for switch in nft.BRIDGED:
        run(spaces.names["node"], f"sysctl -qw {switch}=0")
    engine = engine_in(spaces.path("node"))
    try:
        rig = Rig(engine, spaces, traffic)
        rig.only(policy("shop/deny", ingress=()))
        assert rig.passes([Try("b", "a", family, TCP, 80) for family in (0, 1)]) == [False, False]
    finally:
        engine.plane.driver.remove()
        engine.plane.driver.close()


def test_the_node_reaches_its_pods_from_any_address_it_has(rig, traffic):
    rig.only(policy("shop/deny", ingress=(), egress=()))
    dials = [
        rig.dial(Try("node", "a", family, TCP, 80), 5)._replace(source=SECOND[family]) for family in (0, 1)
    ]
    assert [one.verdict for one in traffic.dial(dials)] == ["answer", "answer"]


def test_neighbour_discovery_passes(rig, spaces):
    only = rule(Peer(pods=ALL), ports=[TCP80])
    rig.only(policy("shop/p", ingress=(only,), egress=(only,)))
    for pod in ("a", "b"):
        run(spaces.names[pod], "ip -6 neigh flush all")
    assert rig.passes([Try("b", "a", 1, TCP, 80), Try("b", "a", 1, TCP, 8080)]) == [True, False]


def test_a_relabelled_pod_is_judged_anew(rig):
    rig.only(policy("shop/p", web(app="web"), ingress=(rule(Peer(pods=web(app="db"))),)))
    one = Try("b", "a", 0, TCP, 80)
    assert rig.passes([one]) == [True]
    rig.put_pod("b", app="else")
    rig.sync()
    assert rig.passes([one]) == [False]
    rig.put_pod("a", app="free")
    rig.sync()
    assert rig.passes([one]) == [True]


def test_a_pod_not_known_yet_is_closed_as_far_as_policies_may_isolate_it(rig):
    rig.only(policy("lone/p", web(app="web"), egress=(rule(Peer(namespaces=ALL)),)))
    rig.store.delete(POD, "lone/c")
    rig.sync()
    tries = [Try("c", "b", family, TCP, 80) for family in (0, 1)]
    assert rig.passes(tries) == [True, True]
    addresses = [socket.inet_aton(PODS["c"][0]), socket.inet_pton(socket.AF_INET6, PODS["c"][1])]
    rig.engine.admit("lone", addresses)
    found = rig._traffic.dial([rig.dial(one, 0.5) for one in tries])
    assert [one.verdict for one in found] == ["silence", "silence"]
    denied = {
        item.policy: item.packets for item in rig.engine.plane.driver.denied() if item.direction == "egress"
    }
    assert denied["pods not known yet"] >= 2
    rig.put_pod("c")
    rig.sync()
    assert rig.passes(tries) == [True, True]
    rig.engine.admit("shop", [b"\x0a\xf4\x01\x63"])
    assert not rig.engine.tables["closed_egress4"].keys() & {b"\x0a\xf4\x01\x63"}


def test_a_new_engine_adopts_what_is_there_and_repairs_damage(rig, spaces):
    rig.only(*(one for name in LISTED for one in WORLDS[name]))
    other = engine_in(spaces.path("node"))
    try:
        assert other.sync(rig.store.snapshot()).operations == 0
        name = spaces.names["node"]
        for damage in (
            f"flush set inet {TABLE} own4",
            f"flush chain inet {TABLE} np-ingress4-shop/three",
            f"flush set inet {TABLE} groups4",
            f"flush set inet {TABLE} blocks4",
            f"flush set inet {TABLE} ports",
            f"flush map inet {TABLE} classes",
            f"insert rule inet {TABLE} egress accept",
            f"add chain inet {TABLE} theirs",
            f"add element inet {TABLE} closed_ingress4 {{ 10.244.1.99 }}",
            f"delete table inet {TABLE}",
        ):
            run(name, f"nft {damage}")
            assert other.sync(rig.store.snapshot()).operations > 0, damage
            found = other.plane.driver.read()
            assert {table: found[table] for table in other.tables} == other.tables
            assert other.sync(rig.store.snapshot()).operations == 0
    finally:
        other.plane.driver.close()


def test_removing_leaves_nothing(rig, spaces):
    assert rig.engine.plane.driver.remove() == [f"table inet {TABLE}"]
    assert TABLE not in run(spaces.names["node"], "nft list ruleset")
    assert rig.engine.plane.driver.remove() == []
    assert rig.engine.plane.driver.denied() == []


def test_nft_loads_the_text_and_lists_the_table(rig, spaces, netns):
    rig.only(*(one for name in LISTED for one in WORLDS[name]))
    text = "\n".join(rig.engine.plane.compiler.text(rig.engine.tables)) + "\n"
    subprocess.run([*namespaces.exec_prefix(netns), "nft", "-f", "-"], input=text, text=True, check=True)
    ours, theirs = (run(name, f"nft list table inet {TABLE}") for name in (spaces.names["node"], netns))
    assert "np-ingress4-shop/one" in ours
    chains = [
        {line.split()[1] for line in some.splitlines() if line.startswith("\tchain")}
        for some in (ours, theirs)
    ]
    assert chains[0] == chains[1]


def test_asking_what_is_missing_changes_nothing(netns):
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        assert namespaces.run_in(fd, nft.missing) == ""
    finally:
        os.close(fd)
    assert run(netns, "nft list ruleset") == ""


def test_random_changes_lead_to_what_a_fresh_start_gives(netns_factory):
    engine = engine_in(namespaces.path(netns_factory()))
    driver = engine.plane.driver

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 1 << 32))
    def check(seed):
        store, tracker, change = random_steps(seed, steps=5)
        tracker.take()
        engine.sync(store.snapshot())
        for _ in change():
            engine.sync(store.current(), tracker.take())
            found = driver.read()
            assert {name: found[name] for name in engine.tables} == engine.tables
        assert engine.sync(store.snapshot()).operations == 0

    try:
        check()
    finally:
        driver.close()
