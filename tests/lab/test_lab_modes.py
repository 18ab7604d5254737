"""Pods that have their network as on a single host: of their own bridge, their node's, another pod's, or none."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from pycni.lab import attachments, netns, processes
from pycni.lab.ask_client import ask_from
from pycni.lab.pod_words import manifest_of
from pycni.lab.run import Lab
from pycni.lab.topology import LabError
from pycni.model.family import Family

from .lab_tools import ctl, within

HOME = "readlink /proc/self/ns/net; cat /proc/sys/kernel/random/boot_id"
GREETER = """
import socket
with socket.create_server(("", 8080)) as server:
    while True:
        with server.accept()[0] as peer:
            peer.sendall(b"hello")
"""


@pytest.fixture
def added(lab3: Lab) -> Iterator[list[str]]:
    """Names of pods to be removed, lenders too."""
    names: list[str] = []
    yield names
    there = {pod.name for pod in lab3.pods()}
    for name in (name for name in reversed(names) if name in there):
        lab3.remove_pod(name, force=True)
    assert len(lab3.pods()) == 6


def add(lab: Lab, added: list[str], name: str, network: str, *more: str) -> dict[str, object]:
    """A pod by the command."""
    added.append(name)
    done = ctl("lab", "pod", "add", name, "--name", lab.spec.name, "--network", network, "--json", *more)
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    assert value["network"] == network
    return value


def space(lab: Lab, target: str) -> str:
    return lab.exec(target, ["sh", "-c", HOME]).stdout


def test_every_mode_at_once_and_the_matrix_knows_who_reaches_whom(lab3: Lab, added: list[str]) -> None:
    add(lab3, added, "single1", "bridge", "--node", "node1")
    add(lab3, added, "single2", "bridge", "--node", "node2")
    add(lab3, added, "own", "host", "--node", "node3")
    add(lab3, added, "lone", "none", "--node", "node3")
    add(lab3, added, "side", "container:pod1")
    matrix = lab3.matrix()
    assert matrix.failed() == []
    asked = {(check.source, check.target) for check in matrix.reasons}
    assert ("single1", "node1") in asked
    assert ("node2", "single1") not in asked, "an address that is another pod's there"
    assert {pair for pair in asked if "lone" in pair} == {
        ("lone", node) for node in ("node1", "node2", "node3")
    }
    assert ("side", "pod1") in asked
    assert ("own", "node1") not in asked
    done = ctl("lab", "matrix", "--name", lab3.spec.name)
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if "lone" in line)
    assert row.split()[1:4] == ["lone", "node3", "none"]
    assert row.count("○") == 3
    shown = ctl("lab", "status", "--name", lab3.spec.name).stdout
    assert f"single2  {' '.join(lab3.pod('single2').ips)} (network bridge)" in shown


def test_a_pod_on_the_bridge_of_its_host_is_behind_that_hosts_address(lab3: Lab, added: list[str]) -> None:
    added.append("web")
    web = lab3.add_pod("node2", "web", manifest=manifest_of("web", "", "80"))
    ips = {"ips": ["172.30.0.77", "fd30::77"]}
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 8080, "protocol": "tcp"}]}
    words = ["--node", "node1", "--capabilities", json.dumps(ips | mapping)]
    single = add(lab3, added, "single", "bridge", *words)
    twin = add(lab3, added, "twin", "bridge", "--node", "node2", "--capabilities", json.dumps(ips))
    assert single["ips"] == twin["ips"] == ips["ips"], "no node knows of the other's"
    own = [ip_address(ip) for ip in ips["ips"]]
    assert all(ip in attachments.SINGLE_NETWORKS[Family.of(ip)] for ip in own)
    for ip in web.ips:
        target = f"[{ip}]:80" if ":" in ip else f"{ip}:80"
        tally = ask_from(lab3, "single", target)
        assert tally.pods == {"web": 1}, tally
        assert not {ip_address(item) for item in tally.clients} & {*own}
    server = processes.spawn(
        lab3.exec_argv("single", [sys.executable, "-c", GREETER]), Path(os.devnull), dict(os.environ)
    )
    node1 = str(lab3.node("node1").addresses[Family.V4].ip)
    assert within(20, partial(greets, lab3, "node2", node1)), "the published port, from another node"
    assert not greets(lab3, "node2", str(own[0])), "its own address means somebody else there"
    lab3.remove_pod("single")
    assert not server.alive()
    assert not greets(lab3, "node2", node1)


def greets(lab: Lab, source: str, address: str) -> bool:
    """Whether the greeter answers a host."""
    try:
        sock = netns.inside(lab.namespace_of(source), socket.socket)
        with sock:
            sock.settimeout(2)
            sock.connect((address, 8080))
            return sock.recv(64) == b"hello"
    except OSError:
        return False


def test_pods_share_the_namespace_of_their_node_or_of_each_other(lab3: Lab, added: list[str]) -> None:
    own = add(lab3, added, "own", "host", "--node", "node2")
    assert own["ips"] == [str(address.ip) for address in lab3.node("node2").addresses.values()]
    assert space(lab3, "own") == space(lab3, "node2")
    side = add(lab3, added, "side", "container:pod1")
    assert (side["ips"], side["node"]) == ([*lab3.pod("pod1").ips], "node1")
    assert space(lab3, "side") == space(lab3, "pod1") != space(lab3, "node1")
    added.append("third")
    assert lab3.add_pod(name="third", network="container:side").network == "container:pod1"
    refused = ctl("lab", "pod", "rm", "pod1", "--name", lab3.spec.name)
    assert (refused.returncode, refused.stderr) == (
        2,
        "pycnictl: pod pod1 lends its network to side, third\n",
    )
    lab3.remove_pod("side")
    lab3.remove_pod("own")
    assert lab3.matrix().ok, "nobody else lost anything"


def test_a_lender_removed_by_force_takes_the_others_along(lab3: Lab, added: list[str]) -> None:
    lone = add(lab3, added, "lone", "none", "--node", "node1")
    add(lab3, added, "side", "container:lone")
    assert [link["ifname"] for link in json.loads(lab3.exec("side", ["ip", "-j", "link"]).stdout)] == ["lo"]
    lab3.remove_pod("lone", force=True)
    assert not netns.exists(str(lone["namespace"]))
    add(lab3, added, "own", "host", "--node", "node1")
    add(lab3, added, "beside", "container:own")
    assert lab3.matrix().failed() == []
    with pytest.raises(LabError, match="lends its network to beside"):
        lab3.remove_pod("own")
    lab3.remove_pod("own", force=True)
    assert len(lab3.pods()) == 6
    assert netns.exists(lab3.namespace_of("node1"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--network", "container:nobody"], "has no pod 'nobody'"),
        (["--network", "container:pod1", "--node", "node2"], "this pod is on node1"),
        (["--network", "host", "--labels", "a=b"], "labels and ports"),
        (["--network", "nat"], "not one of cluster, bridge, host, none, container:NAME"),
    ],
    ids=["no lender", "lender elsewhere", "labels", "no such mode"],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(lab3: Lab, words: list[str], named: str) -> None:
    done = ctl("lab", "pod", "add", "odd", "--name", lab3.spec.name, *words)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(LabError):
        lab3.pod("odd")


def test_guests_have_them_too(uml_lab: Lab) -> None:
    names = {"own": "host", "lone": "none", "side": "container:pod1"}
    try:
        for name, network in names.items():
            uml_lab.add_pod("node1", name, network=network)
        assert uml_lab.matrix().failed() == []
        assert space(uml_lab, "own") == space(uml_lab, "node1")
        assert space(uml_lab, "side") == space(uml_lab, "pod1") != space(uml_lab, "own")
    finally:
        for name in set(names) & {pod.name for pod in uml_lab.pods()}:
            uml_lab.remove_pod(name)
    assert len(uml_lab.pods()) == 4
