"""The metrics as text: the tables of docs/metrics.md. Pure.

Life: made from what a registry describes, so that name, kind, labels and meaning stand in one place, where the metric
is made; here is only in which section it belongs and who else has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pycni.agent.metrics import Description


class Area(NamedTuple):
    """A section of the table."""

    title: str
    when: str
    """Which agents have these metrics."""
    prefixes: tuple[str, ...]


AREAS = (
    Area("Pods and CNI calls", "component `network`", ("pycni_cni_", "pycni_endpoints", "pycni_pod_repairs")),
    Area("Addresses", "component `network`", ("pycni_ipam_", "pycni_collector_")),
    Area(
        "Fabric and peers",
        "component `network`",
        (
            "pycni_fabric_",
            "pycni_network_info",
            "pycni_pod_mtu",
            "pycni_underlay_",
            "pycni_udp_",
            "pycni_checksum_",
        ),
    ),
    Area(
        "Leases and etcd",
        "component `network`; with `kube-subnet-mgr` only `pycni_leases`",
        ("pycni_lease", "pycni_etcd_"),
    ),
    Area(
        "Kubernetes API",
        "components that follow objects there; `pycni_kube_nodes_*` with `kube-subnet-mgr`",
        ("pycni_kube_",),
    ),
    Area(
        "Services",
        "component `proxy`; `kube_router_service_*` up to `service-metrics-limit` services",
        ("kubeproxy_", "kube_router_service_", "pycni_proxy_"),
    ),
    Area("Load-balancer addresses", "component `proxy` with `run-loadbalancer`", ("pycni_loadbalancer_",)),
    Area("Policies and drops", "component `policy`", ("pycni_policy_", "kube_router_controller_policy_")),
    Area("BGP", "component `bgp`", ("pycni_bgp_", "kube_router_controller_bgp_")),
    Area("Connection tracking and devices", "every agent", ("pycni_conntrack_", "pycni_device_")),
    Area("The agent", "every agent", ("pycni_", "process_")),
)
"""A metric belongs to the first area that has a prefix of its name."""

ELSEWHERE = {
    "kubeproxy_": "kube-proxy, this name",
    "kube_router_": "kube-router, this name",
    "process_threads": "",
    "process_": "Prometheus' client libraries, this name",
    "pycni_conntrack_entries": "node exporter: `node_nf_conntrack_entries`",
    "pycni_conntrack_limit": "node exporter: `node_nf_conntrack_entries_limit`",
    "pycni_conntrack_dropped_total": "node exporter: `node_nf_conntrack_stat_drop` ...",
    "pycni_device_bytes_total": "node exporter: `node_network_receive_bytes_total` ...",
    "pycni_device_packets_total": "node exporter: `node_network_receive_packets_total` ...",
    "pycni_device_errors_total": "node exporter: `node_network_receive_errs_total` ...",
    "pycni_device_drops_total": "node exporter: `node_network_receive_drop_total` ...",
}
"""Who has a metric, or the same under another name, by the beginning of the name; the first that fits."""


def area_of(name: str) -> Area:
    """The section a metric is in."""
    return next(area for area in AREAS if name.startswith(area.prefixes))


def elsewhere(name: str) -> str:
    """Who else has it."""
    return next((text for prefix, text in ELSEWHERE.items() if name.startswith(prefix)), "")


def metrics_markdown(described: Iterable[Description]) -> str:
    """The tables of docs/metrics.md."""
    rows: dict[Area, list[str]] = {area: [] for area in AREAS}
    for item in sorted(described):
        labels = ", ".join(f"`{label}`" for label in item.labels)
        cells = (f"`{item.name}`", item.kind, labels, item.text, elsewhere(item.name))
        rows[area_of(item.name)].append("| " + " | ".join(cells) + " |")
    lines = []
    for area, found in rows.items():
        if found:
            lines += [f"### {area.title}", "", f"Of: {area.when}.", ""]
            lines += ["| metric | type | labels | meaning | elsewhere |", "|---|---|---|---|---|", *found, ""]
    return "\n".join(lines)
