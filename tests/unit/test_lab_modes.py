"""Where pods of a lab have their network from, and which hosts there is a way between for that."""

from __future__ import annotations

import pytest

from pycni.lab import modes, report
from pycni.lab.checks import Check
from pycni.lab.matrix import ALONE, Matrix, judge_alone, plan, plan_alone
from pycni.lab.state import PodRecord
from pycni.lab.stations import Host
from pycni.lab.topology import LabError
from pycni.model.family import Family


def host(name: str, node: str = "") -> Host:
    return Host(name, "", {Family.V4: "x"}, 1500, node or name)


def pod(name: str, network: str = "cluster") -> PodRecord:
    return PodRecord(name=name, node="node1", namespace=name, container_id=name, network=network)


@pytest.mark.parametrize(
    "words", ["cluster", "bridge", "host", "none", "container:web", "container:web.shop"]
)
def test_words_that_mean_something_pass(words: str) -> None:
    modes.check(words, "netns")


@pytest.mark.parametrize(
    ("words", "driver", "more", "named"),
    [
        pytest.param("nat", "netns", {}, "--network 'nat': not one of", id="no such mode"),
        pytest.param("container", "netns", {}, "container:NAME", id="nobody named"),
        pytest.param("container:", "netns", {}, "pod name ''", id="empty name"),
        pytest.param("container:A", "netns", {}, "pod name 'A'", id="no name of a pod"),
        pytest.param("bridge", "uml", {}, "guests, which have no nftables", id="guests"),
        pytest.param(
            "host", "netns", {"capabilities": {"mac": "x"}}, "no plugin is asked", id="capabilities"
        ),
        pytest.param("bridge", "netns", {"manifest": {"kind": "Pod"}}, "labels and ports", id="labels"),
    ],
)
def test_words_that_cannot_be_are_refused(
    words: str, driver: str, more: dict[str, object], named: str
) -> None:
    with pytest.raises(LabError, match=named) as caught:
        modes.check(words, driver, **more)
    assert caught.value.usage


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("cluster", "cluster"),
        ("bridge", "bridge"),
        ("container:web", "cluster"),
        ("container:far", "bridge"),
        ("container:gone", "none"),
    ],
)
def test_who_shares_a_network_has_it_from_where_the_other_has_it(network: str, expected: str) -> None:
    there = {"web": pod("web"), "far": pod("far", "bridge")}
    assert modes.root(pod("one", network), there) == expected


def test_only_pairs_with_a_way_between_them_are_asked() -> None:
    nodes = [host("node1"), host("node2")]
    pods = [host("web", "node2"), host("single1", "node1"), host("single2", "node2"), host("own", "node1")]
    ways = {"single1": "bridge", "single2": "bridge", "own": "host"}
    asked = {(check.source, check.target) for check in plan(nodes, pods, ("ping",), ways)}
    assert asked == {
        *(("web", other) for other in ("node1", "node2", "own", "single2")),
        *(("single1", other) for other in ("node1", "node2", "own", "web")),
        *(("single2", other) for other in ("node1", "node2", "own", "web")),
        *(("own", other) for other in ("web", "single1")),
        *(("node1", other) for other in ("web", "single1")),
        *(("node2", other) for other in ("web", "single2")),
    }


def test_pods_on_the_underlay_have_no_way_to_a_bridge_of_their_node() -> None:
    pods = [host("web", "node1"), host("single", "node1")]
    ways = {"web": "underlay", "single": "bridge"}
    asked = {(check.source, check.target) for check in plan([host("node1")], pods, ("ping",), ways)}
    assert asked == {
        ("single", "web"),
        *(("node1", name) for name in ("web", "single")),
        *((name, "node1") for name in ("web", "single")),
    }


def test_a_pod_without_a_network_passes_when_nobody_answers_it() -> None:
    checks = plan_alone([host("node1"), host("node2")], [host("lone", "node1")])
    assert checks == [Check("lone", node, Family.V4, "ping") for node in ("node1", "node2")]
    found = judge_alone({checks[0]: "Network is unreachable", checks[1]: ""})
    assert list(found) == [check._replace(kind=ALONE) for check in checks]
    assert list(found.values()) == ["", "answers, although the pod has no network"]
    matrix = Matrix(
        nodes=("node1", "node2"), pods=(("lone", "node1"),), reasons=found, modes={"lone": "none"}
    )
    assert [check.target for check, _reason in matrix.failed()] == ["node2"]
    row = next(line for line in report.grid(matrix).splitlines() if "lone" in line)
    assert row.split() == ["3", "lone", "node1", "none", "○", "✗", "-"]


def test_status_tells_where_a_network_is_from() -> None:
    status = {
        "fabric": {"ips": ["172.20.255.254"]},
        "etcd": {"endpoint": "x", "pid": 1, "alive": True},
        "nodes": [
            {"name": "node1", "ips": [], "backend": "vxlan", "subnets": [], "ready": True, "reason": ""}
        ],
        "pods": [
            {"name": "web", "node": "node1", "ips": ["10.244.1.2"], "network": "cluster"},
            {"name": "lone", "node": "node1", "ips": [], "network": "none"},
            {"name": "side", "node": "node1", "ips": ["10.244.1.2"], "network": "container:web"},
        ],
    }
    assert [line.rpartition("─ ")[2] for line in report.tree(status).splitlines()[2:]] == [
        "web  10.244.1.2",
        "lone  (network none)",
        "side  10.244.1.2 (network container:web)",
    ]
