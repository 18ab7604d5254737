"""Which addresses of a Service this node announces. Pure.

Life: ``announced`` is asked for every Service whose frontends changed; the sum over all Services, and the node's pod
CIDRs, are what ``rib`` hands to neighbours. The same frontends feed the proxy, so an address is announced exactly where
it is served. Flags and annotations are kube-router's (``service.advertise.*``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pycni.model.kube import Service
from pycni.model.service import Frontend, Kind
from pycni_bgp.model import Local, Prefix
from pycni_bgp.settings import BgpSettings

ANNOTATION = "kube-router.io/service.advertise."
_KEYS = {Kind.CLUSTER_IP: "clusterip", Kind.EXTERNAL_IP: "externalip", Kind.LOAD_BALANCER: "loadbalancerip"}


class Announced(NamedTuple):
    """Of one Service."""

    prefixes: dict[Prefix, Local]
    withheld: dict[Prefix, str]
    """Addresses that are not announced here, and why."""
    problems: tuple[str, ...] = ()


def announced(service: Service, frontends: Iterable[Frontend], settings: BgpSettings) -> Announced:
    """Judge the addresses of one Service by its frontends on this node."""
    problems: list[str] = []
    wanted = {kind: _wanted(service, kind, settings, problems) for kind in _KEYS}
    owner = f"Service {service.meta.key}"
    found: dict[Prefix, Local] = {}
    withheld: dict[Prefix, str] = {}
    for frontend in frontends:
        if frontend.kind not in _KEYS:
            continue
        prefix = Prefix.host(frontend.key.address)
        if not wanted[frontend.kind]:
            reason = f"{frontend.kind.label} addresses are not announced (advertise-{_flag(frontend.kind)})"
        elif frontend.local_only and not frontend.pool.targets:
            reason = "traffic policy Local, and no ready endpoint on this node"
        else:
            found[prefix] = Local(frontend.kind.label, owner)  # type: ignore[arg-type]
            continue
        withheld.setdefault(prefix, reason)
    return Announced(
        found, {prefix: why for prefix, why in withheld.items() if prefix not in found}, tuple(problems)
    )


def _wanted(service: Service, kind: Kind, settings: BgpSettings, problems: list[str]) -> bool:
    """The annotation's word before the flag's."""
    default = {
        Kind.CLUSTER_IP: settings.cluster_ips,
        Kind.EXTERNAL_IP: settings.external_ips,
        Kind.LOAD_BALANCER: settings.load_balancer_ips,
    }[kind]
    key = ANNOTATION + _KEYS[kind]
    value = service.meta.annotations.get(key)
    if value is None:
        return default
    if value in {"true", "false"}:
        return value == "true"
    problems.append(f"Service {service.meta.key}: annotation {key} {value!r}: not true or false")
    return default


def _flag(kind: Kind) -> str:
    return {Kind.CLUSTER_IP: "cluster-ip", Kind.EXTERNAL_IP: "external-ip"}.get(kind, "loadbalancer-ip")
