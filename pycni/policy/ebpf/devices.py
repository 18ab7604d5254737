"""Interfaces of the fast path: what they are like, and programs on their hooks.

Life of a pod's interface: ``look`` reads what decides how its packets may go; programs come to its hooks as pinned
links (tcx, Linux 6.6) or, before that, as filters of a priority of ours, which need no pins. They go with it.
A bridge's learnt entry for a pod would age while its packets go past the bridge, and what the node sends would then be
flooded: ``settle`` makes it a static one.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_tc, netns
from pycni.kernel.bpf_object import Attachment, BpfObject
from pycni.kernel.links import look_up
from pycni.kernel.netlink import NetlinkSocket
from pycni.policy.ebpf.driver import HOOK_OF
from pycni.wire import rtlink, rtnl, tc
from pycni.wire.netlink import NLM_F_CREATE, NLM_F_REPLACE, attr, message, parse_attrs

PRIORITY = 0x0050
"""Of our filters: before those of others."""
ETHERNET_BYTES = 6
_IFLA_QDISC, _IFLA_STATS64, _IFLA_BR_VLAN_FILTERING = 6, 23, 7
_UNSHAPED = frozenset({b"noqueue\0", b""})
_NTF_MASTER = 0x04
_NDA_LLADDR = 2
_NDMSG = struct.Struct("=BxxxiHBB")
_FAMILY_BRIDGE = 7


class Device(NamedTuple):
    """An interface as it was read."""

    name: str
    ifindex: int
    mac: bytes
    mtu: int
    master: int
    segment: int
    """The bridge, when pods on it may be given packets past it; 0: not this one."""
    packets: int
    """That it has received and sent."""


def look(sock: NetlinkSocket, name: str) -> Device | None:
    """Read an interface; None when it is not there. Raises KernelError."""
    reply = look_up(sock, name)
    if reply is None:
        return None
    link = rtlink.parse_link(reply)
    attrs = parse_attrs(reply.payload, 16)
    received, sent = struct.unpack_from("=QQ", attrs.get(_IFLA_STATS64, bytes(16)))
    plain = attrs.get(_IFLA_QDISC, b"") in _UNSHAPED and not link.isolated and link.master
    segment = link.master if plain and not _led_away(sock, link.ifindex) else 0
    return Device(name, link.ifindex, link.mac, link.mtu, link.master, segment, received + sent)


def filters_vlans(sock: NetlinkSocket, bridge: int) -> bool:
    """Whether ports of a bridge may be in different networks. Raises KernelError."""
    [reply] = sock.request(rtlink.get_link(bridge), "read bridge", f"ifindex {bridge}")
    info = parse_attrs(parse_attrs(reply.payload, 16).get(rtlink.IFLA_LINKINFO, b""))
    if info.get(rtlink.IFLA_INFO_KIND) != b"bridge\0":
        return True
    data = parse_attrs(info.get(rtlink.IFLA_INFO_DATA, b""))
    return data.get(_IFLA_BR_VLAN_FILTERING, b"\0") != b"\0"


def _led_away(sock: NetlinkSocket, ifindex: int) -> bool:
    """Whether filters of others do something to what an interface receives, as shaping does."""
    try:
        answers = sock.dump(tc.get_filters(ifindex), "list filters", f"ifindex {ifindex}")
    except KernelError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:
            raise
        return False
    found = (tc.program_of(answer.payload) for answer in answers)
    return any(item is None or item[0] != PRIORITY for item in found)


def settle(sock: NetlinkSocket, device: Device, mac: bytes, *, static: bool) -> None:
    """Make a bridge's entry for a MAC static, or take it away to be learnt again. Raises KernelError."""
    if not device.master:
        return
    number = rtnl.RTM_NEWNEIGH if static else rtnl.RTM_DELNEIGH
    flags = NLM_F_CREATE | NLM_F_REPLACE if static else 0
    head = _NDMSG.pack(_FAMILY_BRIDGE, device.ifindex, rtnl.NUD_NOARP if static else 0, _NTF_MASTER, 0)
    try:
        sock.request(message(number, flags, head + attr(_NDA_LLADDR, mac)), "set bridge entry", device.name)
    except KernelError as error:
        if static or error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


class Place(NamedTuple):
    """A hook of an interface: the function that runs there."""

    function: str
    ifindex: int

    @property
    def name(self) -> str:
        """Of the link's pin."""
        return f"{self.function}-{self.ifindex}"


