"""A fabric whose leases are Node objects: real agents, vxlan, pods, and an API server in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pycni.kernel import netns

from .small_fabric import ETCD_HOST, ROOT, Node, SmallFabric, until

PORT = 6443
URL = f"http://{ETCD_HOST['4']}:{PORT}"
PREFIX = "flannel.alpha.coreos.com/"
MAC = "0a:00:00:00:07:07"


def node(name: str, number: int, **annotations: str) -> dict[str, Any]:
    told = {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
    cidrs = [f"10.5.{number}.0/24", f"fd00:5:0:{number:x}::/64"]
    return {"metadata": {"name": name, "annotations": told}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}


def flannel_node(name: str, number: int) -> dict[str, Any]:
    """A node on which flannel runs: as flannel's code annotates it."""
    data = json.dumps({"VNI": 1, "VtepMAC": MAC}, separators=(",", ":"))
    return node(
        name,
        number,
        kube_subnet_manager="true",
        backend_type="vxlan",
        backend_data=data,
        backend_v6_data=data,
        public_ip=f"192.0.2.{number}",
        public_ipv6=f"2001:db8::{number:x}",
    )


class Api:
    """The scripted API server, in the namespace beside the bridge."""

    def __init__(self, fabric: SmallFabric, *nodes: dict[str, Any]) -> None:
        self.fabric = fabric
        self.objects = fabric.folder / "objects.json"
        self.objects.write_text(json.dumps({"nodes": nodes}))
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        script = ROOT / "tests" / "k8s" / "api_server.py"
        command = [sys.executable, str(script), ETCD_HOST["4"], str(PORT), str(self.objects)]
        process = subprocess.Popen(
            [*netns.exec_prefix(self.fabric.switch), *command], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving")
        return process

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        script = (
            "import sys, urllib.request as u\n"
            "r = u.Request(sys.argv[1], sys.stdin.buffer.read() or None, method=sys.argv[2])\n"
            "r.add_header('Content-Type', 'application/merge-patch+json')\n"
            "sys.stdout.buffer.write(u.build_opener(u.ProxyHandler({})).open(r, timeout=10).read())"
        )
        done = subprocess.run(
            [
                *netns.exec_prefix(self.fabric.switch),
                sys.executable,
                "-c",
                script,
                f"{URL}/api/v1/nodes{path}",
                method,
            ],
            input=b"" if body is None else json.dumps(body).encode(),
            capture_output=True,
            check=True,
            timeout=30,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def annotations(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.request("GET", f"/{name}")["metadata"]["annotations"]
        return {key.removeprefix(PREFIX): value for key, value in found.items()}

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(15)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def fabric() -> Iterator[SmallFabric]:
    made = SmallFabric("46", count=0)
    yield made
    made.close()


@pytest.fixture
def api(fabric: SmallFabric) -> Iterator[Api]:
    made = Api(fabric, node("n1", 1), node("n2", 2))
    yield made
    made.close()


@pytest.fixture
def flags(fabric: SmallFabric) -> list[str]:
    conf = {
        "Network": "10.5.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "vxlan"},
    }
    (fabric.folder / "net-conf.json").write_text(json.dumps(conf))
    (fabric.folder / "token").write_text("t")
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": URL}}],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    (fabric.folder / "kubeconfig").write_text(yaml.safe_dump(document))
    paths = {"kubeconfig": "kubeconfig", "net-config-path": "net-conf.json"}
    return ["--kube-subnet-mgr", *(f"--{name}={Path(fabric.folder, file)}" for name, file in paths.items())]


def pair(fabric: SmallFabric, flags: list[str]) -> tuple[Node, Node]:
    """Two nodes with ready agents and pods."""
    one, two = fabric.join(1, *flags), fabric.join(2, *flags)
    for each in (one, two):
        each.wait_ready()
        each.add_pod()
    return one, two


def reach(one: Node, two: Node) -> None:
    for family in "46":
        until(
            lambda family=family: one.reaches(two, family),
            lambda: f"{one.tables()}\n{one.said()[-2000:]}",
            10.0,
        )


def test_pods_of_two_nodes_reach_each_other_by_their_node_objects(
    fabric: SmallFabric, api: Api, flags: list[str]
) -> None:
    one, two = pair(fabric, flags)
    assert one.subnets == ["10.5.1.0/24", "fd00:5:0:1::/64"], "the node's own pod networks"
    reach(one, two)
    told = api.annotations("n2")
    assert (told["kube-subnet-manager"], told["backend-type"]) == ("true", "vxlan")
    assert (told["public-ip"], told["public-ipv6"]) == ("192.0.2.2", "2001:db8::2")
    assert json.loads(told["backend-data"])["VtepMAC"] in two("ip -o link show flannel.1")

    # A node of flannel's joins, and its object is deleted.
    api.request("POST", "", flannel_node("real-flannel", 7))
    until(lambda: one.has("10.5.7.0/24 via 10.5.7.0", f"fdb {MAC}", "fd00:5:0:7::/64"), one.tables)
    api.request("DELETE", "/real-flannel")
    until(lambda: not one.has(MAC) and not one.has("10.5.7.0"), one.tables)
    reach(two, one)


def test_agents_and_api_may_go_and_come_and_pods_do_not_notice(
    fabric: SmallFabric, api: Api, flags: list[str]
) -> None:
    one, two = pair(fabric, flags)
    reach(one, two)
    tables = one.tables()
    one.end()
    api.close()
    reach(one, two)
    one.start(*flags)
    until(lambda: one.said().count("CNI calls are served") == 2, one.said, 20.0)
    assert "an earlier life is used until it is confirmed" in one.said()
    assert one.tables() == tables, "nothing was touched without the API"
    one.drop_pod()
    one.add_pod()
    reach(one, two)
    assert one.health() == "fabric: the leases were not listed yet", "and it says so"
    # The API comes back as it was at first: nodes without annotations, versions that begin anew.
    api.process = api.start()
    until(
        lambda: "public-ip" in api.annotations("n1") and "public-ip" in api.annotations("n2"), one.said, 20.0
    )
    until(lambda: one.tables() == tables, lambda: f"{one.tables()}\n{one.said()[-2000:]}", 20.0)
    reach(two, one)
