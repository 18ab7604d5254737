"""What do jumbo frames bring between nodes, and what happens when one node has them and another has not?

One stream and round trips between pods of two nodes, the underlay at 1,500 and at 9,000 bytes in turns; as the machine's
veths are, which carry 64 KiB at once through a tunnel, and with segmentation left to the processor, as behind a card
that cannot cut tunnelled packets. Then one node's underlay at 9,000 and the other's at 1,500, which nobody noticed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bench import plots
from bench.backendpath import GBIT, TRIP, Variant, rounds
from bench.rows import row
from bench.size import sized
from bench.test_wire import Pods
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, node_namespace, pod_namespace

ROUNDS = sized(5, 1)
BACKENDS = sized(("vxlan", "host-gw"), ("vxlan",))
SMALL, LARGE = 1500, 9000
OFFLOADS = ("tso", "gso", "gro", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
WAYS = {"whole": "64 KiB at once", "cut": "segmented by the processor"}


def ethtool(namespace: str, device: str, switch: str) -> None:
    """Switch what a device knows of the offloads."""
    command = ["nsenter", f"--net=/run/netns/{namespace}", "--", "ethtool", "-K", device]
    for name in OFFLOADS:
        subprocess.run([*command, name, switch], capture_output=True, check=False)  # not every device has all


@contextmanager
def network(backend: str, mtu: int, way: str) -> Iterator[tuple[Lab, Pods]]:
    """A lab of two nodes with a pod each."""
    name = f"pyb{os.getpid()}{backend[:2]}{mtu // 1000}{way[0]}"
    lab = Lab.up(LabSpec(name=name, nodes=2, pods=1, backend=backend, mtu=mtu))
    try:
        found = {pod.node: (pod_namespace(name, pod.name), pod.ips[0]) for pod in lab.pods()}
        if way == "cut":
            for node in lab.nodes():
                ethtool(node.namespace, "eth0", "off")
            for namespace, _ in found.values():
                ethtool(namespace, "eth0", "off")
        yield lab, {"a": found["node1"], "c": found["node2"]}
    finally:
        lab.down()


@pytest.mark.timeout(600)
def test_jumbo_frames(benchmark: Any) -> None:
    def everything() -> Any:
        with ExitStack() as stack:
            networks = {
                Variant(f"{backend} {way}", str(mtu)): stack.enter_context(network(backend, mtu, way))[1]
                for backend in BACKENDS
                for way in WAYS
                for mtu in (SMALL, LARGE)
            }
            return rounds(networks, ROUNDS)

    found = benchmark.pedantic(everything, rounds=1)
    bars: dict[str, list[float]] = {}
    for backend in BACKENDS:
        for way, words in WAYS.items():
            small, large = (Variant(f"{backend} {way}", str(mtu)) for mtu in (SMALL, LARGE))
            for metric, target in ((GBIT, ">= 1.2" if way == "cut" else ""), (TRIP, "")):
                row(
                    f"{backend}, {words}: {metric} at MTU 9000 against 1500",
                    f"{found.median(large, metric):.3g} {metric}",
                    f"1500: {found.median(small, metric):.3g}",
                    found.ratio(large, small, metric),
                    target,
                    better="more",
                    ratios=found.ratios(large, small, metric),
                )
            bars[f"{backend}\n{words}"] = [found.median(item, GBIT) for item in (small, large)]
    plots.bars("mtu", "One stream between two nodes, by the underlay's MTU", GBIT, ["1500", "9000"], bars)


@pytest.mark.timeout(300)
def test_nodes_that_do_not_agree(benchmark: Any) -> None:
    """The far node's cable takes 1,500 bytes, the near node's overlay was made for 9,000."""

    def everything() -> list[tuple[float, float]]:
        found = []
        with network("vxlan", LARGE, "cut") as (lab, pods):
            far = node_namespace(lab.spec.name, "node2")
            for _ in range(3):
                both = carried(pods)
                subprocess.run(["ip", "-n", far, "link", "set", "eth0", "mtu", str(SMALL)], check=True)
                found.append((carried(pods), both))
                subprocess.run(["ip", "-n", far, "link", "set", "eth0", "mtu", str(LARGE)], check=True)
        return found

    pairs = benchmark.pedantic(everything, rounds=1)
    one, both = (statistics.median(values) for values in zip(*pairs, strict=True))
    row(
        "one node at 9000, the other at 1500: MiB of a stream that arrive in a second",
        f"{one:.1f}",
        f"both at 9000: {both:.1f}",
        one / both,
        "<= 0.01",
    )


def carried(pods: Pods) -> float:
    """MiB that arrive of one stream of a second."""
    namespace, address = pods["c"]
    listen = ["nsenter", f"--net=/run/netns/{namespace}", "--", "python3", "-c", _SINK]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as sink:
        assert sink.stdout is not None
        sink.stdout.readline()
        command = ["nsenter", f"--net=/run/netns/{pods['a'][0]}", "--", "python3", "-c", _SOURCE, address]
        subprocess.run(command, check=True, timeout=30)
        return int(sink.stdout.read()) / 2**20


_SINK = """
import socket, time
with socket.create_server(("0.0.0.0", 5301)) as server:
    print("ready", flush=True)
    sock, _ = server.accept()
    total, end = 0, time.monotonic() + 1
    sock.settimeout(1)
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
end = time.monotonic() + 2
with socket.create_connection((sys.argv[1], 5301), timeout=2) as sock:
    try:
        while time.monotonic() < end:
            sock.settimeout(end - time.monotonic() + 0.01)
            sock.send(bytes(1 << 20))
    except (TimeoutError, ConnectionError):
        pass
"""
