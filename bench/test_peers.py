"""How do we stand beside the field's own programs? For who has their binaries: --peer-flanneld PATH and so on.

flanneld follows the same leases in the same etcd; kube-proxy and kube-router are fed by the same API server; the flannel
CNI plugin is called by the same loop as ours. Without the options nothing runs here, and nothing is claimed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.execbench import Variant, measure
from bench.fed import API_PORT, api, program, wait_ready
from bench.policyload import SPACES
from bench.rows import milliseconds, row
from bench.scale import Spent, spent
from bench.size import sized
from bench.test_cni import PODS, ROUNDS, SINGLE, divided, installed
from bench.test_fabric import NETCONF, node, run_inside
from bench.test_kube import endpoint_slice, service
from bench.test_policy_agent import agent as policy_agent
from bench.test_policy_agent import namespace, pod, policy
from bench.test_proxy_agent import agent as proxy_agent
from pycni.kernel import netns
from tests.cni.node import AgentNode, agent_node

LEASES = 1_000
SERVICES = sized(10_000, 1_000)
POLICIES, POLICY_PODS = sized((1_000, 5_000), (100, 500))


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Path:
    """The binary a test is about."""
    found = peers.path(request.config, request.param)
    if found is None:
        pytest.skip(f"{request.param} was not given")
    return found


def about(option: str) -> Any:
    return pytest.mark.parametrize("peer", [option], indirect=True, ids=[option.removeprefix("--peer-")])


@about("--peer-flanneld")
@pytest.mark.timeout(600)
def test_flanneld(benchmark: Any, peer: Path) -> None:
    found: dict[str, Any] = {}
    with node(LEASES) as where:

        def both() -> None:
            began = time.monotonic()
            where.start_agent()
            assert where.agent is not None
            found["ours"] = follow(where, began, where.agent.pid, LEASES)
            where.kill_agent()
            subprocess.run(["ip", "-n", where.name, "link", "del", "flannel.1"], check=True)
            log = where.folder / "flanneld.log"
            words = [
                str(peer), f"--etcd-endpoints={where.etcd.endpoint}", "--etcd-prefix=/coreos.com/network",
                "--iface=eth0", f"--subnet-file={where.folder}/flannel.env",
            ]  # fmt: skip
            began = time.monotonic()
            with peers.running(where.name, words, log) as made:
                found["peer"] = follow(where, began, made.pid, LEASES + 60)

        benchmark.pedantic(both, rounds=1)
    (start, more, used), (start_peer, more_peer, used_peer) = found["ours"], found["peer"]
    row(
        f"start with {LEASES} leases",
        f"{start:.2f} s",
        f"flanneld {start_peer:.2f} s",
        start / start_peer,
        "<= 1.0",
    )
    row(
        f"one more lease among {LEASES}, p50 / p99",
        milliseconds(more),
        f"flanneld {milliseconds(more_peer)}",
        statistics.median(more) / statistics.median(more_peer),
        "<= 1.0",
    )
    beside("1,000 leases", "flanneld", used, used_peer)


def follow(where: AgentNode, began: float, pid: int, leases: int) -> tuple[float, list[float], Spent]:
    """Seconds of the start, seconds per further lease, and what all that took."""
    start = run_inside(where, "wait", str(leases), "any") - began
    more = run_inside(where, "latency", where.etcd.endpoint, str(leases), "60")
    return start, more, spent(pid)


def beside(what: str, name: str, ours: Spent, theirs: Spent) -> None:
    """Memory and processor time."""
    row(
        f"{what}: memory",
        f"{ours.mib:.0f} MiB",
        f"{name} {theirs.mib:.0f} MiB",
        ours.mib / theirs.mib,
        better="less",
    )
    row(
        f"{what}: processor time", f"{ours.cpu_s:.2f} s", f"{name} {theirs.cpu_s:.2f} s",
        ours.cpu_s / max(theirs.cpu_s, 0.01), better="less",
    )  # fmt: skip


@about("--peer-kube-proxy")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_kube_proxy(benchmark: Any, peer: Path, mode: str) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n1"}}],
        "services": [service(number) for number in range(1, SERVICES + 1)],
        "endpointslices": [endpoint_slice(number) for number in range(1, SERVICES + 1)],
    }
    words = [
        str(peer), f"--master=http://127.0.0.1:{API_PORT}", "--kube-api-content-type=application/json",
        f"--proxy-mode={mode}", "--hostname-override=n1", "--cluster-cidr=10.0.0.0/8", "--bind-address=127.0.0.1",
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]  # fmt: skip

    def synced() -> bool:
        name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
        return peers.metric("http://127.0.0.1:10249/metrics", name) > 0

    fed(benchmark, objects, proxy_agent, words, synced, f"{SERVICES:,} Services", f"kube-proxy ({mode})")


@about("--peer-kube-router")
@pytest.mark.timeout(900)
def test_kube_router(benchmark: Any, peer: Path) -> None:
    objects = {
        "nodes": [
            {
                "metadata": {"name": "n0"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.168.90.1"}]},
            }
        ],
        "namespaces": [namespace(number) for number in range(SPACES)],
        "pods": [pod(number, 50) for number in range(POLICY_PODS)],
        "networkpolicies": [policy(number) for number in range(POLICIES)],
        "services": [],
        "endpointslices": [],
    }
    words = [
        str(peer), f"--master=http://127.0.0.1:{API_PORT}", "--run-router=false", "--run-service-proxy=false",
        "--run-firewall=true", "--hostname-override=n0", "--metrics-port=8099", "--service-cluster-ip-range=10.96.0.0/16",
    ]  # fmt: skip

    def synced() -> bool:
        return (
            peers.metric("http://127.0.0.1:8099/metrics", "kube_router_controller_iptables_sync_time_count")
            > 0
        )

    fed(benchmark, objects, policy_agent, words, synced, f"{POLICIES:,} policies", "kube-router")


def fed(
    benchmark: Any, objects: dict[str, Any], command: Callable[[Path], list[str]], words: list[str],
    synced: Callable[[], bool], what: str, name: str,
) -> None:  # fmt: skip
    """Ours and a peer, one after the other, each in a namespace of its own with the same API server's objects."""
    found: dict[str, tuple[float, Spent]] = {}

    def both() -> None:
        with api(objects) as (space, folder):
            log = folder / "agent.log"
            began = time.monotonic()
            with program(space, command(folder), log) as made:
                took = wait_ready(space, log) - began
                time.sleep(5)
                found["ours"] = took, spent(made.pid)
        with api(objects) as (space, folder):
            log = folder / "peer.log"
            began = time.monotonic()
            with peers.running(space, words, log, NODE_NAME="n0") as made:
                took = peers.wait(space, made, log, synced) - began
                time.sleep(5)
                found["peer"] = took, spent(made.pid)

    benchmark.pedantic(both, rounds=1)
    (ours, used), (theirs, used_peer) = found["ours"], found["peer"]
    row(
        f"start until {what} are in the kernel", f"{ours:.2f} s", f"{name} {theirs:.2f} s", ours / theirs,
        "<= 1.0",
    )  # fmt: skip
    beside(what, name, used, used_peer)


