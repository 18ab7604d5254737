"""Switches below /proc/sys, beside what the field recommends. Pure.

A change is proposed only where the kernel lets the namespace make it: switches of the whole machine are told of
everywhere and changed from its first namespace alone. Values that are large already are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pycni.doctor.features import uses
from pycni.doctor.model import Change, Facts, Finding, Level
from pycni.doctor.mtu import underlay

PER_CORE, LEAST, MOST = 32768, 131072, 1048576
"""Connections tracked: kube-proxy's defaults and its ceiling."""
GC_THRESHOLDS = (1024, 28672, 32768)
ESTABLISHED_S, CLOSE_WAIT_S = 86400, 3600
SOMAXCONN = 4096
NODE_PORTS = range(30000, 32768)
PORTS_LEAST = 20000
_IP_SYSCTL = "kernel.org, networking/ip-sysctl"
_KUBE_PROXY = "kube-proxy --conntrack-* (kubernetes.io, kube-proxy reference)"
_BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
_NEIGH = tuple(f"net.{ip}.neigh.default.gc_thresh{at}" for ip in ("ipv4", "ipv6") for at in (1, 2, 3))
MACHINE = (
    "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_buckets", "net.core.bpf_jit_enable",
    "net.core.default_qdisc", "net.core.netdev_max_backlog",
    "fs.inotify.max_user_instances", "fs.inotify.max_user_watches", *_NEIGH,
)  # fmt: skip
"""Of the whole machine."""
SWITCHES = (
    "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.all.disable_ipv6",
    "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.route_localnet", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_congestion_control", "net.ipv4.tcp_available_congestion_control", "net.core.somaxconn",
    "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait", "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.ipv6.route.max_size", *_BRIDGED,
)  # fmt: skip
"""Of a namespace."""
PER_DEVICE = ("net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/{}/accept_ra")
"""Of the devices packets of other nodes come in by."""
_OVERLAYS = frozenset({"vxlan", "ipip", "wireguard", "tun"})


def check(facts: Facts) -> Iterable[Finding]:
    """All switches of a node."""
    for rule in (
        _forwarding, _bridged, _reverse_path, _conntrack_room, _conntrack_times, _neighbours, _ports,
        _arp, _sockets, _congestion, _localnet, _ipv6_routes, _inotify, _jit,
    ):  # fmt: skip
        yield from rule(facts)


def _found(  # noqa: PLR0917 - six words of a finding, in the order of a sentence
    facts: Facts,
    check_: str,
    level: Level,
    wanted: Sequence[tuple[str, object]],
    reason: str,
    source: str,
    *,
    safe: bool = True,
) -> Finding:
    """A finding about switches that should have other values. ``safe``: whether ``--fix`` may set them."""
    changes = tuple(
        Change(name, now, str(value))
        for name, value in wanted
        if (now := facts.value(name)) is not None and now != str(value)
    )
    allowed = safe and all(item.name in facts.writable for item in changes)
    elsewhere = not allowed and safe and not facts.first
    words = "; ".join(f"sysctl -w {item.name}={_quoted(item.after)}" for item in changes)
    return Finding(
        check=check_,
        level=level,
        subject=", ".join(f"{item.name} = {item.before}" for item in changes),
        reason=reason,
        fix=words + (" (on the machine itself, in its first namespace)" if elsewhere else ""),
        source=source,
        nodes=(facts.node,) if facts.node else (),
        changes={facts.node: changes} if allowed else {},
    )


def _quoted(value: str) -> str:
    return f"'{value}'" if " " in value else value


