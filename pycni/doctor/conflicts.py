"""Others on the node that do the same, or undo what we do: seen and named, never touched. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from pycni.doctor.features import uses
from pycni.doctor.model import Facts, Finding
from pycni.model.family import Network, show
from pycni.model.tables import POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL

OURS = "pycni"
"""Type of our CNI plugin; begins the names of our tables."""
PROGRAMS = (
    "NetworkManager", "systemd-network", "firewalld", "kube-proxy", "kube-router", "flanneld", "dockerd", "ufw",
    "calico-node", "cilium-agent", "antrea-agent", "weaver", "ovs-vswitchd",
)  # fmt: skip
"""As /proc/<pid>/comm has them."""
_NETWORKS = {
    "cilium_": "Cilium", "cali": "Calico", "vxlan.calico": "Calico", "antrea-": "Antrea", "kube-bridge": "kube-router",
    "weave": "Weave Net", "ovn": "OVN-Kubernetes", "kube-ipvs0": "kube-proxy",
}  # fmt: skip
_AGENTS = {
    "kube-router": "kube-router", "flanneld": "flannel", "calico-node": "Calico", "cilium-agent": "Cilium",
    "antrea-agent": "Antrea", "weaver": "Weave Net",
}  # fmt: skip
_IPTABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
_OWN_DEVICES = ("flannel", "fl.", "fl-v6", "veth", "pycni", "lo", "cni", "single")


def check(facts: Facts) -> Iterable[Finding]:
    """All of them."""
    for rule in (
        _conflists, _docker, _overlaps, _firewalld, _forward_policy, _proxies, _networks, _managers, _iptables
    ):  # fmt: skip
        yield from rule(facts)


def _conflists(facts: Facts) -> Iterable[Finding]:
    folder = facts.conf_folder
    for item in facts.conf_files:
        if item.trouble:
            yield Finding(
                check="conflist-broken",
                level="error" if item is facts.conf_files[0] else "warning",
                subject=f"{folder}/{item.name}: {item.trouble}",
                reason="runtimes take the first file of the folder, and pods do not start when they cannot read it",
                fix=f"mend it, or move it out of {folder}",
                source="CNI specification 1.1.0, section 1; libcni conf.go",
            )
    readable = [item for item in facts.conf_files if not item.trouble]
    ours = [item for item in readable if OURS in item.plugins]
    others = [item for item in readable if item not in ours]
    if not ours:
        if readable:
            yield Finding(
                check="conflist-none",
                level="info",
                subject=f"{folder} has no network of ours: {', '.join(item.name for item in readable)}",
                reason="this node's pods get their network from another plugin",
                fix="pycnid install-cni (docs/configuration.md)",
                source="CNI specification 1.1.0, section 1",
            )
        return
    before = [item for item in others if item.name < ours[0].name]
    if before:
        yield Finding(
            check="conflist-first",
            level="error",
            subject=f"{folder}/{before[0].name} ({', '.join(before[0].plugins)}) comes before {ours[0].name}",
            reason=f"runtimes take the first file: pods get network {before[0].network or before[0].name}, not ours",
            fix=f"mv {folder}/{before[0].name} {folder}/{before[0].name}.off",
            source="containerd and CRI-O: the first file in lexicographic order",
        )
    elif others:
        yield Finding(
            check="conflist-others",
            level="info",
            subject=f"{folder} has other networks too: {', '.join(item.name for item in others)}",
            reason=f"ours ({ours[0].name}) comes first and is taken; without it the next one would be",
            fix="nothing, or move them away",
            source="containerd and CRI-O: the first file in lexicographic order",
        )


def _docker(facts: Facts) -> Iterable[Finding]:
    if "docker0" not in facts.space.links:
        return
    shut = [hook for hook in facts.space.hooks if hook.hook == "forward" and hook.policy == "drop"]
    yield Finding(
        check="docker",
        level="warning" if shut else "info",
        subject="docker0 is on this node",
        reason="Docker sets the policy of FORWARD to DROP" + (": it is" if shut else " when it starts (not now)")
        + ", which drops packets of pods that no rule of its own accepts",
        fix='iptables -I DOCKER-USER -j ACCEPT for the pod networks, or "iptables": false / "ip-forward-no-drop": true '
        "in daemon.json",
        source="docs.docker.com, Packet filtering and firewalls",
    )  # fmt: skip


def _overlaps(facts: Facts) -> Iterable[Finding]:
    """Networks of others on this node that pods' addresses are in too."""
    pods: set[Network] = {
        ip_network((item.destination, item.prefix_len), strict=False)
        for item in facts.space.routes
        if item.protocol in {ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL} and item.prefix_len
    }
    bridges = {link.name for link in facts.space.links.values() if link.kind == "bridge"}
    for item in facts.space.addresses:
        if item.device.startswith(_OWN_DEVICES) or item.prefix_len == len(item.address) * 8:
            continue
        theirs = ip_network((item.address, item.prefix_len), strict=False)
        if theirs.is_link_local or item.device not in bridges | {"docker0"}:
            continue
        hit = sorted(str(net) for net in pods if net.version == theirs.version and net.overlaps(theirs))
        if hit:
            yield Finding(
                check="networks-overlap",
                level="error",
                subject=f"{item.device} has {show(item.address)}/{item.prefix_len}, pods are in {', '.join(hit[:3])}",
                reason="packets to these pods go to the wrong device, or the other way round",
                fix=f'another network for {item.device} (Docker: "bip" in daemon.json), or for the pods',
                source="RFC 1812 section 5.2.4.3 (longest match)",
            )  # fmt: skip


