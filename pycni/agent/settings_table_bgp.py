"""Settings of BGP. Rows of ``settings.TABLE``; names are kube-router's where it has the same."""

from __future__ import annotations

from ipaddress import IPv4Address

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

MAX_ASN = 2**32 - 1


def _number(low: int, high: int, what: str) -> kinds.Kind:
    one = kinds.integer(low, high)

    def parse(word: str) -> object:
        return one.parse((word,))

    return kinds.listing(f"list of {what}", parse)


ROWS: tuple[Setting, ...] = (
    Setting(
        "bgp-engine",
        kinds.choice("exabgp", "bird"),
        "exabgp",
        "Who speaks BGP. exabgp is in Python, for up to some thousand routes; bird is BIRD 2, for more, for BFD and "
        "OSPF.",
    ),
    Setting(
        "bgp-dir",
        kinds.ABSOLUTE_PATH,
        "",
        "Folder of the engine's configuration, control socket and log.",
        shown_default="bgp in state-dir",
    ),
    Setting(
        "cluster-asn",
        kinds.integer(1, MAX_ASN),
        64512,
        "AS number of nodes whose annotation kube-router.io/node.asn names none.",
    ),
    Setting("bgp-port", kinds.integer(1, 65535), 179, "Port BGP listens on.", aliases=("bgp-local-port",)),
    Setting(
        "router-id",
        kinds.IPV4,
        None,
        "BGP identifier of this node.",
        shown_default="the node's IPv4 address, else made from its name",
    ),
    Setting(
        "nodes-full-mesh",
        kinds.BOOLEAN,
        True,
        "Sessions with all nodes; off: with those of the same AS number only.",
    ),
    Setting("enable-ibgp", kinds.BOOLEAN, True, "Sessions between nodes at all."),
    Setting(
        "peer-router-ips",
        kinds.listing("list of addresses", lambda word: kinds.ADDRESS.parse((word,))),
        (),
        "Routers outside the cluster every node speaks with; annotations kube-router.io/peers are not looked at then.",
    ),
    Setting("peer-router-asns", _number(1, MAX_ASN, "AS numbers"), (), "AS numbers of peer-router-ips."),
    Setting(
        "peer-router-ports", _number(1, 65535, "ports"), (), "Ports of peer-router-ips.", shown_default="179"
    ),
    Setting(
        "peer-router-passwords-file",
        kinds.ABSOLUTE_PATH,
        "",
        "File with the MD5 passwords of peer-router-ips: base64, between commas, empty for none.",
    ),
    Setting(
        "peer-router-multihop-ttl",
        kinds.integer(0, 255),
        0,
        "How many routers away peer-router-ips may be; 0: next door.",
    ),
    Setting(
        "peer-router-ttl-security",
        kinds.BOOLEAN,
        False,
        "Take packets of routers outside only from as near as they are (RFC 5082).",
    ),
    Setting("advertise-pod-cidr", kinds.BOOLEAN, True, "Announce pod subnets to routers outside."),
    Setting("advertise-cluster-ip", kinds.BOOLEAN, False, "Announce cluster IPs to routers outside."),
    Setting("advertise-external-ip", kinds.BOOLEAN, False, "Announce external IPs to routers outside."),
    Setting(
        "advertise-loadbalancer-ip", kinds.BOOLEAN, False, "Announce load balancers' IPs to routers outside."
    ),
    Setting(
        "override-nexthop",
        kinds.BOOLEAN,
        True,
        "Route reflectors: hand what was learned outside to nodes with this node as the next hop.",
    ),
    Setting(
        "bgp-graceful-restart",
        kinds.BOOLEAN,
        True,
        "Neighbours keep this node's routes while its engine restarts (RFC 4724).",
    ),
    Setting(
        "bgp-graceful-restart-time", kinds.integer(1, 4095), 90, "For how long they keep them.", unit="s"
    ),
    Setting(
        "bgp-at-stop",
        kinds.choice("auto", "keep", "withdraw"),
        "auto",
        "What neighbours do with this node's routes when the agent is told to stop: keep them for a while, or forget "
        "them at once. auto: forget when the machine is going down or the Node object is being deleted.",
    ),
    Setting(
        "bgp-drain-unschedulable",
        kinds.BOOLEAN,
        False,
        "A node without scheduling (kubectl cordon) announces no addresses of services.",
    ),
    Setting(
        "bgp-holdtime",
        kinds.integer(3, 65535),
        90,
        "How long a silent neighbour is held for alive.",
        unit="s",
    ),
    Setting(
        "ospf",
        kinds.BOOLEAN,
        False,
        "Announce pods' subnets and services' addresses by OSPF (version 2 and 3) too, and take what it learns.",
    ),
    Setting("ospf-area", kinds.DOTTED, IPv4Address(0), "OSPF area, dotted."),
    Setting(
        "ospf-interfaces",
        kinds.NAMES,
        (),
        "Interfaces OSPF looks for neighbours on.",
        shown_default="the external interface",
    ),
    Setting(
        "ospf-hello", kinds.integer(1, 65535), 10, "Time between OSPF hellos; dead after four.", unit="s"
    ),
    Setting(
        "ospf-password-file",
        kinds.ABSOLUTE_PATH,
        "",
        "File with the password (base64) of MD5 authentication in OSPF version 2.",
    ),
)
