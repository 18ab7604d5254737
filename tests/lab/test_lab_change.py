"""A live lab gets one backend after the other under traffic: nothing stays broken, pings and connections go on."""

from __future__ import annotations

import json

from pycni.lab.change import change
from pycni.lab.leases import leases
from pycni.lab.run import Lab

from .conftest import LabMaker
from .lab_tools import ctl

ROUND = ("host-gw", "wireguard", "udp", "vxlan")


def dropped(lab: Lab) -> int:
    """Packets dropped in front of a program (wireguard-go, the forwarder) that was late: what a busy machine costs, not the change."""
    found = 0
    for node in lab.nodes():
        text = lab.exec(node.name, ["cat", "/proc/net/snmp"]).stdout.splitlines()
        names, values = (line.split() for line in text if line.startswith("Udp:"))
        found += int(values[names.index("RcvbufErrors")])
        for link in json.loads(lab.exec(node.name, ["ip", "-s", "-j", "link", "show"]).stdout):
            if link["ifname"].startswith(("flannel-wg", "flannel0")):
                found += link["stats64"]["tx"]["dropped"]
    return found


def test_three_nodes_go_once_round_the_backends_and_nothing_stays_broken(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=3, pods=1, follow_backend=True)
    agents = {node.name: lab.agent(node.name) for node in lab.nodes()}
    for kind in ROUND:
        before = dropped(lab)
        found = change(lab, kind)
        assert [step.name for step in found.steps] == ["all nodes", "old one gone"]
        assert found.ok, [step.broken for step in found.steps]
        # Programs that carry packets lose a few when both processors are busy, as wireguard-go and ours do any time.
        by_program = {found.before, found.after} & {"wireguard", "udp"}
        spare = sum(step.sent for step in found.steps) // 50 if by_program else 0
        assert found.lost <= dropped(lab) - before + spare, [step.json() for step in found.steps]
        assert all(step.sent > 100 for step in found.steps)
        assert {attrs.types for attrs in leases(lab.spec, lab.nodes()).values()} == {(kind,)}
        matrix = lab.matrix()  # packets of the new MTU, from and to pods that were made before
        assert matrix.ok, matrix.failed()
    assert {node.name: lab.agent(node.name) for node in lab.nodes()} == agents
    links = "".join(lab.exec(node.name, ["ip", "-o", "link", "show"]).stdout for node in lab.nodes())
    assert ("flannel.1" in links, "flannel-wg" in links) == (True, False)
    assert lab.status()["ready"]


def test_one_node_is_changed_and_the_others_when_their_turn_comes(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1, family="ipv6", backend="host-gw")
    name = lab.spec.name
    for words, reason in (
        (["nonsense"], "--backend 'nonsense': not one of"),
        (["ipip"], "carries ipv4 only"),
        (["vxlan", "--node", "node9"], "no node 'node9'"),
    ):
        done = ctl("lab", "backend", *words, "--name", name)
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
    assert {attrs.types for attrs in leases(lab.spec, lab.nodes()).values()} == {("host-gw",)}
    done = ctl("lab", "backend", "vxlan", "--node", "node2", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [step["step"] for step in said["steps"]] == ["net-conf", "node2"]
    assert (said["from"], said["to"], said["lost"], said["ok"]) == ("host-gw", "vxlan", 0, True)
    assert said["mtu"] == [1500, 1430]
    ways = {node: attrs.types for node, attrs in leases(lab.spec, lab.nodes()).items()}
    assert [node["backend"] for node in Lab.open(name).status()["nodes"]] == ["host-gw", "vxlan"]
    assert ways == {"node1": ("host-gw", "vxlan"), "node2": ("vxlan", "host-gw")}
    done = ctl("lab", "backend", "vxlan", "--name", name)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("STEP")[2].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["node1", "node2", "old"]
    matrix = Lab.open(name).matrix()
    assert matrix.ok, matrix.failed()
