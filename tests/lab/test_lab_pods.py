"""Pods come and go by the real plugin; agents come and go without traffic noticing."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab import netns, processes
from pycni.lab.run import Lab
from pycni.lab.runtime import Attachment
from pycni.lab.state import PodRecord
from pycni.lab.topology import LabError, pod_namespace
from pycni.lab.traffic import Traffic
from pycni.model.family import Family

from .conftest import LabMaker
from .lab_tools import ctl, within


def reservations(lab: Lab, node: str) -> set[str]:
    """Addresses in the node's IPAM folder (colons of IPv6 included)."""
    folder = Path(lab.node(node).data_dir) / "pycni"
    return {name for name in os.listdir(folder) if name[0].isdigit() or name.startswith("fd")}


def test_a_pod_added_and_removed_leaves_nothing(lab3: Lab) -> None:
    name = lab3.spec.name
    before = reservations(lab3, "node2")
    links = lab3.exec("node2", ["ip", "-br", "link"]).stdout
    done = ctl("lab", "pod", "add", "--name", name, "--node", "node2", "web", "--json")
    assert done.returncode == 0, done.stderr
    pod = json.loads(done.stdout)
    assert (pod["name"], pod["node"], len(pod["ips"])) == ("web", "node2", 2)
    assert set(pod["ips"]) <= reservations(lab3, "node2")
    assert lab3.matrix().ok
    assert ctl("lab", "pod", "rm", "--name", name, "web").stdout == "web: removed\n"
    assert not netns.exists(pod["namespace"])
    # Link and reservation go in the background, in this order: no address is free while an interface still has it.
    assert within(5, lambda: reservations(lab3, "node2") == before)
    assert lab3.exec("node2", ["ip", "-br", "link"]).stdout == links
    assert not lab3.node("node2").runtime().cache_file(pod["container_id"], "eth0").exists()


def test_pods_get_free_names_and_the_emptiest_node(lab3: Lab) -> None:
    first, second = lab3.add_pod(), lab3.add_pod()
    try:
        assert [first.name, second.name] == ["pod7", "pod8"]
        assert first.node != second.node
    finally:
        for pod in (first, second):
            lab3.remove_pod(pod.name)
    assert len(lab3.pods()) == 6