def _firewalld(facts: Facts) -> Iterable[Finding]:
    here = "firewalld" in facts.processes or any(name == "firewalld" for _, name in facts.tables)
    if here:
        yield Finding(
            check="firewalld",
            level="warning",
            subject="firewalld is at work on this node",
            reason="its chains reject what no zone allows: packets of pods, the overlay's port; it runs beside ours, "
            "and an accept of ours does not overrule it",
            fix="firewall-cmd --permanent --zone=trusted --add-interface=cni0 --add-interface=flannel.1 "
            "&& firewall-cmd --reload, and open the overlay's port to the nodes; or disable it",
            source="firewalld.org, nftables backend; k3s and flannel documentation",
        )


def _forward_policy(facts: Facts) -> Iterable[Finding]:
    told = {"firewalld"} | ({"filter"} if "docker0" in facts.space.links else set())
    for hook in facts.space.hooks:
        if hook.hook == "forward" and hook.policy == "drop" and hook.table not in told:
            where = f"{hook.family} {hook.table} {hook.chain}"
            yield Finding(
                check="forward-drop",
                level="warning",
                subject=f"chain {where} drops what it does not accept",
                reason="packets between pods and nodes are dropped unless its rules accept them, whatever ours say",
                fix=f"let it accept the pod networks; look: {_listing(hook.family, hook.table, hook.chain)}",
                source="nft(8), base chains: a drop is final, an accept is not",
            )


def _listing(family: str, table: str, chain: str) -> str:
    ip, _space, legacy = family.partition(" ")
    if legacy:
        return f"{'ip6tables' if ip == 'ip6' else 'iptables'}-legacy -t {table} -S {chain}"
    return f"nft list chain {family} {table} {chain}"


