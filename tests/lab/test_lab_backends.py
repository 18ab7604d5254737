"""Labs of every backend: everybody reaches everybody, kills do not show or are got over, and nothing is left."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pycni.lab import netns, processes, topology
from pycni.lab.apply import Cluster
from pycni.lab.processes import ProcessId
from pycni.lab.run import Lab
from pycni.lab.state import RUN
from pycni.lab.topology import LabError, LabSpec
from pycni.model.family import Family
from pycni.wire import rtlink

from .conftest import LabMaker
from .lab_tools import within

PATIENCE_S = 30.0
PSK = base64.b64encode(b"a key that was shared in advance.".ljust(32)[:32]).decode()


CLOSED = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed"},
    "spec": {"podSelector": {"matchLabels": {"pod": "pod1"}}, "policyTypes": ["Ingress"]},
}


class Way(NamedTuple):
    """A backend and what a lab of it looks like."""

    fields: dict[str, Any]
    families: int
    mtu: int
    devices: set[str]
    """By which node1 reaches the others' pods."""
    helper: str = ""
    """A program per node that does the backend's work."""
    forgotten: bool = False
    """Whether the record is lost before the lab is taken down."""


WAYS = {
    "wireguard": Way(
        {"backend": "wireguard", "family": "dual"}, 2, 1420, {"flannel-wg", "flannel-wg-v6"}, "wireguard-go"
    ),
    "wireguard with one device and a pre-shared key": Way(
        {
            "backend": "wireguard",
            "family": "dual",
            "backend_conf": {"Mode": "ipv6", "PSK": PSK},
        },
        2,
        1420,
        {"flannel-wg"},
        "wireguard-go",
        forgotten=True,
    ),
    "udp": Way({"backend": "udp", "family": "dual"}, 2, 1452, {"flannel0"}, "pycni.forwarder"),
    "udp with a key": Way(
        {"backend": "udp", "family": "dual", "backend_conf": {"PSK": PSK}},
        2,
        1420,
        {"flannel0"},
        "pycni.forwarder",
        forgotten=True,
    ),
    "extension": Way({"backend": "extension", "family": "dual"}, 2, 1450, {"ext0"}),
    "bgp": Way({"backend": "bgp", "family": "dual", "bgp": "bird"}, 2, 1500, {"eth0"}),
    "ipip": Way({"backend": "ipip", "driver": "uml"}, 1, 1480, {"flannel.ipip"}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_everybody_reaches_everybody_and_nothing_is_left(make_lab: LabMaker, way: Way) -> None:
    lab = make_lab(nodes=3, pods=1, **way.fields)
    assert lab.missing_routes(PATIENCE_S) == []
    matrix = lab.matrix()
    assert matrix.failed() == []
    # 3 pods: 6 pairs; 3 nodes with 3 pods both ways: 18 pairs; 4 kinds.
    assert len(matrix.reasons) == (6 + 18) * 4 * way.families
    assert {node["mtu"] for node in lab.status()["nodes"]} == {way.mtu}
    assert way_out(lab) == way.devices
    if way.helper:
        survive_kills(lab, way.helper)
    else:
        survive_agent(lab)
    assert lab.matrix().failed() == []
    mine = [
        *processes.marked(lab.spec.name),
        *processes.inside(netns.inodes(netns.found(lab.spec.name))),
    ]
    assert mine
    if way.forgotten:
        lab.state.file.unlink()
    lab.down()
    assert [item for item in mine if item.alive()] == []
    assert netns.found(lab.spec.name) == []
    assert not (RUN / lab.spec.name).exists()


@pytest.mark.parametrize("backend", ["wireguard", "udp", "extension", "bgp"])
def test_a_network_of_ipv6_alone_needs_no_ipv4_anywhere(make_lab: LabMaker, backend: str) -> None:
    lab = make_lab(
        nodes=2, pods=1, family="ipv6", backend=backend, bgp="bird" if backend == "bgp" else "none"
    )
    assert lab.missing_routes(PATIENCE_S) == []
    matrix = lab.matrix()
    assert matrix.failed() == []
    assert {check.family for check in matrix.reasons} == {Family.V6}
    shown = json.loads(lab.exec("node1", ["ip", "-j", "-4", "address"]).stdout)
    assert [link["ifname"] for link in shown if link["ifname"] != "lo"] == []


@pytest.mark.parametrize(("kind", "backend"), [("ptp", "vxlan"), ("macvlan", "alloc")])
def test_pods_attached_in_another_way_reach_everybody_too(
    make_lab: LabMaker, kind: str, backend: str
) -> None:
    """With policies, and pods on the bridge of one host beside them."""
    lab = make_lab(nodes=2, pods=2, family="dual", attach=kind, backend=backend, policy="nftables")
    survive_agent(lab)
    lab.add_pod("node2", "single", network="bridge")
    assert lab.matrix().failed() == []
    Cluster(lab).apply([("here", CLOSED)])
    found = lab.policy_matrix()
    assert found.differences() == []
    assert {shot.target for shot, pair in found.pairs.items() if not pair.outcome.allowed} == {"pod1"}
    links = json.loads(lab.exec("node1", ["ip", "-j", "link"]).stdout)
    assert not [link["ifname"] for link in links if link["ifname"] == "cni0"]
    on_underlay = {
        ip_address(ip) in topology.underlay_address(Family.of(ip_address(ip)), 0).network
        for number in range(1, 5)
        for ip in lab.pod(f"pod{number}").ips
    }
    assert on_underlay == {kind == "macvlan"}


@pytest.mark.parametrize(
    ("flag", "backend", "attach", "said"),
    [
        ("backend", "ipip", "bridge", "no ipip devices; take --driver uml"),
        ("backend", "wireguard", "bridge", "no wireguard devices, and there is no program wireguard-go"),
        ("attach", "alloc", "ipvlan", "no ipvlan devices"),
    ],
    ids=["ipip", "wireguard", "ipvlan"],
)
def test_what_the_kernel_lacks_is_said_at_once_and_leaves_nothing(
    lab_name: str, monkeypatch: pytest.MonkeyPatch, flag: str, backend: str, attach: str, said: str
) -> None:
    monkeypatch.setattr(netns, "has_link_kind", lambda _namespace, _kind: False)
    monkeypatch.setattr("shutil.which", lambda _program: None)
    with pytest.raises(LabError, match=f"^--{flag} .*{said}$") as caught:
        Lab.up(LabSpec(name=lab_name, backend=backend, attach=attach))
    assert caught.value.usage
    assert netns.found(lab_name) == []
    assert not (RUN / lab_name).exists()


def test_a_kind_of_device_is_there_or_not_without_a_trace(wired: LabSpec) -> None:
    space = topology.fabric_namespace(wired.name)
    assert [netns.has_link_kind(space, kind) for kind in ("dummy-never-heard-of", "vxlan", "bridge")] == [
        False,
        True,
        True,
    ]
    with netns.socket_in(space) as sock:
        links = [rtlink.parse_link(message).name for message in sock.dump(rtlink.dump_links())]
    assert sorted(links) == ["br0", "lo", "node1", "node2", "node3"]


def survive_agent(lab: Lab) -> None:
    """An agent that is killed and started again costs no packet."""
    source, target = lab.pod("pod1"), lab.pod("pod2")
    for address in target.ips:
        with lab.traffic(source.name, address) as traffic:
            assert traffic.wait_answered(20, PATIENCE_S)
            lab.signal_agent(source.node, signal.SIGKILL)
            assert traffic.wait_answered(20, PATIENCE_S)
            lab.start_agent(source.node)
            assert traffic.wait_answered(20, PATIENCE_S)
        assert traffic.report().lost == 0, traffic.report()


def survive_kills(lab: Lab, helper: str) -> None:
    """What carries the packets outlives the agent; killed itself it comes back, by a running agent or the next one."""
    source, target = lab.pod("pod1"), lab.pod("pod2")
    before = helpers(lab, source.node, helper)
    assert before
    survive_agent(lab)
    assert helpers(lab, source.node, helper) == before
    for agent_too in (False, True):
        before = helpers(lab, source.node, helper)
        with lab.traffic(source.name, target.ips[0]) as traffic:
            assert traffic.wait_answered(20, PATIENCE_S)
            if agent_too:
                lab.signal_agent(source.node, signal.SIGKILL)
            processes.kill(before)
            if agent_too:
                lab.start_agent(source.node)
            count = len(before)
            assert within(PATIENCE_S, partial(has_helpers, lab, source.node, helper, count))
            assert traffic.wait_answered(20, PATIENCE_S)
        assert not {*before} & {*helpers(lab, source.node, helper)}


def helpers(lab: Lab, node: str, name: str) -> list[ProcessId]:
    """The processes of a program in a node."""
    found = []
    for item in processes.inside(netns.inodes([lab.driver.space(node)])):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if name in Path(f"/proc/{item.pid}/cmdline").read_text():
                found.append(item)
    return found


def has_helpers(lab: Lab, node: str, name: str, count: int) -> bool:
    """Whether a node has so many of them."""
    return len(helpers(lab, node, name)) == count


def way_out(lab: Lab) -> set[str]:
    """Devices by which node1 sends to the pods of the others."""
    there = [pod for pod in lab.pods() if pod.node != "node1"]
    return {
        json.loads(lab.exec("node1", ["ip", "-j", "route", "get", ip]).stdout)[0]["dev"]
        for pod in there
        for ip in pod.ips
    }
