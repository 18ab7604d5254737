"""Commands for a lab of backend ``extension``: an example of what people's own can do. Pure.

They build what backend ``vxlan`` builds, by hand: a device, and per peer a forwarding entry, neighbours and routes. All
may be run again. There is no ShutdownCommand, so that traffic goes on while an agent is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEVICE = "ext0"
OVERHEAD = {"ipv4": 50, "dual": 50, "ipv6": 70}
"""Bytes around a pod's packet, by the lab's family: the outer one is IPv4 where there is IPv4."""

_PREPARE = """\
set -e
if ! ip link show dev ext0 >/dev/null 2>&1; then
    ip link add ext0 type vxlan id 77 dstport 4790 nolearning \\
        local "${PUBLIC_IP:-$PUBLIC_IPV6}" dev "$EXTERNAL_INTERFACE"
fi
ip link set dev ext0 up
set -- $(ip -br link show dev ext0)
echo "$3"  # its MAC, for the others
"""
_FINISH = """\
set -e
for net in $SUBNET; do ip -4 address replace "${net%/*}/32" dev ext0; done
for net in $IPV6SUBNET; do ip -6 address replace "${net%/*}/128" dev ext0 nodad; done
"""
_ADD = """\
set -e
read -r mac
bridge fdb replace "$mac" dev ext0 dst "${PUBLIC_IP:-$PUBLIC_IPV6}" self permanent
for net in $SUBNET $IPV6SUBNET; do
    ip neighbour replace "${net%/*}" lladdr "$mac" dev ext0 nud permanent
    ip route replace "$net" via "${net%/*}" dev ext0 onlink
done
"""
_REMOVE = """\
read -r mac
for net in $SUBNET $IPV6SUBNET; do
    ip route delete "$net" dev ext0
    ip neighbour delete "${net%/*}" dev ext0
done
bridge fdb delete "$mac" dev ext0 dst "${PUBLIC_IP:-$PUBLIC_IPV6}" self
true  # what is not there need not be removed
"""


def example(family: str, mtu: int) -> Mapping[str, Any]:
    """Keys of ``Backend`` for an underlay of this MTU in bytes; ``family`` as in ``--family``."""
    return {
        "MTU": mtu - OVERHEAD[family],
        "PreStartupCommand": _PREPARE,
        "PostStartupCommand": _FINISH,
        "SubnetAddCommand": _ADD,
        "SubnetRemoveCommand": _REMOVE,
    }
