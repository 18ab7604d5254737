"""The cluster's net-conf JSON (flannel's ``<prefix>/config``) both ways.

Rules and defaults are flannel's (its configuration document; ``CheckNetworkConfig`` of its etcd mode), applied
per family by one function. Where the documents and flannel's code differ: a missing ``Backend`` (or one without
``Type``) means ``vxlan`` here, as the documents say, whereas flannel's code falls back to ``udp``.
Unknown keys are tolerated (``unknown_keys`` names them for a warning); ``EnableNFTables`` and ``MacPrefix``
(Windows) are accepted and mean nothing here. ``Backend.Type`` is not judged here: who knows the backends does.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

from pycni.errors import ConfigError
from pycni.model.extension import Commands
from pycni.model.family import Address, Family, Network
from pycni.model.network import BackendConf, NetConf
from pycni.model.wireguard import Secret, key_text, parse_key
from pycni.wire.gojson import Fields, read_object

OBJ = "net-conf"
DEFAULT_BACKEND = "vxlan"
VXLAN_PORT = 8472
"""The Linux kernel's default VXLAN port, meant by Port 0."""

KNOWN = frozenset(
    {
        "network", "subnetlen", "subnetmin", "subnetmax", "enableipv4", "enableipv6", "enablenftables", "backend",
        "ipv6network", "ipv6subnetlen", "ipv6subnetmin", "ipv6subnetmax",
    }
)  # fmt: skip
VXLAN_KEYS = ("VNI", "Port", "DirectRouting", "GBP", "Learning")
"""Keys that mean something to a backend with devices; each of the others refuses those that are not its own."""
COMMANDS = {
    "PreStartupCommand": "pre_startup",
    "PostStartupCommand": "post_startup",
    "SubnetAddCommand": "subnet_add",
    "SubnetRemoveCommand": "subnet_remove",
    "ShutdownCommand": "shutdown",
}
"""Keys of extension and the fields they go to."""
BACKEND_KEYS = {
    "vxlan": frozenset(name.lower() for name in (*VXLAN_KEYS, "Type", "MTU", "MacPrefix")),
    "ipip": frozenset({"type", "directrouting"}),
    "wireguard": frozenset(
        {"type", "psk", "listenport", "listenportv6", "mtu", "mode", "persistentkeepaliveinterval"}
    ),
    "udp": frozenset({"type", "port", "psk", "mtu"}),
    "host-gw": frozenset({"type"}),
    "bgp": frozenset({"type"}),
    "extension": frozenset({"type", "mtu", *(name.lower() for name in COMMANDS)}),
    "alloc": frozenset({"type"}),
}
"""Keys by backend type; other types' keys are not judged."""
UDP_PORT = 8285
"""flannel's."""
WIREGUARD_PORTS = {"ListenPort": 51820, "ListenPortV6": 51821}
WIREGUARD_MODES = ("separate", "auto", "ipv4", "ipv6")

_PSK = re.compile(rb'("psk"\s*:\s*)("(?:[^"\\]|\\.)*"?|[^\s,}]+)', re.IGNORECASE)


class _Rules(msgspec.Struct, frozen=True):
    """What differs between the families: names of the keys, and the numbers."""

    network: str
    enable: str
    enabled: bool
    prefix: str
    longest_network: int
    longest_subnet: int
    usual: int


_RULES = {
    Family.V4: _Rules("Network", "EnableIPv4", True, "", 28, 30, 24),
    Family.V6: _Rules("IPv6Network", "EnableIPv6", False, "IPv6", 124, 126, 64),
}


def decode_netconf(raw: bytes) -> NetConf:
    """Read a net-conf. Raises ConfigError naming field and value at the first thing that is wrong."""
    fields = _read(raw)
    network, length, low, high = _family(fields, Family.V4)
    network6, length6, low6, high6 = _family(fields, Family.V6)
    if network is None and network6 is None:
        raise ConfigError(OBJ, "EnableIPv4", value=False, reason="at least one family has to be enabled")
    assert network is None or isinstance(network, IPv4Network)
    assert network6 is None or isinstance(network6, IPv6Network)
    return NetConf(
        network=network,
        network6=network6,
        subnet_len=length,
        subnet_min=low if isinstance(low, IPv4Address) else None,
        subnet_max=high if isinstance(high, IPv4Address) else None,
        subnet6_len=length6,
        subnet6_min=low6 if isinstance(low6, IPv6Address) else None,
        subnet6_max=high6 if isinstance(high6, IPv6Address) else None,
        backend=_backend(fields, ipv6=network6 is not None),
    )


