"""What mapped ports need besides nft rows: loopback connections let out, stale UDP flows forgotten.

A connection to a mapped port of 127.0.0.1 leaves by bridge or host end with a loopback source (masqueraded on the way),
which the kernel allows only with ``route_localnet`` on that device; the tables' guard keeps pods from abusing it.
IPv6 has no such switch: the kernel lets nothing with ``::1`` leave the node or come back to it, so connections to a
mapped port of ``::1`` are refused at once (a client then tries ``127.0.0.1``).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from pycni.attach.plan import AttachPlan
from pycni.attach.portmap import PROTOCOLS
from pycni.attach.tables import Element, mapped_port
from pycni.kernel import conntrack, sysctl
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import Family
from pycni.wire import rtnl

_FAMILIES = {"v4": Family.V4, "v6": Family.V6}


def let_loopback_out(plan: AttachPlan) -> None:
    """Allow loopback sources on the device that leads to the pod when an IPv4 port is mapped. Raises KernelError."""
    if plan.way_in and any(entry.family is Family.V4 for entry in plan.host_ports):
        sysctl.put(f"net/ipv4/conf/{plan.way_in}/route_localnet", 1)


def forget_before(rows: Iterable[Element], sock: NetlinkSocket) -> None:
    """Forget UDP flows to this node's addresses from before their port was mapped. Raises KernelError."""
    wanted = _udp(rows)
    if not wanted:
        return
    local = {rtnl.parse_address(msg).address for msg in sock.dump(rtnl.dump_addresses(), "list addresses")}
    for family, port, _ in wanted:
        conntrack.forget(
            family, PROTOCOLS["udp"], port, lambda flow: not flow.translated and flow.original.target in local
        )


def forget_after(rows: Iterable[Element]) -> None:
    """Forget UDP flows that were led to a pod by ports it no longer has. Raises KernelError."""
    for family, port, pod in _udp(rows):
        conntrack.forget(
            family,
            PROTOCOLS["udp"],
            port,
            lambda flow, pod=pod: flow.translated and flow.reply.source == pod,  # type: ignore[misc]
        )


def _udp(rows: Iterable[Element]) -> set[tuple[Family, int, bytes]]:
    """Family, port of the node and pod's address of every mapped UDP port."""
    found = set()
    for row in rows:
        port = mapped_port(row)
        if port is not None and port[1].startswith("udp . "):
            number = int(port[1].removeprefix("udp . "))
            found.add((_FAMILIES[port[0]], number, ip_address(row.data.partition(" . ")[0]).packed))
    return found
