"""A pod's rows in the node's nft tables, and the tables' fixed part.

Two tables: ``inet pycni_pods`` (masquerading, mapped ports, source MACs of pods on links of their own) and ``bridge
pycni_spoof`` (source MACs of pods on bridges). Their rules
never change; each pod is a handful of elements, and each element carries the name of the pod's veth as comment:
whose it is can be read back from the kernel. Life: ``elements`` compiles a plan's rows, ``kernel/podnft`` adds
them with ADD, removes them with DEL and repairs them from the recorded attachments after a restart or a flush.

A mapped connection from the node's own loopback, or from a pod on a bridge to another there, must come back through the
node: its first packet is marked (bit 13, as the reference plugin does) and masqueraded. The mark is cleared there.
Pods on links of their own answer through the node anyhow, except to themselves (``self_v4``, ``self_v6``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import NamedTuple

from pycni.attach.masq import Spared, collapse
from pycni.attach.plan import AttachPlan, BridgePort, PodAddress, UnderlayChild
from pycni.attach.portmap import PROTOCOL_NAMES, HostPort
from pycni.model.family import Family, show, show_mac

PODS = ("inet", "pycni_pods")
SPOOF = ("bridge", "pycni_spoof")
MARK = 0x2000
"""Mark bit 13, the reference portmap's ``markMasqBit``."""
_VERSION = {Family.V4: "v4", Family.V6: "v6"}
_SET = re.compile(r"\n\t(?:set|map) (\w+) \{\n(.*?)\n\t\}", re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*)\}", re.DOTALL)
_COMMENTED = re.compile(r'(.+?) comment "([^"]*)"(?: : (.+))?')


class Near(NamedTuple):
    """A subnet of pods on this node."""

    family: Family
    network: bytes
    prefix_len: int

    @classmethod
    def of(cls, address: PodAddress) -> Near:
        """The network of an interface address."""
        shift = address.family.bits - address.prefix_len
        network = int.from_bytes(address.address, "big") >> shift << shift
        return cls(address.family, network.to_bytes(len(address.address), "big"), address.prefix_len)

    def holds(self, other: Near) -> bool:
        """Whether the other network is inside this one."""
        return (
            self.family is other.family
            and self.prefix_len <= other.prefix_len
            and PodAddress(*self).overlaps(PodAddress(*other))
        )

    def text(self) -> str:
        """``10.1.2.0/24``."""
        return f"{show(self.network)}/{self.prefix_len}"


class Element(NamedTuple):
    """One element of a set or map. ``key`` and ``data`` are in the notation nft prints them in."""

    table: tuple[str, str]
    """nft family and name of the table."""
    set: str
    key: str
    data: str = ""

    def text(self) -> str:
        """The element in words."""
        return f"{self.table[1]} {self.set} {{ {self.key}{f' : {self.data}' if self.data else ''} }}"


def elements(plan: AttachPlan) -> tuple[Element, ...]:
    """The rows of one pod, without duplicates."""
    rows: dict[Element, None] = {}
    if plan.masquerade:
        for address in plan.addresses:
            rows[Element(PODS, f"masq_{_VERSION[address.family]}", show(address.address))] = None
    for entry in plan.host_ports:
        rows[host_port_element(entry)] = None
        if entry.family in plan.reply_by_node:
            place = f"{PROTOCOL_NAMES[entry.protocol]} . {entry.port}"
            rows[Element(PODS, f"reply_{_VERSION[entry.family]}", place)] = None
    bridged = isinstance(plan.link, BridgePort)
    if not bridged and any(entry.family is Family.V4 for entry in plan.host_ports):
        rows[Element(PODS, "legs", f'"{plan.host}"')] = None
    for entry in plan.host_ports if not bridged else ():
        # Its replies come by the node anyhow; only from itself to itself none would come.
        rows[Element(PODS, f"self_{_VERSION[entry.family]}", " . ".join([show(entry.address)] * 2))] = None
    if isinstance(plan.link, UnderlayChild) and plan.link.forwarded:
        rows[Element(PODS, "children", f'"{plan.host}"')] = None
    if plan.spoof_check:
        table, prefix = (SPOOF, "") if bridged else (PODS, "leg_")
        rows[Element(table, f"{prefix}ports", f'"{plan.host}"')] = None
        rows[Element(table, f"{prefix}macs", f'"{plan.host}" . {show_mac(plan.mac)}')] = None
    return tuple(rows)


def host_port_element(entry: HostPort) -> Element:
    """The row of one mapped port."""
    place = f"{PROTOCOL_NAMES[entry.protocol]} . {entry.port}"
    target = f"{show(entry.address)} . {entry.target_port}"
    version = _VERSION[entry.family]
    if entry.host_ip is None:
        return Element(PODS, f"ports_{version}", place, target)
    return Element(PODS, f"host_ports_{version}", f"{show(entry.host_ip)} . {place}", target)


