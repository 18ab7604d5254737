"""What kernels say of a probe, many probes, and live traffic followed, in a lab; nothing is left behind."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pycni.errors import KernelError
from pycni.kernel import bpf, netns
from pycni.lab.run import Lab

from .lab_tools import PATIENCE_S, apply, ctl, running, trace
from .trace_objects import AROUND

OBJECTS = (
    AROUND
    + """
apiVersion: v1
kind: Pod
metadata: {name: web1, labels: {app: web}}
spec:
  nodeName: node1
  containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 9000, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web2, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 9000, protocol: UDP}]}]
"""
)

_NEXT_PROGRAM, _PROGRAM_BY_ID = 11, 13
PROGRAM = "pycni_trace"
"""BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID."""
BUSY = """
import select, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = []
for _ in range(count):
    sock = socket.create_connection((host, port))
    sock.sendall(b"hold\\n")
    sock.setblocking(False)
    socks.append(sock)
print("up", flush=True)
turn = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for sock in socks[turn % 10 :: 10]:
        try:
            sock.sendall(b"x%d\\n" % turn)
            sock.recv(65536)
        except BlockingIOError:
            pass
    turn += 1
    if sys.argv[4] == "new":
        with socket.create_connection((host, port)) as one:
            one.recv(100)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with running(nodes=2, family="ipv4", proxy="nftables", policy="nftables") as lab:
        apply(lab, text=OBJECTS)
        yield lab


def run(lab: Lab, target: str, command: str) -> None:
    done = lab.exec(target, ["sh", "-ec", command])
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def damaged(lab: Lab, where: str, command: str, undo: str) -> Iterator[None]:
    run(lab, where, command)
    try:
        yield
    finally:
        run(lab, where, undo)


def notes(found: dict[str, Any], kind: str, node: str = "") -> list[dict[str, Any]]:
    return [
        note
        for hop in (*found["hops"], *found["back"])
        for note in hop["notes"]
        if note["kind"] == kind and node in {"", note["node"]}
    ]


def test_the_rule_of_a_policy_that_denies_is_told_with_table_chain_and_words(world: Lab) -> None:
    code, found = trace(world, "pod1", "shut:8080")
    assert (code, found["fault"]["kind"]) == (1, "policy-denied")
    at = found["hops"][found["fault"]["hop"]]
    ended = [note for note in at["notes"] if note["kind"] == "rule" and note["verdict"] == "drop"]
    assert [note["place"].split()[:2] for note in ended] == [["inet", "pycni_policy"]]
    assert ended[0]["place"].split()[2].startswith("deny-ingress-")
    assert "ingress is denied by NetworkPolicy default/closed" in found["fault"]["cause"]


FAST = """
apiVersion: v1
kind: Pod
metadata: {name: shut, labels: {app: shut}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}
"""


def test_a_policy_that_denies_without_rules_is_named_too() -> None:
    with running(nodes=1, family="ipv4", proxy="nftables", policy="ebpf") as lab:
        apply(lab, text=FAST)
        code, found = trace(lab, "pod1", "shut:8080")
    assert (code, found["fault"]["kind"]) == (1, "policy-denied"), found["fault"]
    assert {"policy", "tc_ingress"} <= {note["verdict"] for note in notes(found, "drop")}
    assert "the kernel says: ingress is denied by NetworkPolicy default/closed" in found["fault"]["cause"]


class Foe(NamedTuple):
    """Somebody else's rules, as commands of nft, and what is said of them."""

    table: str
    commands: tuple[str, ...]
    said: str


FOES = {
    "ip input, around the packet": Foe(
        "ip foe",
        ("chain ip foe c { type filter hook input priority 0; }", "rule ip foe c udp dport 8472 counter drop"),
        "ip foe c: udp dport 8472 counter drop",
    ),
    "inet forward, in a chain jumped to": Foe(
        "inet foe",
        (
            "chain inet foe c { type filter hook forward priority 0; }", "chain inet foe d",
            "rule inet foe c jump d", "rule inet foe d icmp type echo-request counter drop comment no",
        ),
        "inet foe d: icmp type echo-request counter drop",
    ),
    "a chain's policy": Foe(
        "inet foe",
        (
            "chain inet foe c { type filter hook forward priority 0; policy drop; }",
            "rule inet foe c tcp dport 1 accept",
        ),
        "inet foe c: policy drop",
    ),
}  # fmt: skip


