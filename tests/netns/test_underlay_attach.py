"""Attachment ``macvlan`` on a real kernel: the CNI operations, the leg to the node, what goes through which of both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pycni.kernel.podroutewatch import RouteWatch
from pycni.model.podnet import PodNetwork
from tests.netns.podenv import connect, exchange, links, pings, run, serving
from tests.netns.underlay_rig import SERVICE, Ground, World, populated, underlay
from tests.netns.underlay_segment import FAR, NODE, PEER


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with underlay() as found:
        yield found


@pytest.fixture
def world(ground: Ground, tmp_path: Path) -> Iterator[World]:
    with populated(ground, tmp_path) as found:
        found.agent.start()
        yield found


def devices(pod: Any) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(pod.run("ip -j link")))


def route(pod: Any, target: str) -> str:
    """The device a pod sends by."""
    return str(json.loads(pod.run(f"ip -j route get {target}"))[0]["dev"])


def delete(world: World, pod: Any, **conf: Any) -> None:
    assert world.agent.call("DEL", pod, world.agent.conf(**conf)) == (0, None)
    world.agent.settle()


def test_a_pod_is_on_the_segment_itself_and_beside_it_on_a_leg_to_its_node(world):
    one, two = world.env.pod(), world.env.pod()
    result = world.agent.add(one, "one")
    world.agent.add(two, "two")
    assert [item["address"] for item in result["ips"]] == ["192.0.2.10/24", "2001:db8::10/64"]
    assert [item["gateway"] for item in result["ips"]] == list(FAR)
    host, pod = result["interfaces"]
    assert (pod["name"], pod["mac"]) == ("eth0", links(one.name)["eth0"]["address"])
    assert all(item["interface"] == 1 for item in result["ips"])
    child = links(one.name)["eth0"]["linkinfo"]
    assert (child["info_kind"], child["info_data"]["mode"]) == ("macvlan", "bridge")
    for target in (*FAR, *PEER, two.v4(), two.v6()):
        assert (pings(one, target), route(one, target)) == (True, "eth0")
    for target in (*NODE, SERVICE, "10.1.9.9"):
        assert route(one, target).startswith("leg")
    for target in (one.v4(), one.v6()):
        assert pings(None, target), "the node reaches its pods"
        assert pings(world.far, target), "others reach it without the node"
    for target in NODE:
        assert pings(one, target)
    assert host["name"] in links()


def test_delete_needs_neither_namespace_nor_memory(world):
    pods = [world.env.pod() for _ in range(3)]
    for number, pod in enumerate(pods):
        world.agent.add(pod, f"p{number}")
    delete(world, pods[0])
    conf = json.dumps(world.agent.conf()).encode()
    environment = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": pods[1].name,
        "CNI_NETNS": "",
        "CNI_IFNAME": "eth0",
    }
    assert world.agent.ops.handle(environment, conf, None) == (0, b"")
    world.agent.settle()
    world.agent.stop()
    world.agent.podnet = None  # nothing is taken over before the network is known
    world.agent.start()
    environment["CNI_CONTAINERID"] = pods[2].name
    assert world.agent.ops.handle(environment, conf, None) == (0, b"")
    world.agent.settle()
    for pod in pods:
        assert devices(pod) == ["lo"]
    assert [name for name in links() if name.startswith("veth")] == []
    assert "proto 114" not in run("ip route")
    assert world.agent.records.all() == ()
    assert delete(world, pods[0]) is None, "again is fine"


def test_an_interface_that_lost_its_leg_goes_too(world):
    pod = world.env.pod()
    result = world.agent.add(pod, "one")
    run(f"ip link del {result['interfaces'][0]['name']}")
    assert "eth0" in devices(pod)
    delete(world, pod)
    assert devices(pod) == ["lo"]


FAULTS = {
    "down": ("ip link set eth0 down", "interface eth0 is down"),
    "address": ("ip addr del 192.0.2.10/24 dev eth0", "address 192.0.2.10/24 is missing on eth0"),
    "route": ("ip route del default", "route default via 192.0.2.2 is missing in the pod"),
    "leg": ("ip route del 10.96.0.0/12", "route 10.96.0.0/12 via 169.254.1.1 is missing in the pod"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_what_differs_in_the_pod(world, fault):
    pod = world.env.pod()
    conf = world.agent.conf()
    previous = {**conf, "prevResult": world.agent.add(pod, "one")}
    assert world.agent.call("CHECK", pod, previous) == (0, None)
    command, words = FAULTS[fault]
    pod.run(command)
    code, answer = world.agent.call("CHECK", pod, previous)
    assert code == 1
    assert words in answer["details"]


def test_check_and_repair_of_the_nodes_side(world):
    pod = world.env.pod()
    previous = {**world.agent.conf(), "prevResult": world.agent.add(pod, "one")}
    before = run("ip route")
    driver = world.agent.driver
    with contextlib.closing(RouteWatch()) as watch:
        run("ip route add 198.51.100.0/24 dev eth1 proto 114")
        run("ip route del 198.51.100.0/24")
        assert not driver.need(watch.drain()), "nobody's"
        run(f"ip route del {pod.v4()}")
        assert driver.need(watch.drain())
    code, answer = world.agent.call("CHECK", pod, previous)
    assert (code, "route to 192.0.2.10/32" in answer["details"]) == (1, True)
    assert any("route to 192.0.2.10/32" in line for line in world.agent.ops.adopt())
    assert run("ip route") == before
    assert world.agent.call("CHECK", pod, previous) == (0, None)
    assert world.agent.ops.adopt() == []


def test_gc_removes_what_the_runtime_does_not_name(world):
    one, two = world.env.pod(), world.env.pod()
    world.agent.add(one, "one")
    world.agent.add(two, "two")
    valid = [{"containerID": two.name, "ifname": "eth0"}]
    assert world.agent.call("GC", None, world.agent.conf(**{"cni.dev/valid-attachments": valid})) == (0, None)
    assert (devices(one), "eth0" in devices(two)) == (["lo"], True)
    assert world.agent.call("STATUS", None, world.agent.conf()) == (0, None)


def test_an_add_that_fails_leaves_nothing(world):
    pod = world.env.pod()
    code, answer = world.agent.call("ADD", pod, world.agent.conf(master="nowhere"), "one")
    assert (code, "no uplink nowhere" in answer["msg"]) == (1, True)
    assert devices(pod) == ["lo"]
    assert [name for name in links() if name.startswith("veth")] == []
    assert pod.run("nft list tables") == ""
    assert (world.agent.records.all(), "proto 114" in run("ip route")) == ((), False)
    world.agent.add(pod, "one")


REFUSED = {
    "ipMasq": ({"ipMasq": True}, 7),
    "vlan": ({"vlan": 5}, 7),
    "macspoofchk": ({"macspoofchk": True}, 7),
    "bandwidth": (
        {"runtimeConfig": {"bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6}}},
        7,
    ),
    "lease elsewhere": ({"ipam": {}}, 7),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_on_the_underlay_is_refused(world, case):
    pod = world.env.pod()
    keys, code = REFUSED[case]
    found, answer = world.agent.call("ADD", pod, world.agent.conf(**keys), "one")
    assert (found, answer["code"]) == (1, code), answer
    assert devices(pod) == ["lo"]


def test_a_lease_inside_the_underlays_subnet_is_where_addresses_come_from(world):
    world.agent.podnet = PodNetwork(
        subnets=(ip_network("192.0.2.128/28"),),
        networks=(ip_network("192.0.2.128/25"),),
        mtu=1500,
        exits=("eth1",),
        own=(ip_interface("192.0.2.1/24"),),
    )
    ipam = {"type": "pycni", "routes": [{"dst": "0.0.0.0/0", "gw": FAR[0]}]}
    pod = world.env.pod()
    result = world.agent.add(pod, "one", world.agent.conf(ipam=ipam))
    assert result["ips"][0]["address"] == "192.0.2.130/24"
    assert pings(pod, FAR[0])
    assert pings(world.far, pod.v4())
    assert pings(None, pod.v4())
    assert world.agent.call("CHECK", pod, {**world.agent.conf(ipam=ipam), "prevResult": result}) == (0, None)


def test_services_lead_to_pods_everywhere_and_answers_come_back(world):
    one, two = world.env.pod(), world.env.pod()
    world.agent.add(one, "one")
    world.agent.add(two, "two")
    run("nft add table ip pytproxy")
    run("nft add chain ip pytproxy pre { type nat hook prerouting priority -100 ; }")
    run("nft add rule ip pytproxy pre ip daddr 10.96.0.10 dnat to " + PEER[0])
    run(f"nft add rule ip pytproxy pre ip daddr 10.96.0.11 dnat to {two.v4()}")
    for address, server in (("10.96.0.10", world.peer), ("10.96.0.11", two)):
        with serving(server, 80) as listening:
            assert connect(one, address, 80, listening, 10) == NODE[0]
        with serving(server, 53, udp=True) as listening:
            assert exchange(one, address, 53, listening, 10) == NODE[0]


def test_mapped_ports_of_the_node_lead_to_the_pod(world):
    pod = world.env.pod()
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
    world.agent.add(pod, "one", world.agent.conf(**ports))
    with serving(pod, 80) as listening:
        assert connect(world.far, NODE[0], 8080, listening, 10) == NODE[0]
        assert connect(None, "127.0.0.1", 8080, listening, 10)


def test_routers_of_the_underlay_give_a_pod_no_further_addresses(world):
    pod = world.env.pod()
    world.agent.add(pod, "one")
    assert pod.run("sysctl -n net.ipv6.conf.eth0.accept_ra") == "0\n"
