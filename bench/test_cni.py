"""How long does a pod wait for its network? ADD and DEL against the Go reference plugins bridge + host-local.

Two peers: (a) without and (b) with ipMasq; ours does the same work (bridge, gateway, default route, own IPAM; in (b)
masquerading per pod too). Called one at a time and eight at a time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.execbench import Variant, measure
from bench.rows import milliseconds, row
from bench.size import sized
from pycni.kernel import netns
from tests.cni.node import ROOT, AgentNode, agent_node

PODS = sized(16, 8)
ROUNDS = sized(6, 1)
SINGLE = {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}


@pytest.fixture(scope="module")
def node() -> Iterator[AgentNode]:
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    try:
        with agent_node(f"pyb{os.getpid()}n", folder, SINGLE) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pods() -> Iterator[list[str]]:
    names = [f"pyb{os.getpid()}p{index}" for index in range(PODS)]
    with ExitStack() as stack:
        for name in names:
            netns.create(name)
            stack.callback(netns.delete, name)
        yield names


def installed(node: AgentNode) -> Path:
    """The plugin as ``pycnid install-cni`` puts it on a host."""
    folder = node.folder / "opt"
    options = [
        "--cni-bin-dir",
        str(folder),
        "--cni-conf-dir",
        str(node.folder / "net.d"),
        "--socket",
        str(node.socket),
    ]
    if not folder.exists():
        command = [sys.executable, "-m", "pycni.agent.main", "install-cni", *options]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "pycni"


def variants(node: AgentNode, *, masquerade: bool) -> tuple[Variant, Variant]:
    assert node.agent is not None
    tail = "m" if masquerade else "n"
    common: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "hairpinMode": True,
        "isDefaultGateway": True,
        "ipMasq": masquerade,
    }
    ours = {**common, "name": f"ours-{tail}", "type": "pycni"}
    subnet = "10.60.0.0/24" if masquerade else "10.61.0.0/24"
    peer = {
        **common,
        "name": f"peer-{tail}",
        "type": "bridge",
        "bridge": f"peer{tail}",
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}]],
            "dataDir": str(node.folder / "peer"),
        },
    }
    return (
        Variant("pycni", installed(node), ours, {"PYCNI_SOCKET": str(node.socket)}, (node.agent.pid,)),
        Variant("bridge+host-local", Path("/usr/lib/cni/bridge"), peer, {}),
    )


@pytest.mark.parametrize("parallel", [1, 8])
@pytest.mark.parametrize("masquerade", [False, True], ids=["a-plain", "b-ipMasq"])
@pytest.mark.timeout(600)
def test_add_and_del(
    benchmark: Any, node: AgentNode, pods: list[str], tmp_path: Path, masquerade: bool, parallel: int
) -> None:
    ours, peer = variants(node, masquerade=masquerade)
    benchmark.pedantic(
        lambda: measure(node.name, [ours, peer], pods, tmp_path, parallel=parallel, rounds=ROUNDS), rounds=1
    )
    report(ours, peer, f"({'b' if masquerade else 'a'}) {{}}, {parallel} at a time", parallel, masquerade)


def report(ours: Variant, peer: Variant, name: str, parallel: int, masquerade: bool) -> None:
    """A row for each figure the issue asks for."""
    pair_target, rate_target = ("<= 0.4", ">= 2.5") if masquerade else ("<= 0.9", ">= 1.0")
    row(
        name.format("ADD+DEL p50"),
        f"{ours.pair_p50() * 1e3:.1f} ms",
        f"{peer.pair_p50() * 1e3:.1f} ms",
        ours.pair_p50() / peer.pair_p50(),
        pair_target if parallel == 1 else "",
        better="less",
        ratios=divided(ours.pairs_by_round(), peer.pairs_by_round()),
    )
    for what, mine, theirs in (("ADD", ours.add, peer.add), ("DEL", ours.delete, peer.delete)):
        row(
            name.format(f"{what} p50 / p99"),
            milliseconds(mine),
            milliseconds(theirs),
            statistics.median(mine) / statistics.median(theirs),
            better="less",
            ratios=divided(ours.by_round(mine), peer.by_round(theirs)),
        )
    ours_both, peer_both = (
        [1 / (1 / add + 1 / gone) for add, gone in zip(v.add_rates, v.delete_rates, strict=True)]
        for v in (ours, peer)
    )
    target = rate_target if parallel == 8 else ""
    for what, mine, theirs, wanted in (
        ("ADD pods/s", ours.add_rates, peer.add_rates, target),
        ("DEL pods/s", ours.delete_rates, peer.delete_rates, target),
        ("pods/s through ADD and DEL", ours_both, peer_both, ""),
    ):
        rate, other = statistics.median(mine), statistics.median(theirs)
        row(
            name.format(what), f"{rate:.0f}", f"{other:.0f}", rate / other, wanted, better="more",
            ratios=divided(mine, theirs),
        )  # fmt: skip
    used, peer_used = statistics.median(ours.cpu), statistics.median(peer.cpu)
    row(
        name.format("CPU per ADD+DEL"),
        f"{used * 1e3:.1f} ms",
        f"{peer_used * 1e3:.1f} ms",
        used / peer_used,
        better="less",
        ratios=divided(ours.cpu, peer.cpu),
    )


def divided(ours: list[float], peer: list[float]) -> list[float]:
    """Round by round."""
    return [one / two for one, two in zip(ours, peer, strict=True)]
