"""``pycnictl check`` by the Kubernetes API: what it stores there makes a check, wherever pods come from.

The API server is the tests' own, and a lab does what kubelets and controllers do (``check_kubelet``): the programs and
the packets are real, and so is every request. What is not tried here is a real kubelet.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.check import course, kube, report
from pycni.check.kube import KubeGround
from pycni.check.model import NAMESPACE, Answer
from pycni.check.show import Quiet
from pycni.lab.apply import Cluster
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni.sources.kube_config import find

from .check_kubelet import StandIn, cluster_of
from .conftest import unique_name
from .lab_tools import ctl, within

RIGHTS = {
    "nodes": {"GET"},
    "namespaces": {"GET", "POST", "DELETE"},
    "services": {"GET", "POST"},
    "networkpolicies": {"POST"},
    "pods": {"GET", "POST"},
    "pods/ephemeralcontainers": {"PATCH"},
}
"""What docs/check.md asks for."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(
        LabSpec(name=unique_name(), nodes=2, pods=0, family="dual", proxy="nftables", policy="nftables")
    )
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[StandIn]:
    with cluster_of(lab, tmp_path) as made:
        yield made
        assert within(20, lambda: not left(lab)), (left(lab), made.trouble)


def left(lab: Lab) -> list[str]:
    return [str(key) for key in Cluster(lab).objects() if NAMESPACE in {key.namespace, key.name}]


def used(cluster: StandIn) -> dict[str, set[str]]:
    """Methods by resource, of all requests there were."""
    found: dict[str, set[str]] = {}
    for request in cluster.requests:
        parts = request.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] == "namespaces" and len(parts) > 2:
            parts = parts[2:]
        found.setdefault("/".join([parts[0], *parts[2:]]), set()).add(request.method)
    return found


def test_the_api_alone_is_enough_for_a_whole_check(cluster: StandIn) -> None:
    done = ctl("check", "--kube-api-url", cluster.url, "--json", "--image", "img", timeout=120)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [item for item in found["tests"] if item["status"] == "failed"] == []
    assert done.returncode == 0
    skipped = {item["name"]: item["note"] for item in found["tests"] if item["status"] == "skipped"}
    assert set(skipped) == {"service-nodeport-outside", "egress-outside"}
    tried = {item["name"]: item["tried"] for item in found["tests"]}
    assert tried["pod-to-pod-other-node"] == 12
    assert used(cluster) == RIGHTS
    pods = [
        json.loads(item.body)
        for item in cluster.requests
        if item.method == "POST" and item.path.endswith("/pods")
    ]
    assert {item["spec"]["containers"][0]["image"] for item in pods} == {"img"}
    assert {item["spec"]["nodeName"] for item in pods} == {"node1", "node2"}


def test_an_image_that_cannot_be_had_is_told(cluster: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "START_S", 3.0)
    cluster.refuse_images = True
    found = checked(cluster)
    failed = [item for item in found["tests"] if item["status"] == "failed"]
    assert [item["name"] for item in failed] == ["pods-start"]
    assert "ErrImagePull no such image" in failed[0]["failures"][0]["reason"]


def test_an_interrupted_check_deletes_its_namespace(cluster: StandIn) -> None:
    class Interrupted(KubeGround):
        def ask(self, cases: Any) -> dict[int, Answer]:
            signal.raise_signal(signal.SIGINT)
            return super().ask(cases)

    with pytest.raises(KeyboardInterrupt):
        checked(cluster, Interrupted)
    last = cluster.requests[-2]
    assert (last.method, last.path) == ("DELETE", f"/api/v1/namespaces/{NAMESPACE}")


def test_somebody_elses_namespace_is_left_alone(cluster: StandIn, lab: Lab) -> None:
    cluster.own_namespace()
    found = checked(cluster)
    failed = [item for item in found["tests"] if item["status"] == "failed"]
    assert "is somebody else's" in failed[0]["failures"][0]["reason"]
    assert found["notes"], "and that it is still there is told"
    assert "DELETE" not in {item.method for item in cluster.requests}
    cluster.disown_namespace()


def checked(cluster: StandIn, kind: type[KubeGround] = KubeGround, *patterns: str) -> dict[str, Any]:
    ground = kind(find("", cluster.url), image="img")
    try:
        return report.as_json(course.check(ground, course.Wanted(patterns), Quiet()))
    finally:
        ground.close()
