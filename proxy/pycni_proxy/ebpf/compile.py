"""Frontends as rows of the socket layer's maps. Pure.

What a program on this node (in a pod or on the node itself) opens is led to an endpoint in the socket layer and never
meets nftables; TCP from outside is translated on the uplink, when that is known. Everything else that carries a virtual
address, other traffic from outside the node, raw packets, SCTP, is not seen here: this data plane is a partial one
(``Dataplane.partial``), and the engine gives its frontends to the nftables plane as well. So no packet depends on these
programs alone, and what they refuse is served all the same.

    sock-pools      (pool, number) -> eight targets; pool is a hash of the targets, so a change makes a new pool, and a
                    frontend is switched from the old one to the new one by a single update
    sock-maglev     (pool, number) -> 4,096 rows of a lookup table, for the scheduler that wants it
    sock-nodes      addresses at which node ports are served
    sock-frontends  address, port, protocol -> pool, scheduler, affinity
    uplink-frontends  the same for what comes in by the uplink: TCP to other addresses than ClusterIPs

A TCP frontend that refuses has a row without targets: connect(2) fails with ECONNREFUSED at once. UDP to nobody, and
verdict DROP, have no row: nftables answers with ICMP or with silence, as it does to clients outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pycni.model.family import Family, show
from pycni.model.kube import PROTOCOL_NAMES, TCP, UDP
from pycni.model.service import (
    UNTOUCHED,
    Decision,
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Packet,
    Pool,
    Target,
    Verdict,
)
from pycni_proxy.base import Tables
from pycni_proxy.ebpf import layout, maglev
from pycni_proxy.ebpf.layout import Meta

POOLS, MAGLEV, NODES, FRONTENDS = "sock-pools", "sock-maglev", "sock-nodes", "sock-frontends"
OUTSIDE = "uplink-frontends"
MAP_OF: Mapping[str, str] = {POOLS: "pools", MAGLEV: "maglev", NODES: "nodes", FRONTENDS: "frontends"}
"""Tables of ours and the maps that hold them. ``OUTSIDE`` is in a map of the uplink's."""
SCHEDULERS: Mapping[str, int] = {
    "": layout.RANDOM,
    "rr": layout.RR,
    "wrr": layout.RR,
    "lc": layout.LC,
    "wlc": layout.LC,
    "sed": layout.LC,
    "nq": layout.LC,
    "sh": layout.SH,
    "dh": layout.DH,
    "mh": layout.MH,
}
"""IPVS names to ours. Kubernetes knows no weights: with equal ones wrr is rr, and wlc, sed and nq are lc."""


