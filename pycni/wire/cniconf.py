"""Our plugin object of a network configuration, decoded and checked (field names are the reference bridge's).

Life: a runtime sends the object on stdin with what is particular to one call added to it (runtimeConfig, args,
prevResult, ``cni.dev/valid-attachments``); ``parse_conf`` turns it into a ``PluginConf`` or a ``CniError`` naming key
and value: 6 for a value of the wrong JSON type, 7 for one that makes no sense, 2 for a feature of the reference
bridge that is not supported here, 4 for CNI_ARGS. Unknown keys are left alone and kept in ``raw``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pycni.errors import CniError
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import (
    Attachment,
    Bandwidth,
    Command,
    Dns,
    IpamConf,
    PluginConf,
    PortMapping,
    Request,
)
from pycni.wire.cni import ifname_fault, open_conf
from pycni.wire.cnifields import UINT64, Fields, objects, refuse, to_address, to_mac
from pycni.wire.cniipam import OWN_TYPES, parse_ipam
from pycni.wire.cniresult import decode_result, read_dns

MAX_VLAN = 4094
MIN_MTU = 68
"""RFC 791 section 3.2: the smallest MTU IPv4 allows."""
MAX_MTU = 65535
VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The specification's key and the one libcni first sent by mistake (containernetworking/cni#1103)."""


REMEMBERED_BYTES = 1 << 13
"""Configurations up to this size are decoded once: pods of one network come with the same bytes, and DEL reads the
ones ADD recorded."""


def parse_conf(request: Request) -> PluginConf:
    """The configuration of one call, strictly: any doubt is an error. The value is shared, ``raw`` included."""
    if len(request.stdin) > REMEMBERED_BYTES:
        return _parse(request)
    gate = request.command if request.command in {"CHECK", "GC", "STATUS"} else "ADD"
    return _remembered(gate, request.stdin, request.args.get("IP", ""), request.args.get("MAC", ""))


@lru_cache(maxsize=128)
def _remembered(command: Command, stdin: bytes, ip: str, mac: str) -> PluginConf:
    """``_parse`` with everything it depends on as the key."""
    return _parse(Request(command=command, stdin=stdin, args={"IP": ip, "MAC": mac}))


def _parse(request: Request) -> PluginConf:
    raw, version = open_conf(request)
    conf = Fields(raw)
    bridge = conf.text("bridge") or "cni0"
    if reason := ifname_fault(bridge):
        refuse("bridge", bridge, reason)
    gateway = conf.boolean("isGateway", default=True)
    default_gateway = conf.boolean("isDefaultGateway", default=gateway)
    hairpin, promisc = conf.boolean("hairpinMode"), conf.boolean("promiscMode")
    if hairpin and promisc:
        refuse("promiscMode", True, "contradicts hairpinMode=true: choose one of them")
    attachment = _attachment(conf, gateway=gateway or default_gateway)
    layer2 = "ipam" in raw and raw["ipam"] in (None, {}) and not (gateway or default_gateway)
    _check_other_keys(conf)
    runtime, args = conf.sub("runtimeConfig"), conf.sub("args").sub("cni")
    raw_previous = conf.sub("prevResult").raw if conf.given("prevResult") else None
    return PluginConf(
        cni_version=version,
        name=raw["name"],
        type=conf.text("type") or "pycni",
        attachment=attachment,
        bridge=bridge,
        master=_master(conf, attachment),
        mtu=_mtu(conf),
        hairpin_mode=hairpin,
        promisc_mode=promisc,
        is_gateway=gateway or default_gateway,
        is_default_gateway=default_gateway,
        force_address=conf.boolean("forceAddress"),
        ip_masq=conf.boolean("ipMasq"),
        vlan=conf.integer("vlan", 0, MAX_VLAN),
        mac_spoof_check=conf.boolean("macspoofchk"),
        port_isolation=conf.boolean("portIsolation"),
        enable_dad=conf.boolean("enabledad"),
        layer2_only=layer2,
        ipam=IpamConf() if layer2 else parse_ipam(conf, runtime, args, request.args, version),
        dns=_dns(conf, runtime),
        mac=_mac(runtime, args, request),
        labels=_labels(args),
        port_mappings=_port_mappings(runtime),
        bandwidth=_bandwidth(runtime),
        prev_result=None if raw_previous is None else decode_result(raw_previous, version),
        prev_result_raw=raw_previous,
        valid_attachments=_valid_attachments(raw) if request.command == "GC" else None,
        raw=raw,
    )


