"""Results of ADD in the shape of every protocol version, both ways (CNI specification 1.1.0, section 5).

=============  =========================================================================================
0.1.0, 0.2.0   ``ip4`` / ``ip6`` objects {ip, gateway, routes}: one address per family, no interfaces
0.3.0 - 0.4.0  ``interfaces`` {name, mac, sandbox}, ``ips`` with ``version`` "4"/"6", ``routes`` {dst, gw}
1.0.0          the same without ``ips[].version``
1.1.0          interfaces gain mtu, socketPath, pciID; routes gain mtu, advmss, priority, table, scope
=============  =========================================================================================

``CniResult`` is the newest shape; writing an older one leaves out what that version cannot say (``project``).
Reading is for prevResult and for what a delegated IPAM plugin prints: other plugins wrote it, so unknown keys and
missing parts are fine, values that cannot be understood are ``CniError`` 6 or 7 naming them.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

import msgspec

from pycni.errors import CniError
from pycni.model.cni import VERSIONS, CniResult, Dns, InterfaceResult, IpResult, RouteConf
from pycni.model.family import Network
from pycni.wire.cni import at_least, decode_object
from pycni.wire.cnifields import UINT32, Fields, to_interface


def encode_result(result: CniResult, version: str) -> bytes:
    """The result as JSON. CniError 7 when the version cannot express it (no address before 0.3.0)."""
    return msgspec.json.encode(shape(result, version)) + b"\n"


def shape(result: CniResult, version: str) -> dict[str, Any]:
    """The result as the JSON object of a version; empty parts are left out."""
    shown = project(result, version)
    document: dict[str, Any] = {"cniVersion": version}
    if at_least(version, "0.3.0"):
        _put(document, "interfaces", [_interface(item) for item in shown.interfaces])
        _put(document, "ips", [_ip(item, labelled=not at_least(version, "1.0.0")) for item in shown.ips])
        _put(document, "routes", [route_object(route) for route in shown.routes])
    else:
        for item in shown.ips:
            routes = [route for route in shown.routes if route.dst.version == item.address.version]
            block: dict[str, Any] = {"ip": str(item.address)}
            _put(block, "gateway", item.gateway and str(item.gateway))
            _put(block, "routes", [route_object(route) for route in routes])
            document[f"ip{item.address.version}"] = block
    _put(document, "dns", dns_object(shown.dns))
    return document


def project(result: CniResult, version: str) -> CniResult:
    """What of a result a version can say, in the order it says it."""
    if at_least(version, "1.1.0"):
        return result
    routes = tuple(RouteConf(dst=route.dst, gw=route.gw) for route in result.routes)
    if at_least(version, "0.3.0"):
        interfaces = tuple(
            InterfaceResult(name=item.name, mac=item.mac, sandbox=item.sandbox) for item in result.interfaces
        )
        return CniResult(interfaces=interfaces, ips=result.ips, routes=routes, dns=result.dns)
    first: dict[int, IpResult] = {}
    for item in result.ips:
        first.setdefault(item.address.version, IpResult(address=item.address, gateway=item.gateway))
    if not first:
        msg = f"cniVersion={version} cannot express a result without an address"
        raise CniError(CniError.INVALID_NETWORK_CONFIG, msg, "0.3.0 and later can")
    families = sorted(first)
    ordered = tuple(route for family in families for route in routes if route.dst.version == family)
    return CniResult(ips=tuple(first[family] for family in families), routes=ordered, dns=result.dns)


def decode_result(raw: bytes | Mapping[str, Any], version: str) -> CniResult:
    """A result another plugin printed, or the object under ``prevResult``.

    The object's own ``cniVersion`` decides its shape when it is a known one, else ``version``: before 1.0.0
    results often carried none. The reference refuses a differing version; what it means is clear enough to read.
    """
    document = decode_object(raw) if isinstance(raw, bytes) else raw
    own = document.get("cniVersion")
    version = own if isinstance(own, str) and own in VERSIONS else version
    fields = Fields(document, "result" if isinstance(raw, bytes) else "prevResult")
    if at_least(version, "0.3.0"):
        return CniResult(
            interfaces=tuple(_read_interface(item) for item in fields.subs("interfaces")),
            ips=tuple(_read_ip(item, "address") for item in fields.subs("ips")),
            routes=tuple(_read_route(item) for item in fields.subs("routes")),
            dns=read_dns(fields.sub("dns")),
        )
    blocks = [fields.sub(key) for key in ("ip4", "ip6") if fields.given(key)]
    return CniResult(
        ips=tuple(_read_ip(block, "ip") for block in blocks),
        routes=tuple(_read_route(item) for block in blocks for item in block.subs("routes")),
        dns=read_dns(fields.sub("dns")),
    )


def read_dns(fields: Fields, nameservers: str = "nameservers", search: str = "search") -> Dns:
    """A ``dns`` object; the capability names two of its keys differently."""
    return Dns(
        nameservers=fields.texts(nameservers),
        domain=fields.text("domain"),
        search=fields.texts(search),
        options=fields.texts("options"),
    )


def read_route_numbers(fields: Fields) -> dict[str, int | None]:
    """The numeric keys of a route; 0 means not given except for table and scope."""
    numbers: dict[str, int | None] = {
        key: fields.integer(key) or None for key in ("mtu", "advmss", "priority")
    }
    for key, high in (("table", UINT32), ("scope", 255)):
        numbers[key] = fields.integer(key, 0, high) if fields.given(key) else None
    return numbers


def route_object(route: RouteConf) -> dict[str, Any]:
    """A route as JSON object."""
    document: dict[str, Any] = {"dst": str(route.dst)}
    _put(document, "gw", route.gw and str(route.gw))
    for key in ("mtu", "advmss", "priority"):
        _put(document, key, getattr(route, key))
    for key in ("table", "scope"):
        if getattr(route, key) is not None:
            document[key] = getattr(route, key)
    return document


def dns_object(dns: Dns) -> dict[str, Any]:
    """A ``dns`` object without its empty keys."""
    document: dict[str, Any] = {}
    for key in ("nameservers", "domain", "search", "options"):
        _put(document, key, getattr(dns, key))
    return document


def _put(document: dict[str, Any], key: str, value: object) -> None:
    if value:
        document[key] = value


def _interface(item: InterfaceResult) -> dict[str, Any]:
    document: dict[str, Any] = {"name": item.name}
    _put(document, "mac", item.mac)
    _put(document, "mtu", item.mtu)
    _put(document, "sandbox", item.sandbox)
    _put(document, "socketPath", item.socket_path)
    _put(document, "pciID", item.pci_id)
    return document


def _ip(item: IpResult, *, labelled: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"version": str(item.address.version)} if labelled else {}
    document["address"] = str(item.address)
    _put(document, "gateway", item.gateway and str(item.gateway))
    if item.interface is not None:
        document["interface"] = item.interface
    return document


def _read_interface(fields: Fields) -> InterfaceResult:
    return InterfaceResult(
        name=fields.text("name"),
        mac=fields.text("mac"),
        mtu=fields.integer("mtu"),
        sandbox=fields.text("sandbox"),
        socket_path=fields.text("socketPath"),
        pci_id=fields.text("pciID"),
    )


def _read_ip(fields: Fields, key: str) -> IpResult:
    address: IPv4Interface | IPv6Interface = to_interface(fields.text(key), fields.path(key))
    interface = fields.integer("interface") if fields.given("interface") else None
    return IpResult(address=address, gateway=fields.address("gateway"), interface=interface)


def _read_route(fields: Fields) -> RouteConf:
    dst: Network = to_interface(fields.text("dst"), fields.path("dst")).network
    return RouteConf(dst=dst, gw=fields.address("gw"), **read_route_numbers(fields))
