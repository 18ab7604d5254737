"""The node's bridge: made once, kept as planned whatever others do to it, conflicts told apart from leftovers."""

from __future__ import annotations

import threading
from ipaddress import ip_network

import pytest
from msgspec.structs import replace

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.model.podnet import PodNetwork
from tests.netns.podenv import FAMILIES, Env, addresses, links, pings, run

MOVED = PodNetwork(subnets=(ip_network("10.1.9.0/24"),), networks=(ip_network("10.1.0.0/16"),), mtu=1450)


def moved(env: Env, network: str = "net", podnet: PodNetwork = MOVED, **conf):
    """A pod of the subnet the node has after a change."""
    pod = env.pod()
    pod.v4 = lambda: f"10.1.9.{pod.number}"
    pod.plan = env.plan(pod, podnet=podnet, network=network, **conf)
    return pod


def test_the_first_pod_makes_the_bridge(env: Env):
    pod = env.attach((4, 6))
    bridge = links()["cni0"]
    assert bridge["mtu"] == 1450
    assert bridge["ifalias"] == "pycni"
    assert bridge["address"] == pod.plan.link.bridge.mac.hex(":") == pod.links.bridge_mac.hex(":")
    assert addresses("cni0") == ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert "tentative" not in run("ip addr show dev cni0 scope global")
    assert run("sysctl -n net.ipv4.ip_forward").strip() == "1"
    assert run("sysctl -n net.ipv6.conf.all.forwarding").strip() == "1"


def test_its_mac_and_mtu_stay_when_ports_come_and_go(env: Env):
    pod = env.attach()
    mac = links()["cni0"]["address"]
    run("ip link add low type veth peer name lower")
    run("ip link set low address 00:00:00:00:00:01 mtu 1200 master cni0 up")
    assert (links()["cni0"]["address"], links()["cni0"]["mtu"]) == (mac, 1450)
    run("ip link del low")
    env.detach(pod)
    assert (links()["cni0"]["address"], links()["cni0"]["mtu"]) == (mac, 1450)


def test_a_bridge_without_gateway_keeps_its_mac_too(env: Env):
    conf = {"is_gateway": False, "is_default_gateway": False}
    env.attach(**conf)
    mac = links()["cni0"]["address"]
    run("ip link add low type veth peer name lower")
    run("ip link set low address 00:00:00:00:00:01 master cni0 up")
    assert links()["cni0"]["address"] == mac


def test_a_bridge_of_the_reference_plugin_is_adopted(env: Env):
    run("ip link add cni0 type bridge")
    run("ip link set cni0 up mtu 1450")
    run("ip addr add 10.1.2.1/24 dev cni0")
    mac = links()["cni0"]["address"]
    one, two = env.attach(), env.attach()
    assert links()["cni0"]["address"] == mac
    assert addresses("cni0") == ["10.1.2.1/24"]
    assert pings(one, two.v4())
    assert pings(one, "10.1.2.1")


BREAKAGES = {
    "deleted": "ip link del cni0",
    "down": "ip link set cni0 down",
    "gateway address removed": "ip addr del 10.1.2.1/24 dev cni0",
    "all addresses flushed": "ip addr flush dev cni0",
    "MTU changed": "ip link set cni0 mtu 1200",
    "IPv6 gateway removed": "ip addr del fd00:1:2::1/64 dev cni0",
}


@pytest.mark.parametrize("command", BREAKAGES.values(), ids=BREAKAGES)
def test_what_others_do_to_the_bridge_is_repaired_by_the_next_add(env: Env, command):
    env.attach((4, 6))
    run(command)
    pod = env.attach((4, 6))
    bridge = links()["cni0"]
    assert "UP" in bridge["flags"]
    assert bridge["mtu"] == 1450
    assert addresses("cni0") == ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert pings(pod, "10.1.2.1")
    assert pings(pod, "fd00:1:2::1")


@pytest.mark.parametrize("command", BREAKAGES.values(), ids=BREAKAGES)
def test_and_by_resync_without_any_add(env: Env, command):
    pod = env.attach((4, 6))
    run(command)
    env.driver.resync([pod.plan])
    assert addresses("cni0") == ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert links()["cni0"]["mtu"] == 1450
    assert "UP" in links()["cni0"]["flags"]


def test_promiscuous_mode(env: Env):
    pod, twin = env.attach(promisc_mode=True), env.attach(promisc_mode=True)
    assert "PROMISC" in links()["cni0"]["flags"]
    assert pings(pod, twin.v4())


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_two_first_adds_at_once_both_succeed(env: Env, families):
    pods = [env.pod() for _ in range(4)]
    plans = [env.plan(pod, families) for pod in pods]
    other = env.new_driver()
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def add(number: int) -> None:
        try:
            start.wait()
            (env.driver, other)[number % 2].attach(plans[number], pods[number].fd)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for pod in pods:
        assert pings(pod, "10.1.2.1" if 4 in families else "fd00:1:2::1")


