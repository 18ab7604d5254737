"""The ``ipam`` object and every other place addresses are asked for, with host-local's keys and checks.

Own IPAM (``type`` missing, "" or "pycni") is decoded fully: ``ranges`` and the older single ``subnet``, ``exclude``
(ours: networks inside a range that are not handed out), ``routes``, ``dataDir``, ``resolvConf``; runtimeConfig's
``ipRanges`` go before the file's ranges, as host-local does it. Another ``type`` is a plugin of its own: its keys are
its business, only the type is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from pycni.errors import CniError
from pycni.model.cni import AddressRange, Dns, IpamConf, RouteConf
from pycni.model.family import Address
from pycni.wire.cni import at_least
from pycni.wire.cnifields import Fields, last_usable, objects, refuse, to_interface, to_requested
from pycni.wire.cniresult import read_route_numbers

OWN_TYPES = ("", "pycni")
RangeSet = tuple[AddressRange, ...]


def parse_ipam(
    conf: Fields, runtime: Fields, args: Fields, env_args: Mapping[str, str], version: str
) -> IpamConf:
    """Decode ``ipam``; ``runtime`` and ``args`` are runtimeConfig and args.cni, ``env_args`` CNI_ARGS."""
    ipam = conf.sub("ipam")
    kind = ipam.text("type")
    requested = _requested(runtime, args, env_args)
    if kind not in OWN_TYPES:
        if "/" in kind or kind in {".", ".."}:
            refuse("ipam.type", kind, "expected the file name of a plugin")
        return IpamConf(type=kind, requested=requested)
    sets = [_range_set(item, runtime.path("ipRanges"), index) for index, item in _lists(runtime, "ipRanges")]
    if ipam.given("subnet"):
        sets.append((_range(ipam),))
    sets += [_range_set(item, ipam.path("ranges"), index) for index, item in _lists(ipam, "ranges")]
    _check_sets(sets, ipam.path("ranges"), version)
    return IpamConf(
        range_sets=tuple(sets),
        routes=tuple(_route(item) for item in ipam.subs("routes")),
        data_dir=ipam.text("dataDir"),
        resolv_conf=ipam.text("resolvConf"),
        requested=requested,
    )


def _lists(fields: Fields, key: str) -> list[tuple[int, list[object]]]:
    """An array of arrays with the position of each."""
    outer = fields.raw.get(key)
    if outer is None:
        return []
    if type(outer) is not list:
        refuse(fields.path(key), outer, "expected an array of arrays of ranges", CniError.DECODE_FAILURE)
    for index, inner in enumerate(outer):
        if type(inner) is not list:
            refuse(
                f"{fields.path(key)}[{index}]", inner, "expected an array of ranges", CniError.DECODE_FAILURE
            )
    return list(enumerate(outer))


def _range_set(items: list[object], path: str, index: int) -> RangeSet:
    where = f"{path}[{index}]"
    ranges = tuple(_range(item) for item in objects(items, where))
    if not ranges:
        refuse(where, items, "empty range set")
    for one, other in combinations(ranges, 2):
        if one.subnet.version != other.subnet.version:
            refuse(where, [str(one.subnet), str(other.subnet)], "mixes address families")
        if _overlap(one, other):
            refuse(where, [_bounds(one), _bounds(other)], "ranges overlap")
    return ranges


def _range(item: Fields) -> AddressRange:
    """One range; start, end and gateway default to the first, the last and the first usable address."""
    subnet = item.network("subnet")
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        refuse(item.path("subnet"), str(subnet), "too small to allocate from")
    first = subnet.network_address + 1
    bounds: dict[str, Address] = {"rangeStart": first, "rangeEnd": last_usable(subnet)}
    for key in bounds:
        address = item.address(key)
        if address is not None:
            if address.version != subnet.version or address not in subnet:
                refuse(item.path(key), str(address), f"is not in subnet {subnet}")
            bounds[key] = address
    start, end = bounds["rangeStart"], bounds["rangeEnd"]
    if int(start) > int(end):
        refuse(item.path("rangeStart"), str(start), f"is above rangeEnd {end}")
    gateway = item.address("gateway")
    if gateway is not None and gateway.version != subnet.version:
        refuse(item.path("gateway"), str(gateway), f"is of another family than subnet {subnet}")
    exclude = []
    for index, text in enumerate(item.texts("exclude")):
        where = f"{item.path('exclude')}[{index}]"
        network = to_interface(text if "/" in text else f"{text}/{subnet.max_prefixlen}", where).network
        if network.version != subnet.version or not network.overlaps(subnet):
            refuse(where, text, f"is not in subnet {subnet}")
        exclude.append(network)
    return AddressRange(subnet=subnet, start=start, end=end, gateway=gateway or first, exclude=tuple(exclude))


def _check_sets(sets: list[RangeSet], path: str, version: str) -> None:
    for (one_index, one), (other_index, other) in combinations(enumerate(sets), 2):
        if any(_overlap(a, b) for a in one for b in other):
            shown = [_bounds(item) for item in (*one, *other)]
            refuse(path, shown, f"range sets {one_index} and {other_index} overlap")
    if at_least(version, "0.3.0"):
        return
    for family in (4, 6):
        if sum(item[0].subnet.version == family for item in sets) > 1:
            reason = f"cniVersion {version} has one address per family, 0.3.0 and later several"
            refuse(path, [_bounds(item[0]) for item in sets], reason)


def _overlap(one: AddressRange, other: AddressRange) -> bool:
    if one.subnet.version != other.subnet.version:
        return False
    return int(one.start) <= int(other.end) and int(other.start) <= int(one.end)


def _bounds(item: AddressRange) -> str:
    return f"{item.start}-{item.end}"


def _route(item: Fields) -> RouteConf:
    dst, gateway = item.network("dst"), item.address("gw")
    if gateway is not None and gateway.version != dst.version:
        refuse(item.path("gw"), str(gateway), f"is of another family than dst {dst}")
    return RouteConf(dst=dst, gw=gateway, **read_route_numbers(item))


def _requested(runtime: Fields, args: Fields, env_args: Mapping[str, str]) -> tuple[Address, ...]:
    """Addresses asked for. args.cni.ips supersedes CNI_ARGS IP (CONVENTIONS.md, "CNI_ARGS")."""
    found: dict[Address, None] = {}
    for fields in (args, runtime):
        for index, text in enumerate(fields.texts("ips")):
            if text:
                found[to_requested(text, f"{fields.path('ips')}[{index}]")] = None
    if not args.texts("ips"):
        for text in filter(None, env_args.get("IP", "").split(",")):
            found[to_requested(text, "CNI_ARGS IP", CniError.BAD_ENVIRONMENT)] = None
    return tuple(found)


def parse_resolv_conf(text: str) -> Dns:
    """What resolv.conf(5) says, for ``ipam.resolvConf``: the last ``domain`` and ``search`` count, as in libc."""
    nameservers: list[str] = []
    options: list[str] = []
    domain = ""
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        key, *values = line.split() or [""]
        if key.startswith(("#", ";")) or not values:
            continue
        if key == "nameserver":
            nameservers.append(values[0])
        elif key == "domain":
            domain = values[0]
        elif key == "search":
            search = tuple(values)
        elif key == "options":
            options += values
    return Dns(nameservers=tuple(nameservers), domain=domain, search=search, options=tuple(options))
