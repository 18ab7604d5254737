"""The agent's settings: one table, one frozen value.

Life: ``settings_file`` collects what the command line, the environment and the configuration file give as
words; ``resolve`` picks per setting the source of highest precedence (flag, environment, file, default), lets the
setting's kind turn the words into a value, checks the settings against each other and returns ``Settings``, or
raises ``SettingsError`` with *all* problems, one line each. Names are flannel's where they mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

import msgspec

from pycni.agent import settings_kinds as kinds
from pycni.agent import (
    settings_table_agent,
    settings_table_bgp,
    settings_table_kube,
    settings_table_network,
    settings_table_policy,
    settings_table_proxy,
    settings_table_trace,
)
from pycni.agent.settings_row import Setting
from pycni.errors import ConfigError, PycniError
from pycni.model.family import Address, Network


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of the agent, checked. Units are in ``TABLE``."""

    node_name: str
    components: tuple[str, ...]
    state_dir: str
    etcd_endpoints: tuple[str, ...]
    """Complete URLs: scheme, host and port; either all http or all https."""
    etcd_prefix: str
    """Without a slash at its end."""
    etcd_cafile: str
    etcd_certfile: str
    etcd_keyfile: str
    etcd_username: str
    etcd_password: str
    etcd_password_file: str
    etcd_lease_ttl: int
    iface: tuple[str, ...]
    iface_regex: tuple[str, ...]
    iface_can_reach: Address | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    subnet_file: str
    subnet_lease_renew_margin: int
    ip_masq: bool
    ip_masq_fully_random_disable: bool
    ip_masq_exclude: tuple[Network, ...]
    follow_backend: bool
    wireguard_key_period: int
    vtep_probe_port: int
    cni_socket: str
    ipam_data_dir: str
    workers: int
    healthz_ip: Address
    healthz_port: int
    log_level: str
    log_format: str
    v: int
    manifest_dir: str
    kubeconfig: str
    kube_api_url: str
    kube_subnet_mgr: bool
    kube_annotation_prefix: str
    set_node_network_unavailable: bool
    net_config_path: str
    proxy_mode: str
    proxy_sync_period: int
    proxy_min_sync_period: int
    control_socket: str
    proxy_healthz_port: int
    service_metrics_limit: int
    conntrack_tcp_be_liberal: bool
    conntrack_accounting: bool
    node_port_addresses: tuple[Network, ...]
    nodeport_bindon_all_ip: bool
    node_port_range: tuple[int, int]
    """First and last."""
    cluster_cidr: tuple[Network, ...]
    masquerade_all: bool
    service_cluster_ip_range: tuple[Network, ...]
    service_external_ip_range: tuple[Network, ...]
    strict_external_ip_validation: bool
    service_proxy_name: str
    loadbalancer_ip_range: tuple[Network, ...]
    loadbalancer_default_class: bool
    run_loadbalancer: bool
    hairpin_mode: bool
    ipvs_graceful_termination: bool
    ipvs_graceful_period: int
    ipvs_permit_all: bool
    excluded_cidrs: tuple[Network, ...]
    policy: str
    policy_xdp: str
    policy_spoof_check: bool
    policy_net_admin: str
    policy_sync_period: int
    policy_metrics_limit: int
    bgp_engine: str
    bgp_dir: str
    cluster_asn: int
    bgp_port: int
    router_id: IPv4Address | None
    nodes_full_mesh: bool
    enable_ibgp: bool
    peer_router_ips: tuple[Address, ...]
    peer_router_asns: tuple[int, ...]
    peer_router_ports: tuple[int, ...]
    peer_router_passwords_file: str
    peer_router_multihop_ttl: int
    peer_router_ttl_security: bool
    advertise_pod_cidr: bool
    advertise_cluster_ip: bool
    advertise_external_ip: bool
    advertise_loadbalancer_ip: bool
    override_nexthop: bool
    bgp_graceful_restart: bool
    bgp_graceful_restart_time: int
    bgp_at_stop: str
    bgp_drain_unschedulable: bool
    bgp_holdtime: int
    ospf: bool
    ospf_area: IPv4Address
    ospf_interfaces: tuple[str, ...]
    ospf_hello: int
    ospf_password_file: str
    trace_listen: str
    """``address:port``; "": off."""
    trace_auth: tuple[str, ...]
    trace_tls_cert: str
    trace_tls_key: str
    trace_tls_ca: str
    trace_allowed_names: tuple[str, ...]
    trace_server_name: str

    def __repr__(self) -> str:
        """All fields; secrets are not shown."""
        secret = {row.field for row in TABLE if row.secret}
        parts = (
            f"{name}={'(hidden)' if name in secret and value else repr(value)}"
            for name, value in ((name, getattr(self, name)) for name in self.__struct_fields__)
        )
        return f"Settings({', '.join(parts)})"

    @property
    def renew_margin_seconds(self) -> float:
        """How long before its expiry a lease is renewed; half the lifetime when that is shorter than the margin."""
        margin = self.subnet_lease_renew_margin * 60.0
        return margin if margin < self.etcd_lease_ttl else self.etcd_lease_ttl / 2


TABLE: tuple[Setting, ...] = (
    *settings_table_agent.ROWS,
    *settings_table_network.ROWS,
    *settings_table_kube.ROWS,
    *settings_table_proxy.ROWS,
    *settings_table_policy.ROWS,
    *settings_table_bgp.ROWS,
    *settings_table_trace.ROWS,
)
BY_NAME: Mapping[str, Setting] = {row.name: row for row in TABLE}
ALIASES: Mapping[str, str] = {alias: row.name for row in TABLE for alias in row.aliases}
"""Other programs' names and ours."""


