"""The component's blocking work beside passes: what it has its one worker thread do with the kernel.

Life: called by ``component`` through its executor, never on the event loop, in the node's network namespace.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import conntrack as kernel_conntrack
from pycni.model.kube import UDP
from pycni.model.service import NodeFacts
from pycni_proxy import conntrack
from pycni_proxy.engine import Engine


@runtime_checkable
class FollowsPods(Protocol):
    """A driver that must know which pods there are."""

    def follow(self, endpoints: EndpointStore) -> None:
        """Serve the pods of this store, now and as they come and go."""


def follow_pods(engine: Engine, endpoints: EndpointStore) -> None:
    """Give the records of pods to the drivers that want them."""
    for plane in engine.planes:
        if isinstance(plane.driver, FollowsPods):
            plane.driver.follow(endpoints)


def close(engine: Engine) -> None:
    """Release every driver's sockets; the kernel keeps what it has."""
    for plane in engine.planes:
        plane.driver.close()


def poll(engine: Engine) -> float | None:
    """All drivers' periodic work; seconds until the first wants it again, None: after the next change."""
    waits = [plane.driver.poll() for plane in engine.planes]
    return min((wait for wait in waits if wait is not None), default=None)


def forget_connections(watched: conntrack.Watched, facts: NodeFacts) -> tuple[int, int]:
    """Delete UDP connections to endpoints that are gone: how many were looked at, how many went. Raises KernelError."""
    stale = conntrack.Stale(watched, facts)
    looked = gone = 0
    for family in watched.families:
        some, went = kernel_conntrack.sweep(family, UDP, watched.ports(family), stale)
        looked, gone = looked + some, gone + went
    return looked, gone
