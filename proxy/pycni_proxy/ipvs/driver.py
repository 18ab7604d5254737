"""Puts the compiled tables into the kernel: the half of the IPVS data plane that does things.

Order of an apply: additions and changes forwards through ``compile.TABLES``, then removals backwards, so that sets are
filled before a virtual server needs them and a real server is there before the one it replaces goes. IPVS has no
transactions; each table's part is one batch, and what failed is raised together at the end.

What this keeps besides the kernel: which real servers it is draining (``drain``), which protocol and frontend a mark
stands for, and the node's addresses as last put into ``PYCNI-NODE-IP`` and ``PYCNI-LOCAL-IP``.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from pycni.errors import KernelError
from pycni.kernel import sysctl
from pycni.kernel.ipvs import DestPut
from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.service import FrontendKey, NodeFacts, Target
from pycni.reconcile.delta import Delta
from pycni.view.service_decide import serves_node_ports
from pycni.wire.ipset import Member
from pycni.wire.ipvs import DestKey, DestSpec, ServiceKey, ServiceSpec
from pycni_proxy.base import Changes, Counters, Tables, TargetState
from pycni_proxy.ipvs import compile as rows
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.drain import Drains
from pycni_proxy.ipvs.options import SLOPPY_TCP, IpvsOptions
from pycni_proxy.ipvs.readback import Parts, open_parts, read_tables, rule_changes, sweep
from pycni_proxy.ipvs.rules import normalised

log = logging.getLogger("pycni.proxy")

DRAIN_POLL_S = 1.0
ADDRESS_POLL_S = 10.0
Action: TypeAlias = Callable[[Any], list[KernelError]]
"""Carries out a part of one table's difference; returns what failed."""
_EMPTY: Delta[Any, Any] = Delta({}, {}, {})
_PORT_PROTOCOLS = (TCP, UDP, SCTP)
_MARK_SETS = {names.set_name(base, family): family for base in names.MARKED for family in Family}


