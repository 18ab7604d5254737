"""How far does one agent go: 10 to 5,000 nodes, 10 to 50,000 Services, 100,000 pods with 1,000 policies?

One real agent, fed by a real etcd with the leases of that many nodes, or by the scripted API server of the tests with
that many objects: time until the kernel has everything, processor time, memory, what a single change costs; what the
agent costs etcd and the API, and what that many agents would. docs/scale.md says what breaks first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from bench import plots
from bench.fed import API_PORT, api, program, wait_ready
from bench.policyload import SPACES
from bench.rows import milliseconds, quantile, row
from bench.scale import Spent, etcd_load, loopback_bytes, patched, spent
from bench.size import sized
from bench.test_fabric import node, run_inside
from bench.test_kube import endpoint_slice, service
from bench.test_policy_agent import agent as policy_agent
from bench.test_policy_agent import namespace, pod, policy
from bench.test_proxy_agent import agent as proxy_agent

NODES = sized((10, 100, 1_000, 5_000), (1_000,))
SERVICES = sized((10, 1_000, 10_000, 50_000), (1_000,))
PODS = sized((10_000, 100_000), (10_000,))
PODS_PER_NODE, PODS_PER_POLICY = 20, 100
START_NODES, START_S, LEASE_MS = 1_000, 1.0, 3.0
"""Issue 1: what an agent may take to join so many nodes, and to follow one more."""
PROMISED_SERVICES, PROMISED_MIB = 10_000, 120
"""Issue 3: what an agent may weigh with so many Services."""
LINEAR = "<= 1.2"
"""Issue 3: growth is linear or better."""
RENEWALS_PER_DAY = 24 / 23
"""A lease of 24 hours is renewed an hour before its end."""
DAY_S = 86_400
ROLLOUT_S = 60
"""All agents of a cluster start anew within so long."""
WATCH_S, SETTLE_S = sized(5, 2), sized(3, 1)
MORE_NODES, CHANGES, PAUSE_S = sized(50, 20), sized(200, 50), 0.01
Curves = dict[str, list[tuple[float, float]]]


class Fed(NamedTuple):
    """What an agent did that was fed by an API server."""

    ready_s: float
    spent: Spent
    received: int
    """Bytes by then."""
    change_s: float
    """Processor time per change."""


@pytest.fixture(scope="module")
def curves() -> Iterator[Curves]:
    """What the plots are made of; drawn at the end."""
    found: Curves = {}
    yield found
    for name, unit in (("memory", "MiB"), ("start", "s")):
        lines = {what.rpartition(" ")[0]: points for what, points in found.items() if what.endswith(name)}
        if lines:
            plots.curves(
                f"scale_{name}", f"One agent: {name} by size of the cluster", ("how many", unit), lines
            )
    for what, sizes in (("nodes", NODES), ("Services", SERVICES), ("pods", PODS)):
        small, large = sizes[-2:] if len(sizes) > 1 else (0, 0)
        points = dict(found.get(f"{what} effort", ()))
        if small in points and large in points:
            each = {size: points[size] / size for size in (small, large)}
            row(
                f"processor time of a start per one of {large:,} {what} against one of {small:,}",
                f"{each[large] * 1e6:.0f} against {each[small] * 1e6:.0f} us",
                "",
                each[large] / each[small],
                LINEAR,
            )


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
            found["more"] = run_inside(where, "latency", where.etcd.endpoint, str(leases), str(MORE_NODES))
            found["after"] = spent(where.agent.pid)
            last = etcd_load(where.name, where.etcd.endpoint)
            found["calls"] = started.calls - before.calls
            found["bytes"] = started.sent_bytes - before.sent_bytes
            found["steady"] = (idle.calls - started.calls) / WATCH_S
            found["event_bytes"] = (last.sent_bytes - idle.sent_bytes) / MORE_NODES
            found["etcd_start_s"] = started.cpu_s - before.cpu_s

        benchmark.pedantic(life, rounds=1)
    report_nodes(nodes, found)
    note(curves, "nodes", nodes, found["start"], found["spent"], found["after"].mib)


def report_nodes(nodes: int, found: dict[str, Any]) -> None:
    """The rows of one size."""
    start, idle, after = found["spent"], found["idle"], found["after"]
    about, promised = f"{nodes:,} nodes", nodes == START_NODES
    more_ms = quantile(found["more"], 0.5) * 1e3
    event_s = (after.cpu_s - idle.cpu_s) / len(found["more"])
    row(
        f"{about}: process start until all routes are in the kernel",
        f"{found['start']:.2f} s",
        ratio=found["start"] if promised else None,
        target=f"<= {START_S:g} s" if promised else "",
    )
    row(
        f"{about}: processor time of the start; agent / etcd",
        f"{start.cpu_s:.2f} / {found['etcd_start_s']:.2f} s",
    )
    row(f"{about}: memory of the agent", f"{after.mib:.0f} MiB")
    row(
        f"{about}: one more node, put to kernel, p50 / p99",
        milliseconds(found["more"]),
        ratio=more_ms if promised else None,
        target=f"<= {LEASE_MS:g} ms" if promised else "",
    )
    row(f"{about}: processor time of the agent per node that comes", f"{event_s * 1e3:.1f} ms")
    row(
        f"{about}: processor time of an idle agent",
        f"{(idle.cpu_s - start.cpu_s) / WATCH_S * 100:.1f} % of a core",
    )
    row(
        f"{about}: etcd; calls and bytes of a start / calls per second later / bytes per node that comes",
        f"{found['calls']}, {found['bytes'] / 1024:.0f} KiB / {found['steady']:.1f} / {found['event_bytes']:.0f}",
    )
    renewals = nodes * nodes * RENEWALS_PER_DAY / DAY_S
    rate = nodes / ROLLOUT_S
    row(
        f"{about}: etcd, extrapolated to as many agents; renewals it tells per second / all start within a minute",
        f"{renewals:.2f}, {renewals * found['event_bytes'] / 1024:.1f} KiB/s"
        f" / {found['calls'] * rate:.0f} calls/s, {found['bytes'] * rate / 1048576:.1f} MiB/s",
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", SERVICES)
def test_services(benchmark: Any, curves: Curves, count: int) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n1"}}],
        "services": [service(number) for number in range(1, count + 1)],
        "endpointslices": [endpoint_slice(number) for number in range(1, count + 1)],
    }
    slices = "/apis/discovery.k8s.io/v1/namespaces/ns{}/endpointslices/s{}-abcde"
    changes = {
        slices.format(number % 50, number): {"endpoints": endpoint_slice(number)["endpoints"][:4]}
        for number in range(1, min(CHANGES, count) + 1)
    }
    fed = benchmark.pedantic(started, args=(objects, proxy_agent, changes), rounds=1)
    report_fed(f"{count:,} Services of 5 endpoints", fed, "slice", weight=count == PROMISED_SERVICES)
    note(curves, "Services", count, fed.ready_s, fed.spent, fed.spent.mib)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", PODS)
def test_pods(benchmark: Any, curves: Curves, count: int) -> None:
    hosts, policies = count // PODS_PER_NODE, count // PODS_PER_POLICY
    objects = {
        "nodes": [{"metadata": {"name": "n0"}}],
        "namespaces": [namespace(number) for number in range(SPACES)],
        "pods": [pod(number, hosts) for number in range(count)],
        "networkpolicies": [policy(number) for number in range(policies)],
    }
    changes = {
        f"/api/v1/namespaces/ns{number % SPACES}/pods/p{number}": {
            "status": {"podIPs": [{"ip": f"10.250.{number // 250}.{number % 250}"}]}
        }
        for number in range(1, CHANGES + 1)
    }
    fed = benchmark.pedantic(started, args=(objects, policy_agent, changes), rounds=1)
    report_fed(f"{count:,} pods of {hosts:,} nodes, {policies:,} policies", fed, "pod")
    note(curves, "pods", count, fed.ready_s, fed.spent, fed.spent.mib)


def started(objects: dict[str, Any], command: Any, changes: dict[str, Any]) -> Fed:
    """An agent that is fed these objects, until it is ready and has settled, and then these changes."""
    with api(objects) as (space, folder), contextlib.ExitStack() as stack:
        objects.clear()  # gigabytes, which the server has now
        before = loopback_bytes(space)
        began = time.monotonic()
        made = stack.enter_context(program(space, command(folder), folder / "agent.log"))
        took = wait_ready(space, folder / "agent.log") - began
        received = loopback_bytes(space) - before
        time.sleep(SETTLE_S)
        settled = spent(made.pid)
        patched(space, API_PORT, changes, PAUSE_S)
        time.sleep(1)
        change_s = (spent(made.pid).cpu_s - settled.cpu_s) / len(changes)
        return Fed(took, settled, received, change_s)


def report_fed(about: str, fed: Fed, what: str, *, weight: bool = False) -> None:
    """The rows of one size; ``weight``: its memory was promised."""
    row(f"{about}: process start until all is in the kernel", f"{fed.ready_s:.2f} s")
    row(f"{about}: processor time of the start", f"{fed.spent.cpu_s:.2f} s")
    row(
        f"{about}: memory",
        f"{fed.spent.mib:.0f} MiB",
        ratio=fed.spent.mib if weight else None,
        target=f"<= {PROMISED_MIB} MiB" if weight else "",
    )
    row(f"{about}: processor time per {what} that changes", f"{fed.change_s * 1e3:.2f} ms")
    row(f"{about}: what the API sends for the start", f"{fed.received / 1048576:.1f} MiB")


def note(curves: Curves, what: str, size: int, seconds: float, used: Spent, mib: float) -> None:
    """Points of the plots and of what grows."""
    for name, value in (("memory", mib), ("start", seconds), ("effort", used.cpu_s)):
        curves.setdefault(f"{what} {name}", []).append((size, value))
