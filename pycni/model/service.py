"""Services as a node's data plane sees them: virtual addresses, and to which endpoints each leads.

Life: ``view/services`` resolves a Service and its EndpointSlices for one node into ``Frontend`` values, one per
virtual address, protocol and port; a data plane (``pycni_proxy``) compiles frontends into kernel tables. A frontend is
self-contained and the same for every data plane; BGP and health-check ports read it too. Addresses are packed (4 or 16
bytes), ports plain numbers: at 10,000 services there are 50,000 targets.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from pycni.model.family import Family, Network, show
from pycni.model.kube import PROTOCOL_NAMES


class PortName(NamedTuple):
    """Name of one port of one service, as kube-proxy's logs and metrics have it."""

    namespace: str
    service: str
    port: str
    """"" for the only, unnamed port."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}" + (f":{self.port}" if self.port else "")


class Target(NamedTuple):
    """A real server: one endpoint's address and port."""

    address: bytes
    port: int
    local: bool
    """Whether it runs on this node."""

    def __str__(self) -> str:
        text = show(self.address)
        return f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}"


class FrontendKey(NamedTuple):
    """What a packet must have to meet a frontend."""

    family: Family
    address: bytes
    """Packed; b"" for a node port, which is at every node-port address of the node."""
    protocol: int
    port: int

    def __str__(self) -> str:
        host = show(self.address) if self.address else "nodeport"
        host = f"[{host}]" if ":" in host else host
        return f"{PROTOCOL_NAMES.get(self.protocol, self.protocol)} {host}:{self.port}"


class Kind(enum.IntEnum):
    """Where a virtual address comes from."""

    CLUSTER_IP = 1
    NODE_PORT = 2
    EXTERNAL_IP = 3
    LOAD_BALANCER = 4

    @property
    def label(self) -> str:
        """``ClusterIP`` and so on."""
        return {1: "ClusterIP", 2: "NodePort", 3: "ExternalIP", 4: "LoadBalancer"}[self]


class Verdict(enum.IntEnum):
    """What becomes of a packet to a frontend without usable targets."""

    REJECT = 1
    """Nobody anywhere: tell the client (TCP reset, ICMP port unreachable)."""
    DROP = 2
    """Not here: silence, so that a load balancer tries another node."""


class Pool(msgspec.Struct, frozen=True, gc=False):
    """The targets for one kind of traffic. Targets are sorted and without duplicates."""

    targets: tuple[Target, ...] = ()
    draining: tuple[Target, ...] = ()
    """Terminating or no longer ready, still serving: no new connections, old ones live on."""
    empty: Verdict = Verdict.REJECT
    """Holds when ``targets`` is empty."""


