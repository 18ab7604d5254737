"""podman with its CNI backend uses the plugin like any other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cni.node import AgentNode, tcp_answers
from tests.cni.runtimes import Podman

CONFLIST: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "podnet",
    "plugins": [{"type": "pycni", "capabilities": {"portMappings": True, "ips": True, "mac": True}}],
}


@pytest.fixture(scope="module")
def podman(node: AgentNode) -> Iterator[Podman]:
    folder = node.folder / "pod"
    folder.mkdir()
    runtime = Podman(node.name, folder, CONFLIST, str(node.socket))
    yield runtime
    runtime.stop()


def netns_of(podman: Podman, name: str) -> str:
    return str(json.loads(podman.run("inspect", name).stdout)[0]["NetworkSettings"]["SandboxKey"])


def test_containers_reach_each_other_and_release_their_addresses(node: AgentNode, podman: Podman) -> None:
    addresses = {name: podman.start(name)[0] for name in ("one", "two")}
    assert set(addresses.values()) <= node.reservations("podnet")
    seen = tcp_answers(netns_of(podman, "one"), addresses["two"], 9000, listen_in=netns_of(podman, "two"))
    assert seen == addresses["one"]
    podman.run("rm", "-f", "-t", "0", "one", "two")
    deadline = time.monotonic() + 5
    while node.reservations("podnet"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_published_port_answers_from_outside(node: AgentNode, podman: Podman) -> None:
    podman.start("web", "-p", "8081:80")
    tcp_answers(
        f"/run/netns/{node.far}", "192.168.50.1", 8081, listen_in=netns_of(podman, "web"), listen_port=80
    )
    podman.run("rm", "-f", "-t", "0", "web")


def test_a_requested_address_and_mac_are_given(node: AgentNode, podman: Podman) -> None:
    prefix = next(
        line for line in (node.folder / "subnet.env").read_text().splitlines() if "FLANNEL_SUBNET=" in line
    )
    address = prefix.split("=")[1].rsplit(".", 1)[0] + ".77"
    given = podman.start("fixed", "--ip", address, "--mac-address", "02:00:00:00:00:77")
    assert given == [address]
    link = podman.run("exec", "fixed", "/bin/ip", "link", "show", "eth0").stdout
    assert "02:00:00:00:00:77" in link
    podman.run("rm", "-f", "-t", "0", "fixed")