def test_many_pods_at_once_have_addresses_of_their_own(lab3: Lab) -> None:
    with ThreadPoolExecutor(6) as pool:
        pods: list[PodRecord] = list(pool.map(lambda n: lab3.add_pod(name=f"many{n}"), range(12)))
        try:
            every = [ip for pod in lab3.pods() for ip in pod.ips]
            assert len(set(every)) == len(every) == 2 * (6 + 12)
            assert lab3.matrix().ok
        finally:
            list(pool.map(lambda pod: lab3.remove_pod(pod.name), pods))
    assert len(lab3.pods()) == 6


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["pod", "add", "pod1"], 2, "has a pod pod1 already", id="name clash"),
        pytest.param(
            ["pod", "add", "--node", "node9"], 2, "has no node 'node9': node1, node2, node3", id="no node"
        ),
        pytest.param(["pod", "add", "node1"], 2, "is kept for the lab's own namespaces", id="kept name"),
        pytest.param(["pod", "rm", "nope"], 2, "has no pod 'nope'", id="no pod"),
        pytest.param(["exec", "nope", "--", "true"], 2, "has no node or pod 'nope'", id="nowhere"),
        pytest.param(["exec", "node1"], 2, "no command for node1", id="no command"),
        pytest.param(["agent", "start", "node1"], 1, "the agent of node1 is running", id="running"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code(lab3: Lab, words: list[str], code: int, said: str) -> None:
    done = (
        ctl("lab", *words, "--name", lab3.spec.name)
        if "exec" not in words
        else ctl("lab", "exec", "--name", lab3.spec.name, *words[1:])
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_requested_addresses_and_macs_reach_the_plugin(lab3: Lab) -> None:
    network = lab3.node("node1").pod_network()
    assert network is not None
    wanted = [str(subnet.network_address + 77) for subnet in network.subnets]
    pod = lab3.add_pod("node1", "asked", {"ips": wanted, "mac": "02:00:00:00:00:77", "unknown": 1})
    try:
        assert list(pod.ips) == wanted
        assert "02:00:00:00:00:77" in lab3.exec("asked", ["ip", "link", "show", "eth0"]).stdout
    finally:
        lab3.remove_pod("asked")


def test_check_status_and_gc_go_through_the_real_plugin(lab3: Lab) -> None:
    runtime = lab3.node("node1").runtime()
    mine = [pod for pod in lab3.pods() if pod.node == "node1"]
    runtime.validate()
    runtime.status()
    attachments = {
        pod.name: Attachment(pod.container_id, kernel_netns.path(pod.namespace), pod.interface)
        for pod in mine
    }
    for attachment in attachments.values():
        runtime.check(attachment)
    before = reservations(lab3, "node1")
    runtime.gc([(pod.container_id, pod.interface) for pod in mine])
    assert reservations(lab3, "node1") == before
    stale = lab3.add_pod("node1", "stale")
    try:
        runtime.gc([(pod.container_id, pod.interface) for pod in mine])
        assert within(5, lambda: reservations(lab3, "node1") == before)
        with pytest.raises(PycniError):
            runtime.check(Attachment(stale.container_id, kernel_netns.path(stale.namespace)))
    finally:
        lab3.remove_pod("stale")


def test_a_pod_whose_agent_is_away_can_be_removed_by_force_or_later(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=2)
    lab.signal_agent("node1", signal.SIGKILL)
    with pytest.raises(LabError, match="code 11"):
        lab.remove_pod("pod1")
    assert [pod.name for pod in lab.pods()] == ["pod1", "pod2"]
    lab.remove_pod("pod2", force=True)
    lab.start_agent("node1")
    lab.remove_pod("pod1")
    assert lab.pods() == []


def test_a_pod_left_by_a_cut_off_add_is_shown_and_can_be_removed(lab3: Lab) -> None:
    space = pod_namespace(lab3.spec.name, "half")
    kernel_netns.create(space)
    lab3.state.put_pod(PodRecord(name="half", node="node1", namespace=space, container_id="half-1"))
    assert [pod["ips"] for pod in lab3.status()["pods"] if pod["name"] == "half"] == [[]]
    assert lab3.matrix().ok, "it has no address to check"
    lab3.remove_pod("half")
    assert not netns.exists(space)
    assert len(lab3.pods()) == 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "stop"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_no_packet_is_lost_while_an_agent_is_replaced(lab3: Lab, number: int, family: Family) -> None:
    source, target = lab3.pod("pod1"), lab3.pod("pod2")
    assert (source.node, target.node) == ("node1", "node2")
    address = target.ips[0 if family is Family.V4 else 1]
    with Traffic(kernel_netns.path(source.namespace), address, 0.005) as traffic:
        assert traffic.wait_answered(20)
        lab3.signal_agent("node1", number)
        assert lab3.agent("node1") is None
        assert traffic.wait_answered(40)
        lab3.start_agent("node1")
        assert traffic.wait_answered(60)
    report = traffic.report()
    assert report.lost == 0
    assert lab3.matrix().ok


def test_a_node_joins_and_leaves(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=1)
    node = lab.add_node()
    assert node.name == "node2"
    assert lab.add_pod().node == "node2"
    assert lab.matrix().ok
    agent = lab.record.processes["node2"]
    lab.remove_node("node2")
    assert not agent.alive()
    assert [pod.node for pod in lab.pods()] == ["node1"]
    assert not netns.exists(node.namespace)
    assert lab.matrix().ok


def test_processes_of_a_pod_end_with_it(lab3: Lab) -> None:
    lab3.add_pod("node1", "busy")
    process = processes.spawn(lab3.exec_argv("busy", ["sleep", "600"]), Path(os.devnull), dict(os.environ))
    time.sleep(0.1)
    lab3.remove_pod("busy")
    assert not process.alive()
