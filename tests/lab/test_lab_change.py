"""A live lab gets one backend after the other under traffic: nothing stays broken, pings and connections go on."""

from __future__ import annotations

import json
from functools import partial

from pycni.lab.change import Change, change, leases
from pycni.lab.run import Lab

from .conftest import LabMaker
from .lab_tools import ctl, within

ROUND = ("host-gw", "wireguard", "vxlan")


def dropped(lab: Lab) -> int:
    """Packets dropped in front of wireguard-go because it was late: what a busy machine costs, not the change."""
    found = 0
    for node in lab.nodes():
        text = lab.exec(node.name, ["cat", "/proc/net/snmp"]).stdout.splitlines()
        names, values = (line.split() for line in text if line.startswith("Udp:"))
        found += int(values[names.index("RcvbufErrors")])
        for link in json.loads(lab.exec(node.name, ["ip", "-s", "-j", "link", "show"]).stdout):
            if link["ifname"].startswith("flannel-wg"):
                found += link["stats64"]["tx"]["dropped"]
    return found


def test_three_nodes_go_once_round_the_backends_and_nothing_stays_broken(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=3, pods=1)
    for kind in ROUND:
        before = dropped(lab)
        found = change(lab, kind)
        names = ["net-conf", "node1", "node2", "node3", "old one gone"]
        assert [step.name for step in found.steps] == names
        assert found.ok, [step.broken for step in found.steps]
        assert found.lost <= dropped(lab) - before, [step.json() for step in found.steps]
        assert all(step.sent > 100 for step in found.steps)
        assert {attrs.types for attrs in leases(lab).values()} == {(kind,)}
        # Running pods, too, have the new MTU; bridges and pods are looked after once in two seconds.
        assert within(20, lambda: lab.matrix().ok), [str(item) for item in lab.matrix().failed()]
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
    assert {attrs.types for attrs in leases(lab).values()} == {("host-gw",)}
    done = ctl("lab", "backend", "vxlan", "--node", "node2", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [step["step"] for step in said["steps"]] == ["net-conf", "node2"]
    assert (said["from"], said["to"], said["lost"], said["ok"]) == ("host-gw", "vxlan", 0, True)
    assert said["mtu"] == [1500, 1430]
    ways = {node: attrs.types for node, attrs in leases(lab).items()}
    assert ways == {"node1": ("host-gw", "vxlan"), "node2": ("vxlan", "host-gw")}
    done = ctl("lab", "backend", "vxlan", "--name", name)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("STEP")[2].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["node1", "node2", "old"]
    assert within(20, lambda: Lab.open(name).matrix().ok)


def test_agents_that_follow_change_by_themselves(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1, follow_backend=True)
    agents = {node.name: lab.agent(node.name) for node in lab.nodes()}
    found: Change = change(lab, "host-gw")
    assert [step.name for step in found.steps] == ["all nodes", "old one gone"]
    assert (found.ok, found.lost) == (True, 0), [step.json() for step in found.steps]
    assert {node.name: lab.agent(node.name) for node in lab.nodes()} == agents
    assert within(20, partial(_quiet, lab))


def _quiet(lab: Lab) -> bool:
    """Whether nothing of vxlan is left in the kernel, nor in the leases."""
    links = "".join(lab.exec(node.name, ["ip", "-o", "link", "show"]).stdout for node in lab.nodes())
    return "flannel" not in links and {attrs.types for attrs in leases(lab).values()} == {("host-gw",)}
