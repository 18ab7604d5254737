"""Why a packet ended, by what kernels themselves said of it. Pure.

Life: ``cause`` looks through the notes of the hops for the first that ended the packet (a rule that dropped it, the
kernel's reason for dropping it) and makes a fault of it; ``settle`` puts it beside the verdict that follows from tables
and sights: what a kernel says outweighs what is likely, and adds to what is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pycni.trace.model import Fault, Hop, Note

GUESSES = frozenset(
    {
        *("vanished", "no-answer", "not-sent", "lost", "lost-on-wire", "underlay-filtered"),
        *("foreign-rule", "foreign-program", "conntrack-full", "mtu-too-small"),
    }
)
"""Kinds of verdicts that only say what is likely."""
ACCUSED = frozenset({"foreign-rule", "foreign-program", "conntrack-full", "mtu-too-small"})
"""Those that name somebody."""
BY_POLICY = "policy"
"""Instead of a kernel's reason: a policy of ours that has no rules denied it."""
_IS_SAID_BY = {
    "netfilter_drop": "drop",
    "tc_ingress": BY_POLICY,
    "tc_egress": BY_POLICY,
    "xdp": BY_POLICY,
}
"""The verdict of what says more of a drop: the rule of a firewall's hook, the policy of a program."""
_QUIET = frozenset({"otherhost", "skb_consumed", "consumed", "not_dropped_yet"})
"""Reasons that say nothing of a packet's way: copies for others."""


class _Kind(NamedTuple):
    kind: str
    words: str
    command: str = ""


_REASONS = {
    "no_socket": _Kind("nobody-listens", "no socket takes it", "ss -ltun"),
    "ip_rpfilter": _Kind(
        "rp-filter", "the reverse path filter drops it", "sysctl -a --pattern 'conf.*.rp_filter'"
    ),
    "netfilter_drop": _Kind("foreign-rule", "a firewall hook drops it", "nft list ruleset"),
    "ip_csum": _Kind("checksum-wrong", "the checksum of its IP header is wrong", "ethtool -k {interface}"),
    "tcp_csum": _Kind("checksum-wrong", "its TCP checksum is wrong", "ethtool -k {interface}"),
    "udp_csum": _Kind("checksum-wrong", "its UDP checksum is wrong", "ethtool -k {interface}"),
    "icmp_csum": _Kind("checksum-wrong", "its ICMP checksum is wrong", "ethtool -k {interface}"),
    "skb_csum": _Kind("checksum-wrong", "its checksum is wrong", "ethtool -k {interface}"),
    "ip_innoroutes": _Kind("no-route", "there is no route for it", "ip route"),
    "ip_outnoroutes": _Kind("no-route", "there is no route for it", "ip route"),
    "ip_local_source": _Kind("source-invalid", "its source is an address of this node", "ip address"),
    "ip_localnet": _Kind("source-invalid", "it has an address of the loopback", "ip address"),
    "ip_invalid_source": _Kind("source-invalid", "its source is no valid address", "ip address"),
    "invalid_proto": _Kind("protocol-invalid", "nobody handles its protocol"),
    "pkt_too_big": _Kind("mtu-too-small", "it is too big for the next link", "ip link"),
    "ip_inhdr": _Kind("header-invalid", "its IP header is wrong"),
    "neigh_failed": _Kind("nobody-answers", "nobody answers for its next hop", "ip neigh"),
    "neigh_queuefull": _Kind("nobody-answers", "its next hop is still being asked for", "ip neigh"),
    "neigh_dead": _Kind("nobody-answers", "its next hop's entry is gone", "ip neigh"),
    "neigh_createfail": _Kind("neighbour-table-full", "there is no room for its next hop's entry", "ip -s neigh"),
    "vxlan_no_remote": _Kind("fdb-missing", "no forwarding entry for its VTEP", "bridge fdb show"),
    "vxlan_vni_not_found": _Kind("vtep-missing", "no VXLAN device has its number", "ip -d link show type vxlan"),
    "vxlan_invalid_hdr": _Kind("vtep-missing", "its VXLAN header is wrong", "ip -d link show type vxlan"),
    "local_mac": _Kind("vtep-mac-wrong", "it comes from this device's own MAC", "ip -d link"),
    "bridge_ingress_stp_state": _Kind("port-blocked", "the bridge port is blocked", "bridge -d link"),
    "bridge_no_egress_port": _Kind("port-blocked", "the bridge has no port for it", "bridge -d link"),
    "dev_ready": _Kind("device-down", "the device is not ready", "ip link"),
    "dev_hdr": _Kind("nobody-answers", "no link header can be made for it", "ip neigh"),
    "tc_ingress": _Kind("foreign-program", "a program on it drops it", "tc filter show dev {interface} ingress"),
    "tc_egress": _Kind("foreign-program", "a program on it drops it", "tc filter show dev {interface} egress"),
    "xdp": _Kind("foreign-program", "an XDP program drops it", "ip -d link show dev {interface}"),
    "bpf_cgroup_egress": _Kind("foreign-program", "a program of a control group drops it", "bpftool cgroup tree"),
    "qdisc_drop": _Kind("queue-full", "the queue of the interface drops it", "tc -s qdisc show dev {interface}"),
    "full_ring": _Kind("queue-full", "the ring of the interface is full", "ip -s link show dev {interface}"),
    "cpu_backlog": _Kind("queue-full", "the processor's backlog is full", "cat /proc/net/softnet_stat"),
    "socket_rcvbuff": _Kind("socket-full", "the socket's buffer is full", "ss -m"),
    "socket_filter": _Kind("socket-filter", "the socket's filter drops it", "ss --bpf"),
    "tcp_overwindow": _Kind("tcp-window", "it is outside of the connection's window"),
    "nomem": _Kind("memory", "there is no memory for it", "free"),
}  # fmt: skip
_OURS = {
    "pycni_policy": "policy-denied",
    "pycni_shut": "policy-pending",
    "pycni_guard": "sender-forged",
    "pycni_spoof": "sender-forged",
    "pycni_leg_guard": "sender-forged",
    "pycni_fabric": "overlay-guard",
    "pycni_proxy": "service-without-endpoints",
}
_PREFIX = re.compile(r'(?:prefix "|log )pycni (ingress|egress) (.+?)(?: \+\d+)?: ')
"""How our policies' rules log: with the policy's name."""