def _forwarding(facts: Facts) -> Iterable[Finding]:
    used = uses(facts)
    if facts.value("net.ipv4.ip_forward") == "0" and ("ipv4" in used or "ipv6" not in used):
        idle = "ipv4" not in used
        yield _found(
            facts,
            "forwarding-off",
            "warning" if idle else "error",
            [("net.ipv4.ip_forward", 1)],
            "packets of pods end at this node"
            + ("; the agent switches it on when it has a lease" if idle else ""),
            "kubernetes.io, Container Runtimes; RFC 1812",
        )
    if "ipv6" not in used:
        return
    if facts.value("net.ipv6.conf.all.disable_ipv6") == "1":
        yield _found(
            facts, "ipv6-off", "error", [("net.ipv6.conf.all.disable_ipv6", 0)],
            "pods are to have IPv6, and the node has none", _IP_SYSCTL, safe=False,
        )  # fmt: skip
    if facts.value("net.ipv6.conf.all.forwarding") == "0":
        # With forwarding the kernel stops listening to routers unless accept_ra is 2, and drops what they told it.
        deaf = [(name, 2) for device in _uplinks(facts)
                if facts.value(name := f"net/ipv6/conf/{device}/accept_ra") == "1"]  # fmt: skip
        yield _found(
            facts, "forwarding-off", "error", [*deaf, ("net.ipv6.conf.all.forwarding", 1)],
            "IPv6 packets of pods end at this node", f"{_IP_SYSCTL}: forwarding, accept_ra",
        )  # fmt: skip


def _bridged(facts: Facts) -> Iterable[Finding]:
    used = sorted(use for use in uses(facts) if use.startswith(("proxy-", "policy-")))
    off = [(name, 1) for name in _BRIDGED if facts.value(name) == "0"]
    if used and off and "bridge" in uses(facts):
        yield _found(
            facts, "bridge-nf-off", "error", off,
            f"packets between pods of this node pass {', '.join(used)} unseen",
            "kubernetes.io, Container Runtimes; kernel.org, networking/bridge: netfilter",
        )  # fmt: skip


def _uplinks(facts: Facts) -> list[str]:
    """Devices that packets of other nodes come in by: the underlay and the overlays."""
    found = [link.name for link in facts.space.links.values() if link.kind in _OVERLAYS]
    return sorted({*found, underlay(facts)} - {""})


def _reverse_path(facts: Facts) -> Iterable[Finding]:
    everywhere = facts.number("net.ipv4.conf.all.rp_filter") or 0
    strict = [
        (name, 2)
        for device in _uplinks(facts)
        if (own := facts.number(name := f"net/ipv4/conf/{device}/rp_filter")) is not None
        and max(everywhere, own) == 1
    ]
    if strict:
        because = " (all has 1; the larger of both counts)" if everywhere == 1 else ""
        yield _found(
            facts, "rp-filter-strict", "warning", strict,
            f"packets that come in by another device than their answers leave by are dropped without a word{because}: "
            "several uplinks, direct server return, a change of backends",
            f"RFC 3704; {_IP_SYSCTL}: rp_filter",
        )  # fmt: skip


