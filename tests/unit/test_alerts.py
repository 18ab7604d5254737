"""The alerts of deploy/prometheus, each with series that make it fire and series that must not, judged by promtool."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml

from pycni.cli import COMMANDS

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yaml"
AT = 'job="pycni", instance="10.0.0.1:8285", node="n1"'
"""What Prometheus adds to every series of a node."""


class Case(NamedTuple):
    """One alert. ``fires``, ``quiet``: values by series (promtool's notation, a minute each, without ``AT``)."""

    alert: str
    minute: int
    fires: dict[str, str]
    quiet: dict[str, str]
    summary: str
    labels: Mapping[str, str] = MappingProxyType({})
    """Besides those of ``AT``."""
    description: Mapping[str, str] = MappingProxyType({})
    """What becomes of the description's templates."""
    lone: bool = False
    """Only the job is left of ``AT``."""


def buckets(name: str, labels: str, slow: int, fast: int) -> dict[str, str]:
    """A histogram with so many observations a minute above and below a tenth of a second."""
    found = {}
    for bound, grows in (("0.1", fast), ("20", fast + slow), ("+Inf", fast + slow)):
        found[f'{name}_bucket{{{labels}{", " if labels else ""}le="{bound}"}}'] = f"0+{grows}x60"
    return found


CASES = [
    Case("PycniAgentDown", 5, {"up": "1x2 0x20"}, {"up": "1x2 0 1x20"}, "The agent of n1 does not answer"),
    Case(
        "PycniNotReady", 10, {"pycni_ready": "0x20"}, {"pycni_ready": "0x4 1x20"},
        "The agent of n1 is not ready for five minutes",
    ),
    Case(
        "PycniNotProgrammed", 15, {'pycni_part_healthy{part="proxy"}': "0x20"},
        {'pycni_part_healthy{part="proxy"}': "0x8 1x20"},
        "n1: proxy is not as it should be for ten minutes", {"part": "proxy"}, {"{{ $labels.part }}": "proxy"},
    ),
    Case(
        "PycniAgentRestarts", 30, {"process_start_time_seconds": "1x5 2x5 3x5 4x5 5x5 6x9"},
        {"process_start_time_seconds": "1x10 2x30"}, "The agent of n1 was started 5 times in half an hour",
    ),
    Case(
        "PycniPassesFail", 20, {"pycni_fabric_pass_failures_total": "0+1x30"},
        {"pycni_fabric_pass_failures_total": "0x5 1x30"},
        "n1: the kernel keeps refusing what fabric wants", {"part": "fabric"},
        {'{{ printf "%.0f" $value }}': "10"},
    ),
    Case(
        "PycniDriftRepeated", 50, {'pycni_drift_repaired_total{part="fabric"}': "0+1x60"},
        {'pycni_drift_repaired_total{part="fabric"}': "0x20 5000x60"},
        "n1: somebody keeps changing what pycni programs (fabric)", {"part": "fabric"},
        {'{{ printf "%.0f" $value }}': "15"},
    ),
    Case(
        "PycniEventLoopSlow", 40, buckets("pycni_event_loop_lag_seconds", "", 6, 6),
        buckets("pycni_event_loop_lag_seconds", "", 0, 12), "The agent of n1 is a second behind",
    ),
    Case(
        "PycniErrorsLogged", 30, {'pycni_log_messages_total{level="error"}': "0+1x60"},
        {'pycni_log_messages_total{level="warning"}': "0+9x60"},
        "The agent of n1 logged 15 errors in a quarter of an hour",
    ),
    Case(
        "PycniFileDescriptors", 15, {"process_open_fds": "90x20", "process_max_fds": "100x20"},
        {"process_open_fds": "60x20", "process_max_fds": "100x20"},
        "The agent of n1 has 90% of its file descriptors open",
    ),
    Case(
        "PycniPeerUnreachable", 10,
        {'pycni_fabric_peer_reachable{peer="10.244.2.0/24", underlay="10.0.0.2", family="ipv4"}': "1 0x20"},
        {'pycni_fabric_peer_reachable{peer="10.244.2.0/24", underlay="10.0.0.2", family="ipv4"}': "1 0x1 1x20"},
        "n1 does not reach the pods of 10.0.0.2 (10.244.2.0/24)",
        {"peer": "10.244.2.0/24", "underlay": "10.0.0.2", "family": "ipv4"},
    ),
    Case(
        "PycniNodeCutOff", 5,
        {'pycni_fabric_probed_peers{state="reachable"}': "1x9", 'pycni_fabric_probed_peers{state="unreachable"}': "3x9"},
        {'pycni_fabric_probed_peers{state="reachable"}': "9x9", 'pycni_fabric_probed_peers{state="unreachable"}': "3x9"},
        "n1 does not reach 75% of its peers through the pod network",
    ),
    Case(
        "PycniPeersRefused", 20, {"pycni_fabric_refused": "2x30"}, {"pycni_fabric_refused": "2x10 0x20"},
        "n1 cannot use 2 leases",
    ),
    Case(
        "PycniChecksumFault", 2, {"pycni_checksum_faults_total": "0 1x5"}, {"pycni_checksum_faults_total": "0x5"},
        "n1: the network below spoils checksums inside VXLAN",
    ),
    Case(
        "PycniMtuDiffers", 70,
        {"pycni_pod_mtu_bytes": "8950x80", 'pycni_pod_mtu_bytes{other="1"}': "1450x80"},
        {"pycni_pod_mtu_bytes": "1450x80", 'pycni_pod_mtu_bytes{other="1"}': "1450x80"},
        "Nodes of one network give their pods different MTUs, up to 8950", lone=True,
    ),
    Case(
        "PycniLeaseExpiring", 20, {"pycni_lease_expires_timestamp_seconds": "3000x30"},
        {"pycni_lease_expires_timestamp_seconds": "9000x30"},
        "The lease of n1 ends in 30m 0s and is not renewed",
    ),
    Case(
        "PycniLeaseExpired", 20, {"pycni_lease_expires_timestamp_seconds": "1200x30"},
        {"pycni_lease_expires_timestamp_seconds": "1260x30"}, "The lease of n1 has ended",
    ),
    Case(
        "PycniEtcdUnreachable", 10, {"pycni_etcd_connected": "0x20"}, {"pycni_etcd_connected": "0x6 1 0x20"},
        "n1 has no connection to etcd for five minutes",
    ),
    Case(
        "PycniKubernetesApiUnreachable", 10, {'pycni_kube_connected{kind="Service"}': "0x20"},
        {'pycni_kube_connected{kind="Service"}': "1x20", 'pycni_kube_nodes_connected{kind="Node"}': "1x20"},
        "n1 does not follow Service objects of the Kubernetes API", {"kind": "Service"},
        {"{{ $labels.kind }}": "Service"},
    ),
    Case(
        "PycniMalformedRecords", 15, {'pycni_kube_malformed{kind="Service"}': "2x20"},
        {'pycni_kube_malformed{kind="Service"}': "0x20", "pycni_lease_malformed": "0x20"},
        "n1 cannot read 2 records of kind Service", {"kind": "Service"},
    ),
    Case(
        "PycniAddFails", 20,
        {
            'pycni_cni_calls_total{operation="ADD", result="error"}': "0+1x30",
            'pycni_cni_calls_total{operation="ADD", result="success"}': "0+1x30",
        },
        {
            'pycni_cni_calls_total{operation="ADD", result="error"}': "0+1x30",
            'pycni_cni_calls_total{operation="ADD", result="success"}': "0+19x30",
        },
        "50% of the pods started on n1 get no network", {"operation": "ADD"},
    ),
    Case(
        "PycniAddSlow", 40, buckets("pycni_cni_seconds", 'operation="ADD"', 6, 6),
        buckets("pycni_cni_seconds", 'operation="DEL"', 6, 6),
        "Pods on n1 wait 16.02s for their network", {"operation": "ADD"},
    ),
    Case(
        "PycniAddressesNearlyUsedUp", 15,
        {
            'pycni_ipam_reserved{network="pycni", family="ipv4"}': "240x20",
            'pycni_ipam_capacity{network="pycni", family="ipv4"}': "250x20",
        },
        {
            'pycni_ipam_reserved{network="pycni", family="ipv4"}': "200x20",
            'pycni_ipam_capacity{network="pycni", family="ipv4"}': "250x20",
        },
        "n1: 96% of the ipv4 addresses of pycni are in use", {"network": "pycni", "family": "ipv4"},
    ),
    Case(
        "PycniCollectorFails", 45, {"pycni_collector_failures_total": "0+1x60"},
        {"pycni_collector_failures_total": "0x5 2x60"},
        "What ended pods leave behind on n1 is not taken back",
    ),
    Case(
        "PycniServicesPending", 10,
        {'kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"}': "7x20"},
        {'kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"}': "7x6 0 7x20"},
        "n1: 7 changed services or endpoints are not in the kernel", {"ip_family": "IPv4"},
    ),
    Case(
        "PycniServicesSlow", 40,
        buckets("kubeproxy_network_programming_duration_seconds", 'ip_family="IPv4"', 6, 6),
        buckets("kubeproxy_network_programming_duration_seconds", 'ip_family="IPv4"', 0, 6),
        "n1: changes of endpoints take 16.02s to the kernel",
    ),
    Case(
        "PycniLoadBalancerAddresses", 15, {"pycni_loadbalancer_problems": "2x20"},
        {"pycni_loadbalancer_problems": "2x5 0x20"}, "2 services cannot get the address they want",
    ),
    Case(
        "PycniPolicySyncSlow", 40, buckets("pycni_policy_pass_seconds", 'full="false"', 6, 6),
        buckets("pycni_policy_pass_seconds", 'full="false"', 0, 6), "n1: policies take 16.02s to the kernel",
    ),
    Case(
        "PycniAddressesClosed", 10, {'pycni_policy_closed_addresses{direction="ingress"}': "1x20"},
        {'pycni_policy_closed_addresses{direction="ingress"}': "1x3 0x20"},
        "n1: 1 addresses are closed (ingress) because nothing is known of their pods", {"direction": "ingress"},
    ),
    Case(
        "PycniSpoofing", 30, {'pycni_policy_drops_total{reason="spoofed", direction="egress"}': "0+600x60"},
        {'pycni_policy_drops_total{reason="NetworkPolicy", direction="egress"}': "0+600x60"},
        "Pods of n1 send with addresses that are not theirs", {"reason": "spoofed"},
    ),
    Case(
        "PycniFastPathNearlyFull", 15,
        {'pycni_policy_fast_path_entries{what="flows"}': "95x20", 'pycni_policy_fast_path_limit{what="flows"}': "100x20"},
        {'pycni_policy_fast_path_entries{what="pods"}': "95x20", 'pycni_policy_fast_path_limit{what="flows"}': "100x20"},
        "n1: 95% of the fast path's table flows are in use", {"what": "flows"},
    ),
    Case(
        "PycniBgpSessionDown", 10, {'pycni_bgp_session_up{peer="10.0.0.9"}': "0x20"},
        {'pycni_bgp_session_up{peer="10.0.0.9"}': "0x3 1x20"},
        "n1 has no BGP session with 10.0.0.9 for five minutes", {"peer": "10.0.0.9"},
    ),
    Case(
        "PycniBgpSessionFlaps", 40, {'pycni_bgp_session_downs_total{peer="10.0.0.9"}': "0+1x60"},
        {'pycni_bgp_session_downs_total{peer="10.0.0.9"}': "0x20 2x60"},
        "n1: the BGP session with 10.0.0.9 broke 30 times in half an hour", {"peer": "10.0.0.9"},
    ),
    Case(
        "PycniConntrackNearlyFull", 10, {"pycni_conntrack_entries": "90x20", "pycni_conntrack_limit": "100x20"},
        {"pycni_conntrack_entries": "80x20", "pycni_conntrack_limit": "100x20"},
        "n1: 90% of the connection tracking table are in use",
    ),
    Case(
        "PycniConntrackDrops", 15, {'pycni_conntrack_dropped_total{reason="early_drop"}': "0+5x20"},
        {'pycni_conntrack_dropped_total{reason="insert_failed"}': "0+5x20"},
        "n1: connections are lost because the connection tracking table is full", {"reason": "early_drop"},
    ),
    Case(
        "PycniDeviceDrops", 30,
        {
            'pycni_device_drops_total{device="eth0", direction="receive"}': "0+1200x60",
            'pycni_device_packets_total{device="eth0", direction="receive"}': "0+60000x60",
        },
        {
            'pycni_device_drops_total{device="eth0", direction="receive"}': "0+1200x60",
            'pycni_device_packets_total{device="eth0", direction="receive"}': "0+6000000x60",
        },
        "n1: eth0 drops 20 packets a second (receive)", {"device": "eth0", "direction": "receive"},
        {"{{ $labels.device }}": "eth0"},
    ),
]  # fmt: skip


def rules() -> dict[str, dict[str, Any]]:
    """Every alert by its name."""
    return {
        rule["alert"]: rule
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    }


def series(values: dict[str, str]) -> list[dict[str, str]]:
    """As promtool wants them."""
    found = []
    for name, text in values.items():
        base, _, labels = name.partition("{")
        inner = ", ".join(filter(None, (labels.rstrip("}"), AT)))
        found.append({"series": f"{base}{{{inner}}}", "values": text})
    return found


def expected(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    """The alert with its texts."""
    at = dict(re.findall(r'(\w+)="([^"]*)"', AT))
    description = rule["annotations"]["description"]
    for template, text in case.description.items():
        assert template in description
        description = description.replace(template, text)
    return {
        "exp_labels": {**rule["labels"], **({"job": at["job"]} if case.lone else at), **case.labels},
        "exp_annotations": {"summary": case.summary, "description": description},
    }


def judged(tmp_path: Path, tests: list[dict[str, Any]]) -> None:
    path = tmp_path / "tests.yaml"
    body = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def apart(asked: list[tuple[dict[str, str], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Tests in as few worlds as go: promtool takes its time for each. In one of them, every metric is one case's."""
    worlds: list[tuple[set[str], dict[str, Any]]] = []
    for values, question in asked:
        metrics = {name.partition("{")[0] for name in values}
        found = next((item for item in worlds if not item[0] & metrics), None)
        if found is None:
            worlds.append(found := (set(), {"interval": "1m", "input_series": [], "alert_rule_test": []}))
        found[0].update(metrics)
        found[1]["input_series"] += series(values)
        found[1]["alert_rule_test"].append(question)
    return [body for _, body in worlds]


def test_every_alert_fires_when_it_should_and_says_so(tmp_path: Path) -> None:
    found = rules()
    judged(
        tmp_path, apart([(case.fires, question(case, [expected(case, found[case.alert])])) for case in CASES])
    )


def test_no_alert_fires_when_it_should_not(tmp_path: Path) -> None:
    judged(tmp_path, apart([(case.quiet, question(case, [])) for case in CASES]))


def question(case: Case, alerts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": alerts}


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(rules())


def test_series_by_the_address_alone_name_that(tmp_path: Path) -> None:
    summary = "The agent of 10.0.0.1:8285 does not answer"
    alert = {
        "exp_labels": {"severity": "critical", "job": "pycni", "instance": "10.0.0.1:8285"},
        "exp_annotations": {
            "summary": summary,
            "description": rules()["PycniAgentDown"]["annotations"]["description"],
        },
    }
    judged(
        tmp_path,
        [
            {
                "interval": "1m",
                "input_series": [{"series": 'up{job="pycni", instance="10.0.0.1:8285"}', "values": "0x9"}],
                "alert_rule_test": [
                    {"eval_time": "5m", "alertname": "PycniAgentDown", "exp_alerts": [alert]}
                ],
            }
        ],
    )


@pytest.mark.parametrize("alert", list(rules()))
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    rule = rules()[alert]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description"}
    text = rule["annotations"]["description"]
    for command in re.findall(r"pycnictl (\w+)", text):
        assert command in COMMANDS
    # What no command of ours tells of has another one.
    assert re.search(r"pycnictl \w+|journalctl|kubectl|sysdump", text), text
