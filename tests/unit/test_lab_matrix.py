"""Which checks a lab calls for, and how their outcome is told."""

from __future__ import annotations

import io
import json

import pytest

from pycni.lab import report
from pycni.lab.checks import Check
from pycni.lab.matrix import Matrix, plan
from pycni.lab.probe import KINDS
from pycni.lab.stations import Host
from pycni.model.family import Family


def host(name: str, *families: Family) -> Host:
    return Host(name, f"/run/netns/{name}", dict.fromkeys(families, "x"), 1450)


NODES = [host("node1", *Family), host("node2", *Family)]
PODS = [host("pod1", *Family), host("pod2", *Family), host("pod3", Family.V4)]


def test_every_pair_of_pods_and_of_node_and_pod_is_asked_both_ways() -> None:
    pairs = {(check.source, check.target) for check in plan(NODES, PODS)}
    assert pairs == {
        (a, b)
        for a in ("node1", "node2", "pod1", "pod2", "pod3")
        for b in ("node1", "node2", "pod1", "pod2", "pod3")
        if a != b and "pod" in a + b
    }


def test_a_pair_is_asked_in_every_kind_and_common_family() -> None:
    checks = plan(NODES, PODS)
    assert [(c.family, c.kind) for c in checks if (c.source, c.target) == ("pod1", "pod2")] == [
        (family, kind) for family in Family for kind in KINDS
    ]
    assert {c.family for c in checks if "pod3" in (c.source, c.target)} == {Family.V4}


def matrix(**failures: str) -> Matrix:
    """``pod1_pod2_udp="why"`` fails that check."""
    reasons = dict.fromkeys(
        plan([host("node1", Family.V4)], [host("pod1", Family.V4), host("pod2", Family.V4)]), ""
    )
    for key, reason in failures.items():
        source, target, kind = key.split("_")
        for each in KINDS if kind == "all" else (kind,):
            assert Check(source, target, Family.V4, each) in reasons
            reasons[Check(source, target, Family.V4, each)] = reason
    return Matrix(nodes=("node1",), pods=(("pod1", "node1"), ("pod2", "node1")), reasons=reasons, seconds=0.5)


def test_the_json_is_what_scripts_read() -> None:
    good = matrix()
    assert good.json() == {"ok": True, "checks": 24, "failed": [], "seconds": 0.5}
    bad = matrix(pod1_pod2_udp="no answer")
    assert json.loads(json.dumps(bad.json())) == {
        "ok": False,
        "checks": 24,
        "failed": [{"from": "pod1", "to": "pod2", "family": "ipv4", "kind": "udp", "reason": "no answer"}],
        "seconds": 0.5,
    }


def test_nothing_checked_is_not_ok() -> None:
    assert not Matrix(nodes=(), pods=(), reasons={}).ok


def test_the_grid_shows_each_pair_once() -> None:
    assert report.grid(matrix(pod1_pod2_udp="x", pod2_node1_all="y")).splitlines() == [
        "from / to      1 2 3",
        "1 node1        - ● ●",
        "2 pod1   node1 ● - ◐",
        "3 pod2   node1 ✗ ● -",
        "● all kinds pass  ◐ some fail  ✗ all fail  · not asked",
    ]


def test_a_large_lab_is_shown_by_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "GRID_HOSTS", 4)
    nodes, pods = (
        [host("node1", Family.V4), host("node2", Family.V4)],
        [host("a", Family.V4), host("b", Family.V4), host("c", Family.V4)],
    )
    reasons = dict.fromkeys(plan(nodes, pods), "")
    reasons[Check("a", "c", Family.V4, "udp")] = "lost"
    large = Matrix(
        nodes=("node1", "node2"), pods=(("a", "node1"), ("b", "node1"), ("c", "node2")), reasons=reasons
    )
    assert report.grid(large).splitlines()[:3] == [
        "from / to             1 2",
        "1 node1  and its pods ● ◐",
        "2 node2  and its pods ● ●",
    ]


def test_the_verdict_names_the_failed_pairs_and_counts() -> None:
    assert report.verdict(matrix(pod1_pod2_udp="no answer within 2 s")).splitlines() == [
        "  pod1 (node1) -> pod2 (node1)  ipv4 udp: no answer within 2 s",
        "1 of 24 checks FAIL: ping, mtu, tcp, udp over ipv4 in 0.50 s",
    ]
    assert report.verdict(matrix()) == "all 24 checks pass: ping, mtu, tcp, udp over ipv4 in 0.50 s"


def test_a_long_list_of_failures_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LISTED", 3)
    lines = report.verdict(matrix(pod1_pod2_all="a", pod2_pod1_all="b")).splitlines()
    assert len(lines) == 5
    assert lines[3] == "... and 5 more (--json lists all)"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "●◐✗ ├─"), ("ascii", "+~X |-")])
def test_drawing_characters_give_way_where_they_cannot_be_shown(encoding: str, shown: str) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding=encoding) as stream:
        assert report.writable("●◐✗ ├─", stream) == shown


STATUS = {
    "fabric": {"ips": ["172.20.255.254"]},
    "etcd": {"endpoint": "http://172.20.255.254:2379", "pid": 7, "alive": True},
    "nodes": [
        {
            "name": "node1",
            "ips": ["172.20.0.1"],
            "backend": "vxlan",
            "subnets": ["10.244.1.0/24"],
            "ready": True,
            "reason": "",
        },
        {
            "name": "node2",
            "ips": ["172.20.0.2"],
            "backend": "vxlan",
            "subnets": [],
            "ready": False,
            "reason": "network: no lease",
        },
    ],
    "pods": [
        {"name": "pod1", "node": "node1", "ips": ["10.244.1.2"]},
        {"name": "pod2", "node": "node1", "ips": ["10.244.1.3"]},
        {"name": "pod3", "node": "node2", "ips": []},
    ],
}


def test_the_tree_shows_nodes_with_their_pods() -> None:
    assert report.tree(STATUS).splitlines() == [
        "fabric  172.20.255.254  etcd http://172.20.255.254:2379 (pid 7)",
        "├─ node1  172.20.0.1  vxlan  10.244.1.0/24  ready",
        "│   ├─ pod1  10.244.1.2",
        "│   └─ pod2  10.244.1.3",
        "└─ node2  172.20.0.2  vxlan  no lease  NOT READY: network: no lease",
        "    └─ pod3  ",
    ]


def test_progress_prints_plain_lines_when_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = report.Progress(stream)
    with progress.step("etcd"):
        pass
    progress.line("done")
    assert stream.getvalue() == "etcd (0.0 s)\ndone\n"


def test_a_step_that_fails_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), report.Progress(stream).step("etcd"):
        raise KeyError
    assert stream.getvalue() == ""


def test_quiet_progress_prints_nothing() -> None:
    stream = io.StringIO()
    progress = report.Progress(stream, quiet=True)
    with progress.step("etcd"):
        progress.line("x")
    assert stream.getvalue() == ""
