"""The lab's namespaces and the underlay between them.

Life: ``make_fabric`` makes the fabric's namespace with its bridge, ``make_node`` a node's with ``eth0`` plugged into
it: both ends of a cable are placed by one message, so nothing ever appears in the machine's own namespace. Pods'
namespaces come empty; what is in them is the plugin's work. ``found`` lists the namespaces of a lab by their names,
which is all that is needed to take a lab away.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import TypeVar

from pycni.errors import KernelError
from pycni.kernel import netns, sysctl
from pycni.kernel.netlink import NetlinkSocket
from pycni.lab import topology
from pycni.lab.stations import Inside
from pycni.lab.topology import LabSpec
from pycni.model.family import Family
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import attr_u8, attr_u32

BRIDGE = "br0"
UPLINK = "eth0"
MANY_NODES = 12
"""From here on nodes do not discover their neighbours on the underlay (see ``introduce``)."""
_IFLA_BR_MCAST_SNOOPING = 23
_IFA_F_NODAD = 0x02
_ENOENT = 2

T = TypeVar("T")


def make_fabric(spec: LabSpec) -> None:
    """The bridge all nodes are plugged into, with the fabric's own addresses on it. Raises KernelError."""
    name = topology.fabric_namespace(spec.name)
    netns.create(name)
    # Frames between nodes are no business of a packet filter here, and looking at them costs throughput.
    inside(name, _bridge_without_netfilter)
    with socket_in(name) as sock:
        # Neighbour discovery has to pass from the first packet on, with no multicast querier about.
        quiet = attr_u8(_IFLA_BR_MCAST_SNOOPING, 0)
        mtu = attr_u32(rtlink.IFLA_MTU, spec.mtu)
        sock.request(rtlink.new_link(BRIDGE, "bridge", mtu, data=quiet), "add link", BRIDGE)
        bring_up(sock, "lo")
        bring_up(sock, BRIDGE, *topology.underlay_addresses(spec, 0).values())


def has_link_kind(namespace: str, kind: str) -> bool:
    """Whether the kernel can make devices of a kind, by making one in this namespace. Raises KernelError."""
    name = f"try-{kind}"[:15]
    with socket_in(namespace) as sock:
        try:
            sock.request(rtlink.new_link(name, kind), "add link", name)
        except KernelError as exc:
            # Anything else comes from the kind itself, which wants to be told more.
            return exc.errno != errno.EOPNOTSUPP
        sock.request(rtlink.del_link(name=name), "delete link", name)
    return True


def make_node(spec: LabSpec, index: int) -> None:
    """A node's namespace with its cable into the fabric. Raises KernelError."""
    node = topology.node_name(index)
    name = topology.node_namespace(spec.name, node)
    _plug_in(spec, name, node)
    equip_node(spec, index, name)


def make_client(spec: LabSpec) -> None:
    """The namespace of somebody outside the cluster, with a cable into the fabric. Raises KernelError."""
    name = topology.client_namespace(spec.name)
    _plug_in(spec, name, topology.CLIENT)
    if Family.V6 in spec.families:
        inside(name, _calm_ipv6)
    with socket_in(name) as sock:
        bring_up(sock, "lo")
        bring_up(sock, UPLINK, *(topology.client_address(family) for family in spec.families))


def _plug_in(spec: LabSpec, name: str, port: str) -> None:
    """A new namespace whose ``eth0`` is a cable to ``port`` of the fabric's bridge."""
    netns.create(name)
    fd = netns.open_netns(netns.path(name))
    try:
        with socket_in(topology.fabric_namespace(spec.name)) as sock:
            mtu = attr_u32(rtlink.IFLA_MTU, spec.mtu)
            master = attr_u32(rtlink.IFLA_MASTER, index_of(sock, BRIDGE))
            cable = rtlink.new_veth(port, mtu, master, peer_name=UPLINK, peer_netns_fd=fd, peer_attrs=mtu)
            sock.request(cable, "add link", port)
            bring_up(sock, port)
    finally:
        os.close(fd)


def equip_node(spec: LabSpec, index: int, namespace: str) -> None:
    """Bring up a node's end of its cable, with the node's addresses. Raises KernelError."""
    if Family.V6 in spec.families:
        inside(namespace, _calm_ipv6)
    with socket_in(namespace) as sock:
        bring_up(sock, "lo")
        bring_up(sock, UPLINK, *topology.underlay_addresses(spec, index).values())
        if spec.proxy != "none":
            _add_way_out(spec, sock)