class SockCompiler:
    """Compiler of the eBPF data plane."""

    tables: tuple[str, ...] = (POOLS, MAGLEV, NODES, FRONTENDS, OUTSIDE)
    shared: frozenset[str] = frozenset({POOLS, MAGLEV})

    def __init__(self, facts: NodeFacts) -> None:
        self._facts = facts

    def refusal(self, frontend: Frontend) -> str:
        """Why the socket layer leaves a frontend to nftables altogether; "" when it serves it."""
        options = frontend.options
        if frontend.key.protocol not in {TCP, UDP}:
            name = PROTOCOL_NAMES.get(frontend.key.protocol, str(frontend.key.protocol))
            return f"{name} is not translated in the socket layer"
        if frontend.source_ranges is not None:
            return "source ranges are not known in the socket layer"
        if options.dsr:
            return "direct server return is not possible in the socket layer"
        if options.scheduler not in SCHEDULERS:
            return f"no scheduler {options.scheduler}"
        if len(_pool(frontend).targets) > layout.MOST_TARGETS:
            return f"more than {layout.MOST_TARGETS} targets"
        return ""

    def rows(self, frontends: Sequence[Frontend]) -> Tables:
        """Rows of one service in all tables; tables without any are left out."""
        tables: Tables = {}
        for frontend in frontends:
            pool = _pool(frontend)
            if pool.targets or (frontend.key.protocol == TCP and pool.empty is Verdict.REJECT):
                _put(tables, FRONTENDS, frontend, pool)
            if self._on_uplink(frontend):
                _put(tables, OUTSIDE, frontend, frontend.pool, masquerade=not frontend.local_only)
        return tables

    def common(self) -> Tables:
        """The addresses of node ports. With node-port ranges there are none here: the driver finds them."""
        if self._facts.node_port_ranges:
            return {}
        return {NODES: {layout.pack_address(address): bytes(4) for address in self._facts.addresses}}

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """What becomes of a connection that a pod or the node itself opens, or TCP from outside on the uplink.

        A translated socket keeps its source address: nothing of it is masqueraded.
        """
        outside = not packet.from_node and not self._in_cluster(packet.source)
        meta = self._frontend(tables, OUTSIDE if outside else FRONTENDS, packet)
        if meta is None:
            return UNTOUCHED
        if outside:
            targets = frozenset(self._targets(tables, meta))
            return Decision(None, targets, targets if meta.flags & layout.MASQUERADE else frozenset())
        if not meta.targets:
            return Decision(Verdict.REJECT, frozenset())
        return Decision(None, frozenset(self._targets(tables, meta)))

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """A line per frontend and per node-port address."""
        lines = [
            f"{word} {layout.unpack_frontend(key)} {self._line(tables, Meta.unpack(raw))}"
            for table, word in ((FRONTENDS, "socket"), (OUTSIDE, "uplink"))
            for key, raw in tables.get(table, {}).items()
        ]
        lines += [f"node ports at {show(layout.unpack_address(key))}" for key in tables.get(NODES, {})]
        return sorted(lines)

    def _line(self, tables: Mapping[str, Mapping[Any, Any]], meta: Meta) -> str:
        if not meta.targets:
            return "refuse"
        targets = ", ".join(str(item) for item in self._targets(tables, meta))
        words = [f"{layout.SCHEDULER_NAMES[meta.scheduler]} -> {targets}"]
        if meta.affinity_s:
            words.append(f"affinity {meta.affinity_s}s")
        if meta.flags & layout.MASQUERADE:
            words.append("masquerade")
        if meta.draining:
            words.append(f"({meta.draining} draining)")
        return " ".join(words)

    def _on_uplink(self, frontend: Frontend) -> bool:
        """Whether what comes in by the uplink for a frontend is translated there; nftables serves the others."""
        key, pool = frontend.key, frontend.pool
        return bool(
            self._facts.uplink
            and key.protocol == TCP
            and frontend.kind is not Kind.CLUSTER_IP
            and pool.targets
            and len(pool.targets) <= layout.MOST_TARGETS
            # Open connections are counted by sockets only.
            and SCHEDULERS.get(frontend.options.scheduler) != layout.LC
            # A program of the node's at a node port: behind us it would be taken for that node port.
            and not any(self._is_node_port(target) for target in pool.targets)
        )

    def _is_node_port(self, target: Target) -> bool:
        low, high = self._facts.node_ports
        return low <= target.port <= high and target.local and not self._in_cluster(target.address)

    def _in_cluster(self, source: bytes) -> bool:
        number = int.from_bytes(source, "big")
        for network in self._facts.cluster_networks:
            if network.max_prefixlen == 8 * len(source):
                shift = network.max_prefixlen - network.prefixlen
                if number >> shift == int(network.network_address) >> shift:
                    return True
        return False

    def _frontend(self, tables: Mapping[str, Mapping[Any, Any]], table: str, packet: Packet) -> Meta | None:
        own = tables.get(table, {})
        family = Family.of_packed(packet.destination)
        key = FrontendKey(family, packet.destination, packet.protocol, packet.port)
        raw = own.get(layout.pack_frontend(key))
        if raw is None and layout.pack_address(packet.destination) in tables.get(NODES, {}):
            raw = own.get(layout.pack_frontend(key._replace(address=b"")))
        return None if raw is None else Meta.unpack(raw)

    def _targets(self, tables: Mapping[str, Mapping[Any, Any]], meta: Meta) -> list[Target]:
        found = []
        pools = tables.get(POOLS, {})
        for index in range(meta.targets):
            row = pools[layout.chunk_key(meta.pool, index // layout.CHUNK)]
            at = 20 * (index % layout.CHUNK)
            found.append(layout.unpack_target(row[at : at + 20]))
        return found


def _pool(frontend: Frontend) -> Pool:
    """Sockets of this node are inside."""
    return frontend.pool if frontend.inside is None else frontend.inside


def _put(tables: Tables, table: str, frontend: Frontend, pool: Pool, *, masquerade: bool = False) -> None:
    """Add the rows of one frontend with one of its pools."""
    packed = [layout.pack_target(item) for item in pool.targets]
    everybody = packed + [layout.pack_target(item) for item in pool.draining]
    meta = _meta(frontend, packed, everybody)
    if masquerade:
        meta = meta._replace(flags=meta.flags | layout.MASQUERADE)
    tables.setdefault(table, {})[layout.pack_frontend(frontend.key)] = meta.pack()
    if packed:
        tables.setdefault(POOLS, {}).update(layout.chunks(meta.pool, everybody).items())
    if meta.scheduler == layout.MH and packed:
        rows = tables.setdefault(MAGLEV, {})
        for number, block in enumerate(maglev.pack(tuple(packed))):
            rows[layout.chunk_key(meta.pool, number)] = block


def _meta(frontend: Frontend, targets: list[bytes], everybody: list[bytes]) -> Meta:
    key, options = frontend.key, frontend.options
    service = layout.service_number(str(frontend.name), key.family, key.protocol)
    if not targets:
        return Meta(bytes(12), 0, service, flags=layout.REFUSE)
    scheduler = SCHEDULERS.get(options.scheduler, layout.RANDOM)
    flags = 0
    if "flag-2" in options.sched_flags and scheduler in {layout.SH, layout.MH}:
        flags |= layout.HASH_PORTS
    if scheduler == layout.MH:
        flags |= maglev.size_class(len(targets)) << layout.MAGLEV_SHIFT
    return Meta(
        layout.pool_id(everybody),
        len(targets),
        service,
        affinity_s=options.affinity_s,
        scheduler=scheduler,
        flags=flags,
        draining=min(len(everybody) - len(targets), 0xFFFF),
    )
