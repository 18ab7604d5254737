#!/usr/bin/env python3
"""Write the Grafana dashboard from the rows below: `tools/dashboard.py > deploy/grafana/pycni.json`.

A test keeps the file equal to this, another one asks a real Prometheus every query. Only panels every Grafana from 9 on
has are used: stat, timeseries, table, row.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = '{job=~"$job", instance=~"$instance"}'
"""What the two variables pick; replaces ``$HERE`` in queries, and ``$AND`` stands where more is picked."""
COLUMNS = 24


class Query(NamedTuple):
    """One query of a panel, and what its lines are called."""

    expr: str
    legend: str = "{{instance}}"


class Panel(NamedTuple):
    """One panel. ``unit``: Grafana's name of it; ``red``: the value from which it is red; ``kind``: of panel."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    red: float | None = None
    good_above: bool = False
    """Green from ``red`` on, red below."""


def lines(title: str, *queries: str | tuple[str, str], **more: Any) -> Panel:
    """A panel of lines over time."""
    made = [Query(item) if isinstance(item, str) else Query(*item) for item in queries]
    return Panel(title, tuple(made), **more)


def quantile(share: float, histogram: str, by: str = "", pick: str = "$HERE") -> str:
    """A query for what this share of a histogram's observations stayed below. ``by``: labels, separated by commas."""
    rates = f"rate({histogram}_bucket{pick}[$__rate_interval])"
    return f"histogram_quantile({share}, {f'sum by ({by}) ({rates})' if by else rates})"


def number(title: str, query: str, **more: Any) -> Panel:
    """One large number."""
    return Panel(title, (Query(query, ""),), kind="stat", width=4, **more)


def table(title: str, *queries: str, **more: Any) -> Panel:
    """A table of series as they are now."""
    return Panel(title, tuple(Query(item, "") for item in queries), kind="table", **more)


