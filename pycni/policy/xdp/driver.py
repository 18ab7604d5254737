"""The XDP program on a node's interfaces, and what it goes by.

Life: opening finds pinned maps and links of an earlier life, whose program goes on meanwhile. ``prepare`` says what the
node is like and has to come before the maps that judge are used; ``attach`` brings the program to the interfaces. A
newer program takes the place of an older one behind each link in one step; a link is made once and then kept, because
some drivers make their queues anew when a first program comes. On an interface that has somebody else's program nothing
is done. Everything stays when the agent goes.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_build, bpf_places, bpf_xdp, netns
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.kernel.bpf_object import Attachment, BpfObject, ProgramSpec, Source
from pycni.kernel.bpf_xdp import GENERIC, NATIVE, Device
from pycni.kernel.netlink import NetlinkSocket
from pycni.policy.ebpf.driver import SPECS as SHARED
from pycni.policy.ebpf.driver import headers
from pycni.policy.xdp import layout
from pycni.policy.xdp.layout import Setup, Tunnel
from pycni.wire import rtlink

PART = "xdp"
AUTO = "auto"
OLDEST = (5, 18)
"""First kernel that lets drivers with large MTUs have programs that can do with packets in pieces."""
FUNCTION = "pycni_xdp"
SPECS = (*SHARED, *(MapSpec(*row) for row in layout.MAPS))
"""The maps that judge, which are lent, and the program's own."""
_PROGRAM = ProgramSpec(FUNCTION, bpf.XDP, bpf.XDP_ATTACH, bpf_xdp.HAS_FRAGS)
_FIRST = bytes(4)
_WAYS = {AUTO: (NATIVE, GENERIC), NATIVE: (NATIVE,), GENERIC: (GENERIC,)}


def source(cache: str = bpf_build.CACHE) -> Source:
    """The program and where its builds are kept."""
    head = headers([spec.name for spec in SPECS])
    return Source(head + Path(__file__).with_name("xdp.c").read_text(), cache=cache)


def missing(cache: str = bpf_build.CACHE) -> str:
    """Why this machine cannot run the program; "" when it can."""
    item = source(cache)
    return bpf_build.lacking(OLDEST, item.text, [FUNCTION], item.flags, cache)


