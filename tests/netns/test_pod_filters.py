"""Masquerading and source checks of pods, by packets."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.netns.podenv import FAMILIES, Env, Pod, connect, exchange, links, pings, run, serving

NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_traffic_that_leaves_the_cluster_has_the_nodes_address(env: Env, families):
    out = env.outside(families)
    masked, plain = env.attach(families, ip_masq=True), env.attach(families)
    for family in families:
        own = {4: Pod.v4, 6: Pod.v6}[family]
        with serving(out, 80, family=family) as server:
            assert connect(masked, OUT[family], 80, server) == NODE[family]
            assert connect(plain, OUT[family], 80, server) == own(plain)
    env.detach(masked)
    assert "10.1.2.2" not in run("nft list ruleset")


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_traffic_inside_the_cluster_keeps_its_source(env: Env, families):
    """Another node's pod is an address of the cluster networks, reached by way of ``out``."""
    out = env.outside(families)
    remote = {4: "10.1.7.7", 6: "fd00:1:7::7"}
    pod, twin = env.attach(families, ip_masq=True), env.attach(families, ip_masq=True)
    for family in families:
        bits = 32 if family == 4 else 128
        out.run(f"ip addr add {remote[family]}/{bits} dev lo")
        run(f"ip route add {remote[family]}/{bits} via {OUT[family]}")
        own = {4: Pod.v4, 6: Pod.v6}[family](pod)
        with serving(out, 80, family=family) as server:
            assert connect(pod, remote[family], 80, server) == own
        with serving(twin, 80, family=family) as server:
            assert connect(pod, {4: Pod.v4, 6: Pod.v6}[family](twin), 80, server) == own
        with serving(None, 80, family=family) as server:
            assert connect(pod, NODE[family], 80, server) == own


def test_a_pod_outside_the_cluster_network_spares_its_own_subnet(env: Env):
    """Ranges of the configuration's own, on a node without a lease."""
    out = env.outside()
    pod, twin = env.attach(ip_masq=True, podnet=None), env.attach(ip_masq=True, podnet=None)
    out.run("ip addr add 10.1.7.7/32 dev lo")
    run("ip route add 10.1.7.7/32 via 192.0.2.2")
    with serving(out, 80) as server:
        assert connect(pod, "10.1.7.7", 80, server) == NODE[4]
    with serving(twin, 80) as server:
        assert connect(pod, twin.v4(), 80, server) == pod.v4()


def test_multicast_is_not_masqueraded(env: Env):
    """An address of the node plays the pod: multicast of real pods needs a multicast router."""
    out = env.outside()
    env.attach(ip_masq=True)
    run("ip addr add 192.0.2.9/24 dev eth1")
    run("ip route add 239.1.1.1/32 dev eth1")
    run("nft add element inet pycni_pods masq_v4 { 192.0.2.9 }")

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 5353))
        group = socket.inet_aton("239.1.1.1") + socket.inet_aton("192.0.2.2")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sock.settimeout(1)
        return sock

    with out.inside(listen) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("192.0.2.9", 0))
        sock.sendto(b"to all", ("239.1.1.1", 5353))
        assert listener.recvfrom(16)[1][0] == "192.0.2.9"
        sock.sendto(b"to one", ("192.0.2.2", 5353))
        assert listener.recvfrom(16)[1][0] == "192.0.2.1"


def frame(source: bytes, target: bytes, kind: int = 0x88B5) -> bytes:
    return target + source + struct.pack(">H", kind) + b"test".ljust(46, b"\0")


def heard(pod: Pod, sender: Pod, source: bytes, wait: float) -> bool:
    """Whether a raw frame with this source MAC arrives."""

    def open_listener() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        sock.bind(("eth0", 0x88B5))
        sock.settimeout(wait)
        return sock

    def open_sender() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sock.bind(("eth0", 0))
        return sock

    with pod.inside(open_listener) as listener, sender.inside(open_sender) as out:
        out.send(frame(source, pod.plan.mac))
        try:
            return listener.recv(100)[6:12] == source
        except TimeoutError:
            return False


def test_frames_with_a_foreign_source_mac_are_dropped(env: Env):
    checked, free, target = env.attach(mac_spoof_check=True), env.attach(), env.attach()
    forged = bytes.fromhex("020000abcdef")
    assert heard(target, checked, checked.plan.mac, 1)
    assert not heard(target, checked, forged, 0.2)
    assert heard(target, free, forged, 1), "only checked ports are checked"
    assert not heard(target, checked, free.plan.mac, 0.2)
    assert env.driver.check(checked.plan, checked.fd) == []
    checked.run("ip link set eth0 down")
    checked.run("ip link set eth0 address 02:00:00:ab:cd:ef")
    checked.run("ip link set eth0 up")
    assert not pings(checked, target.v4(), wait=0.2)
    env.detach(checked)
    assert checked.plan.host not in run("nft list ruleset")


def test_a_requested_mac_is_the_one_that_may_be_used(env: Env):
    pod, other = env.attach(mac_spoof_check=True, mac="02:11:22:33:44:55"), env.attach()
    assert links(pod.name)["eth0"]["address"] == "02:11:22:33:44:55"
    assert pings(pod, other.v4())


def test_udp_answers_come_back_through_masquerading(env: Env):
    out = env.outside((4, 6))
    pod = env.attach((4, 6), ip_masq=True)
    for family in (4, 6):
        with serving(out, 53, family=family, udp=True) as server:
            assert exchange(pod, OUT[family], 53, server) == NODE[family]
