"""Attaching and detaching pods on a real kernel: links, addresses, routes, packets."""

from __future__ import annotations

import os
import threading
from ipaddress import ip_address, ip_network

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.kernel import pod as pod_module
from pycni.kernel import podbridged, podlink
from pycni.model.cni import IpamConf, PortMapping, RouteConf
from tests.netns.pod_cases import EVERYTHING, MOMENTS, fail_at
from tests.netns.podenv import FAMILIES, PODNET, Env, addresses, links, pings, run


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_pods_reach_each_other_and_the_node_at_once(env: Env, families):
    one, two = env.attach(families), env.attach(families)
    for target in ([two.v4(), "10.1.2.1"] if 4 in families else []) + (
        [two.v6(), "fd00:1:2::1"] if 6 in families else []
    ):
        # Full MTU: 1450 less the headers of IP and ICMP.
        assert pings(one, target, size=1450 - (48 if ":" in target else 28)), target
    assert env.driver.check(one.plan, one.fd) == []


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_the_node_reaches_the_first_pod_of_a_bridge_at_once(env: Env, families):
    """The bridge itself starts to transmit a moment after its first port forwards."""
    for number in range(12):
        if number % 3 == 1:
            run(f"ip link add br{number} type bridge")
        if number % 3 == 2:
            run(f"ip link add br{number} up type bridge")
        pod = env.attach(families, bridge=f"br{number}", podnet=None)
        for target in (pod.v4(),) * (4 in families) + (pod.v6(),) * (6 in families):
            assert pings(None, target, wait=0.5), (number, target)
        env.detach(pod)
        run(f"ip link del br{number}")


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
def test_packets_from_elsewhere_reach_the_first_pod_at_once(env: Env, family):
    """For IPv6 the node asks for the pod with a link-local address of its own, which has to be ready too."""
    out = env.outside((4, 6))
    pod = env.attach((4, 6))
    assert pings(out, pod.v4() if family == 4 else pod.v6(), wait=0.5)


def test_and_the_first_after_all_were_gone(env: Env):
    for _ in range(8):
        pod = env.attach((4, 6))
        assert pings(None, pod.v4(), wait=0.5)
        assert pings(None, pod.v6(), wait=0.5)
        env.detach(pod)


