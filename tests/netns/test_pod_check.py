"""CHECK: one thing broken at a time is named, additions of later plugins are not."""

from __future__ import annotations

import pytest

from pycni.model.cni import CniResult, InterfaceResult
from tests.netns.podenv import Env, run

INSIDE = {
    "interface gone": ("ip link del eth0", "interface eth0 is missing in the pod"),
    "interface down": ("ip link set eth0 down", "interface eth0 is down"),
    "MTU": ("ip link set eth0 mtu 1300", "interface eth0 has MTU 1300, expected 1450"),
    "MAC": (
        "ip link set eth0 address 02:00:00:00:00:09",
        "interface eth0 has MAC 02:00:00:00:00:09, expected",
    ),
    "IPv4 address": ("ip addr del 10.1.2.2/24 dev eth0", "address 10.1.2.2/24 is missing on eth0"),
    "IPv6 address": ("ip addr del fd00:1:2::2/64 dev eth0", "address fd00:1:2::2/64 is missing on eth0"),
    "IPv4 route": ("ip route del default", "route default via 10.1.2.1 is missing in the pod"),
    "IPv6 route": ("ip -6 route del default", "route default via fd00:1:2::1 is missing in the pod"),
}
OUTSIDE = {
    "host end down": ("ip link set {host} down", "host end {host} is down"),
    "off the bridge": ("ip link set {host} nomaster", "host end {host} is not a port of bridge cni0"),
    "hairpin": (
        "bridge link set dev {host} hairpin off",
        "bridge port {host} has hairpin mode off, expected on",
    ),
    "isolation": (
        "bridge link set dev {host} isolated on",
        "bridge port {host} has isolation on, expected off",
    ),
    "bridge down": ("ip link set cni0 down", "bridge cni0 is down"),
    "bridge gone": ("ip link del cni0", "bridge cni0 is missing"),
    "gateway": ("ip addr del 10.1.2.1/24 dev cni0", "gateway address 10.1.2.1/24 is missing on cni0"),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", "ipv4 forwarding is off (net/ipv4/ip_forward)"),
    "masquerading": (
        "nft delete element inet pycni_pods masq_v4 {{ 10.1.2.2 }}",
        "nft element pycni_pods masq_v4 {{ 10.1.2.2 }} is missing",
    ),
    "source check": (
        "nft flush set bridge pycni_spoof macs",
        'nft element pycni_spoof macs {{ "{host}" . {mac} }} is missing',
    ),
}


@pytest.mark.parametrize(("command", "expected"), INSIDE.values(), ids=INSIDE)
def test_what_is_broken_inside_the_pod_is_named(env: Env, command, expected):
    pod = env.attach((4, 6))
    assert env.driver.check(pod.plan, pod.fd) == []
    pod.run(command)
    assert any(line.startswith(expected) for line in env.driver.check(pod.plan, pod.fd))


@pytest.mark.parametrize(("command", "expected"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_broken_on_the_node_is_named(env: Env, command, expected):
    pod = env.attach((4, 6), hairpin_mode=True, ip_masq=True, mac_spoof_check=True)
    assert env.driver.check(pod.plan, pod.fd) == []
    names = {"host": pod.plan.host, "mac": pod.plan.mac.hex(":")}
    run(command.format(**names))
    assert expected.format(**names) in env.driver.check(pod.plan, pod.fd)


def test_additions_of_later_plugins_are_tolerated(env: Env):
    pod = env.attach((4, 6))
    pod.run("ip addr add 198.51.100.9/24 dev eth0")
    pod.run("ip route add 203.0.113.0/24 via 10.1.2.1")
    pod.run("ip route add default via 10.1.2.1 table 100")
    pod.run("ip link set eth0 mtu 1300 address 02:00:00:00:00:09")
    later = CniResult(
        interfaces=(InterfaceResult(name="eth0", mac="02:00:00:00:00:09", mtu=1300, sandbox="/run/netns/x"),)
    )
    assert env.driver.check(pod.plan.with_result(later), pod.fd) == []


def test_check_of_a_detached_pod_says_what_is_missing(env: Env):
    pod = env.attach()
    env.detach(pod)
    assert env.driver.check(pod.plan, pod.fd) == [
        "interface eth0 is missing in the pod",
        f"host end {pod.plan.host} of eth0 is missing",
    ]
