"""CNI values (specification 1.1.0): a request, a plugin's configuration, a result. Codecs are in ``wire/cni*``."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Literal

import msgspec

from pycni.model.attachment import AttachmentKind
from pycni.model.family import Address, Network

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
Command = Literal["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the plugin: CNI_* variables checked, stdin still bytes."""

    command: Command
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = {}
    """CNI_ARGS as a mapping."""
    path: tuple[str, ...] = ()
    """CNI_PATH."""
    environment: Mapping[str, str] = {}
    """All CNI_* variables as they came, for delegates."""
    stdin: bytes = b""


class PortMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Capability ``portMappings``."""

    host_port: int
    container_port: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    host_ip: Address | None = None


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Capability ``bandwidth``: rates in bits/s, bursts in bits, from the pod's point of view. 0: unlimited."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class AddressRange(msgspec.Struct, frozen=True, kw_only=True):
    """One range of host-local's ``ranges``; bounds are inclusive, defaults filled in when decoded."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address | None = None
    exclude: tuple[Network, ...] = ()


class RouteConf(msgspec.Struct, frozen=True, kw_only=True):
    """A route of ``ipam.routes`` or of a result (1.1.0 keys; 0/None: not given)."""

    dst: Network
    gw: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """``dns`` of a configuration or a result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class IpamConf(msgspec.Struct, frozen=True, kw_only=True):
    """The ``ipam`` object. ``type`` "" or "pycni" is ours; any other name is delegated to that plugin."""

    type: str = ""
    range_sets: tuple[tuple[AddressRange, ...], ...] = ()
    """One address is taken from each set; empty: one set per family from the node's lease."""
    routes: tuple[RouteConf, ...] = ()
    data_dir: str = ""
    """Where reservations are kept; "": the agent's ``--ipam-data-dir``."""
    resolv_conf: str = ""
    """File whose nameservers, search domains and options the result's ``dns`` takes; "": none."""
    requested: tuple[Address, ...] = ()
    """From CNI_ARGS IP, args.cni.ips and runtimeConfig.ips."""


class InterfaceResult(msgspec.Struct, frozen=True, kw_only=True):
    """``interfaces[]`` of a result; empty sandbox means host side."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IpResult(msgspec.Struct, frozen=True, kw_only=True):
    """``ips[]`` of a result; ``interface`` is an index into ``interfaces``."""

    address: IPv4Interface | IPv6Interface
    gateway: Address | None = None
    interface: int | None = None


class CniResult(msgspec.Struct, frozen=True, kw_only=True):
    """A result in the newest shape; ``wire/cniresult`` writes and reads every version's shape."""

    interfaces: tuple[InterfaceResult, ...] = ()
    ips: tuple[IpResult, ...] = ()
    routes: tuple[RouteConf, ...] = ()
    dns: Dns = Dns()


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment named in ``cni.dev/valid-attachments``."""

    container_id: str
    ifname: str


class PluginConf(msgspec.Struct, frozen=True, kw_only=True):
    """Our plugin object of a conflist as the runtime sends it, decoded and checked. Defaults are bridge's."""

    cni_version: str
    name: str
    type: str = "pycni"
    attachment: AttachmentKind = AttachmentKind.BRIDGE
    bridge: str = "cni0"
    master: str = ""
    """Attachments macvlan and ipvlan: the uplink; "": the node's external interface."""
    mtu: int = 0
    """0: the node network's MTU."""
    hairpin_mode: bool = False
    promisc_mode: bool = False
    is_gateway: bool = True
    """True unless switched off: a pod network without its gateway is of no use on a cluster node."""
    is_default_gateway: bool = True
    force_address: bool = False
    ip_masq: bool = False
    vlan: int = 0
    mac_spoof_check: bool = False
    port_isolation: bool = False
    enable_dad: bool = False
    layer2_only: bool = False
    """``ipam`` given as ``{}`` or ``"ipam": null`` with isGateway false: no addresses at all."""
    ipam: IpamConf = IpamConf()
    dns: Dns = Dns()
    mac: str = ""
    """Requested MAC (runtimeConfig.mac > args.cni.mac > CNI_ARGS MAC)."""
    labels: Mapping[str, str] = {}
    """args.cni.labels."""
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    prev_result: CniResult | None = None
    prev_result_raw: Mapping[str, Any] | None = None
    valid_attachments: tuple[Attachment, ...] | None = None
    """None outside GC."""
    raw: Mapping[str, Any] = {}
    """The whole object, so that unknown keys reach delegates untouched."""
