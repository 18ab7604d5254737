"""Traces in a lab: sound ways are followed to their end, and each damage is named where it was done."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .conftest import unique_name
from .lab_tools import ctl

OBJECTS = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shut, labels: {app: shut}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Two nodes whose agents have set everything up and are dead: nobody repairs what tests damage."""
    lab = Lab.up(LabSpec(name=unique_name(), nodes=2, family="dual", proxy="nftables", policy="nftables"))
    try:
        done = ctl("lab", "apply", "--name", lab.spec.name, "-f", "-", feed=OBJECTS)
        assert done.returncode == 0, done.stderr
        for node in lab.record.nodes:
            lab.signal_agent(node, signal.SIGKILL)
        yield lab
    finally:
        lab.down()


def trace(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    done = ctl("trace", "--name", lab.spec.name, "--json", *words)
    assert done.returncode in {0, 1}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] is (done.returncode == 0)
    return done.returncode, found


def run(lab: Lab, target: str, command: str) -> None:
    done = lab.exec(target, ["sh", "-ec", command])
    assert done.returncode == 0, f"{command}: {done.stderr}"


WAYS = (
    ("pod1", "pod2"),
    ("pod1", "pod3"),
    ("pod2", "pod1"),
    ("node1", "pod2"),
    ("node1", "pod1"),
    ("pod1", "node2"),
    ("pod1", "node1"),
    ("pod1", "shop"),
    ("node2", "shop:80"),
    ("pod1", "web:8080"),
    ("pod1", "kube-dns:53", "--proto", "udp"),
)


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_a_sound_way_is_followed_to_its_end_and_back(world: Lab, words: tuple[str, ...]) -> None:
    code, found = trace(world, *words)
    assert (code, found["fault"]) == (0, None), found
    assert {item["kind"] for item in found["suspicions"]} == {"agent-dead"}, (
        "they are, and nothing else is wrong"
    )
    assert found["hops"][-1]["action"] == found["back"][-1]["action"] == "delivered"
    assert found["hops"][0]["node"] == found["back"][-1]["node"]


class Damage(NamedTuple):
    """Something broken, and what a trace says of it."""

    where: str
    command: str
    undo: str
    kind: str
    node: str
    words: tuple[str, ...] = ("pod1", "pod2")