@about("--peer-flannel-cni")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallel", [1, 8])
def test_flannel_cni(benchmark: Any, peer: Path, tmp_path: Path, parallel: int) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for file in [*Path("/usr/lib/cni").iterdir(), peer]:
        (plugins / file.name).unlink(missing_ok=True)
        (plugins / file.name).symlink_to(file)
    subnet = tmp_path / "subnet.env"
    subnet.write_text(
        "FLANNEL_NETWORK=10.62.0.0/16\nFLANNEL_SUBNET=10.62.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    theirs = {
        "cniVersion": "1.0.0", "name": "peer-flannel", "type": "flannel", "subnetFile": str(subnet),
        "dataDir": str(tmp_path / "flannel"), "delegate": {"hairpinMode": True, "isDefaultGateway": True, "bridge": "peerf"},
    }  # fmt: skip
    ours = {
        "cniVersion": "1.0.0",
        "name": "ours-f",
        "type": "pycni",
        "hairpinMode": True,
        "isDefaultGateway": True,
    }
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    pods = [f"pyb{os.getpid()}f{index}" for index in range(PODS)]
    made: list[str] = []
    try:
        with agent_node(f"pyb{os.getpid()}q", folder, {**NETCONF, **SINGLE}) as where:
            assert where.agent is not None
            for name in pods:
                netns.create(name)
                made.append(name)
            variants = [
                Variant(
                    "pycni", installed(where), ours, {"PYCNI_SOCKET": str(where.socket)}, (where.agent.pid,)
                ),
                Variant("flannel", plugins / peer.name, theirs, {}),
            ]
            benchmark.pedantic(
                lambda: measure(where.name, variants, pods, tmp_path, parallel=parallel, rounds=ROUNDS),
                rounds=1,
            )
    finally:
        for name in made:
            netns.delete(name)
        shutil.rmtree(folder, ignore_errors=True)
    mine, other = variants
    row(
        f"ADD+DEL p50, {parallel} at a time", f"{mine.pair_p50() * 1e3:.1f} ms",
        f"flannel plugin {other.pair_p50() * 1e3:.1f} ms", mine.pair_p50() / other.pair_p50(), "<= 0.9",
        ratios=divided(mine.pairs_by_round(), other.pairs_by_round()),
    )  # fmt: skip