class IpvsDriver:
    """A ``base.Driver`` for one node."""

    def __init__(
        self,
        facts: NodeFacts,
        options: IpvsOptions,
        backend: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``backend`` is ``iptables.backend()``'s. Raises KernelError when something is missing in the kernel."""
        self._facts = facts
        self._options = options
        self._backend = backend
        self._clock = clock
        self._families = [family for family in facts.families if family in options.families]
        self._parts: Parts = open_parts(backend)
        self._drains = Drains(options.grace_s)
        self._services: dict[ServiceKey, ServiceSpec] = {}
        self._keys: dict[tuple[Family, int], FrontendKey] = {}
        self._addresses: dict[str, frozenset[bytes]] = {}
        self._next_addresses = 0.0
        self._going: Mapping[ServiceKey, ServiceSpec] = {}
        """Virtual servers the apply in progress removes."""

    # --- base.Driver -----------------------------------------------------------------------------------------

    def read(self) -> Tables:
        """What is ours in the kernel; real servers being drained, and a set with wrong addresses, are not told."""
        tables = read_tables(self._parts, self._families, self._options)
        self._services = cast("dict[ServiceKey, ServiceSpec]", dict(tables[rows.SERVICES]))
        members = cast("dict[tuple[str, Member], int]", tables[rows.MEMBERS])
        for (name, member), mark in members.items():
            self._note_mark(name, member, mark)
        for name, wanted in self._wanted_addresses().items():
            info = self._parts.ipset.read(name)
            if info is not None and {member.address for member in info.members} != wanted:
                # Told as missing, so that it is filled again.
                tables[rows.SETS].pop(name, None)
        dests = cast("dict[tuple[ServiceKey, bytes, int], DestSpec]", tables[rows.DESTS])
        hidden = [
            (service, address, port)
            for (service, address, port), spec in dests.items()
            if not spec.weight and (service, DestKey(address, port)) in self._drains
        ]
        for key in hidden:
            del dests[key]
        return tables

    def apply(self, changes: Changes) -> None:
        """Carry out differences. Raises KernelError or, for several failures, ExceptionGroup."""
        deltas = dict(changes)
        errors: list[KernelError] = []
        added: Mapping[str, Action] = {
            rows.SWITCHES: self._put_switches,
            rows.SETS: self._put_sets,
            rows.RULES: self._put_rules,
            rows.ADDRESSES: self._put_members,
            rows.MEMBERS: self._put_members,
            rows.SERVICES: self._put_services,
            rows.DESTS: self._put_dests,
            rows.DIRECT: self._put_direct,
            rows.VIPS: self._put_vips,
        }
        removed: Mapping[str, Action] = {
            rows.VIPS: self._del_vips,
            rows.DIRECT: self._del_direct,
            rows.DESTS: self._del_dests,
            rows.SERVICES: self._del_services,
            rows.MEMBERS: self._del_members,
            rows.ADDRESSES: self._del_members,
            rows.SETS: self._del_sets,
            rows.SWITCHES: self._del_switches,
        }
        self._going = deltas.get(rows.SERVICES, _EMPTY).remove
        for name in rows.TABLES:
            delta = deltas.get(name, _EMPTY)
            if delta.add or delta.change:
                errors += _collected(added[name], delta)
        for name in reversed(rows.TABLES):
            delta = deltas.get(name, _EMPTY)
            if delta.remove and name in removed:
                errors += _collected(removed[name], delta)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("ipvs", errors)

    def counters(self) -> Mapping[FrontendKey, Counters]:
        """Counters by frontend; both virtual servers of a frontend with two pools count together."""
        found: dict[FrontendKey, Counters] = {}
        for info in self._parts.ipvs.services():
            key = self._frontend(info.key) if info.key in self._services else None
            if key is None:
                continue
            was = found.get(key, Counters(0, 0, 0, 0, 0))
            found[key] = Counters(*(old + new for old, new in zip(was, info.stats, strict=True)))
        return found

    def targets(self, key: FrontendKey) -> Sequence[TargetState]:
        """Real servers of a frontend with weights and open connections, those being drained too."""
        services = [service for service in self._services if self._frontend(service) == key]
        loop_back = self._parts.ipset.read(names.set_name(names.LOOP_BACK, key.family))
        local = set() if loop_back is None else {(item.address, item.port) for item in loop_back.members}
        found: dict[DestKey, TargetState] = {}
        for service in services:
            for dest in self._parts.ipvs.dests(service):
                target = Target(dest.key.address, dest.key.port, tuple(dest.key) in local)
                was = found.get(dest.key, TargetState(target, 0, 0))
                found[dest.key] = TargetState(
                    target, max(was.weight, dest.spec.weight), was.active + dest.active
                )
        return sorted(found.values())

    def poll(self) -> float | None:
        """Delete what has drained; follow the node's addresses. Raises KernelError or ExceptionGroup."""
        errors: list[KernelError] = []
        now = self._clock()
        for service in self._drains.services():
            due = self._drains.due(service, self._parts.ipvs.dests(service), now)
            failed = self._parts.ipvs.del_dests([(service, dest) for dest in due])
            errors += failed
            if not failed:
                for dest in due:
                    self._drains.take(service, dest)
        if now >= self._next_addresses:
            self._follow_addresses()
        if errors:
            raise ExceptionGroup("ipvs", errors)
        return DRAIN_POLL_S if self._drains else max(0.1, self._next_addresses - now)

    def remove(self) -> list[str]:
        """Take everything of ours out of the kernel. Raises KernelError."""
        self._services.clear()
        self._keys.clear()
        self._addresses.clear()
        self._drains = Drains(self._options.grace_s)
        return sweep(self._backend)

    def close(self) -> None:
        """Close sockets; the kernel keeps working."""
        self._parts.close()

    # --- additions -------------------------------------------------------------------------------------------

    def _put_switches(self, delta: Delta[str, str]) -> list[KernelError]:
        errors = []
        for name, value in {**delta.add, **delta.change}.items():
            try:
                sysctl.put(name, value)
            except KernelError as exc:
                errors.append(exc)
        if any(self._options.timeouts):
            self._parts.ipvs.set_timeouts(self._options.timeouts)
        return errors

    def _put_sets(self, delta: Delta[str, Any]) -> list[KernelError]:
        for name in delta.change:
            # Of our name but of another kind: no rule of ours can use it, and one of others keeps it (EBUSY).
            self._parts.ipset.destroy(name)
        for name, spec in {**delta.add, **delta.change}.items():
            self._parts.ipset.create(name, spec)
            self._addresses.pop(name, None)
        self._follow_addresses()
        self._parts.vips.ensure()
        return []

    def _put_rules(self, delta: Delta[Any, tuple[str, ...]]) -> list[KernelError]:
        iptables = self._parts.iptables
        if iptables is None:
            raise KernelError(
                errno.ENOENT, "write iptables", "", "neither iptables-nft nor iptables-legacy works"
            )
        wanted = {**delta.add, **delta.change}
        for family in {family for family, _ in wanted}:
            saved = iptables.save(family)
            changes = {
                table: rule_changes(normalised(saved.get(table, ())), lines)
                for (of, table), lines in wanted.items()
                if of is family
            }
            iptables.replace(family, changes)
        return []

    def _put_members(self, delta: Delta[tuple[str, Member], int]) -> list[KernelError]:
        by_set: dict[str, dict[Member, int]] = {}
        for (name, member), mark in {**delta.add, **delta.change}.items():
            by_set.setdefault(name, {})[member] = mark
            self._note_mark(name, member, mark)
        for name, members in by_set.items():
            self._parts.ipset.add(name, members, marks=name in _MARK_SETS)
        return []

    def _put_services(self, delta: Delta[ServiceKey, ServiceSpec]) -> list[KernelError]:
        wanted = {**delta.add, **delta.change}
        self._services.update(wanted)
        return self._parts.ipvs.put_services(list(wanted.items()))

    def _put_dests(self, delta: Delta[tuple[ServiceKey, bytes, int], DestSpec]) -> list[KernelError]:
        new: list[DestPut] = []
        changed: list[DestPut] = []
        for (service, address, port), spec in delta.add.items():
            dest = DestKey(address, port)
            back = bool(self._drains) and self._drains.take(service, dest)
            (changed if back else new).append((service, dest, spec))
        changed += [
            (service, DestKey(address, port), spec) for (service, address, port), spec in delta.change.items()
        ]
        errors = self._parts.ipvs.put_dests(new) if new else []
        return errors + (self._parts.ipvs.change_dests(changed) if changed else [])

    def _put_direct(self, delta: Delta[tuple[Any, Any], bool]) -> list[KernelError]:
        errors = []
        for first, second in delta.add:
            try:
                if first == rows.ROUTING:
                    self._parts.routing.add(second)
                    self._loosen()
                else:
                    self._parts.tunnels.add(first, second)
            except KernelError as exc:
                if exc.errno == errno.ESRCH:
                    # A pod that is gone, or not there yet: the next full pass finds the tunnel missing.
                    log.warning("%s", exc)
                else:
                    errors.append(exc)
        return errors

    def _put_vips(self, delta: Delta[bytes, bool]) -> list[KernelError]:
        return self._parts.vips.add(list(delta.add))

    # --- removals --------------------------------------------------------------------------------------------

    def _del_vips(self, delta: Delta[bytes, bool]) -> list[KernelError]:
        return self._parts.vips.remove(list(delta.remove))

    def _del_direct(self, delta: Delta[tuple[Any, Any], bool]) -> list[KernelError]:
        for first, second in delta.remove:
            if first == rows.ROUTING:
                self._parts.routing.remove(second)
            else:
                self._parts.tunnels.remove(first, second)
        return []

    def _del_dests(self, delta: Delta[tuple[ServiceKey, bytes, int], DestSpec]) -> list[KernelError]:
        """Drain what can be drained; the rest goes at once. What belongs to a server that goes, goes with it."""
        drained: list[tuple[ServiceKey, DestKey, DestSpec]] = []
        at_once: list[tuple[ServiceKey, DestKey]] = []
        for (service, address, port), spec in delta.remove.items():
            if service in self._going:
                continue
            dest = DestKey(address, port)
            if self._drainable(service):
                drained.append((service, dest, spec._replace(weight=0)))
            else:
                at_once.append((service, dest))
        errors = self._parts.ipvs.change_dests(drained) if drained else []
        now = self._clock()
        for service, dest, _ in drained:
            self._drains.add(service, dest, now)
        return errors + (self._parts.ipvs.del_dests(at_once) if at_once else [])

    def _del_services(self, delta: Delta[ServiceKey, ServiceSpec]) -> list[KernelError]:
        for service in delta.remove:
            self._services.pop(service, None)
            self._drains.forget(service)
        return self._parts.ipvs.del_services(delta.remove)

    def _del_members(self, delta: Delta[tuple[str, Member], int]) -> list[KernelError]:
        by_set: dict[str, list[Member]] = {}
        for name, member in delta.remove:
            by_set.setdefault(name, []).append(member)
        for name, members in by_set.items():
            self._parts.ipset.delete(name, members)
        return []

    def _del_sets(self, delta: Delta[str, Any]) -> list[KernelError]:
        for name in delta.remove:
            self._parts.ipset.destroy(name)
        return []

    def _del_switches(self, delta: Delta[str, str]) -> list[KernelError]:
        if SLOPPY_TCP in delta.remove:
            sysctl.put(SLOPPY_TCP, 0)
        return []

    # --- the rest --------------------------------------------------------------------------------------------

    def _drainable(self, service: ServiceKey) -> bool:
        """UDP and SCTP servers go at once: a client that keeps sending would never leave them."""
        spec = self._services.get(service)
        if not self._options.graceful or spec is None or spec.scheduler in rows.UNDRAINABLE:
            return False
        key = self._frontend(service)
        return key is None or key.protocol == TCP

    def _frontend(self, service: ServiceKey) -> FrontendKey | None:
        """The frontend a virtual server serves; None when its mark is not in the sets (nobody new is served)."""
        if not service.fwmark:
            low, high = self._facts.node_ports
            if service.address in self._facts.addresses and low <= service.port <= high:
                return FrontendKey(service.family, b"", service.protocol, service.port)
            return FrontendKey(service.family, service.address, service.protocol, service.port)
        if service.fwmark & names.NODE_PORT_BIT:
            protocol = _PORT_PROTOCOLS[service.fwmark >> 16 & 3]
            return FrontendKey(service.family, b"", protocol, service.fwmark & 0xFFFF)
        return self._keys.get((service.family, service.fwmark & ~names.INSIDE_BIT))

    def _note_mark(self, name: str, member: Member, mark: int) -> None:
        family = _MARK_SETS.get(name)
        if family is None or member.prefix:
            return
        self._keys[family, mark & ~names.INSIDE_BIT] = FrontendKey(
            family, member.address, member.protocol, member.port
        )

    def _wanted_addresses(self) -> dict[str, frozenset[bytes]]:
        """What the sets of the node's addresses should hold."""
        addresses = self._parts.vips.node_addresses() | frozenset(self._facts.addresses)
        found = {}
        for family in self._families:
            mine = frozenset(item for item in addresses if Family.of_packed(item) is family)
            ports = frozenset(item for item in mine if serves_node_ports(item, self._facts))
            found[names.set_name(names.NODE_IP, family)] = ports
            found[names.set_name(names.LOCAL_IP, family)] = mine
        return found

    def _follow_addresses(self) -> None:
        """Bring the sets of the node's addresses up to date; missing ones are made by the next full pass."""
        self._next_addresses = self._clock() + ADDRESS_POLL_S
        for name, wanted in self._wanted_addresses().items():
            if self._addresses.get(name) == wanted:
                continue
            info = self._parts.ipset.read(name)
            if info is not None:
                self._parts.ipset.add(name, {Member(item): 0 for item in wanted})
                self._parts.ipset.delete(name, [item for item in info.members if item.address not in wanted])
                self._addresses[name] = wanted

    def _loosen(self) -> None:
        """Answers of pods come from the virtual address by the pods' bridge: a strict filter would drop them."""
        name = f"net/ipv4/conf/{self._facts.pod_bridge}/rp_filter"
        try:
            # The stricter of the two holds, except that loose (2) wins over strict (1).
            if max(sysctl.get(name), sysctl.get("net.ipv4.conf.all.rp_filter")) == "1":
                sysctl.put(name, 2)
        except KernelError as exc:
            if exc.errno != errno.ENOENT:
                raise


def _collected(
    action: Callable[[Delta[Any, Any]], list[KernelError]], delta: Delta[Any, Any]
) -> list[KernelError]:
    try:
        return action(delta)
    except KernelError as exc:
        return [exc]
