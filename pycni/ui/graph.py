"""What there is, as a graph to draw: nodes, their devices, pods, tunnels, Services, BGP peers. Pure.

Life: made anew from each look at a lab or a cluster (``tracing.eyes.Gathered``); ``layout`` gives its items places,
the browser draws them. Ids are stable: the same thing has the same id in the next graph.

    underlay           the segment all uplinks are on
    node:NODE          host:NODE       dev:NODE/DEVICE (uplink, tunnel, bridge)
    pod:NS/NAME        svc:NS/NAME     peer:ADDRESS
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from pycni.model.family import show
from pycni.model.kube import ENDPOINT_SLICE, POD, PROTOCOL_NAMES, SERVICE, EndpointSlice, Pod, Service
from pycni.model.space import NODE, LinkState, NodePart, PodPlace, SpaceState, World
from pycni.policy.effective_texts import Cluster, named
from pycni.trace.cluster import Objects
from pycni.ui.amiss import OVERLAYS, amiss, link_trouble, tunnel_trouble

UNDERLAY = "underlay"
OK, WARN, BAD = "ok", "warn", "bad"
ANY = re.compile(r"(\d+)")


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A thing with a place of its own."""

    id: str
    kind: str
    """underlay, node, host (a node's own routing), uplink, tunnel, bridge, pod, service, peer."""
    name: str
    label: str = ""
    """A second, shorter line."""
    node: str = ""
    """The node it is on; "" for what is on none."""
    state: str = OK
    """ok, warn or bad."""
    note: str = ""
    """Why it is not ok, for people."""
    facts: tuple[tuple[str, str], ...] = ()
    """What else is known, as name and value."""


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A way between two things."""

    id: str
    kind: str
    """cable, inner (inside a node), veth, carry (a tunnel inside its uplink), tunnel, session, backs."""
    a: str
    b: str
    name: str = ""
    counter: str = ""
    """``NODE/DEVICE`` whose counters tell its traffic; "": nobody counts."""
    forward: str = "tx"
    """Which of the device's counters is traffic from ``a`` to ``b``: tx or rx."""
    state: str = OK
    note: str = ""


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    items: tuple[Item, ...] = ()
    edges: tuple[Edge, ...] = ()
    trouble: str = ""
    """Why less is known than should be."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A BGP session with somebody who is no node of the cluster, or somebody outside without one."""

    address: str
    name: str
    sessions: Mapping[str, str] = {}
    """State by node."""
    facts: tuple[tuple[str, str], ...] = ()


def graph(world: World, objects: Objects, peers: Sequence[Peer] = (), trouble: str = "") -> Graph:
    """The graph of a world. ``peers``: those outside of it."""
    items: list[Item] = []
    edges: list[Edge] = []
    parts = [world.nodes[name] for name in natural(world.nodes)]
    items.append(_underlay(parts))
    policies = _policies(objects)
    for part in parts:
        found, ways = _Node(part, objects, policies).parts()
        items += found
        edges += ways
    for name in natural(world.silent):
        items.append(Item(id=f"node:{name}", kind="node", name=name, state=BAD, note=world.silent[name]))
    edges += _tunnels(parts)
    for peer in sorted(peers, key=lambda item: item.address):
        item, edge = _peer(peer)
        items.append(item)
        edges.append(edge)
    for key in natural(objects.of(SERVICE)):
        service, ways = _service(objects.of(SERVICE)[key], objects, world)
        items.append(service)
        edges += ways
    return Graph(items=tuple(items), edges=tuple(edges), trouble=trouble)


def natural(names: Iterable[str]) -> list[str]:
    """Sorted as people count: node2 before node10."""
    return sorted(names, key=lambda text: [int(part) if part.isdigit() else part for part in ANY.split(text)])


def _underlay(parts: Sequence[NodePart]) -> Item:
    networks: set[str] = set()
    sizes: set[int] = set()
    for part in parts:
        state = part.actual.get(NODE, SpaceState())
        for item in state.of(part.underlay):
            if item.address in part.addresses:
                networks.add(str(ip_interface((item.address, item.prefix_len)).network))
        if part.underlay in state.links:
            sizes.add(state.links[part.underlay].mtu)
    mtu = ", ".join(map(str, sorted(sizes)))
    mixed = len(sizes) > 1
    return Item(
        id=UNDERLAY,
        kind="underlay",
        name="underlay",
        label=" · ".join([*sorted(networks), *([f"MTU {mtu}"] if mtu else [])]),
        state=WARN if mixed else OK,
        note="the nodes' uplinks have different MTUs" if mixed else "",
        facts=(("networks", ", ".join(sorted(networks))), ("MTU", mtu)),
    )