def test_the_kernel_has_what_the_plan_says(env: Env):
    pod = env.attach((4, 6), hairpin_mode=True, port_isolation=True)
    host, inside = links()[pod.plan.host], links(pod.name)["eth0"]
    assert (host["mtu"], inside["mtu"]) == (1450, 1450)
    assert host["ifalias"] == f"pycni:net:{pod.name}:eth0"
    assert host["master"] == "cni0"
    assert host["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert host["linkinfo"]["info_slave_data"]["isolated"] is True
    assert inside["address"] == pod.plan.mac.hex(":")
    assert host["address"] == pod.plan.names.host_mac.hex(":")
    assert (pod.links.host_ifindex, pod.links.pod_ifindex) == (host["ifindex"], inside["ifindex"])
    assert addresses("eth0", pod.name) == [f"{pod.v4()}/24", f"{pod.v6()}/64"]
    assert "UP" in links(pod.name)["lo"]["flags"]
    assert "default via 10.1.2.1 dev eth0" in pod.run("ip route")
    assert "default via fd00:1:2::1 dev eth0" in pod.run("ip -6 route")
    assert "brd 10.1.2.255" in pod.run("ip addr show dev eth0")
    assert run(f"ip -6 addr show dev {pod.plan.host}") == "", "a port needs no address of its own"
    link_local = pod.run("ip -6 addr show dev eth0 scope link")
    assert "fe80::" in link_local
    assert "tentative" not in link_local


def test_the_pods_link_local_address_comes_back_after_it_was_down(env: Env):
    pod = env.attach((6,))
    before = [line for line in pod.run("ip -6 addr show dev eth0 scope link").splitlines() if "inet6" in line]
    pod.run("ip link set eth0 down")
    pod.run("ip link set eth0 up")
    after = [line for line in pod.run("ip -6 addr show dev eth0 scope link").splitlines() if "inet6" in line]
    assert before[0].split()[1] == after[0].split()[1]


def test_routes_of_ipam_and_cluster(env: Env):
    extra = (
        RouteConf(dst=ip_network("198.51.100.0/24"), mtu=1300, priority=7),
        RouteConf(dst=ip_network("203.0.113.0/24"), gw=ip_address("10.1.2.77"), table=50),
        RouteConf(dst=ip_network("203.0.114.0/24"), gw=ip_address("169.254.1.1")),
    )
    pod = env.attach(is_default_gateway=False, ipam=IpamConf(routes=extra))
    shown = pod.run("ip route")
    assert "default" not in shown
    assert "198.51.100.0/24 via 10.1.2.1 dev eth0" in shown
    assert "metric 7 mtu 1300" in shown
    assert "10.1.0.0/16 via 10.1.2.1 dev eth0" in shown
    assert "203.0.114.0/24 via 169.254.1.1 dev eth0" in shown
    assert "onlink" in shown
    assert "203.0.113.0/24 via 10.1.2.77 dev eth0" in pod.run("ip route show table 50")
    assert env.driver.check(pod.plan, pod.fd) == []


def test_a_pod_without_gateway_reaches_only_its_bridge(env: Env):
    conf = {"is_gateway": False, "is_default_gateway": False}
    one, two = env.attach(**conf), env.attach(**conf)
    assert pings(one, two.v4())
    assert addresses("cni0") == []
    assert not pings(one, "10.1.2.1", wait=0.2)


def test_pure_layer_2_has_no_addresses(env: Env):
    pod = env.attach((), is_gateway=False, is_default_gateway=False, layer2_only=True)
    assert addresses("eth0", pod.name) == []
    assert links(pod.name)["eth0"]["operstate"] == "UP"
    assert env.driver.check(pod.plan, pod.fd) == []


def test_isolated_ports_see_the_gateway_but_not_each_other(env: Env):
    one, two = env.attach(port_isolation=True), env.attach(port_isolation=True)
    assert pings(one, "10.1.2.1")
    assert not pings(one, two.v4(), wait=0.2)


def test_ipv6_is_switched_on_for_the_interface_when_the_namespace_had_it_off(env: Env):
    pod = env.pod()
    for which in ("all", "default"):
        pod.run(f"sysctl -qw net.ipv6.conf.{which}.disable_ipv6=1")
    plan = env.plan(pod, (4, 6))
    env.driver.attach(plan, pod.fd)
    assert pings(pod, "fd00:1:2::1")


def test_duplicate_address_detection_runs_before_add_returns(env: Env):
    pod = env.attach((6,), enable_dad=True)
    assert "tentative" not in pod.run("ip -6 addr show dev eth0 scope global")
    assert pings(pod, "fd00:1:2::1")
    twin = env.pod()
    twin.number = pod.number
    with pytest.raises(KernelError, match=r"EADDRINUSE.*duplicate address detection"):
        env.driver.attach(env.plan(twin, (6,), enable_dad=True), twin.fd)
    assert list(links(twin.name)) == ["lo"]


def test_a_taken_interface_name_is_an_error_and_leaves_nothing(env: Env):
    pod = env.pod()
    pod.run("ip link add eth0 type veth peer name other")
    plan = env.plan(pod)
    with pytest.raises(KernelError, match=r"create interface eth0: EEXIST .the pod has an interface"):
        env.driver.attach(plan, pod.fd)
    assert plan.host not in links()
    assert "eth0" in links(pod.name)


def test_a_second_add_of_an_attachment_is_an_error_and_leaves_the_first(env: Env):
    pod = env.attach(port_mappings=(PortMapping(host_port=80, container_port=80),))
    with pytest.raises(KernelError, match="was added before and not deleted"):
        env.driver.attach(pod.plan, pod.fd)
    assert env.driver.check(pod.plan, pod.fd) == []


def test_add_right_after_del_succeeds_in_the_same_namespace(env: Env):
    pod = env.attach()
    for _ in range(3):
        env.driver.detach(pod.plan.owner, pod.fd)
        env.driver.attach(pod.plan, pod.fd)
    assert pings(pod, "10.1.2.1")


def test_detach_cuts_off_at_once_and_tells_when_the_link_is_gone(env: Env):
    pod, other = env.attach(), env.attach()
    gone = threading.Event()
    calls: list[object] = []

    def done(problem: object) -> None:
        calls.append((problem, pod.plan.host in links()))
        gone.set()

    assert env.driver.detach(pod.plan.owner, pod.fd, done)
    host = links().get(pod.plan.host)
    assert host is None or ("UP" not in host["flags"] and "master" not in host)
    assert not pings(other, pod.v4(), wait=0.1)
    assert gone.wait(3)
    assert env.driver.wait_gone(pod.plan.owner)
    assert calls == [(None, False)]
    assert "eth0" not in links(pod.name)
    assert pings(other, "10.1.2.1")


def test_the_nodes_neighbour_entry_goes_with_the_pod(env: Env):
    pod = env.attach((4, 6))
    assert pings(pod, "10.1.2.1")
    assert pings(pod, "fd00:1:2::1")
    assert pod.v4() in run("ip neigh show dev cni0")
    assert pod.v6() in run("ip neigh show dev cni0")
    env.detach(pod)
    assert pod.v4() not in run("ip neigh show dev cni0")
    assert pod.v6() not in run("ip neigh show dev cni0")


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_others_learn_at_once_that_an_address_has_moved(env: Env, families):
    asker, before = env.attach((4, 6)), env.attach((4, 6))
    assert pings(asker, before.v4())
    assert pings(asker, before.v6())
    env.detach(before)
    after = env.pod()
    after.number = before.number
    env.driver.attach(env.plan(after, families), after.fd)
    for target in (after.v4(),) * (4 in families) + (after.v6(),) * (6 in families):
        assert pings(asker, target, wait=0.5), target


def test_detach_of_what_is_not_there_is_success(env: Env):
    pod = env.attach()
    calls = []
    env.detach(pod)
    assert not env.driver.detach(pod.plan.owner, pod.fd, calls.append)
    assert not env.driver.detach(pod.plan.owner, None, calls.append)
    assert calls == [None, None]


def test_a_second_detach_is_told_when_the_first_ones_link_is_gone(env: Env):
    pod = env.attach()
    seen = []
    env.driver.detach(pod.plan.owner, pod.fd, lambda _: seen.append(("first", pod.plan.host in links())))
    env.driver.detach(pod.plan.owner, None, lambda _: seen.append(("second", pod.plan.host in links())))
    assert env.driver.wait_gone(pod.plan.owner)
    assert seen == [("first", False), ("second", False)]


def test_detach_without_namespace_finds_the_link_by_its_owner(env: Env):
    pod = env.attach()
    assert env.driver.detach(pod.plan.owner)
    assert env.driver.wait_gone(pod.plan.owner)
    assert list(links(pod.name)) == ["lo"]


def test_detach_removes_a_link_another_plugin_made(env: Env):
    pod = env.pod()
    run(f"ip link add vethabc type veth peer name eth0 netns {pod.name}")
    plan = env.plan(pod)
    calls = []
    assert env.driver.detach(plan.owner, pod.fd, calls.append)
    assert env.driver.wait_gone(plan.owner)
    assert calls == [None]
    assert "vethabc" not in links()


def test_links_a_killed_run_left_dying_are_swept(env: Env):
    pod = env.attach()
    run(f"ip link set {pod.plan.host} down nomaster group {pod_module.DYING_GROUP}")
    driver = env.new_driver()
    assert driver.wait_gone(pod.plan.owner)
    assert pod.plan.host not in links()


def test_links_names_owners_of_what_is_in_the_kernel(env: Env):
    pod, gone = env.attach(), env.attach()
    run("ip link add vethother type veth peer name vethmore")
    run("ip link set vethother alias pycni:net:forged:eth0")
    env.driver.detach(gone.plan.owner)
    assert env.driver.links() == {pod.plan.host: pod.plan.owner}


def test_a_pod_whose_namespace_is_gone_is_detached_too(env: Env, netns_factory):
    pod = env.attach()
    namespaces.delete(pod.name)
    calls = []
    env.driver.detach(pod.plan.owner, None, calls.append)
    assert env.driver.wait_gone(pod.plan.owner)
    assert calls == [None]
    assert pod.plan.host not in links()


def test_kernels_that_do_not_echo_links_are_asked_again(env: Env, monkeypatch):
    """Before 6.2 NLM_F_ECHO means nothing for links."""
    real = podlink.NetlinkSocket.request
    monkeypatch.setattr(
        podlink.PodSocket,
        "request",
        lambda self, msg, operation="", obj="": (
            []
            if operation == "create interface" and real(self, msg, operation, obj)
            else real(self, msg, operation, obj)
        ),
    )
    pod = env.attach((4, 6))
    assert env.driver.check(pod.plan, pod.fd) == []


def test_a_failed_attachment_does_not_hold_its_gateway(env: Env):
    pod, other = env.pod(), env.pod()
    pod.run("ip link add eth0 type veth peer name other")
    with pytest.raises(KernelError, match="EEXIST"):
        env.driver.attach(env.plan(pod), pod.fd)
    other.v4 = lambda: "10.1.9.9"
    env.driver.attach(env.plan(other, podnet=None, network="another"), other.fd)
    assert addresses("cni0") == ["10.1.9.1/24"]


def test_no_descriptor_is_lost(env: Env):
    pod = env.attach((4, 6), port_mappings=(PortMapping(host_port=53, container_port=53, protocol="udp"),))
    env.detach(pod)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        env.driver.attach(pod.plan, pod.fd)
        env.driver.check(pod.plan, pod.fd)
        with pytest.raises(KernelError):
            env.driver.attach(pod.plan, pod.fd)
        env.detach(pod)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pod_taken_over_and_detached_leaves_its_gateway_to_nobody(env: Env):
    """Counting survives a second resync that compiles the same pods anew."""
    pod = env.attach()
    driver = env.new_driver()
    for podnet in (PODNET, None):
        driver.resync([env.plan(pod, podnet=podnet)])
    driver.detach(pod.plan.owner, pod.fd)
    assert driver.wait_gone(pod.plan.owner)
    other = env.pod()
    other.v4 = lambda: "10.1.9.9"
    driver.attach(env.plan(other, podnet=None, network="another"), other.fd)
    assert addresses("cni0") == ["10.1.9.1/24"]


STEPS = [
    "create",
    "shape",
    "claim",
    "bring_up_host",
    "configure_pod",
    "await_running",
    "announce",
    "let_loopback_out",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_failure_at_any_step_leaves_nothing(env: Env, step, moment):
    pod, other = env.pod(), env.attach()
    plan = env.plan(pod, (4, 6), **EVERYTHING)
    before = set(links())
    fail_at(env, pod, plan, step=step, moment=moment, places={"bring_up_host": podbridged})
    assert set(links()) == before
    assert list(links(pod.name)) == ["lo"]
    rules = run("nft list ruleset")
    assert plan.host not in rules
    env.driver.attach(plan, pod.fd)
    assert env.driver.check(plan, pod.fd) == []
    assert pings(pod, other.v4())


def test_many_pods_come_and_go_at_once(env: Env):
    pods = [env.pod() for _ in range(24)]
    for pod in pods:
        pod.plan = env.plan(pod, (4, 6))
    failures: list[BaseException] = []

    def work(mine):
        try:
            for _ in range(3):
                for pod in mine:
                    env.driver.attach(pod.plan, pod.fd)
                for pod in mine:
                    env.driver.detach(pod.plan.owner, pod.fd)
            for pod in mine:
                env.driver.attach(pod.plan, pod.fd)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(pods[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for pod in pods:
        assert env.driver.check(pod.plan, pod.fd) == []
    assert len([name for name in links() if name.startswith("veth")]) == 24
