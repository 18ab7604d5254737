"""Settings of the service proxy. Names and defaults are kube-proxy's or kube-router's where they have the setting.

Rows of ``settings.TABLE``; where a default differs from theirs docs/proxy.md says why.
"""

from __future__ import annotations

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

_DATA_PLANE: tuple[Setting, ...] = (
    Setting(
        "proxy-mode",
        kinds.choice("auto", "nftables", "ipvs", "ebpf"),
        "auto",
        "Data plane of the services. auto: ipvs where the kernel has it, else nftables.",
    ),
    Setting(
        "proxy-sync-period",
        kinds.integer(5, 86400),
        300,
        "How often the kernel's services are read back and compared with what they should be.",
        unit="s",
        aliases=("ipvs-sync-period", "iptables-sync-period"),
    ),
    Setting(
        "proxy-min-sync-period",
        kinds.integer(0, 60000),
        0,
        "Least time between two changes of the kernel; changes in between are put together. 0: each at once.",
        unit="ms",
    ),
    Setting(
        "control-socket",
        kinds.SOCKET_PATH,
        "",
        "Unix socket pycnictl asks the agent at, for root only.",
        shown_default="agent.sock beside cni-socket",
    ),
    Setting(
        "proxy-healthz-port",
        kinds.integer(0, 65535),
        10256,
        "Port of the proxy's /healthz and /livez, which load balancers ask (kube-proxy's healthz-bind-address), at "
        "healthz-ip; 0: off.",
    ),
    Setting(
        "service-metrics-limit",
        kinds.integer(0, 1000000),
        2000,
        "Metrics per service are given while there are at most this many services; 0: never.",
    ),
    Setting(
        "conntrack-tcp-be-liberal",
        kinds.BOOLEAN,
        True,
        "Set nf_conntrack_tcp_be_liberal, so that answers out of a connection's window are translated too and do not "
        "reset it; off: the switch is left as it is.",
    ),
    Setting(
        "conntrack-accounting",
        kinds.BOOLEAN,
        True,
        "Set nf_conntrack_acct, so that pycnictl top and flows know bytes and packets of services and connections; "
        "off: the switch is left as it is.",
    ),
)

_SERVICES: tuple[Setting, ...] = (
    Setting(
        "node-port-addresses",
        kinds.NETWORKS,
        (),
        "Networks whose local addresses serve node ports; without it the node's primary addresses. Loopback never.",
        aliases=("nodeport-addresses",),
    ),
    Setting(
        "nodeport-bindon-all-ip",
        kinds.BOOLEAN,
        False,
        "Serve node ports on every local address: node-port-addresses=0.0.0.0/0,::/0.",
    ),
    Setting(
        "node-port-range",
        kinds.PORT_RANGE,
        (30000, 32767),
        "Ports of node ports.",
        aliases=("service-node-port-range",),
    ),
    Setting(
        "cluster-cidr",
        kinds.NETWORKS,
        (),
        "The pods' networks: sources outside are masqueraded towards ClusterIPs.",
        shown_default="the pod network's, with the network component",
    ),
    Setting(
        "masquerade-all",
        kinds.BOOLEAN,
        False,
        "Masquerade everything that goes to a ClusterIP.",
    ),
    Setting(
        "service-cluster-ip-range",
        kinds.NETWORKS,
        (),
        "Networks ClusterIPs are from: addresses inside that no service has are dropped.",
        shown_default="not known: nothing is dropped",
    ),
    Setting(
        "service-external-ip-range",
        kinds.NETWORKS,
        (),
        "Networks external IPs may be from.",
    ),
    Setting(
        "strict-external-ip-validation",
        kinds.BOOLEAN,
        True,
        "Refuse external IPs outside service-external-ip-range; off: every external IP is taken.",
    ),
    Setting(
        "service-proxy-name",
        kinds.TEXT,
        "",
        "Only services with this label service.kubernetes.io/service-proxy-name; without it only those without.",
    ),
    Setting(
        "loadbalancer-ip-range",
        kinds.NETWORKS,
        (),
        "Networks addresses for services of type LoadBalancer are given out from.",
    ),
    Setting(
        "loadbalancer-default-class",
        kinds.BOOLEAN,
        True,
        "Give addresses to services without loadBalancerClass too; else only to those of class kube-router.",
    ),
    Setting(
        "run-loadbalancer",
        kinds.BOOLEAN,
        False,
        "Give out addresses for services of type LoadBalancer; one agent of the cluster does at a time.",
    ),
)

_IPVS: tuple[Setting, ...] = (
    Setting(
        "hairpin-mode",
        kinds.BOOLEAN,
        False,
        "Accepted for kube-router's sake: endpoints always reach themselves through their service here.",
    ),
    Setting(
        "ipvs-graceful-termination",
        kinds.BOOLEAN,
        True,
        "ipvs: keep connections to endpoints that end until they close or ipvs-graceful-period is over.",
    ),
    Setting(
        "ipvs-graceful-period",
        kinds.integer(0, 86400),
        30,
        "ipvs: how long connections to an ended endpoint are kept.",
        unit="s",
    ),
    Setting(
        "ipvs-permit-all",
        kinds.BOOLEAN,
        True,
        "ipvs: accept traffic to services in INPUT before the rules of others.",
    ),
    Setting(
        "excluded-cidrs",
        kinds.NETWORKS,
        (),
        "ipvs: networks whose virtual servers are left alone.",
        aliases=("ipvs-exclude-cidrs",),
    ),
)

ROWS: tuple[Setting, ...] = _DATA_PLANE + _SERVICES + _IPVS
