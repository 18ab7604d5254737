"""From the agent's settings to those of BGP; reads the file of passwords."""

from __future__ import annotations

from pycni.agent.settings import Settings
from pycni.errors import ConfigError
from pycni_bgp.annotations import PeerWish, UnusableError, decoded_password
from pycni_bgp.model import PORT, Secret
from pycni_bgp.settings import BgpSettings, OspfSettings


def bgp_settings(settings: Settings) -> BgpSettings:
    """Raises ConfigError for passwords that cannot be read or used."""
    return BgpSettings(
        asn=settings.cluster_asn,
        full_mesh=settings.nodes_full_mesh,
        internal=settings.enable_ibgp,
        peers=_peers(settings),
        multihop=settings.peer_router_multihop_ttl,
        ttl_security=settings.peer_router_ttl_security,
        pod_cidrs=settings.advertise_pod_cidr,
        cluster_ips=settings.advertise_cluster_ip,
        external_ips=settings.advertise_external_ip,
        load_balancer_ips=settings.advertise_loadbalancer_ip,
        next_hop_self=settings.override_nexthop,
        graceful=settings.bgp_graceful_restart,
        restart_s=settings.bgp_graceful_restart_time,
        hold_s=settings.bgp_holdtime,
        drain_unschedulable=settings.bgp_drain_unschedulable,
        service_networks=(
            *settings.service_cluster_ip_range,
            *settings.service_external_ip_range,
            *settings.loadbalancer_ip_range,
        ),
        ospf=_ospf(settings) if settings.ospf else None,
    )


def _ospf(settings: Settings) -> OspfSettings:
    return OspfSettings(
        area=str(settings.ospf_area),
        interfaces=settings.ospf_interfaces,
        hello_s=settings.ospf_hello,
        dead_s=settings.ospf_hello * 4,
        password=_passwords("ospf-password-file", settings.ospf_password_file, 1)[0],
    )


def _peers(settings: Settings) -> tuple[PeerWish, ...]:
    count = len(settings.peer_router_ips)
    ports = settings.peer_router_ports or (PORT,) * count
    passwords = _passwords("peer-router-passwords-file", settings.peer_router_passwords_file, count)
    rows = zip(settings.peer_router_ips, settings.peer_router_asns, ports, passwords, strict=True)
    return tuple(
        PeerWish(address=address.packed, asn=asn, port=port, password=password)
        for address, asn, port, password in rows
    )


def _passwords(setting: str, path: str, count: int) -> list[Secret | None]:
    if not path:
        return [None] * count

    def wrong(reason: str) -> ConfigError:
        return ConfigError("settings", setting, path, reason)

    try:
        with open(path, encoding="utf-8") as file:
            words = [word.strip() for word in file.read().strip().split(",")]
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(getattr(error, "strerror", None) or "not text") from error
    if len(words) != count:
        raise wrong(f"{len(words)} passwords, {count} wanted")
    try:
        return [decoded_password(word) if word else None for word in words]
    except UnusableError as error:
        raise wrong(str(error)) from None
