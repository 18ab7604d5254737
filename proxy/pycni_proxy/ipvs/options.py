"""Settings of the IPVS data plane that are not facts about the node."""

from __future__ import annotations

import msgspec

from pycni.model.family import Family, Network
from pycni.wire.ipvs import SCHEDULERS, Timeouts

DEFAULT_SCHEDULER = "rr"
DEFAULT_SWITCHES: tuple[tuple[str, str], ...] = (
    ("net.ipv4.vs.conntrack", "1"),
    ("net.ipv4.vs.expire_nodest_conn", "1"),
    ("net.ipv4.vs.expire_quiescent_template", "1"),
    ("net.ipv4.vs.conn_reuse_mode", "0"),
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.conf.all.arp_announce", "2"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
)
"""kube-router's. The bridge's: the answer of a pod to another one on the same bridge must pass the hooks."""
SLOPPY_TCP = "net.ipv4.vs.sloppy_tcp"
"""Set while some service uses mh or direct return: its connections may move here from another balancer."""


class IpvsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator chose and what this kernel has."""

    graceful: bool = True
    """Targets that go are drained: weight 0, removed when no connection is left or after ``grace_s``."""
    grace_s: float = 30.0
    permit_all: bool = True
    """Accept traffic to virtual servers in INPUT before the rules of others (kube-router's --ipvs-permit-all)."""
    excluded: tuple[Network, ...] = ()
    """excluded-cidrs: virtual addresses inside are nobody's business of ours."""
    timeouts: Timeouts = Timeouts()
    """Idle times of connections; 0: the kernel's."""
    schedulers: frozenset[str] = SCHEDULERS
    """Those the kernel has."""
    families: tuple[Family, ...] = (Family.V4, Family.V6)
    """Those the kernel's IPVS has."""
    switches: tuple[tuple[str, str], ...] = DEFAULT_SWITCHES
    """Kernel switches to be set; ``make`` leaves out those this kernel lacks."""
    direct_mss: int = 1400
    """Largest TCP segment announced by servers behind direct return: room for the tunnel's header."""
