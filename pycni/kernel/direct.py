"""Direct server return: packets with a mark are delivered to this node, and pods get a tunnel with the virtual address.

On the balancer: a rule and a table with one local route, so that marked packets reach IPVS although their address is
on no device. (Were it on one, the answers of local pods would be dropped as coming from ourselves.)

In the pod: an IPIP (IPv6 in IPv6) device with the virtual address, which takes the tunnelled packets and answers for
itself. The pod's namespace is found by its address among the named ones, so no container runtime is asked.
"""

from __future__ import annotations

import errno
import os
import struct

from pycni.errors import KernelError
from pycni.kernel import netns, sysctl
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.vips import find_link
from pycni.model.family import Family, show
from pycni.model.tables import LINK_ALIAS, ROUTE_PROTOCOL
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import NLM_F_CREATE, NLM_F_EXCL, attr, attr_u8, attr_u32, message, parse_attrs

TABLE, PRIORITY = 78, 32764
DEVICE = "pycni-dsr"
FOLDERS = ("/run/netns", "/var/run/netns", "/run/docker/netns")
"""Where runtimes pin the namespaces of pods: ip(8) and CNI runtimes, docker."""

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FR_ACT_TO_TBL = 1
_RULE = struct.Struct("=BBBBBBBBI")
IPTUN_LOCAL, IPTUN_PROTO = 2, 9
_KINDS = {Family.V4: "ipip", Family.V6: "ip6tnl"}
_IPPROTO_IPV6 = 41


