"""The life of a real agent that serves services: crash, restart, other data planes, clean-up, others on the node."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

from pycni.kernel import netns
from pycni.model.kube import TCP
from tests.proxy.agent import HEALTH, piece, service
from tests.proxy.topology import NODE, OUTSIDE, PODS
from tests.proxy.traffic import Dial
from tests.waiting import wait_for

pytestmark = pytest.mark.root

VIP, PORT = "10.96.0.10", 80
A, B = PODS["a"][0], PODS["b"][0]


def dial(spaces, client, address, port=PORT, protocol=TCP, timeout=3.0):
    source = OUTSIDE[client][0] if client in OUTSIDE else ""
    return Dial(spaces.netns_of(client), source, address, port, protocol, timeout)


class Hammer:
    """Connects from several clients again and again; remembers failures and the longest gap between answers."""

    def __init__(self, traffic, *items):
        self._traffic, self._items = traffic, items
        self.failures, self.answers, self.longest_s = [], 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        wait_for(lambda: self.answers >= 5, "the first answers")
        return self

    def __exit__(self, *_):
        enough = self.answers + 10
        try:
            wait_for(lambda: self.answers >= enough or self.failures, "answers after the change")
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self):
        last = time.monotonic()
        while not self._stop.is_set():
            outcomes = self._traffic.dial(list(self._items))
            now = time.monotonic()
            self.failures += [outcome for outcome in outcomes if outcome.verdict != "answer"]
            self.answers += sum(outcome.verdict == "answer" for outcome in outcomes)
            self.longest_s, last = max(self.longest_s, now - last), now


def tables(space):
    return subprocess.run(
        [*netns.exec_prefix(space), "nft", "list", "tables"], capture_output=True, text=True, check=True
    ).stdout.split("\n")


def test_killed_and_restarted_no_connection_is_lost(node, spaces, traffic):
    node.put(service("web", VIP), piece("web", A, B))
    node.start()
    held = traffic.hold([dial(spaces, "out", VIP), dial(spaces, "c", VIP), dial(spaces, "node", VIP)])
    assert [outcome.verdict for outcome, _ in held] == ["answer"] * 3
    numbers = [number for _, number in held]
    with Hammer(traffic, dial(spaces, "c", VIP)) as hammer:
        node.stop(signal.SIGKILL)
        before = hammer.answers
        wait_for(lambda: hammer.answers > before + 20, "answers without an agent")
        node.start()
        assert "1 programmed by nftables" in node.said()
        assert re.findall(r"programmed by nftables in [\d.]+ s, (\d+) rows changed", node.said())[1:] == ["0"]
    assert hammer.failures == []
    assert [outcome.verdict for outcome in traffic.ask(numbers)] == ["answer"] * 3
    node.stop()
    assert [outcome.verdict for outcome in traffic.ask(numbers)] == ["answer"] * 3
    traffic.drop(numbers)


def test_what_changed_while_the_agent_was_away_is_put_right(node, spaces, traffic):
    node.put(service("web", VIP), piece("web", A), service("old", "10.96.0.11"), piece("old", A))
    node.start()
    node.stop(signal.SIGKILL)
    node.put(piece("web", B))
    node.drop("Service", "old")
    node.start()
    node.programmed("web", B)
    assert {traffic.dial([dial(spaces, "c", VIP)])[0].name for _ in range(6)} == {"b"}
    assert traffic.dial([dial(spaces, "c", "10.96.0.11", timeout=0.3)])[0].verdict != "answer"


@pytest.mark.parametrize("way", [("nftables", "ebpf"), ("ebpf", "nftables")], ids=" to ".join)
def test_another_data_plane_takes_over_under_fire_and_nothing_is_left(node, spaces, traffic, way, capsys):
    first, second = way
    node.put(service("web", VIP), piece("web", A, B))
    node.start(first)
    held = traffic.hold([dial(spaces, "out", VIP), dial(spaces, "c", VIP)])
    numbers = [number for _, number in held]
    with Hammer(traffic, dial(spaces, "c", VIP), dial(spaces, "out", VIP)) as hammer:
        node.stop()
        node.start(second)
    with capsys.disabled():
        print(
            f"\n{first} -> {second}: {hammer.answers} connections, {len(hammer.failures)} failed, longest gap"
            f" {hammer.longest_s * 1000:.1f} ms"
        )
    assert hammer.failures == []
    assert [outcome.verdict for outcome in traffic.ask(numbers)] == ["answer"] * 2
    traffic.drop(numbers)
    assert node.services()["data_planes"] == (["ebpf", "nftables"] if second == "ebpf" else ["nftables"])
    if first == "ebpf":
        assert "nftables has taken over before anything was removed" in node.said()
        assert not os.path.exists("/sys/fs/bpf/pycni/node")


def test_a_flushed_ruleset_is_put_back_at_once(node, spaces, traffic):
    node.put(service("web", VIP), piece("web", A))
    node.start()
    assert traffic.dial([dial(spaces, "c", VIP)])[0].verdict == "answer"
    subprocess.run([*netns.exec_prefix(node.space), "nft", "flush", "ruleset"], check=True)
    wait_for(lambda: traffic.dial([dial(spaces, "c", VIP, timeout=0.2)])[0].verdict == "answer", "an answer")
    assert "somebody removed the table" in node.said()


def test_cleanup_leaves_nothing_and_refuses_beside_a_running_agent(node, spaces, traffic):
    node.put(service("web", VIP), piece("web", A))
    node.start()
    refused = node.ctl("cleanup", "--socket", node.socket)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    assert traffic.dial([dial(spaces, "c", VIP)])[0].verdict == "answer"
    node.stop()
    done = node.ctl("cleanup", "--socket", node.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed: nftables: " in done.stdout
    assert not any("pycni" in line for line in tables(node.space))
    assert traffic.dial([dial(spaces, "c", VIP, timeout=0.3)])[0].verdict != "answer"
    again = node.ctl("cleanup", "--socket", node.socket)
    assert (again.returncode, again.stdout) == (0, "nothing of pycni is here\n")


@pytest.fixture
def space():
    name = f"pyt{os.getpid()}-cleanup"
    netns.create(name)
    yield name
    netns.delete(name)


def test_cleanup_of_everything_takes_the_network_and_leaves_what_is_others(space):
    prefix = netns.exec_prefix(space)
    ours = """ip link set lo up
        ip link add cni0 type bridge
        ip link set cni0 alias pycni up
        ip link add flannel.1 type vxlan id 1 dstport 8472 local 127.0.0.1
        ip link set flannel.1 alias pycni up
        ip link add theirs type bridge
        ip link set theirs up
        ip addr add 10.1.0.1/24 dev theirs
        ip route add 10.244.9.0/24 via 10.1.0.2 proto 112
        ip route add 10.245.9.0/24 via 10.1.0.2
        nft add table inet pycni_fabric
        nft add table inet pycni_pods
        nft add table bridge pycni_spoof
        nft add table inet theirs"""
    for line in ours.splitlines():
        subprocess.run([*prefix, *line.split()], check=True)
    from tests.proxy.agent import ROOT

    done = subprocess.run(
        [*prefix, "env", f"PYTHONPATH={ROOT}:{ROOT / 'proxy'}", os.sys.executable, "-m", "pycni.cli", "cleanup", "--all", "--socket", "/run/no-such.sock"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    for thing in (
        "table inet pycni_fabric",
        "table inet pycni_pods",
        "table bridge pycni_spoof",
        "link cni0",
        "link flannel.1",
        "route 10.244.9.0/24",
    ):
        assert f"removed: {thing}" in done.stdout.replace("removed: nftables table", "removed: table")
    assert "table inet theirs" in tables(space)
    left = subprocess.run([*prefix, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "theirs" in left
    assert "cni0" not in left
    routes = subprocess.run([*prefix, "ip", "route"], capture_output=True, text=True, check=True).stdout
    assert "10.245.9.0/24" in routes
    assert "10.244.9.0/24" not in routes


def test_another_proxy_is_named_and_not_touched(node, spaces):
    prefix = netns.exec_prefix(node.space)
    theirs = [
        ["nft", "add", "table", "ip", "kube-proxy"],
        ["nft", "add", "chain", "ip", "kube-proxy", "services"],
    ]
    theirs += [
        ["nft", "add", "table", "ip", "nat"],
        ["nft", "add", "chain", "ip", "nat", "KUBE-ROUTER-SERVICES"],
    ]
    theirs += [["ip", "link", "add", "kube-ipvs0", "type", "bridge"]]
    for words in theirs:
        subprocess.run([*prefix, *words], check=True)
    # A process of that name in this network namespace; one elsewhere is none of our business.
    fake = "import ctypes,time; ctypes.CDLL(None).prctl(15, b'kube-proxy', 0, 0, 0); print('up', flush=True); time.sleep(60)"
    here = subprocess.Popen([*prefix, "python3", "-c", fake], stdout=subprocess.PIPE)
    elsewhere = subprocess.Popen(
        [*netns.exec_prefix(spaces.names["far"]), "python3", "-c", fake], stdout=subprocess.PIPE
    )
    try:
        for process in (here, elsewhere):
            assert process.stdout.readline() == b"up\n"
        node.put(service("web", VIP), piece("web", A))
        node.start()
        found = node.services()["others"]
        assert len(found) == 2
        assert found[0].startswith(
            f"kube-proxy is running (process {here.pid}; device kube-ipvs0; nftables table kube-proxy"
        )
        assert (
            found[1]
            == "kube-router is not seen running, its rules are here (iptables chain KUBE-ROUTER-SERVICES)"
        )
        assert node.said().count("another service proxy is on this node: kube-proxy is running") == 1
        shown = node.ctl("services", "--socket", node.socket)
        assert "also on this node: kube-proxy is running" in shown.stdout
        node.stop()
        node.ctl("cleanup", "--all", "--socket", node.socket)
        assert "table ip kube-proxy" in tables(node.space)
    finally:
        for process in (here, elsewhere):
            process.kill()
            process.wait()
            process.stdout.close()
        for words in (
            ["nft", "delete", "table", "ip", "kube-proxy"],
            ["nft", "delete", "table", "ip", "nat"],
            ["ip", "link", "del", "kube-ipvs0"],
        ):
            subprocess.run([*prefix, *words], check=False)


def test_services_are_shown_for_people_and_programs(node, spaces, traffic):
    node.put(service("web", VIP, node_port=30080), piece("web", A, B), service("none", "10.96.0.12"))
    node.put(
        {
            **service("ext", "10.96.0.13"),
            "spec": {**service("ext", "10.96.0.13")["spec"], "externalIPs": ["203.0.114.9"]},
        }
    )
    node.start()
    for _ in range(3):
        assert traffic.dial([dial(spaces, "c", VIP)])[0].verdict == "answer"
    shown = node.ctl("services", "--socket", node.socket)
    assert shown.returncode == 0
    assert "\033" not in shown.stdout, "no colours away from a terminal"
    assert shown.stdout.startswith("node node: 3 services by nftables\n")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert f"-> {A}:80 weight 1 here" in lines
    assert any(line.startswith(f"default/web ClusterIP TCP {VIP}:80 nftables 3 ") for line in lines)
    assert any(line.startswith("NodePort TCP *:30080 nftables 0 ") for line in lines)
    assert "rejects new connections" in shown.stdout
    assert re.search(r"203\.0\.114\.9", shown.stdout)
    one = json.loads(node.ctl("services", "web", "--json", "--socket", node.socket).stdout)
    assert [item["name"] for item in one["services"]] == ["web"]
    assert one["services"][0]["frontends"][0]["connections"] == 3
    assert node.ctl("services", "nosuch", "--socket", node.socket).returncode == 1
    gone = node.ctl("services", "--socket", "/run/no-such.sock")
    assert gone.returncode == 1
    assert (
        gone.stderr
        == "pycnictl: no agent with a service proxy answers at /run/no-such.sock: No such file or directory\n"
    )


def ask(space, address, port, path="/"):
    """Status and head of an HTTP answer at an address of a namespace, asked from within it."""

    def connect():
        sock = socket.socket()
        sock.settimeout(3)
        return sock

    fd = netns.open_netns(netns.path(space))
    try:
        sock = netns.run_in(fd, connect)
    finally:
        os.close(fd)
    with sock:
        sock.connect((address, port))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    return int(answer.split()[1]), answer.decode()


def test_health_check_ports_follow_local_endpoints(node, spaces):
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
    node.put(service("web", VIP, node_port=30080, **local), piece("web", A, B))
    node.start()
    status, answer = wait_for(lambda: _try(node.space, NODE[0], 31000), "the health check port")
    assert status == 200
    assert "X-Load-Balancing-Endpoint-Weight: 2" in answer
    node.put(piece("web", "10.244.2.11", node="second"))
    wait_for(lambda: ask(node.space, NODE[0], 31000)[0] == 503, "no local endpoints")
    node.drop("Service", "web")
    wait_for(lambda: _try(node.space, NODE[0], 31000) is None, "the port closed")
    assert ask(node.space, "127.0.0.1", HEALTH, "/healthz")[0] == 200


def _try(space, address, port):
    try:
        return ask(space, address, port)
    except ConnectionRefusedError:
        return None
