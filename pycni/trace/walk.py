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
from pycni.model.space import NODE, LinkState, RouteState, SpaceState, World
from pycni.trace import lookup, obstacles
from pycni.trace.lookup import Query, Station
from pycni.trace.model import Flow, Hop
from pycni.trace.obstacles import Obstacle
from pycni.trace.ways import Nat, Path, Ways

LONGEST = 64
"""Hops; a packet that needs more goes in circles."""
OVERHEAD = {"vxlan": (50, 70), "ipip": (20, 40), "wireguard": (60, 80), "tun": (28, 48)}
"""Bytes around a packet by kind of device, over IPv4 and IPv6."""


def walk(world: World, ways: Ways, node: str, space: str, flow: Flow) -> Path:
    """The first packet of a connection, from a socket in a space."""
    walker = _Walker(world, ways, flow, ())
    walker.send(node, space)
    return walker.path


def answer(world: World, ways: Ways, there: Path) -> Path:
    """The answer to a packet that arrived, judged by the flow the asker waits for."""
    walker = _Walker(world, ways, there.flow.back, there.nats)
    walker.awaited = there.hops[0].flow.back
    walker.send(there.node, there.space)
    return walker.path


class _Walker:
    """One packet. ``nats`` non-empty or ``awaited``: it is an answer."""

    def __init__(self, world: World, ways: Ways, flow: Flow, nats: Sequence[Nat]) -> None:
        self._world, self._ways, self._flow = world, ways, flow
        self._earlier, self._nats = tuple(nats), list[Nat]()
        self._hops: list[Hop] = []
        self._overhead = 0
        self._node = self._space = ""
        self.awaited: Flow | None = None
        self._masquerade = False

    @property
    def path(self) -> Path:
        """So far."""
        return Path(tuple(self._hops), self._flow, self._node, self._space, tuple(self._nats))

    # --- where it begins ------------------------------------------------------------------------------------

    def send(self, node: str, space: str) -> None:
        """From a socket."""
        self._node, self._space = node, space
        self._hop("socket", "sent")
        if space == NODE and self._serve("node"):
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
        state, device = self._state(), station.device
        if len(self._hops) > LONGEST:
            self._hop(
                "routing", "dropped", device, reason="it goes in circles until its hop limit is used up"
            )
            return
        if self._stopped("routing", device, obstacles.reverse_path(state, device, self._flow)):
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
        if self._stopped("routing", device, obstacles.forwarding(state, self._flow)):
            return
        if self._judged():
            return
        self._out(found)

    def _stopped(
        self, component: str, device: str, obstacle: Obstacle | None, action: str = "dropped"
    ) -> bool:
        if obstacle is not None:
            self._hop(component, action, device, detail=obstacle.detail, reason=obstacle.reason)
        return obstacle is not None

    def _lost_by(self, found: RouteState | None) -> bool:
        """Whether routing ends it."""
        if found is None:
            reason = f"there is no route to {show(self._flow.destination)}"
            self._hop("routing", "dropped", detail="no route", reason=reason)
            return True
        if found.kind in {"unicast", "local", "broadcast", "multicast", "anycast"}:
            return False
        action = "dropped" if found.kind == "blackhole" else "refused"
        self._hop(
            "routing", action, detail=lookup.route_text(found), reason=f"a {found.kind} route leads here"
        )
        return True

    def _deliver(self) -> None:
        """To a socket, or to the kernel's own answers."""
        state, flow = self._state(), self._flow
        if self.awaited is not None:
            if flow != self.awaited:
                reason = f"{self.awaited.text()} was expected: the asker does not know this answer"
                self._hop("socket", "refused", reason=reason)
            else:
                self._hop("socket", "delivered")
            return
        if self._stopped("socket", "", obstacles.socket(state, flow), action="refused"):
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
            self._hop("service", action, detail=turn.service, reason="the service has no endpoint to go to")
            return True
        before = self._flow
        address, port = turn.target
        self._flow = msgspec.structs.replace(before, destination=address, destination_port=port)
        self._masquerade = turn.masquerade
        others = f", {len(turn.others)} more possible" if turn.others else ""
        self._hop("service", "translated", detail=turn.service, reason=f"{turn.how}{others}")
        self._nats.append(Nat(self._node, before, self._flow))
        return False

    def _restore(self) -> None:
        """What connection tracking of this node does to an answer."""
        for nat in self._earlier:
            if nat.node == self._node and nat.after.back == self._flow:
                self._flow = nat.before.back
                self._hop("service", "translated", detail="back", reason="connection tracking knows it")

    def _seen_by_ip(self, state: SpaceState) -> bool:
        """Whether bridged packets pass the hooks of IP (br_netfilter)."""
        name = "iptables" if len(self._flow.source) == 4 else "ip6tables"
        return state.sysctls.get(f"net.bridge.bridge-nf-call-{name}", "0") == "1"

    def _judged(self) -> bool:
        """Policies of this node; whether they end it."""
        if self.awaited is not None:
            return False
        for judged in self._ways.policy(self._node, self._flow):
            self._hop("policy", "forwarded" if judged.allowed else "dropped", detail=judged.words)
            if not judged.allowed:
                return True
        return False

    def _hide(self, device: str) -> None:
        """Masquerading, as it leaves by a device."""
        outside = device == self._world.nodes[self._node].underlay and self._ways.masquerade(
            self._node, self._flow
        )
        if self.awaited is not None or not (outside or self._masquerade):
            return
        self._masquerade = False
        own = [item.address for item in self._state().of(device)]
        source = next((item for item in own if len(item) == len(self._flow.source)), None)
        if source is None or source == self._flow.source:
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
                "routing", "dropped", found.device, detail=lookup.route_text(found), reason="no such device"
            )
            return
        self._hop(
            "routing", "forwarded", link.name, detail=lookup.route_text(found), mtu=found.mtu or link.mtu
        )
        if not (link.up and link.carrier):
            what = "down" if not link.up else "without carrier"
            self._hop("interface", "dropped", link.name, reason=f"{link.name} is {what}")
            return
        if self._space == NODE:
            self._hide(link.name)
        if link.kind in OVERHEAD:
            self._tunnel(link, found)
            return
        self._onto(link, found.gateway or (found.hops[0] if found.hops else self._flow.destination))

    def _onto(self, link: LinkState, address: bytes) -> None:
        """To a station on the link of a device."""
        known = lookup.entry(self._state(), link.name, address)
        there = list(lookup.stations(self._world, self._node, self._space, link.name))
        if known is not None:
            words = f"{show(address)} dev {link.name} lladdr {show_mac(known.mac)} {known.state}"
            right = [station for station in there if station.mac == known.mac]
            if not right and there:
                reason = f"no interface on this link has {show_mac(known.mac)}"
                self._hop("neighbour", "dropped", link.name, detail=words, reason=reason)
                return
        else:
            right = lookup.answerers(self._world, self._node, self._space, link.name, address)
            words = f"{show(address)} dev {link.name}"
            if not right:
                reason = f"nobody on this link answers for {show(address)}"
                self._hop("neighbour", "dropped", link.name, detail=words, reason=reason)
                return
        if not right:
            self._hop("underlay", "sent", link.name, detail=words, reason="it leaves what is known here")
            return
        self._cross(link, right[0])

    def _cross(self, link: LinkState, station: Station) -> None:
        """Through a veth pair, a bridge or the underlay."""
        if station.node != self._node:
            self._hop("underlay", "forwarded", link.name, mtu=link.mtu)
            self._receive(station, "outside")
            return
        came = "pod" if self._space != NODE else "node"
        far = lookup.across(self._world, self._node, self._space, link.name)
        if link.kind == "bridge" or (far is not None and far[:3] != station[:3]):
            if self._bridged(link, far, station):
                return
        elif far is not None:
            self._space = far.space
            self._hop("interface", "received", far.device)
        self._receive(station, came)

    def _bridged(self, link: LinkState, far: Station | None, station: Station) -> bool:
        """Over the ports of a bridge of the node; whether the packet ends there."""
        self._space = NODE
        state = self._state()
        enter = state.links[far.device] if far is not None else None
        bridge = link.name if link.kind == "bridge" else (enter.master if enter is not None else "")
        leave = lookup.port_of(self._world, station, self._node, bridge)
        for port, action in ((enter, "received"), (leave, "forwarded")):
            if port is None:
                continue
            trouble = obstacles.port(port, enter, leave)
            if trouble:
                self._hop("bridge", "dropped", port.name, detail=f"{port.name} of {bridge}", reason=trouble)
                return True
            self._hop("bridge", action, port.name, detail=f"port of {bridge}", mtu=port.mtu)
        if station.space == NODE or enter is None or not self._seen_by_ip(state):
            return False
        self._restore()
        return self._judged()

    def _tunnel(self, link: LinkState, found: RouteState) -> None:
        """Inside another packet to a node."""
        remote, mac = found.gateway, b""
        if link.kind == "vxlan":
            known = lookup.entry(self._state(), link.name, found.gateway or self._flow.destination)
            if known is None:
                reason = f"no neighbour entry for {show(found.gateway)}, and nobody is asked on an overlay"
                self._hop("neighbour", "dropped", link.name, detail=show(found.gateway), reason=reason)
                return
            mac = known.mac
            self._hop(
                "neighbour", "forwarded", link.name, detail=f"{show(found.gateway)} lladdr {show_mac(mac)}"
            )
            row = lookup.tunnel_entry(self._state(), link.name, mac)
            if row is None:
                reason = f"no forwarding entry of {link.name} for {show_mac(mac)}"
                self._hop("overlay", "dropped", link.name, detail=f"fdb {show_mac(mac)}", reason=reason)
                return
            remote = row.remote
        far = self._far_node(remote)
        if far == self._node or not far:
            reason = f"no node is known at {show(remote)}" if remote else "no node is known for this address"
            self._hop("overlay", "dropped", link.name, reason=reason)
            return
        remote = remote or self._world.nodes[far].addresses[0]
        self._encapsulate(link, remote, far, mac)

    def _encapsulate(self, link: LinkState, remote: bytes, far: str, mac: bytes) -> None:
        overhead = OVERHEAD[link.kind][len(remote) == 16]
        words = f"{link.kind} {'id ' + str(link.vni) + ' ' if link.vni else ''}to {show(remote)}"
        self._overhead = overhead
        self._hop("overlay", "encapsulated", link.name, detail=words, mtu=link.mtu)
        outer = lookup.route(self._state(), Query(remote))
        if outer is None or outer.kind != "unicast":
            detail = lookup.route_text(outer) if outer is not None else "no route"
            self._hop("underlay", "dropped", detail=detail, reason=f"no way to the node at {show(remote)}")
            return
        device = self._state().links.get(outer.device)
        mtu = device.mtu if device is not None else 0
        self._hop("underlay", "forwarded", outer.device, detail=lookup.route_text(outer), mtu=mtu)
        if device is not None and not (device.up and device.carrier):
            self._hop("underlay", "dropped", outer.device, reason=f"{outer.device} is down")
            return
        self._node = far
        there = self._opening(link)
        self._overhead = 0
        if there is None:
            reason = f"this node has no {link.kind} device like {link.name} of the sender"
            self._hop("overlay", "dropped", detail=words, reason=reason)
            return
        if mac and there.mac != mac:
            reason = f"{there.name} has {show_mac(there.mac)}, the sender believes {show_mac(mac)}"
            self._hop("overlay", "dropped", there.name, detail=f"to {show_mac(mac)}", reason=reason)
            return
        self._hop("overlay", "decapsulated", there.name, detail=words)
        self._receive(Station(far, NODE, there.name, there.mac), "pod")

    def _far_node(self, remote: bytes) -> str:
        """Who has an underlay address; without one, on whose pods' subnet the packet ends."""
        if remote:
            named = [name for name, part in self._world.nodes.items() if remote in part.addresses]
            return named[0] if named else ""
        owner = self._world.owner(self._flow.destination)
        return owner[0] if owner is not None else ""

    def _opening(self, link: LinkState) -> LinkState | None:
        """The device of the present node that takes what another node's device sent."""
        for item in self._state().links.values():
            same = (item.kind, item.vni, item.port) == (link.kind, link.vni, link.port)
            if same and item.up and len(item.local) == len(link.local):
                return item
        return None

    # --- notes ----------------------------------------------------------------------------------------------

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
            )
        )
