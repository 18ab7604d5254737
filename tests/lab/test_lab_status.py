"""pycnictl status, ipam, dump and sysdump on labs: what is told of real nodes, of damage, and of the dead."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.kernel import netns
from pycni.lab import glance
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .conftest import LabMaker, unique_name
from .lab_tools import ctl, within

PATIENCE_S = 30.0
DUMP = ("dump", "--json", "--name")
PSK = base64.b64encode(b"shared in advance, told nobody.".ljust(32)).decode()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with everything a node can have, a pod each and one to lose."""
    made = Lab.up(
        LabSpec(
            name=unique_name(),
            nodes=2,
            family="dual",
            pods=1,
            proxy="nftables",
            policy="ebpf",
            bgp="exabgp",
        )
    )
    try:
        yield made
    finally:
        made.down()


def ask(lab: Lab, *words: str, code: int = 0) -> dict[str, Any]:
    done = ctl(*words, "--json", "--name", lab.spec.name)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def inside(space: str, *words: str) -> None:
    subprocess.run([*netns.exec_prefix(space), *words], check=True, timeout=30)


def test_status_tells_parts_lease_and_peers_by_the_overlay_probe(lab: Lab) -> None:
    def reached() -> bool:
        return all(
            peer["reachable"] and peer["latency_ms"] > 0
            for node in ask(lab, "status")["nodes"]
            for peer in node["network"]["peers"]
        )

    assert within(PATIENCE_S, reached)
    found = ask(lab, "status")
    assert found["ready"]
    assert [node["node"] for node in found["nodes"]] == ["node1", "node2"]
    one, two = (node["network"] for node in found["nodes"])
    assert {part["name"] for part in found["nodes"][0]["parts"]} >= {
        "cni",
        "fabric",
        "network",
        "policy",
        "proxy",
    }
    assert (one["leases"], one["backend"], one["lease"]["confirmed"]) == (2, "vxlan", True)
    assert [peer["subnet"] for peer in one["peers"]] == two["subnets"]
    assert [peer["public"] for peer in one["peers"]] == two["lease"]["public"]
    text = ctl("status", "--name", lab.spec.name, "--node", "node1")
    assert text.returncode == 0
    assert "node node1: ready" in text.stdout
    assert "node2" not in text.stdout


@pytest.mark.parametrize("backend", ["host-gw", "wireguard", "udp", "bgp"])
def test_peers_of_every_backend_are_asked_through_the_pod_network(make_lab: LabMaker, backend: str) -> None:
    made = make_lab(
        nodes=2, pods=0, family="dual", backend=backend, bgp="exabgp" if backend == "bgp" else "none"
    )

    def peers() -> list[dict[str, Any]]:
        return [peer for node in ask(made, "status")["nodes"] for peer in node["network"]["peers"]]

    assert within(PATIENCE_S, lambda: [peer["reachable"] for peer in peers()] == [True] * 4), peers()
    assert all(0 < peer["latency_ms"] < 1000 for peer in peers())
    assert {peer["family"] for peer in peers()} == {"ipv4", "ipv6"}
    sockets = glance.sockets(made.spec.name, "agent.sock")
    assert sockets == {node.name: str(node.home / "agent.sock") for node in made.nodes()}
    subnet = next(peer["subnet"] for peer in peers() if peer["family"] == "ipv4")
    # What carries pods' packets is what is asked through: without the route there is no answer, whatever else works.
    if backend == "host-gw":
        rule = f"ip daddr {subnet} drop"
        inside(made.node("node1").namespace, "nft", "add table inet pyt_cut")
        inside(
            made.node("node1").namespace,
            "nft",
            "add chain inet pyt_cut c { type filter hook output priority 0; }",
        )
        inside(made.node("node1").namespace, "nft", f"add rule inet pyt_cut c {rule}")
        assert within(
            PATIENCE_S, lambda: [peer["reachable"] for peer in peers() if peer["subnet"] == subnet] == [False]
        )


def test_drift_that_was_found_and_repaired_is_told(lab: Lab) -> None:
    subnet = ask(lab, "status", "--node", "node2")["nodes"][0]["network"]["subnets"][0]
    before = ask(lab, "status", "--node", "node1")["nodes"][0]["repaired"].get("fabric", 0)
    inside(lab.node("node1").namespace, "ip", "route", "del", subnet)

    def repaired() -> bool:
        node = ask(lab, "status", "--node", "node1")["nodes"][0]
        return bool(node["repaired"].get("fabric", 0) == before + 1)

    assert within(PATIENCE_S, repaired)
    node = ask(lab, "status", "--node", "node1")["nodes"][0]
    assert node["repairs"][0]["what"] == "a route on flannel.1 was deleted"
    assert any("set right" in item["text"] for item in node["errors"])


