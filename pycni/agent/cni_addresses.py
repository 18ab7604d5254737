"""Addresses of an attachment: from our own pools or from a delegated plugin, behind one pair of calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from pycni.agent.cni_ports import IpamFactory
from pycni.agent.delegate import Delegates
from pycni.errors import CniError, IpamError
from pycni.ipam.allocate import Allocation, RangeSets
from pycni.model.cni import AddressRange, Dns, PluginConf, Request, RouteConf
from pycni.model.endpoint import Owner
from pycni.model.podnet import PodNetwork
from pycni.wire.cnifields import last_usable
from pycni.wire.cniipam import parse_resolv_conf

log = logging.getLogger("pycni.cni")

EXHAUSTED_WAIT_S = 3.0
"""How long ADD waits for addresses whose links are just being removed."""


class Addressing(NamedTuple):
    """What IPAM gave. ``routes`` None: those of the configuration."""

    allocations: tuple[Allocation, ...] = ()
    routes: tuple[RouteConf, ...] | None = None
    dns: Dns = Dns()


class AddressSource:
    """Allocates and looks after reservations; releasing is ``cni_removal``'s."""

    def __init__(
        self, ipam: IpamFactory, delegates: Delegates, removal_ended: Callable[[float], bool]
    ) -> None:
        """``removal_ended(seconds)``: wait for any removal under way to end; False when there is none."""
        self._ipam = ipam
        self._delegates = delegates
        self._removal_ended = removal_ended

    def allocate(
        self, owner: Owner, conf: PluginConf, request: Request, podnet: PodNetwork | None
    ) -> Addressing:
        """The pod's addresses. On failure nothing stays reserved."""
        if conf.layer2_only:
            return Addressing()
        if conf.ipam.type:
            return self._delegated(conf, request)
        sets = range_sets(conf, podnet)
        allocations = self._reserve(owner, conf, sets)
        try:
            dns = _resolv_conf(conf.ipam.resolv_conf)
        except BaseException:
            self._ipam(conf.ipam.data_dir, conf.name).release(owner)
            raise
        return Addressing(allocations, None, dns)

    def _reserve(self, owner: Owner, conf: PluginConf, sets: RangeSets) -> tuple[Allocation, ...]:
        pool = self._ipam(conf.ipam.data_dir, conf.name)
        deadline = time.monotonic() + EXHAUSTED_WAIT_S
        while True:
            try:
                return pool.reserve(owner, sets, conf.ipam.requested)
            except IpamError as exc:
                left_s = deadline - time.monotonic()
                if exc.exhausted and left_s > 0 and self._removal_ended(left_s):
                    continue
                raise _ipam_error(exc, conf) from exc

    def _delegated(self, conf: PluginConf, request: Request) -> Addressing:
        plugin = conf.ipam.type
        try:
            result = self._delegates.add(plugin, request, conf.cni_version)
            if not result.ips:
                msg = f"ipam plugin {plugin} returned no address"
                raise CniError(CniError.INVALID_NETWORK_CONFIG, msg)
        except CniError:
            # Section 4: "If, on ADD, a delegated plugin fails, the upper plugin should execute again with DEL".
            try:
                self._delegates.delete(plugin, request)
            except CniError as err:
                log.warning("network %s container %s: %s", conf.name, request.container_id, err)
            raise
        allocations = tuple(Allocation(item.address, item.gateway) for item in result.ips)
        return Addressing(allocations, result.routes, result.dns)

    def check(self, owner: Owner, conf: PluginConf, request: Request) -> list[str]:
        """What is wrong with the reservation, for CHECK. A delegate's error is raised."""
        if conf.layer2_only:
            return []
        if conf.ipam.type:
            self._delegates.check(conf.ipam.type, request)
            return []
        held = set(self._ipam(conf.ipam.data_dir, conf.name).addresses(owner))
        if not held:
            return ["no address is reserved for it"]
        shown = conf.prev_result.ips if conf.prev_result is not None else ()
        return [
            f"{address} is reserved but not in prevResult"
            for address in held - {item.address.ip for item in shown}
        ]

    def status(self, conf: PluginConf, request: Request, podnet: PodNetwork | None, *, freeing: bool) -> None:
        """CniError 50 when no pod could get its addresses now; ``freeing``: some are about to become free."""
        if conf.layer2_only:
            return
        if conf.ipam.type:
            self._delegates.status(conf.ipam.type, request, conf.cni_version)
            return
        sets = range_sets(conf, podnet)
        for ranges, found in zip(sets, self._ipam(conf.ipam.data_dir, conf.name).status(sets), strict=True):
            if found.free == 0 and not freeing:
                shown = ", ".join(f"{item.start}-{item.end}" for item in ranges)
                msg = f"network {conf.name} has no free address in {shown}"
                raise CniError(CniError.UNAVAILABLE, msg, f"{found.used} are in use")


def range_sets(conf: PluginConf, podnet: PodNetwork | None) -> RangeSets:
    """The configuration's ranges, or one set per subnet of the node's lease."""
    if conf.ipam.range_sets:
        return conf.ipam.range_sets
    return lease_ranges(podnet)


def lease_ranges(podnet: PodNetwork | None) -> RangeSets:
    """One set per subnet of the node's lease."""
    return () if podnet is None else _lease_sets(podnet)


@lru_cache(maxsize=8)
def _lease_sets(podnet: PodNetwork) -> RangeSets:
    return tuple(
        (
            AddressRange(
                subnet=subnet,
                start=subnet.network_address + 1,
                end=last_usable(subnet),
                gateway=subnet.network_address + 1,
            ),
        )
        for subnet in podnet.subnets
    )


def _ipam_error(exc: IpamError, conf: PluginConf) -> CniError:
    """11 while addresses may become free, 5 for files, 7 when what was asked for cannot be had."""
    if exc.exhausted:
        return CniError(CniError.TRY_AGAIN_LATER, str(exc))
    if isinstance(exc.__cause__, OSError):
        return CniError(CniError.IO_FAILURE, str(exc))
    code = CniError.INVALID_NETWORK_CONFIG if conf.ipam.requested else CniError.TRY_AGAIN_LATER
    return CniError(code, str(exc))


def _resolv_conf(path: str) -> Dns:
    if not path:
        return Dns()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_resolv_conf(file.read())
    except OSError as exc:
        raise CniError(CniError.IO_FAILURE, f"ipam.resolvConf={path} cannot be read", str(exc)) from exc
