"""What runtimes ask for beside a link, on routed pods: mapped ports, masquerading, source MACs, bandwidth."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from pycni.errors import KernelError
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import Bandwidth, IpamConf, PortMapping, RouteConf
from tests.netns.pod_cases import sees_no_loopback_of_the_node
from tests.netns.podenv import FAMILIES, Env, Pod, connect, exchange, links, pings, run, serving
from tests.netns.test_bandwidth import BURST, DIRECTIONS, RATE, throughput

PTP = AttachmentKind.PTP
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}
WEB = PortMapping(host_port=8080, container_port=80)
DNS = PortMapping(host_port=53, container_port=5353, protocol="udp")


def own(pod: Pod, family: int) -> str:
    return pod.v4() if family == 4 else pod.v6()


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_mapped_ports_from_everywhere(env: Env, families):
    out = env.outside(families)
    pod = env.attach(families, attachment=PTP, port_mappings=(WEB, DNS))
    other = env.attach(families, attachment=PTP)
    for family in families:
        with serving(pod, 80, family=family) as server:
            assert connect(out, NODE[family], 8080, server) == OUT[family], "the client's address is kept"
            assert connect(None, NODE[family], 8080, server) == NODE[family]
            assert connect(other, NODE[family], 8080, server) == own(other, family), "a pod's too"
            assert connect(pod, NODE[family], 8080, server) == NODE[family], "the pod reaches itself"
            assert connect(out, NODE[family], 8081, server, wait=0.2) == ""
            if family == 4:
                assert connect(None, "127.0.0.1", 8080, server) == NODE[family]
                assert connect(other, "169.254.1.1", 8080, server) == own(other, family)
        with serving(pod, 5353, family=family, udp=True) as server:
            assert exchange(out, NODE[family], 53, server) == OUT[family]
            assert exchange(None, NODE[family], 53, server) == NODE[family]
            assert exchange(other, NODE[family], 53, server) == own(other, family)
            assert exchange(pod, NODE[family], 53, server) == NODE[family]
            if family == 4:
                assert exchange(None, "127.0.0.1", 53, server) == NODE[family]
    assert env.driver.check(pod.plan, pod.fd) == []
    env.detach(pod)
    assert pod.plan.host not in run("nft list ruleset")
    for family in families:
        with serving(None, 80, family=family) as server:
            assert connect(out, NODE[family], 8080, server, wait=0.2) == ""


def test_a_port_is_had_once_whatever_the_kind(env: Env):
    bridged = env.attach(port_mappings=(WEB,))
    pod = env.pod()
    plan = env.plan(pod, attachment=PTP, port_mappings=(WEB,))
    with pytest.raises(KernelError, match="8080"):
        env.driver.attach(plan, pod.fd)
    assert plan.host not in links()
    env.detach(bridged)
    env.driver.attach(plan, pod.fd)


def test_pods_cannot_use_the_opening_for_loopback(env: Env):
    pod = env.attach(attachment=PTP, port_mappings=(WEB,))
    assert pod.plan is not None
    sees_no_loopback_of_the_node(pod, pod.plan.host, "169.254.1.1 dev eth0 onlink")


def test_rows_that_somebody_flushed_come_back(env: Env):
    out = env.outside((4, 6))
    asked = {"port_mappings": (WEB,), "ip_masq": True, "mac_spoof_check": True}
    pod = env.attach((4, 6), attachment=PTP, **asked)
    before = run("nft list ruleset")
    run("nft flush ruleset")
    assert len(env.driver.check(pod.plan, pod.fd)) == 9
    assert len(env.driver.resync([pod.plan])) == 9
    assert run("nft list ruleset") == before
    with serving(pod, 80) as server:
        assert connect(out, NODE[4], 8080, server) == OUT[4]


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_masquerading_is_for_what_leaves_the_cluster(env: Env, families):
    out = env.outside(families)
    one, two = (env.attach(families, attachment=PTP, ip_masq=True) for _ in range(2))
    plain = env.attach(families, attachment=PTP)
    for family in families:
        with serving(out, 80, family=family) as server:
            assert connect(one, OUT[family], 80, server) == NODE[family]
            assert connect(plain, OUT[family], 80, server) == own(plain, family)
        with serving(two, 80, family=family) as server:
            assert connect(one, own(two, family), 80, server) == own(one, family)
        with serving(one, 53, family=family, udp=True) as server:
            assert exchange(out, own(one, family), 53, server) == OUT[family]


def test_packets_with_a_foreign_source_mac_are_dropped(env: Env):
    checked = env.attach((4, 6), attachment=PTP, mac_spoof_check=True)
    free, other = (env.attach((4, 6), attachment=PTP) for _ in range(2))
    for pod in (checked, free):
        assert pings(pod, other.v4())
        pod.run("ip link set eth0 address 02:00:00:00:99:99")
        # The node hears of the new MAC as it would of any neighbour's.
        pod.run("ip route replace default via 169.254.1.1 dev eth0 onlink")
        pod.run("ip -6 route replace default via fe80::1 dev eth0")
    assert not pings(checked, other.v4(), wait=0.3)
    assert not pings(checked, other.v6(), wait=0.3)
    assert pings(free, other.v4(), wait=5)
    assert pings(free, other.v6(), wait=5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_limited_direction_is_slow_and_the_other_is_not(env: Env, direction):
    limited = env.attach((4, 6), attachment=PTP, bandwidth=DIRECTIONS[direction])
    free = env.attach((4, 6), attachment=PTP)
    ends = (free, limited) if direction == "ingress" else (limited, free)
    slow = throughput(*ends, 2.5)
    assert slow < 1.3 * RATE
    assert throughput(*reversed(ends), 2.5, 6) > 1.3 * RATE
    assert env.driver.check(limited.plan, limited.fd) == []


def test_the_shaping_device_goes_with_the_pod(env: Env):
    both = Bandwidth(ingress_rate=RATE, ingress_burst=BURST, egress_rate=RATE, egress_burst=BURST)
    pod = env.attach(attachment=PTP, bandwidth=both)
    assert pod.plan.names.shaper in links()
    env.detach(pod)
    assert not {pod.plan.names.shaper, pod.plan.host} & set(links())


def test_routes_of_ipam_go_by_the_node(env: Env):
    routes = (
        RouteConf(dst=ip_network("198.51.100.0/24"), mtu=1300),
        RouteConf(dst=ip_network("192.0.2.0/24"), gw=ip_address("10.1.2.1")),
    )
    out = env.outside()
    pod = env.attach(attachment=PTP, is_default_gateway=False, ipam=IpamConf(routes=routes))
    shown = pod.run("ip route")
    assert "default" not in shown
    for wanted in ("10.1.0.0/16", "10.1.2.0/24", "192.0.2.0/24", "198.51.100.0/24"):
        assert f"{wanted} via 169.254.1.1 dev eth0 proto static onlink" in shown
    assert pings(pod, OUT[4])
    assert pings(out, pod.v4())
    assert env.driver.check(pod.plan, pod.fd) == []