@pytest.mark.parametrize("foe", FOES.values(), ids=FOES)
def test_a_rule_of_somebody_else_is_named_by_its_text(world: Lab, foe: Foe) -> None:
    commands = "\n".join(f"add {item}" for item in (f"table {foe.table}", *foe.commands))
    with damaged(world, "node2", f"nft -f - <<'X'\n{commands}\nX", f"nft delete table {foe.table}"):
        code, found = trace(world, "pod1", "pod2")
    assert code == 1
    fault = found["fault"]
    assert (fault["kind"], fault["node"]) == ("foreign-rule", "node2"), fault
    assert foe.said in fault["cause"], fault
    assert f"list chain {foe.table} " in fault["command"]
    assert [note["verdict"] for note in notes(found, "drop", "node2")] == ["netfilter_drop"]


REASONS = {
    "no socket": ("pod1", "pod2:81", "true", "true", "no_socket", "nobody-listens"),
    "reverse path": (
        "pod1", "pod2",
        "ip route add POD1 dev lo; sysctl -qw net.ipv4.conf.all.rp_filter=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0; ip route del POD1 dev lo",
        "ip_rpfilter", "rp-filter",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "command", "undo", "reason", "kind"), REASONS.values(), ids=REASONS
)
def test_the_kernels_own_reason_is_told(
    world: Lab, source: str, target: str, command: str, undo: str, reason: str, kind: str
) -> None:
    address = world.pod("pod1").ips[0]
    with damaged(world, "node2", command.replace("POD1", address), undo.replace("POD1", address)):
        code, found = trace(world, source, target)
    assert (code, found["fault"]["kind"], found["fault"]["node"]) == (1, kind, "node2"), found["fault"]
    assert reason in [note["verdict"] for note in notes(found, "drop", "node2")]


def test_a_healthy_trace_tells_connections_and_blames_nobody(world: Lab) -> None:
    code, found = trace(world, "pod1", "shop")
    assert (code, found["fault"]) == (0, None)
    connections = notes(found, "connection", "node1")
    assert any("to 10.244." in note["detail"] and ":8080" in note["detail"] for note in connections)
    assert not [note for note in notes(found, "rule") if note["verdict"] == "drop"]
    assert found["limits"] == []
    shown = ctl("trace", "--name", world.spec.name, "pod1", "shop")
    assert "conntrack  " in shown.stdout


@pytest.mark.parametrize("words", [("shop",), ("pod2",)], ids=" ".join)
def test_many_probes_are_one_table(world: Lab, words: tuple[str, ...]) -> None:
    code, found = trace(world, "pod1", *words, "--count", "40")
    series = found["series"]
    assert (code, series["sent"], series["answered"]) == (0, 40, 40), series
    trips = series["round_trip_us"]
    assert 0 < trips["min"] <= trips["median"] <= trips["max"]
    assert len(series["hops_us"]) == len(found["hops"]) + len(found["back"])
    assert any(item is not None for item in series["hops_us"])
    if words == ("shop",):
        assert sum(series["endpoints"].values()) == 40
        assert len(series["endpoints"]) == len(series["ways"]) == 2, "one here, one on the other node"


def test_of_many_the_first_that_fails_is_shown(world: Lab) -> None:
    drop = "add rule ip foe c meta l4proto tcp ct state new numgen inc mod 4 3 drop"
    base = "add table ip foe; add chain ip foe c { type filter hook forward priority 0; }"
    with damaged(world, "node2", f"nft '{base}; {drop}'", "nft delete table ip foe"):
        code, found = trace(world, "pod1", "web2:8080", "--count", "12")
    series = found["series"]
    assert (code, series["sent"], series["answered"]) == (1, 12, 9), series
    assert series["shown"] == 3
    assert found["fault"]["node"] == "node2", found["fault"]


@pytest.mark.parametrize("target", ["web2:9000", "kube-dns:53"])
def test_the_answer_of_a_udp_program_is_followed_home(world: Lab, target: str) -> None:
    code, found = trace(world, "pod1", target, "--proto", "udp")
    assert (code, found["fault"]) == (0, None)
    assert found["round_trip_us"] is not None
    assert found["back"][-1]["action"] == "delivered"
    seen = [hop for hop in found["back"] if "seen" in hop]
    assert (seen[-1]["node"], seen[-1]["space"]) == ("node1", "default/pod1")


