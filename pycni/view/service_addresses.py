"""At which addresses a service is to be reached, and which of those asked for are refused. Pure; part of ``services``.

Life: ``addresses`` reads a Service once and gives, per family the service and the node have in common, its cluster IP,
external IPs and load-balancer addresses, packed. External IPs are refused unless an administrator allowed them, because
whoever may create a Service could otherwise take over any address (CVE-2020-8554).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pycni.model.family import Address, Family, Network
from pycni.model.kube import Service
from pycni.model.service import NodeFacts
from pycni.view.service_endpoints import packed

HEADLESS = "None"


class Addresses(NamedTuple):
    """The addresses of a service in one family."""

    family: Family
    cluster: bytes
    external: tuple[bytes, ...] = ()
    load_balancer: tuple[bytes, ...] = ()


def addresses(
    service: Service, facts: NodeFacts, problems: list[str], *, skip_load_balancer: bool
) -> dict[Family, Addresses]:
    """By family, only families of the node in which the service has a cluster IP (kube-proxy's condition)."""
    mine: dict[Family, Addresses] = {}
    for text in service.cluster_ips:
        family = Family.V6 if ":" in text else Family.V4
        if family not in facts.families or (service.families and family not in service.families):
            continue
        try:
            mine.setdefault(family, Addresses(family, packed(text)))
        except ValueError:
            problems.append(f"spec.clusterIPs {text!r}: not an address")
    if not mine:
        return mine
    if service.external_ips:
        for text in service.external_ips:
            _add_external(text, mine, service, facts, problems)
    if service.ingress and service.type == "LoadBalancer" and not skip_load_balancer:
        for ingress in service.ingress:
            if not ingress.proxy:
                _add_load_balancer(ingress.ip, mine, facts, problems)
    return mine


def _accepted(
    text: str, where: str, mine: Mapping[Family, Addresses], facts: NodeFacts, problems: list[str]
) -> Address | None:
    """An address a service asks for, if this node can have it; ``where`` it stands in the object."""
    address = _parsed(text)
    if address is None:
        problems.append(f"{where} {text!r}: not an address")
        return None
    family = Family.of(address)
    if family not in facts.families:
        return None
    if family not in mine:
        problems.append(f"{where} {text}: the service has no cluster IP of family {family.label}")
        return None
    return address


def _add_external(
    text: str, mine: dict[Family, Addresses], service: Service, facts: NodeFacts, problems: list[str]
) -> None:
    address = _accepted(text, "spec.externalIPs", mine, facts, problems)
    if address is None:
        return
    reason = refused(address, service.cluster_ips, facts)
    if reason:
        problems.append(f"spec.externalIPs {text}: {reason}")
        return
    have = mine[Family.of(address)]
    if address.packed not in have.external:
        mine[have.family] = have._replace(external=(*have.external, address.packed))


def _add_load_balancer(
    text: str, mine: dict[Family, Addresses], facts: NodeFacts, problems: list[str]
) -> None:
    address = _accepted(text, "status.loadBalancer.ingress", mine, facts, problems)
    if address is None:
        return
    have = mine[Family.of(address)]
    if address.packed not in have.load_balancer:
        mine[have.family] = have._replace(load_balancer=(*have.load_balancer, address.packed))


def refused(address: Address, cluster_ips: Collection[str], facts: NodeFacts) -> str:
    """Why an external IP may not be served, "" when it may."""
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
        return "not an address that can be routed to"
    if str(address) in cluster_ips:
        return "it is the service's cluster IP"
    if _inside(address, facts.service_networks):
        return "inside service-cluster-ip-range"
    if facts.any_external_ip:
        return ""
    if address.packed in facts.addresses:
        return "it is the node's own address"
    if _inside(address, facts.cluster_networks):
        return "inside the pods' networks"
    if not _inside(address, facts.external_ip_ranges):
        return "outside service-external-ip-range"
    return ""


def source_ranges(service: Service, problems: list[str]) -> dict[Family, tuple[Network, ...]] | None:
    """Ranges of spec.loadBalancerSourceRanges by family, both present; None without any: everybody may come.

    A family of which none is given lets nobody in, and so does a value that is no network.
    """
    if not service.source_ranges:
        return None
    found: dict[Family, set[Network]] = {Family.V4: set(), Family.V6: set()}
    for text in service.source_ranges:
        try:
            network = ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            problems.append(f"spec.loadBalancerSourceRanges {text!r}: not a network")
            continue
        found[Family.of(network)].add(network)
    return {
        family: tuple(sorted(networks, key=lambda net: (net.network_address.packed, net.prefixlen)))
        for family, networks in found.items()
    }


def _parsed(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _inside(address: Address, networks: Collection[Network]) -> bool:
    return any(address in network for network in networks)