class Routing:
    """Delivers packets with a mark to this node. One thread at a time; close it."""

    def __init__(self, mark: int, mask: int) -> None:
        self._mark, self._mask = mark, mask
        self._sock = NetlinkSocket()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def add(self, family: Family) -> None:
        """Make rule and route; present ones are success. Raises KernelError."""
        loopback = self._loopback()
        anywhere = bytes(family.bits // 8)
        route = rtnl.new_route(
            anywhere,
            0,
            oif=loopback,
            table=TABLE,
            kind=rtnl.RTN_LOCAL,
            scope=rtnl.RT_SCOPE_HOST,
            protocol=ROUTE_PROTOCOL,
            replace=True,
        )
        self._sock.request(route, "add route", f"local {family.label} default table {TABLE}")
        if not self._has_rule(family):
            msg = self._rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family)
            self._sock.request(msg, "add rule", f"{family.label} fwmark {self._mark:#x}/{self._mask:#x}")

    def remove(self, family: Family) -> bool:
        """Remove rule and route; whether there was a rule. Raises KernelError."""
        found = self._has_rule(family)
        if found:
            msg = self._rule(RTM_DELRULE, 0, family)
            self._sock.request(msg, "delete rule", f"{family.label} fwmark {self._mark:#x}")
        anywhere = bytes(family.bits // 8)
        route = rtnl.del_route(anywhere, 0, table=TABLE, kind=rtnl.RTN_LOCAL, protocol=ROUTE_PROTOCOL)
        try:
            self._sock.request(route, "delete route", f"local {family.label} default table {TABLE}")
        except KernelError as exc:
            if exc.errno not in {errno.ESRCH, errno.ENOENT}:
                raise
        return found

    def present(self, family: Family) -> bool:
        """Whether the rule and the route are there."""
        if not self._has_rule(family):
            return False
        found = self._sock.dump(rtnl.dump_routes(family, table=TABLE), "list routes")
        return any(rtnl.parse_route(msg).kind == rtnl.RTN_LOCAL for msg in found)

    def _loopback(self) -> int:
        [reply] = self._sock.request(rtlink.get_link(name="lo"), "find link", "lo")
        return rtlink.parse_link(reply).ifindex

    def _rule(self, kind: int, flags: int, family: Family) -> bytes:
        head = _RULE.pack(family, 0, 0, 0, TABLE, 0, 0, FR_ACT_TO_TBL, 0)
        attrs = (
            attr_u32(FRA_PRIORITY, PRIORITY)
            + attr_u32(FRA_FWMARK, self._mark)
            + attr_u32(FRA_FWMASK, self._mask)
            + attr_u32(FRA_TABLE, TABLE)
            + attr_u8(FRA_PROTOCOL, ROUTE_PROTOCOL)
        )
        return message(kind, flags, head + attrs)

    def _has_rule(self, family: Family) -> bool:
        head = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for msg in self._sock.dump(message(RTM_GETRULE, 0, head), "list rules"):
            attrs = parse_attrs(msg.payload, 12)
            marks = tuple(attrs.get(name, b"") for name in (FRA_FWMARK, FRA_FWMASK, FRA_TABLE))
            if msg.payload[0] == family and marks == tuple(
                struct.pack("=I", value) for value in (self._mark, self._mask, TABLE)
            ):
                return True
        return False


class PodTunnels:
    """Tunnel devices in pods, by the pods' addresses. Remembers where a pod was found."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def add(self, pod: bytes, vip: bytes) -> None:
        """Let a pod answer for a virtual address. Raises KernelError (ESRCH: no namespace has the pod's address)."""
        fd = self._open(pod)
        try:
            netns.run_in(fd, lambda: _tunnel_in(pod, vip))
        finally:
            os.close(fd)

    def remove(self, pod: bytes, vip: bytes) -> bool:
        """Take a virtual address from a pod, with the last one the device; a pod that is gone is success."""
        try:
            fd = self._open(pod)
        except KernelError as exc:
            if exc.errno == errno.ESRCH:
                return False
            raise
        try:
            return netns.run_in(fd, lambda: _tunnel_out(pod, vip))
        finally:
            os.close(fd)

    def read(self) -> set[tuple[bytes, bytes]]:
        """(pod's address, virtual address) of every tunnel device of ours on this node."""
        found: set[tuple[bytes, bytes]] = set()
        for path in _namespaces():
            try:
                fd = netns.open_netns(path)
            except KernelError:
                continue  # gone since it was listed, or no namespace
            try:
                found |= netns.run_in(fd, _tunnels_here)
            except KernelError:
                continue  # a file that is no namespace
            finally:
                os.close(fd)
        return found

    def _open(self, pod: bytes) -> int:
        known = self._known.get(pod)
        paths = [known] if known else []
        for path in [*paths, *_namespaces()]:
            try:
                fd = netns.open_netns(path)
            except KernelError:
                continue  # gone since it was listed
            try:
                if netns.run_in(fd, lambda: pod in _addresses()):
                    self._known[pod] = path
                    return fd
            except KernelError:
                pass  # a file that is no namespace
            os.close(fd)
        self._known.pop(pod, None)
        raise KernelError(errno.ESRCH, "find pod's namespace", show(pod), f"none in {', '.join(FOLDERS)}")


def _namespaces() -> list[str]:
    own = os.stat("/proc/self/ns/net").st_ino
    found: dict[int, str] = {}
    for folder in FOLDERS:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # this runtime is not here
        for entry in entries:
            try:
                number = os.stat(entry.path).st_ino
            except OSError:
                continue  # removed meanwhile
            if number != own:
                found.setdefault(number, entry.path)
    return list(found.values())


def _addresses(index: int = 0) -> set[bytes]:
    with NetlinkSocket() as sock:
        return {rtnl.parse_address(msg).address for msg in sock.dump(rtnl.dump_addresses(index))}


def _device(family: Family) -> str:
    return DEVICE if family is Family.V4 else f"{DEVICE}6"


def _find(sock: NetlinkSocket, name: str) -> int:
    found = find_link(sock, name)
    return 0 if found is None else found.ifindex


def _tunnel_in(pod: bytes, vip: bytes) -> None:
    family = Family.of_packed(pod)
    name = _device(family)
    with NetlinkSocket() as sock:
        index = _find(sock, name)
        if not index:
            data = attr(IPTUN_LOCAL, pod)
            if family is Family.V6:
                data += attr_u8(IPTUN_PROTO, _IPPROTO_IPV6)
            sock.request(rtlink.new_link(name, _KINDS[family], data=data), "add tunnel", name)
            index = _find(sock, name)
        alias = rtlink.link_alias(f"{LINK_ALIAS}:{show(pod)}")
        sock.request(rtlink.set_link(index, alias), "set link", name)
        sock.request(rtlink.set_link(index, up=True), "set link up", name)
        msg = rtnl.new_address(index, vip, len(vip) * 8, flags=rtnl.IFA_F_NODAD | rtnl.IFA_F_NOPREFIXROUTE)
        sock.request(msg, "add address", f"{show(vip)} dev {name}")
    if family is Family.V4:
        # Clients are reached by another device than they come in by.
        sysctl.put(f"net/ipv4/conf/{name}/rp_filter", 2)


def _tunnel_out(pod: bytes, vip: bytes) -> bool:
    name = _device(Family.of_packed(pod))
    with NetlinkSocket() as sock:
        index = _find(sock, name)
        if not index:
            return False
        left = _addresses(index) - {vip}
        if any(not (len(address) == 16 and address[:2] == b"\xfe\x80") for address in left):
            try:
                sock.request(rtnl.del_address(index, vip, len(vip) * 8), "delete address", show(vip))
            except KernelError as exc:
                if exc.errno != errno.EADDRNOTAVAIL:
                    raise
                return False
        else:
            sock.request(rtlink.del_link(index), "delete tunnel", name)
    return True


def _tunnels_here() -> set[tuple[bytes, bytes]]:
    found: set[tuple[bytes, bytes]] = set()
    with NetlinkSocket() as sock:
        for family in Family:
            index = _find(sock, _device(family))
            if not index:
                continue
            addresses = [rtnl.parse_address(msg) for msg in sock.dump(rtnl.dump_addresses())]
            mine = [item for item in addresses if Family.of_packed(item.address) is family]
            vips = [i.address for i in mine if i.ifindex == index and i.scope != rtnl.RT_SCOPE_LINK]
            [reply] = sock.request(rtlink.get_link(index), "find link", _device(family))
            alias = rtlink.parse_link(reply).alias
            pods = {show(item.address): item.address for item in mine}
            pod = pods.get(alias.partition(":")[2])
            if pod is not None:
                found |= {(pod, vip) for vip in vips}
    return found
