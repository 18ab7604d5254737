"""From a network configuration and an allocation to everything one pod's attachment needs in the kernel.

One function per kind of attachment decides how the pod is joined to its node (``KINDS``); names, MAC, masquerading,
mapped ports and bandwidth are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pycni.attach import bridged, routed, underlay
from pycni.attach.bandwidth import UNSHAPED, shaping
from pycni.attach.names import names
from pycni.attach.plan import Allocated, AttachPlan
from pycni.attach.portmap import host_ports
from pycni.attach.wish import Wired, Wish
from pycni.errors import ConfigError
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import PluginConf, RouteConf
from pycni.model.endpoint import Owner
from pycni.model.podnet import PodNetwork

KINDS: Mapping[AttachmentKind, Callable[[Wish], Wired]] = {
    AttachmentKind.BRIDGE: bridged.wire,
    AttachmentKind.PTP: routed.wire,
    AttachmentKind.MACVLAN: underlay.wire,
    AttachmentKind.IPVLAN: underlay.wire,
}


def compile_attachment(
    conf: PluginConf,
    podnet: PodNetwork | None,
    addresses: Sequence[Allocated],
    owner: Owner,
    ipam_routes: Sequence[RouteConf] | None = None,
) -> AttachPlan:
    """What the kernel has to look like for one attachment.

    ``ipam_routes``: routes a delegated IPAM plugin returned; None: those of the configuration. Raises ConfigError
    for settings that contradict each other or need a gateway where there can be none.
    """
    own = names(owner)
    wish = Wish(
        conf,
        podnet,
        tuple(allocated.address for allocated in addresses),
        tuple((allocated.address.network, allocated.gateway) for allocated in addresses),
        conf.ipam.routes if ipam_routes is None else tuple(ipam_routes),
        own,
    )
    wire = KINDS.get(conf.attachment)
    if wire is None:
        known = ", ".join(KINDS)
        raise ConfigError(wish.title, "attachment", conf.attachment, f"not available here; there are {known}")
    wired = wire(wish)
    ports = (
        host_ports(conf.port_mappings, [(address.family, address.address) for address in wired.addresses])
        if conf.port_mappings
        else ()
    )
    return AttachPlan(
        owner=owner,
        names=own,
        link=wired.link,
        mac=bytes.fromhex(conf.mac.replace(":", "")) if conf.mac else own.mac,
        mtu=wired.mtu,
        addresses=wired.addresses,
        routes=wired.routes,
        neighbours=wired.neighbours,
        enable_dad=conf.enable_dad,
        masquerade=conf.ip_masq and bool(wired.addresses),
        spared=wired.spared if conf.ip_masq else (),
        host_ports=ports,
        reply_by_node=wired.reply_by_node if ports else frozenset(),
        shaping=shaping(conf.bandwidth) if conf.bandwidth is not None else UNSHAPED,
        spoof_check=conf.mac_spoof_check,
        reported_ips=wired.reported_ips,
        reported_routes=wired.reported_routes,
    )
