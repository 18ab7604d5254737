"""What does each backend cost, beside a bare cable, and beside the same network built by hand? One run, taking turns.

One stream of TCP (iperf3) with the processor time and the context switches it takes, and round trips, between pods of
two nodes. The field says of its backends: udp is far slower, as each packet is copied to a program and back; vxlan is
near; host-gw is nearest to what the machine can do.

ipip, which this kernel may lack, is measured in a User-Mode Linux guest beside its neighbours there.

``BACKENDS`` (names with commas), ``BACKEND_ROUNDS`` and ``BACKEND_SECONDS`` (of a stream) make it shorter or longer.
"""

from __future__ import annotations

import base64
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import byhand, plots
from bench.backendpath import CPU, GBIT, METRICS, SWITCHES, TRIP, Figures, Pods, Variant, rounds
from bench.rows import row
from bench.size import QUICK, sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, pod_namespace
from tests.proxy.uml_boot import boot

BACKENDS = os.environ.get(
    "BACKENDS", sized("host-gw,bgp,vxlan,wireguard,udp,udp+psk", "host-gw,vxlan,udp")
).split(",")
ROUNDS = int(os.environ.get("BACKEND_ROUNDS", str(sized(7, 1))))
GUEST_ROUNDS = min(ROUNDS, 4)
SECONDS = int(os.environ.get("BACKEND_SECONDS", "1"))
CABLE = Variant("cable", "hand")
AS_BY_HAND = ">= 0.97"
TWIN = {"bgp": "host-gw"}
"""Backends without a way of their own between the nodes."""
ALONE = "udp+psk"
"""udp with a key, which nobody builds by hand."""
PSK = base64.b64encode(bytes(range(32))).decode()
WORDS = {
    GBIT: "throughput",
    TRIP: "round trip",
    CPU: "processor time per Gbit",
    SWITCHES: "context switches per Gbit",
}
GUEST_MODULES = "ipv6 bridge veth vxlan nf_tables nfnetlink tunnel4 ipip"


@contextmanager
def ours(backend: str) -> Iterator[Pods]:
    """A lab of two nodes with a pod each."""
    name = f"pyb{os.getpid()}{backend.replace('-', '').replace('+', '')}"
    kind, _, key = backend.partition("+")
    spec = LabSpec(
        name=name,
        nodes=2,
        pods=1,
        backend=kind,
        backend_conf={"PSK": PSK} if key else {},
        bgp="exabgp" if backend == "bgp" else "none",
    )
    lab = Lab.up(spec)
    try:
        found = {pod.node: (pod_namespace(name, pod.name), pod.ips[0]) for pod in lab.pods()}
        yield {"a": found["node1"], "c": found["node2"]}
    finally:
        lab.down()


@pytest.mark.timeout(900)
def test_backends(benchmark: Any) -> None:
    def everything() -> Figures:
        with ExitStack() as stack:
            networks: dict[Variant, Pods] = {CABLE: stack.enter_context(byhand.pair(f"pyb{os.getpid()}x"))}
            for number, backend in enumerate(BACKENDS):
                if backend != ALONE:
                    twin = byhand.network(f"pyb{os.getpid()}h{number}", TWIN.get(backend, backend))
                    networks[Variant(backend, "hand")] = stack.enter_context(twin)
                networks[Variant(backend, "ours")] = stack.enter_context(ours(backend))
            return rounds(networks, ROUNDS, SECONDS)

    found = benchmark.pedantic(everything, rounds=1)
    compared(found, BACKENDS)
    claims(found, BACKENDS)
    for metric, name in ((GBIT, "throughput"), (TRIP, "trip"), (CPU, "cpu")):
        plots.bars(
            f"backends_{name}",
            f"Between pods of two nodes: {WORDS[metric]}",
            metric,
            ["ours", "by hand"],
            {"cable": [float("nan"), found.median(CABLE, metric)]}
            | {
                backend: [found.median(Variant(backend, maker), metric) for maker in found.makers(backend)]
                for backend in BACKENDS
            },
        )