def parse_conf_for_removal(request: Request) -> PluginConf:
    """The configuration of DEL: behind the gates only what is needed to find and remove things is read.

    A removal must go through with settings that ADD would refuse (the file may have been edited in between), so
    values that cannot be understood count as not given; whoever runs DEL has the attachment's own record as well.
    """
    try:
        return parse_conf(request)
    except CniError:
        raw, version = open_conf(request)
        ipam = raw.get("ipam")
        given = ipam if isinstance(ipam, dict) else {}
        kind, data_dir = (
            value if isinstance(value := given.get(key), str) else "" for key in ("type", "dataDir")
        )
        bridge = raw.get("bridge")
        return PluginConf(
            cni_version=version,
            name=raw["name"],
            bridge=bridge if isinstance(bridge, str) and bridge and not ifname_fault(bridge) else "cni0",
            ipam=IpamConf(type="" if kind in OWN_TYPES else kind, data_dir=data_dir),
            raw=raw,
        )


_BRIDGE_ONLY = ("vlan", "promiscMode", "portIsolation", "forceAddress")
"""Keys that ask something of a bridge: refused where there is none, unless they ask for nothing."""


ON_UNDERLAY = frozenset({AttachmentKind.MACVLAN, AttachmentKind.IPVLAN})
_NOT_PAST_THE_NODE = ("ipMasq", "macspoofchk", "hairpinMode")


def _attachment(conf: Fields, *, gateway: bool) -> AttachmentKind:
    """The kind of attachment, and whether the other keys go with it."""
    given = conf.text("attachment")
    if given and given not in set(AttachmentKind):
        refuse("attachment", given, f"expected one of {', '.join(AttachmentKind)}")
    kind = AttachmentKind(given or AttachmentKind.BRIDGE)
    if kind is AttachmentKind.BRIDGE:
        return kind
    for key in _BRIDGE_ONLY:
        if conf.raw.get(key):
            refuse(key, conf.raw[key], f"there is no bridge with attachment={kind}")
    for key in _NOT_PAST_THE_NODE if kind in ON_UNDERLAY else ():
        if conf.boolean(key):
            refuse(key, True, f"with attachment={kind} packets pass the node by")
    if not gateway:
        refuse("isGateway", False, f"with attachment={kind} the node is the only way to anywhere")
    return kind


def _master(conf: Fields, kind: AttachmentKind) -> str:
    """The uplink. The reference macvlan and ipvlan plugins' key."""
    master = conf.text("master")
    if master and kind not in ON_UNDERLAY:
        refuse("master", master, f"attachment={kind} has no uplink of its own")
    if master and (reason := ifname_fault(master)):
        refuse("master", master, reason)
    return master


def _check_other_keys(conf: Fields) -> None:
    """Keys of the reference bridge without a field of their own: refused unless they ask for nothing."""
    backend = conf.text("ipMasqBackend")
    if backend not in {"", "iptables", "nftables"}:
        refuse("ipMasqBackend", backend, "expected iptables or nftables (nftables is what is used)")
    if conf.raw.get("vlanTrunk"):
        refuse(
            "vlanTrunk", conf.raw["vlanTrunk"], "VLAN trunks are not supported", CniError.UNSUPPORTED_FIELD
        )
    if conf.boolean("disableContainerInterface"):
        reason = "an interface that stays down is not supported"
        refuse("disableContainerInterface", True, reason, CniError.UNSUPPORTED_FIELD)
    if conf.boolean("preserveDefaultVlan") and conf.integer("vlan", 0, MAX_VLAN):
        reason = "a port is a member of its own VLAN only"
        refuse("preserveDefaultVlan", True, reason, CniError.UNSUPPORTED_FIELD)


