"""Everything a packet may meet in one network namespace, read in one go for a trace.

Life: ``read`` works in the namespace its thread is in (``netns.run_in``) and gives a ``SpaceState``. Nothing is kept
and nothing is changed. Of firewalls only what is not ours is listed in words: our own tables are known from the
desired state.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from pycni.errors import KernelError
from pycni.kernel import ethtool, sysctl
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.spacefirewall import foreign_hooks
from pycni.kernel.spaceprograms import foreign_programs
from pycni.kernel.spacewireguard import peers
from pycni.model.family import Family
from pycni.model.space import (
    AddressState,
    Conntrack,
    FdbState,
    LinkState,
    NeighbourState,
    RouteState,
    RuleState,
    SpaceState,
)
from pycni.wire import rtlink, rtnl, rtrule
from pycni.wire.netlink import Message, parse_attrs

_FAMILIES = {2: Family.V4, 10: Family.V6}
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"} | {
    6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"
}  # fmt: skip
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_NUD = {
    0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x20: "failed",
    0x40: "noarp", 0x80: "permanent",
}  # fmt: skip
_OVERLAYS = frozenset({"vxlan", "ipip", "wireguard", "tun"})
_SWITCHES = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv4.conf.all.rp_filter",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
)
_PER_DEVICE = (
    "net/ipv4/conf/{}/rp_filter",
    "net/ipv4/conf/{}/forwarding",
    "net/ipv4/conf/{}/proxy_arp",
    "net/ipv6/conf/{}/disable_ipv6",
)
_IFLA_BRPORT_STATE = 1


def read(*, firewall: bool = True, devices: Iterable[str] | None = None, wireguard: str = "") -> SpaceState:
    """The namespace of the calling thread. Raises KernelError.

    ``firewall``: look for rules of others, which takes longest. ``devices``: whose own switches are read; None: all.
    ``wireguard``: folder of wireguard-go's sockets.
    """
    with NetlinkSocket() as sock:
        answers = list(sock.dump(rtlink.dump_links()))
        found = [(rtlink.parse_link(msg), _port_state(msg)) for msg in answers]
        names = {link.ifindex: link.name for link, _ in found}
        masters = {link.ifindex: names.get(link.master, "") for link, _ in found}
        links = {link.name: _link(link, names, state, wireguard) for link, state in found}
        return SpaceState(
            links=links,
            addresses=tuple(_addresses(sock, names)),
            routes=tuple(_routes(sock, names)),
            rules=tuple(_rules(sock)),
            neighbours=tuple(_neighbours(sock, names)),
            fdb=tuple(_fdb(sock, names, masters)),
            sysctls=_switches(links if devices is None else devices),
            hooks=foreign_hooks() if firewall else (),
            programs=tuple(foreign_programs(sock, answers)) if firewall else (),
            conntrack=_conntrack(),
            listening=tuple(_listening()),
        )


def _link(link: rtlink.Link, names: Mapping[int, str], state: str, wireguard: str) -> LinkState:
    overlay = link.vxlan or link.ipip
    return LinkState(
        name=link.name,
        kind=link.kind,
        mac=link.mac,
        mtu=link.mtu,
        up=link.up,
        carrier=bool(link.flags & rtlink.IFF_LOWER_UP),
        master=names.get(link.master, ""),
        index=link.ifindex,
        peer_index=link.parent,
        lower=names.get(link.parent, "") if link.kind != "veth" else "",
        hairpin=link.hairpin,
        isolated=link.isolated,
        port_state=state,
        vni=link.vxlan.vni if link.vxlan is not None else 0,
        port=link.vxlan.port if link.vxlan is not None else 0,
        local=overlay.local if overlay is not None else b"",
        checksum=_checksum(link),
        peers=peers(link.name, link.kind, wireguard),
    )


def _checksum(link: rtlink.Link) -> bool:
    """Whether checksums are left to a device that may compute them wrongly: asked of overlays only."""
    if link.kind not in _OVERLAYS:
        return True
    try:
        return ethtool.tx_checksum(link.name)
    except KernelError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENODEV}:
            raise
        return True


def _port_state(msg: Message) -> str:
    info = parse_attrs(parse_attrs(msg.payload, 16).get(rtlink.IFLA_LINKINFO, b""))
    if info.get(rtlink.IFLA_INFO_SLAVE_KIND) != b"bridge\0":
        return "forwarding"
    port = parse_attrs(info.get(rtlink.IFLA_INFO_SLAVE_DATA, b""))
    number = port.get(_IFLA_BRPORT_STATE, b"\3")[0]
    return _PORT_STATES[number] if number < len(_PORT_STATES) else str(number)


def _addresses(sock: NetlinkSocket, names: Mapping[int, str]) -> Iterable[AddressState]:
    for msg in sock.dump(rtnl.dump_addresses()):
        info = rtnl.parse_address(msg)
        trouble = "dadfailed" if info.flags & rtnl.IFA_F_DADFAILED else ""
        if not trouble and info.flags & rtnl.IFA_F_TENTATIVE:
            trouble = "tentative"
        yield AddressState(names.get(info.ifindex, ""), info.address, info.prefix_len, trouble)


def _routes(sock: NetlinkSocket, names: Mapping[int, str]) -> Iterable[RouteState]:
    for family in (rtnl.AF_INET, rtnl.AF_INET6):
        for msg in sock.dump(rtnl.dump_routes(family)):
            info = rtnl.parse_route(msg)
            if info.flags & rtnl.RTM_F_CLONED:
                continue
            yield RouteState(
                table=info.table,
                destination=info.destination,
                prefix_len=info.prefix_len,
                kind=_KINDS.get(info.kind, str(info.kind)),
                device=names.get(info.oif, ""),
                gateway=info.gateway,
                hops=info.hops,
                source=info.source,
                metric=info.metric,
                onlink=bool(info.flags & rtnl.RTNH_F_ONLINK),
                mtu=info.mtu,
                protocol=info.protocol,
            )


def _rules(sock: NetlinkSocket) -> Iterable[RuleState]:
    for number, family in _FAMILIES.items():
        for msg in sock.dump(rtrule.dump_rules(number)):
            info = rtrule.parse_rule(msg)
            yield RuleState(
                priority=info.priority,
                family=family,
                table=info.table,
                action=rtrule.ACTIONS.get(info.action, str(info.action)),
                source=info.source,
                source_len=info.source_len,
                destination=info.destination,
                destination_len=info.destination_len,
                iif=info.iif,
                oif=info.oif,
                mark=info.mark,
                mask=info.mask,
                invert=info.inverted,
            )


def _neighbours(sock: NetlinkSocket, names: Mapping[int, str]) -> Iterable[NeighbourState]:
    for family in (rtnl.AF_INET, rtnl.AF_INET6):
        for msg in sock.dump(rtnl.dump_neighbours(family)):
            info = rtnl.parse_neighbour(msg)
            state = next((word for bit, word in _NUD.items() if info.state & bit), "none")
            yield NeighbourState(names.get(info.ifindex, ""), info.destination, info.mac, state)


def _fdb(sock: NetlinkSocket, names: Mapping[int, str], masters: Mapping[int, str]) -> Iterable[FdbState]:
    for msg in sock.dump(rtnl.dump_fdb(0)):
        info = rtnl.parse_neighbour(msg)
        device, bridge = names.get(info.ifindex, ""), masters.get(info.ifindex, "")
        if info.flags & rtnl.NTF_SELF:
            yield FdbState(device, info.mac, remote=info.destination)
        elif bridge:
            yield FdbState(bridge, info.mac, port=device)


def _switches(devices: Iterable[str]) -> dict[str, str]:
    """Values by dotted name (by path for those of devices, whose names may have dots)."""
    names = [*_SWITCHES, *(name.format(device) for device in devices for name in _PER_DEVICE)]
    found = {}
    for name in names:
        try:
            found[name] = sysctl.get(name)
        except KernelError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL}:
                raise
    return found


def _conntrack() -> Conntrack:
    try:
        count, limit = (sysctl.get(f"net.netfilter.nf_conntrack_{name}") for name in ("count", "max"))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return Conntrack()
    return Conntrack(int(count), int(limit))


def _listening() -> Iterable[tuple[str, bytes, int]]:
    """From /proc/thread-self/net, which is this thread's namespace (proc_net(5)); addresses are host-order words."""
    for name, wanted in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == wanted:
                text, _, port = local.partition(":")
                words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
                yield name[:3], b"".join(words), int(port, 16)
