"""Which addresses Services of type LoadBalancer get from which pools. Pure.

Life: ``sources/kube_lballoc`` hands in all services whenever one changed and writes what comes out into their status.
The result depends on the services alone: addresses they have stay theirs as long as they are in a pool and nobody with
a better claim has them, so nothing moves by a restart, a new leader or a service more. Rules (kube-router's LB IPAM):

* a service is ours by its loadBalancerClass: one of ``classes`` ("" stands for services without a class),
* it gets one address of each family in spec.ipFamilies; with PreferDualStack one it cannot get is no problem,
* spec.loadBalancerIP is that address or none: another one is not given in its place,
* no two services share an address; of two that have the same one the older keeps it.

A pool's network and broadcast addresses (IPv4) and its subnet-router anycast address (IPv6) are not handed out, unless
the pool is one or two addresses small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from pycni.model.family import Address, Family, Network
from pycni.model.kube import Ingress, Service

DEFAULT_CLASSES = frozenset({"", "default", "kube-router"})
"""kube-router's: services without a class, and two names to ask for us by."""
LABEL = "LoadBalancer"


class Allocation(NamedTuple):
    """What the services of type LoadBalancer that are ours are to have."""

    ingress: Mapping[str, tuple[Ingress, ...]]
    """By service key, also for services that get nothing. Services that are not ours are not in it."""
    problems: tuple[str, ...]
    """Who cannot get what and why, one line each, sorted by service."""


def allocate(
    services: Mapping[str, Service], pools: Sequence[Network], classes: Collection[str] = DEFAULT_CLASSES
) -> Allocation:
    """Give every service its addresses; ``pools`` are used in order. Deterministic, whatever the mapping's order."""
    ours = sorted(
        ((service.meta.created, key) for key, service in services.items() if is_ours(service, classes)),
    )
    taken = _of_others(services, classes)
    kept: dict[str, dict[Family, Address]] = {}
    problems: dict[str, list[str]] = {}
    # First what everybody has, then what is asked for, then the rest: a newcomer takes nothing away from anybody.
    for _, key in ours:
        kept[key] = _keep(services[key], pools, taken)
        taken.update(dict.fromkeys(kept[key].values(), key))
    for _, key in ours:
        problem = _wish(key, services[key], pools, taken, kept[key])
        problems[key] = [problem] if problem else []
    free = {family: _free(pools, family, taken) for family in Family}
    for _, key in ours:
        service = services[key]
        for family in service.families:
            if family in kept[key] or _wishes(service, family):
                continue
            address = next(free[family], None)
            if address is not None:
                kept[key][family] = address
            elif not _optional(service, family, pools):
                problems[key].append(f"service {key}: {_exhausted(pools, family)}")
    ingress = {key: _entries(services[key], found) for key, found in kept.items()}
    return Allocation(ingress, tuple(line for key in sorted(problems) for line in problems[key]))


def _entries(service: Service, found: Mapping[Family, Address]) -> tuple[Ingress, ...]:
    """The status entries in the order of the service's families; those it has stay as they are."""
    had = {entry.ip: entry for entry in service.ingress}
    texts = [str(found[family]) for family in service.families if family in found]
    return tuple(had.get(text) or Ingress(ip=text) for text in texts)


def is_ours(service: Service, classes: Collection[str] = DEFAULT_CLASSES) -> bool:
    """Whether a service gets its addresses from us."""
    return (
        service.type == LABEL and (service.load_balancer_class or "") in classes and not service.meta.deleting
    )


def _of_others(services: Mapping[str, Service], classes: Collection[str]) -> dict[Address, str]:
    """Addresses that are somebody else's: external IPs, and those another controller gave."""
    claims: dict[Address, set[str]] = {}
    for key, service in services.items():
        others = list(service.external_ips)
        if service.type == LABEL and not is_ours(service, classes):
            others += [entry.ip for entry in service.ingress]
        for text in others:
            claims.setdefault(ip_address(text), set()).add(key)
    # Claimed by several it is nobody's own: no single key, whoever asks.
    return {address: ", ".join(sorted(keys)) for address, keys in claims.items()}


def _keep(service: Service, pools: Sequence[Network], taken: Mapping[Address, str]) -> dict[Family, Address]:
    """What a service has and may keep: one address per family it asks for."""
    kept: dict[Family, Address] = {}
    for entry in service.ingress:
        address = ip_address(entry.ip)
        family = Family.of(address)
        wish = service.load_balancer_ip
        fits = not wish or Family.of(ip_address(wish)) is not family or ip_address(wish) == address
        free = address not in taken or (
            taken[address] == service.meta.key and _own_external(service, address)
        )
        if (
            family in service.families
            and family not in kept
            and fits
            and free
            and _pool_of(pools, address) is not None
        ):
            kept[family] = address
    return kept


def _own_external(service: Service, address: Address) -> bool:
    """Whether it is the service's own external IP: sharing it with oneself hurts nobody."""
    return str(address) in service.external_ips


def _wishes(service: Service, family: Family) -> bool:
    return bool(service.load_balancer_ip) and Family.of(ip_address(service.load_balancer_ip)) is family


def _wish(
    key: str,
    service: Service,
    pools: Sequence[Network],
    taken: dict[Address, str],
    kept: dict[Family, Address],
) -> str:
    """Give a service the address it asks for; what is in the way, "" when nothing is."""
    if not service.load_balancer_ip:
        return ""
    address = ip_address(service.load_balancer_ip)
    family = Family.of(address)
    if kept.get(family) == address:
        return ""
    what = f"service {key}: spec.loadBalancerIP {address}"
    if family not in service.families:
        return f"{what}: the service has no {family.label}"
    if _pool_of(pools, address) is None:
        return f"{what} is in none of the address pools ({', '.join(map(str, pools)) or 'there are none'})"
    if address in taken and not (taken[address] == key and _own_external(service, address)):
        return f"{what} is taken by service {taken[address]}"
    taken[address] = key
    kept[family] = address
    return ""


def _optional(service: Service, family: Family, pools: Sequence[Network]) -> bool:
    """Whether a service can do without an address of this family: PreferDualStack where no pool has that family."""
    return (
        service.family_policy == "PreferDualStack"
        and len(service.families) > 1
        and all(Family.of(pool) is not family for pool in pools)
        and any(Family.of(pool) in service.families for pool in pools)
    )


def _exhausted(pools: Sequence[Network], family: Family) -> str:
    mine = [str(pool) for pool in pools if Family.of(pool) is family]
    if not mine:
        return f"there is no {family.label} address pool"
    return f"no free {family.label} address in {', '.join(mine)}"


def _pool_of(pools: Sequence[Network], address: Address) -> Network | None:
    """The pool an address can be handed out of."""
    for pool in pools:
        if pool.version == address.version and address in pool:
            first, last = _usable(pool)
            if first <= int(address) <= last:
                return pool
    return None


def _usable(pool: Network) -> tuple[int, int]:
    """First and last address handed out, as numbers."""
    first, last = int(pool.network_address), int(pool.broadcast_address)
    if last - first < 2:
        return first, last
    return first + 1, last - (pool.version == 4)


def _free(pools: Sequence[Network], family: Family, taken: Collection[Address]) -> Iterator[Address]:
    """Addresses nobody has, in order. ``taken`` is looked at as the iterator goes on; each address comes once."""
    given: set[int] = set()
    for pool in pools:
        if Family.of(pool) is not family:
            continue
        first, last = _usable(pool)
        make = type(pool.network_address)
        for number in range(first, last + 1):
            address = make(number)
            if address not in taken and number not in given:
                given.add(number)
                yield address
