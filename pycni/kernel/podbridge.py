"""The node's bridges: made when the first pod needs one, kept as planned, checked at next to no cost.

Life of a bridge: the first ADD of a network makes or adopts it. From then on a socket that hears only about the
devices in use tells whether anything about them changed: each ADD asks it with one system call, and only after a
change is the bridge read again and what differs repaired: state, MTU, gateway addresses, forwarding.

The bridge's MAC is fixed: left to the kernel it would follow its ports and change as pods come and go.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from typing import NamedTuple

from pycni.attach.plan import BridgePlan, PodAddress
from pycni.errors import KernelError
from pycni.kernel import podcheck, podleg, sysctl
from pycni.kernel import podlink as podlink_io
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.podwatch import DeviceWatch
from pycni.model.family import Family
from pycni.model.tables import LINK_ALIAS, ROUTE_PROTOCOL
from pycni.wire import podlink, rtlink, rtnl
from pycni.wire.netlink import attr, attr_u32, parse_attrs
from pycni.wire.rtlink import IFF_PROMISC, IFF_UP, IFLA_ADDRESS, IFLA_MTU, Link

log = logging.getLogger("pycni.attach")

TRIES = 8
"""Passes over a bridge that others change at the same time before giving up."""
_SCOPE_LINK = 253


class BridgeLink(NamedTuple):
    """A bridge as its ports need to know it."""

    ifindex: int
    mac: bytes
    gateway_ifindex: int
    """The device that carries the gateway addresses."""
    running: bool
    """That device was up when it was read. A bridge goes down and up with its first port, from a work queue of
    the kernel, and what the node sends by it in between is lost."""


class _Bridge(NamedTuple):
    """A bridge as it was read."""

    link: Link
    filters_vlans: bool


class _Present(NamedTuple):
    """An address found on a gateway device."""

    address: PodAddress
    ours: bool
    """Marked with our protocol number (kernel 5.18 and later keep it)."""
    link_local: bool
    tentative: bool


class Bridges:
    """All bridges of the node that pods of ours are on. Any thread; work under one short lock."""

    def __init__(self) -> None:
        """Start listening in the calling thread's namespace."""
        self._lock = threading.Lock()
        self._watch = DeviceWatch()
        self._valid: dict[BridgePlan, BridgeLink] = {}
        self._users: Counter[BridgePlan] = Counter()
        self._pinned: set[int] = set()

    def close(self) -> None:
        """Stop listening."""
        self._watch.close()

    def acquire(self, plan: BridgePlan, sock: NetlinkSocket) -> BridgeLink:
        """The bridge, made or repaired if need be, with one more pod counted on it (see ``release``).

        Raises KernelError when the kernel refuses or an address on the bridge conflicts (EADDRINUSE).
        """
        with self._lock:
            self._users[plan] += 1
            try:
                return self._ensure(plan, sock)
            except BaseException:
                self._drop(plan)
                raise

    def adopt(self, plan: BridgePlan) -> None:
        """Count a pod that is on the bridge already (after a restart)."""
        with self._lock:
            self._users[plan] += 1

    def release(self, plan: BridgePlan) -> None:
        """One pod less."""
        with self._lock:
            self._drop(plan)

    def repair(self, sock: NetlinkSocket) -> None:
        """Make every bridge that has pods as planned; for periodic calls. Raises KernelError."""
        with self._lock:
            for plan in list(self._users):
                self._ensure(plan, sock)

    def distrust(self) -> None:
        """Read bridges again before they are used next."""
        with self._lock:
            self._valid.clear()

    def gateway_ifindex(self, plan: BridgePlan) -> int:
        """Index of the device pods' neighbour entries are on, 0 when it is not known."""
        with self._lock:
            link = self._valid.get(plan)
        return link.gateway_ifindex if link is not None else 0

    def _drop(self, plan: BridgePlan) -> None:
        self._users[plan] -= 1
        if self._users[plan] <= 0:
            del self._users[plan]

    def _ensure(self, plan: BridgePlan, sock: NetlinkSocket) -> BridgeLink:
        if self._watch.changed():
            self._valid.clear()
        found = self._valid.get(plan)
        if found is None:
            found = self._valid[plan] = self._establish(plan, sock)
        return found

    def _establish(self, plan: BridgePlan, sock: NetlinkSocket) -> BridgeLink:
        """Read, repair and read again until nothing differs while nobody changes anything."""
        for _ in range(TRIES):
            # What happened up to here is seen by the reads below; what happens from here on is heard of.
            self._watch.changed()
            bridge = _find_bridge(plan, sock) or _create_bridge(plan, sock)
            link = bridge.link
            if self._watch.listen(link.ifindex):
                continue
            msgs = self._link_differences(plan, bridge)
            leg = link
            if plan.vlan and plan.gateways and not msgs:
                leg = podleg.ensure_leg(sock, plan, link.ifindex)
                if self._watch.listen(link.ifindex, leg.ifindex):
                    continue
            msgs = msgs or self._address_differences(plan, leg, sock)
            _set_switches(plan)
            if not msgs:
                _await_addresses(plan, leg, sock)
                return BridgeLink(link.ifindex, link.mac, leg.ifindex, leg.operstate == rtlink.OPER_UP)
            self._apply(plan, sock, msgs)
        raise KernelError(errno.EBUSY, "set up bridge", plan.name, "others change it all the time")

    def _apply(self, plan: BridgePlan, sock: NetlinkSocket, msgs: list[bytes]) -> None:
        for error in sock.batch(msgs, "set up bridge", plan.name):
            if error is None:
                continue
            if error.errno == errno.EACCES and Family.V6 in plan.families:
                # IPv6 is switched off for new devices of this host.
                sysctl.put(f"net/ipv6/conf/{plan.gateway_device}/disable_ipv6", 0)
            elif error.errno not in {errno.ENODEV, errno.EADDRNOTAVAIL}:
                raise error

    def _link_differences(self, plan: BridgePlan, bridge: _Bridge) -> list[bytes]:
        """Messages that bring the bridge device to its plan."""
        link, index = bridge.link, bridge.link.ifindex
        msgs = []
        if index not in self._pinned:
            # An address that was set on purpose stays when ports join (br_stp_recalculate_bridge_id).
            alias = b"" if link.alias else rtlink.link_alias(LINK_ALIAS)
            msgs.append(rtlink.set_link(index, attr(IFLA_ADDRESS, link.mac), alias))
            self._pinned.add(index)
        if plan.vlan and not bridge.filters_vlans:
            msgs.append(podlink.filter_vlans(index))
        if plan.mtu and link.mtu != plan.mtu:
            msgs.append(rtlink.set_link(index, attr_u32(IFLA_MTU, plan.mtu)))
        if plan.promisc and not link.flags & IFF_PROMISC:
            msgs.append(podlink.set_up_promisc(index))
        elif not link.flags & IFF_UP:
            msgs.append(podlink.set_up(index))
        return msgs

    def _address_differences(self, plan: BridgePlan, leg: Link, sock: NetlinkSocket) -> list[bytes]:
        """Messages that bring the gateway addresses to the plan. Raises KernelError for a conflict."""
        listed = _addresses(leg, sock)
        present = [entry for entry in listed if not entry.link_local]
        wanted = set(plan.gateways)
        msgs = _link_local_differences(leg, listed) if Family.V6 in plan.families else []
        for entry in present:
            if entry.address not in wanted and self._is_in_the_way(plan, entry):
                self._forget(plan, entry.address)
                log.warning(
                    "removing %s from %s: network %s needs its place",
                    entry.address.text(),
                    leg.name,
                    plan.network,
                )
                msgs.append(rtnl.del_address(leg.ifindex, entry.address.address, entry.address.prefix_len))
        found = {entry.address for entry in present}
        for gateway in plan.gateways:
            if gateway not in found:
                flags = rtnl.IFA_F_NODAD if gateway.family is Family.V6 else 0
                msgs.append(
                    podlink.own_address(
                        leg.ifindex, gateway.address, gateway.prefix_len, flags=flags, protocol=ROUTE_PROTOCOL
                    )
                )
        return msgs

    def _is_in_the_way(self, plan: BridgePlan, entry: _Present) -> bool:
        """Whether an address that is not planned has to go. Raises KernelError when it may not.

        The reference bridge allows one IPv4 network, and IPv6 networks that do not overlap; here networks of ours
        may share a bridge as long as theirs do not overlap. A gateway of ours no pod uses goes, and so does one
        of a subnet the node no longer has.
        """
        address = entry.address
        rivals = [gateway for gateway in plan.gateways if gateway.family is address.family]
        users = {user.network for user in self._users if address in user.gateways}
        if not rivals:
            return False
        overlaps = any(address.overlaps(gateway) for gateway in rivals)
        if entry.ours or users:
            if not users or (plan.leased and users == {plan.network}):
                return True
            conflict = overlaps
        else:
            conflict = overlaps or address.family is Family.V4
        if conflict and not plan.force_address:
            wanted = " and ".join(gateway.text() for gateway in rivals)
            whose = f"of network {', '.join(sorted(users))}" if users else "of somebody else"
            reason = f"it has the address {address.text()} {whose}; forceAddress true replaces it"
            raise KernelError(
                errno.EADDRINUSE, "set gateway address", f"{wanted} dev {plan.gateway_device}", reason
            )
        return conflict

    def _forget(self, plan: BridgePlan, address: PodAddress) -> None:
        """No longer keep the gateway of a subnet the node lost; its pods are detached without it."""
        for user in [user for user in self._users if address in user.gateways]:
            if user.network == plan.network and user != plan:
                del self._users[user]
                self._valid.pop(user, None)


