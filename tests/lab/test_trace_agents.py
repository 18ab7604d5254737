"""A lab traced wholly through its agents, by mutual TLS: the same as directly, and honest about who is silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pycni.lab import processes
from pycni.lab.run import Lab

from . import lab_tools
from .lab_tools import COMMAND, apply, ctl, environment, running, within
from .trace_objects import SHOP

OBJECTS = SHOP


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Two nodes with living agents that listen for traces."""
    with running(nodes=2, pods=1, family="dual", proxy="nftables", policy="nftables", trace_tls=True) as lab:
        apply(lab, text=OBJECTS)
        yield lab


def trace(lab: Lab, *words: str) -> dict[str, Any]:
    return lab_tools.trace(lab, *words)[1]


def local(lab: Lab, node: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As somebody types it on a node, whose agent knows the others."""
    socket = os.path.join(os.path.dirname(lab.node(node).socket), "agent.sock")
    argv = [*lab.node(node).prefix(), *COMMAND, "trace", "--socket", socket, "--json", *words]
    return subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=60, check=False)


def places(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every hop."""
    names = ("node", "space", "component", "interface", "action", "kind")
    hops = [*found["hops"], *found["back"]]
    return [tuple(str(hop.get(name, "")) for name in names) for hop in hops]


def seen(found: dict[str, Any]) -> set[tuple[str, str]]:
    """Where the probe was seen. Not at which interface: what goes over a bridge may not leave by it."""
    return {(hop["node"], hop["space"]) for hop in (*found["hops"], *found["back"]) if "seen" in hop}


WAYS = (
    ("pod1", "pod2"),
    ("pod2", "shop"),
    ("node1", "pod2"),
    ("pod1", "kube-dns:53", "--proto", "udp"),
    ("pod1", "shut:8080"),
    ("pod1", "pod2:81", "--predict"),
)


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_a_trace_through_agents_is_the_same_as_one_by_looking(world: Lab, words: tuple[str, ...]) -> None:
    direct, asked = trace(world, *words), trace(world, "--by-agents", *words)
    assert places(asked) == places(direct)
    assert seen(asked) == seen(direct)
    assert asked["ok"] == direct["ok"]
    for name in ("kind", "node", "component", "hop", "cause"):
        assert (asked["fault"] or {}).get(name) == (direct["fault"] or {}).get(name)
    assert asked["suspicions"] == direct["suspicions"] == []


def test_on_a_node_its_own_agent_finds_the_others(world: Lab) -> None:
    done = local(world, "node2", "pod1", "shop")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert {hop["node"] for hop in found["hops"]} == {"node1", "node2"}


FOE = (
    "nft 'add table ip foe; add chain ip foe c { type filter hook input priority 0; };"
    " add rule ip foe c udp dport 8472 drop'"
)
DAMAGES = {
    "blackhole route": (
        "node1",
        "ip route add blackhole $(ip route | awk '/dev flannel.1/{print $1}' | sed 's,0/24,0/25,')",
        "ip route del blackhole $(ip route | awk '/dev flannel.1/{print $1}' | sed 's,0/24,0/25,')",
        ("route-blocks", "node1"),
    ),
    "rule of somebody else": (
        "node2",
        FOE,
        "nft delete table ip foe",
        ("foreign-rule", "node2"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_is_named_through_agents(world: Lab, damage: tuple[Any, ...]) -> None:
    where, command, undo, said = damage
    world.exec(where, ["sh", "-ec", command])
    try:
        found = trace(world, "--by-agents", "pod1", "pod2")
    finally:
        world.exec(where, ["sh", "-ec", undo])
    assert (found["fault"]["kind"], found["fault"]["node"]) == said, found["fault"]
    assert trace(world, "--by-agents", "pod1", "pod2")["ok"]


def packet_sockets(lab: Lab) -> dict[str, int]:
    spaces = [*lab.record.nodes, *(pod.name for pod in lab.pods())]
    return {name: len(lab.exec(name, ["cat", "/proc/net/packet"]).stdout.splitlines()) for name in spaces}


def test_a_client_that_goes_leaves_nothing_behind(world: Lab) -> None:
    before = packet_sockets(world)
    from pycni.lab.tracing import by_agents
    from pycni.trace.model import Flow
    from pycni.tracing.eyes import Order

    eyes = by_agents(world, ("pod1", "pod2"))
    eyes.gather()
    flow = Flow(protocol=1, source=b"\x0a\0\0\1", destination=b"\x0a\0\0\2")
    watches = [node.watch(Order(token=77, flow=flow, seconds=60.0)) for node in eyes.nodes.values()]
    during = packet_sockets(world)
    assert all(during[name] > before[name] for name in before)
    for each in watches:
        each.close()
    assert within(5, lambda: packet_sockets(world) == before)


def test_only_who_has_a_certificate_of_the_lab_is_answered(world: Lab) -> None:
    client = world.state.folder / "trace" / "pycnictl.crt"
    aside = client.rename(client.with_suffix(".aside"))
    other = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(client.with_suffix(".none")), "-out", str(client), "-subj", "/CN=pycnictl"]
    key = client.with_suffix(".key")
    held = key.read_bytes()
    try:
        subprocess.run([*other, *files], check=True, capture_output=True)
        key.write_bytes(client.with_suffix(".none").read_bytes())
        done = ctl("trace", "--name", world.spec.name, "--by-agents", "pod1", "pod2")
    finally:
        aside.rename(client)
        key.write_bytes(held)
        client.with_suffix(".none").unlink()
    assert (done.returncode, done.stdout) == (1, "")
    assert "node1 does not answer: TLS: " in done.stderr, done.stderr
    assert "trace refused to 172.20.255.254 (tls): " in world.node("node1").log.read_text()


def test_a_node_with_a_dead_agent_is_told_as_silent_and_the_rest_is_judged(world: Lab) -> None:
    world.signal_agent("node2", signal.SIGKILL)
    try:
        found = trace(world, "--by-agents", "pod1", "pod2")
        assert found["ok"], "the answer came back, whoever tells of it"
        assert {hop["node"] for hop in found["hops"] if "seen" in hop} == {"node1"}
        assert ("node-silent", "node2") in {(item["kind"], item["node"]) for item in found["suspicions"]}
        assert "node2 does not answer: Connection refused" in json.dumps(found["suspicions"])
        done = ctl("trace", "--name", world.spec.name, "--by-agents", "pod2", "pod1")
        assert done.returncode == 2
        assert "pod2 is on node2, of which nothing is known: node2 does not answer" in done.stderr
        world.exec("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        try:
            broken = trace(world, "--by-agents", "pod1", "pod2")
        finally:
            world.exec("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        assert (broken["fault"]["kind"], broken["fault"]["node"]) == ("forwarding-off", "node1")
        done = local(world, "node1", "pod1", "nobody")
        assert done.returncode == 2
        assert "no pod, node, Service or address; nothing is known of 172.20.0.2" in done.stderr
    finally:
        world.start_agent("node2")


def test_a_damaged_forwarding_entry_is_named_by_an_agent_that_does_not_repair(world: Lab) -> None:
    """The agent of node1 without its network component serves and judges, and leaves the overlay as it is."""
    world.signal_agent("node1", signal.SIGKILL)
    node = world.node("node1")
    words = [word for word in node.arguments() if not word.startswith("--components=")]
    argv = [sys.executable, "-P", "-m", "pycni.agent.main", *words, "--components=proxy,policy"]
    process = processes.spawn(node.prefix() + argv, node.log, processes.environment(world.spec.name))
    read = "bridge fdb show dev flannel.1 | awk '/172.20.0.2/{print $1; exit}'"
    try:
        assert within(20, lambda: node.readiness().ready), node.log_end()
        mac = world.exec("node1", ["sh", "-c", read]).stdout.strip()
        world.exec("node1", ["bridge", "fdb", "del", mac, "dev", "flannel.1", "dst", "172.20.0.2"])
        try:
            found = trace(world, "--by-agents", "node1", "pod2")
        finally:
            world.exec("node1", ["bridge", "fdb", "add", mac, "dev", "flannel.1", "dst", "172.20.0.2"])
        assert (found["fault"]["kind"], found["fault"]["node"]) == ("fdb-missing", "node1"), found["fault"]
        assert trace(world, "--by-agents", "node1", "pod2")["ok"]
    finally:
        processes.kill([process], signal.SIGKILL)
        world.start_agent("node1")


def test_without_tls_a_labs_agents_are_asked_over_their_sockets(lab3: Lab) -> None:
    found = trace(lab3, "--by-agents", "pod1", "pod2")
    assert found["ok"], found["fault"]
