"""What resolving services depends on at this node: settings, the Node object, the underlay and the pod network. Pure.

Life: a component asks for the facts before every pass; other facts than before mean a full pass.
Which families services have here follows the pod network, else ``cluster-cidr``, else the node's addresses.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Network, IPv6Network

from pycni.agent.settings import Settings
from pycni.model.family import FAMILIES, Family, Network, show
from pycni.model.kube import KubeNode
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.model.service import IpvsOptions, NodeFacts

EVERYWHERE: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def node_facts(
    settings: Settings, node: KubeNode | None, underlay: Underlay | None, pods: PodNetwork | None
) -> NodeFacts:
    """The facts. ``node``: this node's object; None while there is none. ``pods``: None without a pod network."""
    networks = settings.cluster_cidr or (pods.networks if pods is not None else ())
    addresses = _addresses(node, underlay)
    present = {Family.of(net) for net in networks} or set(addresses)
    families = tuple(family for family in FAMILIES if family in present) or (Family.V4,)
    ranges = EVERYWHERE if settings.nodeport_bindon_all_ip else settings.node_port_addresses
    return NodeFacts(
        name=settings.node_name,
        zone=node.zone if node is not None else "",
        addresses=tuple(addresses[family] for family in families if family in addresses),
        node_port_ranges=tuple(net for net in ranges if Family.of(net) in families),
        cluster_networks=tuple(net for net in networks if Family.of(net) in families),
        service_networks=tuple(
            net for net in settings.service_cluster_ip_range if Family.of(net) in families
        ),
        external_ip_ranges=settings.service_external_ip_range,
        any_external_ip=not settings.strict_external_ip_validation,
        node_ports=settings.node_port_range,
        masquerade_all=settings.masquerade_all,
        uplink=underlay.name if underlay is not None else "",
        proxy_name=settings.service_proxy_name,
        families=families,
        ipvs=IpvsOptions(
            hairpin=settings.hairpin_mode,
            graceful=settings.ipvs_graceful_termination,
            graceful_s=float(settings.ipvs_graceful_period),
            permit_all=settings.ipvs_permit_all,
            excluded=settings.excluded_cidrs,
        ),
    )


def _addresses(node: KubeNode | None, underlay: Underlay | None) -> dict[Family, bytes]:
    """The primary address per family: the Node object's InternalIP, as kube-proxy has it, else the underlay's."""
    found: dict[Family, bytes] = {}
    for text in node.internal_ips if node is not None else ():
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        found.setdefault(Family.of(address), address.packed)
    for family in FAMILIES:
        own = underlay.of(family) if underlay is not None else None
        if own is not None and not own.ip.is_link_local:
            found.setdefault(family, own.ip.packed)
    return found


def differences(before: NodeFacts, after: NodeFacts) -> str:
    """What differs, for the log: ``zone 'a' -> 'b'; addresses 192.0.2.1 -> 192.0.2.7``."""
    return "; ".join(
        f"{name} {_shown(getattr(before, name))} -> {_shown(getattr(after, name))}"
        for name in before.__struct_fields__
        if getattr(before, name) != getattr(after, name)
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(show(item) if isinstance(item, bytes) else str(item) for item in value) or "none"
    return repr(value)
