"""The whole agent on a node of its own: started, killed, started again, without etcd, beside another one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni.kernel import netns
from pycni.lab import etcd
from tests.cni.node import ROOT, AgentNode, agent_node
from tests.cni.runtimes import inside

CONF = {"cniVersion": "1.1.0", "name": "net", "type": "pycni", "ipMasq": True}
MAPPED = {
    **CONF,
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
}
NETCONF = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


@pytest.fixture
def node(short_folder):
    with agent_node(f"pyt{os.getpid()}a", short_folder, NETCONF) as made:
        yield made


@pytest.fixture(scope="module")
def shared():
    """A node for tests that leave its agent as it is."""
    with (
        tempfile.TemporaryDirectory(prefix="pyt") as folder,
        agent_node(f"pyt{os.getpid()}b", Path(folder), NETCONF) as made,
    ):
        yield made


@pytest.fixture
def pod():
    """A namespace to attach; gives its file."""
    name = f"pyt{os.getpid()}ap"
    netns.create(name)
    try:
        yield netns.path(name)
    finally:
        netns.delete(name)


def until(what: Callable[[], object], seconds: float = 10.0) -> object:
    """Wait for something to be true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return found


def sh(node: AgentNode, command: str) -> str:
    done = subprocess.run(
        [*inside(node.name), "sh", "-c", command], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def get(node: AgentNode, path: str) -> tuple[int, str]:
    """An HTTP GET inside the node."""
    code = (
        "import sys, urllib.request, urllib.error\n"
        "try: answer = urllib.request.urlopen(sys.argv[1], timeout=5)\n"
        "except urllib.error.HTTPError as error: answer = error\n"
        "sys.stdout.write(f'{answer.status} {answer.read().decode()}')"
    )
    url = f"http://127.0.0.1:9999{path}"
    done = subprocess.run(
        [*inside(node.name), sys.executable, "-c", code, url], capture_output=True, text=True, check=False
    )
    status, _, body = done.stdout.partition(" ")
    return int(status or 0), body


def log(node: AgentNode) -> str:
    return (node.folder / "pycnid.log").read_text()


def run_other(node: AgentNode, *argv: str) -> subprocess.CompletedProcess[str]:
    """Another pycnid inside the node, expected to end by itself."""
    command = [*inside(node.name), sys.executable, "-m", "pycni.agent.main", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)


def fabric(node: AgentNode) -> str:
    """The overlay device without its counters and index."""
    return re.sub(r"^\d+: ", "", sh(node, "ip -d addr show dev flannel.1"))


def tables(node: AgentNode) -> list[str]:
    """Our nftables tables; the fabric's is replaced at the start and may come last."""
    return [sh(node, f"nft list table {name}") for name in ("inet pycni_fabric", "inet pycni_pods")]


def test_killed_and_started_again_it_takes_over_what_is_there(node, pod):
    code, result = node.cni("ADD", MAPPED, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")
    assert code == 0, result
    before = (node.folder / "subnet.env").read_text(), fabric(node), tables(node)
    node.kill_agent(signal.SIGKILL)
    assert fabric(node) == before[1]
    node.start_agent()
    until(lambda: get(node, "/readyz")[0] == 200)
    assert ((node.folder / "subnet.env").read_text(), fabric(node)) == before[:2]
    assert tables(node) == before[2]
    assert node.cni(
        "CHECK", {**MAPPED, "prevResult": result}, CONTAINERID="c1", NETNS=pod, IFNAME="eth0"
    ) == (0, None)
    assert node.cni("DEL", MAPPED, CONTAINERID="c1", NETNS="", IFNAME="eth0")[0] == 0
    until(lambda: not node.reservations("net"))
    assert "10.244" not in sh(node, "nft list table inet pycni_pods | grep -A3 8080")


def test_stopped_it_leaves_the_data_plane_and_says_goodbye(node):
    before = fabric(node)
    agent = node.agent
    assert agent is not None
    node.kill_agent(signal.SIGTERM)
    assert agent.returncode == 0
    assert fabric(node) == before
    assert log(node).rstrip().endswith("pycnid has stopped; the data plane stays")
    code, error = node.cni("STATUS", CONF)
    assert (code, error["code"], error["msg"]) == (1, 50, "the node agent pycnid cannot be reached")


def test_without_etcd_it_says_so_and_goes_on_when_it_comes(node, pod, monkeypatch):
    node.kill_agent(signal.SIGTERM)
    (node.folder / "state" / "lease.json").unlink()
    node.etcd.kill()
    monkeypatch.setattr(node, "wait_ready", lambda: None)
    node.start_agent()
    until(lambda: "etcd" in get(node, "/readyz")[1])
    assert get(node, "/healthz") == (200, "ok\n")
    assert get(node, "/readyz")[0] == 503
    code, error = node.cni("STATUS", CONF)
    assert (code, error["code"]) == (1, 50)
    assert "etcd" in error["msg"]
    code, error = node.cni("ADD", CONF, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")
    assert (code, error["code"]) == (1, 11)
    # A DEL needs no etcd.
    assert node.cni("DEL", CONF, CONTAINERID="c0", NETNS="", IFNAME="eth0") == (0, None)
    node.etcd = etcd.start(etcd.EtcdOptions(data_dir=node.folder / "etcd", netns=netns.path(node.name)))
    until(lambda: get(node, "/readyz")[0] == 200, 20)
    assert node.cni("STATUS", CONF)[0] == 0


def test_a_restart_without_etcd_goes_on_with_the_remembered_lease(node, pod):
    before = (node.folder / "subnet.env").read_text()
    node.kill_agent(signal.SIGKILL)
    node.etcd.kill()
    node.start_agent()
    assert (node.folder / "subnet.env").read_text() == before
    assert node.cni("ADD", CONF, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")[0] == 0


def test_pods_rules_that_somebody_flushed_come_back(node, pod):
    assert node.cni("ADD", MAPPED, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")[0] == 0
    before = sh(node, "nft list table inet pycni_pods")
    assert "8080" in before
    sh(node, "nft flush ruleset")
    until(lambda: sh(node, "nft list table inet pycni_pods") == before)
    assert "repaired: missing" in log(node)


def test_calls_are_counted_and_every_metric_can_be_read(shared, pod):
    assert shared.cni("ADD", CONF, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")[0] == 0
    assert shared.cni("ADD", CONF, CONTAINERID="c2", NETNS="/no/such", IFNAME="eth0")[0] == 1
    status, text = get(shared, "/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['pycni_cni_seconds_count{operation="ADD"}'] == "2"
    assert samples['pycni_endpoints{state="ready"}'] == "1"
    assert samples['pycni_ipam_reserved{network="net",family="ipv4"}'] == "1"
    assert float(samples['pycni_ipam_capacity{network="net",family="ipv4"}']) > 1
    assert samples['pycni_cni_calls_total{operation="ADD",result="error"}'] == "1"
    assert [line for line in samples if line.startswith("pycni_cni_errors_total{")]
    assert samples["pycni_etcd_connected"] == "1"
    assert samples["pycni_ready"] == "1"
    assert float(samples["process_resident_memory_bytes"]) < 90e6
    assert "cannot be read" not in log(shared)
    assert json.loads(get(shared, "/readyz?verbose")[1])["parts"].keys() >= {"cni", "fabric", "network"}


def test_it_is_ready_soon(shared):
    seconds = re.findall(r"ready ([\d.]+) s after process start", log(shared))
    assert seconds
    assert float(seconds[0]) < 5


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--iface=eth9"], "settings: iface='eth9': matches no interface of this node (there are lo, eth0"),
        ([], "kernel: default route='none': no ipv4 or ipv6 default route: name the interface by iface"),
        (["--iface=eth0", "--cni-socket={folder}/cni.sock"], "{folder}/cni.sock"),
        (["--iface=eth0", "--state-dir={folder}/state"], "in use by another pycnid (pid {pid})"),
        (
            ["--iface=eth0", "--etcd-cafile=/etc/hostname", "--etcd-endpoints=https://127.0.0.1:1"],
            "expected a PEM file",
        ),
    ],
    ids=["iface", "no-default-route", "socket", "state", "certificate"],
)
def test_what_this_node_cannot_have_is_refused_with_one_line(shared, tmp_path, argv, text):
    assert shared.agent is not None
    places = {"folder": shared.folder, "pid": shared.agent.pid}
    own = [
        f"--state-dir={tmp_path}/s",
        f"--cni-socket={shared.folder}/other.sock",
        f"--subnet-file={tmp_path}/e",
        f"--control-socket={shared.folder}/other-control.sock",
    ]
    done = run_other(shared, *own, *(word.format(**places) for word in argv))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    ends = [line for line in done.stderr.splitlines() if "pycnid ends: " in line]
    assert len(ends) == 1
    assert text.format(**places) in ends[0]


def test_another_agent_started_by_mistake_does_not_hurt_the_first(shared, pod):
    run_other(shared, f"--state-dir={shared.folder}/state", "--iface=eth0", f"--cni-socket={shared.socket}")
    assert shared.cni("STATUS", CONF)[0] == 0
    assert shared.cni("ADD", CONF, CONTAINERID="c1", NETNS=pod, IFNAME="eth0")[0] == 0
    assert Path(shared.socket).exists()