def test_dump_agrees_on_a_healthy_node_and_names_what_differs_in_a_pod(lab: Lab) -> None:
    assert within(PATIENCE_S, lambda: bool(json.loads(ctl(*DUMP, lab.spec.name).stdout)["same"]))
    found = ask(lab, "dump")
    assert found["same"]
    names = {(item["part"], item["name"]) for node in found["nodes"] for item in node["sections"]}
    assert {name for name in names if name[0] != "pods"} == {
        ("fabric", "kernel"),
        ("services", "nftables"),
        ("policies", "nftables"),
        ("policies", "ebpf"),
        ("policies", "table bridge pycni_guard"),
        ("bgp", "sessions"),
        ("bgp", "announced"),
        ("bgp", "routes"),
    }
    pod = next(item for item in lab.pods() if item.node == "node1" and item.name == "pod1")
    inside(pod.namespace, "ip", "route", "del", "default")
    inside(pod.namespace, "ip", "address", "add", "192.0.2.77/32", "dev", "eth0")
    try:
        sections = ask(lab, "dump", "--node", "node1", code=1)["nodes"][0]["sections"]
        wrong = [item for item in sections if item["missing"] or item["extra"]]
        assert [item["name"].split()[0] for item in wrong] == ["default/pod1"]
        assert [line.split(" via")[0] for line in wrong[0]["missing"]] == ["route default"]
        assert wrong[0]["extra"] == ["addr 192.0.2.77/32 dev eth0"]
        gateway = wrong[0]["missing"][0].split()[3]
    finally:
        inside(pod.namespace, "ip", "address", "del", "192.0.2.77/32", "dev", "eth0")
    inside(pod.namespace, "ip", "route", "add", "default", "via", gateway)
    assert ask(lab, "dump", "--node", "node1")["same"]


@pytest.mark.parametrize("side", ["desired", "actual"])
def test_dump_writes_the_state_of_a_node_in_its_tools_notation(lab: Lab, side: str) -> None:
    text = ctl("dump", f"--{side}", "--name", lab.spec.name, "--node", "node1").stdout
    for words in (
        " dev flannel.1 proto 112 onlink",
        "addr ",
        "table inet pycni_proxy {",
        "table inet pycni_policy {",
        "program pod_in dev veth",
        "element bridge pycni_guard own4 {",
        "neighbour 172.20.0.2 as 64512 Established",
        " via 172.20.0.2 proto 113",
    ):
        assert words in text


def test_an_address_is_released_when_its_container_is_gone_and_not_before(lab: Lab) -> None:
    pod = lab.add_pod("node2", "lost")
    address = str(pod.ips[0])
    assert ask(lab, "ipam", "check")["ok"]
    shown = ask(lab, "ipam", "show", "default/lost")["nodes"]
    assert sorted(row["address"] for node in shown for row in node["rows"]) == sorted(map(str, pod.ips))
    refused = ctl("ipam", "release", address, "--name", lab.spec.name)
    assert refused.returncode == 1
    assert "default/lost runs and has it; --force takes its network away" in refused.stderr
    # The container dies, and the runtime forgets to say so.
    netns.delete(pod.namespace)
    found = ask(lab, "ipam", "check", code=1)["nodes"]
    assert {(node["node"], row["kind"]) for node in found for row in node["rows"]} == {
        ("node2", "leaked-endpoint")
    }
    done = ask(lab, "ipam", "release", address)
    assert done["nodes"][0]["node"] == "node2"
    assert ask(lab, "ipam", "check")["ok"]
    assert not any(node["rows"] for node in ask(lab, "ipam", "show", "default/lost")["nodes"])
    lab.remove_pod("lost", force=True)


def test_a_dead_agent_is_named_and_its_node_still_collected(lab: Lab, tmp_path: Path) -> None:
    process = lab.agent("node2")
    assert process is not None
    lab.signal_agent("node2", signal.SIGKILL)
    try:
        found = ask(lab, "status", code=1)
        assert not found["ready"]
        assert [item["node"] for item in found["silent"]] == ["node2"]
        path = tmp_path / "dump.tar.gz"
        ask(lab, "sysdump", "-o", str(path), "--node", "node2")
        texts = read(path)
        assert "no agent answers" in texts["node2/not-collected.txt"]
        assert "flannel.1" in texts["node2/node/ip-link.txt"]
        assert any(name.startswith("node2/pods/default_pod2/") for name in texts)
    finally:
        lab.start_agents(["node2"])


def read(path: Path) -> dict[str, str]:
    """A bundle's texts, by name below its folder."""
    with tarfile.open(path) as archive:
        return {
            entry.name.partition("/")[2]: file.read().decode()
            for entry in archive
            if (file := archive.extractfile(entry)) is not None
        }


def test_a_bundle_of_nodes_with_wireguard_has_neither_their_keys_nor_the_shared_one(
    make_lab: LabMaker, tmp_path: Path
) -> None:
    made = make_lab(nodes=2, pods=1, backend="wireguard", backend_conf={"PSK": PSK})
    path = tmp_path / "dump.tar.gz"
    found = ask(made, "sysdump", "-o", str(path))
    assert os.stat(path).st_mode & 0o077 == 0
    assert set(found["nodes"]) == {"node1", "node2"}
    texts = read(path)
    everything = "\n".join([*texts, *texts.values()])
    keys = [(made.node(name).home / "state" / "wireguard.key").read_text().strip() for name in found["nodes"]]
    for secret in (PSK, *keys):
        raw = base64.b64decode(secret)
        assert len(raw) == 32
        for form in (secret, raw.hex(), base64.urlsafe_b64encode(raw).decode()):
            assert form not in everything
    for node in found["nodes"]:
        assert "flannel-wg" in texts[f"{node}/node/ip-link.txt"], "it is not empty because of that"
        assert "allowed" in texts[f"{node}/agent/dump.jsonl"]
        assert '"PSK"' in texts[f"{node}/state/lease.json"]
        assert "eth0" in texts[f"{node}/pods/default_pod{node[-1]}/ip-address.txt"]
        assert json.loads(texts[f"{node}/agent/status.json"])["node"] == node
        assert "ready" in texts[f"{node}/agent/log.txt"]