ROWS: dict[str, list[Panel]] = {
    "Overview": [
        number("Agents up", 'sum(up{job=~"$job", instance=~"$instance"})', red=1, good_above=True),
        number("Agents down", 'count(up{job=~"$job", instance=~"$instance"} == 0) or vector(0)', red=1),
        number("Not ready", "count(pycni_ready$HERE == 0) or vector(0)", red=1),
        number("Pods attached", 'sum(pycni_endpoints{state="ready"$AND})'),
        number(
            "Peers unreachable", 'sum(pycni_fabric_probed_peers{state="unreachable"$AND}) or vector(0)', red=1
        ),
        number(
            "Alerts firing", 'count(ALERTS{alertname=~"Pycni.*", alertstate="firing"}) or vector(0)', red=1
        ),
        table(
            "Nodes",
            "pycni_node_info$HERE",
            width=12,
            text="Which agent runs where: kernel and components.",
        ),
        table(
            "Parts that are not well", "pycni_part_healthy$HERE == 0", width=6, text="Empty when all is well."
        ),
        table("Alerts", 'ALERTS{alertname=~"Pycni.*"}', width=6, text="Pending and firing."),
        lines("Readiness", "pycni_ready$HERE", text="1: pods can be attached and everything is programmed."),
        lines("Memory", "process_resident_memory_bytes$HERE", unit="bytes"),
        lines("Processor", "rate(process_cpu_seconds_total$HERE[$__rate_interval])", unit="percentunit"),
    ],
    "Fabric and peers": [
        lines(
            "Peers by what the probe says", ("sum by (state) (pycni_fabric_probed_peers$HERE)", "{{state}}")
        ),
        lines(
            "Latency between nodes",
            (
                quantile(0.5, "pycni_fabric_probe_seconds", "le"),
                "half",
            ),
            (
                quantile(0.99, "pycni_fabric_probe_seconds", "le"),
                "99 of 100",
            ),
            unit="s",
            text="Round trips between agents through the pod network.",
        ),
        table(
            "Slowest peers",
            "topk(10, pycni_fabric_peer_latency_seconds$HERE)",
            unit="s",
        ),
        table("Unreachable peers", "pycni_fabric_peer_reachable$HERE == 0", text="They answered once."),
        lines(
            "Probes without an answer",
            'rate(pycni_fabric_probes_total{result="lost"$AND}[$__rate_interval])',
            unit="cps",
        ),
        lines(
            "Traffic of the devices between nodes",
            (
                "sum by (device, direction) (rate(pycni_device_bytes_total$HERE[$__rate_interval]))",
                "{{device}} {{direction}}",
            ),
            unit="Bps",
        ),
        lines(
            "Drops and errors of these devices",
            (
                "sum by (device, direction) (rate(pycni_device_drops_total$HERE[$__rate_interval]))",
                "{{device}} {{direction}} dropped",
            ),
            (
                "sum by (device, direction) (rate(pycni_device_errors_total$HERE[$__rate_interval]))",
                "{{device}} {{direction}} errors",
            ),
            unit="pps",
        ),
        lines(
            "Leases",
            ("pycni_leases$HERE", "{{instance}}"),
            ("pycni_fabric_refused$HERE", "{{instance}} refused"),
        ),
        lines(
            "Lease ends in",
            "pycni_lease_expires_timestamp_seconds$HERE - time()",
            unit="s",
            text="Renewed an hour before its end.",
        ),
        lines(
            "MTU of pods", "pycni_pod_mtu_bytes$HERE", unit="bytes", text="It should be the same everywhere."
        ),
        lines(
            "Duration of passes over the pod network",
            quantile(0.9, "pycni_fabric_pass_seconds"),
            unit="s",
        ),
        lines("Entries wanted in the kernel", ("sum by (table) (pycni_fabric_entries$HERE)", "{{table}}")),
    ],
    "Pods and addresses": [
        lines(
            "CNI calls",
            (
                "sum by (operation, result) (rate(pycni_cni_calls_total$HERE[$__rate_interval]))",
                "{{operation}} {{result}}",
            ),
            unit="cps",
        ),
        lines(
            "Duration of ADD and DEL",
            (
                quantile(0.5, "pycni_cni_seconds", "le, operation", '{operation=~"ADD|DEL"$AND}'),
                "{{operation}} half",
            ),
            (
                quantile(0.99, "pycni_cni_seconds", "le, operation", '{operation=~"ADD|DEL"$AND}'),
                "{{operation}} 99 of 100",
            ),
            unit="s",
        ),
        lines(
            "Errors of CNI calls",
            (
                "sum by (operation, code) (rate(pycni_cni_errors_total$HERE[$__rate_interval]))",
                "{{operation}} code {{code}}",
            ),
            unit="cps",
        ),
        lines("Attachments", ("sum by (state) (pycni_endpoints$HERE)", "{{state}}")),
        lines(
            "Addresses in use",
            (
                'pycni_ipam_reserved{family="ipv4"$AND} / pycni_ipam_capacity{family="ipv4"$AND}',
                "{{instance}} {{network}}",
            ),
            unit="percentunit",
            text="Of the IPv4 addresses each node can give out.",
        ),
        lines(
            "Taken back by the collector",
            (
                "sum(rate(pycni_collector_endpoints_removed_total$HERE[$__rate_interval]))",
                "attachments of ended pods",
            ),
            (
                "sum(rate(pycni_collector_reservations_removed_total$HERE[$__rate_interval]))",
                "addresses nobody held",
            ),
            ("sum(rate(pycni_collector_failures_total$HERE[$__rate_interval]))", "failures"),
            unit="cps",
        ),
        lines(
            "ADD waits for policies",
            quantile(0.9, "pycni_policy_admit_seconds"),
            unit="s",
        ),
    ],
    "Services": [
        lines(
            "Services and virtual addresses",
            ("max(pycni_proxy_services$HERE)", "services"),
            ("max(pycni_proxy_frontends$HERE)", "virtual addresses"),
        ),
        lines(
            "Duration of passes",
            quantile(0.9, "kubeproxy_sync_proxy_rules_duration_seconds", "instance, le"),
            unit="s",
        ),
        lines(
            "From a change of endpoints to the kernel",
            quantile(0.9, "kubeproxy_network_programming_duration_seconds", "instance, le"),
            unit="s",
        ),
        lines(
            "Changes not yet in the kernel",
            (
                "sum by (instance) (kubeproxy_sync_proxy_rules_service_changes_pending$HERE)",
                "{{instance}} services",
            ),
            (
                "sum by (instance) (kubeproxy_sync_proxy_rules_endpoint_changes_pending$HERE)",
                "{{instance}} endpoints",
            ),
        ),
        lines(
            "Connections per second",
            (
                "topk(10, sum by (svc_namespace, service_name) (kube_router_service_cps$HERE))",
                "{{svc_namespace}}/{{service_name}}",
            ),
            unit="cps",
            text="The ten busiest services.",
        ),
        lines(
            "Traffic",
            (
                "topk(10, sum by (svc_namespace, service_name) (kube_router_service_bps_in$HERE))",
                "{{svc_namespace}}/{{service_name}} in",
            ),
            (
                "topk(10, sum by (svc_namespace, service_name) (kube_router_service_bps_out$HERE))",
                "{{svc_namespace}}/{{service_name}} out",
            ),
            unit="Bps",
            text="Counted by IPVS; nftables and eBPF count connections.",
        ),
        lines(
            "Local services without an endpoint here",
            (
                "sum by (instance, traffic_policy) (kubeproxy_sync_proxy_rules_no_local_endpoints_total$HERE)",
                "{{instance}} {{traffic_policy}}",
            ),
        ),
    ],
    "Policies and drops": [
        lines(
            "Packets denied, by reason",
            (
                "sum by (reason, direction) (rate(pycni_policy_drops_total$HERE[$__rate_interval]))",
                "{{reason}} {{direction}}",
            ),
            unit="pps",
        ),
        lines(
            "Packets denied, by policy",
            (
                "topk(10, sum by (policy, direction) (rate(pycni_policy_denied_packets_total$HERE[$__rate_interval])))",
                "{{policy}} {{direction}}",
            ),
            unit="pps",
        ),
        lines("Isolated pods", ("sum by (direction) (pycni_policy_isolated_pods$HERE)", "{{direction}}")),
        lines("Policies", ("max by (kind) (pycni_policy_policies$HERE)", "{{kind}}")),
        lines("Rules in the kernel", "pycni_policy_rules$HERE"),
        lines(
            "Duration of passes",
            quantile(0.9, "pycni_policy_pass_seconds", "instance, le"),
            unit="s",
        ),
        lines(
            "Closed addresses",
            (
                "sum by (instance, direction) (pycni_policy_closed_addresses$HERE)",
                "{{instance}} {{direction}}",
            ),
            text="Their pods are not known yet.",
        ),
        lines("Fast path judges", "pycni_policy_fast_path$HERE"),
        lines(
            "Fast path's tables in use",
            (
                "pycni_policy_fast_path_entries$HERE / pycni_policy_fast_path_limit$HERE",
                "{{instance}} {{what}}",
            ),
            unit="percentunit",
        ),
    ],
    "BGP": [
        lines(
            "Sessions", ("pycni_bgp_session_up$HERE", "{{instance}} with {{peer}}"), text="1: established."
        ),
        lines(
            "Routes",
            ("pycni_bgp_received_routes$HERE", "{{instance}} from {{peer}}"),
            ("pycni_bgp_sent_routes$HERE", "{{instance}} to {{peer}}"),
        ),
        lines(
            "Sessions lost",
            ("increase(pycni_bgp_session_downs_total$HERE[$__rate_interval])", "{{instance}} with {{peer}}"),
        ),
        lines("Prefixes to announce", "pycni_bgp_announced_prefixes$HERE"),
    ],
    "Connection tracking": [
        lines(
            "Table in use",
            "pycni_conntrack_entries$HERE / pycni_conntrack_limit$HERE",
            unit="percentunit",
            red=0.85,
        ),
        lines("Connections", "pycni_conntrack_entries$HERE"),
        lines(
            "Connections lost",
            ("rate(pycni_conntrack_dropped_total$HERE[$__rate_interval])", "{{instance}} {{reason}}"),
            unit="cps",
        ),
    ],
    "Errors and drift": [
        lines(
            "Warnings and errors logged",
            ("sum by (level) (rate(pycni_log_messages_total$HERE[$__rate_interval]))", "{{level}}"),
            unit="cps",
        ),
        lines(
            "Entries somebody had changed",
            (
                "sum by (instance, part) (rate(pycni_drift_repaired_total$HERE[$__rate_interval]))",
                "{{instance}} {{part}}",
            ),
            unit="cps",
        ),
        lines(
            "Passes that failed",
            ("rate(pycni_fabric_pass_failures_total$HERE[$__rate_interval])", "{{instance}} fabric"),
            ("rate(pycni_proxy_pass_failures_total$HERE[$__rate_interval])", "{{instance}} services"),
            ("rate(pycni_policy_pass_failures_total$HERE[$__rate_interval])", "{{instance}} policies"),
            ("rate(pycni_pass_failures_total$HERE[$__rate_interval])", "{{instance}} {{part}}"),
            unit="cps",
        ),
        lines(
            "etcd and Kubernetes API",
            ("pycni_etcd_connected$HERE", "{{instance}} etcd"),
            ("pycni_kube_connected$HERE", "{{instance}} {{kind}}"),
            text="1: followed.",
        ),
        lines(
            "Connections made anew",
            ("rate(pycni_etcd_dials_total$HERE[$__rate_interval])", "{{instance}} etcd"),
            ("rate(pycni_kube_dials_total$HERE[$__rate_interval])", "{{instance}} API"),
            unit="cps",
        ),
        lines(
            "Event loop is late by",
            quantile(0.9, "pycni_event_loop_lag_seconds"),
            unit="s",
        ),
        lines("Open file descriptors", "process_open_fds$HERE / process_max_fds$HERE", unit="percentunit"),
    ],
}


