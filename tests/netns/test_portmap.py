"""Mapped ports: from outside, from the node, from pods, from the pod itself; taken, freed, repaired."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from pycni.errors import KernelError
from pycni.model.cni import IpamConf, PortMapping, RouteConf
from tests.netns.pod_cases import sees_no_loopback_of_the_node
from tests.netns.podenv import FAMILIES, Env, connect, exchange, links, run, serving


def mapping(
    port: int = 8080, target: int = 80, protocol: Any = "tcp", host: str | None = None
) -> PortMapping:
    address = None if host is None else ip_address(host)
    return PortMapping(host_port=port, container_port=target, protocol=protocol, host_ip=address)


NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}
GATEWAY = {4: "10.1.2.1", 6: "fd00:1:2::1"}


@pytest.mark.parametrize(
    "nf_call", [0, 1], ids=["bridged packets skip IP hooks", "bridged packets pass IP hooks"]
)
@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_tcp_from_everywhere(env: Env, families, nf_call):
    for kind in ("iptables", "ip6tables"):
        run(f"sysctl -qw net.bridge.bridge-nf-call-{kind}={nf_call}")
    out = env.outside(families)
    pod, other = env.attach(families, port_mappings=(mapping(),)), env.attach(families)
    for family in families:
        with serving(pod, 80, family=family) as server:
            assert connect(out, NODE[family], 8080, server) == OUT[family], "the client's address is kept"
            assert connect(None, NODE[family], 8080, server) in {NODE[family], GATEWAY[family]}
            assert connect(other, NODE[family], 8080, server) == GATEWAY[family]
            assert connect(other, GATEWAY[family], 8080, server) == GATEWAY[family]
            assert connect(pod, NODE[family], 8080, server) == GATEWAY[family], "the pod reaches itself"
            assert connect(out, NODE[family], 8081, server, wait=0.2) == ""
            if family == 4:
                assert connect(None, "127.0.0.1", 8080, server) == GATEWAY[family]
    assert env.driver.check(pod.plan, pod.fd) == []


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_udp_from_everywhere(env: Env, families):
    out = env.outside(families)
    pod, other = env.attach(families, port_mappings=(mapping(53, 5353, "udp"),)), env.attach(families)
    for family in families:
        with serving(pod, 5353, family=family, udp=True) as server:
            assert exchange(out, NODE[family], 53, server) == OUT[family]
            assert exchange(None, NODE[family], 53, server) in {NODE[family], GATEWAY[family]}
            assert exchange(other, NODE[family], 53, server) == GATEWAY[family]
            assert exchange(pod, NODE[family], 53, server) == GATEWAY[family]
            if family == 4:
                assert exchange(None, "127.0.0.1", 53, server) == GATEWAY[family]


def test_one_protocol_does_not_open_the_other(env: Env):
    out = env.outside()
    pod = env.attach(port_mappings=(mapping(),))
    with serving(pod, 80, udp=True) as server:
        assert exchange(out, NODE[4], 8080, server, wait=0.2) == ""


def test_one_host_address_only(env: Env):
    out = env.outside()
    run("ip addr add 192.0.2.7/24 dev eth1")
    here = env.attach(port_mappings=(mapping(host="192.0.2.7"),))
    there = env.attach(port_mappings=(mapping(host="192.0.2.1"),))
    with serving(here, 80) as server:
        assert connect(out, "192.0.2.7", 8080, server) == OUT[4]
        assert connect(out, "192.0.2.1", 8080, server, wait=0.2) == ""
    with serving(there, 80) as server:
        assert connect(out, "192.0.2.1", 8080, server) == OUT[4]


def test_loopback_alone(env: Env):
    out = env.outside()
    pod = env.attach(port_mappings=(mapping(host="127.0.0.1"),))
    with serving(pod, 80) as server:
        assert connect(None, "127.0.0.1", 8080, server) == GATEWAY[4]
        assert connect(out, NODE[4], 8080, server, wait=0.2) == ""


def test_addresses_of_others_are_not_mapped(env: Env):
    """A pod that connects to port 8080 of another machine is not led back to a pod of this node."""
    out = env.outside()
    env.attach(port_mappings=(mapping(),))
    client = env.attach()
    with serving(out, 8080) as server:
        assert connect(client, OUT[4], 8080, server) == client.v4()


def test_pods_cannot_use_the_opening_for_loopback(env: Env):
    pod = env.attach(port_mappings=(mapping(),))
    sees_no_loopback_of_the_node(pod, "cni0", "10.1.2.1 dev eth0")


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_a_pod_without_default_route_answers_through_the_node(env: Env, families):
    out = env.outside(families)
    pod = env.attach(families, is_default_gateway=False, port_mappings=(mapping(),))
    half = (RouteConf(dst=ip_network("0.0.0.0/0")),)
    routed = env.attach(
        (4,), is_default_gateway=False, port_mappings=(mapping(81),), ipam=IpamConf(routes=half)
    )
    for family in families:
        with serving(pod, 80, family=family) as server:
            assert connect(out, NODE[family], 8080, server) == GATEWAY[family]
    if 4 in families:
        with serving(routed, 80) as server:
            assert connect(out, NODE[4], 81, server) == OUT[4]


CLASHES = {
    "the same port": (mapping(), mapping(target=81)),
    "every address and one": (mapping(), mapping(host="192.0.2.1")),
    "one address and every": (mapping(host="192.0.2.1"), mapping()),
}


@pytest.mark.parametrize(("first", "second"), CLASHES.values(), ids=CLASHES)
def test_a_port_cannot_be_had_twice(env: Env, first, second):
    holder = env.attach((4, 6), port_mappings=(first,))
    pod = env.pod()
    plan = env.plan(pod, (4, 6), port_mappings=(second,))
    for driver in (env.driver, env.new_driver()):
        with pytest.raises(
            KernelError, match=r"map host port .*tcp . 8080.*EADDRINUSE.*leads to 10.1.2.2 . 80"
        ):
            driver.attach(plan, pod.fd)
    assert list(links(pod.name)) == ["lo"]
    assert plan.host not in links()
    env.detach(holder)
    env.driver.attach(plan, pod.fd)


def test_other_protocols_and_addresses_can(env: Env):
    env.attach(port_mappings=(mapping(host="192.0.2.1"), mapping(protocol="udp")))
    env.attach(port_mappings=(mapping(host="192.0.2.2"), mapping(protocol="sctp")))


def test_rows_two_pods_share_stay_until_the_last_is_gone(env: Env):
    out = env.outside()
    run("ip addr add 192.0.2.7/24 dev eth1")
    conf = {"is_default_gateway": False}
    one = env.attach(port_mappings=(mapping(host="192.0.2.7"),), **conf)
    two = env.attach(port_mappings=(mapping(host="192.0.2.1"),), **conf)
    env.detach(one)
    with serving(two, 80) as server:
        assert connect(out, NODE[4], 8080, server) == GATEWAY[4]
    env.detach(two)
    assert "8080" not in run("nft list table inet pycni_pods")


def test_detach_closes_the_port(env: Env):
    out = env.outside()
    pod = env.attach(port_mappings=(mapping(),))
    env.detach(pod)
    assert "8080" not in run("nft list ruleset")
    with serving(None, 8080) as server:
        assert connect(out, NODE[4], 8080, server) == OUT[4], "the node has its port back"


def test_udp_flows_follow_the_pod_that_has_the_port(env: Env):
    """A client that keeps sending from one socket is not held on the way its first packet took."""
    out = env.outside()
    client = out.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with client:
        client.settimeout(1)
        client.connect((NODE[4], 53))
        with serving(None, 53, udp=True) as server:
            client.send(b"to the node")
            assert server.recvfrom(16)[0] == b"to the node"
        for _ in range(2):
            pod = env.attach(port_mappings=(mapping(53, 53, "udp"),))
            with serving(pod, 53, udp=True) as server:
                client.send(b"to the pod")
                assert server.recvfrom(16)[0] == b"to the pod"
            env.detach(pod)
        with serving(None, 53, udp=True) as server:
            client.send(b"back")
            assert server.recvfrom(16)[0] == b"back"


def test_flows_of_others_to_the_same_port_are_not_forgotten(env: Env):
    out = env.outside()
    asker = env.attach()
    env.attach(port_mappings=(mapping(),))
    with serving(out, 53, udp=True) as server:
        assert exchange(asker, OUT[4], 53, server) == asker.v4()
        before = run("conntrack -L -p udp --dport 53", ok=False)
        pod = env.attach(port_mappings=(mapping(53, 53, "udp"),))
        env.detach(pod)
        assert "src=10.1.2." in before
        assert "src=10.1.2." in run("conntrack -L -p udp --dport 53", ok=False)


@pytest.mark.parametrize("command", ["nft flush ruleset", "nft delete table inet pycni_pods"])
def test_a_flushed_ruleset_is_put_back_by_the_next_change(env: Env, command):
    out = env.outside()
    pod = env.attach(port_mappings=(mapping(),), ip_masq=True)
    run(command)
    assert any("is missing" in line for line in env.driver.check(pod.plan, pod.fd))
    env.attach(port_mappings=(mapping(81),))
    assert env.driver.check(pod.plan, pod.fd) == []
    with serving(pod, 80) as server:
        assert connect(out, NODE[4], 8080, server) == OUT[4]
        assert connect(pod, NODE[4], 8080, server) == GATEWAY[4]


def test_resync_puts_back_what_is_missing_and_takes_away_what_is_left_over(env: Env):
    pod, gone, kept = (
        env.attach((4, 6), port_mappings=(mapping(80 + number),), ip_masq=True) for number in range(3)
    )
    before = run("nft list ruleset")
    assert env.driver.resync([pod.plan, gone.plan, kept.plan]) == []
    assert run("nft list ruleset") == before
    run("nft delete element inet pycni_pods ports_v4 { tcp . 80 }")
    run("nft flush set inet pycni_pods spared_v4")
    run(f"ip link del {gone.plan.host}")
    driver = env.new_driver()
    repaired = driver.resync([pod.plan])
    assert sorted(repaired) == [
        "left over pycni_pods masq_v4 { 10.1.2.3 }",
        "left over pycni_pods masq_v6 { fd00:1:2::3 }",
        "left over pycni_pods ports_v4 { tcp . 81 : 10.1.2.3 . 80 }",
        "left over pycni_pods ports_v6 { tcp . 81 : fd00:1:2::3 . 80 }",
        "missing pycni_pods ports_v4 { tcp . 80 : 10.1.2.2 . 80 }",
    ]
    for alive in (pod, kept):
        assert driver.check(alive.plan, alive.fd) == []
    assert "10.1.2.0/24 . 10.1.0.0/16" in run("nft list set inet pycni_pods spared_v4")
    assert driver.resync([pod.plan, kept.plan]) == []


def test_the_number_of_rules_does_not_grow_with_pods(env: Env):
    env.attach(port_mappings=(mapping(),), ip_masq=True, mac_spoof_check=True)
    chains = run("nft -t list ruleset")
    for number in range(5):
        env.attach(port_mappings=(mapping(90 + number),), ip_masq=True, mac_spoof_check=True)
    assert run("nft -t list ruleset") == chains


def test_nothing_is_made_in_nft_for_pods_that_ask_for_nothing(env: Env):
    pod = env.attach()
    env.detach(pod)
    assert run("nft list ruleset") == ""


def test_ipv6_loopback_is_refused_at_once(env: Env):
    """The kernel lets nothing with ``::1`` leave the node: better refused than timed out."""
    pod = env.attach((6,), port_mappings=(mapping(),))
    with serving(pod, 80, family=6), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", 8080), timeout=1)
