"""Waits for the nodes of a lab: for their agents to be ready, then for them to know of each other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from pycni.lab import backends, survey
from pycni.lab.node import LabNode
from pycni.lab.processes import ProcessId
from pycni.lab.topology import LabError, LabSpec

READY_TIMEOUT_S = 60.0
SETTLE_S, SETTLE_BGP_S = 5.0, 20.0
"""Patience for the nodes to get to know each other once all are ready, by leases and by BGP."""


def start_agents(
    nodes: Sequence[LabNode],
    start: Callable[[LabNode], ProcessId],
    parallel: int,
    poll_s: float,
    update: Callable[[str], None] | None = None,
) -> None:
    """Start agents, ``parallel`` at a time, until all are ready. Raises LabError with the log of one that is not.

    ``start`` starts one and does not wait. ``update`` is told how many are ready.
    """
    waiting = deque(nodes)
    starting: dict[str, tuple[LabNode, ProcessId, float]] = {}
    while waiting or starting:
        while waiting and len(starting) < parallel:
            node = waiting.popleft()
            starting[node.name] = (node, start(node), time.monotonic() + READY_TIMEOUT_S)
        time.sleep(poll_s)
        for node, process, deadline in list(starting.values()):
            answer = node.readiness()
            if answer.ready:
                del starting[node.name]
                if update is not None:
                    update(f"{len(nodes) - len(waiting) - len(starting)} of {len(nodes)}")
            elif not process.alive():
                raise LabError(f"the agent of {node.name} ended; {node.log} ends with:\n{node.log_end()}")
            elif time.monotonic() > deadline:
                raise LabError(
                    f"{node.name} is not ready after {READY_TIMEOUT_S:g} s: {answer.reason}; "
                    f"{node.log} ends with:\n{node.log_end()}"
                )


def await_routes(
    spec: LabSpec, nodes: Sequence[LabNode], poll_s: float, timeout: float | None = None
) -> list[str]:
    """Wait until every node has routes to the pods of all others; what is missing then, in words."""
    by_bgp = not backends.of(spec.backend).routes
    if by_bgp and spec.bgp == "none":
        return []
    usual = SETTLE_BGP_S if by_bgp else SETTLE_S
    deadline = time.monotonic() + (usual if timeout is None else timeout)
    while missing := survey.missing_routes(nodes):
        if time.monotonic() > deadline:
            break
        time.sleep(poll_s)
    return missing