class Programs:
    """For the node whose network namespace the making thread is in. One thread at a time."""

    def __init__(
        self, node: str, lent: Mapping[str, BpfMap], *, mode: str, vxlan_port: int, bpffs: str, cache: str
    ) -> None:
        """``lent``: the maps that judge. ``vxlan_port``: 0 for any. Attaches nothing. Raises KernelError, OSError."""
        self.folder = bpf_places.folder(node, PART, bpf_places.bpffs(bpffs))
        self._ways = _WAYS[mode]
        self._port = vxlan_port
        self._object = BpfObject(
            self.folder,
            source(cache),
            SPECS,
            (_PROGRAM,),
            lent={spec.name: lent[spec.name] for spec in SHARED},
        )
        self.modes: dict[str, str] = {}
        """native or generic, by the names of the interfaces the program is on."""
        self._left: list[str] = []
        self._many = ""
        self._macs: tuple[bytes, ...] = ()
        try:
            self._setup = self._object.maps[layout.SETUP]
            self._home = netns.current()
        except BaseException:
            self._object.close()
            raise
        try:
            self._adopt()
            self._sock = NetlinkSocket()
        except BaseException:
            os.close(self._home)
            self._object.close()
            raise

    def prepare(self, own: Iterable[bytes], *, tracked: bool) -> None:
        """Say what the node is like: its own addresses, tunnels and interfaces. Raises KernelError."""
        setup = Setup(self._macs, self._tunnels(), frozenset(own), tracked).pack()
        if self._setup.get(_FIRST) != setup:
            self._setup.put(_FIRST, setup)

    def attach(self, names: Sequence[str]) -> bool:
        """Have the program run on these interfaces and no others, as far as can be (``problems``).

        True: ``prepare`` is due. Raises KernelError, BuildError, OSError.
        """
        self._left = []
        devices = self._devices(names)
        links = {device.name: self._link(device) for device in devices}
        running = [device for device in devices if self._serve(device, links)]
        self._commit({name: found for name, found in links.items() if found is not None})
        self.modes = {}
        for device in running:
            now = bpf_xdp.device(self._sock, device.name)
            if now is not None and now.mode:
                self.modes[device.name] = now.mode
        macs = tuple(device.mac for device in running)
        changed, self._macs = macs != self._macs, macs
        return changed

    def running(self) -> list[str]:
        """Which of the interfaces it was put on have it now. Raises KernelError."""
        found = {name: bpf_xdp.device(self._sock, name) for name in self.modes}
        return [name for name, device in found.items() if device is not None and device.mode]

    def problems(self) -> list[str]:
        """Where it does not run, or not look, and why."""
        return [*self._left, *([self._many] if self._many else [])]

    def counted(self) -> dict[bytes, tuple[int, int]]:
        """Packets and bytes by rule that are not in the rules' own counters yet. Raises KernelError."""
        found: dict[bytes, tuple[int, int]] = {}
        for rule, packets, size in layout.counted(self._object.maps[layout.DENIED].items().values()):
            before = found.get(rule, (0, 0))
            found[rule] = before[0] + packets, before[1] + size
        return found

    def forget(self) -> None:
        """Remember no denial, because the states of the maps may be numbered anew. Raises KernelError."""
        table = self._object.maps[layout.DENIED]
        table.update(
            {slot.to_bytes(4, sys.byteorder): bytes(table.spec.value) for slot in range(layout.SLOTS)}
        )

    def remove(self) -> list[str]:
        """Take the program off and its maps away; says what went."""
        self.modes = {}
        return self._object.detach()

    def close(self) -> None:
        """Release descriptors; the program goes on."""
        self._sock.close()
        os.close(self._home)
        self._object.close()

    # --- interfaces ----------------------------------------------------------------------------------------------

    def _devices(self, names: Sequence[str]) -> list[Device]:
        found: list[Device] = []
        for name in names:
            device = bpf_xdp.device(self._sock, name)
            if device is None:
                self._left.append(f"{name}: there is no such interface")
            elif not device.mac:
                self._left.append(f"{name}: not an Ethernet interface")
            elif len(found) == layout.MACS:
                self._left.append(f"{name}: more than {layout.MACS} interfaces")
            else:
                found.append(device)
        return found

    def _adopt(self) -> None:
        """Have this program, with these maps, run where one of an earlier life does."""
        self._commit(
            {
                name: Attachment(name, FUNCTION, target, target)
                for name, (target, _) in self._object.links().items()
                if target
            }
        )

    def _link(self, device: Device) -> Attachment | None:
        """Our link on an interface as it is; None: there is none, or one of a mode that is not wanted, which goes."""
        path = os.path.join(self.folder, "links", bpf_xdp.attachment(FUNCTION, device.ifindex, GENERIC).name)
        program, ifindex = bpf_xdp.link_program(path)
        if program not in device.programs or ifindex != device.ifindex:
            return None
        if device.mode in self._ways:
            return bpf_xdp.attachment(FUNCTION, device.ifindex, device.mode)
        bpf_places.detach(path)
        os.unlink(path)
        return None

    def _serve(self, device: Device, links: dict[str, Attachment | None]) -> bool:
        """Have a link on an interface, by the first way that its driver takes. The others' links stay as they are."""
        if links[device.name] is not None:
            return True
        fresh = bpf_xdp.device(self._sock, device.name)
        if fresh is None or fresh.programs:
            self._left.append(f"{device.name}: somebody else's XDP program is there; it is left alone")
            return False
        for way in self._ways:
            links[device.name] = bpf_xdp.attachment(FUNCTION, device.ifindex, way)
            try:
                self._commit({name: found for name, found in links.items() if found is not None})
            except KernelError as error:
                links[device.name] = None
                self._refused(device, way, error)
                continue
            return True
        return False

    def _refused(self, device: Device, way: str, error: KernelError) -> None:
        if error.errno in {errno.EBUSY, errno.EEXIST}:
            self._left.append(f"{device.name}: somebody else's XDP program is there; it is left alone")
        elif error.errno not in bpf_xdp.REFUSED or way == self._ways[-1]:
            self._left.append(f"{device.name}: {way} XDP: {error}")

    def _commit(self, links: Mapping[str, Attachment]) -> None:
        """Interfaces are those of the making thread's namespace, whoever calls."""
        wanted = list(links.values())
        try:
            if netns.is_current(self._home):
                self._object.commit(wanted)
            else:
                netns.run_in(self._home, lambda: self._object.commit(wanted))
        except OSError as exc:
            raise KernelError(exc.errno or errno.EIO, "load XDP program", self.folder, str(exc)) from exc

    def _tunnels(self) -> tuple[Tunnel, ...]:
        found = set()
        for reply in self._sock.dump(rtlink.dump_links(kind="vxlan"), "list links", "vxlan"):
            vxlan = rtlink.parse_link(reply).vxlan
            if vxlan is not None and vxlan.local and (not self._port or vxlan.port == self._port):
                found.add(Tunnel(vxlan.local, vxlan.port, vxlan.vni))
        tunnels = tuple(sorted(found))
        self._many = f"{len(tunnels)} VXLAN devices; {layout.TUNNELS} are looked into" * (
            len(tunnels) > layout.TUNNELS
        )
        return tunnels
