"""The IPVS data plane: virtual and real servers of the kernel's own load balancer, ipsets and a few iptables rules.

``compile`` is the pure half (with ``rules``, ``evaluate``, ``names``, ``show``), ``driver`` the other (with
``readback`` and ``drain``). It serves what the kernel's IPVS serves; what this kernel lacks is refused frontend by
frontend.
"""

from __future__ import annotations

import errno

import msgspec

from pycni.errors import KernelError
from pycni.kernel import iptables as tools
from pycni.kernel import ipvs, sysctl
from pycni.kernel.ipset import Ipset
from pycni.kernel.ipvs import Ipvs
from pycni.kernel.vips import can_make_link, link_mtu
from pycni.model.family import FAMILIES, Family
from pycni.model.service import NodeFacts
from pycni.wire.ipvs import SCHEDULERS, ServiceKey, ServiceSpec
from pycni_proxy.base import Dataplane
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.compile import IpvsCompiler
from pycni_proxy.ipvs.driver import IpvsDriver
from pycni_proxy.ipvs.options import IpvsOptions
from pycni_proxy.ipvs.readback import sweep

_TUNNEL_ROOM = 60
"""The tunnel's header, the packet's and TCP's own, 20 bytes each."""


def missing() -> str:
    """What this kernel or machine lacks for IPVS, in one line; "" when it can run here. Changes nothing."""
    if not ipvs.available():
        return "the kernel has no IPVS (module ip_vs)"
    ipset = Ipset()
    try:
        lacking = ipset.missing()
    finally:
        ipset.close()
    if lacking:
        return lacking
    if not can_make_link("dummy"):
        return "the kernel has no dummy devices (module dummy)"
    if not tools.backend():
        return "neither iptables-nft nor iptables-legacy works here"
    return ""


def make(facts: NodeFacts, options: IpvsOptions | None = None) -> Dataplane:
    """A data plane for this node. Raises KernelError, ConfigError.

    ``options`` says what the operator chose (None: the facts say it); schedulers, families and switches are reduced to
    what the kernel has.
    """
    chosen = options or _chosen(facts)
    here = msgspec.structs.replace(
        chosen,
        schedulers=_schedulers(chosen),
        families=_families(chosen),
        switches=tuple(item for item in chosen.switches if _has_switch(item[0])),
        direct_mss=(link_mtu(facts.pod_bridge) or chosen.direct_mss + _TUNNEL_ROOM) - _TUNNEL_ROOM,
    )
    driver = IpvsDriver(facts, here, tools.backend())
    return Dataplane("ipvs", IpvsCompiler(facts, here), driver)


def _chosen(facts: NodeFacts) -> IpvsOptions:
    wanted = facts.ipvs
    return IpvsOptions(
        graceful=wanted.graceful,
        grace_s=wanted.graceful_s,
        permit_all=wanted.permit_all,
        excluded=wanted.excluded,
    )


def leftovers() -> list[str]:
    """Remove what an earlier life of this data plane left in this namespace; says what went. Raises KernelError."""
    return sweep(tools.backend())


def _schedulers(options: IpvsOptions) -> frozenset[str]:
    """Those the kernel accepts: tried with a virtual server that no packet can meet."""
    table = Ipvs()
    key = ServiceKey(FAMILIES[0], fwmark=names.PROBE_MARK)
    found = set()
    try:
        for name in options.schedulers & SCHEDULERS:
            failed = table.put_services([(key, ServiceSpec(name))])
            if not failed:
                found.add(name)
            elif failed[0].errno != errno.ENOENT:
                raise failed[0]
        table.del_services([key])
    finally:
        table.close()
    return frozenset(found)


def _families(options: IpvsOptions) -> tuple[Family, ...]:
    table = Ipvs()
    found = []
    try:
        for family in options.families:
            key = ServiceKey(family, fwmark=names.PROBE_MARK)
            failed = table.put_services([(key, ServiceSpec("rr"))])
            if not failed:
                found.append(family)
                table.del_services([key])
            elif failed[0].errno not in {errno.EAFNOSUPPORT, errno.ENOENT}:
                raise failed[0]
    finally:
        table.close()
    return tuple(found)


def _has_switch(name: str) -> bool:
    try:
        sysctl.get(name)
    except KernelError as exc:
        if exc.errno == errno.ENOENT:
            return False
        raise
    return True