def cause(there: Sequence[Hop], back: Sequence[Hop], *, full: bool = False) -> Fault | None:
    """The first thing said that ended the packet, or its answer; None: nothing did.

    ``full``: connection tracking has no room on one of the nodes, which is what a drop by no rule then means.
    """
    hops = (*there, *back)
    for index, hop in enumerate(hops):
        for at, note in enumerate(hop.notes):
            found = _ended(hops, index, note, hop.notes[:at])
            if found is None or _own_doing(hops, len(there), index, note):
                continue
            if note.kind == "drop" and _seen_beyond(hops, len(there), index):
                continue  # a copy
            if (
                full
                and note.kind == "drop"
                and note.verdict == "netfilter_drop"
                and not _at_the_same(hops, note, "drop")
            ):
                words = f"connection tracking has no room for it ({note.verdict} {note.detail})".replace(
                    " )", ")"
                )
                found = msgspec.structs.replace(
                    found, kind="conntrack-full", cause=words,
                    command="sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
                )  # fmt: skip
            what = "the packet" if index < len(there) else "the answer"
            return msgspec.structs.replace(found, cause=f"{what} is dropped: {found.cause}")
    return None


def settle(verdict: Fault | None, said: Fault | None, *, answered: bool) -> Fault | None:
    """The verdict once the kernel was heard."""
    if said is None or answered:
        return verdict
    # A reason without a name adds to who is accused, and takes nothing back.
    kinds = {said.kind} if said.kind != "kernel-drop" else ACCUSED
    same = verdict is not None and verdict.kind in kinds and said.node == verdict.node
    if verdict is None or (verdict.kind in GUESSES and not same):
        return said
    if said.node == verdict.node and said.cause not in verdict.cause:
        return msgspec.structs.replace(
            verdict, cause=f"{verdict.cause}; the kernel says: {said.cause.partition(': ')[2]}"
        )
    if 0 <= said.hop < verdict.hop:
        return said
    return verdict


