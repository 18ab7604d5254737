"""What there is, as a graph to draw: nodes, their devices, pods, tunnels, Services, BGP peers. Pure.

Life: made anew from each look at a lab or a cluster (``tracing.eyes.Gathered``); ``layout`` gives its items places,
the browser draws them. Ids are stable: the same thing has the same id in the next graph.

    underlay           the segment all uplinks are on
    node:NODE          host:NODE       dev:NODE/DEVICE (uplink, tunnel, bridge)
    pod:NS/NAME        svc:NS/NAME     peer:ADDRESS
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface

from pycni.model.kube import ENDPOINT_SLICE, PROTOCOL_NAMES, SERVICE, EndpointSlice, Service
from pycni.model.space import NODE, NodePart, SpaceState, World
from pycni.policy.effective_texts import Cluster, named
from pycni.trace.cluster import Objects
from pycni.ui.amiss import Compared
from pycni.ui.model import BAD, OK, UNDERLAY, WARN, Edge, Graph, Item, Peer, natural
from pycni.ui.node import NodeGraph


def graph(world: World, objects: Objects, peers: Sequence[Peer] = (), trouble: str = "") -> Graph:
    """The graph of a world. ``peers``: those outside of it."""
    items: list[Item] = []
    edges: list[Edge] = []
    parts = [world.nodes[name] for name in natural(world.nodes)]
    items.append(_underlay(parts))
    policies = _policies(objects)
    compared = [Compared(part) for part in parts]
    for one in compared:
        found, ways = NodeGraph(one, objects, policies, world.silent.get(one.part.name, "")).parts()
        items += found
        edges += ways
    for name in natural(world.silent.keys() - world.nodes.keys()):
        items.append(Item(id=f"node:{name}", kind="node", name=name, state=BAD, note=world.silent[name]))
    edges += _tunnels(compared)
    for peer in sorted(peers, key=lambda item: item.address):
        item, edge = _peer(peer)
        items.append(item)
        edges.append(edge)
    for key in natural(objects.of(SERVICE)):
        service, ways = _service(objects.of(SERVICE)[key], objects, world)
        items.append(service)
        edges += ways
    return Graph(items=tuple(items), edges=tuple(edges), trouble=trouble)


def _underlay(parts: Sequence[NodePart]) -> Item:
    networks: set[str] = set()
    sizes: set[int] = set()
    for part in parts:
        state = part.actual.get(NODE, SpaceState())
        for item in state.of(part.underlay):
            if item.address in part.addresses and item.address[:2] != b"\xfe\x80":
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


def _tunnels(parts: Sequence[Compared]) -> Iterator[Edge]:
    """One for each pair of nodes that send to each other through an overlay, by device."""
    for number, one in enumerate(parts):
        for other in parts[number + 1 :]:
            there, back = one.tunnels_to(other), other.tunnels_to(one)
            for device in natural(there.keys() | back.keys()):
                ends = ((one, other, there), (other, one, back))
                notes = [
                    f"{a.part.name} to {b.part.name}: {found[device]}"
                    for a, b, found in ends
                    if found.get(device, "")
                ]
                yield Edge(
                    id=f"tunnel:{one.part.name}+{other.part.name}/{device}",
                    kind="tunnel",
                    a=f"dev:{one.part.name}/{device}",
                    b=f"dev:{other.part.name}/{device}",
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