def mapped_port(row: Element) -> tuple[str, str] | None:
    """IP version and ``protocol . port`` of a row that maps a port of the node; None for other rows."""
    kind, _, version = row.set.rpartition("_")
    if kind == "ports" and version in _VERSION.values():
        return version, row.key
    return (version, row.key.partition(" . ")[2]) if kind == "host_ports" else None


def clash(one: Element, other: Element) -> bool:
    """Whether two rows of one mapped port want the same address, or one of them every address."""
    return one.key == other.key or one.set != other.set


def add_text(rows: Iterable[Element], comment: str) -> str:
    """Commands that add elements, each with the comment."""
    return "\n".join(
        f"add element {row.table[0]} {row.table[1]} {row.set} "
        f'{{ {row.key} comment "{comment}"{f" : {row.data}" if row.data else ""} }}'
        for row in rows
    )


def delete_text(rows: Iterable[Element]) -> str:
    """Commands that delete elements."""
    return "\n".join(
        f"delete element {row.table[0]} {row.table[1]} {row.set} {{ {row.key} }}" for row in rows
    )


def parse_elements(table: tuple[str, str], listing: str) -> dict[Element, str]:
    """Elements with comments from nft's ``list table``; those without are constants and left out."""
    found: dict[Element, str] = {}
    for kind in _SET.finditer(listing):
        content = _ELEMENTS.search(kind[2])
        for item in content[1].split(",") if content is not None else ():
            commented = _COMMENTED.fullmatch(item.strip())
            if commented is not None:
                key, comment, data = commented.groups()
                found[Element(table, kind[1], _named(key), data or "")] = comment
    return found


def _named(key: str) -> str:
    """The key with protocols by name: nft prints numbers on hosts without /etc/protocols."""
    parts = key.split(" . ")
    if len(parts) > 1 and parts[-2].isdecimal():
        parts[-2] = PROTOCOL_NAMES.get(int(parts[-2]), parts[-2])
    return " . ".join(parts)


def pods_skeleton() -> str:
    """``inet pycni_pods`` without elements, as one transaction that leaves existing elements alone."""
    name = " ".join(PODS)
    lines = [
        f"add table {name}",
        f"add set {name} localnet {{ type ifname; }}",
        f"add set {name} legs {{ type ifname; }}",
        f"add set {name} children {{ type ifname; }}",
        f"add set {name} leg_ports {{ type ifname; }}",
        f"add set {name} leg_macs {{ type ifname . ether_addr; }}",
    ]
    for version, address in (("v4", "ipv4_addr"), ("v6", "ipv6_addr")):
        target = f"{address} . inet_service"
        lines += [
            f"add set {name} masq_{version} {{ type {address}; }}",
            f"add set {name} spared_{version} {{ type {address} . {address}; flags interval; }}",
            f"add set {name} near_{version} {{ type {address}; flags interval; }}",
            f"add set {name} self_{version} {{ type {address} . {address}; }}",
            f"add set {name} reply_{version} {{ type inet_proto . inet_service; }}",
            f"add map {name} ports_{version} {{ type inet_proto . inet_service : {target}; }}",
            f"add map {name} host_ports_{version} {{ type {address} . inet_proto . inet_service : {target}; }}",
        ]
    hooks = {
        "guard": "type filter hook prerouting priority raw; policy accept;",
        "prerouting": "type nat hook prerouting priority dstnat; policy accept;",
        "output": "type nat hook output priority -100; policy accept;",
        "postrouting": "type nat hook postrouting priority srcnat; policy accept;",
    }
    lines.append(f"add chain {name} ports")
    lines += [f"add chain {name} {chain} {{ {hook} }}" for chain, hook in hooks.items()]
    lines += [f"flush chain {name} {chain}" for chain in ("ports", *hooks)]
    lines += [f"add rule {name} {rule}" for rule in _pods_rules()]
    return "\n".join(lines)