def _find_bridge(plan: BridgePlan, sock: NetlinkSocket) -> _Bridge | None:
    try:
        answer = sock.request(podlink.get_state(name=plan.name), "read link", plan.name)[0]
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    link = rtlink.parse_link(answer)
    if link.kind != "bridge":
        raise KernelError(
            errno.EEXIST, "create bridge", plan.name, f"the name belongs to a {link.kind or 'device'}"
        )
    info = parse_attrs(podlink.find_attr(answer.payload, rtlink.IFLA_LINKINFO))
    data = parse_attrs(info.get(rtlink.IFLA_INFO_DATA, b""))
    return _Bridge(link, data.get(podlink.IFLA_BR_VLAN_FILTERING, b"\0") != b"\0")


def _create_bridge(plan: BridgePlan, sock: NetlinkSocket) -> _Bridge:
    """Make the bridge; somebody else being faster is fine."""
    mac = (attr(IFLA_ADDRESS, plan.mac),) if plan.mac is not None else ()
    try:
        sock.request(rtlink.new_link(plan.name, "bridge", *mac), "create bridge", plan.name)
        log.info("made bridge %s for network %s", plan.name, plan.network)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
    found = _find_bridge(plan, sock)
    if found is None:
        raise KernelError(errno.ENODEV, "create bridge", plan.name, "it vanished at once")
    return found