def _mtu(conf: Fields) -> int:
    mtu = conf.integer("mtu", 0, MAX_MTU)
    if 0 < mtu < MIN_MTU:
        refuse("mtu", mtu, f"expected 0 (the node's) or {MIN_MTU}..{MAX_MTU}")
    return mtu


def _dns(conf: Fields, runtime: Fields) -> Dns:
    """The runtime's capability before the file's."""
    if runtime.given("dns"):
        found = read_dns(runtime.sub("dns"), "servers", "searches")
        if found != Dns():
            return found
    return read_dns(conf.sub("dns"))


def _mac(runtime: Fields, args: Fields, request: Request) -> str:
    """The most specific request wins: capability, then args.cni, then CNI_ARGS."""
    mac = runtime.mac("mac") or args.mac("mac")
    if not mac and (text := request.args.get("MAC", "")):
        mac = to_mac(text, "CNI_ARGS MAC", CniError.BAD_ENVIRONMENT)
    return mac


def _labels(args: Fields) -> dict[str, str]:
    return {item.text("key"): item.text("value") for item in args.subs("labels")}


def _port_mappings(runtime: Fields) -> tuple[PortMapping, ...]:
    mappings: list[PortMapping] = []
    for item in runtime.subs("portMappings"):
        protocol = (item.text("protocol") or "tcp").lower()
        if protocol not in {"tcp", "udp", "sctp"}:
            refuse(item.path("protocol"), item.raw["protocol"], "expected tcp, udp or sctp")
        host_ip = item.text("hostIP")
        mapping = PortMapping(
            host_port=_port(item, "hostPort"),
            container_port=_port(item, "containerPort"),
            protocol=protocol,  # type: ignore[arg-type]  # checked above
            host_ip=to_address(host_ip, item.path("hostIP")) if host_ip else None,
        )
        taken = (mapping.host_port, mapping.protocol, mapping.host_ip)
        if any(taken == (other.host_port, other.protocol, other.host_ip) for other in mappings):
            refuse(item.path("hostPort"), mapping.host_port, f"{protocol} port is mapped twice for one pod")
        mappings.append(mapping)
    return tuple(mappings)


def _port(item: Fields, key: str) -> int:
    if not item.given(key):
        refuse(item.path(key), None, "a port mapping needs hostPort and containerPort")
    return item.integer(key, 1, 65535)


def _bandwidth(runtime: Fields) -> Bandwidth | None:
    if not runtime.given("bandwidth"):
        return None
    item = runtime.sub("bandwidth")
    numbers: dict[str, int] = {}
    for direction in ("ingress", "egress"):
        rate = item.integer(f"{direction}Rate", 0, UINT64)
        burst = item.integer(f"{direction}Burst", 0, UINT64)
        if burst and not rate:
            refuse(item.path(f"{direction}Burst"), burst, f"needs {direction}Rate as well")
        if rate and not burst:
            refuse(item.path(f"{direction}Rate"), rate, f"needs {direction}Burst as well")
        if burst // 8 >= (1 << 32) - 1:
            refuse(item.path(f"{direction}Burst"), burst, "a burst is less than 4 GiB (given in bits)")
        numbers |= {f"{direction}_rate": rate, f"{direction}_burst": burst}
    return Bandwidth(**numbers) if any(numbers.values()) else None


def _valid_attachments(raw: dict[str, Any]) -> tuple[Attachment, ...]:
    """GC's list of what stays. Null is Go's empty list; without the key nothing is removed but the call refused."""
    key = next((key for key in VALID_ATTACHMENTS if key in raw), None)
    if key is None:
        msg = f"missing {VALID_ATTACHMENTS[0]}"
        raise CniError(CniError.INVALID_NETWORK_CONFIG, msg, "GC without it would remove every attachment")
    if not isinstance(raw[key] or [], list):
        refuse(key, raw[key], "expected an array of objects", CniError.DECODE_FAILURE)
    found = []
    for item in objects(raw[key] or [], key):
        attachment = Attachment(container_id=item.text("containerID"), ifname=item.text("ifname"))
        if not attachment.container_id or not attachment.ifname:
            refuse(item.where, item.raw, "needs containerID and ifname")
        found.append(attachment)
    return tuple(found)
