"""What does each backend cost, beside a bare cable, and beside the same network built by hand? One run, taking turns.

One stream of TCP (iperf3) with the processor time it takes, and round trips (sockperf), between pods of two nodes. The
field says of its backends: udp is far slower, vxlan is near, host-gw is nearest to what the machine can do.

ipip, which this kernel may lack, is measured in a User-Mode Linux guest beside its neighbours there.

``BACKENDS`` (names with commas), ``BACKEND_ROUNDS`` and ``BACKEND_SECONDS`` (of a stream) make it shorter or longer.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import byhand, plots
from bench.backendpath import CPU, GBIT, METRICS, TRIP, Figures, Variant, rounds
from bench.rows import row
from bench.size import sized
from bench.test_wire import Pods
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, pod_namespace
from tests.proxy.uml_boot import boot

BACKENDS = os.environ.get("BACKENDS", "host-gw,bgp,vxlan,wireguard,udp,udp+psk").split(",")
ROUNDS = int(os.environ.get("BACKEND_ROUNDS", str(sized(5, 2))))
SECONDS = int(os.environ.get("BACKEND_SECONDS", "1"))
CABLE = Variant("cable", "hand")
AS_BY_HAND = ">= 0.97"
TWIN = {"bgp": "host-gw"}
"""Backends without a way of their own between the nodes."""
ALONE = "udp+psk"
"""udp with a key, which nobody builds by hand."""
PSK = base64.b64encode(bytes(range(32))).decode()
WORDS = {GBIT: "throughput", TRIP: "round trip", CPU: "processor time per Gbit"}
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
    """Each beside its twin, then beside the cable."""
    for backend in backends:
        mine, hand = Variant(backend, "ours"), Variant(backend, "hand")
        for metric in metrics if backend != ALONE else ():
            row(
                f"{backend}{where}: {WORDS[metric]}",
                f"{found.median(mine, metric):.3g} {metric}",
                f"by hand {found.median(hand, metric):.3g}",
                found.ratio(mine, hand, metric),
                "" if metric == CPU else AS_BY_HAND,
            )
    for backend in backends:
        mine = Variant(backend, "ours")
        row(
            f"{backend}{where} against a bare cable: " + ", ".join(WORDS[metric] for metric in metrics),
            " / ".join(f"{found.median(mine, metric):.3g} {metric}" for metric in metrics),
            " / ".join(f"{found.median(CABLE, metric):.3g}" for metric in metrics),
            found.ratio(mine, CABLE, GBIT),
        )


def claims(found: Figures, backends: Sequence[str], where: str = "") -> None:
    """What the field says, put to the test."""

    def against(backend: str, metric: str) -> float:
        return found.ratio(Variant(backend, "ours"), Variant("host-gw", "ours"), metric)

    if "host-gw" not in backends:
        return
    for backend, words, target in (
        ("udp", "far slower", "<= 0.5"),
        ("vxlan", "near", ">= 0.7"),
    ):
        if backend in backends:
            row(
                f"the field's claim{where}: {backend} {words}, throughput against host-gw",
                f"{found.median(Variant(backend, 'ours'), GBIT):.3g} {GBIT}",
                f"host-gw {found.median(Variant('host-gw', 'ours'), GBIT):.3g}",
                against(backend, GBIT),
                target,
            )
    if {"udp+psk", "wireguard"} <= set(backends):
        keyed, wireguard = Variant(ALONE, "ours"), Variant("wireguard", "ours")
        row(
            f"both encrypted{where}: udp with a key, throughput against wireguard",
            f"{found.median(keyed, GBIT):.3g} {GBIT}",
            f"wireguard {found.median(wireguard, GBIT):.3g}",
            found.ratio(keyed, wireguard, GBIT),
        )
    overlays = [backend for backend in backends if backend not in {"host-gw", *TWIN}]
    for metric in (GBIT, TRIP):
        if overlays:
            best = max(overlays, key=lambda backend: against(backend, metric))
            row(
                f"the field's claim{where}: host-gw nearest, {WORDS[metric]} against the best overlay",
                f"{found.median(Variant('host-gw', 'ours'), metric):.3g} {metric}",
                f"{best} {found.median(Variant(best, 'ours'), metric):.3g}",
                1 / against(best, metric),
                ">= 1.0",
            )


@pytest.mark.timeout(300)
def test_backends_in_a_guest(benchmark: Any) -> None:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyb", dir="/var/tmp"))
    count = min(ROUNDS, 3)
    try:
        answer = benchmark.pedantic(
            boot,
            args=(folder, f"bench.backends_guest {count}"),
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
    row(
        "ipip (guest): throughput against vxlan",
        f"{found.median(Variant('ipip', 'ours'), GBIT):.3g} {GBIT}",
        f"vxlan {found.median(Variant('vxlan', 'ours'), GBIT):.3g}",
        found.ratio(Variant("ipip", "ours"), Variant("vxlan", "ours"), GBIT),
    )
