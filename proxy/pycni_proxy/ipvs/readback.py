"""What is ours in the kernel, as tables; and its removal. How ownership is known is written here and nowhere else.

* addresses: those on the dummy device ``pycni-ipvs0`` with our alias;
* sets: by name (``names.set_specs``); the KUBE-* ones only where ``PYCNI-MARK`` stands beside them;
* virtual servers: those whose address, protocol and port are in a set of ``names.FRONTENDS``; at addresses in
  ``PYCNI-NODE-IP`` those whose port is in a set of node ports; firewall marks that begin with the bits of
  ``names.OURS``. Members go in before their server and out after it, so no server of ours is
  ever without record, and nobody else's is touched, excluded-cidrs or not;
* rules: chains ``PYCNI-*`` and the jumps to them;
* direct server return: the rule with our mark, tunnel devices by name.

Real servers belong to whom their virtual server belongs.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from pycni.errors import KernelError
from pycni.kernel import sysctl
from pycni.kernel.direct import PodTunnels, Routing
from pycni.kernel.ipset import Ipset
from pycni.kernel.iptables import Iptables, TableChange
from pycni.kernel.ipvs import Ipvs
from pycni.kernel.vips import Vips
from pycni.model.family import FAMILIES, Family
from pycni.model.kube import SCTP
from pycni.wire.ipset import Member, SetSpec
from pycni.wire.ipvs import ServiceInfo, ServiceKey
from pycni_proxy.base import Table, Tables
from pycni_proxy.ipvs import compile as rows
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.options import SLOPPY_TCP, IpvsOptions
from pycni_proxy.ipvs.rules import TABLES as RULE_TABLES
from pycni_proxy.ipvs.rules import normalised


class Parts(NamedTuple):
    """The kernel's interfaces, in one network namespace."""

    ipvs: Ipvs
    ipset: Ipset
    iptables: Iptables | None
    vips: Vips
    routing: Routing
    tunnels: PodTunnels

    def close(self) -> None:
        """Close all sockets."""
        for part in (self.ipvs, self.ipset, self.vips, self.routing):
            part.close()


def open_parts(backend: str) -> Parts:
    """Open everything; ``backend`` is ``iptables.backend()``'s. Raises KernelError; nothing stays open then."""
    opened: list[Any] = []
    try:
        opened.append(Ipvs())
        opened.append(Ipset())
        opened.append(Vips(names.DEVICE))
        opened.append(Routing(names.OURS | names.DIRECT_BIT, names.OURS_MASK | names.DIRECT_BIT))
    except BaseException:
        for part in opened:
            part.close()
        raise
    ipvs, ipset, vips, routing = opened
    iptables = Iptables(backend) if backend else None
    return Parts(ipvs, ipset, iptables, vips, routing, PodTunnels())


def read_tables(parts: Parts, families: Iterable[Family], options: IpvsOptions) -> Tables:
    """Everything of ours but drained real servers' hiding, which is the driver's. Raises KernelError."""
    found: Tables = {name: {} for name in rows.TABLES}
    found[rows.SWITCHES] = _switches(options)
    sets = read_sets(parts.ipset, families)
    found[rows.SETS] = {name: spec for name, (spec, _) in sets.items()}
    shared = {
        names.set_name(base, family)
        for base in (names.LOOP_BACK, names.IPVS_IPS, names.DIRECT)
        for family in FAMILIES
    }
    for name, (_, members) in sets.items():
        table = found[rows.ADDRESSES if name in shared else rows.MEMBERS]
        for member, mark in members.items():
            table[name, member] = mark
    if parts.iptables is not None:
        for family in families:
            saved = parts.iptables.save(family)
            for table_name in RULE_TABLES:
                lines = normalised(saved.get(table_name, ()))
                if lines:
                    found[rows.RULES][family, table_name] = lines
    node_addresses = read_node_addresses(parts.ipset, families)
    for info in our_services(parts.ipvs.services(), found[rows.MEMBERS], node_addresses):
        found[rows.SERVICES][info.key] = info.spec
        for dest in parts.ipvs.dests(info.key):
            found[rows.DESTS][info.key, dest.key.address, dest.key.port] = dest.spec
    found[rows.VIPS] = dict.fromkeys(parts.vips.read(), True)
    direct = found[rows.DIRECT]
    for family in families:
        if parts.routing.present(family):
            direct[rows.ROUTING, family] = True
    if direct:
        direct.update(dict.fromkeys(parts.tunnels.read(), True))
    return found


def read_sets(ipset: Ipset, families: Iterable[Family]) -> dict[str, tuple[SetSpec, dict[Member, int]]]:
    """Our sets with their members; members of those the driver keeps by itself are left out."""
    headers = ipset.headers()
    found: dict[str, tuple[SetSpec, dict[Member, int]]] = {}
    for family in families:
        own = {names.set_name(base, family) for base in names.DRIVERS_OWN}
        for name in names.set_specs(family):
            if name not in headers:
                continue
            info = None if name in own else ipset.read(name)
            found[name] = (headers[name].spec, {} if info is None else info.members)
    return found


