"""What do jumbo frames bring between nodes, and what happens when one node has them and another has not?

One stream between pods of two nodes, the underlay at 1,500 and at 9,000 bytes in turns; as the machine's veths are, which
carry 64 KiB at once through a tunnel, and with segmentation left to the processor, as behind a card that cannot cut
tunnelled packets. Then one node's underlay at 9,000 and the other's at 1,500: in a network built by hand, where nobody
notices, and with agents, which follow what happens to their node's MTU.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bench import byhand, plots
from bench.backendpath import CPU, GBIT, Figures, Pods, Variant, microseconds, note_stream
from bench.rows import row
from bench.size import QUICK, sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, node_namespace, pod_namespace

ROUNDS = int(os.environ.get("MTU_ROUNDS", str(sized(4, 1))))
SMALL, LARGE = 1500, 9000
OFFLOADS = ("tso", "gso", "gro", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
WHOLE, CUT = "64 KiB at once", "segmented by the processor"
CASES = sized((("vxlan", WHOLE), ("vxlan", CUT), ("host-gw", CUT)), (("vxlan", CUT),))
DISAGREE_ROUNDS = sized(2, 1)
FOLLOW_S = 1.5
"""Within which the agent has followed its node."""
WORDS = {GBIT: GBIT, CPU: "processor time per Gbit"}


class Network:
    """A lab of two nodes with a pod each."""

    def __init__(self, lab: Lab) -> None:
        self.name = lab.spec.name
        found = {pod.node: (pod_namespace(self.name, pod.name), pod.ips[0]) for pod in lab.pods()}
        self.pods: Pods = {"a": found["node1"], "c": found["node2"]}
        self._spaces = [node.namespace for node in lab.nodes()] + [space for space, _ in found.values()]
        self._way = WHOLE

    def go(self, way: str) -> None:
        """Leave segmentation to the devices, or to the processor."""
        if way != self._way:
            self._way = way
            offload(self._spaces, "off" if way == CUT else "on")


def offload(spaces: Sequence[str], switch: str) -> None:
    """Switch what every ``eth0`` knows of it. Not every device has all."""
    words = "; ".join(f"ethtool -K eth0 {name} {switch} || true" for name in OFFLOADS)
    for space in spaces:
        inside = ["nsenter", f"--net=/run/netns/{space}", "--", "sh", "-c", words]
        subprocess.run(inside, capture_output=True, check=True)


@contextmanager
def network(backend: str, size: int) -> Iterator[Network]:
    name = f"pyb{os.getpid()}{backend[:2]}{size // 1000}"
    lab = Lab.up(LabSpec(name=name, nodes=2, pods=1, backend=backend, mtu=size))
    try:
        yield Network(lab)
    finally:
        lab.down()


@pytest.mark.timeout(600)
def test_jumbo_frames(benchmark: Any) -> None:
    found = Figures()

    def everything() -> None:
        with ExitStack() as stack:
            networks = {
                (backend, size): stack.enter_context(network(backend, size))
                for backend in sorted({backend for backend, _ in CASES})
                for size in (SMALL, LARGE)
            }
            for there in networks.values():
                microseconds(there.pods, "a", "c", 0.05)  # neighbours
            for _ in range(ROUNDS):
                for backend, way in random.sample(CASES, len(CASES)):
                    for size in random.sample((SMALL, LARGE), 2):
                        networks[backend, size].go(way)
                        variant = Variant(f"{backend}, {way}", str(size))
                        note_stream(found, variant, networks[backend, size].pods)

    benchmark.pedantic(everything, rounds=1)
    bars: dict[str, list[float]] = {}
    for backend, way in CASES:
        small, large = (Variant(f"{backend}, {way}", str(size)) for size in (SMALL, LARGE))
        for metric, words in WORDS.items():
            row(
                f"{backend}, {way}: {words} at MTU 9000 against 1500",
                f"{found.median(large, metric):.3g} {metric}",
                f"1500: {found.median(small, metric):.3g}",
                found.ratio(large, small, metric),
                ">= 1.2" if way == CUT else "",
                better="more",
                ratios=found.ratios(large, small, metric),
            )
        bars[f"{backend}\n{way}"] = [found.median(item, GBIT) for item in (small, large)]
    plots.bars("mtu", "One stream between two nodes, by the underlay's MTU", GBIT, ["1500", "9000"], bars)


@pytest.mark.timeout(300)
def test_nodes_that_do_not_agree(benchmark: Any) -> None:
    """The far node's cable takes 1,500 bytes, the near node's overlay was made for 9,000."""
    found: dict[str, list[tuple[float, float]]] = {"hand": [], "ours": []}
    trips: list[float] = []

    def everything() -> None:
        prefix = f"pyb{os.getpid()}m"
        with byhand.network(prefix, "vxlan", more=LARGE - SMALL) as pods:
            offload([f"{prefix}n1", f"{prefix}n2", *(space for space, _ in pods.values())], "off")
            for _ in range(DISAGREE_ROUNDS):
                found["hand"].append(disagree(pods, f"{prefix}n2"))
                mtu(f"{prefix}n2", SMALL)
                trips.append(microseconds(pods, "a", "c"))
        if not QUICK:
            with network("vxlan", LARGE) as net:
                net.go(CUT)
                found["ours"].append(disagree(net.pods, node_namespace(net.name, "node2"), FOLLOW_S))

    benchmark.pedantic(everything, rounds=1)
    for maker, words, note, target in (
        ("hand", "", f"; what is small passes, in {statistics.median(trips):.0f} us", "<= 0.01"),
        ("ours", "agents follow, ", "", ""),
    ):
        if found[maker]:
            one, both = (statistics.median(values) for values in zip(*found[maker], strict=True))
            row(
                f"one node at 9000, the other at 1500: {words}MiB of a new stream that arrive in a second",
                f"{one:.1f}{note}",
                f"both at 9000: {both:.1f}",
                one / both,
                target,
                better="less" if target else "more",
            )


def disagree(pods: Pods, far: str, wait_s: float = 0.0) -> tuple[float, float]:
    """MiB of a stream when the far node has less than the near one, and with both alike."""
    mtu(far, LARGE)
    both = carried(pods)
    mtu(far, SMALL)
    time.sleep(wait_s)
    return carried(pods), both


def mtu(space: str, size: int) -> None:
    """Of a node's cable."""
    subprocess.run(["ip", "-n", space, "link", "set", "eth0", "mtu", str(size)], check=True)