def decisive(note: Note) -> bool:
    """Whether a note may be of the packet's end."""
    if note.kind == "rule":
        return note.verdict == "drop"
    return note.kind == "drop" and note.verdict not in _QUIET


def words(note: Note) -> str:
    """One line for people."""
    if note.kind == "rule":
        return (
            f"rule  {note.place}: {note.detail}  -> {note.verdict}"
            if _adds(note)
            else f"rule  {note.place}: {note.detail}"
        )
    if note.kind == "drop":
        return f"drop  {note.verdict} {note.detail}".rstrip()
    return f"conntrack  {note.detail}"


def _adds(note: Note) -> bool:
    """Whether a rule's verdict is not in its text."""
    return note.verdict not in {"continue", ""} and note.verdict not in note.detail


def _ended(hops: Sequence[Hop], index: int, note: Note, before: Sequence[Note]) -> Fault | None:
    hop = hops[index]
    if not decisive(note):
        return None
    if note.kind == "rule":
        return _ruled(hop, index, note, before)
    if note.verdict == BY_POLICY:
        return Fault(
            kind="policy-denied",
            node=note.node,
            space=note.space,
            component="policy",
            hop=index,
            cause=note.detail,
            command="pycnictl drops",
        )
    by = _at_the_same(hops, note, _IS_SAID_BY[note.verdict]) if note.verdict in _IS_SAID_BY else None
    if by is not None:
        return _ended(hops, *by, hops[by[0]].notes)
    known = _REASONS.get(note.verdict, _Kind("kernel-drop", f"reason {note.verdict}"))
    where = f" ({note.verdict}, {note.detail})" if note.detail else f" ({note.verdict})"
    return Fault(
        kind=known.kind,
        node=note.node,
        space=note.space,
        component="socket" if note.verdict == "no_socket" else hop.component,
        interface=note.interface,
        hop=index,
        cause=f"{known.words}{where}",
        command=known.command.format(interface=note.interface or hop.interface),
    )


def _ruled(hop: Hop, index: int, note: Note, before: Sequence[Note]) -> Fault:
    """A rule that dropped it; of ours, with what it is for."""
    family, table, chain = (*note.place.split(), "", "", "")[:3]
    kind = _OURS.get(table, "foreign-rule")
    told = f"rule of {note.place}: {note.detail}"
    policy = _policy(note, before) if kind == "policy-denied" else ""
    component = {"foreign-rule": "firewall", "policy-denied": "policy", "policy-pending": "policy"}.get(
        kind, hop.component
    )
    return Fault(
        kind=kind,
        node=note.node,
        space=note.space,
        component=component,
        interface=note.interface if component != "policy" else "",
        hop=index,
        cause=f"{policy}{told}",
        command=f"nft -a list chain {family} {table} {chain}",
    )


def _policy(note: Note, before: Sequence[Note]) -> str:
    """The policy our rules name just before they drop."""
    for item in reversed((*before, note)):
        found = _PREFIX.search(item.detail) if item.kind == "rule" else None
        if found is not None:
            return f"{found[1]} is denied by {found[2]}, "
    return ""


def _at_the_same(hops: Sequence[Hop], drop: Note, verdict: str) -> tuple[int, Note] | None:
    """What says more of a drop at the same place, with its hop's index."""
    for index, hop in enumerate(hops):
        for note in hop.notes:
            if note.verdict == verdict and (note.node, note.space) == (drop.node, drop.space):
                return index, note
    return None


def _seen_beyond(hops: Sequence[Hop], split: int, index: int) -> bool:
    """Whether the packet itself was seen further on: what was dropped here was another of it."""
    rest = hops[index + 1 : split if index < split else len(hops)]
    return any(hop.sight is not None for hop in rest)


def _own_doing(hops: Sequence[Hop], split: int, index: int, note: Note) -> bool:
    """The kernel of the asker does not know the probe: it drops what answers it, once we have seen it."""
    asker = (hops[0].node, hops[0].space)
    return (
        index >= split
        and note.kind == "drop"
        and note.verdict == "no_socket"
        and (note.node, note.space) == asker
    )