class Options(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a service wants to be balanced: kube-router's annotations and session affinity. Shared between frontends."""

    scheduler: str = ""
    """rr, lc, sh, dh, mh, wrr, wlc ...; "" for the data plane's default."""
    sched_flags: tuple[str, ...] = ()
    """``flag-1``, ``flag-2`` (``service.schedflags``)."""
    affinity_s: int = 0
    """Seconds; 0: none."""
    hairpin: bool = False
    """``service.hairpin``: kube-router's opt-in; the other data planes always allow an endpoint to reach itself."""
    hairpin_external: bool = False
    """``service.hairpin.externalips``."""
    dsr: str = ""
    """``service.dsr``: "tunnel" or ""."""


DEFAULT_OPTIONS = Options()


class Frontend(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual address, protocol and port of one service, resolved for this node.

    Masquerading follows from ``kind`` and ``local_only`` (kube-proxy's rules):
    every frontend: a target on this node that reaches itself through it is masqueraded (hairpin);
    CLUSTER_IP: sources outside the cluster's pod networks are (all, with masquerade-all);
    others, not ``local_only``: everything is;
    others, ``local_only``: only what this node itself sends (it uses ``inside``).
    """

    key: FrontendKey
    kind: Kind
    name: PortName
    pool: Pool
    """Where traffic goes: everybody's (CLUSTER_IP), what comes from outside the node (others)."""
    inside: Pool | None = None
    """For other kinds than CLUSTER_IP with ``local_only``: traffic from this cluster's pods and from the node itself is
    short-circuited to these targets, as if it had gone to the ClusterIP. None: ``pool`` is for all."""
    local_only: bool = False
    """externalTrafficPolicy (CLUSTER_IP: internalTrafficPolicy) Local."""
    source_ranges: tuple[Network, ...] | None = None
    """LOAD_BALANCER only: sources allowed, others dropped before translation. None: all; (): nobody."""
    options: Options = DEFAULT_OPTIONS

    @property
    def pools(self) -> tuple[Pool, ...]:
        """One or two pools."""
        return (self.pool,) if self.inside is None else (self.pool, self.inside)


class HealthCheck(NamedTuple):
    """A healthCheckNodePort this node has to answer (Services with externalTrafficPolicy Local)."""

    port: int
    namespace: str
    service: str
    local: int
    """Ready endpoints on this node, each address and family counted once."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one Service means for this node."""

    frontends: tuple[Frontend, ...] = ()
    health_check: HealthCheck | None = None
    changed: float = 0.0
    """Latest last-change-trigger-time of its slices, seconds since the epoch; 0.0 without."""
    problems: tuple[str, ...] = ()
    """What of it cannot be honoured and why, one line each (an external IP outside the allowed ranges ...)."""


class IpvsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What only the IPVS data plane is asked for; kube-router's settings."""

    hairpin: bool = False
    """hairpin-mode: every service as if annotated ``service.hairpin``."""
    graceful: bool = True
    """ipvs-graceful-termination."""
    graceful_s: float = 30.0
    """ipvs-graceful-period: how long connections to an ended endpoint are kept at most."""
    permit_all: bool = True
    """ipvs-permit-all: let in whatever is for a service's address, not only its ports."""
    excluded: tuple[Network, ...] = ()
    """excluded-cidrs: virtual servers with these addresses are somebody else's."""


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What resolving and compiling services depend on besides the objects. Families the node lacks have no entries."""

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    """The node's primary address per family: node ports are served there when ``node_port_ranges`` is empty."""
    node_port_ranges: tuple[Network, ...] = ()
    """node-port-addresses: node ports are served on every local, non-loopback address inside these networks."""
    cluster_networks: tuple[Network, ...] = ()
    """All pods' networks: a source outside is "outside the cluster"."""
    service_networks: tuple[Network, ...] = ()
    """service-cluster-ip-range: unallocated addresses inside are dropped; may be empty (not known)."""
    external_ip_ranges: tuple[Network, ...] = ()
    """service-external-ip-range: external IPs outside are refused."""
    any_external_ip: bool = False
    """Allow every external IP (strict-external-ip-validation off)."""
    node_ports: tuple[int, int] = (30000, 32767)
    masquerade_all: bool = False
    masquerade_mark: int = 0x4000
    uplink: str = ""
    """Interface traffic from outside comes in by; "" when not known."""
    pod_bridge: str = "cni0"
    """Interface pods' traffic comes in by."""
    proxy_name: str = ""
    """Our service-proxy-name: services labelled with another one are not ours."""
    families: tuple[Family, ...] = (Family.V4,)
    ipvs: IpvsOptions = IpvsOptions()


class Packet(NamedTuple):
    """A first packet of a connection, for evaluators: the API-level oracle's and each data plane's own."""

    source: bytes
    source_port: int
    destination: bytes
    protocol: int
    port: int
    from_node: bool = False
    """Sent by this node itself, not forwarded."""


class Decision(NamedTuple):
    """What becomes of a first packet. ``verdict`` None: translated to one of ``targets`` or, without any, untouched."""

    verdict: Verdict | None
    targets: frozenset[Target]
    """All targets that may be chosen."""
    masqueraded: frozenset[Target] = frozenset()
    """Those of them for which the source is rewritten."""


UNTOUCHED = Decision(None, frozenset())