def _proxies(facts: Facts) -> Iterable[Finding]:
    signs = [f"process {name}" for name in ("kube-proxy",) if name in facts.processes]
    signs += [f"table {family} {name}" for family, name in facts.tables if name == "kube-proxy"]
    signs += ["chain KUBE-SERVICES" for _, _, name in facts.chains if name == "KUBE-SERVICES"][:1]
    signs += ["device kube-ipvs0"] if "kube-ipvs0" in facts.space.links else []
    if not signs:
        return
    both = sorted(item for item in uses(facts) if item.startswith("proxy-"))
    runs = "kube-proxy" in facts.processes
    if both:
        reason = (
            f"two translate the same Services ({', '.join(both)} is ours): the first decides, clean-up fights"
        )
    elif runs:
        reason = "it serves the Services; that is well as long as component proxy is off"
    else:
        reason = "its rules go on translating Services as they were when it ended"
    yield Finding(
        check="kube-proxy",
        level="warning" if both else "info",
        subject=f"kube-proxy {'runs here' if runs else 'has left traces'} ({'; '.join(signs)})",
        reason=reason,
        fix="remove its DaemonSet and run kube-proxy --cleanup, or leave out component proxy (docs/proxy.md)",
        source="docs/proxy.md; kubernetes.io, kube-proxy reference (--cleanup)",
    )


def _networks(facts: Facts) -> Iterable[Finding]:
    seen: dict[str, list[str]] = {}
    for name in facts.space.links:
        for start, who in _NETWORKS.items():
            if name.startswith(start) and who != "kube-proxy":
                seen.setdefault(who, []).append(name)
    for program in sorted(facts.processes & _AGENTS.keys()):
        seen.setdefault(_AGENTS[program], []).append(f"process {program}")
    for who, signs in sorted(seen.items()):
        runs = any(sign.startswith("process") for sign in signs)
        yield Finding(
            check="other-network",
            level="warning",
            subject=f"{who} {'runs on this node' if runs else 'has left devices'}: {', '.join(signs[:4])}",
            reason="two pod networks on a node take each other's addresses, UDP ports and rules",
            fix=f"remove {who} and its devices from the node (of flannel: docs/migrate-from-flannel.md)",
            source="kubernetes.io, Network Plugins: one per node",
        )


def _managers(facts: Facts) -> Iterable[Finding]:
    if "systemd-network" in facts.processes:
        takes = [
            name
            for name in ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules")
            if facts.networkd.get(name, "yes").lower() in {"yes", "true", "1", "on"}
        ]
        if takes:
            yield Finding(
                check="networkd",
                level="warning",
                subject=f"systemd-networkd has {', '.join(f'{name}=yes' for name in takes)}",
                reason="when it is restarted it removes routes and rules it did not make: those to other nodes' pods",
                fix="[Network] with " + ", ".join(f"{name}=no" for name in takes)
                + " in /etc/systemd/networkd.conf.d/pycni.conf, then restart it",
                source="networkd.conf(5); systemd#19287; cilium/cilium#18706",
            )  # fmt: skip
    if "NetworkManager" in facts.processes:
        missing = [
            name for name in ("cni", "flannel", "veth") if not any(name in item for item in facts.unmanaged)
        ]
        if missing:
            yield Finding(
                check="networkmanager",
                level="warning",
                subject=f"NetworkManager may take devices {', '.join(f'{name}*' for name in missing)}",
                reason="it sets addresses, routes and states of devices it manages, and takes them down when it ends",
                fix="[keyfile] unmanaged-devices=interface-name:cni*;interface-name:flannel*;interface-name:veth* "
                "in /etc/NetworkManager/conf.d/pycni.conf, then nmcli general reload",
                source="NetworkManager.conf(5); Calico's and RKE2's requirements",
            )  # fmt: skip


def _iptables(facts: Facts) -> Iterable[Finding]:
    by_nft = sorted(
        f"{family} {name}" for family, name in facts.tables if family in {"ip", "ip6"} and name in _IPTABLES
    )
    if facts.legacy and by_nft:
        yield Finding(
            check="iptables-mix",
            level="warning",
            subject=f"iptables-legacy has tables {', '.join(facts.legacy)}, iptables-nft {', '.join(by_nft)}",
            reason="each shows its own rules, and packets pass both: drops are looked for in vain",
            fix="update-alternatives --set iptables /usr/sbin/iptables-nft; flush the other's rules",
            source="wiki.nftables.org, Legacy xtables tools; kubernetes/kubernetes#71305",
        )