CONFLICTS = {
    "another IPv4 network": ("10.9.9.1/24", True),
    "the same network by another address": ("10.1.2.254/24", True),
    "the same address with another length": ("10.1.2.1/16", True),
    "an IPv6 network beside": ("fd00:9::1/64", False),
    "an overlapping IPv6 network": ("fd00:1:2::99/48", True),
}


@pytest.mark.parametrize(("foreign", "conflict"), CONFLICTS.values(), ids=CONFLICTS)
def test_foreign_addresses_on_the_bridge(env: Env, foreign, conflict):
    run("ip link add cni0 type bridge")
    run(f"ip addr add {foreign} dev cni0" + (" nodad" if ":" in foreign else ""))
    pod = env.pod()
    if not conflict:
        env.driver.attach(env.plan(pod, (4, 6)), pod.fd)
        assert foreign in addresses("cni0")
        return
    with pytest.raises(KernelError, match=rf"EADDRINUSE.*it has the address {foreign} of somebody else"):
        env.driver.attach(env.plan(pod, (4, 6)), pod.fd)
    assert list(links(pod.name)) == ["lo"]
    env.driver.attach(env.plan(pod, (4, 6), force_address=True), pod.fd)
    assert addresses("cni0") == ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert pings(pod, "10.1.2.1")


def test_the_gateway_of_a_subnet_the_node_lost_is_replaced(env: Env):
    env.attach()
    pod = moved(env)
    env.driver.attach(pod.plan, pod.fd)
    assert addresses("cni0") == ["10.1.9.1/24"]
    assert pings(pod, "10.1.9.1")
    env.driver.resync([pod.plan])
    assert addresses("cni0") == ["10.1.9.1/24"], "the old subnet's pods do not bring their gateway back"


def test_and_after_a_restart_too(env: Env):
    old = env.attach()
    driver = env.new_driver()
    driver.resync([old.plan])
    pod = moved(env)
    driver.attach(pod.plan, pod.fd)
    assert addresses("cni0") == ["10.1.9.1/24"]


def test_an_earlier_gateway_of_ours_no_pod_uses_is_replaced(env: Env):
    pod = env.attach()
    env.detach(pod)
    other = moved(env, "another", podnet=None)
    env.driver.attach(other.plan, other.fd)
    assert addresses("cni0") == ["10.1.9.1/24"]


def test_networks_of_ours_share_a_bridge_when_they_do_not_overlap(env: Env):
    one = env.attach()
    two = moved(env, "another", podnet=None)
    env.driver.attach(two.plan, two.fd)
    three = env.attach()
    assert addresses("cni0") == ["10.1.2.1/24", "10.1.9.1/24"]
    assert pings(one, two.v4())
    assert pings(three, one.v4())


def test_networks_of_ours_that_overlap_do_not(env: Env):
    env.attach()
    pod = env.pod()
    plan = env.plan(pod, network="another", podnet=None)
    gateway = plan.link.bridge.gateways[0]._replace(prefix_len=16)
    link = replace(plan.link, bridge=replace(plan.link.bridge, gateways=(gateway,)))
    wide = replace(plan, link=link)
    with pytest.raises(KernelError, match=r"10.1.2.1/24 of network net"):
        env.driver.attach(wide, pod.fd)
    assert list(links(pod.name)) == ["lo"]


def test_a_device_that_is_no_bridge_is_refused(env: Env):
    run("ip link add cni0 type veth peer name cni1")
    pod = env.pod()
    with pytest.raises(KernelError, match=r"create bridge cni0: EEXIST .the name belongs to a veth"):
        env.driver.attach(env.plan(pod), pod.fd)


def test_vlans_work_or_are_refused_clearly(env: Env):
    pod, twin = env.pod(), env.pod()
    plan = env.plan(pod, vlan=5)
    if run("ip link add probe type bridge vlan_filtering 1", ok=False):
        # CONFIG_BRIDGE_VLAN_FILTERING is off in this kernel.
        with pytest.raises(KernelError, match=r"set up bridge cni0: ENOTSUP"):
            env.driver.attach(plan, pod.fd)
        assert list(links(pod.name)) == ["lo"]
        return
    env.driver.attach(plan, pod.fd)
    env.driver.attach(env.plan(twin, vlan=5), twin.fd)
    other = env.attach(vlan=6)
    assert pings(pod, twin.v4())
    assert pings(pod, "10.1.2.1")
    assert not pings(pod, other.v4(), wait=0.2)
    assert env.driver.check(plan, pod.fd) == []


def test_bridges_by_name(env: Env):
    env.attach(bridge="br-a")
    pod = moved(env, "another", podnet=None, bridge="br-b")
    env.driver.attach(pod.plan, pod.fd)
    assert addresses("br-a") == ["10.1.2.1/24"]
    assert addresses("br-b") == ["10.1.9.1/24"]
    assert namespaces.inode(pod.fd)
