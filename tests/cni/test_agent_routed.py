"""The whole agent and routed pods: from ADD to DEL, killed, damaged, collected, and a network that changes its kind."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycni.kernel import netns
from tests.cni.node import AgentNode, agent_node, tcp_answers
from tests.cni.runtimes import inside
from tests.cni.test_agent import sh, until

CONF = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "pycni",
    "ipMasq": True,
    "attachment": "ptp",
    "capabilities": {"portMappings": True},
}
PORTS = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}


@pytest.fixture(scope="module")
def node() -> Iterator[AgentNode]:
    with (
        tempfile.TemporaryDirectory(prefix="pyt") as folder,
        agent_node(f"pyt{os.getpid()}q", Path(folder), None) as made,
    ):
        yield made


@pytest.fixture
def pods() -> Iterator[list[str]]:
    """Three namespaces to attach; gives their files."""
    names = [f"pyt{os.getpid()}q{number}" for number in range(3)]
    try:
        for name in names:
            netns.create(name)
        yield [netns.path(name) for name in names]
    finally:
        for name in names:
            netns.delete(name)


def call(node: AgentNode, verb: str, pod: str, **conf: object) -> dict:
    code, answer = node.cni(verb, {**CONF, **conf}, CONTAINERID=Path(pod).name, NETNS=pod, IFNAME="eth0")
    assert code == 0, answer
    return answer or {}


def own(result: dict) -> tuple[str, str]:
    v4, v6 = (item["address"] for item in result["ips"])
    assert (v4.partition("/")[2], v6.partition("/")[2]) == ("32", "128")
    return v4.partition("/")[0], v6.partition("/")[0]


def test_a_life_from_add_to_del(node: AgentNode, pods: list[str]) -> None:
    first, second, third = pods
    one, two = call(node, "ADD", first, **PORTS), call(node, "ADD", second)
    assert [item["name"][:4] for item in one["interfaces"]] == ["veth", "eth0"]
    assert [item["interface"] for item in one["ips"]] == [1, 1]
    assert [item["gateway"] for item in one["ips"]] == ["169.254.1.1", "fe80::1"]
    assert [(item["dst"], item["gw"]) for item in one["routes"]] == [
        ("0.0.0.0/0", "169.254.1.1"),
        ("::/0", "fe80::1"),
    ]
    call(node, "CHECK", first, prevResult=one, **PORTS)
    call(node, "STATUS", first)
    for address, other in zip(own(one), own(two), strict=True):
        assert tcp_answers(second, address, 80, listen_in=first) == other
    outside = netns.path(node.far)
    assert tcp_answers(outside, "192.168.50.1", 8080, listen_in=first, listen_port=80) == "192.168.50.9"
    assert tcp_answers(first, "192.168.50.9", 80, listen_in=outside) == "192.168.50.1", "masqueraded"

    # Killed: nothing stops. Damaged meanwhile, it is put right by the next agent.
    node.kill_agent()
    sh(node, f"ip route del {own(two)[0]}; ip addr del fe80::1/64 dev {two['interfaces'][0]['name']}")
    assert tcp_answers(outside, "192.168.50.1", 8080, listen_in=first, listen_port=80) == "192.168.50.9"
    node.start_agent()
    until(
        lambda: (
            node.cni(
                "CHECK",
                {**CONF, "prevResult": two},
                CONTAINERID=Path(second).name,
                NETNS=second,
                IFNAME="eth0",
            )[0]
            == 0
        )
    )

    # What somebody takes away is back at once, not with the next periodic look.
    host = one["interfaces"][0]["name"]
    for gone, shown, back in (
        (f"ip route del {own(one)[0]}", "ip route", f"{own(one)[0]} dev {host}"),
        (f"ip addr del 169.254.1.1/32 dev {host}", f"ip addr show dev {host}", "169.254.1.1/32"),
    ):
        sh(node, gone)
        until(lambda shown=shown, back=back: back in sh(node, shown))

    # The network becomes one of a bridge: old and new pods reach each other.
    bridged = call(node, "ADD", third, attachment="bridge")
    assert bridged["interfaces"][0]["name"] == "cni0"
    for address, plain in zip(own(two), bridged["ips"], strict=True):
        assert tcp_answers(third, address, 80, listen_in=second) == plain["address"].partition("/")[0]

    # GC removes what is not named, DEL the rest, whatever the configuration says by now.
    kept = [{"containerID": Path(pod).name, "ifname": "eth0"} for pod in (second, third)]
    code, answer = node.cni("GC", {**CONF, "cni.dev/valid-attachments": kept})
    assert code == 0, answer
    assert own(one)[0] not in sh(node, "ip route")
    call(node, "DEL", second, attachment="bridge")
    call(node, "DEL", third)
    until(lambda: "veth" not in sh(node, "ip -o link show type veth | grep -v eth0@"))
    until(lambda: node.reservations("net") == set())
    assert "8080" not in sh(node, "nft list table inet pycni_pods")
    assert json.loads(sh(node, "ip -j route show proto 114 type unicast") or "[]") == []


IPAM = {
    "delegated": (
        {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        "10.99.0.2/32",
    ),
    "a range of its own": (
        {"ranges": [[{"subnet": "10.98.0.0/24", "rangeStart": "10.98.0.77"}]]},
        "10.98.0.77/32",
    ),
}


def test_addresses_may_come_from_elsewhere(node: AgentNode, pods: list[str]) -> None:
    outside = netns.path(node.far)
    for number, (ipam, address) in enumerate(IPAM.values()):
        conf = {
            "cniVersion": "1.0.0",
            "name": f"other{number}",
            "ipam": {**ipam, "dataDir": str(node.folder / f"ipam{number}")},
        }
        made = call(node, "ADD", pods[number], **conf)
        assert [item["address"] for item in made["ips"]] == [address]
        call(node, "CHECK", pods[number], prevResult=made, **conf)
        assert tcp_answers(pods[number], "192.168.50.9", 80, listen_in=outside) == "192.168.50.1"
        assert "unreachable 10.9" not in sh(node, "ip route"), "such a range is not the node's alone"
        call(node, "DEL", pods[number], **conf)
        until(lambda pod=pods[number]: "eth0" not in sh_in(pod, "ip link"))


REFUSED = {
    "unknown": ({"attachment": "vlan"}, 7, "expected one of bridge, ptp, macvlan, ipvlan"),
    "wrong type": ({"attachment": 1}, 6, "attachment"),
    "vlan": ({"attachment": "ptp", "vlan": 5}, 7, "there is no bridge with attachment=ptp"),
    "no gateway": ({"attachment": "ptp", "isGateway": False}, 7, "isGateway"),
    "no addresses": ({"attachment": "ptp", "ipam": {}, "isGateway": False}, 7, "isGateway"),
    "another gateway": (
        {"attachment": "ptp", "ipam": {"routes": [{"dst": "192.0.2.0/24", "gw": "10.244.9.9"}]}},
        7,
        "the only gateway of attachment ptp is the node",
    ),
}


def test_what_cannot_be_had_is_refused_by_name(node: AgentNode, pods: list[str]) -> None:
    for conf, code, text in REFUSED.values():
        failed, answer = node.cni(
            "ADD", {**CONF, **conf}, CONTAINERID="refused", NETNS=pods[0], IFNAME="eth0"
        )
        assert (failed, answer["code"]) == (1, code), answer
        assert text in answer["msg"] + answer.get("details", ""), answer
    assert node.reservations("net") == set()
    assert "eth0" not in sh_in(pods[0], "ip link")


def sh_in(pod: str, command: str) -> str:
    done = subprocess.run(
        [*inside(Path(pod).name), "sh", "-c", command], capture_output=True, text=True, check=True
    )
    return done.stdout
