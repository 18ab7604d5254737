"""Frontends as rows of the socket layer's maps. Pure.

What a program on this node (in a pod or on the node itself) opens is led to an endpoint in the socket layer and never
meets nftables. Everything else that carries a virtual address, traffic from outside the node, raw packets, SCTP, is not
seen here: this data plane is a partial one (``Dataplane.partial``), and the engine gives its frontends to the nftables
plane as well. So no packet depends on the socket layer alone, and what it refuses is served all the same.

    sock-pools      (pool, number) -> eight targets; pool is a hash of the targets, so a change makes a new pool, and a
                    frontend is switched from the old one to the new one by a single update
    sock-maglev     (pool, number) -> 4,096 rows of a lookup table, for the scheduler that wants it
    sock-nodes      addresses at which node ports are served
    sock-frontends  address, port, protocol -> pool, scheduler, affinity

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
    NodeFacts,
    Packet,
    Pool,
    Target,
    Verdict,
)
from pycni_proxy.base import Table, Tables
from pycni_proxy.ebpf import layout, maglev
from pycni_proxy.ebpf.layout import Meta

POOLS, MAGLEV, NODES, FRONTENDS = "sock-pools", "sock-maglev", "sock-nodes", "sock-frontends"
MAP_OF: Mapping[str, str] = {POOLS: "pools", MAGLEV: "maglev", NODES: "nodes", FRONTENDS: "frontends"}
"""Tables of ours and the maps that hold them."""
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

    tables: tuple[str, ...] = (POOLS, MAGLEV, NODES, FRONTENDS)
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
        pools: Table = {}
        tables_of_maglev: Table = {}
        own: Table = {}
        for frontend in frontends:
            pool = _pool(frontend)
            if not pool.targets and (frontend.key.protocol != TCP or pool.empty is not Verdict.REJECT):
                continue
            packed = [layout.pack_target(item) for item in pool.targets]
            everybody = packed + [layout.pack_target(item) for item in pool.draining]
            meta = _meta(frontend, packed, everybody)
            own[layout.pack_frontend(frontend.key)] = meta.pack()
            if packed:
                pools.update(layout.chunks(meta.pool, everybody).items())
            if meta.scheduler == layout.MH and packed:
                for number, block in enumerate(maglev.pack(tuple(packed))):
                    tables_of_maglev[layout.chunk_key(meta.pool, number)] = block
        found: Tables = {POOLS: pools, MAGLEV: tables_of_maglev, FRONTENDS: own}
        return {name: rows for name, rows in found.items() if rows}

    def common(self) -> Tables:
        """The addresses of node ports. With node-port ranges there are none here: the driver finds them."""
        if self._facts.node_port_ranges:
            return {}
        return {NODES: {layout.pack_address(address): bytes(4) for address in self._facts.addresses}}

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """What becomes of a connection that a pod or the node itself opens; other packets are not touched here.

        A translated socket keeps its source address: nothing of it is masqueraded.
        """
        if not packet.from_node and not self._in_cluster(packet.source):
            return UNTOUCHED
        meta = self._frontend(tables, packet)
        if meta is None:
            return UNTOUCHED
        if not meta.targets:
            return Decision(Verdict.REJECT, frozenset())
        return Decision(None, frozenset(self._targets(tables, meta)))

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """A line per frontend and per node-port address."""
        lines = []
        for key, raw in tables.get(FRONTENDS, {}).items():
            meta = Meta.unpack(raw)
            words = [f"socket {layout.unpack_frontend(key)}"]
            if meta.targets:
                targets = ", ".join(str(item) for item in self._targets(tables, meta))
                words.append(f"{layout.SCHEDULER_NAMES[meta.scheduler]} -> {targets}")
                if meta.affinity_s:
                    words.append(f"affinity {meta.affinity_s}s")
                if meta.draining:
                    words.append(f"({meta.draining} draining)")
            else:
                words.append("refuse")
            lines.append(" ".join(words))
        lines += [f"node ports at {show(layout.unpack_address(key))}" for key in tables.get(NODES, {})]
        return sorted(lines)

    def _in_cluster(self, source: bytes) -> bool:
        number = int.from_bytes(source, "big")
        for network in self._facts.cluster_networks:
            if network.max_prefixlen == 8 * len(source):
                shift = network.max_prefixlen - network.prefixlen
                if number >> shift == int(network.network_address) >> shift:
                    return True
        return False

    def _frontend(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Meta | None:
        own = tables.get(FRONTENDS, {})
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
