"""From frontends to the rows of the nftables table. Pure.

Life of a frontend: its verdict and chains come from ``chains`` by its shape; its targets become elements of a map
under address, protocol, port and index. A target's place is its rank, so one target more or less changes the rows
behind it and, because the count is part of the chain's name, the frontend's verdict. With affinity there is one more
step, index -> id -> target, where the id is the target's own and outlives changes of the list: what a client is
remembered with finds the same target or, when that is gone, nothing.

Schedulers: ``rr`` and ``wrr`` (all weights are equal) in exact turn; ``sh`` and ``dh`` by a hash of the source or
destination address; ``mh`` by a hash of the source into a table of
slots; ``flag-2`` hashes the source port too. Those
that count connections (lc, wlc, sed, nq ...) cannot be had from nf_tables: targets are drawn at random, and ``remark``
says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from pycni.model.family import Family
from pycni.model.service import Decision, Frontend, Kind, NodeFacts, Options, Packet, Pool
from pycni_proxy.base import Tables
from pycni_proxy.nft import evaluate
from pycni_proxy.nft.chains import EMPTY, INSIDE, Chains, Choice, Shape
from pycni_proxy.nft.layout import (
    CHAINS,
    INDEX,
    TABLE_ROW,
    TARGETS,
    VERDICTS,
    VERSIONS,
    frontend_bytes,
    generation,
    id_bytes,
    index,
    port_bytes,
    row_sets,
    shard_of,
    verdict_name,
    verdict_value,
)
from pycni_proxy.nft.listing import table_text
from pycni_proxy.nft.slots import SLOTS, table

_HOW = {"rr": "turn", "wrr": "turn", "sh": "source", "dh": "destination", "mh": "source"}
_PORT_FLAG = "flag-2"
_MOST = INSIDE
"""Targets one pool may have: more would run into the indexes of the other pool."""


class NftCompiler:
    """The pure half of the nftables data plane; see ``base.Compiler``."""

    def __init__(self, facts: NodeFacts) -> None:
        self._facts = facts
        self._chains = Chains(facts)
        versions = [VERSIONS[family] for family in facts.families]
        names = [tuple(row_sets(version)) for version in versions]
        self.tables: tuple[str, ...] = (
            TABLE_ROW,
            CHAINS,
            VERDICTS,
            *(name for some in names for name in some),
        )
        self.shared = frozenset(
            {CHAINS, VERDICTS}
            | {f"{name}{version}" for name in ("hairpin", "cluster_ips") for version in versions}
        )

    def refusal(self, frontend: Frontend) -> str:
        """See ``base.Compiler``."""
        if frontend.key.family not in self._facts.families:
            return f"this node has no {frontend.key.family.label}"
        inside = frontend.inside
        if len(frontend.pool.targets) > _MOST or (inside is not None and len(inside.targets) > _MOST):
            return f"more than {_MOST} endpoints"
        return ""

    def remark(self, frontend: Frontend) -> str:
        """What of a frontend's wishes is not granted although it is served; "" when all are."""
        options = frontend.options
        if options.dsr:
            return "direct server return needs ipvs; addresses are translated both ways"
        if options.scheduler and options.scheduler not in _HOW:
            return f"scheduler {options.scheduler} needs ipvs or ebpf; endpoints are drawn at random"
        return ""

    def common(self) -> Tables:
        """See ``base.Compiler``."""
        return {TABLE_ROW: {"generation": generation(self._facts)}}

    def rows(self, frontends: Sequence[Frontend]) -> Tables:
        """See ``base.Compiler``."""
        tables: Tables = {}
        packed: dict[int, _Targets] = {}
        for frontend in frontends:
            self._add(frontend, tables, packed)
        return tables

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """See ``base.Compiler``."""
        return evaluate.decide(self._facts, tables, packet)

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """See ``base.Compiler``. The lines are in nft's order, not sorted."""
        return table_text(self._facts, tables)

    def _add(self, frontend: Frontend, tables: Tables, packed: dict[int, _Targets]) -> None:
        key, options = frontend.key, frontend.options
        version = 4 if key.family is Family.V4 else 6
        where = frontend_bytes(key)
        shard = shard_of(where)
        pools = []
        for offset, pool in ((0, frontend.pool), (INSIDE, frontend.inside)):
            if pool is None:
                break
            mine = packed.get(id(pool))
            if mine is None:
                mine = packed[id(pool)] = _Targets(pool, options)
            pools.append(mine)
            if mine.places:
                mine.put(tables, TARGETS[version][shard], where, offset)
        exact = pools[0].exact or pools[-1].exact
        entry = self._chains.entry(
            Shape(
                version,
                shard,
                frontend.kind is Kind.CLUSTER_IP,
                not key.address,
                pools[0].choice,
                pools[1].choice if len(pools) > 1 else None,
                frontend.local_only,
                frontend.source_ranges,
                options.affinity_s,
                where.hex() if exact else "",
            )
        )
        if entry.chains:
            tables.setdefault(CHAINS, {}).update(entry.chains)
        tables.setdefault(VERDICTS, {})[verdict_name(entry.verdict)] = entry.verdict
        tables.setdefault(f"services{version}", {})[where] = verdict_value(entry.verdict)
        if frontend.kind is Kind.CLUSTER_IP:
            tables.setdefault(f"cluster_ips{version}", {})[key.address] = None


class _Targets:
    """The targets of one pool, packed once for all frontends that share it."""

    def __init__(self, pool: Pool, options: Options) -> None:
        self.places = [address + port_bytes(port) for address, port, _ in pool.targets]
        self._local = [target.address for target in pool.targets if target.local]
        self._affinity = bool(options.affinity_s)
        self._order: Sequence[int] = range(len(self.places))
        count = len(self.places)
        if count and options.scheduler == "mh":
            self._order = table(tuple(self.places))
            count = SLOTS
        how = _HOW.get(options.scheduler, "random")
        if how == "source" and _PORT_FLAG in options.sched_flags:
            how = "source-port"
        self.exact = how == "turn" and count > 0
        self.choice = Choice(how, count) if count else Choice("", 0, EMPTY[pool.empty])

    def put(self, tables: Tables, name: str, where: bytes, offset: int) -> None:
        """Add the rows of one frontend to the map ``name``, its indexes starting at ``offset``."""
        rows = tables.setdefault(name, {})
        version = name[len("targets")]
        places = self.places
        if not self._affinity:
            for rank, which in enumerate(self._order, offset):
                rows[INDEX[rank] + where] = places[which]
        else:
            ids = _ids(places, offset)
            for number, place in zip(ids, places, strict=True):
                rows[number + where] = place
            named = tables.setdefault(f"ids{version}", {})
            for rank, which in enumerate(self._order, offset):
                named[index(rank) + where] = id_bytes(ids[which])
        if self._local:
            hairpin = tables.setdefault(f"hairpin{version}", {})
            for address in self._local:
                hairpin[address + address] = None


def _ids(places: Sequence[bytes], offset: int) -> list[bytes]:
    """An id for each target of a pool: its own, whatever the others are, and another one in the other pool.

    Bit 31 tells the pools apart, bit 30 ids from indexes and all else. Two targets with the same checksum (seldom) are
    told apart by rank.
    """
    pool = 0xC0000000 if offset else 0x40000000
    taken: set[int] = set()
    found = []
    for place in places:
        number = zlib.crc32(place) & 0x3FFFFFFF
        while number in taken:
            number = (number + 1) & 0x3FFFFFFF
        taken.add(number)
        found.append(index(number | pool))
    return found
