"""The kernel's ipsets over netlink: made, filled, exchanged, listed. Sets belong to a network namespace."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.family import Family
from pycni.wire import ipset as wire
from pycni.wire.ipset import Member, SetInfo, SetSpec
from pycni.wire.netlink import Message


class Ipset:
    """ipset in the namespace this was made in. One thread at a time; close it."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_NETFILTER)
        self._revisions: dict[tuple[str, Family], int] = {}

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def missing(self) -> str:
        """What the kernel lacks of ipset, in one line; "" when all types we use are there. Changes nothing."""
        for type_name in wire.TYPES:
            try:
                self._revision(type_name, Family.V4)
            except KernelError as exc:
                if exc.errno == errno.EINVAL:
                    return "the kernel has no ipset (module ip_set)"
                return f"the kernel has no ipset type {type_name} (module ip_set_{_module(type_name)})"
        return ""

    def create(self, name: str, spec: SetSpec) -> None:
        """Make a set; an equal one is success. Raises KernelError (EEXIST: of that name, but another kind)."""
        msg = wire.create(name, spec, self._revision(spec.type, spec.family))
        self._request(msg, "create set", f"{name} {spec.type} {spec.family.label}")

    def destroy(self, name: str) -> None:
        """Remove a set; a missing one is success. Raises KernelError (it is in use by rules)."""
        try:
            self._request(wire.destroy(name), "destroy set", name)
        except KernelError as exc:
            if exc.errno != errno.ENOENT:
                raise

    def flush(self, name: str) -> None:
        """Remove all members. Raises KernelError."""
        self._request(wire.flush(name), "flush set", name)

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets. Raises KernelError (they are of different kinds)."""
        self._request(wire.swap(one, other), "swap set", f"{one} {other}")

    def add(self, name: str, members: Mapping[Member, int], *, marks: bool = False) -> None:
        """Add members, present ones too, with their packet marks. Raises KernelError; those before may be in."""
        self._alter(name, list(members.items()), add=True, marks=marks)

    def delete(self, name: str, members: Sequence[Member]) -> None:
        """Delete members, missing ones too. Raises KernelError."""
        self._alter(name, [(member, 0) for member in members], add=False, marks=False)

    def headers(self) -> dict[str, SetInfo]:
        """All sets of the namespace without their members."""
        return wire.parse_sets(self._sock.dump(wire.list_request(headers=True), "list sets"))

    def read(self, name: str) -> SetInfo | None:
        """One set with its members; None when it is not there. Raises KernelError."""
        try:
            return wire.parse_sets(self._sock.dump(wire.list_request(name), "list set", name)).get(name)
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    def _alter(self, name: str, items: list[tuple[Member, int]], *, add: bool, marks: bool) -> None:
        operation = "add to set" if add else "delete from set"
        for start in range(0, len(items), wire.MAX_MEMBERS):
            part = items[start : start + wire.MAX_MEMBERS]
            about = f"{name} {wire.member_text(part[0][0])}" + (
                f" and {len(part) - 1} more" if part[1:] else ""
            )
            self._request(wire.alter(name, part, add=add, marks=marks), operation, about)

    def _revision(self, type_name: str, family: Family) -> int:
        known = self._revisions.get((type_name, family))
        if known is None:
            replies = self._request(wire.type_request(type_name, family), "find set type", type_name)
            known = self._revisions[type_name, family] = wire.parse_revision(replies[0])
        return known

    def _request(self, msg: bytes, operation: str, obj: str) -> list[Message]:
        try:
            return self._sock.request(msg, operation, obj)
        except KernelError as exc:
            detail = wire.ERRORS.get(exc.errno, exc.detail)
            raise KernelError(exc.errno, operation, obj, detail) from exc


def _module(type_name: str) -> str:
    return type_name.replace(":", "_", 1).replace(",", "")