@contextmanager
def busy(lab: Lab, target: str, port: int, count: int, mode: str) -> Iterator[None]:
    space = lab.pod("pod1").namespace
    words = [*netns.exec_prefix(space), sys.executable, "-c", BUSY, target, str(port), str(count), mode]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield
        finally:
            process.stdin.close()
            process.wait(timeout=PATIENCE_S)


@pytest.mark.parametrize(("words", "mode"), [("tcp port 8080", "held"), ("tcp and new", "new")])
def test_one_of_hundreds_of_busy_connections_is_followed_on_its_whole_way(
    world: Lab, words: str, mode: str
) -> None:
    with busy(world, world.pod("web2").ips[0], 8080, 300, mode):
        code, found = trace(world, "pod1", "web2", "--live", words)
    assert (code, found["fault"]) == (0, None), found["fault"]
    shown = [(hop["node"], hop["interface"]) for hop in found["hops"] if "seen" in hop]
    for place in (("node1", "flannel.1"), ("node1", "eth0"), ("node2", "flannel.1"), ("node2", "cni0")):
        assert place in shown
    assert found["hops"][0]["packet"]["destination_port"] == 8080
    assert found["round_trip_us"] is not None


def test_live_traffic_is_known_behind_a_translation(world: Lab) -> None:
    _, predicted = trace(world, "pod1", "shop", "--predict")
    address = predicted["hops"][0]["packet"]["destination"]
    with busy(world, address, 80, 40, "held"):
        code, found = trace(world, "pod1", "shop", "--live", "port 80", "--count", "3")
    assert (code, found["fault"]) == (0, None), found["fault"]
    assert found["series"]["sent"] == 3
    assert set(found["series"]["endpoints"]) <= {
        f"{world.pod(name).ips[0]}:8080" for name in ("web1", "web2")
    }
    ports = [found["hops"][at]["packet"]["destination_port"] for at in (0, -1)]
    assert ports == [80, 8080]


def test_no_traffic_is_told_after_the_time_that_was_given(world: Lab) -> None:
    done = ctl("trace", "--name", world.spec.name, "pod1", "pod2", "--live", "udp port 7", "--seconds", "1")
    assert done.returncode == 1
    assert "no packet of udp and port 7 from pod1 to pod2 passed within 1 s" in done.stderr


def test_a_filter_that_makes_no_sense_is_refused(world: Lab) -> None:
    done = ctl("trace", "--name", world.spec.name, "pod1", "pod2", "--live", "tcp port")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--live 'tcp port': 'port'" in done.stderr


def test_nothing_is_left_of_a_trace_even_of_one_that_was_killed(world: Lab, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tests.lab.test_trace_look import PROGRAM, programs\n"
        "from pycni.lab.run import Lab\n"
        "from pycni.lab.tracing import LabEyes\n"
        "from pycni.tracing import probing\n"
        "from pycni.trace.model import Flow\n"
        "from ipaddress import ip_address\n"
        "def stop(*_):\n"
        f"    Path({str(ready)!r}).write_text(repr(programs(PROGRAM)))\n"
        "    os.kill(os.getpid(), 9)\n"
        "probing.collect = stop\n"
        f"lab = Lab.open({world.spec.name!r})\n"
        f"source, target = {world.pod('pod1').ips[0]!r}, {world.pod('pod2').ips[0]!r}\n"
        "flow = Flow(protocol=1, source=ip_address(source).packed, destination=ip_address(target).packed)\n"
        "probing.send(LabEyes(lab).nodes, probing.Asker('node1', 'default/pod1'), flow)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == -9, done.stderr
    left = set(ast.literal_eval(ready.read_text()))
    assert left
    trace(world, "pod1", "pod2")
    for node in ("node1", "node2"):
        listed = world.exec(node, ["nft", "list", "tables"])
        assert "pycni_trace" not in listed.stdout, listed.stdout
    assert left & programs(PROGRAM) == set(), "other tests may trace meanwhile, with programs of their own"


def programs(name: str) -> set[int]:
    """Numbers of all eBPF programs in the kernel that have this name; they are never used again."""
    found, number = set(), 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=3I", number, 0, 0), 12)
        try:
            bpf.call(_NEXT_PROGRAM, attr, "next program")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return found
        (number,) = struct.unpack_from("=I", attr, 4)
        try:
            fd = bpf.call(_PROGRAM_BY_ID, struct.pack("=3I", number, 0, 0), "open program")
        except KernelError:  # it has just gone
            continue
        try:
            if bpf.program_info(fd).name == name:
                found.add(number)
        finally:
            os.close(fd)
