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
from pycni.agent.components import COMPONENTS
from pycni.errors import ConfigError, PycniError
from pycni.model.family import Address, Network


class Setting(NamedTuple):
    """One row of the table. ``name`` is the flag; the variable is ``PYCNID_`` + NAME with underscores."""

    name: str
    kind: kinds.Kind
    default: object
    help: str
    unit: str = ""
    flannel: bool = False
    """Flannel has it under the same name, so ``FLANNELD_NAME`` is read too."""
    secret: bool = False
    hidden: bool = False
    """Not in the help text: for tests of this project."""
    shown_default: str = ""

    @property
    def field(self) -> str:
        """Attribute of ``Settings``."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, the one that counts more first."""
        ours = "PYCNID_" + self.field.upper()
        return (ours, "FLANNELD_" + self.field.upper()) if self.flannel else (ours,)


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
    vtep_probe_port: int
    cni_socket: str
    ipam_data_dir: str
    workers: int
    healthz_ip: Address
    healthz_port: int
    log_level: str
    log_format: str
    v: int

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
    Setting(
        "node-name",
        kinds.NODE_NAME,
        None,
        "Name of this node in logs and metrics; its VTEP's MAC address is derived from it.",
        shown_default="host name",
    ),
    Setting(
        "components", kinds.subset(*COMPONENTS), ("network",), "Parts of the agent that run in this process."
    ),
    Setting(
        "state-dir",
        kinds.ABSOLUTE_PATH,
        "/var/lib/pycni",
        "Records of this node's pods and its process lock. One pycnid per folder.",
    ),
    Setting(
        "etcd-endpoints",
        kinds.ENDPOINTS,
        ("http://127.0.0.1:2379",),
        "Members of the etcd cluster, tried in turn.",
        flannel=True,
    ),
    Setting(
        "etcd-prefix",
        kinds.TEXT,
        "/coreos.com/network",
        "Where the network's configuration and leases are in etcd.",
        flannel=True,
    ),
    Setting(
        "etcd-cafile",
        kinds.PATH,
        "",
        "Certificate authority that etcd's certificate is checked against; without it the system's.",
        flannel=True,
    ),
    Setting("etcd-certfile", kinds.PATH, "", "Client certificate for etcd; with etcd-keyfile.", flannel=True),
    Setting(
        "etcd-keyfile", kinds.PATH, "", "Key of the client certificate; with etcd-certfile.", flannel=True
    ),
    Setting("etcd-username", kinds.TEXT, "", "User name at etcd; with a password.", flannel=True),
    Setting(
        "etcd-password",
        kinds.SECRET,
        "",
        "Password at etcd. As a flag it shows in the process list: prefer the variable or etcd-password-file.",
        flannel=True,
        secret=True,
    ),
    Setting(
        "etcd-password-file",
        kinds.PATH,
        "",
        "File whose first line is the password at etcd.",
    ),
    Setting(
        "etcd-lease-ttl",
        kinds.integer(2, 7 * 86400),
        86400,
        "Lifetime of this node's lease. Flannel's is fixed at a day.",
        unit="s",
        hidden=True,
    ),
    Setting(
        "iface",
        kinds.NAMES,
        (),
        "External interface, by name or by one of its addresses; the first that exists is used. "
        "Without iface, iface-regex and iface-can-reach: the interface of the default route.",
        flannel=True,
    ),
    Setting(
        "iface-regex",
        kinds.REGEXES,
        (),
        "External interface by a regular expression searched in its addresses, then in its name; after iface.",
        flannel=True,
    ),
    Setting(
        "iface-can-reach",
        kinds.ADDRESS,
        None,
        "External interface: the one by which the kernel routes to this address.",
        flannel=True,
    ),
    Setting(
        "public-ip",
        kinds.IPV4,
        None,
        "IPv4 address other nodes reach this one at.",
        flannel=True,
        shown_default="the interface's",
    ),
    Setting(
        "public-ipv6",
        kinds.IPV6,
        None,
        "IPv6 address other nodes reach this one at.",
        flannel=True,
        shown_default="the interface's",
    ),
    Setting(
        "subnet-file",
        kinds.PATH,
        "/run/flannel/subnet.env",
        "File the node's subnet and MTU are written to, in flannel's format.",
        flannel=True,
    ),
    Setting(
        "subnet-lease-renew-margin",
        kinds.integer(1, 1439),
        60,
        "How long before its end the lease is renewed.",
        unit="min",
        flannel=True,
    ),
    Setting(
        "ip-masq", kinds.BOOLEAN, False, "Masquerade traffic that leaves the cluster network.", flannel=True
    ),
    Setting(
        "ip-masq-fully-random-disable",
        kinds.BOOLEAN,
        False,
        "Do not pick source ports at random when masquerading.",
        flannel=True,
    ),
    Setting(
        "ip-masq-exclude",
        kinds.NETWORKS,
        (),
        "Destinations outside the cluster network that are not masqueraded either.",
    ),
    Setting(
        "vtep-probe-port",
        kinds.integer(0, 65535),
        8473,
        "UDP port on the VTEPs by which agents ask each other through the overlay, to know that it works and to find a "
        "broken checksum offload; 0: off.",
    ),
    Setting("cni-socket", kinds.SOCKET_PATH, "/run/pycni/cni.sock", "Unix socket the CNI plugin talks to."),
    Setting(
        "ipam-data-dir",
        kinds.ABSOLUTE_PATH,
        "/var/lib/cni/networks",
        "Address reservations, in host-local's format, when the network configuration names no dataDir.",
    ),
    Setting("workers", kinds.integer(1, 64), 4, "CNI requests worked on at the same time.", unit="threads"),
    Setting(
        "healthz-ip",
        kinds.ADDRESS,
        IPv4Address("0.0.0.0"),
        "Address /healthz, /readyz and /metrics listen on.",
        flannel=True,
    ),
    Setting(
        "healthz-port",
        kinds.integer(0, 65535),
        0,
        "Port of /healthz, /readyz and /metrics; 0: off.",
        flannel=True,
    ),
    Setting(
        "log-level",
        kinds.choice("debug", "info", "warning", "error"),
        "info",
        "Least severity that is logged.",
    ),
    Setting("log-format", kinds.choice("text", "json"), "text", "Lines for people or JSON objects."),
    Setting(
        "v",
        kinds.integer(0, 10),
        0,
        "Flannel's verbosity: 4 and more is log-level debug, unless log-level is given.",
        flannel=True,
    ),
)
BY_NAME: Mapping[str, Setting] = {row.name: row for row in TABLE}


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
