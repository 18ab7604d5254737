"""Sizes of packets: within a node, between nodes, and as pings found the way between them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pycni.doctor.model import Facts, Finding
from pycni.model.family import show
from pycni.model.space import LinkState

JUMBO = 9000
LEAST_V6 = 1280
"""IPv6 is off on a device that takes less (RFC 8200)."""
OVERHEAD = {"vxlan": (50, 70), "ipip": (20, 20), "wireguard": (60, 80), "tun": (28, 80)}
"""Bytes around a packet by kind of device: the fewest it can be (over IPv4), and the most (over IPv6, encrypted)."""
_SOURCE = "docs/backends.md; RFC 7348 (VXLAN) section 4.3, RFC 2003, RFC 4459"
_MAIN = 254


def underlay(facts: Facts) -> str:
    """The device to the other nodes: as told, that of an overlay's own address, or of the default route; "": none."""
    if facts.underlay:
        return facts.underlay
    space = facts.space
    locals_ = {link.local for link in space.links.values() if link.local}
    for item in space.addresses:
        if item.address in locals_:
            return item.device
    ways = [item for item in space.routes if item.prefix_len == 0 and item.table == _MAIN and item.device]
    return min(ways, key=lambda item: item.metric).device if ways else ""


def overlays(facts: Facts) -> list[LinkState]:
    """Devices that put packets into packets of the underlay. A tap is a pod's or a virtual machine's."""
    return [
        link
        for link in facts.space.links.values()
        if link.kind in OVERLAY_KINDS and (link.kind != "tun" or link.name.startswith("flannel"))
    ]


OVERLAY_KINDS = frozenset(OVERHEAD)


def check(facts: Facts) -> Iterable[Finding]:
    """Within one node."""
    below = facts.space.links.get(underlay(facts))
    for link in overlays(facts):
        if below is not None:
            yield from _overlay(link, below)
    yield from _bridges(facts)
    yield from _pods(facts)
    yield from _paths(facts)


def _overlay(link: LinkState, below: LinkState) -> Iterable[Finding]:
    least, most = _around(link)
    if link.mtu + least > below.mtu:
        yield Finding(
            check="mtu-overlay",
            level="error",
            subject=f"{link.name} has MTU {link.mtu}, {below.name} below it {below.mtu}",
            reason=f"with {least} bytes around them full-sized packets do not fit: they are cut into pieces or dropped",
            fix=f"ip link set {link.name} mtu {below.mtu - least}; for good: key MTU of the net-conf, the agent anew",
            source=_SOURCE,
        )
    elif link.mtu + most + 100 < below.mtu:
        yield Finding(
            check="mtu-unused",
            level="info",
            subject=f"{link.name} has MTU {link.mtu}, {below.name} below it {below.mtu}",
            reason=f"pods could have packets of {below.mtu - most} bytes, which costs fewer of them",
            fix="key MTU of the net-conf (0: by the underlay) on all nodes; running pods follow",
            source=_SOURCE,
        )


def _around(link: LinkState) -> tuple[int, int]:
    least, most = OVERHEAD[link.kind]
    if link.name.startswith("flannel-wg"):  # also where wireguard-go holds it, a TUN device
        least, most = OVERHEAD["wireguard"]
    if link.kind == "vxlan" and len(link.local) == 16:
        least = most
    return least, most


def _bridges(facts: Facts) -> Iterable[Finding]:
    """A port takes no more than its own MTU from the bridge, and nobody is told: a bridge does not answer."""
    ports: dict[str, list[LinkState]] = defaultdict(list)
    for link in facts.space.links.values():
        if link.master and link.kind == "veth":
            ports[link.master].append(link)
    for bridge, found in sorted(ports.items()):
        sizes = sorted({link.mtu for link in found})
        if len(sizes) > 1:
            few = sorted(link.name for link in found if link.mtu == sizes[0])
            yield Finding(
                check="mtu-bridge",
                level="warning",
                subject=f"ports of {bridge} have MTU {' and '.join(map(str, sizes))} ({sizes[0]}: {_some(few)})",
                reason='larger packets between these pods vanish: a bridge sends no "too big"',
                fix="make the pods of the smaller MTU anew, or let the agent adjust them",
                source="IEEE 802.1Q; RFC 1191 needs a router to answer",
            )  # fmt: skip