def unknown_keys(raw: bytes) -> tuple[str, ...]:
    """Keys of a valid net-conf that mean nothing to us, for one warning. Raises as ``decode_netconf``."""
    fields = _read(raw)
    found = fields.unknown(KNOWN)
    backend = fields.members("Backend")
    if backend is not None:
        known = BACKEND_KEYS.get(backend.text("Type", DEFAULT_BACKEND))
        found += backend.unknown(known) if known is not None else ()
    return found


def show_netconf(raw: bytes) -> str:
    """A net-conf as it was written, fit for a log: without pre-shared keys."""
    if b"\\u" in raw:  # a key's name may be hidden in that
        return "(hidden: it has escaped characters)"
    return _PSK.sub(rb'\1"(hidden)"', raw).decode("utf-8", "backslashreplace")


def _read(raw: bytes) -> Fields:
    """The object. Raises ConfigError without what nobody is to see."""
    try:
        return read_object(raw, OBJ)
    except ConfigError as exc:
        raise ConfigError(OBJ, "JSON", show_netconf(raw)[:200], exc.reason) from None


def encode_netconf(conf: NetConf) -> bytes:
    """Write a net-conf with everything spelled out, so that any reader's defaults give the same network.

    A pre-shared key is in it: not for a log, nor for a file that others read.
    """
    out: dict[str, object] = {"EnableIPv4": conf.network is not None, "EnableIPv6": conf.network6 is not None}
    for family, rules in _RULES.items():
        network = conf.of(family)
        if network is None:
            continue
        low, high = conf.bounds(family)
        out[rules.network] = str(network)
        out[rules.prefix + "SubnetLen"] = conf.length(family)
        out[rules.prefix + "SubnetMin"] = str(low)
        out[rules.prefix + "SubnetMax"] = str(high)
    backend = conf.backend
    out["Backend"] = {"Type": backend.type}
    if backend.type == "vxlan":
        out["Backend"] = {
            "Type": backend.type,
            "VNI": backend.vni,
            "Port": backend.port,
            "MTU": backend.mtu,
            "DirectRouting": backend.direct_routing,
            "GBP": backend.gbp,
            "Learning": backend.learning,
        }
    elif backend.type == "ipip":
        out["Backend"] = {"Type": backend.type, "DirectRouting": backend.direct_routing}
    elif backend.type == "wireguard":
        out["Backend"] = {
            "Type": backend.type,
            "ListenPort": backend.listen_port,
            "ListenPortV6": backend.listen_port_v6,
            "MTU": backend.mtu,
            "Mode": backend.mode,
            "PersistentKeepaliveInterval": backend.keepalive_s,
        } | ({"PSK": key_text(backend.psk.value)} if backend.psk is not None else {})
    elif backend.type == "udp":
        out["Backend"] = {"Type": backend.type, "Port": backend.port, "MTU": backend.mtu} | (
            {"PSK": key_text(backend.psk.value)} if backend.psk is not None else {}
        )
    elif backend.type == "extension":
        commands = {name: getattr(backend.commands, field) for name, field in COMMANDS.items()}
        out["Backend"] = {"Type": backend.type, "MTU": backend.mtu, **commands}
    return msgspec.json.encode(out)


def _family(fields: Fields, family: Family) -> tuple[Network | None, int, Address | None, Address | None]:
    """One family's network, subnet length, first and last subnet; no network when the family is off."""
    rules = _RULES[family]
    if not fields.flag(rules.enable, default=rules.enabled):
        return None, rules.usual, None, None
    network: Network | None = (
        fields.network(rules.network, IPv4Network)
        if family is Family.V4
        else fields.network(rules.network, IPv6Network)
    )
    if network is None or int(network.network_address) == 0:
        raise fields.error(rules.network, f"needed while {rules.enable} is true")
    length = _length(fields, rules, network)
    size = 1 << (family.bits - length)
    first, last = int(network.network_address), int(network.broadcast_address)
    # The first subnet is left out by default: its base address is the network's own.
    low = _bound(fields, rules.prefix + "SubnetMin", network, length, first + size)
    high = _bound(fields, rules.prefix + "SubnetMax", network, length, last + 1 - size)
    if int(low) > int(high):
        raise fields.error(rules.prefix + "SubnetMin", f"above the last subnet {high}")
    return network, length, low, high


