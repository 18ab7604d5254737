"""Early drop of what policies certainly deny, as a fast path for the engine: around the eBPF one, or alone.

Life: ``make`` adopts what an earlier life left running. Everything the engine says goes to the fast path below, whose
maps the XDP program judges by; with ``policy: nftables`` that is one without programs at pods. Before its maps are used
again the program is told what the node is like. Interfaces and tunnels are looked at now and then (``sweep``), because
they come and go without anybody telling. Closing leaves everything at work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from pycni.errors import ConfigError
from pycni.kernel import bpf_places
from pycni.policy.base import Decision, Denied, DropReader, Hits, LocalPod, Packet
from pycni.policy.ebpf import fastpath
from pycni.policy.ebpf.driver import Places
from pycni.policy.ebpf.fastpath import EbpfFastPath
from pycni.policy.xdp import driver
from pycni.policy.xdp.driver import PART, Programs
from pycni.view.policy_stages import ABSENT, OWN, RowDiff

LOOK_S = 10.0
"""How often interfaces and tunnels are looked at."""


def missing(places: Places = Places()) -> str:  # noqa: B008 - immutable
    """What this machine lacks for it, in one line; "" when it can run here. Changes nothing."""
    return fastpath.missing(places) or driver.missing(places.cache)


def make(
    node: str,
    *,
    mode: str,
    devices: Sequence[str],
    vxlan_port: int = 0,
    fast: EbpfFastPath | None = None,
    places: Places = Places(),  # noqa: B008 - immutable
) -> XdpPath:
    """For the node whose network namespace this thread is in. The engine gets this in the place of ``fast``.

    ``mode``: auto (native, else generic), native or generic. ``devices``: interfaces by which other nodes and the
    outside come in. ``vxlan_port``: of the overlay's devices, which are found by themselves; 0: all. ``fast``: the fast
    path at pods, which is taken over; None: there is none. Raises ConfigError (what lacks), BuildError, KernelError.
    """
    lacks = missing(places)
    if lacks:
        raise ConfigError("setting", "policy-xdp", mode, lacks)
    below = fast or fastpath.make(node, places=places)
    try:
        programs = Programs(
            node, below.maps, mode=mode, vxlan_port=vxlan_port, bpffs=places.bpffs, cache=places.cache
        )
    except BaseException:
        if fast is None:
            below.close()
        raise
    return XdpPath(below, programs, devices, tracked=fast is not None)


def leftovers(places: Places = Places()) -> list[str]:  # noqa: B008 - immutable
    """Detach and remove what an earlier life left for the node this thread is in; says what went."""
    return [
        f"{os.path.basename(os.path.dirname(folder))}: {name}"
        for folder in bpf_places.existing(PART, places.bpffs)
        for name in bpf_places.remove_tree(folder)
    ]


class XdpPath:
    """See ``base.FastPath``. One thread at a time."""

    def __init__(
        self, below: EbpfFastPath, programs: Programs, devices: Sequence[str], *, tracked: bool
    ) -> None:
        """Attaches nothing yet. ``tracked``: ``below`` has programs at pods."""
        self.name = f"{below.name} and xdp" if tracked else "xdp"
        self.below = below
        self._programs = programs
        self._devices = tuple(dict.fromkeys(devices))
        self._tracked = tracked
        self._own: set[bytes] = set()
        self._begun = False
        self._looked = time.monotonic()

    @property
    def devices(self) -> Mapping[str, str]:
        """How the program runs, native or generic, by interface."""
        return self._programs.modes

    # --- what policies say ---------------------------------------------------------------------------------------

    def update(self, rows: Sequence[RowDiff], *, full: bool) -> None:
        """See ``base.FastPath``."""
        if full:
            self._own.clear()
        for row in rows:
            if row.table == OWN:
                (self._own.discard if row.after is ABSENT else self._own.add)(row.key)
        self.below.update(rows, full=full)

    def aside(self) -> None:
        """See ``base.FastPath``."""
        self.below.aside()

    def apply(self) -> int:
        """See ``base.FastPath``."""
        if not self._begun:
            # States may be numbered from the beginning again; nothing may be remembered of those of an earlier life.
            self.below.aside()
            self._programs.forget()
            if not self._tracked:
                self.below.pods(())
            self._programs.attach(self._devices)
            self._begun = True
        self._programs.prepare(self._own, tracked=self._tracked)
        return self.below.apply()

    def decide(self, packet: Packet) -> Decision | None:
        """See ``base.FastPath``."""
        return self.below.decide(packet)

    def read_back(self, packet: Packet) -> Decision | None:
        """See ``base.FastPath``."""
        return self.below.read_back(packet)

    # --- pods, upkeep --------------------------------------------------------------------------------------------

    def pods(self, pods: Sequence[LocalPod]) -> None:
        """See ``base.FastPath``."""
        if self._tracked:
            self.below.pods(pods)

    def sweep(self) -> None:
        """See ``base.FastPath``."""
        self.below.sweep()
        now = time.monotonic()
        if self._begun and now - self._looked >= LOOK_S:
            self._looked = now
            self.look()

    def look(self) -> None:
        """Have the program run on the interfaces there are now, and know the tunnels there are. Raises KernelError."""
        self._programs.attach(self._devices)
        self._programs.prepare(self._own, tracked=self._tracked)

    # --- what is told --------------------------------------------------------------------------------------------

    def denied(self) -> Sequence[Denied]:
        """See ``base.FastPath``."""
        names = self.below.compiled.rule_names()
        sums = {(found.policy, found.direction): found for found in self.below.denied()}
        for rule, (packets, size) in self._programs.counted().items():
            name = names.get(rule)
            for policy in () if name is None else name.policies:
                key = policy, "ingress"
                found = sums.get(key, Denied(*key, 0, 0))
                sums[key] = found._replace(packets=found.packets + packets, bytes=found.bytes + size)
        return [sums[key] for key in sorted(sums)]

    def hits(self) -> Sequence[Hits]:
        """See ``base.FastPath``."""
        return self.below.hits()

    def drops(self) -> DropReader:
        """See ``base.FastPath``."""
        return self.below.drops()

    def figures(self) -> Mapping[str, float]:
        """See ``base.FastPath``."""
        return {**self.below.figures(), "xdp interfaces": len(self._programs.modes)}

    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        """See ``base.FastPath``."""
        wanted, there = self.below.sides()
        lines = {name: f"program xdp dev {name}" for name in self._programs.modes}
        return [*wanted, *lines.values()], [*there, *(lines[name] for name in self._programs.running())]

    def problems(self) -> Sequence[str]:
        """See ``base.FastPath``."""
        return [*self.below.problems(), *(f"xdp: {text}" for text in self._programs.problems())]

    def remove(self) -> list[str]:
        """See ``base.FastPath``."""
        gone = [f"{PART}/{name}" for name in self._programs.remove()]
        return gone + self.below.remove()

    def close(self) -> None:
        """See ``base.FastPath``."""
        self._programs.close()
        self.below.close()