def _pods(facts: Facts) -> Iterable[Finding]:
    """Packets of a pod are dropped by its host end when they are larger than that takes (is_skb_forwardable)."""
    by_index = {link.index: link for link in facts.space.links.values()}
    for pod, links in sorted(facts.pods.items()):
        for link in links:
            host = by_index.get(link.peer_index) if link.kind == "veth" else None
            if host is None or host.kind != "veth" or host.peer_index != link.index or host.mtu == link.mtu:
                continue
            if host.mtu < link.mtu:
                lost, there = "what the pod sends", "leaves it"
            else:
                lost, there = "what is sent to the pod", "gets into it"
            yield Finding(
                check="mtu-pod",
                level="error",
                subject=f"{link.name} of pod {pod} has MTU {link.mtu}, its host end {host.name} {host.mtu}",
                reason=f"of {lost} nothing larger than {min(host.mtu, link.mtu)} bytes {there}, and nobody is told",
                fix=f"ip link set {host.name} mtu {link.mtu}, or make the pod anew",
                source="veth(4); drivers/net/veth.c",
            )


def _paths(facts: Facts) -> Iterable[Finding]:
    for item in facts.paths:
        to = show(item.address)
        if not item.small:
            yield Finding(
                check="peer-silent",
                level="info",
                subject=f"{to} does not answer pings",
                reason="so nobody knows which packets pass; the node is away, or ICMP is filtered",
                fix=f'ping {to}; let ICMP echo and "fragmentation needed" pass',
                source="RFC 4890, RFC 1191",
            )
        elif not item.full:
            yield Finding(
                check="mtu-path",
                level="error",
                subject=f"to {to} packets of {item.size} bytes are lost, small ones arrive",
                reason="something between the nodes takes less than their MTU: a switch without jumbo frames, a tunnel",
                fix=f"set the MTU of all between them, or of the nodes; try: ping -M do -s {item.size - 28} {to}",
                source="RFC 1191, RFC 8899 (black holes)",
            )


def between(nodes: Sequence[Facts]) -> Iterable[Finding]:
    """MTUs that all nodes should have in common: of the underlay and of each overlay."""
    if len(nodes) < 2:
        return
    below = {
        facts.node: link.mtu
        for facts in nodes
        if (link := facts.space.links.get(underlay(facts))) is not None
    }
    yield from _differing(
        below,
        "the underlay",
        "packets of the larger size are dropped by the smaller node, and no router is between them that could tell",
        "ip link set DEVICE mtu SIZE on all nodes, and on all switches between them",
    )
    overlay: dict[str, dict[str, int]] = defaultdict(dict)
    for facts in nodes:
        for link in overlays(facts):
            overlay[link.name][facts.node] = link.mtu
    for name, sizes in sorted(overlay.items()):
        yield from _differing(
            sizes,
            name,
            "a pod sends larger packets than the far node's pods take: the far end drops them",
            "the same underlay MTU on all nodes, or key MTU of the net-conf",
        )


def _differing(sizes: dict[str, int], what: str, reason: str, fix: str) -> Iterable[Finding]:
    by_size: dict[int, list[str]] = defaultdict(list)
    for node, size in sizes.items():
        by_size[size].append(node)
    if len(by_size) < 2:
        return
    shown = ", ".join(f"{size} on {_some(names)}" for size, names in sorted(by_size.items()))
    jumbo = max(by_size) >= JUMBO and min(by_size) < JUMBO
    usual = max(by_size, key=lambda size: len(by_size[size]))
    yield Finding(
        check="mtu-differs",
        level="error",
        subject=f"MTU of {what}: {shown}",
        reason=reason + ("; jumbo frames need every node and switch" if jumbo else ""),
        fix=fix,
        source="RFC 1191; RFC 4459 section 3",
        nodes=tuple(name for size, names in by_size.items() if size != usual for name in names),
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