def _addresses(leg: Link, sock: NetlinkSocket) -> list[_Present]:
    found = []
    for msg in sock.dump(rtnl.dump_addresses(leg.ifindex), "list addresses", leg.name):
        info = rtnl.parse_address(msg)
        if info.ifindex == leg.ifindex:
            protocol = parse_attrs(msg.payload, 8).get(podlink.IFA_PROTO, b"\0")[0]
            found.append(
                _Present(
                    PodAddress(Family.of_packed(info.address), info.address, info.prefix_len),
                    ours=protocol == ROUTE_PROTOCOL,
                    link_local=len(info.address) == 16 and info.scope == _SCOPE_LINK,
                    tentative=bool(info.flags & (rtnl.IFA_F_TENTATIVE | rtnl.IFA_F_DADFAILED)),
                )
            )
    return found


def _link_local_differences(leg: Link, listed: list[_Present]) -> list[bytes]:
    """Messages that give a gateway device an IPv6 link-local address that works now.

    For packets it forwards the node asks for pods' MACs with this address as source (RFC 4861 section 7.2.2); the
    kernel's own is of no use for the one to two seconds its duplicate detection takes.
    """
    if any(entry.link_local and not entry.tentative for entry in listed):
        return []
    index, own = leg.ifindex, podlink.link_local(leg.mac)
    msgs = [
        rtnl.del_address(index, entry.address.address, entry.address.prefix_len)
        for entry in listed
        if entry.link_local and entry.address.address == own
    ]
    msgs.append(podlink.own_address(index, own, 64, flags=rtnl.IFA_F_NODAD, protocol=ROUTE_PROTOCOL))
    return msgs


def _await_addresses(plan: BridgePlan, leg: Link, sock: NetlinkSocket) -> None:
    wanted = {gateway.address for gateway in plan.gateways if gateway.family is Family.V6}
    if wanted:
        wanted |= {entry.address.address for entry in _addresses(leg, sock) if entry.link_local}
        podlink_io.await_local(sock, leg.ifindex, wanted, leg.name)


def _set_switches(plan: BridgePlan) -> None:
    for family in plan.families:
        if sysctl.put(podcheck.FORWARDING[family], 1):
            log.info("switched %s forwarding on: bridge %s is a gateway", family.label, plan.name)
