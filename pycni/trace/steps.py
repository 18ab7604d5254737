"""The hops of one packet as they are noted down. Pure.

Life: made for one packet by ``walk``; it knows where the packet is and what is around it, and keeps the hops so far.
"""

from __future__ import annotations

from pycni.model.space import SpaceState, World
from pycni.trace.model import Flow, Hop
from pycni.trace.obstacles import Obstacle
from pycni.trace.overlay import Lost


class Steps:
    """Where a packet is, and what happened to it."""

    def __init__(self, world: World, flow: Flow) -> None:
        self._world, self._flow = world, flow
        self._hops: list[Hop] = []
        self._overhead = 0
        self._outer: Flow | None = None
        self._node = self._space = ""

    def _stopped(
        self, component: str, device: str, obstacle: Obstacle | None, action: str = "dropped"
    ) -> bool:
        if obstacle is not None:
            detail, reason = obstacle.detail, obstacle.reason
            self._hop(component, action, device, detail=detail, reason=reason, kind=obstacle.kind)
        return obstacle is not None

    def _seen_by_ip(self, state: SpaceState) -> bool:
        """Whether bridged packets pass the hooks of IP (br_netfilter)."""
        name = "iptables" if len(self._flow.source) == 4 else "ip6tables"
        return state.sysctls.get(f"net.bridge.bridge-nf-call-{name}", "0") == "1"

    def _arrive(self, component: str, device: str, *, optional: bool = False) -> None:
        """At a device of the namespace it is in now."""
        link = self._state().links.get(device)
        self._hop(component, "received", device, mtu=link.mtu if link is not None else 0, optional=optional)

    def _lose(self, lost: Lost, interface: str = "") -> None:
        interface = interface or lost.interface
        self._hop(
            lost.component, "dropped", interface, detail=lost.detail, reason=lost.reason, kind=lost.kind
        )

    def _state(self) -> SpaceState:
        part = self._world.nodes.get(self._node)
        found = part.actual.get(self._space) if part is not None else None
        return found if found is not None else SpaceState()

    def _hop(
        self,
        component: str,
        action: str,
        interface: str = "",
        *,
        detail: str = "",
        reason: str = "",
        mtu: int = 0,
        kind: str = "",
        optional: bool = False,
    ) -> None:
        self._hops.append(
            Hop(
                node=self._node,
                space=self._space,
                component=component,
                interface=interface,
                action=action,
                detail=detail,
                reason=reason,
                flow=self._flow,
                mtu=mtu,
                overhead=self._overhead,
                outer=self._outer,
                kind=kind,
                optional=optional,
            )
        )
