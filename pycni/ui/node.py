"""One node's part of the graph: itself, its routing, its devices, its pods. Pure; part of ``graph``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface

from pycni.model.family import show
from pycni.model.kube import POD, PROTOCOL_NAMES, Pod
from pycni.model.space import NODE, LinkState, PodPlace, SpaceState
from pycni.trace.cluster import Objects
from pycni.ui.amiss import OVERLAYS, Compared, link_trouble
from pycni.ui.model import BAD, OK, UNDERLAY, WARN, Edge, Item, natural, natural_key


class NodeGraph:
    """One node's part of the graph."""

    def __init__(
        self,
        compared: Compared,
        objects: Objects,
        policies: Mapping[str, tuple[str, ...]],
        silent: str = "",
    ) -> None:
        """``policies``: names of those about each pod. ``silent``: why nothing is known of the node."""
        self._part, self._compared, self._policies = compared.part, compared, policies
        self._silent = silent
        part = self._part
        self._pods: Mapping[str, Pod] = objects.of(POD)
        self._own = part.actual.get(NODE, SpaceState())
        wanted = part.wanted.get(NODE, SpaceState())
        self._links = {**wanted.links, **self._own.links}
        self._ways = {route.device for state in (self._own, wanted) for route in state.routes}

    def parts(self) -> tuple[list[Item], list[Edge]]:
        """Its items, the node first, and edges."""
        part, name = self._part, self._part.name
        host = f"host:{name}"
        items = [
            self._node(),
            Item(id=host, kind="host", name="kernel", node=name, label="routes, policies, services"),
        ]
        edges: list[Edge] = []
        for device, kind in self._devices():
            item = self._device(device, kind)
            items.append(item)
            edges += self._plugged(item, device, kind)
        for place in sorted(part.pods, key=lambda place: natural_key(place.name)):
            items.append(self._pod(place))
            edges.append(self._veth(place))
        return items, edges

    def _node(self) -> Item:
        part = self._part
        missing = self._compared.missing(NODE)
        notes = [text for text in (self._silent, part.agent, *missing) if text]
        addresses = ", ".join(show(item) for item in part.addresses)
        track = self._own.conntrack
        return Item(
            id=f"node:{part.name}",
            kind="node",
            name=part.name,
            label=self._subnets(),
            node=part.name,
            state=BAD if missing or self._silent else WARN if notes else OK,
            note="; ".join(notes),
            facts=(
                ("addresses", addresses),
                ("pod network", self._subnets()),
                ("backend", part.backend),
                ("agent", self._silent or part.agent or "ready"),
                ("pods", str(len(part.pods))),
                ("connections", f"{track.count} of {track.limit}" if track.limit else ""),
            ),
        )

    def _subnets(self) -> str:
        bridges = natural({place.bridge for place in self._part.pods if place.bridge})
        found = {
            str(ip_interface((item.address, item.prefix_len)).network)
            for bridge in bridges
            for item in self._own.of(bridge)
            if item.address[:2] != b"\xfe\x80"
        }
        return " ".join(sorted(found, key=lambda text: (":" in text, text)))

    def _devices(self) -> Iterator[tuple[str, str]]:
        part = self._part
        if part.underlay:
            yield part.underlay, "uplink"
        for name in natural(self._links):
            if self._links[name].kind in OVERLAYS and (name in self._ways or name.startswith("flannel")):
                yield name, "tunnel"
        for name in natural({place.bridge for place in part.pods if place.bridge}):
            yield name, "bridge"

    def _device(self, name: str, kind: str) -> Item:
        link = self._links.get(name)
        trouble = "" if self._silent else link_trouble(self._own.links.get(name))
        addresses = [show(item.address) for item in self._own.of(name) if item.address[:2] != b"\xfe\x80"]
        label = " ".join(addresses[:1])
        if kind == "tunnel" and link is not None:
            label = f"{link.kind} {link.vni}" if link.vni else link.kind
        if kind == "bridge":
            label = f"{sum(place.bridge == name for place in self._part.pods)} ports"
        return Item(
            id=f"dev:{self._part.name}/{name}",
            kind=kind,
            name=name,
            label=label,
            node=self._part.name,
            state=BAD if trouble else OK,
            note=trouble,
            facts=_link_facts(link, addresses),
        )

    def _plugged(self, item: Item, device: str, kind: str) -> Iterator[Edge]:
        name = self._part.name
        host, counter = f"host:{name}", f"{name}/{device}"
        if kind == "uplink":
            yield Edge(
                id=f"cable:{counter}",
                kind="cable",
                a=UNDERLAY,
                b=item.id,
                name=device,
                counter=counter,
                forward="rx",
                state=item.state,
                note=item.note,
            )
            yield Edge(id=f"inner:{counter}", kind="inner", a=item.id, b=host)
            return
        yield Edge(
            id=f"inner:{counter}",
            kind="inner",
            a=host,
            b=item.id,
            name=device,
            counter=counter,
            state=item.state,
            note=item.note,
        )
        if kind == "tunnel" and self._part.underlay:
            yield Edge(id=f"carry:{counter}", kind="carry", a=item.id, b=f"dev:{name}/{self._part.underlay}")

    def _pod(self, place: PodPlace) -> Item:
        pod = self._pods.get(place.name)
        state = self._part.actual.get(place.name, SpaceState())
        link = state.links.get(place.interface)
        # Of nodes that are asked about single pods the others' insides are not known.
        trouble = link_trouble(link) if place.name in self._part.actual else ""
        notes = [text for text in (trouble, *self._compared.missing(place.name)) if text]
        namespace, _, name = place.name.rpartition("/")
        labels = " ".join(f"{key}={value}" for key, value in sorted(pod.meta.labels.items())) if pod else ""
        ports = (
            " ".join(f"{item.port}/{PROTOCOL_NAMES.get(item.protocol, '')}" for item in pod.ports)
            if pod
            else ""
        )
        held = self._policies.get(place.name, ())
        return Item(
            id=f"pod:{place.name}",
            kind="pod",
            name=name,
            label=namespace,
            node=self._part.name,
            state=BAD if notes else OK,
            note="; ".join(notes),
            facts=(
                ("addresses", ", ".join(map(show, place.addresses))),
                ("node", self._part.name),
                *_link_facts(link, ()),
                ("node's end", place.host_interface),
                ("bridge", place.bridge),
                ("ports", ports),
                ("labels", labels),
                ("policies", ", ".join(held)),
            ),
        )

    def _veth(self, place: PodPlace) -> Edge:
        name = self._part.name
        if place.bridge:
            begin = f"dev:{name}/{place.bridge}"
        elif place.host_interface:
            begin = f"host:{name}"
        else:  # on the underlay itself: macvlan, ipvlan
            begin = f"dev:{name}/{self._part.underlay}"
        device = place.host_interface
        link = self._own.links.get(device) if device else None
        trouble = link_trouble(link) if device and not self._silent else ""
        if device and link is not None and not trouble:
            trouble = _port_trouble(link, place.bridge)
        return Edge(
            id=f"veth:{place.name}",
            kind="veth",
            a=begin,
            b=f"pod:{place.name}",
            name=device,
            counter=f"{name}/{device}" if device else "",
            state=BAD if trouble else OK,
            note=f"{device}: {trouble}" if trouble else "",
        )


def _port_trouble(link: LinkState, bridge: str) -> str:
    if link.master != bridge:
        return f"is no port of {bridge}" if bridge else f"is a port of {link.master}"
    if bridge and link.port_state != "forwarding":
        return f"its port of {bridge} is {link.port_state}"
    return f"its port of {bridge} is isolated" if bridge and link.isolated else ""


def _link_facts(link: LinkState | None, addresses: Iterable[str]) -> tuple[tuple[str, str], ...]:
    if link is None:
        return ()
    return (
        ("interface", f"{link.name}, {link.kind or 'hardware'}"),
        ("addresses", ", ".join(addresses)),
        ("MAC", link.mac.hex(":")),
        ("MTU", str(link.mtu)),
        ("VXLAN", f"id {link.vni}, UDP port {link.port}" if link.vni else ""),
    )
