"""Do the handbook's switches help? Each of them on and off in turns, on the nodes of one VXLAN network.

What many guides set on every node: no connection tracking for the tunnel's own packets, other congestion control, wider
TCP buffers, deeper listen queues, reuse of TIME_WAIT, receive packet steering, the bridge's packets kept from netfilter.
One stream, round trips and new connections between pods of two nodes, each switch by what it is said to help with; only
switches of network namespaces are tried, as the machine's own are nobody's to change. A row answers "does it help?": yes
from five per cent on.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.backendpath import CPU, GBIT, RATE, TRIP, Figures, Pods, Variant, stream, trips
from bench.rows import noise, row
from bench.size import sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, pod_namespace

ROUNDS = int(os.environ.get("HANDBOOK_ROUNDS", str(sized(9, 1))))
NODES, PODS = "nodes", "pods"
HELPS = 1.05
WORDS = {
    GBIT: "throughput",
    CPU: "processor time per Gbit",
    TRIP: "round trips",
    RATE: "new connections per second",
}
EVERYTHING, STREAMS, CONNECTIONS = tuple(WORDS), (GBIT, CPU), (RATE,)


class Switch(NamedTuple):
    """Something to set, and how it was."""

    where: str
    on: str
    """Commands for sh(1)."""
    off: str
    metrics: tuple[str, ...]
    """What it is said to help with."""


_OUTSIDE = "udp dport 8472 notrack"
SWITCHES = {
    "tunnel without connection tracking": Switch(
        NODES,
        "nft 'add table inet handbook; add chain inet handbook in { type filter hook prerouting priority raw; };"
        " add chain inet handbook out { type filter hook output priority raw; };"
        f" add rule inet handbook in {_OUTSIDE}; add rule inet handbook out {_OUTSIDE}'",
        "nft 'add table inet handbook; delete table inet handbook'",
        EVERYTHING,
    ),
    "receive packet steering": Switch(
        NODES,
        "echo 3 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
        "echo 0 >/sys/class/net/eth0/queues/rx-0/rps_cpus",
        EVERYTHING,
    ),
    "bridged packets kept from netfilter": Switch(
        NODES,
        "sysctl -qw net.bridge.bridge-nf-call-iptables=0",
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1",
        EVERYTHING,
    ),
    "wide TCP buffers": Switch(
        PODS,
        "sysctl -qw net.ipv4.tcp_rmem='4096 131072 67108864' net.ipv4.tcp_wmem='4096 131072 67108864'",
        "sysctl -qw net.ipv4.tcp_rmem='4096 131072 6291456' net.ipv4.tcp_wmem='4096 16384 4194304'",
        STREAMS,
    ),
    "congestion control bbr for reno": Switch(
        PODS,
        "sysctl -qw net.ipv4.tcp_congestion_control=bbr",
        "sysctl -qw net.ipv4.tcp_congestion_control=reno",
        STREAMS,
    ),
    "somaxconn 16384, tcp_tw_reuse": Switch(
        PODS,
        "sysctl -qw net.core.somaxconn=16384 net.ipv4.tcp_tw_reuse=1",
        "sysctl -qw net.core.somaxconn=4096 net.ipv4.tcp_tw_reuse=2",
        CONNECTIONS,
    ),
    "no selective acknowledgements, no time stamps": Switch(
        PODS,
        "sysctl -qw net.ipv4.tcp_sack=0 net.ipv4.tcp_timestamps=0",
        "sysctl -qw net.ipv4.tcp_sack=1 net.ipv4.tcp_timestamps=1",
        STREAMS,
    ),
}


ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
TRIED = [name for name in SWITCHES if "bbr" not in name or "bbr" in ALLOWED][: sized(None, 1)]


class Network(NamedTuple):
    """A lab of two nodes with a pod each."""

    nodes: list[str]
    """Namespaces."""
    pods: Pods


@contextmanager
def network() -> Iterator[Network]:
    name = f"pyb{os.getpid()}hb"
    lab = Lab.up(LabSpec(name=name, nodes=2, pods=1))
    try:
        found = {pod.node: (pod_namespace(name, pod.name), pod.ips[0]) for pod in lab.pods()}
        yield Network([node.namespace for node in lab.nodes()], {"a": found["node1"], "c": found["node2"]})
    finally:
        lab.down()


def turn(there: Network, switch: Switch, command: str) -> None:
    """On every node or in every pod. A mount namespace of its own shows the namespace's /sys."""
    spaces = there.nodes if switch.where == NODES else [space for space, _ in there.pods.values()]
    for space in spaces:
        inside = ["nsenter", f"--net=/run/netns/{space}", "--", "unshare", "--mount"]
        words = f"mount -t sysfs sysfs /sys && {command}"
        done = subprocess.run([*inside, "sh", "-ec", words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} in {space}: {done.stderr}")


def measured(there: Network, metrics: tuple[str, ...]) -> dict[str, float]:
    """Only what is asked for."""
    found: dict[str, float] = {}
    if GBIT in metrics:
        found[GBIT], spent = stream(there.pods, 1)
        found[CPU] = spent.cpu_s
    lines = {TRIP: "trips 0.2", RATE: "connect 0.2"}
    asked = [metric for metric in lines if metric in metrics]
    if asked:
        values = trips(there.pods, "a", "c", *(lines[metric] for metric in asked))
        found |= dict(zip(asked, values, strict=True))
    return found


@pytest.mark.timeout(1200)
def test_switches(benchmark: Any) -> None:
    found = Figures()

    def everything() -> None:
        with ExitStack() as stack:
            there = stack.enter_context(network())
            trips(there.pods, "a", "c", "connect 0.1")
            for _ in range(ROUNDS):
                for name in random.sample(TRIED, len(TRIED)):
                    compare(found, there, name)

    benchmark.pedantic(everything, rounds=1)
    for name in TRIED:
        with_it, without = Variant(name, "on"), Variant(name, "off")
        for metric in SWITCHES[name].metrics:
            ratios = found.ratios(with_it, without, metric)
            ratio = found.ratio(with_it, without, metric)
            row(
                f"{name}: {WORDS[metric]}: does it help?",
                f"{found.median(with_it, metric):.3g} {metric}: {word(ratio, noise(ratios))}",
                f"without {found.median(without, metric):.3g}",
                ratio,
                f">= {HELPS}",
                better="more",
                ratios=ratios,
            )


def compare(found: Figures, there: Network, name: str) -> None:
    """One round of one switch, on or off first by chance."""
    switch = SWITCHES[name]
    for state in random.sample(("on", "off"), 2):
        turn(there, switch, switch.on if state == "on" else switch.off)
        for metric, value in measured(there, switch.metrics).items():
            found.note(Variant(name, state), metric, value)
    if state == "on":
        turn(there, switch, switch.off)


def word(ratio: float, noise_share: float | None) -> str:
    """What the handbook would have to say."""
    if noise_share is None:
        return "too few rounds to tell"
    margin = max(noise_share, HELPS - 1)
    if ratio > 1 + margin:
        return "helps"
    return "hurts" if ratio < 1 - margin else "no difference"
