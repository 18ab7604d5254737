"""Health, metrics and log of the network component: said once, taken back when over."""

import logging

import pytest

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.network_report import NetworkReport
from pycni.backends.base import Refusal
from pycni.errors import KernelError
from pycni.model.family import Family

KEY, OTHER = ("10.5.2.0-24", Family.V4), ("10.5.3.0-24", Family.V4)


@pytest.fixture
def parts(caplog):
    caplog.set_level(logging.INFO, "pycni.network")
    health, metrics = Health(), Registry()
    return NetworkReport(health, metrics), health, metrics


def test_it_is_red_from_the_start(parts):
    _, health, _ = parts
    assert set(health.red()) == {"network", "fabric"}


def test_a_refusal_is_logged_once_and_taken_back_once(parts, caplog):
    report, health, _ = parts
    refusals = {KEY: Refusal("its VNI is 7")}
    report.judged([KEY], refusals, 0)
    report.judged([KEY], refusals, 0)
    report.synchronised()
    assert caplog.text.count("peer 10.5.2.0-24 (ipv4) is skipped: its VNI is 7") == 1
    assert "fabric" not in health.red()
    report.judged([KEY], {}, 1)
    report.judged([KEY], {}, 1)
    assert caplog.text.count("no longer skipped") == 1


def test_faults_turn_the_fabric_red_naming_the_peers_three_at_most(parts):
    report, health, _ = parts
    keys = [(f"10.5.{number}.0-24", Family.V4) for number in range(1, 6)]
    refusals = {key: Refusal("not on link", fault=True) for key in keys}
    report.judged(keys, refusals, 0)
    report.synchronised()
    assert health.red()["fabric"] == (
        "peer 10.5.1.0-24: not on link; peer 10.5.2.0-24: not on link; peer 10.5.3.0-24: not on link and 2 more"
    )
    report.judged(keys, {}, 5)
    report.synchronised()
    assert "fabric" not in health.red()


def test_passes_make_the_network_well_unless_there_is_trouble(parts, caplog):
    report, health, metrics = parts
    report.passed("network", 0.01)
    assert "network" not in health.red()
    report.trouble("no eth0")
    report.trouble("no eth0")
    report.passed("network", 0.01)
    assert health.red()["network"] == "no eth0"
    assert caplog.text.count("network: no eth0") == 1
    report.trouble("")
    report.passed("network", 0.01)
    assert "network" not in health.red()
    report.failed("network", KernelError(16, "add route"), 1)
    assert health.red()["network"] == "add route: EBUSY"
    assert "pycni_fabric_pass_failures_total 1" in metrics.expose()


def test_while_pods_cannot_be_attached_the_network_says_why(parts):
    report, health, _ = parts
    report.not_ready = lambda: "waiting for etcd"
    report.passed("network", 0.01)
    assert health.red()["network"] == "waiting for etcd"


def test_metrics_count_peers_refusals_and_repairs(parts):
    report, _, metrics = parts
    report.judged([KEY, OTHER], {KEY: Refusal("x")}, 1)
    report.repaired(3, "a route was deleted")
    text = metrics.expose()
    for line in ("pycni_fabric_peers 1", "pycni_fabric_refused 1", "pycni_fabric_repairs_total 3"):
        assert line in text
    assert 'pycni_fabric_probed_peers{state="reachable"} 0' in text


def test_metrics_have_what_the_udp_forwarder_counted(parts):
    report, _, metrics = parts
    assert "pycni_udp_packets_total{" not in metrics.expose()
    report.carried = lambda: {"tun_packets": 7, "tun_bytes": 700, "udp_packets": 5, "drop_stranger": 2}
    text = metrics.expose()
    for line in (
        'pycni_udp_packets_total{direction="out"} 7',
        'pycni_udp_packets_total{direction="in"} 5',
        'pycni_udp_dropped_total{reason="stranger"} 2',
    ):
        assert line in text