def _pods_rules() -> list[str]:
    local = "fib daddr type local meta l4proto { tcp, udp, sctp } jump ports"
    unmark = f"meta mark set meta mark and {0xFFFFFFFF ^ MARK:#x}"
    mark = f"meta mark set meta mark or {MARK:#x}"
    rules = [
        # route_localnet lets loopback addresses in from the pods' side; only replies to translated ones belong.
        *(
            f"guard iifname @{devices} ip {end} 127.0.0.0/8 drop"
            for devices in ("localnet", "legs")
            for end in ("daddr", "saddr")
        ),
        "guard iifname @leg_ports iifname . ether saddr != @leg_macs drop",
        f"prerouting {local}",
        f"output {local}",
    ]
    # IPv6 routes nothing to or from ::1 beyond the node: refused at once is better than timed out.
    rules.append("ports ip6 daddr ::1 return")
    for version, ip in (("v4", "ip"), ("v6", "ip6")):
        rules += [
            f"ports {ip} saddr @near_{version} {mark}",
            f"ports meta nfproto ip{version} meta l4proto . th dport @reply_{version} {mark}",
            f"ports dnat {ip} to {ip} daddr . meta l4proto . th dport map @host_ports_{version}",
            f"ports meta nfproto ip{version} dnat {ip} to meta l4proto . th dport map @ports_{version}",
        ]
    rules += [
        f"ports {unmark}",
        f"postrouting meta mark and {MARK:#x} != 0 {unmark} masquerade fully-random",
        # Pods on the underlay are answered there, past the node and what it translated.
        "postrouting iifname @children masquerade fully-random",
    ]
    for version, ip, multicast in (("v4", "ip", "224.0.0.0/4"), ("v6", "ip6", "ff00::/8")):
        rules.append(f"postrouting {ip} saddr . {ip} daddr @self_{version} masquerade fully-random")
        rules.append(
            f"postrouting {ip} saddr @masq_{version} {ip} saddr . {ip} daddr != @spared_{version} "
            f"{ip} daddr != {multicast} masquerade fully-random"
        )
    return rules


def spoof_skeleton() -> str:
    """``bridge pycni_spoof`` without elements."""
    name = " ".join(SPOOF)
    return "\n".join(
        (
            f"add table {name}",
            f"add set {name} ports {{ type ifname; }}",
            f"add set {name} macs {{ type ifname . ether_addr; }}",
            f"add chain {name} prerouting {{ type filter hook prerouting priority -300; policy accept; }}",
            f"flush chain {name} prerouting",
            f"add rule {name} prerouting iifname @ports iifname . ether saddr != @macs drop",
        )
    )


class Constants(NamedTuple):
    """Content of the sets that depend on networks, not on pods."""

    spared: frozenset[Spared] = frozenset()
    near: frozenset[Near] = frozenset()
    """Subnets of pods on bridges with mapped ports; loopback is always added."""
    localnet: frozenset[str] = frozenset()
    """Devices many pods share that mapped loopback connections leave by."""

    def union(self, other: Constants) -> Constants:
        """Both, without overlaps."""
        near = self.near | other.near
        return Constants(
            collapse(self.spared | other.spared),
            frozenset(one for one in near if not any(two.holds(one) for two in near if two != one)),
            self.localnet | other.localnet,
        )

    def text(self) -> str:
        """A transaction that makes this the whole content of the sets."""
        name = " ".join(PODS)
        content: dict[str, list[str]] = {
            "localnet": sorted(f'"{device}"' for device in self.localnet),
            "near_v4": ["127.0.0.0/8"],
            "near_v6": [],
            "spared_v4": [],
            "spared_v6": [],
        }
        for net in sorted(self.near):
            content[f"near_{_VERSION[net.family]}"].append(net.text())
        for pair in sorted(self.spared):
            content[f"spared_{_VERSION[pair.family]}"].append(pair.text())
        lines = []
        for set_name, members in content.items():
            lines.append(f"flush set {name} {set_name}")
            if members:
                lines.append(f"add element {name} {set_name} {{ {', '.join(members)} }}")
        return "\n".join(lines)


def constants(plan: AttachPlan) -> Constants:
    """What one pod's plan needs of them."""
    if not plan.host_ports:
        return Constants(frozenset(plan.spared)) if plan.masquerade else Constants()
    if not isinstance(plan.link, BridgePort):
        return Constants(frozenset(plan.spared))
    near = frozenset(Near.of(address) for address in plan.addresses)
    return Constants(frozenset(plan.spared), near, frozenset({plan.way_in} - {""}))


def parse_constants(listing: str) -> Constants:
    """The sets' content from nft's ``list table inet pycni_pods``."""
    members: dict[str, list[str]] = {}
    for kind in _SET.finditer(listing):
        content = _ELEMENTS.search(kind[2])
        members[kind[1]] = [item.strip() for item in content[1].split(",")] if content is not None else []
    own = {"127.0.0.0/8"}
    near = {net for version in _VERSION.values() for net in members.get(f"near_{version}", ())} - own
    pairs = [pair for version in _VERSION.values() for pair in members.get(f"spared_{version}", ())]
    return Constants(
        frozenset(
            Spared(*_net(left)[:3], *_net(right)[1:]) for left, right in (p.split(" . ") for p in pairs)
        ),
        frozenset(Near(*_net(net)) for net in near),
        frozenset(device.strip('"') for device in members.get("localnet", ())),
    )


def _net(text: str) -> tuple[Family, bytes, int]:
    """``10.1.2.0/24``, or an address alone as nft prints a network of one."""
    net = ip_network(text)
    return Family.of(net), net.network_address.packed, net.prefixlen