def _conntrack_room(facts: Facts) -> Iterable[Finding]:
    most, used = (
        facts.number("net.netfilter.nf_conntrack_max"),
        facts.number("net.netfilter.nf_conntrack_count"),
    )
    if not most:
        return  # 0: no limit
    wanted = min(max(PER_CORE * facts.cores, LEAST), MOST)
    crowded = (used or 0) * 10 >= most * 8
    if crowded:
        wanted = max(wanted, most * 2)
    raised = [("net.netfilter.nf_conntrack_max", max(most, wanted))]
    buckets = facts.number("net.netfilter.nf_conntrack_buckets")
    if buckets is not None and buckets * 4 < max(most, wanted):
        raised.append(("net.netfilter.nf_conntrack_buckets", max(most, wanted) // 4))
    if crowded:
        yield _found(
            facts, "conntrack-full", "error", raised,
            f"{used} of {most} connections are tracked; when it is full, new ones are dropped", _KUBE_PROXY,
        )  # fmt: skip
    elif most < wanted or len(raised) > 1:
        yield _found(
            facts, "conntrack-small", "warning", raised,
            f"room for {most} connections in {buckets} chains; by {facts.cores} CPUs it should be {wanted}, "
            "and at most four to a chain keep looking up fast",
            _KUBE_PROXY,
        )  # fmt: skip


def _conntrack_times(facts: Facts) -> Iterable[Finding]:
    base = "net.netfilter.nf_conntrack_tcp_timeout_"
    long = [
        (base + name, seconds)
        for name, seconds in (("established", ESTABLISHED_S), ("close_wait", CLOSE_WAIT_S))
        if (now := facts.number(base + name)) is not None
        and (now > seconds if name == "established" else now < seconds)
    ]
    if long:
        yield _found(
            facts, "conntrack-timeouts", "info", long,
            "dead connections keep their entries for days, half-closed ones lose theirs while Services still use them",
            _KUBE_PROXY,
        )  # fmt: skip
    liberal = "net.netfilter.nf_conntrack_tcp_be_liberal"
    if facts.value(liberal) == "0" and uses(facts) & {"proxy-nftables", "proxy-ipvs", "proxy-ebpf"}:
        yield _found(
            facts, "conntrack-strict", "warning", [(liberal, 1)],
            "answers out of a connection's window are not translated back, and the client resets the connection",
            "docs/proxy.md; kernel.org, networking/nf_conntrack-sysctl",
        )  # fmt: skip


def _neighbours(facts: Facts) -> Iterable[Finding]:
    # Permanent entries, as an overlay's, are not counted by the kernel since 5.0 (net/core/neighbour.c).
    counted = [item for item in facts.space.neighbours if item.state not in {"permanent", "noarp", "none"}]
    for ip, size in (("ipv4", 4), ("ipv6", 16)):
        names = [f"net.{ip}.neigh.default.gc_thresh{at}" for at in (1, 2, 3)]
        now = [number for name in names if (number := facts.number(name)) is not None]
        if len(now) < len(names) or ip not in (uses(facts) & {"ipv4", "ipv6"} or {"ipv4"}):
            continue
        have, most = sum(len(item.address) == size for item in counted), now[2]
        full = have * 10 >= most * 8
        wanted = [
            (name, max(value, was, was * 2 * full))
            for name, value, was in zip(names, GC_THRESHOLDS, now, strict=True)
        ]
        said = f"{most} fit for all namespaces of the machine together; beyond that packets to new ones are dropped"
        source = f"arp(7); {_IP_SYSCTL}: neigh/default/gc_thresh3; Charmed Kubernetes' defaults"
        if full:
            reason = f"{have} neighbours are known in this namespace alone, {said}"
            yield _found(facts, "neighbours-full", "error", wanted, reason, source)
        elif most < GC_THRESHOLDS[2] // 8:
            crowded = have * 2 >= now[1]
            yield _found(facts, "neighbours-few", "warning" if crowded else "info", wanted, said, source)


def _ports(facts: Facts) -> Iterable[Finding]:
    text = facts.value("net.ipv4.ip_local_port_range") or ""
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return
    low, high = map(int, words)
    reserved = facts.value("net.ipv4.ip_local_reserved_ports") or ""
    first, last = max(low, NODE_PORTS[0]), min(high, NODE_PORTS[-1])
    if first <= last and not _covered(reserved, first, last):
        value = f"{reserved},{NODE_PORTS[0]}-{NODE_PORTS[-1]}".lstrip(",")
        yield _found(
            facts, "ports-overlap", "warning", [("net.ipv4.ip_local_reserved_ports", value)],
            f"the node's own connections take ports {low} to {high}: a NodePort may be taken when a Service wants it",
            f"{_IP_SYSCTL}: ip_local_reserved_ports; kubernetes.io, Ports and Protocols",
        )  # fmt: skip
    if high - low + 1 < PORTS_LEAST:
        yield _found(
            facts, "ports-few", "warning", [("net.ipv4.ip_local_port_range", "32768\t60999")],
            f"{high - low + 1} ports for the node's own connections to one address and port, and for masquerading",
            f"{_IP_SYSCTL}: ip_local_port_range",
        )  # fmt: skip


def _covered(reserved: str, first: int, last: int) -> bool:
    """Whether a list such as ``8080,30000-32767`` has all of these."""
    spans = [item.partition("-") for item in reserved.split(",") if item]
    held = {port for low, _dash, high in spans for port in range(int(low), int(high or low) + 1)}
    return held.issuperset(range(first, last + 1))


def _arp(facts: Facts) -> Iterable[Finding]:
    if "proxy-ipvs" not in uses(facts):
        return
    base = "net.ipv4.conf.all."
    wrong = [(f"{base}{name}", value) for name, value in (("arp_ignore", 1), ("arp_announce", 2))
             if (facts.number(base + name) or 0) < value and facts.value(base + name) is not None]  # fmt: skip
    if wrong:
        yield _found(
            facts, "arp-answers", "error", wrong,
            "the node answers ARP for Services' addresses it has on a dummy device, and takes them from their owner",
            f"kube-proxy --ipvs-strict-arp; {_IP_SYSCTL}: arp_ignore, arp_announce",
        )  # fmt: skip


def _sockets(facts: Facts) -> Iterable[Finding]:
    now = facts.number("net.core.somaxconn")
    if now is not None and now < SOMAXCONN:
        yield _found(
            facts, "somaxconn-small", "warning", [("net.core.somaxconn", SOMAXCONN)],
            f"servers cannot have more than {now} connections waiting, whatever they ask for; a burst is refused",
            f"{_IP_SYSCTL}: somaxconn (4096 since Linux 5.4)",
        )  # fmt: skip


def _congestion(facts: Facts) -> Iterable[Finding]:
    name = "net.ipv4.tcp_congestion_control"
    now, known = facts.value(name), (facts.value("net.ipv4.tcp_available_congestion_control") or "").split()
    if now is None or now in {"bbr", "cubic", "dctcp"}:
        if now == "bbr" and (0, 0) < facts.version < (4, 13):
            yield Finding(
                check="congestion-bbr",
                level="warning",
                subject=f"{name} = bbr on kernel {facts.release}",
                reason="before Linux 4.13 it needs qdisc fq on every device for its pacing, and pods have none",
                fix=f"sysctl -w {name}=cubic, or a newer kernel",
                source="tc-fq(8)",
            )
        return
    better = next((item for item in ("bbr", "cubic") if item in known), "")
    wanted = [(name, better or "cubic")]
    yield _found(
        facts, "congestion-control", "info", wanted,
        f"{now} fills long paths poorly; cubic is the kernel's default (RFC 9438), bbr does best on lossy ones",
        f"RFC 9438; {_IP_SYSCTL}: tcp_congestion_control", safe=bool(better),
    )  # fmt: skip


def _localnet(facts: Facts) -> Iterable[Finding]:
    name = "net.ipv4.conf.all.route_localnet"
    if facts.value(name) == "1":
        yield _found(
            facts, "route-localnet", "warning", [(name, 0)],
            "neighbours on the link reach what listens on 127.0.0.1; NodePorts on the loopback need it (kube-proxy "
            "sets it), so look who does before you change it",
            "CVE-2020-8558", safe=False,
        )  # fmt: skip


def _ipv6_routes(facts: Facts) -> Iterable[Finding]:
    name = "net.ipv6.route.max_size"
    now = facts.number(name)
    if "ipv6" in uses(facts) and now is not None and now < 16384 and (0, 0) < facts.version < (6, 3):
        yield _found(
            facts, "ipv6-routes-few", "warning", [(name, 16384)],
            f"before Linux 6.3 the kernel keeps no more than {now} IPv6 routes, cached ones counted",
            f"{_IP_SYSCTL}: route/max_size",
        )  # fmt: skip


def _inotify(facts: Facts) -> Iterable[Finding]:
    low = [
        (f"fs.inotify.{name}", value)
        for name, value in (("max_user_instances", 512), ("max_user_watches", 524288))
        if (now := facts.number(f"fs.inotify.{name}")) is not None and now < value
    ]
    if low:
        yield _found(
            facts, "inotify-few", "info", low,
            'kubelet, runtimes and pods share them; without one a program says "too many open files"',
            "kind.sigs.k8s.io, Known Issues; inotify(7)",
        )  # fmt: skip


def _jit(facts: Facts) -> Iterable[Finding]:
    if facts.value("net.core.bpf_jit_enable") == "0" and uses(facts) & {"proxy-ebpf", "policy-ebpf"}:
        yield _found(
            facts, "bpf-jit-off", "warning", [("net.core.bpf_jit_enable", 1)],
            "eBPF programs are interpreted, for every packet", "kernel.org, admin-guide/sysctl/net: bpf_jit_enable",
        )  # fmt: skip
