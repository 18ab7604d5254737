"""The fabric's nftables table as text: masquerading, and VXLAN accepted from known nodes only. Pure.

Life: the agent renders ``table_text`` when masquerading, port or VNI change and hands it over as one transaction,
which replaces the whole table at once; a node that joins or leaves is one element of a set (``peers_text``).

Masquerading (chain ``postrouting``), per family, first match counts; ``own`` is this node's subnet:

    cluster -> any, VXLAN  drop        masqueraded it would be taken for this node's, whatever is inside
    mark 0x4000 set        return      kube-proxy's: it masquerades these itself (bit test: other bits may be set)
    own -> cluster         return      pods see each other's addresses
    any -> own             return      what comes in to a local pod keeps its source
    cluster -> excluded    return      --ip-masq-exclude; multicast, broadcast and link-local always
    cluster -> any         masquerade  pods reach the world by the node's address
    any -> cluster         masquerade  see below

Also a pod that still has an address of an earlier subnet of this node is covered by the fifth rule: nobody routes
its answers to us any more. The last one is about what this node sends into the fabric for somebody outside of it: an
own socket bound to the node's address, or a client whose connection a service proxy turned to a pod of another
node. The answer has to come back here, through the fabric; without masquerading the other node would send it
straight to the client, past the translation that has to be undone (and past reverse path filters).

The VXLAN guard (chain ``vxlan``) sits at input: behind reassembly, for packets to this host only, and it looks at
our VNI alone (``@th,96,24``: 8 bytes of UDP and 4 of VXLAN in front of it, RFC 7348 section 5), so that others'
VXLAN on the same port is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pycni.model.family import Family, Network, show

TABLE = "pycni_fabric"
SETS = {Family.V4: "vtep4", Family.V6: "vtep6"}
KUBE_PROXY_MARK = 0x4000

NEVER = {
    Family.V4: ("224.0.0.0/4", "255.255.255.255"),
    Family.V6: ("ff00::/8", "fe80::/10"),
}
"""Destinations that no pod is masqueraded towards."""
_IP = {Family.V4: "ip", Family.V6: "ip6"}


class Masquerade(msgspec.Struct, frozen=True, kw_only=True):
    """Which networks of one family are ours."""

    cluster: Network
    own: Network
    """This node's subnet."""
    exclude: tuple[Network, ...] = ()
    """Destinations pods reach by their own address; those of the other family are ignored."""
    fully_random: bool = True
    """Choose source ports at random, so that two connections seldom race for one."""


class VxlanGuard(msgspec.Struct, frozen=True, kw_only=True):
    """Which VXLAN packets are accepted: those of ``peers``."""

    vni: int
    port: int
    families: tuple[Family, ...]


def table_text(
    masquerade: Iterable[Masquerade], guard: VxlanGuard | None, peers: Iterable[bytes] = ()
) -> str:
    """A transaction that puts exactly this table in place, whatever was there, without a moment in between."""
    lines = [*_guard_lines(guard, peers), *_masquerade_lines(tuple(masquerade), guard)]
    body = "".join(f"{line}\n" for line in lines)
    return f"table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}}}\n"


def delete_text() -> str:
    """A transaction that removes the table, there or not."""
    return f"table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n"


def peers_text(action: str, peers: Iterable[bytes]) -> str:
    """``add`` or ``delete`` underlay addresses; "" for none. Deleting one that is not there fails, adding twice not."""
    return "".join(
        f"{action} element inet {TABLE} {SETS[family]} {{ {elements} }}\n"
        for family, elements in _by_family(peers).items()
        if elements
    )


def _by_family(peers: Iterable[bytes]) -> dict[Family, str]:
    ordered = sorted(peers)
    return {
        family: ", ".join(show(peer) for peer in ordered if Family.of_packed(peer) is family)
        for family in Family
    }


def _guard_lines(guard: VxlanGuard | None, peers: Iterable[bytes]) -> list[str]:
    if guard is None:
        return []
    elements = _by_family(peers)
    lines = []
    for family in guard.families:
        lines += [f"\tset {SETS[family]} {{", f"\t\ttype ipv{4 if family is Family.V4 else 6}_addr"]
        lines += [f"\t\telements = {{ {elements[family]} }}"] if elements[family] else []
        lines += ["\t}", ""]
    lines += ["\tchain vxlan {", "\t\ttype filter hook input priority raw; policy accept;"]
    lines += [
        f"\t\tudp dport {guard.port} @th,96,24 {guard.vni:#x} "
        f"{_IP[family]} saddr != @{SETS[family]} counter drop"
        for family in guard.families
    ]
    return [*lines, "\t}", ""]


def _masquerade_lines(families: tuple[Masquerade, ...], guard: VxlanGuard | None) -> list[str]:
    if not families:
        return []
    mark = f"{KUBE_PROXY_MARK:#010x}"
    lines = ["\tchain postrouting {", "\t\ttype nat hook postrouting priority srcnat; policy accept;"]
    if guard is not None:
        # Of any VNI: a flow's later packets do not come by here.
        lines += [
            f"\t\t{_IP[family]} saddr {masq.cluster} {_IP[family]} daddr != {masq.cluster}"
            f" udp dport {guard.port} counter drop"
            for masq in families
            for family in (Family.of(masq.cluster),)
        ]
    lines.append(f"\t\tmeta mark & {mark} == {mark} return")
    for masq in families:
        family = Family.of(masq.cluster)
        ip, how = _IP[family], "masquerade fully-random" if masq.fully_random else "masquerade"
        kept = [*NEVER[family], *sorted(str(net) for net in masq.exclude if Family.of(net) is family)]
        lines += [
            f"\t\t{ip} saddr {masq.own} {ip} daddr {masq.cluster} return",
            f"\t\t{ip} daddr {masq.own} return",
            *(f"\t\t{ip} saddr {masq.cluster} {ip} daddr {net} return" for net in kept),
            f"\t\t{ip} saddr {masq.cluster} {how}",
            f"\t\t{ip} daddr {masq.cluster} {how}",
        ]
    return [*lines, "\t}"]
