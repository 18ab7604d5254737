"""How far does one agent go: 10 to 5,000 nodes, 10 to 50,000 Services, 100,000 pods with 1,000 policies?

One real agent, fed by a real etcd with the leases of that many nodes, or by the scripted API server of the tests with
that many objects: time until the kernel has everything, processor time, memory; what the agent costs etcd, and what that
many agents would. docs/scale.md says what breaks first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench import plots
from bench.fed import api, program, wait_ready
from bench.policyload import SPACES
from bench.rows import milliseconds, row
from bench.scale import Spent, etcd_load, spent
from bench.size import sized
from bench.test_fabric import node, run_inside
from bench.test_kube import endpoint_slice, service
from bench.test_policy_agent import agent as policy_agent
from bench.test_policy_agent import namespace, pod, policy
from bench.test_proxy_agent import agent as proxy_agent

NODES = sized((10, 100, 1_000, 5_000), (10, 1_000))
SERVICES = sized((10, 1_000, 10_000, 50_000), (10, 1_000))
PODS, HOSTS = sized((100_000, 5_000), (10_000, 500))
POLICIES = sized(1_000, 100)
RENEWALS_PER_DAY = 24 / 23
"""A lease of 24 hours is renewed an hour before its end."""
DAY_S = 86_400
WATCH_S = sized(10, 2)
Curves = dict[str, list[tuple[float, float]]]


@pytest.fixture(scope="module")
def curves() -> Iterator[Curves]:
    """What the plots are made of; drawn at the end."""
    found: Curves = {}
    yield found
    for name, unit in (("memory", "MiB"), ("start", "s")):
        lines = {what.rpartition(" ")[0]: points for what, points in found.items() if what.endswith(name)}
        plots.curves(f"scale_{name}", f"One agent: {name} by size of the cluster", ("how many", unit), lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("nodes", NODES)
def test_nodes(benchmark: Any, curves: Curves, nodes: int) -> None:
    leases = nodes - 1
    found: dict[str, Any] = {}
    with node(leases) as where:

        def life() -> None:
            before = etcd_load(where.name, where.etcd.endpoint)
            began = time.monotonic()
            where.start_agent()
            found["start"] = run_inside(where, "wait", str(leases)) - began
            assert where.agent is not None
            found["spent"] = spent(where.agent.pid)
            started = etcd_load(where.name, where.etcd.endpoint)
            time.sleep(WATCH_S)
            found["idle"] = spent(where.agent.pid)
            idle = etcd_load(where.name, where.etcd.endpoint)
            found["more"] = run_inside(where, "latency", where.etcd.endpoint, str(leases), "50")
            found["after"] = spent(where.agent.pid)
            found["calls"] = started.calls - before.calls
            # The last look is a call too, and so is what it finds out by.
            found["steady"] = max(idle.calls - started.calls, 0) / WATCH_S
            found["etcd_start_s"] = started.cpu_s - before.cpu_s

        benchmark.pedantic(life, rounds=1)
    start, idle, after = found["spent"], found["idle"], found["after"]
    about = f"{nodes:,} nodes"
    row(
        f"{about}: process start until all routes are in the kernel", f"{found['start']:.2f} s", better="less"
    )
    row(
        f"{about}: processor time of the start; agent / etcd",
        f"{start.cpu_s:.2f} / {found['etcd_start_s']:.2f} s",
    )
    row(f"{about}: memory of the agent", f"{after.mib:.0f} MiB")
    row(f"{about}: one more node, put to kernel, p50 / p99", milliseconds(found["more"]))
    event_s = (after.cpu_s - idle.cpu_s) / len(found["more"])
    row(f"{about}: processor time of the agent per event", f"{event_s * 1e3:.1f} ms")
    row(
        f"{about}: processor time of an idle agent",
        f"{(idle.cpu_s - start.cpu_s) / WATCH_S * 100:.1f} % of a core",
    )
    row(f"{about}: calls to etcd; of a start / per second later", f"{found['calls']} / {found['steady']:.2f}")
    events = nodes * nodes * RENEWALS_PER_DAY / DAY_S
    row(
        f"{about}: extrapolated to as many agents; watch events etcd sends, calls when all start within a minute",
        f"{events:.2f} /s, {found['calls'] * nodes / 60:.0f} /s",
    )
    note(curves, "nodes", nodes, found["start"], after)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", SERVICES)
def test_services(benchmark: Any, curves: Curves, count: int) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n1"}}],
        "services": [service(number) for number in range(1, count + 1)],
        "endpointslices": [endpoint_slice(number) for number in range(1, count + 1)],
    }
    took, used = benchmark.pedantic(started, args=(objects, proxy_agent), rounds=1)
    about = f"{count:,} Services of 5 endpoints"
    row(f"{about}: process start until all are in the kernel", f"{took:.2f} s", better="less")
    row(f"{about}: processor time of the start, memory", f"{used.cpu_s:.2f} s, {used.mib:.0f} MiB")
    note(curves, "Services", count, took, used)


@pytest.mark.timeout(600)
def test_pods(benchmark: Any, curves: Curves) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n0"}}],
        "namespaces": [namespace(number) for number in range(SPACES)],
        "pods": [pod(number, HOSTS) for number in range(PODS)],
        "networkpolicies": [policy(number) for number in range(POLICIES)],
    }
    took, used = benchmark.pedantic(started, args=(objects, policy_agent), rounds=1)
    about = f"{PODS:,} pods of {HOSTS:,} nodes, {POLICIES:,} policies"
    row(f"{about}: process start until all is in the kernel", f"{took:.2f} s", better="less")
    row(f"{about}: processor time of the start, memory", f"{used.cpu_s:.2f} s, {used.mib:.0f} MiB")
    note(curves, "pods", PODS, took, used)


def note(curves: Curves, what: str, size: int, seconds: float, used: Spent) -> None:
    """Points of the plots."""
    curves.setdefault(f"{what} memory", []).append((size, used.mib))
    curves.setdefault(f"{what} start", []).append((size, seconds))


def started(objects: dict[str, Any], command: Any) -> tuple[float, Spent]:
    """Seconds until an agent that is fed these objects is ready, and what it has spent five seconds later."""
    with api(objects) as (space, folder), contextlib.ExitStack() as stack:
        began = time.monotonic()
        made = stack.enter_context(program(space, command(folder), folder / "agent.log"))
        took = wait_ready(space, folder / "agent.log") - began
        time.sleep(5)
        return took, spent(made.pid)