class Hooks(Protocol):
    """Programs on hooks. Methods raise KernelError."""

    def found(self) -> set[Place]:
        """Where programs of ours run; those of interfaces that went are cleared away."""

    def attach(self, places: Sequence[Place]) -> None:
        """Have programs run there too. All are tried."""

    def detach(self, places: Sequence[Place]) -> None:
        """Take programs off; harmless where there are none."""

    def close(self) -> None:
        """Release descriptors; programs stay where they are."""


class Links:
    """Pinned links (tcx). Ours come first: what other programs translate has not been translated yet."""

    def __init__(self, obj: BpfObject) -> None:
        """For the interfaces of the network namespace this thread is in."""
        self._object = obj
        self._home = netns.current()

    def close(self) -> None:
        """See ``Hooks``."""
        os.close(self._home)

    def found(self) -> set[Place]:
        """See ``Hooks``."""
        there, gone = set(), []
        for name, (target, _) in self._object.links().items():
            function, _, index = name.rpartition("-")
            if target and str(target) == index:
                there.add(Place(function, target))
            else:
                gone.append(name)
        self._object.release(gone)
        return there

    def attach(self, places: Sequence[Place]) -> None:
        """See ``Hooks``."""
        wanted = [
            Attachment(place.name, place.function, place.ifindex, place.ifindex, bpf.TCX_FIRST)
            for place in places
        ]
        # An index means an interface of the calling thread's namespace, whichever that is now.
        if netns.is_current(self._home):
            self._object.attach(wanted)
        else:
            netns.run_in(self._home, lambda: self._object.attach(wanted))

    def detach(self, places: Sequence[Place]) -> None:
        """See ``Hooks``."""
        self._object.release([place.name for place in places])


class Filters:
    """Filters of clsact, where there are no links for interfaces. Names tell them from those of others."""

    def __init__(self, obj: BpfObject, sock: NetlinkSocket) -> None:
        self._object = obj
        self._sock = sock

    def close(self) -> None:
        """See ``Hooks``. The socket is the caller's."""

    def found(self) -> set[Place]:
        """See ``Hooks``. An earlier version's programs are put right on the way."""
        there: set[Place] = set()
        stale = []
        for msg in self._sock.dump(rtlink.dump_links(), "list links"):
            link = rtlink.parse_link(msg)
            for function, number in self._programs().items():
                if function.startswith("pod") != bool(link.master and link.kind == "veth"):
                    continue
                hook = _hook(function)
                ours = self._attached(link.ifindex, hook)
                if ours:
                    there.add(Place(function, link.ifindex))
                    if ours != number:
                        stale.append(Place(function, link.ifindex))
        self.attach(stale)
        return there

    def attach(self, places: Sequence[Place]) -> None:
        """See ``Hooks``."""
        failed: KernelError | None = None
        for place in places:
            try:
                self._put(place)
            except KernelError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def detach(self, places: Sequence[Place]) -> None:
        """See ``Hooks``."""
        for place in places:
            bpf_tc.detach(self._sock, place.ifindex, _hook(place.function), PRIORITY)

    def _put(self, place: Place) -> None:
        program = bpf.get(os.path.join(self._object.folder, "programs", place.function))
        try:
            bpf_tc.attach(
                self._sock, place.ifindex, _hook(place.function), program, priority=PRIORITY, name=place.name
            )
        finally:
            os.close(program)

    def _attached(self, ifindex: int, hook: int) -> int:
        try:
            return bpf_tc.attached(self._sock, ifindex, hook).get(PRIORITY, 0)
        except KernelError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:
                raise
            return 0

    def _programs(self) -> dict[str, int]:
        found = {}
        for function in HOOK_OF:
            fd = bpf.get(os.path.join(self._object.folder, "programs", function))
            try:
                found[function] = bpf.program_info(fd).id
            finally:
                os.close(fd)
        return found


def take_filters_off(sock: NetlinkSocket) -> None:
    """Remove our filters from all interfaces. Raises KernelError."""
    for msg in sock.dump(rtlink.dump_links(), "list links"):
        for hook in (bpf_tc.INGRESS, bpf_tc.EGRESS):
            bpf_tc.detach(sock, rtlink.parse_link(msg).ifindex, hook, PRIORITY)


def _hook(function: str) -> int:
    return bpf_tc.INGRESS if HOOK_OF[function] == bpf.TCX_INGRESS else bpf_tc.EGRESS
