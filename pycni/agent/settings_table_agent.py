"""Settings of the agent as a process: identity, CNI server, health, log. Rows of ``settings.TABLE``."""

from __future__ import annotations

from ipaddress import IPv4Address

from pycni.agent import settings_kinds as kinds
from pycni.agent.components import COMPONENTS
from pycni.agent.settings_row import Setting

ROWS: tuple[Setting, ...] = (
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
        "Address /healthz, /readyz and /metrics listen on; `::` is every address of both families.",
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
