"""From one service port and its pools to frontends. Pure; part of ``services``.

Frontends of one port share their ``Pool``, ``Options`` and ``PortName`` objects: at 10,000 services that is most of
what they would weigh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from pycni.model.family import Family, Network
from pycni.model.kube import PROTOCOL_NAMES, Service, ServicePortSpec
from pycni.model.service import Frontend, FrontendKey, Kind, Options, Pool, PortName
from pycni.view.service_addresses import Addresses
from pycni.view.service_endpoints import Choice
from pycni.view.service_options import Wishes

NODE_PORT_TYPES = frozenset({"NodePort", "LoadBalancer"})


class Plan(NamedTuple):
    """What all ports of a service have in common."""

    service: Service
    wishes: Wishes
    internal_local: bool
    external_local: bool
    ranges: Mapping[Family, tuple[Network, ...]] | None
    direct: Options
    """For addresses that may be served by direct server return; the same object as ``wishes.options`` otherwise."""


def plan(service: Service, wishes: Wishes, ranges: Mapping[Family, tuple[Network, ...]] | None) -> Plan:
    """Settle the policies."""
    options = wishes.options
    return Plan(
        service=service,
        wishes=wishes,
        internal_local=service.internal_local or wishes.local,
        external_local=service.external_local or wishes.local,
        ranges=ranges,
        direct=msgspec.structs.replace(options, dsr=wishes.dsr) if wishes.dsr else options,
    )


def port_frontends(
    common: Plan,
    port: ServicePortSpec,
    mine: Addresses,
    choice: Choice,
    problems: list[str],
) -> Iterator[Frontend]:
    """The frontends of one port in one family, the more restricted kinds first."""
    meta, options = common.service.meta, common.wishes.options
    name = PortName(meta.namespace, meta.name, port.name)
    protocol, number = port.protocol, port.port
    yield Frontend(
        key=FrontendKey(mine.family, mine.cluster, protocol, number),
        kind=Kind.CLUSTER_IP,
        name=name,
        pool=choice.local if common.internal_local else choice.cluster,
        local_only=common.internal_local,
        options=options,
    )
    node_port = bool(port.node_port) and common.service.type in NODE_PORT_TYPES
    if not (node_port or mine.load_balancer or mine.external):
        return
    local = common.external_local
    pool = choice.local if local else choice.cluster
    inside = choice.cluster if local else None
    if node_port:
        yield Frontend(
            key=FrontendKey(mine.family, b"", protocol, port.node_port),
            kind=Kind.NODE_PORT,
            name=name,
            pool=pool,
            inside=inside,
            local_only=local,
            options=options,
        )
    direct = common.direct
    if direct is not options and (mine.load_balancer or mine.external):
        direct = _direct(direct, options, port, (pool,) if inside is None else (pool, inside), problems)
    for kind, addresses in ((Kind.LOAD_BALANCER, mine.load_balancer), (Kind.EXTERNAL_IP, mine.external)):
        ranges = None
        if kind is Kind.LOAD_BALANCER and common.ranges is not None:
            ranges = common.ranges[mine.family]
        for address in addresses:
            yield Frontend(
                key=FrontendKey(mine.family, address, protocol, number),
                kind=kind,
                name=name,
                pool=pool,
                inside=inside,
                local_only=local,
                source_ranges=ranges,
                options=direct,
            )


def _direct(
    direct: Options, options: Options, port: ServicePortSpec, pools: tuple[Pool, ...], problems: list[str]
) -> Options:
    """Direct server return hands packets on unchanged: it cannot serve a port whose targets listen on another."""
    for pool in pools:
        for target in pool.targets:
            if target.port != port.port:
                line = (
                    f"annotation kube-router.io/service.dsr: port {port.port}/{PROTOCOL_NAMES[port.protocol]} leads to"
                    f" port {target.port}, which direct server return cannot translate; served without"
                )
                if line not in problems:
                    problems.append(line)
                return options
    return direct