def _add_way_out(spec: LabSpec, sock: NetlinkSocket) -> None:
    """A default route to the fabric, where it ends: without one a node cannot send to a virtual address at all."""
    uplink = index_of(sock, UPLINK)
    for gateway in topology.underlay_addresses(spec, 0).values():
        route = rtnl.new_route(bytes(gateway.max_prefixlen // 8), 0, oif=uplink, gateway=gateway.ip.packed)
        sock.request(route, "add route", f"default via {gateway.ip}")


def introduce(spec: LabSpec, nodes: Sequence[str]) -> None:
    """Give every node permanent neighbour entries for all others, when they are many.

    The kernel keeps 1024 neighbours (net.ipv4.neigh.default.gc_thresh3, and as many for IPv6) for all namespaces of
    the machine together and drops packets beyond that; permanent entries do not count. Raises KernelError.
    """
    if len(nodes) < MANY_NODES:
        return
    macs = {}
    for node in nodes:
        with socket_in(topology.node_namespace(spec.name, node)) as sock:
            macs[node] = _link(sock, UPLINK).mac
    for node in nodes:
        with socket_in(topology.node_namespace(spec.name, node)) as sock:
            index = index_of(sock, UPLINK)
            entries = [
                rtnl.new_neighbour(index, address.packed, mac)
                for other, mac in macs.items()
                if other != node
                for address in topology.underlay_addresses(spec, topology.node_index(other)).values()
            ]
            for error in filter(None, sock.batch(entries, "add neighbour", f"dev {UPLINK} in {node}")):
                raise error


def found(lab: str) -> list[str]:
    """Names of every namespace of a lab that has a file, mounted or (after a reboot) not."""
    return sorted(
        name for name in _names() if (parsed := topology.parse_namespace(name)) and parsed.lab == lab
    )


def labs() -> list[str]:
    """Names of the labs that have namespaces."""
    return sorted({parsed.lab for name in _names() if (parsed := topology.parse_namespace(name))})


def inodes(names: Sequence[str]) -> list[int]:
    """Numbers of the namespaces; a file that is no namespace any more has none."""
    numbers = []
    for name in names:
        try:
            status = os.stat(netns.path(name))
        except FileNotFoundError:
            continue
        if status.st_dev != os.stat(netns.FOLDER).st_dev:
            numbers.append(status.st_ino)
    return numbers


def exists(name: str) -> bool:
    """Whether the namespace has a file."""
    return os.path.exists(netns.path(name))


def inside(name: str, function: Callable[[], T]) -> T:
    """Run a function inside a named namespace, on a thread of its own; "" is here.

    Raises what the function raises, KernelError.
    """
    if not name:
        return function()
    with Inside() as run:
        return run(netns.path(name), function)


def socket_in(name: str) -> NetlinkSocket:
    """A netlink socket inside a named namespace. Raises KernelError."""
    return inside(name, NetlinkSocket)


def index_of(sock: NetlinkSocket, link: str) -> int:
    """Index of a link by name. Raises KernelError."""
    return _link(sock, link).ifindex


def mtu_of(name: str, link: str) -> int:
    """MTU of a link inside a namespace, 0 when there is no such link."""
    try:
        with socket_in(name) as sock:
            return _link(sock, link).mtu
    except KernelError:
        return 0


def _link(sock: NetlinkSocket, link: str) -> rtlink.Link:
    return rtlink.parse_link(sock.request(rtlink.get_link(name=link), "find link", link)[0])


def bring_up(sock: NetlinkSocket, link: str, *addresses: IPv4Interface | IPv6Interface) -> None:
    """Give a link these addresses, usable at once, and set it up. Raises KernelError."""
    index = index_of(sock, link)
    for address in addresses:
        message = rtnl.new_address(
            index,
            address.packed,
            address.network.prefixlen,
            flags=_IFA_F_NODAD if address.version == 6 else 0,
        )
        sock.request(message, "add address", f"{address} dev {link}")
    sock.request(rtlink.set_link(index, up=True), "set link up", link)


def _bridge_without_netfilter() -> None:
    for family in ("iptables", "ip6tables", "arptables"):
        try:
            sysctl.put(f"net.bridge.bridge-nf-call-{family}", 0)
        except KernelError as exc:
            if exc.errno != _ENOENT:  # br_netfilter is not there: nothing to switch off
                raise


def _calm_ipv6() -> None:
    """Make the uplink what it is on a machine that has been up for a while.

    Duplicate address detection would keep its link-local address tentative for one or two seconds, in which the kernel
    cannot ask for neighbours on behalf of pods; router solicitations would fill the other nodes' neighbour tables.
    """
    for name in ("accept_dad", "router_solicitations"):
        sysctl.put(f"net.ipv6.conf.{UPLINK}.{name}", 0)


def _names() -> list[str]:
    return os.listdir(netns.FOLDER) if os.path.isdir(netns.FOLDER) else []
