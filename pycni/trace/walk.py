"""Leads a packet through a world, as the kernels would: hop by hop, there and back. Pure.

Life: ``walk`` starts at a socket and goes on until the packet is delivered or lost; the caller decides by the world it
gives whether that is what should happen (``World.as_wanted``) or what the kernels' tables lead to. What services and
policies do is asked of ``Ways``, which know the cluster's objects. Translations are remembered, so that ``answer`` can
go the way back as connection tracking would.

What cannot be known from states (rules of others, a card's mistakes, a wire that is cut) does not stop a packet here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pycni.model.family import show, show_mac
from pycni.model.space import NODE, LinkState, RouteState, World
from pycni.trace import lookup, nearby, obstacles, overlay
from pycni.trace.lookup import Query, Station
from pycni.trace.model import Flow
from pycni.trace.nearby import Place
from pycni.trace.overlay import Aim, Lost
from pycni.trace.steps import Steps
from pycni.trace.ways import Nat, Path, Ways

LONGEST = 64
"""Hops; a packet that needs more goes in circles."""


def walk(world: World, ways: Ways, node: str, space: str, flow: Flow, *, early: bool = False) -> Path:
    """The first packet of a connection, from a socket in a space. ``early``: Services translate at any socket."""
    walker = _Walker(world, ways, flow, ())
    walker.send(node, space, early=early)
    return walker.path


def answer(world: World, ways: Ways, there: Path) -> Path:
    """The answer to a packet that arrived, judged by the flow the asker waits for."""
    walker = _Walker(world, ways, there.flow.back, there.nats)
    walker.awaited = there.hops[0].flow.back
    walker.send(there.node, there.space)
    return walker.path


class _Walker(Steps):
    """One packet. ``nats`` non-empty or ``awaited``: it is an answer."""

    def __init__(self, world: World, ways: Ways, flow: Flow, nats: Sequence[Nat]) -> None:
        super().__init__(world, flow)
        self._ways = ways
        self._earlier, self._nats = tuple(nats), list[Nat]()
        self.awaited: Flow | None = None
        self._masquerade = False
        self._served = ""
        """The Service whose endpoint it goes to."""
        self._entered = ("", "", "")
        """Node, bridge and port it has come up to IP by."""

    @property
    def path(self) -> Path:
        """So far."""
        return Path(tuple(self._hops), self._flow, self._node, self._space, tuple(self._nats))

    # --- where it begins ------------------------------------------------------------------------------------

    def send(self, node: str, space: str, *, early: bool = False) -> None:
        """From a socket."""
        self._node, self._space = node, space
        self._hop("socket", "sent")
        if (space == NODE or early) and self._serve("node"):
            return
        state = self._state()
        found = lookup.route(state, Query(self._flow.destination, self._flow.source))
        if self._lost_by(found):
            return
        assert found is not None
        if found.kind in {"local", "broadcast"}:
            self._deliver()
            return
        if space == NODE and self._judged():
            return
        self._out(found)

    # --- arriving somewhere ---------------------------------------------------------------------------------

    def _receive(self, station: Station, came: str) -> None:
        """An interface gives the packet to the IP of its namespace."""
        self._node, self._space = station.node, station.space
        if self._entered[:2] != (station.node, station.device):
            self._entered = ("", "", "")
        state, device = self._state(), station.device
        if len(self._hops) > LONGEST:
            reason = "it goes in circles until its hop limit is used up"
            self._hop("routing", "dropped", device, reason=reason, kind="routing-loop")
            return
        if self._stopped("routing", device, obstacles.reverse_path(state, device, self._flow)):
            return
        mine = self._world.owner(self._flow.destination) == (station.node, station.space)
        obstacle = obstacles.address(state, station.space, self._flow) if mine else None
        if self._stopped("interface", device, obstacle):
            return
        if station.space == NODE and self._serve(came):
            return
        query = Query(self._flow.destination, self._flow.source, iif=device)
        found = lookup.route(state, query)
        if self._lost_by(found):
            return
        assert found is not None
        if found.kind in {"local", "broadcast"}:
            self._deliver()
            return
        if self._stopped("routing", device, obstacles.forwarding(state, self._flow, device)):
            return
        if self._judged():
            return
        self._out(found)

    def _lost_by(self, found: RouteState | None) -> bool:
        """Whether routing ends it."""
        if found is None:
            reason = f"there is no route to {show(self._flow.destination)}"
            self._hop("routing", "dropped", detail="no route", reason=reason, kind="no-route")
            return True
        if found.kind in {"unicast", "local", "broadcast", "multicast", "anycast"}:
            return False
        action = "dropped" if found.kind == "blackhole" else "refused"
        self._hop(
            "routing",
            action,
            detail=lookup.route_text(found),
            reason=f"{'an' if found.kind[0] in 'aeiou' else 'a'} {found.kind} route leads here",
            kind="route-blocks",
        )
        return True

    def _deliver(self) -> None:
        """To a socket, or to the kernel's own answers."""
        state, flow = self._state(), self._flow
        if self.awaited is not None:
            if self._space != NODE:
                self._restore()
            if self._flow != self.awaited:
                reason = f"{self.awaited.text()} was expected: the asker does not know this answer"
                self._hop("socket", "refused", reason=reason, kind="answer-unknown")
            else:
                self._hop("socket", "delivered")
            return
        obstacle = obstacles.socket(state, flow)
        if obstacle is not None and self._served:
            reason = f"{obstacle.reason}, and the pod is called a ready endpoint of {self._served}"
            obstacle = obstacle._replace(kind="endpoint-dead", reason=reason)
        if self._stopped("socket", "", obstacle, action="refused"):
            return
        self._hop("socket", "delivered")

    # --- what the cluster's objects do ----------------------------------------------------------------------

    def _serve(self, came: str) -> bool:
        """Translation, forwards or back; whether the packet ends by it."""
        self._restore()
        if self.awaited is not None:
            return False
        turn = self._ways.service(self._node, self._flow, came)
        if turn is None:
            return False
        if turn.target is None:
            action = "refused" if turn.refused else "dropped"
            self._hop(
                "service",
                action,
                detail=turn.service,
                reason="the service has no endpoint to go to",
                kind="service-without-endpoints",
            )
            return True
        before = self._flow
        self._served = turn.service
        address, port = turn.target
        self._flow = msgspec.structs.replace(before, destination=address, destination_port=port)
        self._masquerade = turn.masquerade and self._space == NODE
        others = f", {len(turn.others)} more possible" if turn.others else ""
        self._hop("service", "translated", detail=turn.service, reason=f"{turn.how}{others}")
        self._nats.append(Nat(self._node, before, self._flow, self._space))
        return False

    def _restore(self) -> None:
        """What connection tracking of this node does to an answer, and at a pod's socket what translated there."""
        for nat in self._earlier:
            if (nat.node, nat.space) == (self._node, self._space) and nat.after.back == self._flow:
                self._flow = nat.before.back
                who = "the socket" if self._space != NODE else "connection tracking"
                self._hop("service", "translated", detail="back", reason=f"{who} knows it")

    def _judged(self) -> bool:
        """Policies of this node; whether they end it."""
        if self.awaited is not None:
            return False
        for judged in self._ways.policy(self._node, self._flow):
            if not judged.allowed:
                self._hop("policy", "dropped", detail=judged.words, kind="policy-denied")
                return True
            self._hop("policy", "forwarded", detail=judged.words)
        return False

    def _hide(self, device: str) -> None:
        """Masquerading, as it leaves by a device."""
        outside = device == self._world.nodes[self._node].underlay and self._ways.masquerade(
            self._node, self._flow
        )
        if self.awaited is not None or not (outside or self._masquerade):
            return
        self._masquerade = False
        source = lookup.source(self._state(), device, self._flow.destination)
        if not source or source == self._flow.source:
            return
        before = self._flow
        self._flow = msgspec.structs.replace(before, source=source)
        self._hop("masquerade", "translated", device, detail=f"to {show(source)}")
        self._nats.insert(0, Nat(self._node, before, self._flow))

    # --- leaving --------------------------------------------------------------------------------------------

    def _out(self, found: RouteState) -> None:
        """By the device of a route."""
        link = self._state().links.get(found.device)
        if link is None:
            self._hop(
                "routing",
                "dropped",
                found.device,
                detail=lookup.route_text(found),
                reason="no such device",
                kind="device-missing",
            )
            return
        # Bridged after all, perhaps (see _bridged): then it does not show here.
        bridged = self._entered[:2] == (self._node, link.name) and self._seen_by_ip(self._state())
        text, mtu = lookup.route_text(found), found.mtu or link.mtu
        self._hop("routing", "forwarded", link.name, detail=text, mtu=mtu, optional=bridged)
        if not (link.up and link.carrier):
            what = "down" if not link.up else "without carrier"
            kind, why = "device-down", ""
            if link.up and link.kind == "tun":
                kind, why = "forwarder-dead", ": the program that serves it is not running"
            self._hop("interface", "dropped", link.name, reason=f"{link.name} is {what}{why}", kind=kind)
            return
        if self._space == NODE:
            self._hide(link.name)
        if link.kind in overlay.OVERHEAD:
            self._tunnel(link, found)
            return
        self._onto(link, found.gateway or (found.hops[0] if found.hops else self._flow.destination))

    def _beyond(self, words: str) -> bool:
        """Whether it has come to a node of which nothing is known."""
        silent = self._world.silent.get(self._node)
        if silent is None:
            return False
        self._overhead, self._outer = 0, None
        self._hop("underlay", "sent", detail=words, reason=f"nothing is known of it: {silent}")
        return True

    def _onto(self, link: LinkState, address: bytes) -> None:
        """To a station on the link of a device."""
        owner = self._world.owner(address)
        if owner is not None and owner[0] in self._world.silent:
            self._node, self._space = owner[0], NODE
            self._beyond(f"to {show(address)}")
            return
        found = nearby.resolve(self._world, Place(self._node, self._space), link, address)
        if found.station is None:
            if not found.kind:
                reason = "it leaves what is known here"
                self._hop("underlay", "sent", link.name, detail=found.words, reason=reason)
                return
            kind, reason = found.kind, found.reason
            if kind == "nobody-answers" and self._served and address == self._flow.destination:
                kind, reason = (
                    "endpoint-dead",
                    f"{reason}, which is called a ready endpoint of {self._served}",
                )
            self._hop("neighbour", "dropped", link.name, detail=found.words, reason=reason, kind=kind)
            return
        if found.kind:
            self._hop(
                "neighbour", "forwarded", link.name, detail=found.words, reason=found.reason, kind=found.kind
            )
        self._cross(link, found.station)

    def _cross(self, link: LinkState, station: Station) -> None:
        """Through a veth pair, a bridge or the underlay."""
        if station.node != self._node:
            self._hop("underlay", "forwarded", link.name, mtu=link.mtu)
            self._node, self._space = station.node, station.space
            self._arrive("underlay", station.device, optional=station.space != NODE)
            self._receive(station, "outside")
            return
        came = "pod" if self._space != NODE else "node"
        far = lookup.across(self._world, self._node, self._space, link.name)
        if link.kind == "bridge" or (far is not None and far[:3] != station[:3]):
            if self._bridged(link, far, station):
                return
            if station.space != NODE:
                self._space = station.space
                self._arrive("interface", station.device)
        elif far is not None:
            self._space = far.space
            self._arrive("interface", far.device)
        self._receive(station, came)

    def _bridged(self, link: LinkState, far: Station | None, station: Station) -> bool:
        """Over the ports of a bridge of the node; whether the packet ends there."""
        self._space = NODE
        state = self._state()
        enter = state.links[far.device] if far is not None else None
        bridge = link.name if link.kind == "bridge" else (enter.master if enter is not None else "")
        leave = lookup.port_of(self._world, station, self._node, bridge)
        if enter is None and self._entered[:2] == (self._node, bridge) and self._seen_by_ip(state):
            # What IP's hooks have given another destination on the same bridge is bridged after all, from the port it
            # came in by (br_nf_pre_routing_finish).
            came_by = state.links.get(self._entered[2])
            obstacle = obstacles.port(leave, came_by, leave, bridge) if leave is not None else None
            if leave is not None and self._stopped("bridge", leave.name, obstacle):
                return True
        if enter is not None and self._port(enter, "received", (enter, leave), bridge):
            return True
        judged = station.space != NODE and enter is not None and self._seen_by_ip(state)
        if judged:
            # A port that takes nothing is out of the question before IP's hooks are asked (should_deliver).
            if leave is not None and self._stopped(
                "bridge", leave.name, obstacles.port(leave, enter, leave, bridge)
            ):
                return True
            self._restore()
            if self._judged():
                return True
        if leave is not None and self._port(leave, "forwarded", (enter, leave), bridge):
            return True
        if not judged:
            self._entered = (self._node, bridge, enter.name) if enter is not None else ("", "", "")
        return False

    def _port(
        self, port: LinkState, action: str, both: tuple[LinkState | None, LinkState | None], bridge: str
    ) -> bool:
        """By a port of a bridge; whether the packet ends there. ``both``: ports it enters and leaves by."""
        if self._stopped("bridge", port.name, obstacles.port(port, *both, bridge)):
            return True
        self._hop("bridge", action, port.name, detail=f"port of {bridge}", mtu=port.mtu)
        return False

    def _tunnel(self, link: LinkState, found: RouteState) -> None:
        """Inside another packet to a node."""
        there = overlay.aim(self._world, self._node, link, found.gateway, self._flow.destination)
        if isinstance(there, Lost):
            self._lose(there, link.name)
            return
        if there.mac:
            words = f"{show(found.gateway)} dev {link.name} lladdr {show_mac(there.mac)} permanent"
            self._hop("neighbour", "forwarded", link.name, detail=words)
        self._overhead = there.overhead
        self._outer = overlay.outer(self._state(), link, there)
        self._hop("overlay", "encapsulated", link.name, detail=there.words, mtu=link.mtu)
        if not self._carried(there, hidden=link.kind in overlay.SECRET):
            return
        self._node = there.far
        if self._beyond(there.words):
            return
        if not self._unwrapped(there, hidden=link.kind in overlay.SECRET):
            return
        opened = overlay.opening(self._world, there, link)
        if not isinstance(opened, Lost):
            opened = overlay.refused(opened, there, self._flow.source) or opened
        if isinstance(opened, Lost):
            self._lose(opened)
            return
        self._hop("overlay", "decapsulated", opened.name, detail=there.words)
        self._receive(Station(there.far, NODE, opened.name, opened.mac), "pod")

    def _carried(self, there: Aim, *, hidden: bool) -> bool:
        """Whether the underlay takes it. ``hidden``: nobody can see there what is inside."""
        outer = lookup.route(self._state(), Query(there.remote))
        detail = lookup.route_text(outer) if outer is not None else "no route"
        if outer is None or outer.kind != "unicast":
            reason = f"no way to the node at {show(there.remote)}"
            self._lose(Lost("underlay", "underlay-no-route", detail, reason), self._hops[-1].interface)
            return False
        device = self._state().links.get(outer.device)
        mtu = device.mtu if device is not None else 0
        self._hop("underlay", "forwarded", outer.device, detail=detail, mtu=mtu, optional=hidden)
        if device is not None and not (device.up and device.carrier):
            self._lose(Lost("underlay", "underlay-down", detail, f"{outer.device} is down"), outer.device)
            return False
        return True

    def _unwrapped(self, there: Aim, *, hidden: bool) -> bool:
        """Whether the far node takes it in from the underlay."""
        state = self._state()
        device = next((item.device for item in state.addresses if item.address == there.remote), "")
        device = device or self._world.nodes[there.far].underlay
        self._arrive("underlay", device, optional=hidden)
        around, self._overhead, self._outer = self._outer, 0, None
        link = state.links.get(device)
        if link is not None and not (link.up and link.carrier):
            self._lose(Lost("underlay", "underlay-down", there.words, f"{device} is down"), device)
            return False
        if around is None:
            return True
        return not self._stopped("underlay", device, obstacles.reverse_path(state, device, around))