def _length(fields: Fields, rules: _Rules, network: Network) -> int:
    """Prefix length of a node's subnet: at least four of them have to fit into the network."""
    if network.prefixlen > rules.longest_network:
        raise fields.error(rules.network, f"too small: /{rules.longest_network} is the least that is of use")
    name = rules.prefix + "SubnetLen"
    length = fields.integer(name, 0, rules.longest_subnet)
    if length == 0:
        return rules.usual if network.prefixlen <= rules.usual - 2 else network.prefixlen + 2
    if length < network.prefixlen + 2:
        raise fields.error(
            name, f"{network} has to hold at least four subnets: /{network.prefixlen + 2} or longer"
        )
    return length


def _bound(fields: Fields, name: str, network: Network, length: int, default: int) -> Address:
    """SubnetMin or SubnetMax: the base address of a subnet inside the network."""
    given: Address | None = (
        fields.address(name, IPv4Address)
        if isinstance(network, IPv4Network)
        else fields.address(name, IPv6Address)
    )
    if given is None:
        return type(network.network_address)(default)
    if given not in network:
        raise fields.error(name, f"not inside {network}")
    if int(given) & ((1 << (network.max_prefixlen - length)) - 1):
        aligned = ipaddress.ip_network(f"{given}/{length}", strict=False)
        raise fields.error(name, f"not the base of a /{length}; did you mean {aligned.network_address}?")
    return given


def _backend(fields: Fields, *, ipv6: bool) -> BackendConf:
    """The Backend object. Keys of vxlan that a backend we know has not are contradictory on it and refused."""
    backend = fields.members("Backend")
    if backend is None:
        return BackendConf(type=DEFAULT_BACKEND)
    kind = backend.text("Type", DEFAULT_BACKEND)
    if not kind:
        raise backend.error("Type", "expected the name of a backend")
    if kind != "vxlan":
        known = BACKEND_KEYS.get(kind)
        for name in VXLAN_KEYS if known is not None else ():
            if backend.given(name) and name.lower() not in (known or ()):
                raise backend.error(name, f"means nothing to backend {kind}")
        if kind == "wireguard":
            return _wireguard(backend, ipv6=ipv6)
        if kind == "udp":
            return BackendConf(
                type=kind,
                port=backend.integer("Port", 0, 65535) or UDP_PORT,
                mtu=_mtu(backend, ipv6=ipv6),
                psk=_psk(backend),
            )
        if kind == "extension":
            commands = Commands(**{field: backend.text(name) for name, field in COMMANDS.items()})
            return BackendConf(type=kind, mtu=_mtu(backend, ipv6=ipv6), commands=commands)
        return BackendConf(type=kind, direct_routing=kind == "ipip" and backend.flag("DirectRouting"))
    return BackendConf(
        type=kind,
        vni=backend.integer("VNI", 0, (1 << 24) - 1, default=1),
        port=backend.integer("Port", 0, 65535) or VXLAN_PORT,
        mtu=_mtu(backend, ipv6=ipv6),
        direct_routing=backend.flag("DirectRouting"),
        gbp=backend.flag("GBP"),
        learning=backend.flag("Learning"),
    )


def _mtu(backend: Fields, *, ipv6: bool) -> int:
    """RFC 791: every host takes 576 bytes. RFC 8200 section 5: every IPv6 link carries 1280."""
    mtu = backend.integer("MTU", 0, 65535)
    least = 1280 if ipv6 else 576
    if 0 < mtu < least:
        raise backend.error("MTU", f"expected 0 (derived from the interface) or {least}..65535")
    return mtu


def _wireguard(backend: Fields, *, ipv6: bool) -> BackendConf:
    """Keys of flannel's wireguard backend."""
    mode = backend.text("Mode", "separate") or "separate"
    if mode not in WIREGUARD_MODES:
        raise backend.error("Mode", f"expected one of {', '.join(WIREGUARD_MODES)}")
    ports = [backend.integer(name, 1, 65535, usual) for name, usual in WIREGUARD_PORTS.items()]
    if ports[0] == ports[1] and mode == "separate":
        raise backend.error("ListenPortV6", "the same as ListenPort: two devices need two")
    return BackendConf(
        type="wireguard",
        psk=_psk(backend),
        listen_port=ports[0],
        listen_port_v6=ports[1],
        mtu=_mtu(backend, ipv6=ipv6),
        mode=mode,
        keepalive_s=backend.integer("PersistentKeepaliveInterval", 0, 65535),
    )


def _psk(backend: Fields) -> Secret | None:
    """A pre-shared key, which is never in an error."""
    written = backend.value("PSK")
    psk = parse_key(written) if isinstance(written, str) and written else None
    if psk is None and written:
        raise ConfigError(
            OBJ, "Backend.PSK", "(hidden)", "expected 32 bytes in base64, as wg genpsk writes them"
        )
    return Secret(psk) if psk is not None else None
