"""Taking labs away, in whatever state they are.

What belongs to a lab is known by its record (processes with start time, of this boot), by the names of its namespaces
(whatever runs in one of them) and by a mark in its daemons' environment. Each is enough, so a lab is removed
completely also when its start was cut off by kill -9, when its record is lost or damaged, and after a reboot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import bpf_places
from pycni.kernel import netns as kernel_netns
from pycni.lab import netns, processes, topology
from pycni.lab.processes import ProcessId
from pycni.lab.report import Progress
from pycni.lab.state import LabState, recorded
from pycni.lab.topology import LabError


class Wiped(NamedTuple):
    """What was removed."""

    namespaces: int
    processes: int


def down(name: str) -> Wiped:
    """Take a lab down, whatever state it is in. Nothing to do is no error."""
    require_root()
    state = LabState(topology.check_lab_name(name))
    with state.lock():
        return wipe(state)


def wipe(state: LabState) -> Wiped:
    """Remove everything of a lab: its processes, its namespaces, its record. To be called with its lock held."""
    spaces = netns.found(state.name)
    try:
        record = state.load()
    except LabError:
        record = None  # damaged: what the names of the namespaces tell has to do
    mine: list[ProcessId] = []
    if record is not None and record.boot_id == processes.boot_id():
        mine = list(record.processes.values())
    ended = end_processes(spaces, mine, daemons_of=state.name)
    for space in spaces:
        # Programs of a node's agent stay in the kernel without it, and after this nobody could tell whose they are.
        with contextlib.suppress(KernelError):
            bpf_places.remove_node(kernel_netns.path(space))
        kernel_netns.delete(space)
    state.remove()
    return Wiped(len(spaces), ended)


def end_processes(spaces: Sequence[str], also: Sequence[ProcessId] = (), daemons_of: str = "") -> int:
    """Kill what runs in the namespaces, ``also``, and the daemons of a lab; returns how many there were."""

    def look() -> set[ProcessId]:
        found = {*processes.inside(netns.inodes(spaces)), *(item for item in also if item.alive())}
        return found | set(processes.marked(daemons_of) if daemons_of else ())

    return processes.end(look)


def clear_way(state: LabState, progress: Progress) -> None:
    """Remove what a cut-off start or a reboot left; refuse when there is a lab. To be called with its lock held."""
    record = state.load()
    if record is None:
        if netns.found(state.name):
            raise LabError(
                f"remains of a lab {state.name} are there; clean up with: {command('down', state.name)}"
            )
        return
    if record.phase == "up" and record.boot_id == processes.boot_id():
        raise LabError(f"lab {state.name} is up already; see: {command('status', state.name)}")
    progress.line(f"lab {state.name} was left half-made: removing its remains first")
    wipe(state)


def known() -> list[str]:
    """Names of all labs that have a record or namespaces."""
    return sorted({*recorded(), *netns.labs()})


def require_root() -> None:
    """Namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN."""
    if os.geteuid() != 0:
        raise LabError("lab commands make network namespaces and need root: run them with sudo", usage=True)


def command(words: str, name: str) -> str:
    """A lab command to type, for messages."""
    return f"pycnictl lab {words}" + ("" if name == "default" else f" --name {name}")