class _Node:
    """One node's part of the graph."""

    def __init__(self, part: NodePart, objects: Objects, policies: Mapping[str, tuple[str, ...]]) -> None:
        self._part, self._policies = part, policies
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
        missing = amiss(part, NODE)
        notes = [text for text in (part.agent, *missing) if text]
        addresses = ", ".join(show(item) for item in part.addresses)
        track = self._own.conntrack
        return Item(
            id=f"node:{part.name}",
            kind="node",
            name=part.name,
            label=self._subnets(),
            node=part.name,
            state=BAD if missing else WARN if notes else OK,
            note="; ".join(notes),
            facts=(
                ("addresses", addresses),
                ("pod network", self._subnets()),
                ("backend", part.backend),
                ("agent", part.agent or "ready"),
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
        trouble = link_trouble(self._own.links.get(name))
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
        notes = [text for text in (link_trouble(link), *amiss(self._part, place.name)) if text]
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
        trouble = link_trouble(link) if device else ""
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


def natural_key(text: str) -> list[int | str]:
    """For ``sorted``, as ``natural``."""
    return [int(part) if part.isdigit() else part for part in ANY.split(text)]


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


def _tunnels(parts: Sequence[NodePart]) -> Iterator[Edge]:
    """One for each pair of nodes that send to each other through an overlay, by device."""
    for number, one in enumerate(parts):
        for other in parts[number + 1 :]:
            there, back = tunnel_trouble(one, other), tunnel_trouble(other, one)
            for device in natural(there.keys() | back.keys()):
                ends = ((one, other, there), (other, one, back))
                notes = [
                    f"{a.name} to {b.name}: {found[device]}" for a, b, found in ends if found.get(device, "")
                ]
                yield Edge(
                    id=f"tunnel:{one.name}+{other.name}/{device}",
                    kind="tunnel",
                    a=f"dev:{one.name}/{device}",
                    b=f"dev:{other.name}/{device}",
                    name=device,
                    state=BAD if notes else OK,
                    note="; ".join(notes),
                )


def _peer(peer: Peer) -> tuple[Item, Edge]:
    down = [node for node in natural(peer.sessions) if peer.sessions[node] != "Established"]
    note = ", ".join(f"{node}: {peer.sessions[node]}" for node in down)
    state = OK if not down else BAD if len(down) == len(peer.sessions) else WARN
    up = len(peer.sessions) - len(down)
    item = Item(
        id=f"peer:{peer.address}",
        kind="peer",
        name=peer.name,
        label=f"BGP with {up} of {len(peer.sessions)} nodes" if peer.sessions else peer.address,
        state=state,
        note=note,
        facts=(
            ("address", peer.address),
            *peer.facts,
            *((f"session of {node}", peer.sessions[node]) for node in natural(peer.sessions)),
        ),
    )
    edge = Edge(id=f"session:{peer.address}", kind="session", a=item.id, b=UNDERLAY, state=state, note=note)
    return item, edge


def _service(service: Service, objects: Objects, world: World) -> tuple[Item, list[Edge]]:
    key = service.meta.key
    slices: Mapping[str, EndpointSlice] = objects.of(ENDPOINT_SLICE)
    ready: dict[str, bool] = {}
    for part in slices.values():
        if part.service == key:
            for end in part.endpoints:
                owner = world.owner(ip_address(end.address).packed)
                name = end.pod or (owner[1] if owner else "") or end.address
                ready[name] = ready.get(name, False) or end.ready
    addresses = [item for item in service.cluster_ips if item != "None"]
    ports = " ".join(f"{item.port}/{PROTOCOL_NAMES.get(item.protocol, '')}" for item in service.ports)
    nobody = bool(addresses) and not any(ready.values())
    namespace, _, name = key.rpartition("/")
    count = sum(ready.values())
    item = Item(
        id=f"svc:{key}",
        kind="service",
        name=name,
        label=f"{addresses[0] if addresses else 'headless'}  {ports}",
        state=WARN if nobody else OK,
        note="no endpoint is ready" if nobody else "",
        facts=(
            ("namespace", namespace),
            ("type", service.type),
            (
                "addresses",
                ", ".join((*addresses, *service.external_ips, *(one.ip for one in service.ingress))),
            ),
            ("ports", ports),
            ("node ports", " ".join(str(one.node_port) for one in service.ports if one.node_port)),
            ("endpoints", f"{count} ready of {len(ready)}"),
        ),
    )
    edges = [
        Edge(
            id=f"backs:{key}>{pod}",
            kind="backs",
            a=item.id,
            b=f"pod:{pod}",
            state=OK if ready[pod] else WARN,
            note="" if ready[pod] else "not ready",
        )
        for pod in natural(ready)
        if pod in world.pods
    ]
    return item, edges


def _policies(objects: Objects) -> dict[str, tuple[str, ...]]:
    """Names of the policies about each pod."""
    cluster = Cluster(objects)
    found: dict[str, list[str]] = {}
    for _, policy in cluster.ordered():
        for pod in cluster.pods:
            if cluster.selects(policy, pod):
                found.setdefault(pod.meta.key, []).append(named(policy).partition(" ")[2])
    return {key: tuple(names) for key, names in found.items()}


def pod_networks(world: World) -> list[str]:
    """All networks of pods, for the head line."""
    found = {
        str(ip_network((item.address, item.prefix_len), strict=False))
        for part in world.nodes.values()
        for place in part.pods
        for item in part.actual.get(NODE, SpaceState()).of(place.bridge)
    }
    return natural(found)