def expression(text: str) -> str:
    """A query with the variables' selector put in."""
    return text.replace("$HERE", HERE).replace("$AND", ", " + HERE[1:-1])


def panel(number_: int, made: Panel, x: int, y: int, height: int) -> dict[str, Any]:
    """A panel as Grafana has it."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if made.red is not None:
        steps = [{"color": "red" if made.good_above else "green", "value": None}]
        steps.append({"color": "green" if made.good_above else "red", "value": made.red})
    targets = [
        {
            "datasource": SOURCE,
            "refId": chr(ord("A") + index),
            "expr": expression(query.expr),
            "legendFormat": query.legend,
            **({"instant": True, "format": "table"} if made.kind == "table" else {}),
        }
        for index, query in enumerate(made.queries)
    ]
    kinds: dict[str, dict[str, Any]] = {
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"},
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "table": {"showHeader": True},
    }
    found: dict[str, Any] = {
        "id": number_,
        "type": made.kind,
        "title": made.title,
        "description": made.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": made.width, "h": height},
        "fieldConfig": {
            "defaults": {"unit": made.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": kinds[made.kind],
        "targets": targets,
    }
    if made.kind == "table":
        hidden = {"Time": True, "__name__": True, "job": True, "Value": made.unit == "short"}
        found["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return found


def panels() -> list[dict[str, Any]]:
    """All rows with their panels, left to right."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, content in ROWS.items():
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = tallest = 0
        for made in content:
            height = 4 if made.kind == "stat" else 7
            if x + made.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            found.append(panel(len(found) + 1, made, x, y, height))
            x, tallest = x + made.width, max(tallest, height)
        y += tallest
    return found


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable whose values Prometheus tells; several may be picked, at first all."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """All of it."""
    return {
        "title": "pycni",
        "uid": "pycni",
        "description": "Pod network: nodes, peers, pods, services, policies, BGP. Metrics: docs/metrics.md",
        "tags": ["pycni", "kubernetes", "network"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {
            "list": [
                {
                    "name": "agents started",
                    "enable": True,
                    "iconColor": "blue",
                    "datasource": SOURCE,
                    "expr": expression("changes(process_start_time_seconds$HERE[2m]) > 0"),
                    "titleFormat": "agent of {{instance}} started",
                }
            ]
        },
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                },
                variable("job", "job", "label_values(pycni_build_info, job)"),
                variable("instance", "node", 'label_values(pycni_build_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