def our_services(
    infos: Iterable[ServiceInfo], members: Table, node_addresses: Collection[bytes]
) -> list[ServiceInfo]:
    """Of all virtual servers, ours. ``node_addresses``: what ``PYCNI-NODE-IP`` holds, both families."""
    return [info for info in infos if _is_ours(info.key, members, node_addresses)]


def read_node_addresses(ipset: Ipset, families: Iterable[Family]) -> set[bytes]:
    """Addresses at which node ports are served."""
    found: set[bytes] = set()
    for family in families:
        info = ipset.read(names.set_name(names.NODE_IP, family))
        found |= set() if info is None else {member.address for member in info.members}
    return found


def _is_ours(key: ServiceKey, members: Table, node_addresses: Collection[bytes]) -> bool:
    if key.fwmark:
        return key.fwmark & names.OURS_MASK == names.OURS
    if any(
        (names.set_name(base, key.family), Member(key.address, key.protocol, key.port)) in members
        for base in names.FRONTENDS
    ):
        return True
    if key.address not in node_addresses or key.protocol not in names.NODE_PORT:
        return False
    low = Member(bytes(len(key.address)), key.protocol, key.port, prefix=1)
    port = low if key.protocol == SCTP else Member(port=key.port)
    return any(
        (names.set_name(sets[key.protocol], key.family), port) in members
        for sets in (names.NODE_PORT, names.NODE_PORT_LOCAL)
    )


def _switches(options: IpvsOptions) -> Table:
    found: Table = {name: sysctl.get(name) for name, _ in options.switches}
    try:
        if sysctl.get(SLOPPY_TCP) == "1":
            found[SLOPPY_TCP] = "1"
    except KernelError as exc:
        if exc.errno != errno.ENOENT:
            raise
    return found


def sweep(backend: str) -> list[str]:
    """Remove everything of ours from this namespace, whatever made it; says what went. Raises KernelError."""
    ipset = Ipset()
    vips = Vips(names.DEVICE)
    try:
        try:
            headers = ipset.headers()
        except KernelError as exc:
            if exc.errno != errno.EINVAL:
                raise
            headers = {}  # a kernel without ipset
        if (
            names.MARK not in headers
            and names.set_name(names.MARK, Family.V6) not in headers
            and not vips.find()
        ):
            return []
    finally:
        ipset.close()
        vips.close()
    parts = open_parts(backend)
    try:
        return _sweep(parts)
    finally:
        parts.close()


def _sweep(parts: Parts) -> list[str]:
    gone: list[str] = []
    members: Table = {
        (name, member): mark
        for name, (_, content) in read_sets(parts.ipset, FAMILIES).items()
        for member, mark in content.items()
    }
    node_addresses = read_node_addresses(parts.ipset, FAMILIES)
    if parts.vips.delete():
        gone.append(f"device {names.DEVICE} with its addresses")
    services = [info.key for info in our_services(parts.ipvs.services(), members, node_addresses)]
    _raise(parts.ipvs.del_services(services))
    if services:
        gone.append(f"{len(services)} virtual servers")
    if parts.iptables is not None:
        gone += [line for family in FAMILIES for line in _remove_rules(parts.iptables, family)]
    for family in FAMILIES:
        if parts.routing.remove(family):
            gone.append(f"{family.label} routing of direct server return")
    for pod, vip in parts.tunnels.read():
        parts.tunnels.remove(pod, vip)
    headers = parts.ipset.headers()
    sets = [name for family in FAMILIES for name in names.set_specs(family) if name in headers]
    for name in sets:
        parts.ipset.destroy(name)
    if sets:
        gone.append(f"{len(sets)} ipsets")
    return gone


def _remove_rules(iptables: Iptables, family: Family) -> list[str]:
    saved = iptables.save(family)
    ours = {table: normalised(saved.get(table, ())) for table in RULE_TABLES}
    changes = {table: rule_changes(lines, ()) for table, lines in ours.items() if lines}
    if changes:
        iptables.replace(family, changes)
    return [f"{family.label} rules of table {table}" for table in changes]


def rule_changes(actual: Iterable[str], desired: Iterable[str]) -> TableChange:
    """What ``Iptables.replace`` is to be given to make a table's rules as desired.

    Rules in chains of others (the jumps to ours) are inserted at the front when they are missing, and deleted when
    they are too many; those that are there keep their place.
    """
    have, want = _by_chain(actual), _by_chain(desired)
    chains = sorted(chain for chain in {**have, **want} if chain.startswith(names.CHAIN_PREFIX))
    changes: list[str] = []
    for chain in {**have, **want}:
        if chain.startswith(names.CHAIN_PREFIX):
            changes += [f"-A {chain} {rule}" for rule in want.get(chain, ())]
            continue
        present = list(have.get(chain, ()))
        for rule in want.get(chain, ()):
            if rule in present:
                present.remove(rule)
            else:
                changes.append(f"-I {chain} 1 {rule}")
        changes += [f"-D {chain} {rule}" for rule in present]
    changes += [f"-X {chain}" for chain in chains if chain not in want]
    return TableChange(chains, changes)


def _by_chain(lines: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        _, chain, rule = line.split(" ", 2)
        found.setdefault(chain, []).append(rule)
    return found


def _raise(errors: list[KernelError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("ipvs", errors)