def compared(
    found: Figures, backends: Sequence[str], where: str = "", metrics: Sequence[str] = METRICS
) -> None:
    """Each beside its twin, then beside the cable where there was one."""
    for backend in backends:
        mine, hand = Variant(backend, "ours"), Variant(backend, "hand")
        for metric in metrics if backend != ALONE else ():
            beside(
                found,
                f"{backend}{where}: {WORDS[metric]}",
                (mine, hand),
                metric,
                "" if metric == CPU else AS_BY_HAND,
                peer="by hand",
            )
    for backend in backends if found.makers(CABLE.backend) else ():
        mine = Variant(backend, "ours")
        row(
            f"{backend}{where} against a bare cable: " + ", ".join(WORDS[metric] for metric in metrics),
            " / ".join(f"{found.median(mine, metric):.3g} {metric}" for metric in metrics),
            " / ".join(f"{found.median(CABLE, metric):.3g}" for metric in metrics),
            found.ratio(mine, CABLE, GBIT),
            better="more",
            ratios=found.ratios(mine, CABLE, GBIT),
        )


def beside(
    found: Figures, question: str, pair: tuple[Variant, Variant], metric: str, target: str = "", *, peer: str
) -> None:
    """A row: one variant and another."""
    one, other = pair
    row(
        question,
        f"{found.median(one, metric):.3g} {metric}",
        f"{peer} {found.median(other, metric):.3g}",
        found.ratio(one, other, metric),
        target,
        better="more",
        ratios=found.ratios(one, other, metric),
    )


def claims(found: Figures, backends: Sequence[str]) -> None:
    """What the field says, put to the test. Ratios of 2 are: twice as good."""
    mine = {backend: Variant(backend, "ours") for backend in backends}
    if {"vxlan", "udp"} <= set(backends):
        pair = (mine["udp"], mine["vxlan"])
        for metric in (GBIT, TRIP):
            question = f"the field's claim: udp far slower than vxlan, {WORDS[metric]}"
            beside(found, question, pair, metric, "<= 0.5", peer="vxlan")
        for metric in (CPU, SWITCHES):
            costs(found, f"the field's claim: udp's {WORDS[metric]} against vxlan's", pair, metric)
    if "host-gw" not in backends:
        return
    hosts = mine["host-gw"]
    for backend, words, target in (("udp", "far slower", "<= 0.5"), ("vxlan", "near", ">= 0.7")):
        if backend in backends:
            question = f"the field's claim: {backend} {words}, throughput against host-gw"
            beside(found, question, (mine[backend], hosts), GBIT, target, peer="host-gw")
    if "vxlan" in backends:
        for metric in METRICS:
            question = f"the field's claim: vxlan slower than host-gw, {WORDS[metric]}"
            beside(found, question, (mine["vxlan"], hosts), metric, "<= 1.0", peer="host-gw")
    if {ALONE, "wireguard"} <= set(backends):
        question = "both encrypted: udp with a key, throughput against wireguard"
        beside(found, question, (mine[ALONE], mine["wireguard"]), GBIT, peer="wireguard")
    overlays = [backend for backend in backends if backend not in {"host-gw", *TWIN}]
    for metric in (GBIT, TRIP) if overlays else ():
        best = max(overlays, key=lambda backend: found.ratio(mine[backend], hosts, metric))
        question = f"the field's claim: host-gw nearest, {WORDS[metric]} against the best overlay"
        beside(found, question, (hosts, mine[best]), metric, ">= 1.0", peer=best)


def costs(found: Figures, question: str, pair: tuple[Variant, Variant], metric: str) -> None:
    """A row: how many times as much the first of two spends."""
    one, other = pair
    ratios = found.ratios(other, one, metric)
    row(
        question,
        f"{found.median(one, metric):.3g} {metric}",
        f"vxlan {found.median(other, metric):.3g}",
        statistics.median(ratios),
        ">= 2",
        better="less",
        ratios=ratios,
    )


@pytest.mark.skipif(QUICK, reason="booting the guest takes longer than all of a quick run's backends")
@pytest.mark.timeout(300)
def test_backends_in_a_guest(benchmark: Any) -> None:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyb", dir="/var/tmp"))
    try:
        answer = benchmark.pedantic(
            boot,
            args=(folder, f"bench.backends_guest {GUEST_ROUNDS}"),
            kwargs={"modules": GUEST_MODULES, "timeout": 250},
            rounds=1,
        )
    finally:
        shutil.rmtree(folder)
    assert "failed" not in answer["measured"], answer["measured"]["failed"]
    found = Figures()
    for backend, maker, metric, values in answer["measured"]:
        found.values[Variant(backend, maker), metric] = values
    backends = ["vxlan", "ipip"]
    # A guest has one processor: what a stream takes of it is its throughput again.
    compared(found, backends, " (guest)", (GBIT, TRIP))
    pair = Variant("ipip", "ours"), Variant("vxlan", "ours")
    beside(found, "ipip (guest): throughput against vxlan", pair, GBIT, peer="vxlan")
