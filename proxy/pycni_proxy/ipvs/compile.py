"""From frontends to virtual servers, real servers, set members and addresses: the pure half of the IPVS data plane.

Which virtual server a packet meets:

* a virtual address without peculiarities: the server of address, protocol and port;
* a node port: a firewall mark, taken from a set by protocol and port, so it is served at every address of the node
  there is now or later; with affinity, servers at the primary addresses (see ``_by_source``);
* traffic of pods and of the node itself to a frontend with an inner pool: a firewall mark of its own;
* direct server return: a firewall mark (tunnelled) for what comes from outside, another one (translated) for pods
  and the node;
* nobody to go to: no virtual server, or one with draining real servers only, and a mark that stands for the verdict.

Rows are whole values; a change of weight or scheduler is a change of the row. Members come before servers, so after a
crash in the middle every server of ours is found by the sets (``names.FRONTENDS``, ``names.MARKED``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from pycni.model.family import Family
from pycni.model.kube import SCTP
from pycni.model.service import Decision, Frontend, FrontendKey, Kind, NodeFacts, Packet, Pool, Verdict
from pycni.view.service_decide import within
from pycni.wire import ipvs as wire
from pycni.wire.ipset import Member
from pycni.wire.ipvs import DestSpec, ServiceKey, ServiceSpec
from pycni_proxy.base import Tables
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.evaluate import evaluate
from pycni_proxy.ipvs.names import Marks, set_name
from pycni_proxy.ipvs.options import DEFAULT_SCHEDULER, SLOPPY_TCP, IpvsOptions
from pycni_proxy.ipvs.rules import compile_rules
from pycni_proxy.ipvs.show import lines

SWITCHES, SETS, RULES, ADDRESSES, MEMBERS = "switches", "sets", "rules", "addresses", "members"
SERVICES, DESTS, VIPS, DIRECT = "services", "dests", "vips", "direct"
TABLES: tuple[str, ...] = (SWITCHES, SETS, RULES, ADDRESSES, MEMBERS, SERVICES, DESTS, DIRECT, VIPS)
"""In dependency order. ``addresses``: members several services may share; ``direct``: routing and tunnels of DSR."""
SHARED = frozenset({SWITCHES, ADDRESSES, VIPS, DIRECT})

ROUTING = "routing"
"""Key of ``direct``: (ROUTING, family), or (pod's address, virtual address)."""

_MARKED = DestSpec(weight=1)
_DRAINING = DestSpec(weight=0)
_TUNNELLED = DestSpec(weight=1, method=wire.TUNNEL)
_TUNNELLED_DRAINING = DestSpec(weight=0, method=wire.TUNNEL)
_VERDICT_MARKS = {Verdict.REJECT: names.REJECT_MARK, Verdict.DROP: names.DROP_MARK}
_HALVES: Mapping[Family, tuple[bytes, bytes]] = {
    family: (bytes(family.bits // 8), b"\x80" + bytes(family.bits // 8 - 1)) for family in Family
}
"""Two networks of length 1 are all addresses; sets cannot hold one of length 0."""
_FLAGS = {"flag-1": wire.SCHED1, "flag-2": wire.SCHED2, "flag-3": wire.SCHED3}
_FALL_BACK = frozenset({"sh", "mh"})
"""Schedulers that go on giving a draining server its share, which is refused: they always get their fallback flag."""
UNDRAINABLE = frozenset({"dh"})
"""Schedulers that refuse clients whose server has weight 0 and have no fallback: there targets go at once."""


class IpvsCompiler:
    """A ``base.Compiler`` for one node."""

    tables: tuple[str, ...] = TABLES
    shared: frozenset[str] = SHARED

    def __init__(self, facts: NodeFacts, options: IpvsOptions) -> None:
        self.facts = facts
        self.options = options
        self._marks = Marks()

    def refusal(self, frontend: Frontend) -> str:
        """Why IPVS cannot serve a frontend here; "" when it can."""
        key, wanted = frontend.key, frontend.options
        if key.family not in self.options.families:
            return f"this kernel's IPVS lacks {key.family.label}"
        if key.address and within(key.address, self.options.excluded):
            return "its address is inside excluded-cidrs"
        if (wanted.scheduler or DEFAULT_SCHEDULER) not in self.options.schedulers:
            return f"this kernel lacks the scheduler ip_vs_{wanted.scheduler or DEFAULT_SCHEDULER}"
        if wanted.dsr:
            if not key.address:
                return "direct server return is for external and load balancer addresses"
            for target in frontend.pool.targets:
                if target.port != key.port:
                    return f"direct server return cannot translate port {key.port} to {target.port}"
        return ""

    def rows(self, frontends: Sequence[Frontend]) -> Tables:
        """The rows of one service."""
        rows = _Rows(self.facts, self.options, self._marks)
        for frontend in frontends:
            rows.add(frontend)
        return {name: table for name, table in rows.tables.items() if table}

    def common(self) -> Tables:
        """Switches, sets and rules: the same whatever services there are."""
        sets: dict[Hashable, Any] = {}
        for family in self.facts.families:
            if family in self.options.families:
                sets.update(names.set_specs(family))
        return {
            SWITCHES: dict(self.options.switches),
            SETS: sets,
            RULES: dict(compile_rules(self.facts, self.options)),
        }

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """What the compiled tables do to a packet: the rules are read as the kernel reads them."""
        return evaluate(tables, self.facts, packet)

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """The tables as ``ipvsadm -Sn``, ``ipset save``, ``ip`` and ``iptables-save`` lines, sorted."""
        return lines(tables)


class _Rows:
    """Collects the rows of one service."""

    def __init__(self, facts: NodeFacts, options: IpvsOptions, marks: Marks) -> None:
        self._facts = facts
        self._options = options
        self._marks = marks
        self.tables: Tables = {name: {} for name in TABLES}

    def add(self, frontend: Frontend) -> None:
        if frontend.options.dsr:
            self._direct(frontend)
        elif frontend.kind is Kind.NODE_PORT:
            self._node_port(frontend)
        else:
            self._virtual_address(frontend)
        if frontend.source_ranges is not None:
            self._source_ranges(frontend)
        if (frontend.options.scheduler == "mh" or frontend.options.dsr) and any(
            name.startswith("net.ipv4.vs.") for name, _ in self._options.switches
        ):
            self.tables[SWITCHES][SLOPPY_TCP] = "1"

    def _virtual_address(self, frontend: Frontend) -> None:
        key = frontend.key
        member = Member(key.address, key.protocol, key.port)
        self._member(key.family, _set_of(frontend), member)
        if key.address not in self._facts.addresses:
            self._address(key.family, names.IPVS_IPS, Member(key.address))
            self.tables[VIPS][key.address] = True
        self._servers(ServiceKey(key.family, key.address, key.protocol, key.port), frontend, frontend.pool)
        if not frontend.pool.targets:
            self._member(key.family, names.MARK, member, _VERDICT_MARKS[frontend.pool.empty])
        if frontend.inside is not None:
            mark = self._marks.of(key) | names.INSIDE_BIT
            self._member(key.family, names.INSIDE, member, self._marked(frontend, frontend.inside, mark))

    def _node_port(self, frontend: Frontend) -> None:
        key = frontend.key
        members = _halves(key)
        if key.protocol == SCTP:
            for member in members:
                self._member(key.family, _set_of(frontend), member)
        else:
            self._member(key.family, _set_of(frontend), Member(port=key.port))
        mark = self._marks.of(key)
        if frontend.options.affinity_s and not self._facts.node_port_ranges:
            outer = self._at_addresses(frontend)
        else:
            outer = self._marked(frontend, frontend.pool, mark)
        for member in members if outer else ():
            self._member(key.family, names.NODE_MARK, member, outer)
        if frontend.inside is not None:
            inner = self._marked(frontend, frontend.inside, mark | names.INSIDE_BIT)
            for member in members:
                self._member(key.family, names.NODE_INSIDE, member, inner)

    def _at_addresses(self, frontend: Frontend) -> int:
        """A node port as virtual servers at the node's primary addresses; returns a verdict's mark, or 0."""
        key = frontend.key
        for address in self._facts.addresses:
            if Family.of_packed(address) is key.family:
                self._servers(
                    ServiceKey(key.family, address, key.protocol, key.port), frontend, frontend.pool
                )
        return 0 if frontend.pool.targets else _VERDICT_MARKS[frontend.pool.empty]

    def _direct(self, frontend: Frontend) -> None:
        """Outside traffic is tunnelled to the pods; pods and the node are translated as usual, without masquerade."""
        key = frontend.key
        member = Member(key.address, key.protocol, key.port)
        mark = self._marks.of(key) | names.DIRECT_BIT
        outer = self._marked(frontend, frontend.pool, mark, tunnel=True)
        self._member(key.family, names.MARK, member, outer)
        inner = self._marked(frontend, frontend.inside or frontend.pool, mark | names.INSIDE_BIT)
        self._member(key.family, names.INSIDE, member, inner)
        self._address(key.family, names.IPVS_IPS, Member(key.address))
        self._address(key.family, names.DIRECT, Member(key.address))
        self.tables[DIRECT][ROUTING, key.family] = True
        for target in (item for pool in frontend.pools for item in (*pool.targets, *pool.draining)):
            if target.local:
                self.tables[DIRECT][target.address, key.address] = True

    def _marked(self, frontend: Frontend, pool: Pool, mark: int, *, tunnel: bool = False) -> int:
        """The virtual server of a mark; returns what packets are to be marked with."""
        self._servers(ServiceKey(frontend.key.family, fwmark=mark), frontend, pool, tunnel=tunnel)
        if pool.targets:
            return mark
        verdict = _VERDICT_MARKS[pool.empty]
        # A verdict for an address that is routed here by mark only has to be routed here, too.
        return verdict | (mark & names.DIRECT_BIT)

    def _servers(self, service: ServiceKey, frontend: Frontend, pool: Pool, *, tunnel: bool = False) -> None:
        wanted = frontend.options
        scheduler = wanted.scheduler or DEFAULT_SCHEDULER
        drains = self._options.graceful and scheduler not in UNDRAINABLE
        draining = pool.draining if drains else ()
        if not pool.targets and not draining:
            return
        flags = sum(_FLAGS[name] for name in wanted.sched_flags)
        affinity_s = wanted.affinity_s
        if (
            affinity_s
            and service.fwmark
            and any(t.port != frontend.key.port for t in (*pool.targets, *draining))
        ):
            scheduler, flags, affinity_s = self._by_source(), 0, 0
        flags |= wire.SCHED1 if scheduler in _FALL_BACK else 0
        flags |= wire.PERSISTENT if affinity_s else 0
        self.tables[SERVICES][service] = ServiceSpec(scheduler, flags, affinity_s)
        dests = self.tables[DESTS]
        for target in draining:
            dests[service, target.address, target.port] = _TUNNELLED_DRAINING if tunnel else _DRAINING
        for target in pool.targets:
            dests[service, target.address, target.port] = _TUNNELLED if tunnel else _MARKED
        if not wanted.dsr:
            self._loop_back(frontend.key, pool)

    def _by_source(self) -> str:
        """The scheduler that stands for affinity where a mark and another port meet.

        There a persistent server does not translate the port (ip_vs_sched_persist compares it with the server's
        own, which is 0). Maglev gives a client the same target as long as that one is there, too.
        """
        return next((name for name in ("mh", "sh") if name in self._options.schedulers), DEFAULT_SCHEDULER)

    def _loop_back(self, key: FrontendKey, pool: Pool) -> None:
        """Only an endpoint of this node can come back to itself through this node."""
        for target in pool.targets:
            if target.local:
                member = Member(target.address, key.protocol, target.port, target.address)
                self._address(key.family, names.LOOP_BACK, member)

    def _source_ranges(self, frontend: Frontend) -> None:
        key, ranges = frontend.key, frontend.source_ranges or ()
        self._member(key.family, names.LOAD_BALANCER_FW, Member(key.address, key.protocol, key.port))
        for network in ranges:
            packed = network.network_address.packed
            parts = (packed,) if network.prefixlen else _HALVES[key.family]
            for part in parts:
                member = Member(key.address, key.protocol, key.port, part, network.prefixlen or 1)
                self._member(key.family, names.SOURCE_CIDR, member)
        if any(within(address, ranges) for address in self._facts.addresses):
            # The node reaches its own virtual address from that address.
            member = Member(key.address, key.protocol, key.port, key.address)
            self._member(key.family, names.SOURCE_IP, member)

    def _member(self, family: Family, base: str, member: Member, mark: int = 0) -> None:
        self.tables[MEMBERS][set_name(base, family), member] = mark

    def _address(self, family: Family, base: str, member: Member) -> None:
        self.tables[ADDRESSES][set_name(base, family), member] = 0


def _set_of(frontend: Frontend) -> str:
    """The set that says how a frontend's traffic is masqueraded."""
    local = frontend.local_only
    if frontend.kind is Kind.CLUSTER_IP:
        return names.CLUSTER_IP
    if frontend.kind is Kind.EXTERNAL_IP:
        return names.EXTERNAL_IP_LOCAL if local else names.EXTERNAL_IP
    if frontend.kind is Kind.LOAD_BALANCER:
        return names.LOAD_BALANCER_LOCAL if local else names.LOAD_BALANCER
    return (names.NODE_PORT_LOCAL if local else names.NODE_PORT)[frontend.key.protocol]


def _halves(key: FrontendKey) -> tuple[Member, Member]:
    """A node port at every address."""
    low, high = _HALVES[key.family]
    return (
        Member(low, key.protocol, key.port, prefix=1),
        Member(high, key.protocol, key.port, prefix=1),
    )
