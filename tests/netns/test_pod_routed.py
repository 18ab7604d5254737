"""Attachment ``ptp``: pods on links of their own, routed by the node; real packets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pycni.kernel import podrouted
from pycni.kernel.podroutewatch import RouteWatch
from pycni.kernel.vips import Vips
from pycni.model.attachment import AttachmentKind
from tests.netns.pod_cases import EVERYTHING, MOMENTS, fail_at
from tests.netns.podenv import FAMILIES, Env, addresses, links, pings, run

PTP = {"attachment": AttachmentKind.PTP}


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_pods_reach_each_other_and_the_node_at_once(env: Env, families):
    out = env.outside(families)
    one, two = env.attach(families, **PTP), env.attach(families, **PTP)
    for target in ([two.v4(), "169.254.1.1", "192.0.2.1", "192.0.2.2"] if 4 in families else []) + (
        [two.v6(), "2001:db8::1", "2001:db8::2"] if 6 in families else []
    ):
        # Full MTU: 1450 less the headers of IP and ICMP.
        assert pings(one, target, size=1450 - (48 if ":" in target else 28), wait=0.5), target
    for target in (one.v4(),) * (4 in families) + (one.v6(),) * (6 in families):
        assert pings(None, target, wait=0.5), target
        assert pings(out, target, wait=0.5), target
    assert env.driver.check(one.plan, one.fd) == []


def test_the_kernel_has_what_the_plan_says(env: Env):
    pod = env.attach((4, 6), **PTP)
    host, inside = links()[pod.plan.host], links(pod.name)["eth0"]
    assert (host["mtu"], inside["mtu"]) == (1450, 1450)
    assert host["ifalias"] == f"pycni:net:{pod.name}:eth0"
    assert "master" not in host
    assert "cni0" not in links(), "nobody needs a bridge"
    assert (pod.links.host_ifindex, pod.links.pod_ifindex) == (host["ifindex"], inside["ifindex"])
    assert addresses("eth0", pod.name) == [f"{pod.v4()}/32", f"{pod.v6()}/128"]
    assert "default via 169.254.1.1 dev eth0 proto static onlink" in pod.run("ip route")
    assert "default via fe80::1 dev eth0" in pod.run("ip -6 route")
    assert f"{pod.v4()} dev {pod.plan.host} proto 114 scope link" in run("ip route")
    assert f"{pod.v6()} dev {pod.plan.host} proto 114" in run("ip -6 route")
    assert "unreachable 10.1.2.0/24 proto 114" in run("ip route")
    assert "unreachable fd00:1:2::/64 dev lo proto 114" in run("ip -6 route")
    assert (
        sorted(line.split()[1] for line in run(f"ip -o addr show dev {pod.plan.host}").splitlines())
        == [pod.plan.host] * 2
    )
    assert "169.254.1.1/32 scope host" in run(f"ip addr show dev {pod.plan.host}")
    assert "fe80::1/64" in run(f"ip addr show dev {pod.plan.host}")


def test_the_node_sends_to_pods_by_its_own_address_not_by_the_gateways(env: Env):
    env.outside((4, 6))
    pod = env.attach((4, 6), **PTP)
    assert "src 192.0.2.1" in run(f"ip route get {pod.v4()}")
    assert "src 2001:db8::1" in run(f"ip -6 route get {pod.v6()}")
    vips = Vips("pycni-ipvs0")
    try:
        assert vips.node_addresses() == {ip_address(item).packed for item in ("192.0.2.1", "2001:db8::1")}
    finally:
        vips.close()


def test_nothing_hangs_on_what_both_ends_know_from_the_start(env: Env):
    """Forgotten neighbours are asked for, also with the switches that IPVS wants for ARP."""
    out, pod = env.outside((4, 6)), env.attach((4, 6), **PTP)
    run("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
    for target in (pod.v4(), pod.v6()):
        run(f"ip neigh flush dev {pod.plan.host}")
        run(f"ip -6 neigh flush dev {pod.plan.host}")
        pod.run("ip neigh flush dev eth0")
        pod.run("ip -6 neigh flush dev eth0")
        assert pings(out, target)
    assert pings(pod, "169.254.1.1")


def test_ipv6_works_on_a_node_that_switches_it_off_for_new_devices(env: Env):
    out = env.outside((4, 6))
    run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    pod = env.attach((4, 6), **PTP)
    assert pings(out, pod.v6())
    run(f"sysctl -qw net.ipv6.conf.{pod.plan.host}.disable_ipv6=1")
    assert not pings(out, pod.v6(), wait=0.1)
    env.driver.resync([pod.plan])
    assert pings(out, pod.v6())


def test_what_no_pod_has_is_unreachable_and_does_not_leave_the_node(env: Env):
    out = env.outside((4, 6))
    run("ip route add default via 192.0.2.2")
    pod = env.attach((4, 6), **PTP)
    assert "No route to host" in run("ip route get 10.1.2.200", ok=False)
    assert pings(out, pod.v4())
    env.detach(pod)
    for target in (pod.v4(), pod.v6()):
        assert "No route to host" in run(f"ip route get {target}", ok=False)


def test_after_a_pod_the_next_one_has_its_address_at_once(env: Env):
    out = env.outside((4, 6))
    for _ in range(6):
        pod = env.pod()
        pod.number = 77
        pod.plan = env.plan(pod, (4, 6), **PTP)
        env.driver.attach(pod.plan, pod.fd)
        for source in (None, out):
            assert pings(source, "10.1.2.77", wait=0.5)
            assert pings(source, "fd00:1:2::4d", wait=0.5)
        env.detach(pod)
        assert pod.plan.host not in links()


DAMAGE = {
    "route": ("ip route del {v4}", "route to {v4}/32 by {host} is missing"),
    "route6": ("ip -6 route del {v6}", "route to {v6}/128 by {host} is missing"),
    "gateway": (
        "ip addr del 169.254.1.1/32 dev {host}",
        "gateway address 169.254.1.1/32 is missing on {host}",
    ),
    "gateway6": ("ip addr del fe80::1/64 dev {host}", "gateway address fe80::1/64 is missing on {host}"),
    "down": ("ip link set {host} down", "host end {host} is down"),
    "replaced": ("ip route replace {v4} dev lo", "route to {v4}/32 by {host} is missing"),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", "ipv4 forwarding is off (net/ipv4/ip_forward)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_by_check_and_repaired(env: Env, name):
    command, told = DAMAGE[name]
    out = env.outside((4, 6))
    pod, other = env.attach((4, 6), **PTP), env.attach((4, 6), **PTP)
    names = {"host": pod.plan.host, "v4": pod.v4(), "v6": pod.v6()}
    run(command.format(**names))
    assert told.format(**names) in env.driver.check(pod.plan, pod.fd)
    done = env.driver.resync([pod.plan, other.plan])
    assert done, "a repair says what it did"
    assert env.driver.check(pod.plan, pod.fd) == []
    assert env.driver.resync([pod.plan, other.plan]) == []
    for target in (pod.v4(), pod.v6()):
        assert pings(out, target)
    assert pings(pod, other.v4())


def test_routes_of_the_last_resort_follow_the_nodes_subnets(env: Env):
    pod = env.attach((4,), **PTP)
    run("ip route del unreachable 10.1.2.0/24 metric 4294901760")
    assert env.driver.resync([pod.plan]) == ["route unreachable 10.1.2.0/24 is missing"]
    assert "unreachable 10.1.2.0/24" in run("ip route")
    env.detach(pod)
    assert env.driver.resync([]) == ["route unreachable 10.1.2.0/24 is left over"]
    assert run("ip route") == ""


def test_a_restarted_agent_takes_over_and_removes(env: Env):
    out, pod = env.outside(), env.attach((4, 6), **PTP)
    run(f"ip route del {pod.v4()}")
    driver = env.new_driver()
    driver.resync([pod.plan])
    assert pings(out, pod.v4())
    assert driver.need([ip_address(pod.v4()).packed])
    driver.detach(pod.plan.owner, pod.fd)
    assert driver.wait_gone(pod.plan.owner)
    assert pod.plan.host not in links()
    assert not driver.need([ip_address(pod.v4()).packed])


@pytest.mark.parametrize("later", ["bridge", "ptp"])
def test_pods_of_both_kinds_in_one_subnet_reach_each_other_at_once(env: Env, later):
    """A network that changes its attachment has both until its last old pod is gone."""
    kinds = [{}, PTP] if later == "ptp" else [PTP, {}]
    pods = [env.attach((4, 6), **kind) for kind in kinds for _ in range(2)]
    for pod in pods:
        for other in pods:
            if other is not pod:
                assert pings(pod, other.v4(), wait=0.5), (pod.plan.link, other.plan.link)
                assert pings(pod, other.v6(), wait=0.5), (pod.plan.link, other.plan.link)


def test_a_bridge_answers_for_pods_beside_it_and_no_others(env: Env):
    port, leg = env.attach((4, 6)), env.attach((4, 6), **PTP)
    assert set(proxied()) == {leg.v4(), leg.v6()}
    run(f"ip neigh del proxy {leg.v4()} dev cni0")
    assert env.driver.resync([port.plan, leg.plan]) == ["cni0 did not answer for a pod beside it"]
    assert set(proxied()) == {leg.v4(), leg.v6()}
    env.detach(leg)
    assert proxied() == []
    left = env.attach((4,), **PTP)
    driver = env.new_driver()
    run(f"ip link del {left.plan.host}")
    assert driver.resync([port.plan]) == [
        "route unreachable 10.1.2.0/24 is left over",
        "route unreachable fd00:1:2::/64 is left over",
        "a bridge answered for a pod that is gone",
    ]
    assert proxied() == []


def proxied() -> list[str]:
    return [
        line.split()[0]
        for flag in ("-4", "-6")
        for line in run(f"ip {flag} neigh show proxy dev cni0").splitlines()
    ]


STEPS = ["create", "shape", "claim", "close_leg", "configure_pod", "await_running", "add", "let_loopback_out"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_failure_at_any_step_leaves_nothing(env: Env, step, moment):
    pod, other = env.pod(), env.attach((4, 6), **PTP)
    env.attach((4, 6))
    plan = env.plan(pod, (4, 6), **EVERYTHING, **PTP)
    before = set(links()), run("ip route"), run("ip -6 route"), run("nft list ruleset")
    own = {"close_leg": podrouted, "add": podrouted.PodsBeside}
    fail_at(env, pod, plan, step=step, moment=moment, places=own)
    after = set(links()), run("ip route"), run("ip -6 route"), run("nft list ruleset")
    assert after[:3] == before[:3]
    assert plan.host not in after[3]
    assert "eth0" not in links(pod.name)
    assert set(proxied()) == {other.v4(), other.v6()}
    assert not env.driver.need([plan.addresses[0].address])
    env.driver.attach(plan, pod.fd)
    assert pings(pod, other.v4())


def test_a_route_that_goes_is_told_and_whose_it_was(env: Env):
    watch = RouteWatch()
    try:
        pod, other = env.attach((4, 6), **PTP), env.attach((4, 6), **PTP)
        assert watch.drain() == set(), "what comes is nobody's concern"
        run(f"ip route del {pod.v4()}")
        gone = watch.drain()
        assert gone == {ip_address(pod.v4()).packed}
        assert env.driver.need(gone)
        run(f"ip -6 addr del fe80::1/64 dev {other.plan.host}")
        assert env.driver.need(watch.drain())
        run("ip route add 203.0.113.0/24 dev lo")
        run("ip route del 203.0.113.0/24 dev lo")
        assert watch.drain() == set(), "routes of others are theirs"
        env.detach(other)
        gone = watch.drain()
        assert ip_address(other.v6()).packed in gone
        assert not env.driver.need(gone)
    finally:
        watch.close()
