"""One process of a proxy benchmark: full syncs, single changes, memory; JSON on stdout.

    python -m bench.proxysync PLANE COUNT FOLDER ROUNDS CHANGES

A full sync is everything from objects in the store to the kernel's answer: resolve, compile, read back, apply. In each
round the equal ruleset is also loaded by the kernel's own tools: the floor; who is first alternates. Every one of them has
a network namespace of its own: IPVS looks through the real servers it has forgotten for two minutes after. eBPF has
nftables behind it, as in an agent, and no floor: nothing of the system loads its maps.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from bench.proxyload import default_slice, facts, filled, service
from bench.socketplace import socket_place
from pycni.kernel import netns
from pycni.model.kube import ENDPOINT_SLICE, SERVICE
from pycni.store import Store
from pycni_proxy import planes
from pycni_proxy.base import Dataplane
from pycni_proxy.engine import Engine


def resident_mib(what: str = "VmRSS") -> float:
    """Memory of this process now; ``VmHWM``: at its highest (ru_maxrss begins with that of the process before)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{what}:")).split()[1]) / 1024


class Floor:
    """The equal ruleset as text for the kernel's own tools."""

    def __init__(self, plane: str, lines: list[str], folder: Path) -> None:
        self._commands: list[tuple[list[str], Path]] = []
        if plane == "nftables":
            self._add("nft", ["nft", "-f", "-"], lines, folder)
        elif plane == "ipvs":
            sets = [line for line in lines if line.startswith("create ")]
            sets += [line for line in lines if line.startswith("add ")]
            services = [line for line in lines if line.startswith("-A ")]
            services += [line for line in lines if line.startswith("-a ")]
            vips = [line.removeprefix("ip ") for line in lines if line.startswith("ip ")]
            self._add("ip", ["ip", "-batch", "-"], ["link add pycni-ipvs0 type dummy", *vips], folder)
            self._add("ipset", ["ipset", "restore"], sets, folder)
            self._add("ipvsadm", ["ipvsadm", "-R"], services, folder)

    def _add(self, name: str, command: list[str], lines: list[str], folder: Path) -> None:
        path = folder / name
        path.write_text("\n".join(lines) + "\n")
        self._commands.append((command, path))

    def load(self) -> float:
        """Load it; seconds."""
        started = time.perf_counter()
        for command, path in self._commands:
            with path.open() as stdin:
                done = subprocess.run(command, stdin=stdin, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr[:500]}")
        return time.perf_counter() - started


class Ours:
    """A data plane of ours, made anew for each full sync. Used with ``with``."""

    def __init__(self, plane: str) -> None:
        self._plane = plane
        self._count = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def engine(self) -> Engine:
        """One in the network namespace this thread is in; the one before is closed."""
        self._open.close()
        self._count += 1
        names = planes.ROWS["ebpf"] if self._plane == "ebpf" else (self._plane,)
        made: list[Dataplane] = []
        if names[0] == "ebpf":
            from pycni_proxy import ebpf
            from pycni_proxy.ebpf.driver import Places

            place = self._open.enter_context(socket_place(f"pyb{os.getpid()}e{self._count}"))
            made.append(ebpf.make(facts(), Places(bpffs=place.bpffs, cgroup=place.cgroup)))
            names = names[1:]
        made += planes.make(names, facts())
        for one in made:
            self._open.callback(one.driver.close)
        return Engine(facts(), made)


class Spaces:
    """Empty network namespaces, one after the other; the thread goes into each. Used with ``with``."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        netns.setns(self._home, "home")
        os.close(self._home)
        for name in self._made:
            netns.delete(name)

    def fresh(self) -> None:
        """Go into a new one."""
        name = f"pyb{os.getpid()}z{len(self._made)}"
        netns.create(name)
        self._made.append(name)
        fd = netns.open_netns(netns.path(name))
        netns.setns(fd, name)
        os.close(fd)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def measure(plane: str, count: int, folder: Path, rounds: int, changes: int) -> dict[str, Any]:
    """Everything of one size. Single changes are measured after the last full sync, before its floor."""
    store = filled(count)
    gc.collect()
    gc.freeze()
    found: dict[str, Any] = {"plane": plane, "count": count, "sync_s": [], "cpu_s": [], "floor_s": []}
    floor: Floor | None = None
    with Spaces() as spaces, Ours(plane) as ours:
        for number in range(rounds):
            first = number % 2 and floor
            if first:
                spaces.fresh()
                found["floor_s"].append(first.load())
            spaces.fresh()
            engine = ours.engine()
            full_sync(store, engine, found)
            if plane != "ebpf":
                floor = floor or Floor(plane, engine.planes[0].compiler.text(engine.tables(plane)), folder)
            if number == rounds - 1:
                single_changes(store, engine, found, changes)
            if floor and not first:
                spaces.fresh()
                found["floor_s"].append(floor.load())
    return found


def full_sync(store: Store, engine: Engine, found: dict[str, Any]) -> None:
    """All of the store into an empty kernel."""
    cpu, started = time.process_time(), time.perf_counter()
    engine.sync(store.snapshot())
    found["sync_s"].append(time.perf_counter() - started)
    found["cpu_s"].append(time.process_time() - cpu)


def single_changes(store: Store, engine: Engine, found: dict[str, Any], changes: int) -> None:
    """One endpoint, one service, again and again; memory at the end."""
    count = found["count"]
    found["changes_s"] = replace_endpoints(store, engine, count, changes)
    found["new_s"] = add_services(store, engine, count, changes)
    found["rss_mib"] = resident_mib()
    found["peak_mib"] = resident_mib("VmHWM")


def replace_endpoints(store: Store, engine: Engine, count: int, changes: int) -> list[float]:
    """Replace one endpoint of one service, again and again; seconds from the put to the kernel's answer."""
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    tracker.take()
    took = []
    for number in range(changes):
        which = 1 + number * 7919 % count
        new = default_slice(which, generation=number + 1)
        started = time.perf_counter()
        store.put(ENDPOINT_SLICE, f"bench/s{which}-x", new)
        result = engine.sync(store.current(), tracker.take())
        took.append(time.perf_counter() - started)
        assert result.operations, f"nothing was done for s{which}"
    return took


def add_services(store: Store, engine: Engine, count: int, changes: int) -> list[float]:
    """Add services one after another; the same."""
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    tracker.take()
    took = []
    for number in range(count + 1, count + 1 + changes):
        one, its = service(number), default_slice(number)
        started = time.perf_counter()
        store.put(SERVICE, f"bench/s{number}", one)
        store.put(ENDPOINT_SLICE, f"bench/s{number}-x", its)
        result = engine.sync(store.current(), tracker.take())
        took.append(time.perf_counter() - started)
        assert result.operations, f"nothing was done for s{number}"
    return took


if __name__ == "__main__":
    print(
        json.dumps(
            measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        )
    )
