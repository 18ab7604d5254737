"""What the kernel has to have for what a node is to do. Pure.

What a node does (``uses``) is told, for a lab, or seen from the devices and tables our components made. A lacking
feature is an error where it is used; all that is lacking and not used is one line to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pycni.doctor.model import Facts, Finding
from pycni.model.tables import POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL

ALWAYS = ""
USES = (
    "bridge", "ptp", "macvlan", "ipvlan",
    "vxlan", "wireguard", "ipip", "udp",
    "proxy-nftables", "proxy-ipvs", "proxy-ebpf", "policy-nftables", "policy-ebpf", "bandwidth", "ipv4", "ipv6",
)  # fmt: skip
"""Attachments, backends, data planes, the bandwidth capability, families of pods."""
_NFT = frozenset({ALWAYS, "proxy-nftables", "policy-nftables"})
_EBPF = frozenset({"proxy-ebpf", "policy-ebpf"})
_IPVS = frozenset({"proxy-ipvs"})


class Feature(NamedTuple):
    """A part of the kernel."""

    option: str
    """Without ``CONFIG_``."""
    module: str
    """The module it is in, when it is one; "": it cannot be a module."""
    what: str
    uses: frozenset[str]
    """Which need it; ``ALWAYS``: every node."""
    instead: str = ""
    """A program that can stand in for it."""
    itself: bool = True
    """Whether the kernel loads the module by itself when it is asked for."""


FEATURES = (
    Feature("VETH", "veth", "pairs of devices between node and pod", frozenset({"bridge", "ptp"})),
    Feature("NF_TABLES", "nf_tables", "nftables", _NFT),
    Feature("NF_TABLES_INET", "", "tables for both families", _NFT),
    Feature("NF_CONNTRACK", "nf_conntrack", "connection tracking", _NFT),
    Feature("NFT_CT", "nft_ct", "connection tracking in nftables", _NFT),
    Feature("NFT_NAT", "nft_nat", "address translation", _NFT),
    Feature("NFT_MASQ", "nft_masq", "masquerading", _NFT),
    Feature("NF_CT_NETLINK", "nf_conntrack_netlink", "forgetting connections of a Service's gone endpoint",
            frozenset({"proxy-nftables", "proxy-ipvs", "proxy-ebpf"})),
    Feature("NFT_NUMGEN", "nft_numgen", "choosing among endpoints", frozenset({"proxy-nftables", "proxy-ebpf"})),
    Feature("NETFILTER_NETLINK_LOG", "nfnetlink_log", "telling of denied packets", frozenset({"policy-nftables"})),
    Feature("NFT_LOG", "nft_log", "telling of denied packets", frozenset({"policy-nftables"})),
    Feature("BRIDGE", "bridge", "bridges", frozenset({"bridge"})),
    Feature("NF_TABLES_BRIDGE", "", "holding pods on a bridge to their own addresses", frozenset({"bridge"})),
    Feature("BRIDGE_NETFILTER", "br_netfilter", "seeing packets between pods of one bridge",
            frozenset({"bridge"}), itself=False),
    Feature("MACVLAN", "macvlan", "pods on the underlay, each with a MAC", frozenset({"macvlan"})),
    Feature("IPVLAN", "ipvlan", "pods on the underlay, sharing a MAC", frozenset({"ipvlan"})),
    Feature("VXLAN", "vxlan", "backend vxlan", frozenset({"vxlan"})),
    Feature("WIREGUARD", "wireguard", "backend wireguard", frozenset({"wireguard"}), instead="wireguard-go"),
    Feature("NET_IPIP", "ipip", "backend ipip", frozenset({"ipip"})),
    Feature("TUN", "tun", "backend udp, and wireguard by wireguard-go", frozenset({"udp"})),
    Feature("IP_VS", "ip_vs", "Services by IPVS", _IPVS),
    Feature("IP_VS_RR", "ip_vs_rr", "IPVS's usual scheduler", _IPVS),
    Feature("IP_VS_NFCT", "", "IPVS together with connection tracking", _IPVS),
    Feature("IP_SET", "ip_set", "sets of addresses for IPVS", _IPVS),
    Feature("IP_SET_HASH_IPPORT", "ip_set_hash_ipport", "sets of addresses for IPVS", _IPVS),
    Feature("DUMMY", "dummy", "the device that has IPVS's addresses", _IPVS),
    Feature("BPF_SYSCALL", "", "eBPF programs", _EBPF),
    Feature("BPF_JIT", "", "eBPF programs as machine code", _EBPF),
    Feature("CGROUP_BPF", "", "translating at sockets", frozenset({"proxy-ebpf"})),
    Feature("NET_CLS_BPF", "cls_bpf", "eBPF programs at devices", _EBPF),
    Feature("NET_SCH_INGRESS", "sch_ingress", "eBPF programs at devices", _EBPF),
    Feature("NET_SCH_TBF", "sch_tbf", "limits of bandwidth", frozenset({"bandwidth"})),
    Feature("IFB", "ifb", "limits of bandwidth, outwards", frozenset({"bandwidth"})),
    Feature("IPV6", "ipv6", "IPv6", frozenset({"ipv6"})),
)  # fmt: skip
OPTIONS = frozenset(item.option for item in FEATURES)
PROGRAMS = frozenset(item.instead for item in FEATURES if item.instead)
_SOURCE = "docs/backends.md, docs/proxy.md, docs/policy.md; Kconfig of the kernel"
_SEEN = {"vxlan": "vxlan", "wireguard": "wireguard", "ipip": "ipip", "macvlan": "macvlan", "ipvlan": "ipvlan"}


def uses(facts: Facts) -> frozenset[str]:
    """What the node is to do: as told, else by the marks of our components."""
    if facts.uses is not None:
        return frozenset(facts.uses)
    links, names = facts.space.links, {name for _, name in facts.tables}
    found = {_SEEN[link.kind] for link in links.values() if link.kind in _SEEN}
    if any(link.kind == "bridge" for link in links.values()):
        found.add("bridge")
    if "flannel-wg" in links or "flannel-wg-v6" in links:
        found.add("wireguard")
    if "flannel0" in links:
        found.add("udp")
    found |= {use for use, table in (("proxy-nftables", "pycni_proxy"), ("policy-nftables", "pycni_policy"))
              if table in names}  # fmt: skip
    if "pycni-ipvs0" in links:
        found.add("proxy-ipvs")
    ours = [item for item in facts.space.routes if item.protocol in {ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL}]
    found |= {"ipv4" if len(item.destination) == 4 else "ipv6" for item in ours}
    return frozenset(found)


def state(facts: Facts, item: Feature) -> str:
    """``there``, ``loadable``, ``missing`` or ``unknown``."""
    module = item.module
    if item.instead and item.instead in facts.programs:
        return "there"
    if module and module in facts.modules:
        return "there"
    built = facts.kernel.get(item.option, "n") if facts.kernel else ""
    if built == "y":
        return "there"
    if module and module in facts.loadable and built in {"m", ""}:
        return "loadable"
    return "missing" if built else "unknown"


def check(facts: Facts) -> Iterable[Finding]:
    """What is lacking."""
    wanted = uses(facts) | {ALWAYS}
    idle = []
    for item in FEATURES:
        is_there, used = state(facts, item), wanted & item.uses
        if is_there == "missing" and not used:
            idle.append(item)
        elif is_there == "missing":
            yield _lacking(facts, item, used)
        elif is_there == "loadable" and used and not item.itself:
            yield Finding(
                check="module-not-loaded",
                level="warning",
                subject=f"module {item.module} is not loaded",
                reason=f"needed for {item.what}; the kernel does not load it by itself",
                fix=f"modprobe {item.module}; to keep it: echo {item.module} >/etc/modules-load.d/pycni.conf",
                source="kubernetes.io, Container Runtimes: network prerequisites; modules-load.d(5)",
            )
    if not facts.kernel and not facts.loadable:
        yield Finding(
            check="kernel-unknown",
            level="info",
            subject=f"kernel {facts.release}: nobody knows what it was built with",
            reason="neither /proc/config.gz nor /boot/config nor a folder of modules can be read",
            fix="run it on the host, or mount /boot and /lib/modules into the container",
            source="proc(5), config.gz",
        )
    if idle:
        yield Finding(
            check="kernel-cannot",
            level="info",
            subject=f"this kernel has no {', '.join(dict.fromkeys(item.option for item in idle))}",
            reason=f"not used here; it rules out: {', '.join(dict.fromkeys(item.what for item in idle))}",
            fix="nothing, unless you want these",
            source=_SOURCE,
        )


def _lacking(facts: Facts, item: Feature, used: Iterable[str]) -> Finding:
    by = ", ".join(sorted(word for word in used if word)) or "masquerading, port mappings, guards"
    module = f"CONFIG_{item.option}{f' (module {item.module})' if item.module else ''}"
    instead = f", or install the program {item.instead}" if item.instead else ""
    return Finding(
        check="kernel-feature",
        level="error" if any(used) else "warning",  # an agent without nftables serves all but what needs it
        subject=f"the kernel lacks {module}",
        reason=f"{by}: no {item.what} without it (kernel {facts.release})",
        fix=f"boot a kernel that has it (distributions' usual ones do){instead}",
        source=_SOURCE,
    )
