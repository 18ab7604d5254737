"""The fast path of network policies: programs at pods' and exit interfaces, above the data plane that judges all.

Life: ``make`` adopts what an earlier life left running, or makes it all, standing aside. The engine's passes compile
rows (``update``), stand aside, and write what differs (``apply``). ``pods`` puts programs at new pods' interfaces and
takes those of gone pods back, with all connections they had; exit interfaces are looked at on the same occasions.
``sweep`` forgets connections that are over. Closing leaves everything at work in the kernel.

Which packet goes where, and why that is right: docs/ebpf.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from pycni.errors import ConfigError, KernelError
from pycni.kernel import bpf_build, bpf_places
from pycni.kernel.bpf_map import BpfMap
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.policy.base import Decision, Denied, DropReader, Hits, LocalPod, Packet
from pycni.policy.ebpf import devices as _devices
from pycni.policy.ebpf import evaluate, flows, listing
from pycni.policy.ebpf.classes import RuleName
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ebpf.devices import Device, Filters, Hooks, Links, Place
from pycni.policy.ebpf.driver import (
    PART,
    POD_IN,
    POD_OUT,
    UPLINK_IN,
    UPLINK_OUT,
    FastDriver,
    Places,
    forget_hosts,
    give_back,
    programs,
    source,
)
from pycni.policy.ebpf.events import Events
from pycni.policy.ebpf.flows import PodRow, Times
from pycni.policy.ebpf.layout import pack_address
from pycni.view.policy_stages import RowDiff

NAME = "ebpf"
OLDEST = (5, 11)
"""First kernel with all that the programs use; the newest is bpf_ktime_get_coarse_ns."""
LINKS_SINCE = (6, 6)
"""First kernel with links for programs on interfaces (tcx)."""
SLOW_S = 0.05
"""A sweep that takes longer is one of a big table."""
LOOK_S = 30.0
"""How often interfaces of pods are looked at without a reason."""


def missing(places: Places = Places()) -> str:  # noqa: B008 - immutable
    """What this machine lacks for it, in one line; "" when it can run here. Changes nothing."""
    if os.geteuid():
        return "eBPF programs need root"
    with open("/proc/filesystems", encoding="utf-8") as file:
        if "bpf" not in {line.split()[-1] for line in file}:
            return "the kernel has no bpf file system"
    text = source(places.cache)
    functions = [item.function for item in programs(tcx=True)]
    return bpf_build.lacking(OLDEST, text.text, functions, text.flags, places.cache)


def make(
    node: str,
    *,
    uplinks: Sequence[str] = (),
    spoof_check: bool = True,
    places: Places = Places(),  # noqa: B008 - immutable
    times: Times = Times(),  # noqa: B008 - immutable
    tcx: bool | None = None,
) -> EbpfFastPath:
    """The fast path of the node whose network namespace this thread is in.

    ``uplinks``: interfaces by which other nodes and the outside are reached, the overlay's too; those that are not
    there are waited for. ``tcx`` None: as the kernel can. Raises ConfigError (what lacks), BuildError, KernelError.
    """
    lacks = missing(places)
    if lacks:
        raise ConfigError("setting", "policy", NAME, lacks)
    links = bpf_build.kernel() >= LINKS_SINCE if tcx is None else tcx
    return EbpfFastPath(node, uplinks, places, times, spoof_check=spoof_check, tcx=links)


def leftovers(places: Places = Places()) -> list[str]:  # noqa: B008 - immutable
    """Detach and remove what an earlier life left for the node this thread is in; says what went."""
    found = bpf_places.existing(PART, places.bpffs)
    if bpf_build.kernel() < LINKS_SINCE and found:
        with NetlinkSocket() as sock:
            _devices.take_filters_off(sock)
    gone = []
    for folder in found:
        with NetlinkSocket(NETLINK_NETFILTER) as sock:
            give_back(folder, sock)
        gone += [
            f"{os.path.basename(os.path.dirname(folder))}: {name}" for name in bpf_places.remove_tree(folder)
        ]
    return gone


def forget(addresses: Collection[bytes], places: Places = Places()) -> int:  # noqa: B008 - immutable
    """Forget a pod that is cut off, before another one can get its addresses; says how many connections it had.

    For the node whose network namespace this thread is in; on any thread, whoever has the fast path.
    Raises KernelError.
    """
    return sum(forget_hosts(folder, addresses) for folder in bpf_places.existing(PART, places.bpffs))


class EbpfFastPath:
    """See ``base.FastPath``. One thread at a time."""

    name = NAME

    def __init__(
        self,
        node: str,
        uplinks: Sequence[str],
        places: Places,
        times: Times,
        *,
        spoof_check: bool,
        tcx: bool,
    ) -> None:
        """Raises KernelError, BuildError."""
        self.compiled = Maps()
        self._uplinks = tuple(dict.fromkeys(uplinks))
        self._stale = True
        """The kernel's rows are not known to be as compiled."""
        self._pods: dict[LocalPod, Device] = {}
        self._trouble: dict[str, str] = {}
        """What is wrong with interfaces, by name."""
        self._looked = time.monotonic()
        self._sweep_from = 0.0
        self._sock = NetlinkSocket()
        self._conntrack = NetlinkSocket(NETLINK_NETFILTER)
        try:
            self.driver = FastDriver(node, places, times, spoof_check=spoof_check, tcx=tcx)
        except BaseException:
            self._sock.close()
            self._conntrack.close()
            raise
        obj = self.driver.object
        self._hooks: Hooks = Links(obj) if tcx else Filters(obj, self._sock)
        self._places = self._hooks.found()

    @property
    def maps(self) -> Mapping[str, BpfMap]:
        """The maps, for other programs that judge by them."""
        return self.driver.maps

    # --- what policies say ---------------------------------------------------------------------------------------

    def update(self, rows: Sequence[RowDiff], *, full: bool) -> None:
        """See ``base.FastPath``."""
        self.compiled.update(rows, full=full)
        self._stale = self._stale or full

    def aside(self) -> None:
        """See ``base.FastPath``."""
        self.driver.aside()

    def apply(self) -> int:
        """See ``base.FastPath``. Where rows do not fit into the maps it stands aside."""
        stale, self._stale = self._stale, True
        changes = self.compiled.against(self.driver.read()) if stale else self.compiled.take()
        if self.compiled.unfit:
            self.driver.aside()
            return 0
        count = self.driver.apply(changes) if changes else 0
        self._attend_uplinks()
        if changes or not self.driver.judging:
            self.driver.judge()
        self._stale = False
        return count

    def decide(self, packet: Packet) -> Decision | None:
        """See ``base.FastPath``."""
        return self.compiled.decide(packet)

    def read_back(self, packet: Packet) -> Decision | None:
        """See ``base.FastPath``."""
        if not self.driver.judging:
            return None
        return evaluate.decide(self.driver.live(), self.compiled.rule_names(), packet)

    # --- pods ----------------------------------------------------------------------------------------------------

    def pods(self, pods: Sequence[LocalPod]) -> None:
        """See ``base.FastPath``. A pod must be given only after its policies have been: it is judged from here on."""
        wanted = dict.fromkeys(pod for pod in pods if pod.addresses)
        self._drop([pod for pod in self._pods if pod not in wanted])
        new: dict[LocalPod, Device] = {}
        failed: KernelError | None = None
        for pod in wanted:
            if pod not in self._pods:
                device = _devices.look(self._sock, pod.ifname)
                if device is None:
                    self._trouble[pod.ifname] = f"{pod.key}: there is no interface {pod.ifname}"
                else:
                    new[pod] = device
        # What was goes before what is new comes, which may have an address of it.
        rows = self._clear_away({**self._pods, **new})
        new |= {
            pod: device
            for pod, device in self._pods.items()
            if not all(pack_address(address) in rows for address in pod.addresses)
        }
        for name in self._trouble.keys() - {pod.ifname for pod in wanted} - {*self._uplinks}:
            del self._trouble[name]
        for pod, device in new.items():
            try:
                self._add(pod, device)
            except KernelError as error:
                self._trouble[pod.ifname] = f"{pod.key}: {error}"
                failed = failed or error
        self._attend_uplinks()
        if failed is not None:
            raise failed

    def _add(self, pod: LocalPod, device: Device) -> None:
        """Serve one pod. Raises KernelError."""
        maps, key = self.driver.maps, device.ifindex.to_bytes(4, "little")
        out, into = Place(POD_OUT, device.ifindex), Place(POD_IN, device.ifindex)
        since = 0
        before = maps[flows.PODS].get(pack_address(pod.addresses[0])) if pod.addresses else None
        if before is not None and PodRow.unpack(before).ifindex == device.ifindex and out in self._places:
            since = PodRow.unpack(before).since
        else:
            # What it was given before notes were taken may be replied to.
            self._attach(out)
            device = _devices.look(self._sock, pod.ifname) or device
            if device.packets:
                since = time.monotonic_ns() + self.driver.times.grace
        segment = device.segment
        if segment and _devices.filters_vlans(self._sock, segment):
            segment = 0
        row = PodRow(device.ifindex, segment, since, pod.mac, min(device.mtu, 0xFFFF)).pack()
        if maps[flows.DEVICES].get(key) != _devices_row(pod):
            self.driver.drop_flows([device.ifindex])
        maps[flows.PODS].update({pack_address(address): row for address in pod.addresses})
        maps[flows.DEVICES].put(key, _devices_row(pod))
        self._attach(into)
        _devices.settle(self._sock, device, pod.mac, static=True)
        self._pods[pod] = device
        self._trouble.pop(pod.ifname, None)

    def _attach(self, place: Place) -> None:
        if place not in self._places:
            self._hooks.attach([place])
            self._places.add(place)

    def _drop(self, gone: Iterable[LocalPod]) -> None:
        """Serve these pods no more."""
        for pod in gone:
            device = self._pods.pop(pod)
            _devices.settle(self._sock, device, pod.mac, static=False)

    def _clear_away(self, keep: Mapping[LocalPod, Device]) -> Collection[bytes]:
        """Bring rows and programs down to these pods', whoever left the others; says which addresses have rows.

        Raises KernelError.
        """
        maps = self.driver.maps
        indexes = {device.ifindex for device in keep.values()}
        addresses = {
            pack_address(address): device.ifindex for pod, device in keep.items() for address in pod.addresses
        }
        rows = maps[flows.PODS].items()
        stale = [key for key, raw in rows.items() if addresses.get(key) != PodRow.unpack(raw).ifindex]
        maps[flows.PODS].remove(stale)
        there = {key: int.from_bytes(key, "little") for key in maps[flows.DEVICES].items()}
        gone = [number for number in there.values() if number not in indexes]
        places = [
            place
            for place in self._places
            if place.function in {POD_IN, POD_OUT} and place.ifindex not in indexes
        ]
        self._hooks.detach(places)
        self._places.difference_update(places)
        maps[flows.DEVICES].remove([key for key, number in there.items() if number in gone])
        if gone:
            self.driver.drop_flows(gone)
        return rows.keys() - {*stale}

    # --- exits ---------------------------------------------------------------------------------------------------

    def _attend_uplinks(self) -> None:
        """Have programs run at the exits there are. Raises KernelError."""
        wanted: set[Place] = set()
        for name in self._uplinks:
            device = _devices.look(self._sock, name)
            if device is None or len(device.mac) != _devices.ETHERNET_BYTES:
                self._trouble[name] = f"there is no Ethernet interface {name}"
                continue
            self._trouble.pop(name, None)
            wanted |= {Place(UPLINK_IN, device.ifindex), Place(UPLINK_OUT, device.ifindex)}
        ours = {place for place in self._places if place.function in {UPLINK_IN, UPLINK_OUT}}
        new = wanted - ours
        if new:
            # What went out by it before has not been noted.
            self._hooks.attach(sorted(new, key=lambda place: place.function != UPLINK_OUT))
            self.driver.hold_datagrams()
        self._hooks.detach(sorted(ours - wanted))
        self._places = (self._places | new) - (ours - wanted)

    # --- upkeep --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """See ``base.FastPath``. A big table is looked through less often: it takes a twentieth of a processor."""
        now = time.monotonic()
        if now < self._sweep_from:
            return
        self.driver.sweep([device.ifindex for device in self._pods.values()])
        took = time.monotonic() - now
        self._sweep_from = now + (20 * took if took > SLOW_S else 0)
        if now - self._looked >= LOOK_S:
            self._looked = now
            self.driver.forget_rules(self.compiled.rule_names().keys())
            changed = [
                pod
                for pod, device in self._pods.items()
                if (found := _devices.look(self._sock, pod.ifname)) is None or found.ifindex != device.ifindex
            ]
            if changed:
                pods = list(self._pods)
                self._drop(changed)
                self.pods(pods)

    def denied(self) -> Sequence[Denied]:
        """See ``base.FastPath``. Several policies that isolate a pod all count what none of them allows."""
        names = self.compiled.rule_names()
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for rule, found in self.driver.denials().items():
            name = names.get(rule)
            for policy in () if name is None else name.policies:
                key = policy, _side(name)
                packets, size = sums.get(key, (0, 0))
                sums[key] = packets + found.packets, size + found.bytes
        for reason, found in self.driver.refused().items():
            if found.packets:
                sums[reason, "egress"] = found.packets, found.bytes
        return [Denied(*key, *sums[key]) for key in sorted(sums)]

    def hits(self) -> Sequence[Hits]:
        """See ``base.FastPath``."""
        names = self.compiled.rule_names()
        sums: dict[tuple[str, str], int] = {}
        for rule, found in self.driver.decided().items():
            name = names.get(rule)
            for policy in () if name is None else name.policies:
                key = policy, _side(name)
                sums[key] = sums.get(key, 0) + found.packets
        return [Hits(*key, sums[key]) for key in sorted(sums)]

    def drops(self) -> DropReader:
        """See ``base.FastPath``. There can be one reader at a time."""
        return Events(self.driver, self.compiled)

    def figures(self) -> Mapping[str, float]:
        """See ``base.FastPath``."""
        return {**self.driver.fills(), "pods": len(self._pods), "uplinks": len(self._uplinks)}

    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        """See ``base.FastPath``. Maps as bpftool(8) lists them; what programs note there themselves is left out."""
        pods = {
            (pack_address(address), device.ifindex): pod.mac
            for pod, device in self._pods.items()
            for address in pod.addresses
        }
        rows = {key: PodRow.unpack(raw) for key, raw in self.driver.maps[flows.PODS].items().items()}
        there = {(key, row.ifindex): row.mac for key, row in rows.items()}
        return (
            listing.lines(self.compiled.tables, pods, self._places),
            listing.lines(self.driver.read(), there, self._hooks.found()),
        )

    def problems(self) -> Sequence[str]:
        """See ``base.FastPath``."""
        return [*self.compiled.problems(), *self._trouble.values()]

    def remove(self) -> list[str]:
        """See ``base.FastPath``. Connections it carried are made known to connection tracking, and go on."""
        self.driver.aside()
        self.driver.hand_over(self._conntrack)
        self._drop(list(self._pods))
        self._hooks.detach(sorted(self._places))
        self._places = set()
        return self.driver.object.detach()

    def close(self) -> None:
        """See ``base.FastPath``."""
        self._hooks.close()
        self.driver.close()
        self._sock.close()
        self._conntrack.close()


def _side(name: RuleName | None) -> str:
    return "" if name is None else name.direction.name.lower()


def _devices_row(pod: LocalPod) -> bytes:
    return flows.device_row(pod.mac)