def carried(pods: Pods) -> float:
    """MiB that arrive of one stream of a second."""
    namespace, address = pods["c"]
    listen = ["nsenter", f"--net=/run/netns/{namespace}", "--", "python3", "-c", _SINK]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as sink:
        assert sink.stdout is not None
        sink.stdout.readline()
        command = ["nsenter", f"--net=/run/netns/{pods['a'][0]}", "--", "python3", "-c", _SOURCE, address]
        try:
            subprocess.run(command, check=True, timeout=30)
        except BaseException:
            sink.kill()  # nobody may come any more
            raise
        return int(sink.stdout.read()) / 2**20


_SINK = """
import socket, time
with socket.create_server(("0.0.0.0", 5301)) as server:
    print("ready", flush=True)
    sock, _ = server.accept()
    total, end = 0, time.monotonic() + 1
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data = sock.recv(1 << 20)
        except TimeoutError:
            break
        if not data:
            break
        total += len(data)
    sock.close()
print(total)
"""
_SOURCE = """
import socket, sys, time
end = time.monotonic() + 1.1
with socket.create_connection((sys.argv[1], 5301), timeout=2) as sock:
    try:
        while time.monotonic() < end:
            sock.settimeout(end - time.monotonic() + 0.01)
            sock.send(bytes(1 << 20))
    except (TimeoutError, ConnectionError):
        pass
"""
