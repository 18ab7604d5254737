"""What this node has to be in its network, from settings, underlay, net-conf and lease. Pure.

Life: the network component hands in what it knows; ``make_plan`` gives what is to be published, and, once a lease
that fits is held, how pods are to be attached and what the firewall table holds. It raises ConfigError when the
parts do not go together; the component then stays with the plan it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

import msgspec

from pycni.agent.firewall import FirewallPlan
from pycni.backends.base import Backend, Site, pod_mtu
from pycni.backends.bgp import COMPONENT, Bgp
from pycni.backends.change import Course
from pycni.backends.masq import Masquerade, VxlanGuard
from pycni.backends.mixed import Mixed
from pycni.backends.table import backend
from pycni.errors import ConfigError
from pycni.model.fabric import Link, VxlanLink
from pycni.model.family import Family, Network
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import BackendConf, NetConf
from pycni.model.node import Node, Underlay
from pycni.model.podnet import PodNetwork


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that count here."""

    name: str
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    ip_masq: bool = False
    ip_masq_exclude: tuple[Network, ...] = ()
    ip_masq_fully_random: bool = True
    bgp: bool = False
    """Whether the component bgp runs beside."""
    services: tuple[Network, ...] = ()
    """Where Services have their addresses."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that follows from one set of inputs."""

    backend: Backend
    node: Node
    conf: NetConf
    attrs: LeaseAttrs
    """What our lease has to say."""
    others: tuple[BackendConf, ...] = ()
    """Backends besides that of ``conf``, while the network changes."""
    site: Site | None
    """None while no fitting lease is held."""
    pods: PodNetwork | None
    firewall: FirewallPlan


def make_plan(
    options: NodeOptions,
    underlay: Underlay,
    conf: NetConf,
    macs: Mapping[str, bytes],
    lease: Lease | None,
    *,
    wireguard_key: bytes = b"",
    following_key: bytes = b"",
    extension_output: str = "",
    course: Course | None = None,
) -> Plan:
    """The plan. Raises ConfigError naming what does not go together.

    ``course``: which backends the node has while it changes from one to that of the net-conf; None: only that one.
    """
    target, course = conf, course or Course(using=conf.backend)
    conf, how = msgspec.structs.replace(conf, backend=course.using), backend(course.using.type)
    if course.others:
        how = Mixed(how, course.others, course.offered, greet=course.greeting)
    if Bgp.name in {how.name, target.backend.type} and not options.bgp:
        reason = f"its routes come from component {COMPONENT}, which is not on: add it to components"
        raise ConfigError("net-conf", "Backend.Type", Bgp.name, reason)
    node = msgspec.structs.replace(
        plain_node(options, underlay),
        macs=macs,
        wireguard_key=wireguard_key,
        following_key=following_key,
        extension_output=extension_output,
    )
    if target.backend.type != conf.backend.type:
        _need(target, node, lease)
    attrs = how.published(node, conf)
    mtu = pod_mtu(how, node, conf)
    plan = Plan(
        backend=how,
        node=node,
        conf=conf,
        attrs=attrs,
        others=course.others,
        site=None,
        pods=None,
        firewall=FirewallPlan(),
    )
    if lease is None or misfit(conf, lease):
        return plan
    return _with_pods(plan, options, msgspec.structs.replace(lease, attrs=attrs), mtu)


def _with_pods(plan: Plan, options: NodeOptions, own: Lease, mtu: int) -> Plan:
    """The same with what follows from the lease that is held."""
    conf, underlay = plan.conf, plan.node.underlay
    site = Site(node=plan.node, conf=conf, own=own)
    links = plan.backend.links(site)
    pods = PodNetwork(
        subnets=tuple(_nets(own, family) for family in conf.families),
        networks=tuple(_cluster(conf, family) for family in conf.families),
        mtu=mtu,
        ip_masq=options.ip_masq,
        exits=(underlay.name, *links),
        own=underlay.on_link,
        services=options.services,
    )
    firewall = FirewallPlan(
        masquerade=_masquerade(options, conf, own) if options.ip_masq else (),
        guard=_guard(links, conf),
    )
    return msgspec.structs.replace(plan, site=site, pods=pods, firewall=firewall)


def plain_node(options: NodeOptions, underlay: Underlay) -> Node:
    """This node without what backends make for it."""
    return Node(
        name=options.name,
        underlay=underlay,
        public_ip=options.public_ip or (underlay.address.ip if underlay.address is not None else None),
        public_ipv6=options.public_ipv6 or (underlay.address6.ip if underlay.address6 is not None else None),
    )


def misfit(conf: NetConf, lease: Lease) -> str:
    """Why a lease cannot be used in this network; "" when it can."""
    for family in Family:
        cluster, own = conf.of(family), lease.of(family)
        if (cluster is None) != (own is None):
            has = (
                f"has the {family.label} subnet {own}" if own is not None else f"has no {family.label} subnet"
            )
            return f"lease {lease.key} {has}, the network's is {cluster}"
        if cluster is None or own is None:
            continue
        cut = cluster.max_prefixlen - cluster.prefixlen
        inside = int(own.network_address) >> cut == int(cluster.network_address) >> cut
        if not inside or own.prefixlen < cluster.prefixlen:
            return f"lease {lease.key}: {own} is not inside the cluster network {cluster}"
    return ""


def need_fit(conf: NetConf, lease: Lease) -> None:
    """Raise ConfigError for a net-conf under which a lease that is in use cannot stay."""
    reason = misfit(conf, lease)
    if reason:
        raise ConfigError(
            "net-conf",
            "Network",
            ", ".join(str(conf.of(family)) for family in conf.families),
            f"{reason}; drain this node and restart pycnid to move it there",
        )


def _nets(lease: Lease, family: Family) -> Network:
    net = lease.of(family)
    assert net is not None, f"lease {lease.key} fits, so it has an {family.label} subnet"
    return net


def _cluster(conf: NetConf, family: Family) -> Network:
    net = conf.of(family)
    assert net is not None, f"{family.label} is on"
    return net


def _masquerade(options: NodeOptions, conf: NetConf, own: Lease) -> tuple[Masquerade, ...]:
    return tuple(
        Masquerade(
            cluster=_cluster(conf, family),
            own=_nets(own, family),
            exclude=options.ip_masq_exclude,
            fully_random=options.ip_masq_fully_random,
        )
        for family in conf.families
    )


def _guard(links: Mapping[str, Link], conf: NetConf) -> VxlanGuard | None:
    for link in links.values():
        if isinstance(link, VxlanLink):
            return VxlanGuard(vni=link.vni, port=link.port, families=conf.families)
    return None


def _need(conf: NetConf, node: Node, lease: Lease | None) -> None:
    """Raise ConfigError for a backend this node is to change to and cannot have."""
    how = backend(conf.backend.type)
    attrs = how.published(node, conf)
    pod_mtu(how, node, conf)
    if lease is not None and not misfit(conf, lease):
        how.links(Site(node=node, conf=conf, own=msgspec.structs.replace(lease, attrs=attrs)))
