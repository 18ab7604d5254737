"""Which clients the uplink's programs serve: those whose answers leave by the uplink again, by the node's routes.

Answers get the frontend's address back on the uplink and nowhere else, so a client that is routed otherwise is left to
nftables; so are this cluster's pods, for which Local policies mean something else. A routing policy of somebody's that
goes by anything but a mark may send answers anywhere: then nobody is served.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import FAMILIES, Network
from pycni.wire import rtnl
from pycni.wire.netlink import message, parse_attrs
from pycni.wire.rtnl import RouteInfo
from pycni_proxy.ebpf import layout

RTM_GETRULE = 34
FRA_FWMARK = 10
_STANDARD = frozenset({253, 254, 255})
"""Tables default, main and local: the rules every kernel starts with."""
MOST = 1 << 14
"""Entries of the map."""
_YES, _NO = b"\1\0\0\0", bytes(4)


def read(sock: NetlinkSocket, uplink: int, cluster: Sequence[Network]) -> dict[bytes, bytes]:
    """Rows of ``sources`` for an interface's index. Raises KernelError."""
    routes: list[RouteInfo] = []
    for family in FAMILIES:
        head = bytes((family, *bytes(11)))
        if any(
            map(_chooses, (msg.payload for msg in sock.dump(message(RTM_GETRULE, 0, head), "list rules")))
        ):
            continue
        found = sock.dump(rtnl.dump_routes(int(family), table=rtnl.RT_TABLE_MAIN), "list routes")
        routes += map(rtnl.parse_route, found)
    return rows(routes, uplink, cluster)


def rows(routes: Iterable[RouteInfo], uplink: int, cluster: Sequence[Network]) -> dict[bytes, bytes]:
    """Networks, each with whether clients inside are served; the longest one counts. Pure."""
    found: dict[bytes, bytes] = {}
    for route in routes:
        key = layout.network_key(route.destination, route.prefix_len)
        same = route.oif == uplink and route.kind == rtnl.RTN_UNICAST and not route.multipath
        # Several routes to one network: all of them have to be by the uplink.
        found[key] = _YES if same and found.get(key, _YES) == _YES else _NO
    for family in FAMILIES:
        found.setdefault(layout.network_key(bytes(family.bits // 8), 0), _NO)
    for key in found:
        if any(_inside(key, net) for net in cluster):
            found[key] = _NO
    for net in cluster:
        found[layout.network_key(net.network_address.packed, net.prefixlen)] = _NO
    if len(found) > MOST:
        return {layout.network_key(bytes(family.bits // 8), 0): _NO for family in FAMILIES}
    return found


def _inside(key: bytes, net: Network) -> bool:
    outer = layout.network_key(net.network_address.packed, net.prefixlen)
    length, inner = int.from_bytes(outer[:4], sys.byteorder), int.from_bytes(key[:4], sys.byteorder)
    if inner < length:
        return False
    shift = 128 - length
    return int.from_bytes(key[4:], "big") >> shift == int.from_bytes(outer[4:], "big") >> shift


def _chooses(rule: bytes) -> bool:
    """Whether a rule may send a packet without a mark by another table than the standard ones."""
    return rule[4] not in _STANDARD and FRA_FWMARK not in parse_attrs(rule, 12)