FDB = "bridge fdb show dev flannel.1 | awk '{print $1; exit}'"
PORT = "ip -o link show master cni0 | awk -F'[ :@]+' '{print $2}'"
DAMAGES = {
    "forwarding entry deleted": Damage(
        "node1", f"m=$({FDB}); echo $m >/tmp/pyt-mac; bridge fdb del $m dev flannel.1 dst 172.20.0.2",
        "bridge fdb add $(cat /tmp/pyt-mac) dev flannel.1 dst 172.20.0.2; rm /tmp/pyt-mac", "fdb-missing", "node1",
    ),
    "forwarding entry to nowhere": Damage(
        "node1", f"bridge fdb replace $({FDB}) dev flannel.1 dst 172.20.0.99",
        f"bridge fdb replace $({FDB}) dev flannel.1 dst 172.20.0.2", "peer-unknown", "node1",
    ),
    "VTEP MAC changed": Damage(
        "node2", "ip -o link show flannel.1 | grep -o 'ether [0-9a-f:]*' | cut -c7- >/tmp/pyt-mac;"
        " ip -4 neigh show dev flannel.1 | cut -d' ' -f1-3 >/tmp/pyt-neigh; ip link set flannel.1 address 02:00:00:00:00:77",
        "ip link set flannel.1 address $(cat /tmp/pyt-mac);"
        " ip neigh replace $(cat /tmp/pyt-neigh) nud permanent dev flannel.1; rm /tmp/pyt-mac /tmp/pyt-neigh",
        "vtep-mac-wrong", "node2",
    ),
    "forwarding off": Damage(
        "node2", "echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward",
        "forwarding-off", "node2",
    ),
    "blackhole route": Damage(
        "node1", "ip route add blackhole $(ip route | awk '/dev flannel.1/{print $1}' | sed 's,0/24,0/25,')",
        "ip route del blackhole $(ip route | awk '/dev flannel.1/{print $1}' | sed 's,0/24,0/25,')",
        "route-blocks", "node1",
    ),
    "port isolated": Damage(
        "node1", f"for p in $({PORT}); do bridge link set dev $p isolated on; done",
        f"for p in $({PORT}); do bridge link set dev $p isolated off; done", "port-isolated", "node1", ("pod1", "pod3"),
    ),
    "port down": Damage(
        "node2", "ip link set PORT2 down", "ip link set PORT2 up", "port-down", "node2",
    ),
    "pod without route": Damage(
        "pod1", "ip route show default >/tmp/pyt-route; ip route del default",
        "ip route add $(cat /tmp/pyt-route); rm /tmp/pyt-route", "no-route", "node1",
    ),
    "wrong gateway": Damage(
        "pod1", "ip route show default >/tmp/pyt-route; ip route replace default via $(ip -4 -o addr show eth0 |"
        " awk '{print $4}' | sed 's,[0-9]*/24,200,')",
        "ip route replace $(cat /tmp/pyt-route); rm /tmp/pyt-route", "nobody-answers", "node1",
    ),
    "answer without route": Damage(
        "pod2", "ip route show default >/tmp/pyt-route; ip route del default",
        "ip route add $(cat /tmp/pyt-route); rm /tmp/pyt-route", "no-route", "node2",
    ),
    "stale neighbour": Damage(
        "node2", "ip neigh replace POD2 lladdr 02:00:00:00:00:99 nud permanent dev cni0",
        "ip neigh del POD2 dev cni0", "neighbour-wrong", "node2",
    ),
    "underlay down": Damage(
        "node1", "echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down; ip link set eth0 down", "ip link set eth0 up", "underlay-no-route", "node1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_is_named_where_it_was_done(world: Lab, damage: Damage) -> None:
    pod2 = world.pod("pod2")
    port = next(item["name"] for item in pod2.result["interfaces"] if item["name"].startswith("veth"))
    words = {"POD2": pod2.ips[0], "PORT2": port, "/tmp/pyt": f"/tmp/{world.spec.name}"}
    command, undo = damage.command, damage.undo
    for word, value in words.items():
        command, undo = command.replace(word, value), undo.replace(word, value)
    run(world, damage.where, command)
    try:
        code, found = trace(world, *damage.words)
    finally:
        run(world, damage.where, undo)
    assert code == 1
    assert (found["fault"]["kind"], found["fault"]["node"]) == (damage.kind, damage.node), found["fault"]
    assert found["fault"]["command"]
    code, found = trace(world, *damage.words)
    assert code == 0, found["fault"]


def test_an_underlay_that_is_too_small_is_told_beside(world: Lab) -> None:
    run(world, "node2", "ip link set eth0 mtu 1400")
    try:
        code, found = trace(world, "pod1", "pod2")
    finally:
        run(world, "node2", "ip link set eth0 mtu 1500")
    assert code == 0, "a small packet passes"
    assert ("mtu-too-small", "node2") in [(item["kind"], item["node"]) for item in found["suspicions"]]


FOE = (
    "nft 'add table ip foe; add chain ip foe c { type filter hook input priority 0; };"
    " add rule ip foe c udp dport 8472 drop'"
)
FABRIC_PORTS = "for p in $(bridge link | grep -o 'node[0-9]*[^@: ]*'); do bridge link set dev $p isolated"
HIDDEN = {
    "rule of somebody else": ("node2", FOE, "nft delete table ip foe", "foreign-rule", "node2"),
    "node cut off": ("fabric", f"{FABRIC_PORTS} on; done", f"{FABRIC_PORTS} off; done", "vanished", "node2"),
}


@pytest.mark.parametrize("damage", HIDDEN.values(), ids=HIDDEN)
def test_what_tables_do_not_show_is_seen_by_the_probe(world: Lab, damage: tuple[str, ...]) -> None:
    where, command, undo, kind, node = damage
    run(world, where, command)
    try:
        code, found = trace(world, "pod1", "pod2")
    finally:
        run(world, where, undo)
    assert code == 1
    assert (found["fault"]["kind"], found["fault"]["node"]) == (kind, node), found["fault"]
    lost = found["hops"][found["fault"]["hop"]]
    assert (lost["node"], lost["component"]) == ("node2", "overlay")
    assert "it was seen last at underlay eth0 of node1" in found["fault"]["cause"]


def test_a_probe_is_seen_at_every_interface_and_a_prediction_sends_none(world: Lab) -> None:
    _, found = trace(world, "pod1", "pod2")
    places = [(hop["node"], hop["interface"]) for hop in found["hops"] if "seen" in hop]
    shown = [(hop["node"], hop["interface"]) for hop in found["hops"] if hop["interface"]]
    assert [item for item in shown if item in places] == [item for item in shown if item[1]]
    assert found["round_trip_us"] > 0
    _, found = trace(world, "pod1", "pod2", "--predict")
    assert not [hop for hop in (*found["hops"], *found["back"]) if "seen" in hop]
    assert found["round_trip_us"] is None


def test_a_policy_that_denies_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "shut:8080")
    assert code == 1
    fault = found["fault"]
    assert (fault["kind"], fault["node"], fault["component"]) == ("policy-denied", "node2", "policy")
    assert "NetworkPolicy default/closed" in fault["cause"]
    assert fault["command"].startswith("pycnictl policy explain 10.244.")


def test_a_service_without_endpoints_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "nobody")
    assert (code, found["fault"]["kind"]) == (1, "service-without-endpoints")
    assert "default/nobody" in found["hops"][-1]["detail"]


def test_a_port_nobody_listens_on_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "pod2:81")
    assert (code, found["fault"]["kind"], found["fault"]["node"]) == (1, "nobody-listens", "node2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pod1", "nothing"), "'nothing': no pod, node, Service or address"),
        (("pod1", "pod2:x"), "port from 1 to 65535"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(world: Lab, words: tuple[str, ...], said: str) -> None:
    done = ctl("trace", "--name", world.spec.name, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_people_read_a_line_per_hop(world: Lab) -> None:
    done = ctl("trace", "--name", world.spec.name, "pod1", "shop")
    assert done.returncode == 0, done.stderr
    for said in ("service     translated  default/shop", "encapsulated  vxlan id 1 to 172.20.0.2", "OK "):
        assert said in done.stdout


def test_frames_of_all_interfaces_are_written_to_one_file(world: Lab, tmp_path: Path) -> None:
    file = tmp_path / "way.pcapng"
    code, found = trace(world, "pod1", "pod2", "--pcap", str(file))
    assert code == 0, found["fault"]
    packets = rdpcap(str(file))
    probes = [packet for packet in packets if packet.haslayer("ICMP") and packet["ICMP"].type == 8]
    wrapped = [packet for packet in probes if packet.haslayer("VXLAN")]
    assert len(wrapped) == 2, "leaving one node and entering the other"
    assert {packet[VXLAN].vni for packet in wrapped} == {1}
    times = [float(packet.time) for packet in packets]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 3600
