"""One process of a proxy benchmark, inside a node's namespace: full syncs, single changes, memory; JSON on stdout.

    python -m bench.proxysync PLANE COUNT TEXTFILE ROUNDS CHANGES

A full sync is everything from objects in the store to the kernel's answer: resolve, compile, read back, apply. The
floor of the same round is the tool that takes the equal ruleset from ``TEXTFILE`` (written here in the first round).
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.proxyload import default_slice, facts, filled, service
from pycni.model.kube import ENDPOINT_SLICE, SERVICE
from pycni.store import Store
from pycni_proxy import planes
from pycni_proxy.engine import Engine


def resident_mib() -> float:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def floor(plane: str, lines: list[str], path: Path) -> list[list[str]]:
    """The commands that load the equal ruleset with the kernel's own tools; the first time it is written down."""
    path.write_text("\n".join(lines) + "\n")
    if plane == "nftables":
        return [["nft", "-f", str(path)]]
    if plane == "ipvs":
        return [["ipvsadm", "-R"]]
    return []


def main() -> None:
    plane, count, text, rounds, changes = (
        sys.argv[1],
        int(sys.argv[2]),
        Path(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
    )
    factory = planes.load(plane)
    store = filled(count)
    gc.collect()
    gc.freeze()
    found: dict[str, Any] = {"plane": plane, "count": count, "sync_s": [], "cpu_s": [], "floor_s": []}
    engine = Engine(facts(), [factory.make(facts())])
    for number in range(rounds):
        factory.leftovers()
        engine = Engine(facts(), [factory.make(facts())])
        cpu = time.process_time()
        started = time.perf_counter()
        engine.sync(store.snapshot())
        found["sync_s"].append(time.perf_counter() - started)
        found["cpu_s"].append(time.process_time() - cpu)
        if number == 0:
            lines = engine.planes[0].compiler.text(engine.tables(plane))
        if number < rounds - 1:
            factory.leftovers()
            for command in floor(plane, lines, text):
                started = time.perf_counter()
                with text.open() as stdin:
                    subprocess.run(command, stdin=stdin, check=True)
                found["floor_s"].append(time.perf_counter() - started)
    found["changes_s"] = one_by_one(store, engine, count, changes)
    found["new_s"] = new_services(store, engine, count, changes)
    found["rss_mib"] = resident_mib()
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def one_by_one(store: Store, engine: Engine, count: int, changes: int) -> list[float]:
    """Replace one endpoint of one service, again and again; seconds from the put to the kernel's answer."""
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    tracker.take()
    took = []
    for number in range(changes):
        which = 1 + number * 7919 % count
        new = default_slice(which, generation=1 + number % 3)
        started = time.perf_counter()
        store.put(ENDPOINT_SLICE, f"bench/s{which}-x", new)
        result = engine.sync(store.snapshot(), tracker.take())
        took.append(time.perf_counter() - started)
        assert result.operations or number % 3 == 0, f"nothing was done for s{which}"
    return took


def new_services(store: Store, engine: Engine, count: int, changes: int) -> list[float]:
    """Add services one after another; the same."""
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    tracker.take()
    took = []
    for number in range(count + 1, count + 1 + changes):
        one, its = service(number), default_slice(number)
        started = time.perf_counter()
        store.put(SERVICE, f"bench/s{number}", one)
        store.put(ENDPOINT_SLICE, f"bench/s{number}-x", its)
        engine.sync(store.snapshot(), tracker.take())
        took.append(time.perf_counter() - started)
    return took


if __name__ == "__main__":
    main()
