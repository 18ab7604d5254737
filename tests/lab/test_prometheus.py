"""A real Prometheus scrapes a lab: targets, the names of metrics, every query and rule, and alerts about real faults."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycni.lab import inside, topology
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from tests.unit.metrics_world import everything
from tests.unit.test_metrics_docs import ALERTS, DASHBOARD, expressions

from .conftest import unique_name
from .lab_tools import ctl, within
from .prometheus_tools import Prometheus, filled_in, hurried

PATIENCE_S = 60.0
NODES = ("node1", "node2", "node3")
KUBERNETES = ("pycni_kube_", "pycni_loadbalancer_")
"""Metrics of agents that ask a Kubernetes API; a lab's do not."""
CALM = re.compile(
    r"== 0$|kube_dials|cni_errors|kube_connected|ALERTS|drops_total|denied|checksum|changes\(|"
    r"kube_router_service_bps|network_programming|policy_admit|cni_seconds|event_loop|pass_seconds|proxy_rules_duration|probe_seconds"
)
"""Queries that have nothing to tell of a lab where nothing is wrong or happens just now."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three nodes with everything a node can have."""
    made = Lab.up(LabSpec(name=unique_name(), nodes=3, pods=1, proxy="nftables", policy="ebpf", bgp="exabgp"))
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def prometheus(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    made = Prometheus(lab, folder, hurried(ALERTS, folder))
    try:
        assert within(PATIENCE_S, lambda: made.answers)
        yield made
    finally:
        made.close()


def scraped(lab: Lab, node: str) -> str:
    """What an agent answers a scraper."""
    address = str(topology.underlay_address(lab.spec.families[0], topology.node_index(node)).ip)
    status, text = inside.http(
        topology.fabric_namespace(lab.spec.name), address, topology.HEALTH_PORT, "/metrics"
    )
    assert status == 200
    return text


def test_the_configuration_for_a_lab_is_one_prometheus_takes(lab: Lab, tmp_path: Path) -> None:
    done = ctl("lab", "scrape-config", "--name", lab.spec.name, "--rules", str(ALERTS), "--interval", "5s")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "prometheus.yml"
    path.write_text(done.stdout)
    checked = subprocess.run(
        ["promtool", "check", "config", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [f"172.20.0.{number}:10246" in done.stdout for number in (1, 2, 3)] == [True] * 3


def test_all_agents_are_scraped(prometheus: Prometheus) -> None:
    assert within(PATIENCE_S, lambda: prometheus.targets() == dict.fromkeys(NODES, "up")), (
        prometheus.targets()
    )


def test_agents_tell_the_documented_metrics_and_promtool_has_no_complaint(lab: Lab) -> None:
    """Names, kinds and meanings are those of the table, and its labels; nothing more and nothing less."""
    described = {item.name: item for item in everything().describe()}
    text = scraped(lab, "node1")
    told = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    wanted = {item.name: item.kind for item in described.values() if not item.name.startswith(KUBERNETES)}
    assert told == wanted
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    assert helps == {name: described[name].text for name in told}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line).groups()  # type: ignore[union-attr]
            own = described.get(name) or described[name.rpartition("_")[0]]
            assert set(re.findall(r'(\w+)="', labels or "")) - {"le"} == set(own.labels), line
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_query_of_the_dashboard_can_be_evaluated(prometheus: Prometheus) -> None:
    """And has something to tell, but for those that tell of trouble or of what is not going on here."""
    asked = [filled_in(text) for text in expressions(json.loads(DASHBOARD.read_text()))]
    assert len(asked) > 70

    def silent() -> list[str]:
        return [text for text in asked if not prometheus.query(text) and not CALM.search(text)]

    assert within(PATIENCE_S, lambda: not silent()), silent()


def test_every_rule_can_be_evaluated_and_a_healthy_lab_has_no_alert(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        return all(rule["health"] == "ok" for rule in prometheus.rules())

    assert within(PATIENCE_S, evaluated), [rule for rule in prometheus.rules() if rule["health"] != "ok"]
    assert len(prometheus.rules()) == ALERTS.read_text().count("- alert:")
    for rule in prometheus.rules():
        prometheus.query(rule["query"])
    # What the start of the lab may have set off is over.
    assert within(PATIENCE_S, lambda: not prometheus.firing()), prometheus.firing()


def test_series_have_what_the_lab_is(lab: Lab, prometheus: Prometheus) -> None:
    def peers() -> set[tuple[str, str]]:
        found = prometheus.query("pycni_fabric_peer_reachable == 1")
        return {(labels["node"], labels["underlay"]) for labels, _ in found}

    wanted = {
        (node, str(topology.underlay_address(lab.spec.families[0], number).ip))
        for node in NODES
        for number in (1, 2, 3)
        if node != f"node{number}"
    }
    assert within(PATIENCE_S, lambda: peers() == wanted), peers()

    def by_node(expression: str) -> dict[str, float]:
        return {labels["node"]: value for labels, value in prometheus.query(expression)}

    assert within(PATIENCE_S, lambda: by_node("pycni_leases") == dict.fromkeys(NODES, 3.0))
    pods = {node: float(sum(pod.node == node for pod in lab.pods())) for node in NODES}
    assert within(PATIENCE_S, lambda: by_node('pycni_endpoints{state="ready"}') == pods)
    assert all(0 < value < 1 for _, value in prometheus.query("pycni_fabric_peer_latency_seconds"))
    assert within(PATIENCE_S, lambda: len(by_node("pycni_ipam_reserved / pycni_ipam_capacity")) == 3)
    assert all(0 < value < 0.5 for value in by_node("pycni_ipam_reserved / pycni_ipam_capacity").values())
    assert within(
        PATIENCE_S, lambda: by_node("min by (node) (pycni_bgp_session_up)") == dict.fromkeys(NODES, 1.0)
    )


def test_a_killed_agent_and_a_node_cut_off_are_reported_until_they_are_back(
    lab: Lab, prometheus: Prometheus
) -> None:
    """Both at once: node2's agent dies, node3 loses what carries pods' packets."""
    space = lab.node("node3").namespace

    def cut(command: str) -> None:
        subprocess.run(
            ["nft", command] if not space else ["ip", "netns", "exec", space, "nft", command],
            check=True,
            timeout=20,
        )

    lab.signal_agent("node2", signal.SIGKILL)
    cut(
        "add table inet pyt_cut; add chain inet pyt_cut in { type filter hook input priority -300; }; "
        "add rule inet pyt_cut in udp dport 8472 drop"
    )
    try:
        reported = {
            ("PycniAgentDown", "node2"),
            ("PycniPeerUnreachable", "node1"),
            ("PycniNodeCutOff", "node3"),
        }

        def right() -> bool:
            # A scrape that takes too long on a busy machine looks like an agent that is down, for a moment.
            found = prometheus.firing()
            down = {node for alert, node in found if alert == "PycniAgentDown"}
            return reported <= found and down == {"node2"}

        assert within(PATIENCE_S, right), prometheus.firing()
        lost = prometheus.query('pycni_fabric_peer_reachable{node="node1"} == 0')
        assert {labels["underlay"] for labels, _ in lost} >= {"172.20.0.3"}
        texts = [item["annotations"] for item in prometheus.get("alerts")["alerts"]]
        assert not [text for text in texts if "error expanding" in str(text)]
        assert "node1 does not reach the pods of 172.20.0.3" in str(texts)
    finally:
        cut("delete table inet pyt_cut")
        lab.start_agents(["node2"])
    assert within(PATIENCE_S, lambda: prometheus.targets() == dict.fromkeys(NODES, "up"))
    assert within(PATIENCE_S, lambda: not prometheus.firing()), prometheus.firing()