class Given(NamedTuple):
    """A setting as one source gives it. ``where``: "flag", "environment FLANNELD_IFACE", "/etc/pycni.toml"."""

    name: str
    words: kinds.Words
    where: str


class SettingsError(PycniError):
    """The agent cannot start with these settings; ``problems`` lists every one of them."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


def resolve(sources: Sequence[Sequence[Given]], hostname: str) -> Settings:
    """Settings from sources, highest precedence first.

    Errors: ``SettingsError`` with one ConfigError per wrong value and per contradiction.
    """
    problems: list[ConfigError] = []
    values: dict[str, Any] = {row.field: row.default for row in TABLE}
    where: dict[str, str] = {}
    for given in (item for source in reversed(sources) for item in source):
        row = BY_NAME[given.name]
        try:
            values[row.field] = row.kind.parse(given.words)
        except ValueError as exc:
            shown = "(hidden)" if row.secret else given.words[0] if len(given.words) == 1 else given.words
            problems.append(ConfigError(given.where, given.name, shown, str(exc)))
        where[given.name] = given.where
    if "node-name" not in where:
        values["node_name"] = _own_name(hostname, problems)
    if "log-level" not in where and isinstance(values["v"], int) and values["v"] >= 4:
        values["log_level"] = "debug"
    wrong_groups = {problem.field.partition("-")[0] for problem in problems}
    problems += [
        clash for clash in _contradictions(values, where) if clash.field.partition("-")[0] not in wrong_groups
    ]
    if problems:
        raise SettingsError(problems)
    values["etcd_endpoints"] = _complete(values)
    values["etcd_prefix"] = str(values["etcd_prefix"]).rstrip("/")
    if not values["control_socket"]:
        values["control_socket"] = str(values["cni_socket"]).rpartition("/")[0] + "/agent.sock"
    if not values["bgp_dir"]:
        values["bgp_dir"] = f"{values['state_dir']}/bgp"
    return Settings(**values)


def _own_name(hostname: str, problems: list[ConfigError]) -> object:
    try:
        return kinds.NODE_NAME.parse((hostname,))
    except ValueError as exc:
        problems.append(ConfigError("host name", "node-name", hostname, f"{exc}; give --node-name"))
        return ""


def _complete(values: Mapping[str, object]) -> tuple[str, ...]:
    """Endpoints with a scheme each: https when certificates are configured, as etcd's own client decides."""
    endpoints = values["etcd_endpoints"]
    assert isinstance(endpoints, tuple)
    scheme = "https" if values["etcd_cafile"] or values["etcd_certfile"] else "http"
    full = (item if "://" in item else f"{scheme}://{item}" for item in endpoints)
    return tuple(dict.fromkeys(full))


def _contradictions(values: Mapping[str, object], where: Mapping[str, str]) -> list[ConfigError]:
    """Settings that are right by themselves and wrong together (within one group: etcd-*, iface-*)."""
    found: list[ConfigError] = []

    def clash(name: str, reason: str) -> None:
        row = BY_NAME[name]
        value = "(hidden)" if row.secret else values[row.field]
        shown = str(value) if isinstance(value, IPv4Address | IPv6Address) else value
        found.append(ConfigError(where.get(name, "default"), name, shown, reason))

    def together(first: str, second: str) -> None:
        if values[BY_NAME[first].field] and not values[BY_NAME[second].field]:
            clash(first, f"needs {second} too")

    together("etcd-certfile", "etcd-keyfile")
    together("etcd-keyfile", "etcd-certfile")
    together("run-loadbalancer", "loadbalancer-ip-range")
    for name in ("trace-tls-cert", "trace-tls-key", "trace-tls-ca"):
        together("trace-listen", name)
    routers = values["peer_router_ips"]
    assert isinstance(routers, tuple)
    for name in ("peer-router-asns", "peer-router-ports"):
        listed = values[BY_NAME[name].field]
        assert isinstance(listed, tuple)
        if len(listed) != len(routers) and (listed or name == "peer-router-asns"):
            clash(name, f"{len(listed)} for {len(routers)} peer-router-ips")
    if values["run_loadbalancer"] and values["manifest_dir"]:
        clash(
            "run-loadbalancer",
            "given together with manifest-dir: addresses are written to the Kubernetes API",
        )
    if values["etcd_username"] and not (values["etcd_password"] or values["etcd_password_file"]):
        clash("etcd-username", "needs etcd-password or etcd-password-file too")
    for name in ("etcd-password", "etcd-password-file"):
        together(name, "etcd-username")
    if values["etcd_password"] and values["etcd_password_file"]:
        clash("etcd-password-file", "given together with etcd-password")
    if values["iface_can_reach"] is not None and (values["iface"] or values["iface_regex"]):
        clash("iface-can-reach", "given together with iface or iface-regex")
    if not str(values["etcd_prefix"]).strip("/"):
        clash("etcd-prefix", "names no key")
    schemes = {endpoint.partition("://")[0] for endpoint in _complete(values)}
    if len(schemes) > 1:
        clash("etcd-endpoints", "mixes http and https")
    elif schemes == {"http"}:
        for name in ("etcd-cafile", "etcd-certfile"):
            if values[BY_NAME[name].field]:
                clash(name, "given together with http endpoints")
    return found
