"""Virtual addresses on a dummy device of ours, and which addresses the node has besides.

The kernel takes what is sent to an address of any of its devices for its own, so packets to a virtual address reach
the LOCAL_IN hook, where IPVS is. The device is known by its alias; every address on it is ours.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable, Sequence

from pycni.errors import KernelError
from pycni.kernel.links import look_up
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.family import show
from pycni.model.tables import LINK_ALIAS
from pycni.wire import rtlink, rtnl

_FLAGS = rtnl.IFA_F_NODAD | rtnl.IFA_F_NOPREFIXROUTE


class Vips:
    """The addresses of one dummy device, in the namespace this was made in. One thread at a time; close it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sock = NetlinkSocket()

    def close(self) -> None:
        """Close the socket; the device stays."""
        self._sock.close()

    def find(self) -> int:
        """Index of the device; 0 when there is none. Raises KernelError (EEXIST: the name is somebody else's)."""
        link = find_link(self._sock, self._name)
        if link is None:
            return 0
        if link.alias != LINK_ALIAS:
            raise KernelError(
                errno.EEXIST, "use link", self._name, f"it is not marked as ours ({LINK_ALIAS!r})"
            )
        return link.ifindex

    def ensure(self) -> int:
        """Make the device unless it is there, bring it up; returns its index. EOPNOTSUPP: no dummy devices here."""
        index = self.find()
        if not index:
            self._sock.request(rtlink.new_link(self._name, "dummy"), "add link", self._name)
            # Older kernels take the alias, and all kernels the next, from a device that exists only.
            mark = rtlink.set_link(0, rtlink.link_alias(LINK_ALIAS), name=self._name)
            self._sock.request(mark, "set link", self._name)
            index = self.find()
            calm = rtlink.set_link(index, rtlink.addr_gen_mode(rtlink.ADDR_GEN_MODE_NONE))
            try:
                self._sock.request(calm, "set link", self._name)
            except KernelError as exc:
                if exc.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6
                    raise
        self._sock.request(rtlink.set_link(index, up=True), "set link up", self._name)
        return index

    def delete(self) -> bool:
        """Remove the device with its addresses; whether there was one. Raises KernelError."""
        index = self.find()
        if index:
            self._sock.request(rtlink.del_link(index), "delete link", self._name)
        return bool(index)

    def read(self) -> set[bytes]:
        """Addresses on the device."""
        index = self.find()
        return self._addresses(index) if index else set()

    def add(self, addresses: Sequence[bytes]) -> list[KernelError]:
        """Put addresses on the device; those that are there are success. Returns what failed."""
        index = self.ensure()
        results = self._sock.batch(
            [rtnl.new_address(index, address, len(address) * 8, flags=_FLAGS) for address in addresses]
        )
        return self._failed(results, addresses, "add address")

    def remove(self, addresses: Sequence[bytes]) -> list[KernelError]:
        """Take addresses off; missing ones are success. Returns what failed."""
        index = self.find()
        if not index:
            return []
        results = self._sock.batch(
            [rtnl.del_address(index, address, len(address) * 8) for address in addresses]
        )
        return self._failed(results, addresses, "delete address")

    def node_addresses(self) -> frozenset[bytes]:
        """Addresses of the node's other devices; loopback ones, and link-local ones of IPv6, are left out.

        Ports of a bridge and host ends of pods are not looked at: there are many, and what they carry is link-local.
        """
        found: set[bytes] = set()
        for msg in self._sock.dump(rtlink.dump_links(), "list links"):
            link = rtlink.parse_link(msg)
            if link.name != self._name and not link.master and not link.alias.startswith(f"{LINK_ALIAS}:"):
                found |= self._addresses(link.ifindex)
        return frozenset(item for item in found if not ipaddress.ip_address(item).is_loopback)

    def _addresses(self, index: int) -> set[bytes]:
        infos = (
            rtnl.parse_address(msg) for msg in self._sock.dump(rtnl.dump_addresses(index), "list addresses")
        )
        return {info.address for info in infos if info.scope != rtnl.RT_SCOPE_LINK}

    def _failed(
        self, results: Iterable[KernelError | None], addresses: Sequence[bytes], operation: str
    ) -> list[KernelError]:
        return [
            KernelError(error.errno, operation, f"{show(address)} dev {self._name}", error.detail)
            for error, address in zip(results, addresses, strict=True)
            if error is not None
            and not (operation.startswith("delete") and error.errno == errno.EADDRNOTAVAIL)
        ]


def can_make_link(kind: str) -> bool:
    """Whether the kernel has a kind of device; nothing is made. Raises KernelError for other failures.

    The name asked for is no valid one: a kernel with the kind refuses the name (EINVAL), one without it the kind
    (EOPNOTSUPP, net/core/rtnetlink.c).
    """
    with NetlinkSocket() as sock:
        try:
            sock.request(rtlink.new_link("no/name", kind), "try link", kind)
        except KernelError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                return False
            if exc.errno == errno.EINVAL:
                return True
            raise
    return True


def find_link(sock: NetlinkSocket, name: str) -> rtlink.Link | None:
    """The device of that name; None when there is none. Raises KernelError."""
    reply = look_up(sock, name)
    return rtlink.parse_link(reply) if reply is not None else None


def link_mtu(name: str) -> int:
    """MTU of a device; 0 when there is none of that name. Raises KernelError."""
    with NetlinkSocket() as sock:
        found = find_link(sock, name)
    return 0 if found is None else found.mtu
