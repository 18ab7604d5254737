"""containerd calls the plugin the way kubelet makes it: RunPodSandbox, StopPodSandbox, RemovePodSandbox."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cni.node import AgentNode, tcp_answers
from tests.cni.runtimes import Containerd

CONFLIST: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "k8s",
    "plugins": [
        {
            "type": "pycni",
            "hairpinMode": True,
            "capabilities": {"portMappings": True, "bandwidth": True, "ips": True, "mac": True, "dns": True},
        }
    ],
}


@pytest.fixture(scope="module")
def containerd(node: AgentNode) -> Iterator[Containerd]:
    folder = node.folder / "ctd"
    folder.mkdir()
    runtime = Containerd(node.name, folder, CONFLIST, str(node.socket))
    yield runtime
    runtime.stop()


def netns_of(info: dict[str, Any]) -> str:
    """Path of a sandbox's network namespace."""
    namespaces = info["runtimeSpec"]["linux"]["namespaces"]
    return str(next(ns["path"] for ns in namespaces if ns["type"] == "network"))


def test_two_sandboxes_get_both_families_and_reach_each_other(
    node: AgentNode, containerd: Containerd
) -> None:
    first, second = containerd.run_pod("first"), containerd.run_pod("second")
    try:
        (ips1, info1), (ips2, info2) = containerd.pod_status(first), containerd.pod_status(second)
        assert [ipaddress.ip_address(ip).version for ip in ips1] == [4, 6]
        assert set(ips1) | set(ips2) == node.reservations("k8s")
        for address in ips2:
            seen = tcp_answers(netns_of(info1), address, 8080, listen_in=netns_of(info2))
            assert seen in ips1
    finally:
        for sandbox in (first, second):
            containerd.stop_pod(sandbox)
            containerd.remove_pod(sandbox)
    wait_released(node)


def wait_released(node: AgentNode) -> None:
    deadline = time.monotonic() + 5
    while left := node.reservations("k8s"):
        assert time.monotonic() < deadline, f"still reserved: {left}"
        time.sleep(0.02)


def test_port_mappings_of_a_sandbox_answer_from_outside(node: AgentNode, containerd: Containerd) -> None:
    sandbox = containerd.run_pod("mapped", ports=[{"container_port": 80, "host_port": 8080}])
    try:
        _, info = containerd.pod_status(sandbox)
        for address in ("192.168.50.1", "fd00:50::1"):
            tcp_answers(f"/run/netns/{node.far}", address, 8080, listen_in=netns_of(info), listen_port=80)
    finally:
        containerd.stop_pod(sandbox)
        containerd.remove_pod(sandbox)
    wait_released(node)


def test_stop_and_remove_may_come_twice(node: AgentNode, containerd: Containerd) -> None:
    sandbox = containerd.run_pod("twice")
    containerd.stop_pod(sandbox)
    containerd.stop_pod(sandbox)
    containerd.remove_pod(sandbox)
    containerd.remove_pod(sandbox)
    wait_released(node)
    links = subprocess.run(
        ["ip", "-n", node.name, "-br", "link"], capture_output=True, text=True, check=True
    ).stdout
    assert "veth" not in links


def test_a_dead_agent_makes_the_sandbox_fail_and_its_return_makes_it_work(
    node: AgentNode, containerd: Containerd
) -> None:
    node.kill_agent()
    try:
        with pytest.raises(grpc.RpcError, match="pycnid"):
            containerd.run_pod("early")
    finally:
        node.start_agent("--ip-masq")
    containerd.run_pod("late")
    containerd.remove_all()
    wait_released(node)


def test_a_sandbox_made_before_a_restart_is_removed_after_it(node: AgentNode, containerd: Containerd) -> None:
    sandbox = containerd.run_pod("survivor")
    _, info = containerd.pod_status(sandbox)
    node.kill_agent()
    node.start_agent("--ip-masq")
    other = containerd.run_pod("newcomer")
    ips, other_info = containerd.pod_status(other)
    tcp_answers(netns_of(info), ips[0], 8080, listen_in=netns_of(other_info))
    for each in (sandbox, other):
        containerd.stop_pod(each)
        containerd.remove_pod(each)
    wait_released(node)
    assert not Path(netns_of(info)).exists() or not Path(netns_of(info)).stat().st_size
