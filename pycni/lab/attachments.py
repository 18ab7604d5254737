"""How pods of a lab are joined to their nodes, and the lists of plugins that do it. Pure.

Life: ``problem`` says why a specification cannot be had, ``conflist`` becomes a file of the node, which its container
runtime reads for every pod. With pods on the underlay every node has a part of the underlay's subnet for them::

    node<i>   172.20.<100+i>.1 - 172.20.<100+i>.254    fd20::1:<i>:1 - fd20::1:<i>:ffff
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

from pycni.model.family import Family, Network

if TYPE_CHECKING:
    from pycni.lab.topology import LabSpec

NETWORK_NAME = "pycni"
SINGLE_NETWORKS: Mapping[Family, Network] = {
    Family.V4: ip_network("172.30.0.0/24"),
    Family.V6: ip_network("fd30::/64"),
}
"""Of pods on the bridge of a single host: the same on every node, as no other node knows of them."""
_GATEWAY = {Family.V4: "172.20.255.254", Family.V6: "fd20::ffff"}
"""The fabric, which is where every way out of a lab ends."""
SINGLE_BRIDGE = "single0"
SINGLE_NAME = "pycni-single"


class LabAttachment(NamedTuple):
    """One kind as a lab sees it."""

    link: str = ""
    """Kind of network device the nodes' kernel has to have; "" for none that any kernel lacks."""
    underlay: bool = False
    """Pods have addresses of the underlay and need no routes between nodes; what their nodes forward for them has to be
    masqueraded."""


ATTACHMENTS: Mapping[str, LabAttachment] = {
    "bridge": LabAttachment(),
    "ptp": LabAttachment(),
    "macvlan": LabAttachment(link="macvlan", underlay=True),
    "ipvlan": LabAttachment(link="ipvlan", underlay=True),
}
"""By the key ``attachment``."""


def problem(spec: LabSpec) -> str:
    """Why the attachment cannot be had, naming flag and value; "" when it can."""
    if spec.attach not in ATTACHMENTS:
        return f"--attach {spec.attach!r}: not one of {', '.join(ATTACHMENTS)}"
    if spec.driver == "uml" and ATTACHMENTS[spec.attach].underlay:
        return f"--attach {spec.attach!r}: guests, which have no nftables, cannot masquerade"
    return ""


def underlay_range(index: int, family: Family) -> dict[str, str]:
    """The part of the underlay's subnet that is for pods of node ``index``."""
    if family is Family.V4:
        first, last, net = f"172.20.{100 + index}.1", f"172.20.{100 + index}.254", "172.20.0.0/16"
    else:
        first, last, net = f"fd20::1:{index}:1", f"fd20::1:{index}:ffff", "fd20::/64"
    return {"subnet": net, "rangeStart": first, "rangeEnd": last, "gateway": _GATEWAY[family]}


def conflist(spec: LabSpec, index: int, data_dir: str) -> str:
    """The network configuration list of node ``index``; ``data_dir`` is its own IPAM folder."""
    ipam: dict[str, Any] = {"type": "pycni", "dataDir": data_dir}
    if ATTACHMENTS[spec.attach].underlay:
        ipam["ranges"] = [[underlay_range(index, family)] for family in spec.families]
    ours: dict[str, Any] = {
        "type": "pycni",
        "ipam": ipam,
        "capabilities": dict.fromkeys(("portMappings", "bandwidth", "ips", "ipRanges", "mac", "dns"), True),
    }
    if spec.attach == "bridge":
        # Where br_netfilter is, a pod's packet to a Service it is itself behind never leaves the bridge.
        ours["hairpinMode"] = True
    else:
        ours["attachment"] = spec.attach
    if "portmap" in spec.chain:
        ours["capabilities"] = {"bandwidth": True, "ips": True, "mac": True}
    plugins = [ours, *(_chained(kind) for kind in spec.chain)]
    # Debian's reference plugins are of specification 1.0.0.
    versions = ["0.3.1", "0.4.0", "1.0.0", *([] if spec.chain else ["1.1.0"])]
    return _listing(NETWORK_NAME, versions, plugins)


def single_conflist(spec: LabSpec, data_dir: str) -> str:
    """The list for pods on the bridge of their own node alone."""
    ours = {
        "type": "pycni",
        "bridge": SINGLE_BRIDGE,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "pycni",
            "dataDir": data_dir,
            "ranges": [[{"subnet": str(SINGLE_NETWORKS[family])}] for family in spec.families],
        },
        "capabilities": dict.fromkeys(("portMappings", "bandwidth", "ips", "mac"), True),
    }
    return _listing(SINGLE_NAME, ["1.0.0", "1.1.0"], [ours])


def _listing(name: str, versions: list[str], plugins: list[dict[str, Any]]) -> str:
    listing = {"cniVersion": "1.0.0", "cniVersions": versions, "name": name, "plugins": plugins}
    return json.dumps(listing, indent=2) + "\n"


def _chained(kind: str) -> dict[str, Any]:
    extra: dict[str, dict[str, Any]] = {
        "portmap": {"capabilities": {"portMappings": True}, "snat": True},
        "bandwidth": {"capabilities": {"bandwidth": True}},
    }
    return {"type": kind, **extra.get(kind, {})}
