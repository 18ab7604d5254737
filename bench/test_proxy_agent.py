"""How much memory does a whole agent need for 10,000 services of the Kubernetes API, and how soon do they work?

A real ``pycnid`` with the proxy alone, in a namespace, following the scripted API server of the tests, which runs in
the same namespace. kube-proxy had 74 MiB at 1,000 services on the same kind of machine.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from bench.fed import API_PORT, HEALTH_PORT, api, program, resident_mib, wait_ready
from bench.rows import row
from bench.size import sized
from bench.test_kube import endpoint_slice, service

SIZES = sized((1_000, 10_000), (1_000,))
SETTLE_S = sized(5, 2)
"""What is only needed at the start has been given back by then."""
KUBE_PROXY_MIB = 74


def agent(folder: Path) -> list[str]:
    """Its command line."""
    return [
        "-m", "pycni.agent.main", "run", "--components=proxy", "--node-name=n1", f"--state-dir={folder}",
        f"--cni-socket={folder}/cni.sock", "--proxy-mode=nftables", "--proxy-healthz-port=0",
        "--cluster-cidr=10.0.0.0/8", f"--kube-api-url=http://127.0.0.1:{API_PORT}", "--iface=lo",
        f"--healthz-port={HEALTH_PORT}", "--healthz-ip=127.0.0.1",
    ]  # fmt: skip


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", SIZES)
def test_an_agent_with_all_services(benchmark: Any, count: int) -> None:
    objects = {
        "nodes": [{"metadata": {"name": "n1"}}],
        "services": [service(number) for number in range(1, count + 1)],
        "endpointslices": [endpoint_slice(number) for number in range(1, count + 1)],
    }
    found: dict[str, float] = {}
    with api(objects) as (space, folder), contextlib.ExitStack() as stack:

        def start() -> None:
            started = time.monotonic()
            made = stack.enter_context(program(space, agent(folder), folder / "agent.log"))
            found["ready_s"] = wait_ready(space, folder / "agent.log") - started
            time.sleep(SETTLE_S)
            found["mib"] = resident_mib(made.pid)

        benchmark.pedantic(start, rounds=1)
    row(
        f"agent with {count} services of the API: memory",
        f"{found['mib']:.0f} MiB",
        f"kube-proxy {KUBE_PROXY_MIB} MiB" if count == 1_000 else "",
        found["mib"] / (KUBE_PROXY_MIB if count == 1_000 else 1),
        "<= 120 MiB" if count == 10_000 else "",
        better="less",
    )
    row(
        f"agent with {count} services of the API: process start until all are in the kernel",
        f"{found['ready_s']:.2f} s",
    )
